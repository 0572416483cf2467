"""Many conditions that differ in all that could move a gap, and measures said to predict it.

A full factorial plan of seven factors of two levels: 128 conditions, 64 for each noise rate. Every
two that differ in one factor alone are there, which granulated rank correlations need.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import landscapes, meeting, populations
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import learning
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.study import evidence
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured, Measurement, Records
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

NUM_PAIRS = 8
"""Of each condition, at most; enough in a grid of 60 conditions or more."""
SMALL_PAIRS = 4
"""The same in a run that counts as no evidence anyhow, which has a quarter of the conditions."""
STOP_LOSS = 0.05
"""Mean cross-entropy on its half at which each model stops, whatever the condition."""
MAX_STEPS = 4000
"""Where a model that has not come there stops too, and is counted."""
EARLY = 20
"""The step at which coherence is measured."""


class Factor(NamedTuple):
    """What is varied: its name, and its two levels as parts of the config's own value."""

    name: str
    levels: tuple[float, float]


FACTORS = (
    Factor("noise_rate", (0.0, 0.2)),
    Factor("num_examples", (0.25, 0.75)),
    Factor("depth", (2, 4)),
    Factor("width", (0.25, 0.5)),
    Factor("learning_rate", (0.5, 2.0)),
    Factor("weight_decay", (0.0, 0.1)),
    Factor("batch_size", (0.25, 1.0)),
)
"""Noise rate, depth and weight decay as they are; the others times what the config has."""
NOISE_RATE = [factor.name for factor in FACTORS].index("noise_rate")
"""The place of ρ among the factors."""
NOISE_RATES = FACTORS[NOISE_RATE].levels
_LEVELS = {factor.name: factor.levels for factor in FACTORS}
_FIXED_WHERE_SMALL = ("depth", "weight_decay")


class Cell(NamedTuple):
    """A condition of the grid with its level, 0 or 1, of each of `FACTORS`."""

    levels: tuple[int, ...]
    condition: Condition


