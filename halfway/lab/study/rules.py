"""Pieces that decision rules share."""

import dataclasses
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from halfway import stats
from halfway.lab.study.verdict import Direction, Headline, PartResult
from halfway.stats import Decision, Estimate, Side


def part(
    decision: Decision,
    name: str,
    statistic: str,
    direction: Direction,
    *threshold: float,
    control: str = "",
) -> PartResult:
    """Returns a test, or an equivalence where the direction is "within", as a part of a rule.

    Args:
      decision: of `halfway.statistics`.
      name: unique within the study.
      statistic: in words with its symbol.
      direction: of the claim.
      *threshold: one number, or two margins.
      control: what it is compared with, in words.
    """
    return PartResult(
        name=name,
        kind="equivalence" if direction == "within" else "test",
        statistic=statistic,
        estimate=decision.estimate,
        low=decision.low,
        high=decision.high,
        direction=direction,
        threshold=threshold,
        p_value=decision.p_value,
        p_reverse=decision.p_reverse,
        num_pairs=decision.num_pairs,
        num_excluded=decision.num_excluded,
        control=control,
    )


def gate(
    values: np.ndarray,
    name: str,
    statistic: str,
    threshold: float,
    *,
    alternative: Side = "greater",
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> PartResult:
    """Returns the precondition that a mean over pairs passes a threshold, with raw p < .05.

    Args:
      values: `[P]`, NaN for pairs that diverged.
      name: unique within the study.
      statistic: in words with its symbol.
      threshold: to be passed.
      alternative: the side of the threshold on which the precondition is met.
      bounds: the least and the largest value there is, such as 0 and 1 of a share.
    """
    mean = stats.bounded(stats.mean_test(values, threshold, alternative=alternative), *bounds)
    return PartResult(
        name=name,
        kind="gate",
        statistic=statistic,
        estimate=mean.estimate,
        low=mean.low,
        high=mean.high,
        direction=alternative,
        threshold=(threshold,),
        p_value=mean.p_value,
        p_reverse=None,
        num_pairs=mean.num_pairs,
        num_excluded=mean.num_excluded,
    )


def least_above(values: ArrayLike, name: str, statistic: str, like: PartResult) -> PartResult:
    """Returns the precondition that the least of some estimates is above 0; it is no test.

    Args:
      values: of any shape; where one is not finite the gate is not met.
      name: unique within the study.
      statistic: in words.
      like: a part with the same pairs.
    """
    estimates = np.asarray(values, float)
    least = float(estimates.min()) if np.isfinite(estimates).all() else math.nan
    return PartResult(
        name=name,
        kind="gate",
        statistic=statistic,
        estimate=least,
        low=least,
        high=least,
        direction="greater",
        threshold=(0.0,),
        p_value=None,
        p_reverse=None,
        num_pairs=like.num_pairs,
        num_excluded=like.num_excluded,
    )


def as_gate(tested: PartResult) -> PartResult:
    """Returns a test as a precondition: met at raw p < .05, and no test of the rule.

    Args:
      tested: of `part`.
    """
    return dataclasses.replace(tested, kind="gate", p_reverse=None)


def headline(
    label: str,
    estimate: Estimate | Decision,
    control_label: str = "",
    control: Estimate | Decision | None = None,
) -> Headline:
    """Returns a number to remember with its control's.

    Args:
      label: what the number is, in words.
      estimate: the number with its interval.
      control_label: what the control is, in words; empty without one.
      control: the number of the control with its interval.
    """
    return Headline(
        label=label,
        estimate=estimate.estimate,
        low=estimate.low,
        high=estimate.high,
        control_label=control_label,
        control=None if control is None else (control.estimate, control.low, control.high),
    )


def ratios(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Returns coefficients `[P]` for figures, NaN where the own progress is not positive.

    Args:
      numerators: `[P]`.
      denominators: `[P]`, the progress on the own half.
    """
    positive = denominators > 0
    return np.where(positive, numerators / np.where(positive, denominators, 1.0), np.nan)


def triple(estimate: Estimate | Decision) -> tuple[float, float, float]:
    """Returns estimate, low and high."""
    return estimate.estimate, estimate.low, estimate.high


def figure_of(axes: Any) -> Figure:
    """Returns the figure that one or several axes were drawn on."""
    figure = np.ravel(axes)[0].figure
    assert isinstance(figure, Figure)
    return figure
