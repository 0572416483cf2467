"""Intervals of shares and of their differences, within the range that they can have."""

from typing import Any, Protocol, TypeVar


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
