"""A t-test over draws of pairs *and* of examples; NumPy and SciPy."""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from halfway import stats
from halfway.stats import Decision


def two_way_test(
    values: ArrayLike,
    examples: ArrayLike,
    threshold: float = 0.0,
    *,
    alternative: Literal["greater", "less"],
) -> Decision:
    """Returns the mean over pairs with interval and t-test over draws of pairs and of examples.

    Samples S of different pairs overlap, so that what single examples do to the mean does not
    become smaller with more pairs. What examples do within one pair is counted on both sides, and
    what two examples do together at each of the two: nothing is subtracted, the interval is never
    too short, and up to twice too long where there is no other noise.

    Args:
      values: `[P]`, a value of each pair; NaN for a pair that is left out.
      examples: `[N]`, what each example of the pool adds to the error of the mean, to first order
        and over all pairs; NaN for one that no pair looked at.
      threshold: boundary of the null.
      alternative: the side of the threshold that the claim is on.

    Raises:
      ValueError: if an argument is out of range.

    Formula: `V_P = s²/P`, `V_N = N/(N − 1) Σ_i e_i²`, V = V_P + V_N; degrees of freedom
    `V²/(V_P²/(P − 1) + V_N²/(N − 1))`.
    Source: Cameron, Gelbach and Miller (2011), without the term that they subtract;
    Satterthwaite (1946).

    Examples:
      >>> test = two_way_test([0.8, 1.1, 0.9, 1.2], [0.0, 0.0, 0.0], alternative="greater")
      >>> f"{test.estimate:.2f} [{test.low:.2f}, {test.high:.2f}]"  # examples that add nothing
      '1.00 [0.71, 1.29]'
    """
    over_pairs = stats.mean_test(values, threshold, alternative=alternative)
    added = np.asarray(examples, np.float64)
    added = added[np.isfinite(added)]
    column = np.asarray(values, np.float64)
    column = column[np.isfinite(column)]
    if over_pairs.num_pairs < 2 or not np.isfinite(over_pairs.low) or added.size < 2:
        return over_pairs
    if not (added**2).sum() > 0:
        return over_pairs
    terms = [
        (float(column.var(ddof=1)) / column.size, column.size - 1),
        (float((added**2).sum()) * added.size / (added.size - 1), added.size - 1),
    ]
    variance = sum(term for term, _ in terms)
    degrees = variance**2 / sum(term**2 / number for term, number in terms)
    error, estimate = math.sqrt(variance), over_pairs.estimate
    half = float(special.stdtrit(degrees, 0.975)) * error
    t = (estimate - threshold) / error * (1 if alternative == "greater" else -1)
    p_value, p_reverse = (float(special.stdtr(degrees, side)) for side in (-t, t))
    return over_pairs._replace(
        low=estimate - half, high=estimate + half, p_value=p_value, p_reverse=p_reverse
    )
