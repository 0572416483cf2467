"""Composite statistics over pairs: influence values, their t-test, and the bootstrap.

A mean error of predictions, a sum of coefficients or the ratio of two such has no numerators and
denominators of its own. It is given here as a function of *weights of pairs*: `[R, P]` weights
give `[R]` values, the same for all conditions, since a pair is the same draw in each. Weights of 1
give the estimate, a weight of 0 deletes a pair, multinomial weights resample. So deletions and
bootstrap are one call each. NumPy, float64.

What holds for pairs in `inference` holds here: pairs that are not valid leave and are counted,
fewer than two, or a statistic that is undefined for all pairs or with any one deleted, decide
nothing.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from halfway.stats.inference import Alternative, Decision, mean_test
from halfway.stats.validity import LARGEST, ROUNDING

WeightedStatistic = Callable[[np.ndarray], np.ndarray]
"""From weights of pairs `[R, P]` to values `[R]`; NaN where undefined. A factor common to all
weights of a row must not matter, nor what a pair of weight 0 has."""
_BATCH = 4_000_000
"""How many weights are drawn at once."""


class Influence(NamedTuple):
    """A statistic and what each pair adds to its error.

    Attributes:
      values: `[P]`, of mean 0 over the valid pairs; NaN for a pair that is left out, and for all
        where the statistic decides nothing.
      estimate: the statistic over the valid pairs; 0 where undefined.
    """

    values: np.ndarray
    estimate: float


def weighted_ratio(
    weights: np.ndarray, numerators: ArrayLike, denominators: ArrayLike
) -> np.ndarray:
    """Returns ratios of weighted sums over pairs, `[R, ...]`: what most statistics are made of.

    An entry whose numerator or denominator is not finite does not count. The ratio is NaN where the
    denominators do not sum to more than 0.

    Args:
      weights: `[R, P]`, of `influence_values` or `pair_bootstrap`.
      numerators: `[..., P]`, pairs last, such as `[N, P]` of N conditions.
      denominators: `[..., P]`, broadcast against the numerators; 1 for a mean over pairs.

    Examples:
      >>> both, second = np.ones(2), np.array([0.0, 1.0])
      >>> stats.weighted_ratio(np.stack([both, second]), [[1.0, 2.0]], [[2.0, 4.0]]).tolist()
      [[0.5], [0.5]]
    """
    num, den = np.broadcast_arrays(
        np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    )
    valid = (np.abs(num) < LARGEST) & (np.abs(den) < LARGEST)
    above, below = (
        np.moveaxis(np.where(valid, values, 0.0) @ np.transpose(weights), -1, 0)
        for values in (num, den)
    )
    positive = below > 0
    return np.where(positive, above / np.where(positive, below, 1.0), np.nan)


def influence_values(
    statistic_fn: WeightedStatistic, num_pairs: int, *, valid: ArrayLike | None = None
) -> Influence:
    """Returns what each pair adds to the error of a statistic, from deleting each in turn.

    Other tests than `composite_test` take `estimate + values`, as values over pairs. Of a ratio of
    sums these are the values of `linearized` to first order in 1/P.

    Args:
      statistic_fn: from weights of pairs `[R, P]` to values `[R]`.
      num_pairs: P.
      valid: `[P]` bool, pairs that count, of `valid_pairs`; None: all.

    Raises:
      ValueError: if shapes do not fit.

    Formula: pseudo-values `P θ − (P − 1) θ_(−p)` minus their mean.
    Source: Tukey (1958); Efron and Stein (1981): their variance is not too small on average.

    Examples:
      >>> values = np.array([1.0, 2.0, 6.0])
      >>> influence = stats.influence_values(lambda w: w @ values / w.sum(1), 3)
      >>> influence.estimate, influence.values.round(6).tolist()  # of a mean: what it differs by
      (3.0, [-2.0, -1.0, 3.0])
    """
    mask = _mask(num_pairs, valid)
    number = int(mask.sum())
    undecided = np.full(num_pairs, np.nan)
    if not number:
        return Influence(undecided, 0.0)
    kept = np.tile(mask.astype(float), (number + 1, 1))
    kept[np.arange(1, number + 1), np.flatnonzero(mask)] = 0.0
    estimate = float(_evaluate(statistic_fn, kept[:1])[0])
    estimate = estimate if abs(estimate) < LARGEST else math.nan
    if number < 2 or math.isnan(estimate):
        return Influence(undecided, 0.0 if math.isnan(estimate) else estimate)
    deleted = _evaluate(statistic_fn, kept[1:])
    if not (np.abs(deleted) < LARGEST).all():
        return Influence(undecided, estimate)
    influence = (number - 1) * (deleted.mean() - deleted)
    scale = max(abs(estimate), float(np.abs(deleted).max()))
    if not np.abs(influence).max() > ROUNDING * number * scale:
        influence = np.zeros(number)  # no spread but that of rounding
    values = undecided.copy()
    values[mask] = influence
    return Influence(values, estimate)


def composite_test(
    statistic_fn: WeightedStatistic,
    num_pairs: int,
    threshold: float = 0.0,
    *,
    alternative: Alternative,
    margin: float | None = None,
    valid: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Decision:
    """Returns a composite statistic with the t interval and t-test of its influence values.

    Args:
      statistic_fn: from weights of pairs `[R, P]` to values `[R]`.
      num_pairs: P.
      threshold: boundary of the null, in the units of the statistic.
      alternative: the side of the threshold that the claim is on, or "two-sided".
      margin: half-width of the equivalence that is the reverse of a two-sided claim, above 0; None
        for a one-sided claim.
      valid: `[P]` bool, pairs that count, of `valid_pairs`; None: all.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if an argument is out of range, or shapes do not fit.

    Examples:
      >>> measured = np.array([[0.5, 0.6, 0.4, 0.5], [0.2, 0.3, 0.2, 0.2]])  # [N, P]
      >>> predicted = np.array([0.48, 0.25])
      >>> def error(weights):
      ...     return np.abs(stats.weighted_ratio(weights, measured, 1.0) - predicted).mean(-1)
      >>> test = stats.composite_test(error, 4, 0.2, alternative="less")
      >>> round(test.estimate, 4), test.p_value < 0.05
      (0.0225, True)
    """
    mask = _mask(num_pairs, valid)
    influence = influence_values(statistic_fn, num_pairs, valid=mask)
    sample = influence.estimate + influence.values[mask]
    decided = np.isfinite(sample).all()
    decision = mean_test(
        sample if decided else [],
        threshold,
        alternative=alternative,
        margin=margin,
        confidence=confidence,
    )
    counts = {"num_pairs": int(mask.sum()), "num_excluded": int((~mask).sum())}
    if not decided:
        return decision._replace(estimate=influence.estimate, **counts)
    return decision._replace(**counts)


def pair_bootstrap(
    statistic_fn: WeightedStatistic,
    num_pairs: int,
    rng: np.random.Generator,
    *,
    num_draws: int = 10_000,
    valid: ArrayLike | None = None,
) -> np.ndarray:
    """Returns a statistic of resampled pairs, `[num_draws]`, the same pairs in all conditions.

    For statistics that influence values do not serve, such as a place where a curve first crosses a
    level. Percentiles of 16 pairs are too narrow an interval.

    Args:
      statistic_fn: from weights of pairs `[R, P]` to values `[R]`.
      num_pairs: P.
      rng: a NumPy generator, which is advanced.
      num_draws: number of resamples.
      valid: `[P]` bool, pairs that count, of `valid_pairs`; None: all.

    Returns:
      `[num_draws]`; NaN where the statistic is undefined, and where fewer than two pairs count.

    Raises:
      ValueError: if shapes do not fit.

    Formula: of n valid pairs n − 1 are drawn with replacement and weighted by n/(n − 1), so that
    the variance of a mean is that of its standard error, s²/n.
    Source: Rao and Wu (1988).

    Examples:
      >>> values, rng = np.array([1.0, 2.0, 6.0]), np.random.default_rng(0)
      >>> draws = stats.pair_bootstrap(lambda w: w @ values / w.sum(1), 3, rng)
      >>> error = np.std(values, ddof=1) / np.sqrt(3)
      >>> f"{draws.std() / error:.1f} of the standard error"
      '1.0 of the standard error'
    """
    mask = _mask(num_pairs, valid)
    number = int(mask.sum())
    draws = np.full(num_draws, np.nan)
    if number < 2:
        return draws
    rows = max(1, _BATCH // num_pairs)
    for start in range(0, num_draws, rows):
        size = min(rows, num_draws - start)
        weights = np.zeros((size, num_pairs))
        drawn = rng.multinomial(number - 1, np.full(number, 1 / number), size)
        weights[:, mask] = drawn * (number / (number - 1))
        draws[start : start + size] = _evaluate(statistic_fn, weights)
    return draws


def _mask(num_pairs: int, valid: ArrayLike | None) -> np.ndarray:
    """Returns `[P]` bool, pairs that count."""
    mask = np.ones(num_pairs, bool) if valid is None else np.asarray(valid, bool)
    if mask.shape != (num_pairs,):
        raise ValueError(f"valid must have shape ({num_pairs},), one a pair, got {mask.shape}")
    return mask


def _evaluate(statistic_fn: WeightedStatistic, weights: np.ndarray) -> np.ndarray:
    """Returns the values `[R]` of a statistic, without warnings where it is undefined."""
    with np.errstate(all="ignore"):
        values = np.asarray(statistic_fn(weights), np.float64)
    if values.shape != weights.shape[:1]:
        raise ValueError(
            f"statistic_fn must return shape ({len(weights)},) for weights of shape "
            f"{weights.shape}, got {values.shape}"
        )
    return values