def cells(config: RunConfig) -> list[Cell]:
    """Returns the grid's conditions, those of one noise rate and depth next to each other.

    They are MLPs, since width and depth are theirs, half as wide as the config's first one. With
    fewer pairs than evidence takes, depth and weight decay stay at their first level.

    Args:
      config: of the run.

    Raises:
      ValueError: if no architecture of the config is an MLP.
    """
    widths = [m["widths"] for m in config.models.values() if m["kind"] == "mlp" and m.get("widths")]
    if not widths:
        raise ValueError(
            "the grid of G3 is of MLPs: config.models must have one with a hidden layer"
        )
    base = condition(config, config.architectures[0])
    small = base.num_pairs < evidence.MIN_PAIRS
    full = widths[0][0]
    grid = []
    choices = [(0,) if small and f.name in _FIXED_WHERE_SMALL else (0, 1) for f in FACTORS]
    for levels in itertools.product(*choices):
        values = {f.name: f.levels[level] for f, level in zip(FACTORS, levels, strict=True)}
        varied = dataclasses.replace(
            base,
            architecture=f"mlp of depth {values['depth']:g}",
            model={"kind": "mlp", "widths": (full // 2,) * int(values["depth"])},
            num_pairs=min(SMALL_PAIRS if small else NUM_PAIRS, base.num_pairs),
            noise_rate=values["noise_rate"],
            num_examples=round(values["num_examples"] * base.num_examples),
            capacity=round(max(_LEVELS["num_examples"]) * base.num_examples),
            width=max(1, round(values["width"] * full)),
            learning_rate=values["learning_rate"] * base.learning_rate,
            weight_decay=values["weight_decay"],
            batch_size=max(1, round(values["batch_size"] * base.batch_size)),
            batch_capacity=base.batch_size,
            probe_steps=(0, EARLY, MAX_STEPS),
            stop_loss=STOP_LOSS,
        )
        grid.append(Cell(levels, varied))
    return grid


RIVALS = {
    "parameter_norm": "parameter norm",
    "distance": "distance from initialization",
    "log_frobenius_product": "product of Frobenius norms",
    "log_spectral_product": "product of spectral norms",
    "early_loss": "training loss at step 20",
    "path_norm": "path norm",
    "margin": "margin, lower tenth",
    "margin_over_norms": "margin over spectral norms",
    "gradient_norm": "gradient norm",
    "sharpness": "sharpness, largest curvature",
    "worst_case": "sharpness, worst case nearby",
    "flatness": "PAC-Bayes flatness",
}
"""Measures of a trained model, or of its early training, that are said to predict its gap."""
_RADIUS = 0.05
"""Of the ball of `worst_case`, as a share of ‖θ‖."""


def _early(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Any]:
    """Returns signal, noise and loss of the own half, and the parameters; a `populations.Probe`."""
    del key
    half = samples["own"]
    x = images[half.indices]
    scale = meeting.noise_scale(program.apply_fn, params, x, half.labels, half.mask)
    losses = populations.landscape_losses(program.apply_fn, params, images, half)
    return {
        "early_signal": scale.signal,
        "early_noise": scale.noise,
        "early_loss": losses["cross_entropy"],
        "params": params,
    }


def _trained(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns measures `[2]` of both trained models, each inside its own half.

    `pair.extra` are the parameters at step 0 and what each model trained on, leaves `[2, ...]`.
    """
    apply_fn, images = program.apply_fn, shared.images

    def model(key, params, start, half):
        def loss_fn(params):
            losses = populations.landscape_losses(apply_fn, params, images, half)
            return losses["cross_entropy"]

        keys = jax.random.split(key, 3)
        norm = landscapes.parameter_norm(params)
        spectral = landscapes.log_spectral_product(params)
        margin = landscapes.margin_quantile(
            apply_fn(params, images[half.indices]), half.labels, half.mask
        )
        return {
            "parameter_norm": norm,
            "distance": landscapes.parameter_distance(params, start),
            "log_frobenius_product": landscapes.log_frobenius_product(params),
            "log_spectral_product": spectral,
            "path_norm": landscapes.path_norm(apply_fn, params, jnp.ones_like(images[:1])),
            "margin": margin,
            # Of its sign, and monotone in the bound where it is positive.
            "margin_over_norms": margin * jnp.exp(-spectral),
            "gradient_norm": landscapes.parameter_norm(jax.grad(loss_fn)(params)),
            "sharpness": landscapes.sharpness(loss_fn, params, keys[0]),
            "worst_case": landscapes.worst_case_sharpness(
                loss_fn, params, keys[1], radius=_RADIUS * norm, num_steps=10
            ),
            "flatness": landscapes.flatness(loss_fn, params, keys[2]),
        }

    return jax.vmap(model)(jax.random.split(pair.key), pair.params, *pair.extra)


def _measure(context: Context) -> xr.Dataset:
    """Returns what is told of each model inside its own half.

    `rivals` (pair, model, measure), and `early_signal` and `early_noise` (pair, model), those of P3
    at step `EARLY`.
    """
    watched = context.along_training(_early, steps=(0, EARLY))
    start = jax.tree.map(lambda leaf: leaf[:, :, 0], watched.pop("params"))
    trained_on, _ = context.population.samples()
    values = context.over_pairs(_trained, extra=(start, trained_on))
    values |= {name: np.asarray(walk)[..., 1] for name, walk in watched.items()}
    rivals = np.stack([values.pop(name) for name in RIVALS], -1)
    numbers = {name: (("pair", "model"), value) for name, value in values.items()}
    return context.dataset(
        numbers | {"rivals": (("pair", "model", "measure"), rivals)}, measure=list(RIVALS)
    )


COMPLEXITY = Measurement("complexity", _measure)


class Measures(NamedTuple):
    """M measures of the grid's C conditions with P pairs each, and the gaps of the same pairs.

    Attributes:
      numerators, denominators: `[M, C, P]`, see who reads them; NaN where a pair does not count.
      gap: `[C, P]` in error; NaN where a pair does not count.
      finite: `[C, P]` whether all that is read of a pair stayed finite.
      reached: `[C, P]` whether both models came to the loss at which all stop.
      levels: `[C, F]`, 0 or 1, of each factor.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    gap: np.ndarray
    finite: np.ndarray
    reached: np.ndarray
    levels: np.ndarray

    @property
    def strata(self) -> np.ndarray:
        """`[C]`, conditions of equal ρ."""
        return self.levels[:, NOISE_RATE]


def with_gaps(records: Records, numerators: np.ndarray, denominators: np.ndarray) -> Measures:
    """Returns measures beside the gaps, without the pairs that do not count.

    A pair counts where all that is read of it is finite, and both of its models came to the loss at
    which all stop.

    Args:
      records: that hold `LEARNING` of every condition of the grid.
      numerators, denominators: `[M, C, P]`, conditions in the order of `cells`.
    """
    grid = cells(records.config)
    learned = [records.get(LEARNING, cell.condition) for cell in grid]
    gap = np.array([learning.gap(walks) for walks in learned])
    finite = np.all(np.isfinite([*numerators, *denominators, gap]), axis=0)
    pairs = zip(learned, grid, strict=True)
    reached = np.array([_reached(walks, cell.condition.stop_loss) for walks, cell in pairs])
    counts = finite & reached
    numerators, denominators, gap = (
        np.where(counts, array, np.nan) for array in (numerators, denominators, gap)
    )
    levels = np.array([cell.levels for cell in grid])
    return Measures(numerators, denominators, gap, finite, reached, levels)


def _reached(learned: Measured, stop_loss: float) -> np.ndarray:
    """Returns `[P]` whether both models of a pair came to a loss, NaN being above it."""
    walk = learned.read("cross_entropy", "pair", "model", "step", sample="own")
    # As the loop that stops sees it, in single precision.
    return np.all(walk[..., -1] <= np.float32(stop_loss), axis=-1)


def warn_of_unreached(measures: Measures) -> tuple[str, ...]:
    """Returns a warning, if any finite pair did not come to the loss that all stop at."""
    short = measures.finite & ~measures.reached
    if not short.any():
        return ()
    num_conditions = int(short.any(1).sum())
    return (
        f"{int(short.sum())} of {short.size} pairs, of {num_conditions} of {len(short)} "
        f"conditions, had a model that did not come to a training loss of {STOP_LOSS:g} in "
        f"{MAX_STEPS} steps; these pairs are left out.",
    )
