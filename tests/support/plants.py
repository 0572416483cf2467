"""Synthetic records on which decision rules are tested: known effects, the study's own noise.

Standard deviations over pairs are those of the run on digits (16 pairs), rounded up; they only have
to be realistic, since a rule's size must not depend on them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from halfway import transfer as library
from halfway.lab.config import config_file
from halfway.lab.measurements.context import MODELS
from halfway.lab.measurements.learning import LEARNING, SAMPLES
from halfway.lab.measurements.transfer import PERMUTED, POINTS, TRANSFER, TRANSFER_CONTROLS
from halfway.lab.study.records import NUMBERS, Measurement, Records
from halfway.populations import LOSSES, Condition

CONFIG = config_file.load().config
"""The setting that plants have the shape of: digits."""
NOISE = 0.02
"""Standard deviation over pairs of M_θ in error."""
Planted = tuple[Measurement, Condition, xr.Dataset]


def records(*planted: Planted) -> Records:
    """Returns records that hold the planted datasets."""
    return Records(CONFIG, {(m.name, condition.id): dataset for m, condition, dataset in planted})


def dataset(
    condition: Condition,
    numbers: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
    outcomes: Mapping[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    **coordinates: Any,
) -> xr.Dataset:
    """Returns labelled arrays as `Context.dataset` makes them; every pair is finite."""
    variables = {
        name: (dims, np.asarray(values, np.float64)) for name, (dims, values) in numbers.items()
    } | dict(outcomes or {})
    variables["finite"] = ("pair",), np.ones(condition.num_pairs, bool)
    used = {dim for dims, _ in variables.values() for dim in dims}
    labels: dict[str, Any] = {"pair": range(condition.num_pairs)}
    labels |= dict.fromkeys(("model", "surrogate", "target"), MODELS) | coordinates
    coords = _coordinates(tuple((dim, tuple(labels[dim])) for dim in labels if dim in used))
    return xr.Dataset(variables, coords, {NUMBERS: tuple(numbers)})


@functools.cache
def _coordinates(labels: tuple[tuple[str, tuple[Any, ...]], ...]) -> xr.Coordinates:
    """Returns the labels of each dimension, indexed once for all datasets that have them."""
    return xr.Coordinates({dim: np.asarray(values) for dim, values in labels})


def learning(
    rng: np.random.Generator, condition: Condition, meeting: float, noise: float = NOISE
) -> Planted:
    """Returns learning in which M_θ is `meeting` plus noise over pairs, in every loss.

    Args:
      rng: consumed.
      condition: planted.
      meeting: expected M_θ.
      noise: its standard deviation over pairs.
    """
    size = (condition.num_pairs, 2)
    start_own = rng.normal(0.885, 0.004, size)
    start_other = rng.normal(0.9, 0.006, size)
    followed = rng.uniform(0.0, 0.004, size)
    # Both directions of a pair share most of the noise; the mean of the two has all of it.
    gain = meeting + rng.normal(0.0, noise, (condition.num_pairs, 1))
    other = start_other - gain * (start_own - followed)
    ends = np.stack([followed, other, other], 2)
    starts = np.stack([start_own, start_other, start_other], 2)
    return learned(condition, ends, starts)


def learned(condition: Condition, ends: np.ndarray, starts: np.ndarray) -> Planted:
    """Returns learning with given losses at the end of training, the same in every loss.

    Args:
      condition: planted.
      ends: `[P, 2, 3]` of the own half, the other and S, at the end.
      starts: `[P, 2, 3]` of the best constant predictor, which is where training begins too.
    """
    steps = condition.probe_steps
    walk = np.repeat(starts[..., None], len(steps), -1)
    walk[..., -1] = ends
    numbers = {}
    for loss in LOSSES:
        numbers[loss] = ("pair", "model", "sample", "step"), walk
        numbers[f"constant_{loss}"] = ("pair", "model", "sample"), starts
    made = dataset(condition, numbers, sample=SAMPLES, step=steps)
    return LEARNING, condition, made


def attacked(
    rng: np.random.Generator,
    condition: Condition,
    other: float,
    own_increase: float,
    noise: float,
) -> Planted:
    """Returns transfer with given mean increases of the margin loss of the other and own model.

    Args:
      rng: consumed.
      condition: planted.
      other, own_increase: mean over examples.
      noise: standard deviation over pairs of each.
    """
    size = condition.num_pairs
    drawn = [mean + rng.normal(0, noise, size) for mean in (own_increase, other)]
    increase = condition.num_holdout * np.stack(
        [np.stack([drawn[0], drawn[1]], -1), np.stack([drawn[1], drawn[0]], -1)], 1
    )
    numbers = {"increase": (("pair", "surrogate", "target"), increase)}
    return TRANSFER, condition, dataset(condition, numbers)


def controlled(
    rng: np.random.Generator,
    condition: Condition,
    increases: Mapping[tuple[str, str], float],
    noise: float,
    shares: Mapping[tuple[str, str], float] | None = None,
) -> Planted:
    """Returns transfer and its controls with given mean increases of the targets' margin loss.

    Args:
      rng: consumed.
      condition: planted.
      increases: mean over examples for (points, target), target "other", "own" or "permuted".
      noise: standard deviation over pairs of each.
      shares: fooled among the nine tenths of S that both models have right, at every budget.
    """
    budgets = sorted({CONFIG.attack.epsilon, *CONFIG.attack.budgets})
    pairs, number = condition.num_pairs, condition.num_holdout
    targets = (*MODELS, *PERMUTED)
    places = {"own": (0, 1), "other": (1, 0), "permuted": (3, 2)}
    increase = np.zeros((pairs, len(budgets), 3, 2, 4))
    for (points, target), mean in increases.items():
        drawn = number * (mean + rng.normal(0, noise, pairs))
        for surrogate, place in enumerate(places[target]):
            increase[:, :, POINTS[1:].index(points), surrogate, place] = drawn[:, None]
    cells = (pairs, len(budgets), len(POINTS), len(library.DENOMINATORS), 2, 4)
    counted = np.full(cells, float(number))
    counted[:, :, :, library.DENOMINATORS.index("both_correct")] = int(0.9 * number)
    fooled = np.zeros(cells)
    for (points, target), share in (shares or {}).items():
        for surrogate, place in enumerate(places[target]):
            drawn = rng.binomial(int(0.9 * number), share, (pairs, len(budgets), 1))
            fooled[:, :, POINTS.index(points), :, surrogate, place] = drawn
    rates = ("pair", "budget", "points", "denominator", "surrogate", "target")
    made = dataset(
        condition,
        {
            "increase": (("pair", "budget", "moved", "surrogate", "target"), increase),
            "num_fooled": (rates, fooled),
            "num_examples": (rates, counted),
            "matched": (
                ("pair", "budget", "control", "surrogate"),
                np.ones((pairs, len(budgets), 2, 2)),
            ),
        },
        budget=budgets,
        points=POINTS,
        moved=POINTS[1:],
        control=POINTS[2:],
        denominator=library.DENOMINATORS,
        target=targets,
    )
    return TRANSFER_CONTROLS, condition, made


def alike(
    measurement: Measurement,
    conditions: Sequence[Condition],
    first: xr.Dataset,
    values: Mapping[str, np.ndarray],
) -> list[Planted]:
    """Returns datasets of many conditions of one shape, fast: each is a copy of the first.

    Args:
      measurement: planted.
      conditions: C of them.
      first: a dataset of one of the conditions.
      values: `[C, ...]` by name; what is not named is as in the first.
    """
    constant = {str(name): variable.values for name, variable in first.data_vars.items()}
    return [
        (measurement, condition, first.copy(data=constant | {k: v[c] for k, v in values.items()}))
        for c, condition in enumerate(conditions)
    ]


def with_gaps(conditions: Sequence[Condition], gap: np.ndarray) -> list[Planted]:
    """Returns learning of models that fit their own half, and miss the other by a given gap.

    Args:
      conditions: C of one shape.
      gap: `[C, P]` in error, the same for both models of a pair.
    """
    ends = np.full((*gap.shape, 2, len(SAMPLES)), 0.001)
    ends[..., 1:] += gap[..., None, None]
    starts = np.full(ends.shape, 0.9)
    walks = np.repeat(starts[..., None], len(conditions[0].probe_steps), -1)
    walks[..., -1] = ends
    *_, first = learned(conditions[0], ends[0], starts[0])
    return alike(LEARNING, conditions, first, dict.fromkeys(LOSSES, walks))
