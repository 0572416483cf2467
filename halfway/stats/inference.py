"""Intervals, tests, Holm, and sums whose ratio is a coefficient; NumPy and SciPy, float64.

The unit is the pair. Shapes use the letters of `types.py`: `[P]` has a number for each pair, `[B]`
a number for each example. A coefficient of a population is a ratio of sums over pairs.

All functions here that take `[P]` keep these rules:

- A pair in which any used value is NaN, infinite, or above 1e150 (its square would overflow) is
  left out and counted in `num_excluded`.
- Fewer than two valid pairs: the interval is (-inf, inf) and both p-values are 1. With one pair
  the estimate is that of the pair; with none, or where the denominators sum to 0, it is 0, so that
  an effect is always finite.
- Tests of a ratio presume denominators of positive expectation (progress along one's own walk).
  Where the valid denominators do not sum to more than 0 the sign of the comparison is unknown:
  the interval is (-inf, inf) and both p-values are 1. Switching sides with the sign of the sample
  instead would let the size of a test at level .05 grow to .10.
- Zero spread up to rounding: the interval is a point, and p is 0 strictly on the alternative's
  side of the threshold, else 1; the reverse likewise.
- In a two-sided test ("different from the threshold") p_value is twice the smaller one-sided p, and
  p_reverse is that of the equivalence (TOST) within `margin` of the threshold; the margin has then
  to be given.
- No warnings are given; mistakes of a user raise ValueError.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from halfway.stats.validity import LARGEST, ROUNDING, column, valid_pairs

Alternative = Literal["greater", "less", "two-sided"]


class Estimate(NamedTuple):
    """An estimate with its two-sided confidence interval.

    Attributes:
      estimate: the point estimate; always finite.
      low: lower end of the interval; -inf where unbounded.
      high: upper end of the interval; inf where unbounded.
      num_pairs: valid pairs used.
      num_excluded: pairs left out because a value was not finite.
    """

    estimate: float
    low: float
    high: float
    num_pairs: int
    num_excluded: int


class Decision(NamedTuple):
    """An estimate, its two-sided confidence interval, and a test with the test of its reverse.

    Attributes:
      estimate: the point estimate; always finite.
      low: lower end of the interval; -inf where unbounded.
      high: upper end of the interval; inf where unbounded.
      p_value: p-value of the claim, which is: on the alternative's side of the threshold, different
        from the threshold, or within the margins.
      p_reverse: p-value of the reverse, which is: on the other side of the threshold, equal to it
        within a margin, or outside the margins.
      num_pairs: valid pairs used; the smaller number where two populations are compared unpaired.
      num_excluded: pairs left out because a value was not finite; the larger number likewise.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    p_reverse: float
    num_pairs: int
    num_excluded: int


class Linearized(NamedTuple):
    """A ratio of sums and what each pair adds to its error.

    Attributes:
      values: `[P]`, of mean 0 over the valid pairs; NaN for a pair that is left out.
      ratio: the ratio of sums over the valid pairs.
    """

    values: np.ndarray
    ratio: float


class Concordance(NamedTuple):
    """Numerator and denominator of an AUC.

    Attributes:
      concordant: number of (positive, negative) pairs in which the positive has the larger score; a
        tie counts one half.
      comparable: number of (positive, negative) pairs.
    """

    concordant: float
    comparable: float


class SlopeSums(NamedTuple):
    """Numerator and denominator of a least-squares slope with an intercept.

    Attributes:
      numerator: sum of the products of centred x and centred y.
      denominator: sum of the squares of centred x.
    """

    numerator: float
    denominator: float


def fieller(
    numerators: ArrayLike, denominators: ArrayLike, *, confidence: float = 0.95
) -> Estimate:
    """Returns the ratio of sums `M̂ = Σ num / Σ den` with Fieller's interval.

    The interval is the set of c that the two-sided t-test of E[num − c·den] = 0 does not reject; it
    is exact for jointly normal pairs. Where the interval of the mean denominator includes 0 that
    set is the whole line, or the line without an interval that M̂ is not in (the exclusive case).
    Both are reported as (-inf, inf), which contains them.

    Args:
      numerators: `[P]`, the numerator of each pair.
      denominators: `[P]`, the denominator of each pair, of either sign.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if the lengths differ or the confidence is outside (0, 1).

    Source: Fieller (1954), solved for c − M̂ on linearized values, where nothing cancels.

    Examples:
      >>> ratio = stats.fieller([0.5, 0.6, 0.4, 0.5], [1.0, 1.1, 0.9, 1.0])
      >>> f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
      '0.500 [0.425, 0.557]'
    """
    level = _quantile_level(confidence)
    (num, den), num_excluded = _valid(numerators, denominators)
    num_pairs = num.size
    ratio, z, relative = _linearize(num, den)
    low, high = -math.inf, math.inf
    if num_pairs >= 2 and math.isfinite(ratio):
        with np.errstate(all="ignore"):
            t = special.stdtrit(num_pairs - 1, level)
            (v_z, v_zd), (_, v_d) = np.cov(z, relative) * (t**2 / num_pairs)
            if v_d < 1:
                root = np.sqrt(v_zd**2 + (1 - v_d) * v_z)
                low = _or(ratio - (root + v_zd) / (1 - v_d), -math.inf)
                high = _or(ratio + (root - v_zd) / (1 - v_d), math.inf)
    return Estimate(_or(ratio, 0.0), low, high, num_pairs, num_excluded)


