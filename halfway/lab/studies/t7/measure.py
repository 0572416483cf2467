"""How far attacks on k surrogates carry, and other ways to attack as many models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import attacks, losses
from halfway.attacks.ensembles import HOW
from halfway.keys import named_key
from halfway.lab.measurements import crossed, ensembles, weight_space
from halfway.lab.measurements.context import Context, MemberFn, Pair, Program, Shared
from halfway.lab.measurements.crossed import SURROGATE, TARGET
from halfway.lab.measurements.ensembles import (
    NUM_SURROGATES,
    SMALL_SIZES,
    block_sizes,
    with_targets,
)
from halfway.lab.study.records import Measurement
from halfway.types import Array, Key, Params

MIDPOINTS = ("midpoint, raw", "midpoint, matched")
TAIL = "SGD tail"
ATTACKED = ("one", "two", "all")
"""Numbers of surrogates that are attacked without a group of two."""
NUM_TAILS, TAIL_RATE = 4, 0.05
"""Single surrogates that a tail begins at, and its constant learning rate (Gubri et al.)."""
PER_PASS = 4
"""Models that are kept of a tail in each pass over the half (Gubri et al.)."""


def other_ways() -> tuple[str, ...]:
    """Returns the ways to attack beside the mean of the logits."""
    return (*HOW[1:], *MIDPOINTS, TAIL)


def midpoints(context: Context, surrogates: Params) -> dict[str, Params]:
    """Returns halfway points of the weights of two surrogates each, raw and after matching.

    Args:
      context: whose first population the models are of.
      surrogates: leaves `[K, ...]`; the first is matched by the second, the third by the fourth.

    Returns:
      leaves `[K // 2, ...]`, by `MIDPOINTS`.
    """
    twos = crossed.blocks(surrogates, 2)
    population = dataclasses.replace(context.population, params=twos)
    raw = weight_space.ends(twos)
    matched = weight_space.matched_ends(population, named_key(context.key, "matching"))
    middles = [jax.tree.map(lambda a, b: 0.5 * (a + b), *ends) for ends in (raw, matched)]
    return dict(zip(MIDPOINTS, middles, strict=True))


@functools.cache  # a new function would be compiled again
def _tail_fn(num_models: int) -> MemberFn:
    """Returns the walk of SGD from one surrogate on, on the half that it was trained on."""

    def walk(member: Any, shared: Shared, program: Program) -> Params:
        key, start, rows, labels = member
        size = min(program.condition.batch_size, len(rows))

        def loss_fn(key: Key, params: Params) -> Array:
            drawn = jax.random.randint(key, (size,), 0, len(rows))
            logits = program.apply_fn(params, shared.images[rows[drawn]])
            return losses.cross_entropy(logits, labels[drawn]).mean()

        return attacks.collect_weights(
            key,
            start,
            loss_fn,
            num_models=num_models,
            learning_rate=TAIL_RATE,
            steps_between=max(1, round(len(rows) / size / PER_PASS)),
        )

    return walk


def tails(context: Context, chosen: Sequence[int], num_models: int) -> Params:
    """Returns weights `[R, num_models, ...]` that SGD visits from θ_A of some pairs on (LGV).

    Args:
      context: whose first population the pairs are of; its halves have no padding.
      chosen: R pairs.
      num_models: of each tail.
    """
    population, rows = context.population, jnp.asarray(chosen)
    starts = crossed.side(population.params, SURROGATE)
    members = (
        context.pair_keys("tails"),
        starts,
        population.halves.a.indices,
        population.trained_labels[:, SURROGATE],
    )
    members = jax.tree.map(lambda leaf: leaf[rows], members)
    return context.over_members(_tail_fn(num_models), members, trains=True)


def _right(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns whether both models are right about each example, `[2, B]`."""
    rows = pair.halves.s.indices[: crossed.NUM_CROSSED]
    x, labels = shared.images[rows], shared.labels[rows]
    return {
        "right": jax.lax.map(
            lambda params: program.apply_fn(params, x).argmax(-1) == labels, pair.params
        )
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns how often attacks on surrogates fool targets, see `measurements.ensembles`.

    All are shares of S, labels clean, of which a target is right about an image and wrong once it
    is attacked. Of each target and example, `fooled` (num_surrogates, pair, example) under the
    attack on the mean logits, the mean over disjoint blocks of k surrogates; of each target,
    `fooled_without` (attacked, group, pair) with a group of two surrogates left out of all blocks,
    for one, two and all surrogates at once, and `fooled_by` (pair, way) under other attacks;
    `right` (pair), the share that it has right.

    Surrogates that diverged are left out; NaN where too few are left, and for pairs without a
    target.
    """
    population, num_pairs = context.population, context.condition.num_pairs
    half = num_pairs // 2
    right = context.over_pairs(_right)["right"][half:, TARGET]
    first, second = (crossed.side(population.params, place) for place in (SURROGATE, TARGET))
    targets = jax.tree.map(lambda leaf: leaf[half:], second)
    chosen = ensembles.chosen_surrogates(population.finite)
    surrogates = jax.tree.map(lambda leaf: leaf[chosen], first)

    def fooled_by(members: Params, how: str = "logits") -> np.ndarray:
        """Returns whether targets lose examples to the attack on each block, `[R, M, B]`."""
        points = crossed.attack(context, members, how)
        outcome = crossed.evaluate(context, targets, points)
        return (right[:, None] & ~outcome.correct).swapaxes(0, 1)

    sizes = block_sizes(half)
    last = sizes[-1]
    num_groups = min(half, NUM_SURROGATES) // 2
    fooled = np.full((len(sizes), half, right.shape[1]), np.nan)
    without = np.full((len(ATTACKED), num_groups, half), np.nan)
    for place, k in enumerate(sizes):
        if k > len(chosen):
            continue
        blocks = fooled_by(crossed.blocks(surrogates, k))
        fooled[place] = blocks.mean(0)
        if k in SMALL_SIZES and len(chosen) >= 2 * num_groups > 2:
            rates = blocks[: 2 * num_groups // k].mean(-1).reshape(num_groups, -1, half).mean(1)
            without[place] = (rates.sum(0) - rates) / (num_groups - 1)
    if last <= len(chosen) and last > 2:
        # Of a group that is not among those attacked at once nothing is left out.
        without[-1] = fooled[-1].mean(-1)
        without[-1, : last // 2] = fooled_by(left_out(surrogates, last)).mean(-1)
    by_way = dict.fromkeys(other_ways(), np.full(half, np.nan))
    if last <= len(chosen):
        by_way |= _fooled_by(context, surrogates, chosen, lambda *of: fooled_by(*of).mean(-1))
    return context.dataset(
        {
            "fooled": (("num_surrogates", "pair", "example"), with_targets(fooled, 1)),
            "fooled_without": (("attacked", "group", "pair"), with_targets(without, 2)),
            "fooled_by": (("pair", "way"), with_targets(np.stack([*by_way.values()], -1), 0)),
            "right": (("pair",), with_targets(right.mean(-1), 0)),
        },
        num_surrogates=sizes,
        attacked=ATTACKED,
        way=[*by_way],
    )


def left_out(surrogates: Params, number: int) -> Params:
    """Returns all surrogates but those of each group of two, leaves `[G, number − 2, ...]`.

    Args:
      surrogates: leaves `[K, ...]`.
      number: of those that are attacked at once, even; the first of them.
    """
    rows = np.arange(number)
    kept = np.stack([rows[rows // 2 != group] for group in range(number // 2)])
    return jax.tree.map(lambda leaf: leaf[kept], surrogates)


def _fooled_by(
    context: Context,
    surrogates: Params,
    chosen: np.ndarray,
    share_fooled: Callable[..., np.ndarray],
) -> Mapping[str, np.ndarray]:
    """Returns `[M]` shares of S of each target by other way to attack as many models or fewer.

    `share_fooled` gives those of each block, `[R, M]`.
    """
    most = block_sizes(context.condition.num_pairs // 2)[-1]
    whole = crossed.blocks(surrogates, most)
    by_way = {how: share_fooled(whole, how).mean(0) for how in HOW[1:]}
    middles = midpoints(context, surrogates)
    # Together they are as many as single surrogates: one program for all.
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *middles.values())
    halves = np.split(share_fooled(crossed.blocks(together, 1)), len(middles))
    by_way |= {name: part.mean(0) for name, part in zip(middles, halves, strict=True)}
    visited = tails(context, chosen[:NUM_TAILS].tolist(), most)
    one_by_one = [
        jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], visited)
        for r in range(len(chosen[:NUM_TAILS]))
    ]
    return by_way | {TAIL: np.mean([share_fooled(tail)[0] for tail in one_by_one], 0)}


ENSEMBLES = Measurement("surrogate_ensembles", _measure)
