"""Attacks across architectures: every surrogate of one against independent targets of all."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import populations, sharding, transfer
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Key

NAMES = ("linear", "mlp", "cnn", "residual", "transformer")
NUM_MODELS = 8
"""Surrogates and targets of each architecture, at most."""
LEAST_MODELS = 3
"""Below this a cell would have one draw of two models, or none."""
NUM_EXAMPLES = 1000
"""Of S that are attacked, at most."""
_MODELS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "widths": (128, 128)},
    "cnn": {"kind": "cnn", "features": (16, 32), "stride": 2, "widths": (64,)},
    "residual": {"kind": "residual", "features": (8, 16), "blocks": 1},
    "transformer": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2, "hidden": 32},
}
_PATCH = {"digits": 2}
"""Pixels of the transformer's patches by data set, 4 elsewhere: on digits that would be four."""


def settings(config: RunConfig) -> dict[str, Condition]:
    """Returns the condition of each architecture: its models have not seen S, the same for all.

    Models are the config's own of that name; it may name more than it trains elsewhere.
    """
    own = condition(config, config.architectures[0])
    number = max(LEAST_MODELS, min(NUM_MODELS, config.num_pairs))
    found = {}
    for name in NAMES:
        model: dict[str, Any] = dict(_MODELS[name])
        if name == "transformer":
            model["patch"] = _PATCH.get(config.dataset, 4)
        if name in config.models:
            model = config.models[name]
        found[name] = dataclasses.replace(
            own,
            architecture=name,
            model=model,
            num_pairs=number,
            common_holdout=True,
            probe_steps=(0, own.probe_steps[-1]),  # on the way nobody looks
        )
    return found


@functools.partial(sharding.jit, static_argnames=("program", "settings"))
def _attack_program(surrogates, images, labels, epsilon, *, program: Condition, settings: tuple):
    """Attacked images `[K, B, ...]`, surrogates' increase of loss `[K]`, who is right `[K, B]`."""

    def one(params, x, y, epsilon):
        logits_fn = functools.partial(program.apply_fn, params)
        attack = attack_of(settings, epsilon)
        points = attack(logits_fn, jax.random.key(0), x, y).adversarial
        clean, attacked = (transfer.evaluate(logits_fn, z, y) for z in (x, points))
        return points, (attacked.loss - clean.loss).sum(), clean.correct, attacked.correct

    return sharding.spread(one)(surrogates, images, labels, epsilon)


@sharding.jit
def _noise_program(keys, images, points):
    """Matched noise `[K, B, ...]`, of no architecture: one program."""

    def one(member, x):
        key, points = member
        return transfer.matched_noise(key, x, points).points

    return sharding.spread(one)((keys, points), images)


@functools.partial(sharding.jit, static_argnames=("program",))
def _target_program(targets, points, labels, *, program: Condition):
    """Margin loss and correctness of targets at sets of points, `[M, sets, B]`."""

    def one(params, points, y):
        logits_fn = functools.partial(program.apply_fn, params)
        return jax.lax.map(lambda z: transfer.evaluate(logits_fn, z, y), points)

    return sharding.spread(one)(targets, points, labels)


def _measure(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns sums over S, labels clean, for each surrogate θ_A and target θ_B, `[K, targets, M]`.

    Surrogates are those of the first population; targets those of every one, in the order of
    `NAMES`. `num_fooled` and `num_fooled_noise` of `num_examples` that both models have right,
    `increase` of the target's margin loss, and `own_increase` `[K]` of the surrogate's. Models of
    one pair are not independent: who reads leaves out cells of equal pairs.
    """
    own, by_name = population[0], {one.condition.architecture: one for one in population}
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    rows = own.halves.s.indices[0][:NUM_EXAMPLES]
    x, y = images[rows], labels[rows]
    points, increase, right, survived = _attack_program(
        jax.tree.map(lambda leaf: leaf[:, 0], own.params),
        x,
        y,
        jnp.float32(config.attack.epsilon),
        program=populations.program_of(own.condition),
        settings=settings_of(config),
    )
    number = own.condition.num_pairs
    noise = _noise_program(jax.random.split(key, number), x, points)
    sets = jnp.concatenate([x[None], points, noise])
    right = np.asarray(right)[:, None]
    found: dict[str, list[np.ndarray]] = {}
    for name in NAMES:
        target = by_name[name]
        seen = _target_program(
            jax.tree.map(lambda leaf: leaf[:, 1], target.params),
            sets,
            y,
            program=populations.program_of(target.condition),
        )
        # From [M, sets, B] to [sets, M, B].
        loss, correct = (np.swapaxes(np.asarray(v), 0, 1) for v in (seen.loss, seen.correct))
        both = right & correct[:1]
        sums = {
            "num_fooled": (both & ~correct[1 : 1 + number]).sum(-1),
            "num_fooled_noise": (both & ~correct[1 + number :]).sum(-1),
            "num_examples": both.sum(-1),
            "increase": (loss[1 : 1 + number].astype(np.float64) - loss[:1]).sum(-1),
        }
        for quantity, values in sums.items():
            found.setdefault(quantity, []).append(values.astype(np.float64))
    arrays = {quantity: np.stack(values, 1) for quantity, values in found.items()}
    arrays["own_increase"] = np.asarray(increase, np.float64)
    fooled = (right[:, 0] & ~np.asarray(survived)).sum(-1)
    each = {"pair": range(number)}
    named = {
        "condition": own.condition.key,
        "surrogate": "A",
        "target": "A",
        "attack": "attack",
        "budget": float(config.attack.epsilon),
        "subset": "both_correct",
    }
    table = tables.concat(
        [
            tables.rows(values, each, quantity=quantity, **named)
            for quantity, values in (("num_fooled", fooled), ("num_examples", right[:, 0].sum(-1)))
        ]
    )
    return Measured(table, arrays)


CROSSING = Measurement("crossing", 19, _measure)