def linearized(numerators: ArrayLike, denominators: ArrayLike) -> Linearized:
    """Returns `z_p = (num_p − M̂ den_p) / mean(den)` and the ratio of sums M̂.

    To first order M̂ errs as the mean of z does, so that differences of ratios are tested on z.
    Where the valid denominators sum to 0, M̂ is 0 and every z is NaN.

    Args:
      numerators: `[P]`, the numerator of each pair.
      denominators: `[P]`, the denominator of each pair.

    Raises:
      ValueError: if the lengths differ.

    Source: Cochran, *Sampling Techniques* (1977), section 6.4.

    Examples:
      >>> linear = stats.linearized([0.5, 0.7], [1.0, 1.0])
      >>> round(linear.ratio, 3), linear.values.round(3).tolist()
      (0.6, [-0.1, 0.1])
    """
    num, den = _columns(numerators, denominators)
    valid = valid_pairs(num, den)
    values = np.full(num.shape, np.nan)
    ratio, values[valid], _ = _linearize(num[valid], den[valid])
    return Linearized(values, _or(ratio, 0.0))


def mean_test(
    values: ArrayLike,
    threshold: float = 0.0,
    *,
    alternative: Alternative,
    margin: float | None = None,
    confidence: float = 0.95,
) -> Decision:
    """Returns the mean with its t interval and the one-sample t-test against threshold.

    Args:
      values: `[P]`, a value of each pair.
      threshold: boundary of the null, in the units of values.
      alternative: the side of the threshold that the claim is on, or "two-sided".
      margin: half-width of the equivalence that is the reverse of a two-sided claim, in the units
        of values and above 0; None for a one-sided claim.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if an argument is out of range, or a margin and a two-sided alternative do not
        come together.

    Examples:
      >>> test = stats.mean_test([0.8, 1.1, 0.9, 1.2], 0.0, alternative="greater")
      >>> f"{test.estimate:.2f} [{test.low:.2f}, {test.high:.2f}], p = {test.p_value:.4f}"
      '1.00 [0.71, 1.29], p = 0.0008'
    """
    denominators = np.ones(column(values).shape)
    return ratio_test(
        values,
        denominators,
        threshold,
        alternative=alternative,
        margin=margin,
        confidence=confidence,
    )


def ratio_test(
    numerators: ArrayLike,
    denominators: ArrayLike,
    threshold: float,
    *,
    alternative: Alternative,
    margin: float | None = None,
    confidence: float = 0.95,
) -> Decision:
    """Returns the ratio of sums with Fieller's interval and its test against threshold.

    The test is the one-sample t-test on `num_p − threshold · den_p`. It agrees with the interval.

    Args:
      numerators: `[P]`, the numerator of each pair.
      denominators: `[P]`, the denominator of each pair, of positive expectation.
      threshold: boundary of the null for the ratio.
      alternative: the side of the threshold that the claim is on, or "two-sided".
      margin: half-width of the equivalence that is the reverse of a two-sided claim, above 0; None
        for a one-sided claim.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if an argument is out of range, or a margin and a two-sided alternative do not
        come together.
    """
    thresholds = _thresholds(threshold, alternative, margin)
    estimate, p_values = _ratio_tests(numerators, denominators, thresholds, confidence)
    return _decision(estimate, *_order(alternative, p_values))


