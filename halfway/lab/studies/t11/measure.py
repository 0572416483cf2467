"""Attacks across architectures: every surrogate of one against independent targets of all."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import transfer
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import crossed
from halfway.lab.measurements.context import Context, Program, Shared
from halfway.lab.measurements.crossed import SURROGATE, TARGET
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key

NAMES = ("linear", "mlp", "cnn", "residual", "transformer")
NUM_MODELS = 16
"""Surrogates and targets of each architecture, at most."""
LEAST_MODELS = 3
"""Below this a cell would have one draw of two models, or none."""
POINTS = ("attack", "other_example", "permuted")
"""The points that the attack finds; each example under the perturbation of another; and those that
the attack finds on a surrogate that trained on permuted labels."""
_MODELS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "widths": (128, 128)},
    "cnn": {"kind": "cnn", "features": (16, 32), "stride": 2, "widths": (64,)},
    "residual": {"kind": "residual", "features": (8, 16), "blocks": 1},
    "transformer": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2, "hidden": 32},
}
_PATCH = {"digits": 2}
"""Pixels of the transformer's patches by data set, 4 elsewhere: on digits that would be four."""


def compared_on(config: RunConfig) -> dict[str, Condition]:
    """Returns the condition of each architecture: its models have not seen S, the same for all.

    Every pair draws halves of its own.

    Models are the config's own of that name; it may name more than it trains elsewhere.
    """
    patch = {"patch": _PATCH.get(config.dataset, 4)}
    models = _MODELS | {"transformer": _MODELS["transformer"] | patch} | config.models
    number = max(LEAST_MODELS, min(NUM_MODELS, config.num_pairs))
    return {
        name: crossed.common_condition(config, number, architecture=name, model=models[name])
        for name in NAMES
    }


def control_of(trained: Condition) -> Condition:
    """Returns the surrogates that learned nothing: same halves, seeds and batches, labels permuted.

    Args:
      trained: of `compared_on`.
    """
    return dataclasses.replace(trained, permuted=True)


def _other_example(member: tuple[Key, Array], shared: Shared, program: Program) -> Array:
    """Returns examples under the perturbations of others, of one surrogate, `[B, ...]`."""
    del program  # perturbations are of no architecture
    key, points = member
    return transfer.other_example(key, shared.images[shared.extra], points).points


def _measure(context: Context) -> xr.Dataset:
    """Returns what attacks on each surrogate θ_A do to each target θ_B, of every architecture.

    Surrogates are those of the first population, along "pair"; those that learned nothing are of
    the population with permuted labels, the others give the targets, by architecture and pair of
    theirs. Of each example of S, labels clean: `right` (pair, example) and `target_right`
    (architecture, target, example), whether a model is right about the image as it is, and `wrong`
    (pair, points, architecture, target, example), whether the target errs at `POINTS`.

    Sums over S: `increase` (pair, architecture, target) of the target's margin loss under the
    attack, and of a surrogate under its own attack (pair), `own_increase`, and `own_fooled` of
    `own_examples`. Models of one pair are not independent: who reads leaves out equal pairs.
    """
    first, *others = context.populations
    (permuted,) = (other for other in others if other.condition.permuted)
    targets = {p.condition.architecture: p for p in (first, *others) if p is not permuted}
    surrogates, nothing = (crossed.side(p.params, SURROGATE) for p in (first, permuted))
    attacked = crossed.attack(context, crossed.blocks(surrogates, 1))
    rows = crossed.example_rows(context)
    keys = jax.random.split(named_key(context.key, "other example"), len(attacked))
    # Under one condition, whichever is measured: one program.
    moved = context.over_members(
        _other_example, (keys, attacked), condition=targets[NAMES[0]].condition, shared_extra=rows
    )
    points = {
        "attack": attacked,
        "other_example": moved,
        "permuted": crossed.attack(context, crossed.blocks(nothing, 1)),
    }
    # The images as they are come first: one program for all kinds of points.
    clean = context.shared.images[rows][None]
    sets = {name: jnp.concatenate([clean, points[name]]) for name in POINTS}

    right, wrong, increase = [], [], []
    for name in NAMES:
        condition = targets[name].condition
        models = crossed.side(targets[name].params, TARGET)
        at_points = {
            kind: crossed.evaluate(context, models, sets[kind], condition) for kind in POINTS
        }
        right.append(at_points["attack"].correct[:, 0])
        errs = [~outcome.correct[:, 1:].swapaxes(0, 1) for outcome in at_points.values()]
        wrong.append(np.stack(errs, 1))
        loss = at_points["attack"].loss.astype(np.float64)
        increase.append((loss[:, 1:] - loss[:, :1]).sum(-1).T)
    itself = crossed.evaluate(context, surrogates, sets["attack"])
    place = np.arange(len(attacked))
    before, after = itself.correct[:, 0], itself.correct[place, 1 + place]
    loss = itself.loss.astype(np.float64)
    numbers = {
        "increase": (("pair", "architecture", "target"), np.stack(increase, 1)),
        "own_increase": (("pair",), (loss[place, 1 + place] - loss[:, 0]).sum(-1)),
        "own_fooled": (("pair",), (before & ~after).sum(-1)),
        "own_examples": (("pair",), before.sum(-1)),
    }
    outcomes = {
        "right": (("pair", "example"), before),
        "target_right": (("architecture", "target", "example"), np.stack(right)),
        "wrong": (
            ("pair", "points", "architecture", "target", "example"),
            np.stack(wrong, 2),
        ),
    }
    return context.dataset(
        numbers, outcomes, points=POINTS, architecture=NAMES, target=np.arange(len(right[0]))
    )


ARCHITECTURES = Measurement("crossed_architectures", _measure)
