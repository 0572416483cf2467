"""What k surrogates share with other models, and how far attacks on all of them carry."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import attacks, losses, meeting
from halfway.attacks.ensembles import HOW
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import crossed, weight_space
from halfway.lab.measurements.context import Context, MemberFn, Pair, Program, Shared
from halfway.lab.measurements.crossed import SURROGATE, TARGET
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params

MIDPOINTS = ("midpoint, raw", "midpoint, matched")
TAIL = "SGD tail"
NUM_TAILS, TAIL_RATE = 4, 0.05
"""Single surrogates that a tail begins at, and its constant learning rate (Gubri et al.)."""
PER_PASS = 4
"""Models that are kept of a tail in each pass over the half (Gubri et al.)."""


def compared_on(config: RunConfig) -> Condition:
    """Returns twice the config's pairs, of which no model has seen S.

    θ_A of the first half are the surrogates, θ_B of the second half the targets. The partner of
    each, an independent draw of the same law, is neither: those give k_half.
    """
    return crossed.common_condition(config, 2 * config.num_pairs)


def block_sizes(num_surrogates: int) -> tuple[int, ...]:
    """Returns the numbers k attacked together: powers of two up to the number of surrogates."""
    return tuple(2**i for i in range(num_surrogates.bit_length()))


def other_ways() -> tuple[str, ...]:
    """Returns the ways to attack beside the mean of the logits."""
    return (*HOW[1:], *MIDPOINTS, TAIL)


def _gradients(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns input gradients of the margin loss `[2, B, ...]`, and who is right there `[2, B]`."""
    rows = pair.halves.s.indices[: crossed.NUM_CROSSED]
    x, labels = shared.images[rows], shared.labels[rows]

    def of_model(params: Params) -> dict[str, Array]:
        def total(x: Array) -> tuple[Array, Array]:
            logits = program.apply_fn(params, x)
            return losses.margin(logits, labels).sum(), logits.argmax(-1) == labels

        gradient, correct = jax.grad(total, has_aux=True)(x)
        return {"gradient": gradient, "correct": correct}

    return jax.lax.map(of_model, pair.params)


