"""Attacks across architectures: every surrogate of one against independent targets of all."""

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
from halfway.transfer import Evaluation
from halfway.types import Array, Key

NAMES = ("linear", "mlp", "cnn", "residual", "transformer")
NUM_MODELS = 8
"""Surrogates and targets of each architecture, at most."""
LEAST_MODELS = 3
"""Below this a cell would have one draw of two models, or none."""
POINTS = ("attack", "noise")
"""The points that the attack finds, and noise matched to each in l∞ and l2."""
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

    Models are the config's own of that name; it may name more than it trains elsewhere.
    """
    patch = {"patch": _PATCH.get(config.dataset, 4)}
    models = _MODELS | {"transformer": _MODELS["transformer"] | patch} | config.models
    number = max(LEAST_MODELS, min(NUM_MODELS, config.num_pairs))
    return {
        name: crossed.common_condition(config, number, architecture=name, model=models[name])
        for name in NAMES
    }


def _noise(member: tuple[Key, Array], shared: Shared, program: Program) -> Array:
    """Returns noise matched to the points of one surrogate, `[B, ...]`."""
    del program  # noise is of no architecture
    key, points = member
    return transfer.matched_noise(key, shared.images[shared.extra], points).points


def _by_points(outcome: Evaluation) -> dict[str, Evaluation]:
    """Returns what models make of the points of K surrogates, "clean" `[M, B]`, else `[K, M, B]`.

    Args:
      outcome: of each model at S, at the K attacks and at their noise, `[M, 1 + 2K, B]`.
    """
    outcome = outcome._replace(loss=outcome.loss.astype(np.float64))
    number = outcome.loss.shape[1] // 2
    places = {"attack": slice(1, 1 + number), "noise": slice(1 + number, None)}
    moved = {
        name: jax.tree.map(lambda leaf, place=place: leaf[:, place].swapaxes(0, 1), outcome)
        for name, place in places.items()
    }
    return {"clean": jax.tree.map(lambda leaf: leaf[:, 0], outcome)} | moved


def _measure(context: Context) -> xr.Dataset:
    """Returns sums over S, labels clean, for each surrogate θ_A and target θ_B.

    Surrogates are those of the first population, along "pair"; targets those of every population,
    by architecture and pair of theirs. `num_fooled` (pair, points, architecture, target) of
    `num_examples` (pair, architecture, target) that both models have right, and `increase` (pair,
    architecture, target) of the target's margin loss under the attack. Of a surrogate under its
    own attack (pair), `own_increase`, and `own_fooled` of `own_examples`. Models of one pair are
    not independent: who reads leaves out cells of equal pairs.
    """
    by_name = {population.condition.architecture: population for population in context.populations}
    surrogates = crossed.side(context.population.params, SURROGATE)
    points = crossed.attack(context, crossed.blocks(surrogates, 1))
    rows, first = crossed.example_rows(context), by_name[NAMES[0]].condition
    keys = jax.random.split(named_key(context.key, "noise"), len(points))
    # Under one condition, whichever is measured: one program.
    noise = context.over_members(_noise, (keys, points), condition=first, shared_extra=rows)
    sets = jnp.concatenate([context.shared.images[rows][None], points, noise])
    outcomes = _by_points(crossed.evaluate(context, surrogates, sets))
    same = np.arange(len(points))
    itself = {
        "clean": outcomes["clean"],
        "attack": jax.tree.map(lambda leaf: leaf[same, same], outcomes["attack"]),
    }
    cells = []
    for name in NAMES:
        condition = by_name[name].condition
        targets = crossed.side(by_name[name].params, TARGET)
        outcomes = _by_points(crossed.evaluate(context, targets, sets, condition))
        matrix = transfer.TransferMatrix(itself, outcomes, matched={}, norm=jnp.zeros(0))
        rates = [transfer.success(matrix, "both_correct", kind) for kind in POINTS]
        cells.append(
            {
                "num_fooled": np.stack([rate.num_fooled for rate in rates], 1),
                "num_examples": np.asarray(rates[0].num_examples),
                "increase": np.asarray(transfer.increase(matrix).sum(-1)),
            }
        )
    arrays = {name: np.stack([cell[name] for cell in cells], -2) for name in cells[0]}
    right = itself["clean"].correct
    numbers = {
        "num_fooled": (("pair", "points", "architecture", "target"), arrays["num_fooled"]),
        "num_examples": (("pair", "architecture", "target"), arrays["num_examples"]),
        "increase": (("pair", "architecture", "target"), arrays["increase"]),
        "own_increase": (("pair",), transfer.own_increase(matrix).sum(-1)),
        "own_fooled": (("pair",), (right & ~itself["attack"].correct).sum(-1)),
        "own_examples": (("pair",), right.sum(-1)),
    }
    return context.dataset(
        numbers, points=POINTS, architecture=NAMES, target=np.arange(arrays["increase"].shape[-1])
    )


ARCHITECTURES = Measurement("crossed_architectures", _measure)
