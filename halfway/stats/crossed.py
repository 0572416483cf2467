"""Means over draws of surrogates *and* of targets: two-way clustered errors; NumPy and SciPy.

A matrix with a value for each surrogate and target is no sample of independent numbers: the values
of a row share a surrogate, those of a column a target. With `v_ij = μ + a_i + b_j + e_ij` the
variance of the mean is σ_a²/K + σ_b²/M + σ_e²/(KM), however many cells there are. The estimate here
is the sum of the variances by clusters of surrogates and by clusters of targets. It has σ_e²/(KM)
twice, so that it is never negative, and a little too large where cells have a noise of their own.
The degrees of freedom of the t quantile are Satterthwaite's.

A bootstrap that resamples surrogates and targets estimates the same sum and has no t quantile: with
eight of each its intervals are too short.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from halfway.stats.inference import Decision

Side = Literal["greater", "less"]

_LARGEST = 1e150
# Relative spread below which two numbers differ by rounding alone.
_ROUNDING = 64 * np.finfo(np.float64).eps


class Crossed(NamedTuple):
    """An estimate over surrogates and targets with its standard error and two-sided interval.

    Attributes:
      estimate: the point estimate, always finite; 0 where there is nothing to estimate.
      low: lower end of the interval; -inf where unbounded.
      high: upper end of the interval; inf where unbounded.
      standard_error: over draws of surrogates and of targets; inf where it is not defined.
      degrees: degrees of freedom of the t quantile.
      num_surrogates: number of surrogates with a valid cell.
      num_targets: number of targets with a valid cell.
      num_excluded: number of surrogates and targets without a valid cell.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees: float
    num_surrogates: int
    num_targets: int
    num_excluded: int


def crossed_mean(values: ArrayLike, *, confidence: float = 0.95) -> Crossed:
    """Returns the mean over cells with its interval over draws of surrogates and targets.

    Args:
      values: `[K, M]`, a row for each surrogate; cells that are NaN or infinite are left out, such
        as those of models that are not independent of each other.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if the values are no matrix, or the confidence is outside (0, 1).

    Formula: with residuals r of N cells, `V_K = K/(K − 1) Σ_i (Σ_j r_ij)²/N²`, V_M likewise, and
    V = V_K + V_M; degrees of freedom `V²/(V_K²/(K − 1) + V_M²/(M − 1))`. Fewer than two surrogates
    or targets with a valid cell have no finite interval.
    Source: Cameron, Gelbach and Miller (2011), without the term that they subtract;
    Satterthwaite (1946).

    Examples:
      >>> mean = stats.crossed_mean([[1.0, 2.0], [3.0, 4.0]])
      >>> mean.estimate, mean.standard_error  # surrogates differ by 2, targets by 1
      (2.5, 1.118033988749895)
    """
    cells = _matrix(values)
    return crossed_ratio(cells, np.ones(cells.shape), confidence=confidence)


def crossed_ratio(
    numerators: ArrayLike, denominators: ArrayLike, *, confidence: float = 0.95
) -> Crossed:
    """Returns the ratio of sums over cells with its interval over draws of both sides.

    Interval and standard error are those of the mean of `(num_ij − R den_ij)/mean(den)`. They are
    of first order in the errors of the denominators, which are meant to be clearly positive.

    Args:
      numerators: `[K, M]`, a row for each surrogate.
      denominators: `[K, M]`; a cell counts where numerator and denominator are finite.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if these are no matrices of one shape, or the confidence is outside (0, 1).

    Formula: that of `crossed_mean`, for the linearized values. Where the denominators do not sum to
    more than 0 there is no finite interval.
    Source: Cameron, Gelbach and Miller (2011); Satterthwaite (1946).

    Examples:
      >>> ratio = stats.crossed_ratio([[1.0, 2.0], [3.0, 4.0]], [[4.0, 4.0], [4.0, 4.0]])
      >>> ratio.estimate, ratio.num_surrogates, ratio.num_targets
      (0.625, 2, 2)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    num, den = _matrix(numerators), _matrix(denominators)
    if num.shape != den.shape:
        raise ValueError(
            f"numerators and denominators must have one shape [K, M], got {num.shape} and "
            f"{den.shape}"
        )
    valid = (np.abs(num) < _LARGEST) & (np.abs(den) < _LARGEST)  # NaN is not
    num, den = np.where(valid, num, 0.0), np.where(valid, den, 0.0)
    counts = num_surrogates, num_targets = [int(valid.any(axis).sum()) for axis in (1, 0)]
    left = num_surrogates, num_targets, sum(num.shape) - sum(counts)
    size, total = int(valid.sum()), float(den.sum())
    ratio = float(num.sum()) / total if total else 0.0
    undecided = Crossed(ratio, -math.inf, math.inf, math.inf, 1.0, *left)
    if min(counts) < 2 or not total > 0:
        return undecided
    residuals = (num - ratio * den) * (size / total)
    variances = [
        count / (count - 1) * float((residuals.sum(axis) ** 2).sum()) / size**2
        for count, axis in zip(counts, (1, 0), strict=True)
    ]
    variance = sum(variances)
    scale = np.abs(np.stack([num, ratio * den])).max() * (size / total)
    error = math.sqrt(variance)
    if not error > _ROUNDING * scale:  # no spread but that of rounding: a point
        return undecided._replace(low=ratio, high=ratio, standard_error=0.0)
    shares = [v / variance for v in variances]
    degrees = 1 / sum(s**2 / (c - 1) for s, c in zip(shares, counts, strict=True))
    half = float(special.stdtrit(degrees, (1 + confidence) / 2)) * error
    return Crossed(ratio, ratio - half, ratio + half, error, degrees, *left)


def crossed_test(estimate: Crossed, threshold: float = 0.0, *, alternative: Side) -> Decision:
    """Returns the one-sided t-test of an estimate against a threshold, with its reverse.

    Where there is no standard error both p-values are 1; where it is 0, p is 0 strictly on the
    alternative's side and 1 otherwise. `num_pairs` counts surrogates and targets.

    Args:
      estimate: from `crossed_mean` or `crossed_ratio`.
      threshold: boundary of the null, in the units of the estimate.
      alternative: the side of the threshold that the claim is on.

    Raises:
      ValueError: if the alternative is neither "greater" nor "less".

    Examples:
      >>> mean = stats.crossed_mean([[1.0, 1.1], [1.2, 1.0], [0.9, 1.1]])
      >>> stats.crossed_test(mean, alternative="greater").p_value < 0.01
      True
    """
    if alternative not in ("greater", "less"):
        raise ValueError(f"alternative must be 'greater' or 'less', got {alternative!r}")
    distance = estimate.estimate - threshold
    distance = distance if alternative == "greater" else -distance
    if math.isinf(estimate.standard_error):
        p_value = p_reverse = 1.0
    elif estimate.standard_error == 0:
        p_value, p_reverse = float(not distance > 0), float(not distance < 0)
    else:
        t = distance / estimate.standard_error
        p_value, p_reverse = (float(special.stdtr(estimate.degrees, side)) for side in (-t, t))
    num_models = estimate.num_surrogates + estimate.num_targets
    return Decision(*estimate[:3], p_value, p_reverse, num_models, estimate.num_excluded)


def _matrix(values: ArrayLike) -> np.ndarray:
    """Returns values as a float64 matrix."""
    cells = np.asarray(values, np.float64)
    if cells.ndim != 2:
        raise ValueError(f"expected a matrix [K, M], got an array of shape {cells.shape}")
    return cells
