"""Inference across conditions: signs of factor means, fits by factor, lines of a frozen prediction.

Conditions that differ by design are no sample: they share a handful of factors, and two quantities
that both depend on these are correlated by chance. What is compared is the mean of each factor,
each of weight 1, and its sign is flipped: under the null that no factor favours either side a sign
is a coin, whatever the sizes and however many interventions a factor has. Factors are given, and
never resampled.

Shapes: `[N]` has a number for each intervention, `[F]` for each factor. Interventions and factors
that are not finite leave and are counted, as pairs are in `inference`; what is left with nothing to
estimate is 0. NumPy, float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from halfway.stats.validity import LARGEST, ROUNDING, Side, check_side, column

MAX_FACTORS = 20
"""Factors whose signs are flipped in every way: 2^20 sums are 8 MB."""


class SignFlips(NamedTuple):
    """A mean of factor means with its exact test by sign flips, and the interval of that test.

    The first five fields are those of `Decision`.

    Attributes:
      estimate: mean over factors, each of weight 1; always finite.
      low: lower end of the interval; -inf where there are too few factors for one.
      high: upper end of the interval; inf likewise.
      p_value: of the claim; at least 2^−F, where a decision over pairs may reach 0.
      p_reverse: of the other side of the threshold.
      num_factors: factors with a finite mean.
      num_excluded: factors left out.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    p_reverse: float
    num_factors: int
    num_excluded: int


class FactorMeans(NamedTuple):
    """Means over the interventions of each factor.

    Attributes:
      labels: `[F]`, the factors in the order in which they first appear.
      means: `[F]`; NaN for a factor without a finite value.
      num_excluded: number of interventions left out.
    """

    labels: np.ndarray
    means: np.ndarray
    num_excluded: int


