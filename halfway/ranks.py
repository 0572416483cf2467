"""Rank correlations within strata, with their permutation nulls; NumPy and SciPy.

Two quantities that share a cause are correlated whatever else they share. Comparing examples or
conditions only within strata of equal cause takes it away.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation within strata.

    Attributes:
      estimate: mean over strata of at least two entries in which both quantities vary, each
        weighted by its number of entries; NaN where there is none.
      permuted: `[R]`, the same after permuting the second quantity within strata.
      num_strata: strata that entered.
      num_undefined: strata of at least two entries in which one quantity is constant; they enter
        neither.
    """

    estimate: float
    permuted: np.ndarray
    num_strata: int
    num_undefined: int


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    rng: np.random.Generator | None = None,
    num_permutations: int = 0,
) -> RankCorrelation:
    """Returns the mean of Spearman's correlations within strata, ties at their mean rank.

    Args:
      x: `[N]`.
      y: `[N]`.
      strata: `[N]`; None: all are one.
      rng: consumed; only where there are permutations.
      num_permutations: R, of y within strata.

    Raises:
      ValueError: if the lengths differ, or permutations are asked for without `rng`.

    Examples:
      >>> found = ranks.spearman([1, 2, 3, 30, 20, 10], [1, 2, 3, 7, 8, 9], [0, 0, 0, 1, 1, 1])
      >>> found.estimate  # +1 in one stratum, −1 in the other
      0.0
    """
    first, second = np.asarray(x), np.asarray(y)
    groups = np.zeros(len(first), int) if strata is None else np.asarray(strata)
    if not len(first) == len(second) == len(groups):
        raise ValueError(
            f"x, y and strata must be of equal length, got {len(first)}, {len(second)} and "
            f"{len(groups)}"
        )
    if num_permutations and rng is None:
        raise ValueError("permutations need rng, a numpy.random.Generator")
    total, weight, undefined, entered = 0.0, 0, 0, 0
    permuted = np.zeros(num_permutations)
    for group in np.unique(groups):
        rows = groups == group
        size = int(rows.sum())
        if size < 2:
            continue
        a, b = (_standardized_ranks(values[rows]) for values in (first, second))
        if a is None or b is None:
            undefined += 1
            continue
        total, weight, entered = total + size * float(a @ b), weight + size, entered + 1
        if rng is not None and num_permutations:
            shuffled = rng.permuted(np.tile(b, (num_permutations, 1)), axis=1)
            permuted += size * (shuffled @ a)
    if not weight:
        return RankCorrelation(np.nan, np.full(num_permutations, np.nan), 0, undefined)
    return RankCorrelation(total / weight, permuted / weight, entered, undefined)


def _standardized_ranks(values: np.ndarray) -> np.ndarray | None:
    """Returns centred ranks of length 1; None where all are tied."""
    ranks = stats.rankdata(values)
    ranks = ranks - ranks.mean()
    length = np.linalg.norm(ranks)
    return ranks / length if length > 0 else None
