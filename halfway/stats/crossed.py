"""Means over draws of models or pairs, and of examples: clustered errors; NumPy and SciPy.

A matrix with a value for each surrogate and target is no sample of independent numbers: the values
of a row share a surrogate, those of a column a target. With `v_ij = μ + a_i + b_j + e_ij` the
variance of the mean is σ_a²/K + σ_b²/M + σ_e²/(KM), however many cells there are. The estimate here
is the sum of the variances by clusters of surrogates and by clusters of targets. It has σ_e²/(KM)
twice, so that it is never negative, and a little too large where cells have a noise of their own.
The degrees of freedom of the t quantile are Satterthwaite's.

All cells share the examples as well. A claim that is not about these very examples has outcomes of
each, `[K, M, B]`, and a third variance by clusters of examples: effects of two sides together
(surrogate and example, say) are then counted twice, those of single outcomes three times.

A bootstrap that resamples surrogates and targets estimates the same sum and has no t quantile: with
eight of each its intervals are too short.

A mean over pairs of models has two sides alone, pairs and examples, and the part of the examples
comes as what each adds to the error of the mean: `two_way_test`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from halfway.stats.inference import Decision, mean_test
from halfway.stats.validity import LARGEST, ROUNDING, Side, check_side, column, valid_pairs

_BATCH = 4_000_000
"""How many outcomes are held as float64 at once: 80 surrogates, 80 targets and 10,000 examples are
64 million, and come as bytes."""


class Crossed(NamedTuple):
    """An estimate over models and examples with its standard error and two-sided interval.

    Attributes:
      estimate: the point estimate, always finite; 0 where there is nothing to estimate.
      low: lower end of the interval; -inf where unbounded.
      high: upper end of the interval; inf where unbounded.
      standard_error: over draws of surrogates, of targets and, where outcomes of each are given,
        of examples; inf where it is not defined.
      degrees: degrees of freedom of the t quantile.
      num_surrogates: number of surrogates with a valid cell.
      num_targets: number of targets with a valid cell.
      num_examples: number of examples with a valid outcome; 0 for a matrix, whose cells are given
        the examples.
      num_excluded: number of surrogates and targets without a valid cell; examples are not counted.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees: float
    num_surrogates: int
    num_targets: int
    num_examples: int
    num_excluded: int


def crossed_mean(values: ArrayLike, *, confidence: float = 0.95) -> Crossed:
    """Returns the mean over cells with its interval over draws of surrogates, targets, examples.

    Args:
      values: `[K, M]`, a row for each surrogate, or `[K, M, B]` with an outcome of each example;
        entries that are NaN or infinite are left out, such as those of models that are not
        independent of each other.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if the values have neither two nor three axes, or the confidence is outside
        (0, 1).

    Formula: with residuals r of N entries, `V_K = K/(K − 1) Σ_i (Σ_jb r_ijb)²/N²`, V_M and V_B
    likewise, and V their sum; degrees of freedom `V²/(V_K²/(K − 1) + V_M²/(M − 1) + V_B²/(B − 1))`.
    Fewer than two surrogates, targets or examples with a valid entry have no finite interval. A
    matrix has no V_B.
    Source: Cameron, Gelbach and Miller (2011), without the terms that they subtract;
    Satterthwaite (1946).

    Examples:
      >>> mean = stats.crossed_mean([[1.0, 2.0], [3.0, 4.0]])
      >>> mean.estimate, mean.standard_error  # surrogates differ by 2, targets by 1
      (2.5, 1.118033988749895)
    """
    outcomes = _outcomes(values)
    return crossed_ratio(outcomes, np.broadcast_to(1.0, outcomes.shape), confidence=confidence)


