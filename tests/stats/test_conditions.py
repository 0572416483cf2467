"""Sign flips, fits by factor, anchored lines: brute force, SciPy, least squares, planted truth."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from halfway import stats

SIDES = ("greater", "less")
FACTORS = np.array(["n", "n", "ρ", "width", "ρ", "n", "depth"])


def _rng(seed=0):
    return np.random.default_rng(seed)


# Sign flips


@pytest.mark.quick
def test_sign_flips_hand_computed():
    # Eight assignments of ±1 ±2 ±4; sums of at least 1 + 2 + 4, of at least 1 − 2 + 4.
    assert stats.sign_flip_test([1.0, 2.0, 4.0])[3:5] == (1 / 8, 1.0)
    test = stats.sign_flip_test([1.0, -2.0, 4.0])
    assert (test.estimate, test.p_value, test.p_reverse) == (1.0, 3 / 8, 6 / 8)
    assert (test.num_factors, test.num_excluded) == (3, 0)
    assert stats.sign_flip_test([1.0, -2.0, 4.0], alternative="less")[3:5] == (6 / 8, 3 / 8)


@pytest.mark.quick
def test_a_single_factor_is_a_coin():
    assert stats.sign_flip_test([0.3])[:5] == (0.3, -math.inf, math.inf, 0.5, 1.0)
    assert stats.sign_flip_test([-0.3])[3:5] == (1.0, 0.5)
    assert stats.sign_flip_test([0.0])[3:5] == (1.0, 1.0)


@pytest.mark.parametrize("number", [1, 2, 5, 8])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_p_is_the_share_of_assignments(number, threshold):
    means = _rng(number).normal(0.5, 1, number)
    distances = means - threshold
    flipped = [np.mean(distances * signs) for signs in itertools.product((1, -1), repeat=number)]
    bound = 1e-12
    greater = np.mean(np.array(flipped) >= distances.mean() - bound)
    less = np.mean(np.array(flipped) <= distances.mean() + bound)
    test = stats.sign_flip_test(means, threshold)
    assert test[3:5] == (greater, less)
    assert stats.sign_flip_test(means, threshold, alternative="less")[3:5] == (less, greater)
    assert test.estimate == pytest.approx(means.mean(), rel=1e-12)


@pytest.mark.parametrize("side", SIDES)
def test_p_is_scipys(side):
    means = _rng(1).normal(0.3, 1, 11)
    expected = scipy.stats.permutation_test(
        (means,), np.mean, permutation_type="samples", alternative=side, n_resamples=2**11
    )
    assert stats.sign_flip_test(means, alternative=side).p_value == expected.pvalue


def test_ties_up_to_rounding_count():
    # .1 + .2 and .3 differ by an ulp: assignments that differ by it tie.
    means = np.array([0.1, 0.2, -0.3, 0.1 + 0.2])
    exact = stats.sign_flip_test(np.round(10 * means))
    # Of 1, 2, −3, 3 six subsets sum to 0 or less, among them {1, 2, −3} and {−3, 3}, 13 to 0 or
    # more.
    assert stats.sign_flip_test(means)[3:5] == exact[3:5] == (6 / 16, 13 / 16)
    for scale in (1e-100, 1e100):
        assert stats.sign_flip_test(scale * means)[3:5] == exact[3:5]
    # Distances that are 0 but for rounding are no evidence.
    assert stats.sign_flip_test([0.1 + 0.2] * 6, 0.3)[3:5] == (1.0, 1.0)
    assert stats.sign_flip_test(np.full(6, 0.3 + 1e-9), 0.3)[3:5] == (1 / 64, 1.0)


@pytest.mark.parametrize("number", [6, 7, 11])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_is_what_the_test_keeps(number, confidence):
    means = _rng(number).normal(1, 1, number)
    test = stats.sign_flip_test(means, confidence=confidence)
    level = (1 - confidence) / 2
    step = 1e-6
    for end, side, sign in ((test.low, "greater", -1), (test.high, "less", 1)):
        outside, inside = (
            stats.sign_flip_test(means, end + shift * step, alternative=side).p_value
            for shift in (sign, -sign)
        )
        assert outside <= level < inside
    assert test.low < test.estimate < test.high


def test_five_factors_have_no_interval_at_95_percent():
    assert stats.sign_flip_test(np.arange(1.0, 6.0))[1:3] == (-math.inf, math.inf)
    # Six have: the least and the largest mean of a subset, which are the least and largest value.
    assert stats.sign_flip_test(np.arange(1.0, 7.0))[1:3] == (1.0, 6.0)


def test_size_and_coverage_where_sizes_differ_and_tails_are_heavy():
    num_draws, scale = 2000, np.geomspace(0.01, 1, 11)
    values = scale * _rng(2).standard_cauchy((num_draws, 11))
    tests = [stats.sign_flip_test(draw) for draw in values]
    error = 4 * math.sqrt(0.05 * 0.95 / num_draws)
    for name in ("p_value", "p_reverse"):
        share = np.mean([getattr(test, name) < 0.05 for test in tests])
        assert abs(share - 0.05) < error
    covered = np.mean([test.low <= 0 <= test.high for test in tests])
    assert abs(covered - 0.95) < error


def test_order_and_unit_of_factors_do_not_matter():
    means = _rng(3).normal(0.4, 1, 10)
    test = stats.sign_flip_test(means)
    shuffled = stats.sign_flip_test(1e3 * _rng(4).permutation(means))
    assert shuffled[3:5] == test[3:5]
    np.testing.assert_allclose(shuffled[:3], 1e3 * np.array(test[:3]), rtol=1e-12)


def test_twenty_factors_and_no_more():
    # All of one sign: one assignment of 2^20 is as large.
    assert stats.sign_flip_test(np.arange(1.0, 21.0)).p_value == 2.0**-20
    with pytest.raises(ValueError, match="at most 20 factors are flipped in every way, got 21"):
        stats.sign_flip_test(np.ones(21))


def test_factors_that_are_not_finite_leave_and_are_counted():
    test = stats.sign_flip_test([1.0, np.nan, 2.0, np.inf, 4.0, 1e200])
    assert test[:-1] == stats.sign_flip_test([1.0, 2.0, 4.0])[:-1]
    assert test.num_excluded == 3
    nothing = stats.sign_flip_test([np.nan])
    assert nothing == (0.0, -math.inf, math.inf, 1.0, 1.0, 0, 1)


# Means and slopes by factor


@pytest.mark.quick
def test_factor_means_are_of_weight_one_and_in_order():
    values = np.array([1.0, 2.0, 10.0, 5.0, 20.0, 6.0, np.nan])
    by_factor = stats.factor_means(values, FACTORS)
    assert by_factor.labels.tolist() == ["n", "ρ", "width", "depth"]
    np.testing.assert_array_equal(by_factor.means, [3.0, 15.0, 5.0, np.nan])
    assert by_factor.num_excluded == 1


def test_a_factor_slope_is_weighted_least_squares():
    x, y = _rng(5).normal(size=(2, FACTORS.size))
    count = np.array([np.sum(label == FACTORS) for label in FACTORS])
    root = 1 / np.sqrt(count)
    expected = np.linalg.lstsq((root * x)[:, None], root * y, rcond=None)[0][0]
    assert stats.factor_slope(x, y, FACTORS) == pytest.approx(expected, rel=1e-12)
    # As many interventions in each: the plain slope through the origin.
    pairs = np.repeat(["a", "b", "c"], 2)
    assert stats.factor_slope(x[:6], y[:6], pairs) == pytest.approx(x[:6] @ y[:6] / (x[:6] @ x[:6]))


def test_interventions_given_twice_do_not_move_a_factor_slope():
    x, y = _rng(6).normal(size=(2, FACTORS.size))
    twice = np.concatenate([np.arange(FACTORS.size), np.flatnonzero(FACTORS == "ρ")])
    single = stats.factor_slope(x, y, FACTORS)
    assert stats.factor_slope(x[twice], y[twice], FACTORS[twice]) == pytest.approx(single)


def test_interventions_that_are_not_fitted_leave_a_fit_and_their_factors_weight():
    x, y = _rng(7).normal(size=(2, FACTORS.size))
    fitted = np.array([True, False, True, True, False, True, True])
    expected = stats.factor_slope(x[fitted], y[fitted], FACTORS[fitted])
    assert stats.factor_slope(x, y, FACTORS, fitted=fitted) == pytest.approx(expected, rel=1e-12)
    holes = np.where(fitted, y, [np.nan, np.inf, 0, 0, 1e200, 0, 0])
    assert stats.factor_slope(x, holes, FACTORS) == pytest.approx(expected, rel=1e-12)


def test_slopes_out_of_factor_are_those_of_the_other_factors():
    x, y = _rng(8).normal(size=(2, FACTORS.size))
    fitted = np.array([True, True, False, True, True, True, True])
    slopes = stats.out_of_factor_slopes(x, y, FACTORS, fitted=fitted)
    for index, label in enumerate(FACTORS):
        others = (label != FACTORS) & fitted
        expected = stats.factor_slope(x[others], y[others], FACTORS[others])
        assert slopes[index] == pytest.approx(expected, rel=1e-12)
    # Nothing of a factor is in its own slope, not even its rounding.
    changed = np.where(FACTORS == "n", 1e30, y)
    same = stats.out_of_factor_slopes(x, changed, FACTORS, fitted=fitted)
    np.testing.assert_array_equal(same[FACTORS == "n"], slopes[FACTORS == "n"])


def test_a_planted_slope_is_recovered_out_of_factor():
    x = _rng(9).normal(size=FACTORS.size)
    np.testing.assert_allclose(stats.out_of_factor_slopes(x, -1.7 * x, FACTORS), -1.7)
    assert stats.factor_slope(x, -1.7 * x, FACTORS) == pytest.approx(-1.7)


def test_what_does_not_move_predicts_no_change():
    still, y = np.zeros(FACTORS.size), np.ones(FACTORS.size)
    assert stats.factor_slope(still, y, FACTORS) == 0.0
    np.testing.assert_array_equal(stats.out_of_factor_slopes(still, y, FACTORS), 0.0)
    assert stats.factor_slope([np.nan], [1.0], ["n"]) == 0.0
    # A predictor that one factor alone moves says nothing of that factor out of it.
    alone = np.where(FACTORS == "width", 2.0, 0.0)
    slopes = stats.out_of_factor_slopes(alone, y, FACTORS)
    np.testing.assert_array_equal(slopes, np.where(FACTORS == "width", 0.0, 0.5))


# Without each factor


@pytest.mark.quick
def test_without_each_factor():
    values = np.array([1.0, 1.0, 2.0, 3.0, 4.0, 1.0, 9.0])
    np.testing.assert_allclose(
        stats.without_each_factor(values, FACTORS), [18 / 4, 15 / 5, 18 / 6, 12 / 6]
    )
    table = np.stack([values, np.full(7, 2.0)], 1)
    ratios = stats.without_each_factor(table, FACTORS, lambda rows: rows[:, 0].sum() / len(rows))
    np.testing.assert_allclose(ratios, stats.without_each_factor(values, FACTORS))


def test_a_sign_holds_where_no_factor_carries_it():
    spread, carried = np.full(7, 0.125), np.where(FACTORS == "ρ", 1.0, -0.1)
    assert stats.sign_holds(spread, FACTORS)
    assert carried.mean() > 0 and not stats.sign_holds(carried, FACTORS)
    # On the other side of its threshold a statement holds as firmly, and no less.
    assert stats.sign_holds(-spread, FACTORS)
    assert not stats.sign_holds(-carried, FACTORS)
    assert stats.sign_holds(spread, FACTORS, 0.2)
    assert not stats.sign_holds(spread, FACTORS, 0.125)  # on it
    assert not stats.sign_holds(np.full(7, np.nan), FACTORS)
    assert stats.sign_holds(carried, FACTORS, statistic_fn=np.max) is False  # −.1 without ρ
    assert stats.sign_holds(carried, FACTORS, -0.2, statistic_fn=np.min)


# Anchored lines


def test_an_anchored_line_is_least_squares_through_its_anchor():
    x, y = _rng(10).normal(size=(12, 3)), _rng(11).normal(size=12)
    anchor, height = np.array([0.5, -1.0, 2.0]), 0.7
    slopes = stats.anchored_slopes(x, y, anchor, height)
    residuals = y - height - (x - anchor) @ slopes
    np.testing.assert_allclose((x - anchor).T @ residuals, 0, atol=1e-12)
    # The anchor itself, however often it is added, moves nothing.
    more_x, more_y = np.vstack([x, np.tile(anchor, (5, 1))]), np.append(y, np.full(5, height))
    np.testing.assert_allclose(stats.anchored_slopes(more_x, more_y, anchor, height), slopes)


def test_through_the_means_it_is_the_line_with_an_intercept():
    x, y = _rng(12).normal(3, 1, (2, 20))
    line = scipy.stats.linregress(x, y)
    assert stats.anchored_slope(x, y, x.mean(), y.mean()) == pytest.approx(line.slope, rel=1e-12)
    # And the intercept is as another predictor, a column of ones, through the origin.
    both = stats.anchored_slopes(np.stack([x, np.ones(20)], 1), y)
    np.testing.assert_allclose(both, [line.slope, line.intercept], rtol=1e-10)


def test_each_intervention_may_have_the_base_of_its_architecture():
    x, truth = _rng(13).normal(size=(9, 2)), np.array([1.5, -0.5])
    bases, heights = _rng(14).normal(size=(9, 2)), _rng(15).normal(size=9)
    y = heights + (x - bases) @ truth
    np.testing.assert_allclose(stats.anchored_slopes(x, y, bases, heights), truth)
    single = stats.anchored_slope(x[:, 0], 3 * (x[:, 0] - bases[:, 0]), bases[:, 0])
    assert single == pytest.approx(3.0)


def test_predictors_that_do_not_move_and_values_that_are_not_finite():
    x = np.array([1.0, 2.0, np.nan, 4.0])
    assert stats.anchored_slope(x, [2.0, 4.0, 5.0, 8.0]) == pytest.approx(2.0)
    assert stats.anchored_slope(x, [2.0, 4.0, 5.0, np.inf]) == pytest.approx(2.0)
    assert stats.anchored_slope([1.0, 1.0], [3.0, 5.0], 1.0) == 0.0
    assert stats.anchored_slope([np.nan], [1.0]) == 0.0
    # Two that always move together share the slope.
    twins = np.stack([x[:2], x[:2]], 1)
    np.testing.assert_allclose(stats.anchored_slopes(twins, [2.0, 4.0]), 1.0)


def test_mistakes():
    with pytest.raises(ValueError, match="'greater' or 'less', got 'two-sided'"):
        stats.sign_flip_test([1.0], alternative="two-sided")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got 95"):
        stats.sign_flip_test([1.0], confidence=95)
    with pytest.raises(ValueError, match=r"threshold must lie within .* got nan"):
        stats.sign_flip_test([1.0], np.nan)
    with pytest.raises(ValueError, match=r"one axis, got an array of shape \(1, 2\)"):
        stats.sign_flip_test([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"factors must have shape \(2,\), one a value, got \(1,"):
        stats.factor_means([1.0, 2.0], ["n"])
    with pytest.raises(ValueError, match=r"one shape \[N\], got \(2,\), \(3,\), \(2,\)"):
        stats.factor_slope(np.ones(2), np.ones(3), ["n", "n"])
    with pytest.raises(ValueError, match="out of factor need at least 2 factors, got 1"):
        stats.out_of_factor_slopes(np.ones(2), np.ones(2), ["n", "n"])
    with pytest.raises(ValueError, match="to leave a factor out at least 2 are needed, got 1"):
        stats.without_each_factor(np.ones(2), ["n", "n"])
    with pytest.raises(ValueError, match=r"shape \[N, D\] with N = 2 \(outcomes\), got \(3, 1\)"):
        stats.anchored_slopes(np.ones((3, 1)), np.ones(2))