def ratio_difference(
    numerators_1: ArrayLike,
    denominators_1: ArrayLike,
    numerators_2: ArrayLike,
    denominators_2: ArrayLike,
    *,
    threshold: float = 0.0,
    alternative: Alternative,
    paired: bool,
    margin: float | None = None,
    confidence: float = 0.95,
) -> Decision:
    """Returns the difference of two ratios of sums, its interval and its t-test.

    Test and interval treat the linearized values `M̂₁ − M̂₂ + z_p¹ − z_p²` as a sample (paired: one
    sample; else two, by Welch). They are of first order in the errors of the denominators, and
    meant for denominators that are clearly positive.

    Args:
      numerators_1: `[P]`, the numerators of the first condition.
      denominators_1: `[P]`, its denominators, of positive expectation.
      numerators_2: `[P]`, the numerators of the second condition; of another length only if not
        paired.
      denominators_2: `[P]`, its denominators, of positive expectation.
      threshold: boundary of the null for M₁ − M₂.
      alternative: the side of the threshold that the claim is on, or "two-sided".
      paired: whether entry p of both conditions shares seeds and data. If so, a pair that is left
        out of one condition is left out of both.
      margin: half-width of the equivalence that is the reverse of a two-sided claim, above 0; None
        for a one-sided claim.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if an argument is out of range, or a margin and a two-sided alternative do not
        come together.

    Source: framework.md, Definition 1; Welch (1947).

    Examples:
      >>> first, second = ([0.8, 0.9, 0.8], [1.0, 1.1, 1.0]), ([0.2, 0.3, 0.2], [1.0, 1.0, 1.0])
      >>> test = stats.ratio_difference(*first, *second, alternative="greater", paired=True)
      >>> round(test.estimate, 3), test.p_value < 0.01
      (0.573, True)
    """
    thresholds = _thresholds(threshold, alternative, margin)
    level = _quantile_level(confidence)
    if paired:
        (num_1, den_1, num_2, den_2), num_excluded = _valid(
            numerators_1, denominators_1, numerators_2, denominators_2
        )
    else:
        (num_1, den_1), excluded_1 = _valid(numerators_1, denominators_1)
        (num_2, den_2), excluded_2 = _valid(numerators_2, denominators_2)
        num_excluded = max(excluded_1, excluded_2)
    num_pairs = min(num_1.size, num_2.size)
    ratio_1, z_1, relative_1 = _linearize(num_1, den_1)
    ratio_2, z_2, relative_2 = _linearize(num_2, den_2)
    point = _or(ratio_1 - ratio_2, 0.0)
    undecided = Estimate(point, -math.inf, math.inf, num_pairs, num_excluded)
    if num_pairs < 2 or not (den_1.sum() > 0 and den_2.sum() > 0):
        return _decision(undecided, 1.0, 1.0)
    with np.errstate(all="ignore"):
        if paired:
            variance, df = np.var(z_1 - z_2, ddof=1) / num_pairs, num_pairs - 1
        else:
            v_1, v_2 = (np.var(z, ddof=1) / z.size for z in (z_1, z_2))
            variance = v_1 + v_2
            share = v_1 / variance if variance > 0 else 0.5
            df = 1 / (share**2 / (z_1.size - 1) + (1 - share) ** 2 / (z_2.size - 1))
        se = np.sqrt(variance)
        # The largest of the terms whose rounding is left in z.
        terms = (ratio_1 * relative_1, z_1, ratio_2 * relative_2, z_2, thresholds)
        rounding = ROUNDING * max(np.abs(term).max() for term in terms)
        half_width = special.stdtrit(df, level) * se
    if not (np.isfinite(half_width) and np.isfinite(rounding)):
        return _decision(undecided, 1.0, 1.0)
    p_values = [
        _t_p_values(point - value, float(se), float(df), float(rounding)) for value in thresholds
    ]
    estimate = undecided._replace(low=float(point - half_width), high=float(point + half_width))
    return _decision(estimate, *_order(alternative, p_values))


def mean_equivalence(
    values: ArrayLike, low: float, high: float, *, confidence: float = 0.95
) -> Decision:
    """Returns the mean with its t interval and two one-sided tests (TOST) of low < mean < high.

    Args:
      values: `[P]`, a value of each pair.
      low: lower margin, in the units of values.
      high: upper margin, in the units of values; above low.
      confidence: level of the interval, in (0, 1). The TOST at level α holds where the interval of
        confidence 1 − 2α lies within the margins: p_value < .05 belongs to the 90 % interval.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> test = stats.mean_equivalence([0.01, -0.02, 0.0, 0.01], -0.05, 0.05)
      >>> test.p_value < 0.05  # within the margins, which a p-value of "≠ 0" could not say
      True
    """
    denominators = np.ones(column(values).shape)
    return ratio_equivalence(values, denominators, low, high, confidence=confidence)