def constant_terms(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ‖h_i‖² and the mean of ⟨h_i, h_j⟩ over j ≠ i, `[K]` each.

    k_half is Σ_i ‖h_i‖² / Σ_i mean_j ⟨h_i, h_j⟩ − 1, as of `meeting.ensemble_noise`.

    Args:
      gradients: h of each model, `[K, ...]`.
    """
    vectors = gradients.reshape(len(gradients), math.prod(gradients.shape[1:]))
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    total = vectors.sum(0, dtype=np.float64)
    products = np.array([np.dot(vector.astype(np.float64), total) for vector in vectors])
    return squares, (products - squares) / max(1, len(vectors) - 1)


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


def _measure(context: Context) -> xr.Dataset:
    """Returns what alignment, the law's constant and success rates are made of, by target.

    All are sums over examples of S, labels clean. Of each target (pair), `target_square` ‖h_m‖²
    and `num_examples` that it has right; `ensemble_product` ⟨h̄, h_m⟩ (pair, num_surrogates) and
    `ensemble_square` ‖h̄‖² (num_surrogates), means over disjoint blocks of k surrogates;
    `num_fooled` (pair, num_surrogates) of these examples under the attack on the mean logits, the
    mean over blocks, and `num_fooled_by` (pair, way) under other attacks. Of the partner of each
    model (pair), `partner_square` and `partner_product`, see `constant_terms`.

    Surrogates that diverged are left out; NaN where too few are left, and for pairs without a
    target.
    """
    population, num_pairs = context.population, context.condition.num_pairs
    half, finite = num_pairs // 2, population.finite
    arrays = context.over_pairs(_gradients)
    gradients, right = arrays["gradient"], arrays["correct"][half:, TARGET]
    first, second = (crossed.side(population.params, place) for place in (SURROGATE, TARGET))
    targets = jax.tree.map(lambda leaf: leaf[half:], second)
    chosen = np.flatnonzero(finite[:half])
    surrogates = jax.tree.map(lambda leaf: leaf[chosen], first)

    def num_fooled(members: Params, how: str = "logits") -> np.ndarray:
        """Returns examples that each target loses to the attack on each block, `[R, M]`."""
        points = crossed.attack(context, members, how)
        outcome = crossed.evaluate(context, targets, points)
        return (right[:, None] & ~outcome.correct).sum(-1).T

    # The partner of a surrogate is θ_B of its pair, that of a target θ_A.
    places = np.where(np.arange(num_pairs) < half, TARGET, SURROGATE)
    partners = gradients[np.arange(num_pairs), places]
    constant = np.full((2, num_pairs), np.nan)
    constant[:, finite] = constant_terms(partners[finite])

    sizes = block_sizes(half)
    product, fooled = np.full((2, half, len(sizes)), np.nan)
    square = np.full(len(sizes), np.nan)
    target_gradients = gradients[half:, TARGET]
    surrogate_gradients = jnp.asarray(gradients[chosen, SURROGATE])
    for place, k in enumerate(sizes):
        if k <= len(chosen):
            terms = meeting.surrogate_terms(
                surrogate_gradients, jnp.asarray(target_gradients), num_surrogates=k
            )
            product[:, place], square[place] = terms.products, terms.surrogate
            fooled[:, place] = num_fooled(crossed.blocks(surrogates, k)).mean(0)
    by_way = dict.fromkeys(other_ways(), np.full(half, np.nan))
    if sizes[-1] <= len(chosen):
        by_way |= _fooled_by(context, surrogates, chosen, num_fooled)

    of_target, of_number = ("pair",), ("pair", "num_surrogates")
    vectors = target_gradients.reshape(half, -1).astype(np.float64)
    return context.dataset(
        {
            "partner_square": (of_target, constant[0]),
            "partner_product": (of_target, constant[1]),
            "target_square": (of_target, _of_pairs((vectors**2).sum(1))),
            "num_examples": (of_target, _of_pairs(right.sum(1))),
            "ensemble_product": (of_number, _of_pairs(product)),
            "ensemble_square": (("num_surrogates",), square),
            "num_fooled": (of_number, _of_pairs(fooled)),
            "num_fooled_by": (("pair", "way"), _of_pairs(np.stack([*by_way.values()], -1))),
        },
        num_surrogates=sizes,
        way=[*by_way],
    )


def _of_pairs(values: np.ndarray) -> np.ndarray:
    """Returns `[2M, ...]` values of targets `[M, ...]` by pair, NaN for the pairs without one."""
    return np.concatenate([np.full(values.shape, np.nan), values])


def _fooled_by(
    context: Context,
    surrogates: Params,
    chosen: np.ndarray,
    num_fooled: Callable[..., np.ndarray],
) -> Mapping[str, np.ndarray]:
    """Returns `[M]` examples of each target by other way to attack as many surrogates or fewer."""
    most = block_sizes(context.condition.num_pairs // 2)[-1]
    whole = crossed.blocks(surrogates, most)
    by_way = {how: num_fooled(whole, how).mean(0) for how in HOW[1:]}
    middles = midpoints(context, surrogates)
    # Together they are as many as single surrogates: one program for all.
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *middles.values())
    halves = np.split(num_fooled(crossed.blocks(together, 1)), len(middles))
    by_way |= {name: part.mean(0) for name, part in zip(middles, halves, strict=True)}
    visited = tails(context, chosen[:NUM_TAILS].tolist(), most)
    one_by_one = [
        jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], visited)
        for r in range(len(chosen[:NUM_TAILS]))
    ]
    return by_way | {TAIL: np.mean([num_fooled(tail)[0] for tail in one_by_one], 0)}


ENSEMBLES = Measurement("surrogate_ensembles", _measure)
