"""AUCs with what each example adds to them; NumPy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class ExampleCounts(NamedTuple):
    """Of each example, `[B]`: every comparison stands with both of its examples.

    Attributes:
      concordant: comparisons with examples of the other kind in which the positive has the larger
        score; a tie counts one half.
      comparable: comparisons with examples of the other kind.
    """

    concordant: np.ndarray
    comparable: np.ndarray


def example_counts(
    scores: ArrayLike, positive: ArrayLike, strata: ArrayLike | None = None
) -> ExampleCounts:
    """Returns the comparisons of each example within its stratum; half their sums make the AUC.

    Args:
      scores: `[B]`, finite.
      positive: `[B]` bool.
      strata: `[B]` labels of any sortable type; None: all examples are one stratum.

    Formula: of the examples of the other kind in order, the mean of how many lie below and how many
    do not lie above.
    """
    score, is_positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    label = np.zeros(score.size, int) if strata is None else np.asarray(strata)
    _, stratum = np.unique(label, return_inverse=True)
    _, rank = np.unique(score, return_inverse=True)
    # One order serves all strata: by stratum, then score.
    first = stratum * (score.size + 1)
    order = first + rank
    concordant, comparable = np.zeros((2, score.size))
    for kind in (is_positive, ~is_positive):
        others = np.sort(order[~kind])
        below = np.searchsorted(others, order[kind], side="left")
        not_above = np.searchsorted(others, order[kind], side="right")
        start, end = (
            np.searchsorted(others, first[kind] + number) for number in (0, score.size + 1)
        )
        comparable[kind] = end - start
        concordant[kind] = (below + not_above) / 2 - start
    # Those below a negative are discordant.
    return ExampleCounts(np.where(is_positive, concordant, comparable - concordant), comparable)


def equal_bins(values: ArrayLike, num_bins: int) -> np.ndarray:
    """Returns `[B]` the bin of each value, bins of equal counts by rank.

    Args:
      values: `[B]`; ties are taken in order.
      num_bins: number of bins.
    """
    array = np.asarray(values)
    ranks = np.empty(len(array), int)
    ranks[np.argsort(array, kind="stable")] = np.arange(len(array))
    return num_bins * ranks // max(1, len(array))


def nested_bins(first: ArrayLike, second: ArrayLike, num_bins: int) -> np.ndarray:
    """Returns `[B]` bins of the first value, and of the second within each, numbered through.

    Args:
      first: `[B]`.
      second: `[B]`.
      num_bins: of each.
    """
    outer, values = equal_bins(first, num_bins), np.asarray(second)
    inner = np.zeros(len(outer), int)
    for place in range(num_bins):
        inside = outer == place
        inner[inside] = equal_bins(values[inside], num_bins)
    return num_bins * outer + inner
