"""Intervals of shares and of their differences, within the range that they can have."""

from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike


class _Interval(Protocol):
    """What has ends: `Estimate`, `Decision`, `Crossed` and their like."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    def _replace(self, **fields: Any) -> Any: ...


IntervalT = TypeVar("IntervalT", bound=_Interval)


def bounded(estimate: IntervalT, low: float = 0.0, high: float = 1.0) -> IntervalT:
    """Returns an estimate whose interval lies within the range that its value has.

    A t interval of rates over pairs does not know that a rate is at most 1. What it says beyond is
    cut off, an infinite end too: no coverage is lost, since the value is not there. Nothing else
    changes, neither p-values nor standard errors.

    Args:
      estimate: with fields `low` and `high`, such as of `fieller` or `crossed_ratio`.
      low: the least value there is: 0 for a share, −1 for a difference of shares.
      high: the largest.

    Raises:
      ValueError: if low is not below high.

    Examples:
      >>> rate = stats.fieller([9, 10, 10, 10], [10, 10, 10, 10])
      >>> round(rate.high, 3), stats.bounded(rate).high
      (1.055, 1.0)
    """
    if not low < high:
        raise ValueError(f"bounds must satisfy low < high, got low={low}, high={high}")
    return estimate._replace(
        low=min(max(estimate.low, low), high), high=max(min(estimate.high, high), low)
    )


class Share(NamedTuple):
    """A share of independent trials, with the ends of its 95 % interval.

    Attributes:
      estimate: NaN without trials.
      low: lower end.
      high: upper end.
      num_trials: how many there were.
    """

    estimate: float
    low: float
    high: float
    num_trials: int


def share(successes: ArrayLike, valid: ArrayLike | None = None) -> Share:
    """Returns the share of successes among independent trials, with its 95 % interval.

    For the trials of *one* model; what several models share is clustered: see `crossed_ratio`.

    Args:
      successes: `[N]` bool.
      valid: `[N]` bool, the trials that count; None: all.

    Formula: Wilson's score interval, which has the ends that a share can have.
    Source: Wilson (1927).

    Examples:
      >>> rate = stats.share([True] * 9 + [False])
      >>> rate.estimate, round(rate.low, 3), round(rate.high, 3), rate.num_trials
      (0.9, 0.596, 0.982, 10)
    """
    won = np.asarray(successes, bool)
    mask = np.ones(won.shape, bool) if valid is None else np.asarray(valid, bool)
    number, total = int((won & mask).sum()), int(mask.sum())
    if not total:
        return Share(float("nan"), 0.0, 1.0, 0)
    interval = scipy.stats.binomtest(number, total).proportion_ci(method="wilson")
    return Share(number / total, float(interval.low), float(interval.high), total)