def ratio_equivalence(
    numerators: ArrayLike,
    denominators: ArrayLike,
    low: float,
    high: float,
    *,
    confidence: float = 0.95,
) -> Decision:
    """Returns the ratio of sums with Fieller's interval and a TOST of low < ratio < high.

    p_value is the larger p of "above low" and "below high"; p_reverse, of a ratio outside its
    margins on whichever side, is twice the smaller p of "below low" and "above high".

    Args:
      numerators: `[P]`, the numerator of each pair.
      denominators: `[P]`, the denominator of each pair, of positive expectation.
      low: lower margin of the ratio.
      high: upper margin of the ratio; above low.
      confidence: level of the interval, in (0, 1), see `mean_equivalence`.

    Raises:
      ValueError: if an argument is out of range.

    Source: Schuirmann (1987).
    """
    if not low < high:
        raise ValueError(f"margins must satisfy low < high, got low={low}, high={high}")
    estimate, [(above_low, below_low), (above_high, below_high)] = _ratio_tests(
        numerators, denominators, [low, high], confidence
    )
    outside = min(1.0, 2 * min(below_low, above_high))
    return _decision(estimate, max(above_low, below_high), outside)


def holm(p_values: ArrayLike, family_size: int) -> np.ndarray:
    """Returns Holm-adjusted p-values `[N]` in the order given, capped at 1.

    Args:
      p_values: `[N]` raw p-values in [0, 1].
      family_size: number of hypotheses in the whole family, at least N; those that are not given
        enter as p = 1.

    Raises:
      ValueError: if a p-value is outside [0, 1] or NaN, or more are given than the family has.

    Formula: for p in ascending order, the running maximum of (family_size − i) p_i, i from 0.
    Source: Holm (1979).

    Examples:
      >>> stats.holm([0.001, 0.01], family_size=20).round(3).tolist()  # 18 more were not run
      [0.02, 0.19]
    """
    p = column(p_values)
    if not (inside := (p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {p[~inside][0]}")
    if family_size < p.size:
        raise ValueError(f"family_size must be at least {p.size} (p-values), got {family_size}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    steps = (family_size - np.arange(p.size)) * p[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def auc(scores: ArrayLike, positive: ArrayLike, strata: ArrayLike | None = None) -> Concordance:
    """Returns the concordant and the comparable (positive, negative) pairs of examples.

    Only examples of one stratum are compared. Summed over the pairs of a population, the ratio is
    its AUC. A pair with a score that is not finite gives NaN for both, and so is left out of the
    ratio.

    Args:
      scores: `[B]`, the score of each example.
      positive: `[B]` bool, true for positive examples.
      strata: `[B]` labels of any sortable type; None: all examples are one stratum.

    Raises:
      ValueError: if the lengths differ.

    Formula: Mann–Whitney, from the mid-ranks of the positives within their stratum.

    Examples:
      >>> counts = stats.auc([0.1, 0.4, 0.8, 0.9], [False, True, False, True])
      >>> counts.concordant / counts.comparable
      0.75
    """
    score, is_positive = column(scores), np.asarray(positive, bool)
    label = np.zeros(score.size) if strata is None else np.asarray(strata)
    if not score.shape == is_positive.shape == label.shape:
        raise ValueError(
            "scores, positive and strata must have one shape [B], got "
            f"{score.shape}, {is_positive.shape}, {label.shape}"
        )
    if not np.isfinite(score).all():
        return Concordance(math.nan, math.nan)
    if not score.size:
        return Concordance(0.0, 0.0)
    _, stratum = np.unique(label, return_inverse=True)
    # One ranking serves all strata: ordered by stratum, then score; earlier strata are subtracted.
    rank = stats.rankdata(stratum * (score.size + 1) + stats.rankdata(score, method="dense"))
    num = np.bincount(stratum)
    num_positive = np.bincount(stratum, weights=is_positive)
    before = np.cumsum(num) - num
    below = np.sum((rank - before[stratum])[is_positive])
    concordant = below - np.sum(num_positive * (num_positive + 1)) / 2
    return Concordance(float(concordant), float(np.sum(num_positive * (num - num_positive))))


def slope(x: ArrayLike, y: ArrayLike) -> SlopeSums:
    """Returns `Σ (x − x̄)(y − ȳ)` and `Σ (x − x̄)²`, whose ratio is the slope of y on x.

    Summed over the pairs of a population, the ratio is the slope with an intercept for each pair.
    A pair with a value that is not finite gives NaN for both, and so is left out of the ratio.

    Args:
      x: `[B]`, the predictor of each example.
      y: `[B]`, the outcome of each example.

    Raises:
      ValueError: if the lengths differ.

    Examples:
      >>> sums = stats.slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
      >>> sums.numerator / sums.denominator
      2.0
    """
    columns = _columns(x, y)
    if not valid_pairs(*columns).all():
        return SlopeSums(math.nan, math.nan)
    if not columns[0].size:
        return SlopeSums(0.0, 0.0)
    centred_x, centred_y = (values - values.mean() for values in columns)
    return SlopeSums(float(centred_x @ centred_y), float(centred_x @ centred_x))


def _linearize(num: np.ndarray, den: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns M̂ (NaN where undefined), z `[P]` and den / mean(den) `[P]` of valid pairs."""
    with np.errstate(all="ignore"):
        ratio = np.sum(num) / np.sum(den)
        ratio = ratio if np.isfinite(ratio) else np.nan
        mean = np.sum(den) / max(den.size, 1)
        return float(ratio), (num - ratio * den) / mean, den / mean


def _ratio_tests(
    numerators: ArrayLike,
    denominators: ArrayLike,
    thresholds: Sequence[float],
    confidence: float,
) -> tuple[Estimate, list[tuple[float, float]]]:
    """Returns Fieller's estimate and, per threshold, the p of "ratio above" and of "below"."""
    estimate = fieller(numerators, denominators, confidence=confidence)
    (num, den), _ = _valid(numerators, denominators)
    p_values = []
    for threshold in thresholds:
        _check_threshold(threshold)
        if num.size < 2 or not den.sum() > 0:
            estimate = estimate._replace(low=-math.inf, high=math.inf)
            p_values.append((1.0, 1.0))
            continue
        size = max(np.abs(num).max(), np.abs(threshold * den).max())
        values = (num - threshold * den) / (size or 1.0)
        se = float(np.std(values, ddof=1)) / math.sqrt(num.size)
        p_values.append(_t_p_values(float(values.mean()), se, num.size - 1, ROUNDING))
    return estimate, p_values


def _t_p_values(distance: float, se: float, df: float, rounding: float) -> tuple[float, float]:
    """Returns the one-sided p of "distance > 0" and of "distance < 0"."""
    if not se > rounding:
        return float(not distance > rounding), float(not distance < -rounding)
    t = distance / se
    return float(special.stdtr(df, -t)), float(special.stdtr(df, t))


def _thresholds(threshold: float, alternative: Alternative, margin: float | None) -> list[float]:
    """Returns the threshold and, for a two-sided test, both ends of its margin."""
    _check_alternative(alternative)
    _check_threshold(threshold)
    if alternative != "two-sided":
        if margin is not None:
            raise ValueError(f"margin is of a two-sided alternative, got {margin}")
        return [threshold]
    if margin is None or not 0 < margin < LARGEST:
        raise ValueError(f"margin of a two-sided alternative must be above 0, got {margin}")
    return [threshold, threshold - margin, threshold + margin]


def _order(
    alternative: Alternative, p_values: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Returns the (greater, less) of `_thresholds` as (claim, reverse)."""
    greater, less = p_values[0]
    if alternative == "two-sided":
        (above_low, _), (_, below_high) = p_values[1:]
        return min(1.0, 2 * min(greater, less)), max(above_low, below_high)
    return (greater, less) if alternative == "greater" else (less, greater)


def _decision(estimate: Estimate, p_value: float, p_reverse: float) -> Decision:
    """Returns an estimate together with its p-values."""
    return Decision(*estimate[:3], p_value, p_reverse, *estimate[3:])


def _columns(*arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    """Returns arrays as float64 columns of one length."""
    columns = tuple(column(array) for array in arrays)
    if len({values.size for values in columns}) > 1:
        raise ValueError(f"arrays must have one length, got {[c.size for c in columns]}")
    return columns


def _valid(*arrays: ArrayLike) -> tuple[tuple[np.ndarray, ...], int]:
    """Returns the arrays without the pairs that are not valid in all, and the count of these."""
    columns = _columns(*arrays)
    mask = valid_pairs(*columns)
    return tuple(values[mask] for values in columns), int(np.sum(~mask))


def _or(value: float, otherwise: float) -> float:
    """Returns value as a float, or `otherwise` where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else otherwise


def _quantile_level(confidence: float) -> float:
    """Returns the level of the upper quantile of a two-sided interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return (1 + confidence) / 2


def _check_alternative(alternative: str) -> None:
    """Checks the name of an alternative."""
    if alternative not in ("greater", "less", "two-sided"):
        raise ValueError(
            f"alternative must be 'greater', 'less' or 'two-sided', got {alternative!r}"
        )


def _check_threshold(threshold: float) -> None:
    """Checks that a threshold is finite and its square does not overflow."""
    if not abs(threshold) < LARGEST:
        raise ValueError(f"threshold must lie within ±{LARGEST:g}, got {threshold}")