def sign_flip_test(
    means: ArrayLike,
    threshold: float = 0.0,
    *,
    alternative: Side = "greater",
    confidence: float = 0.95,
) -> SignFlips:
    """Returns the mean over factors and its exact test, over all 2^F assignments of signs.

    p_value is the share of assignments whose mean distance from the threshold is at least the one
    measured, which is one of them; ties up to rounding count. It is exact where every distance is
    symmetric about 0 under the null, whatever its size, and where no error is shared: that of a
    base that enters the contrasts of all factors is not seen by any flip.

    Args:
      means: `[F]`, a number for each factor, of `factor_means` or made from such.
      threshold: boundary of the null, in the units of the means.
      alternative: the side of the threshold that the claim is on.
      confidence: level of the interval, in (0, 1).

    Raises:
      ValueError: if there are more than 20 factors, or an argument is out of range.

    Formula: to flip a set S leaves the mean at least as large where the mean over S is at most the
    threshold: `p = (1 + #{S not empty: mean over S ≤ threshold})/2^F`. The interval holds the
    thresholds that neither side rejects at (1 − confidence)/2; its ends are the k-th smallest and
    largest of these means, `k = ⌊2^F (1 − confidence)/2⌋`, and infinite where k is 0.
    Source: Fisher (1935), section 21; Hartigan (1969) for the interval.

    Examples:
      >>> test = stats.sign_flip_test([0.2, 0.1, 0.3, 0.1, 0.2])  # of 32 assignments the first
      >>> test.p_value, test.p_reverse
      (0.03125, 1.0)
    """
    check_side(alternative)
    if not abs(threshold) < LARGEST:
        raise ValueError(f"threshold must lie within ±{LARGEST:g}, got {threshold}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    by_factor = column(means)
    valid = np.abs(by_factor) < LARGEST
    num_excluded, by_factor = int((~valid).sum()), by_factor[valid]
    if by_factor.size > MAX_FACTORS:
        raise ValueError(
            f"signs of at most {MAX_FACTORS} factors are flipped in every way, got "
            f"{by_factor.size}; group interventions into fewer factors"
        )
    if not by_factor.size:
        return SignFlips(0.0, -math.inf, math.inf, 1.0, 1.0, 0, num_excluded)
    distances = by_factor - threshold
    sums = _subset_sums(distances)
    slack = ROUNDING * (np.abs(by_factor).sum() + by_factor.size * abs(threshold))
    greater, less = (float(np.mean(sign * sums <= slack)) for sign in (1, -1))
    p_values = (greater, less) if alternative == "greater" else (less, greater)
    low, high = -math.inf, math.inf
    # A product such as 2^F · .025 may lie an ulp below the integer that it is.
    rank = math.floor(sums.size * (1 - confidence) / 2 * (1 + ROUNDING))
    if rank:
        subset_means = sums[1:] / _subset_sums(np.ones(by_factor.size))[1:]
        ends = np.partition(subset_means, [rank - 1, subset_means.size - rank])
        low, high = (float(threshold + ends[place]) for place in (rank - 1, -rank))
    estimate = float(threshold + distances.mean())
    return SignFlips(estimate, low, high, *p_values, by_factor.size, num_excluded)


def factor_means(values: ArrayLike, factors: ArrayLike) -> FactorMeans:
    """Returns the mean of each factor over its interventions, however many they are.

    Args:
      values: `[N]`, a number for each intervention.
      factors: `[N]`, the label of its factor.

    Raises:
      ValueError: if the lengths differ.

    Examples:
      >>> by_factor = stats.factor_means([1.0, 3.0, 5.0], ["width", "width", "depth"])
      >>> by_factor.labels.tolist(), by_factor.means.tolist()
      (['width', 'depth'], [2.0, 5.0])
    """
    numbers = column(values)
    labels, place = _places(factors, numbers.size)
    valid = np.abs(numbers) < LARGEST
    count = np.bincount(place[valid], minlength=labels.size)
    total = np.bincount(place[valid], weights=numbers[valid], minlength=labels.size)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return FactorMeans(labels, means, int((~valid).sum()))


def factor_slope(
    x: ArrayLike, y: ArrayLike, factors: ArrayLike, *, fitted: ArrayLike | None = None
) -> float:
    """Returns the slope of y on x through the origin, where each factor has weight 1.

    It is 0 where x does not move, as a line of least norm is: then the prediction is "no change".

    Args:
      x: `[N]`, the contrast of the predictor with its base, of each intervention.
      y: `[N]`, the contrast of the outcome.
      factors: `[N]`, the label of the factor of each intervention.
      fitted: `[N]` bool, interventions that enter the fit; None: all. Those with a value that is
        not finite never do.

    Raises:
      ValueError: if the lengths differ.

    Formula: `Σ w x y / Σ w x²`, w = 1/(number of fitted interventions of the same factor).

    Examples:
      >>> slope = stats.factor_slope([1.0, 1.0, 1.0], [0.0, 2.0, 4.0], ["n", "n", "depth"])
      >>> slope  # mean of 1 and 4, where that over interventions is 2
      2.5
    """
    products, squares = _factor_sums(x, y, factors, fitted)[:2]
    return float(_slopes(products.sum(), squares.sum()))


def out_of_factor_slopes(
    x: ArrayLike, y: ArrayLike, factors: ArrayLike, *, fitted: ArrayLike | None = None
) -> np.ndarray:
    """Returns for each intervention the `factor_slope` of all factors but its own, `[N]`.

    `slopes * x` predicts y out of factor, for interventions that enter no fit as well.

    Args:
      x: `[N]`, the contrast of the predictor with its base, of each intervention.
      y: `[N]`, the contrast of the outcome.
      factors: `[N]`, the label of the factor of each intervention.
      fitted: `[N]` bool, interventions that enter fits; None: all.

    Raises:
      ValueError: if the lengths differ, or there is no second factor.

    Examples:
      >>> slopes = stats.out_of_factor_slopes([1.0, 1.0, 2.0], [1.0, 2.0, 6.0], ["n", "n", "ρ"])
      >>> slopes.tolist()
      [3.0, 3.0, 1.5]
    """
    products, squares, place = _factor_sums(x, y, factors, fitted)
    if products.size < 2:
        raise ValueError(
            f"slopes out of factor need at least 2 factors, got {products.size}; fit all "
            "interventions with factor_slope"
        )
    # Summed anew without each factor: a difference of sums would leave rounding of what it held.
    others = ~np.eye(products.size, dtype=bool)
    return _slopes(others @ products, others @ squares)[place]


def without_each_factor(
    values: ArrayLike,
    factors: ArrayLike,
    statistic_fn: Callable[[np.ndarray], float] = np.mean,
) -> np.ndarray:
    """Returns a statistic of the interventions with each factor left out in turn, `[F]`.

    Args:
      values: `[N]` or `[N, ...]`, of each intervention.
      factors: `[N]`, the label of its factor; results are in the order of first appearance.
      statistic_fn: of the values that are left.

    Raises:
      ValueError: if the lengths differ, or there is no second factor.

    Examples:
      >>> left = stats.without_each_factor([1.0, 3.0, 5.0], ["width", "width", "depth"])
      >>> left.tolist()
      [5.0, 2.0]
    """
    array = np.asarray(values, np.float64)
    labels, place = _places(factors, len(array))
    if labels.size < 2:
        raise ValueError(f"to leave a factor out at least 2 are needed, got {labels.size}")
    return np.array([float(statistic_fn(array[place != f])) for f in range(labels.size)])


def sign_holds(
    values: ArrayLike,
    factors: ArrayLike,
    threshold: float = 0.0,
    *,
    statistic_fn: Callable[[np.ndarray], float] = np.mean,
) -> bool:
    """Returns whether an estimate stays on its side of a threshold with any one factor left out.

    Its side is that of the estimate over all interventions, on whichever the claim is: a claim that
    is refuted has to hold as firmly. An estimate on the threshold, or undefined, is on no side.

    Args:
      values: `[N]` or `[N, ...]`, of each intervention.
      factors: `[N]`, the label of its factor.
      threshold: in the units of the statistic.
      statistic_fn: of the values of all or some interventions; the mean by default.

    Raises:
      ValueError: if the lengths differ, or there is no second factor.

    Examples:
      >>> stats.sign_holds([0.1, 0.1, -0.1], ["n", "n", "ρ"])
      False
    """
    left = without_each_factor(values, factors, statistic_fn)
    estimate = float(statistic_fn(np.asarray(values, np.float64)))
    signs = np.sign(np.append(left, estimate) - threshold)
    return bool(np.all(signs == 1) or np.all(signs == -1))


def anchored_slopes(
    x: ArrayLike, y: ArrayLike, x_anchor: ArrayLike = 0.0, y_anchor: ArrayLike = 0.0
) -> np.ndarray:
    """Returns the slopes of the least squares line through an anchor, `[D]`.

    The line is `y = y_anchor + (x − x_anchor) · slopes`. Through the mean of x and of y it is that
    with an intercept. Slopes of predictors that do not move, or move together, are those of least
    norm. An intervention with a value that is not finite does not enter.

    Args:
      x: `[N, D]`, the predictors of each intervention.
      y: `[N]`, its outcome.
      x_anchor: the predictors at the anchor, broadcast to `[N, D]`: a base may be that of each
        intervention's own architecture.
      y_anchor: the outcome at the anchor, broadcast to `[N]`.

    Raises:
      ValueError: if x is no matrix or the lengths differ.

    Examples:
      >>> slopes = stats.anchored_slopes([[1, 0], [0, 1], [1, 1]], [3, 4, 6], y_anchor=1)
      >>> slopes.round(6).tolist()
      [2.0, 3.0]
    """
    outcome = column(y)
    predictors = np.asarray(x, np.float64)
    if predictors.ndim != 2 or len(predictors) != outcome.size:
        raise ValueError(
            f"predictors must have shape [N, D] with N = {outcome.size} (outcomes), got "
            f"{predictors.shape}"
        )
    moved = predictors - np.asarray(x_anchor, np.float64)
    change = outcome - np.asarray(y_anchor, np.float64)
    valid = (np.abs(moved) < LARGEST).all(1) & (np.abs(change) < LARGEST)
    return np.linalg.lstsq(moved[valid], change[valid], rcond=None)[0]


def anchored_slope(
    x: ArrayLike, y: ArrayLike, x_anchor: ArrayLike = 0.0, y_anchor: ArrayLike = 0.0
) -> float:
    """Returns the slope of the least squares line of one predictor through an anchor.

    Args:
      x: `[N]`, the predictor of each intervention.
      y: `[N]`, its outcome.
      x_anchor: the predictor at the anchor, or `[N]`.
      y_anchor: the outcome at the anchor, or `[N]`.

    Raises:
      ValueError: if the lengths differ.

    Formula: `Σ (x − x_anchor)(y − y_anchor) / Σ (x − x_anchor)²`; 0 where x does not move.

    Examples:
      >>> round(stats.anchored_slope([1.0, 2.0, 4.0], [3.0, 5.0, 9.0], 1.0, 3.0), 6)
      2.0
    """
    moved = column(x) - np.asarray(x_anchor, np.float64)
    return float(anchored_slopes(moved[:, None], y, 0.0, y_anchor)[0])


def _subset_sums(values: np.ndarray) -> np.ndarray:
    """Returns the sum of every subset of `[F]`, `[2^F]`, that of the empty one first."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def _factor_sums(
    x: ArrayLike, y: ArrayLike, factors: ArrayLike, fitted: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns means of x y and of x² over each factor's fitted interventions, and `_places`."""
    predictor, outcome = column(x), column(y)
    entered = np.ones(predictor.size, bool) if fitted is None else np.asarray(fitted, bool)
    if not predictor.shape == outcome.shape == entered.shape:
        raise ValueError(
            "x, y and fitted must have one shape [N], got "
            f"{predictor.shape}, {outcome.shape}, {entered.shape}"
        )
    labels, place = _places(factors, predictor.size)
    entered = entered & (np.abs(predictor) < LARGEST) & (np.abs(outcome) < LARGEST)
    predictor, outcome, own_place = predictor[entered], outcome[entered], place[entered]
    count = np.maximum(np.bincount(own_place, minlength=labels.size), 1)
    products, squares = (
        np.bincount(own_place, weights=terms, minlength=labels.size) / count
        for terms in (predictor * outcome, predictor**2)
    )
    return products, squares, place


def _slopes(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Returns products / squares, 0 where the squares are."""
    moves = squares > 0
    return np.where(moves, products / np.where(moves, squares, 1.0), 0.0)


def _places(factors: ArrayLike, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels `[F]` in the order of first appearance, and each entry's place among them."""
    listed = np.asarray(factors)
    if listed.shape != (size,):
        raise ValueError(f"factors must have shape ({size},), one a value, got {listed.shape}")
    labels, first, place = np.unique(listed, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return labels[order], np.argsort(order)[place]