def crossed_ratio(
    numerators: ArrayLike, denominators: ArrayLike, *, confidence: float = 0.95
) -> Crossed:
    """Returns the ratio of sums over cells with its interval over draws of all sides.

    Interval and standard error are those of the mean of `(num − R den)/mean(den)` over entries.
    They are of first order in the errors of the denominators, which are meant to be clearly
    positive.

    Args:
      numerators: `[K, M]`, a row for each surrogate, or `[K, M, B]` with one of each example.
      denominators: `[K, M]` or `[K, M, B]`; an entry counts where numerator and denominator are
        finite.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if these have neither two nor three axes, or not one shape, or the confidence is
        outside (0, 1).

    Formula: that of `crossed_mean`, for the linearized values. Where the denominators do not sum to
    more than 0 there is no finite interval.
    Source: Cameron, Gelbach and Miller (2011); Satterthwaite (1946).

    Examples:
      >>> ratio = stats.crossed_ratio([[1.0, 2.0], [3.0, 4.0]], [[4.0, 4.0], [4.0, 4.0]])
      >>> ratio.estimate, ratio.num_surrogates, ratio.num_targets
      (0.625, 2, 2)
      >>> fooled = np.ones((2, 2, 3)) * np.array([0, 1, 1])  # all models alike: examples differ
      >>> rate = stats.crossed_ratio(fooled, np.ones((2, 2, 3)))
      >>> round(rate.estimate, 3), round(rate.standard_error, 3), rate.num_examples
      (0.667, 0.333, 3)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    num, den = _outcomes(numerators), _outcomes(denominators)
    if num.shape != den.shape:
        axes = "[K, M]" if num.ndim == 2 else "[K, M, B]"
        raise ValueError(
            f"numerators and denominators must have one shape {axes}, got {num.shape} and "
            f"{den.shape}"
        )
    sides = range(num.ndim)
    present = [np.zeros(size, bool) for size in num.shape]
    num_entries, sum_num, total = 0, 0.0, 0.0
    for rows, block_num, block_den, valid in _blocks(num, den):
        for side in sides:
            places = rows if side == 0 else slice(None)
            present[side][places] |= valid.any(_others(side, num.ndim))
        num_entries += int(valid.sum())
        sum_num, total = sum_num + float(block_num.sum()), total + float(block_den.sum())
    counts = [int(members.sum()) for members in present]
    num_surrogates, num_targets = counts[:2]
    num_examples = counts[2] if num.ndim == 3 else 0
    num_excluded = sum(num.shape[:2]) - num_surrogates - num_targets
    left = num_surrogates, num_targets, num_examples, num_excluded
    ratio = sum_num / total if total else 0.0
    undecided = Crossed(ratio, -math.inf, math.inf, math.inf, 1.0, *left)
    if min(counts) < 2 or not total > 0:
        return undecided
    sums = [np.zeros(size) for size in num.shape]
    largest = 0.0
    for rows, block_num, block_den, _ in _blocks(num, den):
        residuals = (block_num - ratio * block_den) * (num_entries / total)
        for side in sides:
            places = rows if side == 0 else slice(None)
            sums[side][places] += residuals.sum(_others(side, num.ndim))
        sizes = (np.abs(terms).max() for terms in (block_num, ratio * block_den))
        largest = max(largest, *map(float, sizes))
    variances = [
        count / (count - 1) * float((cluster**2).sum()) / num_entries**2
        for count, cluster in zip(counts, sums, strict=True)
    ]
    variance = sum(variances)
    scale = largest * (num_entries / total)
    error = math.sqrt(variance)
    if not error > ROUNDING * scale:  # no spread but that of rounding: a point
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
    check_side(alternative)
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


def two_way_test(
    values: ArrayLike, examples: ArrayLike, threshold: float = 0.0, *, alternative: Side
) -> Decision:
    """Returns the mean over pairs with interval and t-test over draws of pairs and of examples.

    Samples S of different pairs overlap, so that what single examples do to the mean does not
    become smaller with more pairs. What examples do within one pair is counted on both sides, and
    what two examples do together at each of the two: nothing is subtracted, the interval is never
    too short, and up to twice too long where there is no other noise.

    Without a part of the examples it is `mean_test`, whose rules for too few pairs and for pairs
    that are not valid hold here too.

    Args:
      values: `[P]`, a value of each pair; NaN for a pair that is left out.
      examples: `[N]`, what each example of the pool adds to the error of the mean, to first order
        and over all pairs; NaN for one that no pair looked at.
      threshold: boundary of the null.
      alternative: the side of the threshold that the claim is on.

    Raises:
      ValueError: if the alternative is neither "greater" nor "less", or an argument is out of
        range.

    Formula: `V_P = s²/P`, `V_N = N/(N − 1) Σ_i e_i²`, V = V_P + V_N; degrees of freedom
    `V²/(V_P²/(P − 1) + V_N²/(N − 1))`.
    Source: Cameron, Gelbach and Miller (2011), without the term that they subtract;
    Satterthwaite (1946).

    Examples:
      >>> test = stats.two_way_test([0.8, 1.1, 0.9, 1.2], [0.0] * 3, alternative="greater")
      >>> f"{test.estimate:.2f} [{test.low:.2f}, {test.high:.2f}]"  # examples that add nothing
      '1.00 [0.71, 1.29]'
      >>> test = stats.two_way_test([0.8, 1.1, 0.9, 1.2], [0.1, 0.0, -0.1], alternative="greater")
      >>> f"{test.estimate:.2f} [{test.low:.2f}, {test.high:.2f}]"
      '1.00 [0.39, 1.61]'
    """
    check_side(alternative)
    over_pairs = mean_test(values, threshold, alternative=alternative)
    pairs, added = (side[valid_pairs(side)] for side in map(column, (values, examples)))
    if pairs.size < 2 or added.size < 2:
        return over_pairs
    terms = [
        (float(pairs.var(ddof=1)) / pairs.size, pairs.size - 1),
        (float((added**2).sum()) * added.size / (added.size - 1), added.size - 1),
    ]
    if not terms[1][0] > 0:
        return over_pairs
    variance = sum(term for term, _ in terms)
    degrees = 1 / sum((term / variance) ** 2 / number for term, number in terms)
    error, estimate = math.sqrt(variance), over_pairs.estimate
    half = float(special.stdtrit(degrees, 0.975)) * error
    t = (estimate - threshold) / error * (1 if alternative == "greater" else -1)
    p_value, p_reverse = (float(special.stdtr(degrees, side)) for side in (-t, t))
    return over_pairs._replace(
        low=estimate - half, high=estimate + half, p_value=p_value, p_reverse=p_reverse
    )


def _outcomes(values: ArrayLike) -> np.ndarray:
    """Returns values as an array `[K, M]` or `[K, M, B]`, of the type that they have."""
    outcomes = np.asarray(values)
    if outcomes.ndim not in (2, 3):
        raise ValueError(
            f"expected a matrix [K, M] or outcomes [K, M, B], got an array of shape "
            f"{outcomes.shape}"
        )
    return outcomes


def _blocks(
    numerators: np.ndarray, denominators: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields rows, their numerators and denominators, 0 where not valid, and what is valid."""
    step = max(1, _BATCH // max(1, math.prod(numerators.shape[1:])))
    for start in range(0, len(numerators), step):
        rows = slice(start, start + step)
        num, den = (np.asarray(v[rows], np.float64) for v in (numerators, denominators))
        valid = (np.abs(num) < LARGEST) & (np.abs(den) < LARGEST)  # NaN is not
        yield rows, np.where(valid, num, 0.0), np.where(valid, den, 0.0), valid


def _others(side: int, num_sides: int) -> tuple[int, ...]:
    """Returns the axes to sum over for the clusters of a side."""
    return tuple(axis for axis in range(num_sides) if axis != side)
