"""Transfer over the grid as a line of three measures, and of each two of them.

    Δ rate = a Δ log size + b Δτ + c Δ log variability

Δ is the contrast with the base of an intervention's own architecture, and for the factor
architecture with the MLP's. The lines have no intercept: no change changes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import AGREEMENT, Grid
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.study.records import Measured, Records

MEASURES = ("size", "alignment", "variability")
ALL = "all three"
Weights = np.ndarray
"""`[R, P]` of pairs."""


class Factors(NamedTuple):
    """What is read of the base, first, and of N interventions, by pair.

    Attributes:
      plan: the grid.
      fooled: `[1 + N, P]`, examples both had right that fool the other model, minus those that
        another example's perturbation does, both directions.
      counted: `[1 + N, P]`, examples both had right, both directions.
      size: `[1 + N, P]`, mean ‖∇ margin‖₁ over mean |margin|, mean of both models.
      alignment: `[1 + N, P]`, mean τ, both directions.
      margins: `[1 + N, 2P, B]` of the examined rows, models of a pair next to each other.
      unseen: `[1 + N, 2P, B]` bool, whether a model has not trained on a row.
      valid: `[P]` bool.
    """

    plan: Grid
    fooled: np.ndarray
    counted: np.ndarray
    size: np.ndarray
    alignment: np.ndarray
    margins: np.ndarray
    unseen: np.ndarray
    valid: np.ndarray


def read(records: Records) -> Factors:
    """Returns the three measures and the outcome of every condition.

    Args:
      records: of a run that measured the grid.
    """
    plan = grid.design(records.config)
    attacked = [records.get(TRANSFER, condition) for condition in plan.conditions]
    agreed = [records.get(AGREEMENT, condition) for condition in plan.conditions]
    rates = np.array([_fooled(measured) for measured in attacked])
    size = np.array([measured.read("size", "pair", "model").mean(-1) for measured in agreed])
    tau = np.array([measured.read("tau", "pair", "surrogate").mean(-1) for measured in agreed])
    of_models = "pair", "model", "example"
    margins, unseen = (
        np.array([_by_model(measured.read(name, *of_models)) for measured in agreed])
        for name in ("margin", "unseen")
    )
    valid = stats.valid_pairs(rates[:, 0], rates[:, 1], size, tau)
    return Factors(plan, rates[:, 0], rates[:, 1], size, tau, margins, unseen, valid)


def _by_model(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])


def _fooled(attacked: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` counts of both directions; NaN for pairs that diverged."""
    correct = attacked.read("clean_correct", "pair", "model", "example")
    both = correct[:, 0] & correct[:, 1]
    lead = np.zeros(len(both))
    for surrogate, target in ((0, 1), (1, 0)):
        for name, sign in (("fooled", 1), ("fooled_by_other", -1)):
            errs = attacked.read(name, "pair", "surrogate", "target", "example")
            lead += sign * (both & errs[:, surrogate, target]).sum(-1)
    missing = np.where(attacked.finite, 0.0, np.nan)
    return lead + missing, 2.0 * both.sum(-1) + missing


def variability(factors: Factors, weights: Weights) -> np.ndarray:
    """Returns `[R, 1 + N]` mean variance of an example's margin over models, over mean |margin|².

    Only models that have not trained on an example count there; examples of fewer than two such
    models do not count.

    Args:
      factors: of a run.
      weights: of pairs; both models of a pair have its weight.
    """
    of_models = np.repeat(weights * factors.valid, 2, axis=1)
    is_valid = np.repeat(factors.valid, 2)[:, None]
    values = []
    for margins, unseen in zip(factors.margins, factors.unseen, strict=True):
        known = np.where(unseen & is_valid, margins, 0.0)
        total, squares = of_models @ unseen, of_models**2 @ unseen
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = of_models @ known / total
            spread = of_models @ known**2 / total - mean**2
            number = total**2 / squares  # of models, by their weights
            variance = spread * number / (number - 1)
            counted = number > 1.5
            size = (of_models @ np.abs(known)).sum(-1) / total.sum(-1)
            average = np.where(counted, variance, 0.0).sum(-1) / counted.sum(-1)
            values.append(average / size**2)
    return np.array(values).T


def contrasts(factors: Factors, weights: Weights) -> np.ndarray:
    """Returns `[R, N, 4]` contrasts of the rate fooled and of `MEASURES` with the base.

    Args:
      factors: of a run.
      weights: of pairs.
    """
    ones = np.ones(factors.size.shape[-1])
    levels = [
        stats.weighted_ratio(weights, factors.fooled, factors.counted),
        np.log(stats.weighted_ratio(weights, factors.size, ones)),
        stats.weighted_ratio(weights, factors.alignment, ones),
        np.log(variability(factors, weights)),
    ]
    values = np.stack(levels, -1)
    return values[:, 1:] - values[:, _places(factors.plan)]


def _places(plan: Grid) -> np.ndarray:
    """Returns `[N]` where the base of each intervention is among all conditions."""
    ids = [condition.id for condition in plan.conditions]
    cnn = ids.index(plan.bases[grid.CNN].id)
    return np.array(
        [
            0 if changed.factor == "architecture" or changed.base == grid.MLP else cnn
            for changed in plan.interventions
        ]
    )


def kept(left_out: str | None) -> np.ndarray:
    """Returns `[3]` bool, the measures of a line.

    Args:
      left_out: of `MEASURES`, or None.
    """
    return np.array([name != left_out for name in MEASURES])


def errors(factors: Factors, slopes: np.ndarray, weights: Weights) -> np.ndarray:
    """Returns `[R, N]` how far a line's contrast of the rate is off, without sign.

    Args:
      factors: of a run.
      slopes: `[3]`, 0 for what is left out.
      weights: of pairs.
    """
    values = contrasts(factors, weights)
    return np.abs(values[..., 0] - values[..., 1:] @ slopes)


def lead(
    factors: Factors, whole: np.ndarray, partial: np.ndarray
) -> Callable[[Weights], np.ndarray]:
    """Returns a function of weights to the mean error of a line of two minus that of three `[R]`.

    Args:
      factors: of a run.
      whole: `[3]`, slopes of all.
      partial: `[3]`, slopes of two.
    """

    def statistic(weights: Weights) -> np.ndarray:
        values = contrasts(factors, weights)
        far, near = (
            np.abs(values[..., 0] - values[..., 1:] @ slopes).mean(-1)
            for slopes in (partial, whole)
        )
        return far - near

    return statistic


def fit(factors: Factors) -> dict[str, tuple[float, ...]]:
    """Returns slopes of all three measures, and of each two, by least squares without intercept.

    Args:
      factors: of digits, with the shipped seed and number of pairs.
    """
    values = contrasts(factors, factors.valid.astype(float)[None])[0]
    lines = {}
    for left_out in (None, *MEASURES):
        mask = kept(left_out)
        slopes = np.zeros(len(MEASURES))
        slopes[mask] = stats.anchored_slopes(values[:, 1:][:, mask], values[:, 0])
        lines[left_out or ALL] = tuple(map(float, np.round(slopes, 4)))
    return lines
