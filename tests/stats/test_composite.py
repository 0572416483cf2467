"""Influence values and their test: closed forms, the tests of ratios, simulation, resampling."""

import math

import numpy as np
import pytest

from halfway import stats

NUM_PAIRS = 16


def _rng(seed=0):
    return np.random.default_rng(seed)


def _ratios(seed, shape=(NUM_PAIRS,), ratio=0.4, mean_den=6.0):
    """Numerators and denominators, jointly normal, of expected ratio `ratio`."""
    first, second = _rng(seed).standard_normal((2, *shape))
    return ratio * mean_den + 0.7 * first + 0.7 * second, mean_den + first


def _mean(values):
    return lambda weights: weights @ values / weights.sum(1)


def _ratio(numerators, denominators):
    return lambda weights: stats.weighted_ratio(weights, numerators, denominators)


# Influence values


@pytest.mark.quick
def test_the_influence_on_a_mean_is_the_distance_from_it():
    values = _rng(1).normal(size=NUM_PAIRS)
    influence = stats.influence_values(_mean(values), NUM_PAIRS)
    assert influence.estimate == pytest.approx(values.mean())
    np.testing.assert_allclose(influence.values, values - values.mean(), rtol=1e-12)


def test_the_influence_on_a_variance_in_closed_form():
    # Without pair p the sum of squares falls by P/(P − 1) d_p², and the variance is over P − 1.
    values = _rng(2).normal(size=NUM_PAIRS)

    def variance(weights):
        mean = weights @ values / weights.sum(1)
        return weights @ values**2 / weights.sum(1) - mean**2

    influence = stats.influence_values(variance, NUM_PAIRS)
    squares = (values - values.mean()) ** 2
    factor = NUM_PAIRS / (NUM_PAIRS - 1)
    np.testing.assert_allclose(influence.values, factor * (squares - squares.mean()), rtol=1e-9)


def test_the_influence_on_a_ratio_in_closed_form_and_linearized_to_first_order():
    num, den = _ratios(3)
    influence = stats.influence_values(_ratio(num, den), NUM_PAIRS)
    linear = stats.linearized(num, den)
    assert influence.estimate == pytest.approx(linear.ratio, rel=1e-14)
    # Deleting p: θ − θ_(−p) = (num_p − θ den_p)/(Σ den − den_p), centred.
    change = (num - linear.ratio * den) / (den.sum() - den)
    np.testing.assert_allclose(influence.values, 15 * (change - change.mean()), rtol=1e-9)
    # The two differ by a share of 1/P, which falls as pairs are added.
    distances = []
    for copies in (1, 4, 16):
        many, number = (np.tile(num, copies), np.tile(den, copies)), copies * NUM_PAIRS
        values = stats.influence_values(_ratio(*many), number).values
        distances.append(np.abs(values - stats.linearized(*many).values).max())
    assert distances[0] < 0.1 * np.abs(linear.values).max()
    assert distances[0] / distances[1] == pytest.approx(4, rel=0.1)
    assert distances[1] / distances[2] == pytest.approx(4, rel=0.1)


# The test


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_of_a_mean_it_is_the_t_test(alternative):
    values = _rng(4).normal(0.3, 1, NUM_PAIRS)
    expected = stats.mean_test(values, 0.1, alternative=alternative)
    decision = stats.composite_test(_mean(values), NUM_PAIRS, 0.1, alternative=alternative)
    np.testing.assert_allclose(decision, expected, rtol=1e-9)
    two_sided = {"alternative": "two-sided", "margin": 0.2, "confidence": 0.9}
    np.testing.assert_allclose(
        stats.composite_test(_mean(values), NUM_PAIRS, 0.1, **two_sided),
        stats.mean_test(values, 0.1, **two_sided),
        rtol=1e-9,
    )


@pytest.mark.parametrize("seed", range(5))
def test_of_a_ratio_it_agrees_with_the_test_of_ratios(seed):
    num, den = _ratios(seed)
    for threshold in (0.38, 0.42):
        expected = stats.ratio_test(num, den, threshold, alternative="greater")
        decision = stats.composite_test(
            _ratio(num, den), NUM_PAIRS, threshold, alternative="greater"
        )
        assert decision.estimate == pytest.approx(expected.estimate, rel=1e-12)
        width = expected.high - expected.low
        np.testing.assert_allclose(decision[1:3], expected[1:3], atol=0.05 * width)
        assert decision.p_value == pytest.approx(expected.p_value, abs=0.015)


@pytest.mark.parametrize("seed", range(5))
def test_of_a_difference_it_agrees_with_the_paired_test_of_ratios(seed):
    (num_1, den_1), (num_2, den_2) = _ratios(seed), _ratios(seed + 50, ratio=0.35)
    num_2 = num_2 + 0.5 * (num_1 - num_1.mean())  # what pairs share cancels in part

    def difference(weights):
        first, second = (
            stats.weighted_ratio(weights, *r) for r in ((num_1, den_1), (num_2, den_2))
        )
        return first - second

    terms = (num_1, den_1, num_2, den_2)
    expected = stats.ratio_difference(*terms, alternative="greater", paired=True)
    decision = stats.composite_test(difference, NUM_PAIRS, alternative="greater")
    assert decision.estimate == pytest.approx(expected.estimate, rel=1e-9)
    width = expected.high - expected.low
    np.testing.assert_allclose(decision[1:3], expected[1:3], atol=0.05 * width)
    assert decision.p_value == pytest.approx(expected.p_value, abs=0.01)


def test_size_and_coverage_of_a_sum_of_clipped_coefficients():
    """A composite as of the law: logits of ratios of sums, pairs shared by all conditions."""
    num_draws, truth = 1500, np.array([0.2, 0.5, 0.7])
    rng = _rng(5)
    shared = rng.standard_normal((num_draws, 1, NUM_PAIRS))
    den = 6 + rng.standard_normal((num_draws, 3, NUM_PAIRS))
    noise = shared + rng.standard_normal((num_draws, 3, NUM_PAIRS))
    num = truth[:, None] * den + 0.4 * noise

    def logits(values):
        clipped = np.clip(values, 0.005, 0.995)
        return np.log(clipped / (1 - clipped)).sum(-1)

    decisions = [
        stats.composite_test(
            lambda weights, n=n, d=d: logits(stats.weighted_ratio(weights, n, d)),
            NUM_PAIRS,
            logits(truth),
            alternative="greater",
        )
        for n, d in zip(num, den, strict=True)
    ]
    # First order: what is of second order is allowed for beside the binomial error.
    error = 4 * math.sqrt(0.05 * 0.95 / num_draws) + 0.01
    for name in ("p_value", "p_reverse"):
        assert abs(np.mean([getattr(d, name) < 0.05 for d in decisions]) - 0.05) < error
    covered = np.mean([d.low <= logits(truth) <= d.high for d in decisions])
    assert abs(covered - 0.95) < error


def test_the_standard_error_of_a_mean_error_is_that_over_draws():
    rng, num_draws = _rng(6), 800
    level = np.array([0.1, 0.4, 0.6])
    values = level[:, None] + 0.1 * rng.standard_normal((num_draws, 3, NUM_PAIRS))
    predicted = np.array([0.3, 0.2, 0.5])

    def error(data):
        return lambda weights: np.abs(stats.weighted_ratio(weights, data, 1.0) - predicted).mean(-1)

    influences = [stats.influence_values(error(data), NUM_PAIRS) for data in values]
    measured = np.std([influence.estimate for influence in influences])
    errors = [np.std(i.values, ddof=1) / math.sqrt(NUM_PAIRS) for i in influences]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(measured, rel=0.1)


# Pairs that leave, and what decides nothing


def test_pairs_that_are_not_valid_leave_and_are_counted():
    num, den = (np.stack(values) for values in zip(_ratios(7), _ratios(8), strict=True))
    more_num, more_den = (np.insert(v, [3, 9], 1.0, 1) for v in (num, den))
    more_num[0, 3], more_den[1, 10] = np.nan, np.inf
    valid = stats.valid_pairs(more_num, more_den)
    np.testing.assert_array_equal(np.flatnonzero(~valid), [3, 10])

    def contrast(numerators, denominators):
        return lambda w: np.diff(stats.weighted_ratio(w, numerators, denominators))[:, 0]

    options = {"alternative": "greater"}
    expected = stats.composite_test(contrast(num, den), NUM_PAIRS, **options)
    decision = stats.composite_test(
        contrast(more_num, more_den), NUM_PAIRS + 2, valid=valid, **options
    )
    np.testing.assert_allclose(decision[:-1], expected[:-1], rtol=1e-9)
    assert decision[-2:] == (NUM_PAIRS, 2)
    influence = stats.influence_values(contrast(more_num, more_den), NUM_PAIRS + 2, valid=valid)
    np.testing.assert_array_equal(np.isnan(influence.values), ~valid)


def test_too_little_decides_nothing():
    values = np.array([0.25, 0.5, np.nan])

    mean = _ratio(values, np.ones(3))

    def test(valid, statistic_fn=mean):
        return stats.composite_test(statistic_fn, 3, alternative="greater", valid=valid)

    nothing = (-math.inf, math.inf, 1.0, 1.0)
    assert test([False] * 3) == (0.0, *nothing, 0, 3)
    assert test([True, False, False]) == (0.25, *nothing, 1, 2)
    assert test([True, True, False]).num_pairs == 2
    # A ratio that one deletion takes the denominator from, and one that has none at all.
    weak = _ratio(np.ones(3), np.array([3.0, -1.0, -1.0]))
    assert test([True] * 3, weak) == (3.0, *nothing, 3, 0)
    assert test([True] * 3, _ratio(np.ones(3), -np.ones(3))) == (0.0, *nothing, 3, 0)


def test_no_spread_is_a_point():
    third = np.full(NUM_PAIRS, 0.1 + 0.2)  # not the float .3

    def test(threshold):
        return stats.composite_test(
            lambda w: np.sqrt(w @ third**2 / w.sum(1)), NUM_PAIRS, threshold, alternative="greater"
        )

    for threshold, p_values in ((0.3, (1, 1)), (0.2, (0, 1)), (0.4, (1, 0))):
        decision = test(threshold)
        assert decision[3:5] == p_values
        assert decision[:3] == pytest.approx((0.3, 0.3, 0.3), abs=1e-14)
    small = third + 1e-9 * _rng(9).normal(size=NUM_PAIRS)
    decision = stats.composite_test(_mean(small), NUM_PAIRS, 0.3, alternative="greater")
    expected = stats.mean_test(small, 0.3, alternative="greater")
    assert decision.p_value == pytest.approx(expected.p_value, rel=1e-4)


def test_the_order_of_pairs_does_not_matter():
    num, den = _ratios(10)
    order = _rng(11).permutation(NUM_PAIRS)
    shuffled = stats.influence_values(_ratio(num[order], den[order]), NUM_PAIRS)
    influence = stats.influence_values(_ratio(num, den), NUM_PAIRS)
    np.testing.assert_allclose(shuffled.values, influence.values[order], rtol=1e-9)


# Weighted ratios and the bootstrap


def test_weighted_ratios_by_loop():
    rng = _rng(12)
    num, den = rng.normal(size=(2, 3, 5)), rng.uniform(1, 2, (2, 3, 5))
    weights = rng.integers(0, 3, (4, 5)).astype(float)
    num[0, 1, 2], den[1, 0, 3] = np.nan, np.inf
    ratios = stats.weighted_ratio(weights, num, den)
    assert ratios.shape == (4, 2, 3)
    for r, i, j in np.ndindex(4, 2, 3):
        kept = np.isfinite(num[i, j]) & np.isfinite(den[i, j])
        top, bottom = (weights[r][kept] @ v[i, j][kept] for v in (num, den))
        assert ratios[r, i, j] == pytest.approx(top / bottom, rel=1e-12)
    negative = stats.weighted_ratio(np.ones((1, 5)), num, -den)
    assert np.isnan(negative).all()


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    values = _rng(13).normal(size=8)
    draws = stats.pair_bootstrap(_mean(values), 8, _rng(14), num_draws=40_000)
    assert draws.shape == (40_000,)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(np.std(values, ddof=1) / math.sqrt(8), rel=0.02)


def test_the_bootstrap_agrees_with_influence_values_and_takes_the_same_pairs_everywhere():
    num, den = _ratios(15, (3, NUM_PAIRS))
    num[1] = 2 * num[0] * den[1] / den[0]  # twice the first coefficient, whatever the pairs

    def tied(weights):
        ratios = stats.weighted_ratio(weights, num[:2] / den[:2], 1.0)
        return ratios[:, 1] - 2 * ratios[:, 0]

    draws = stats.pair_bootstrap(tied, NUM_PAIRS, _rng(16), num_draws=100)
    np.testing.assert_allclose(draws, 0, atol=1e-12)

    def contrast(weights):
        ratios = stats.weighted_ratio(weights, num, den)
        return ratios[:, 2] - ratios[:, 0]

    draws = stats.pair_bootstrap(contrast, NUM_PAIRS, _rng(17))
    influence = stats.influence_values(contrast, NUM_PAIRS)
    error = np.std(influence.values, ddof=1) / math.sqrt(NUM_PAIRS)
    assert draws.std() == pytest.approx(error, rel=0.05)


def test_what_the_bootstrap_leaves_out_and_repeats():
    values = np.array([1.0, np.nan, 2.0, 4.0])
    valid = stats.valid_pairs(values)
    mean = _ratio(values, np.ones(4))
    draws = stats.pair_bootstrap(mean, 4, _rng(18), num_draws=500, valid=valid)
    assert draws.min() == 1.0 and draws.max() == 4.0 and np.isfinite(draws).all()
    again = stats.pair_bootstrap(mean, 4, _rng(18), num_draws=500, valid=valid)
    np.testing.assert_array_equal(again, draws)
    lone = stats.pair_bootstrap(mean, 4, _rng(18), num_draws=5, valid=np.arange(4) == 0)
    assert np.isnan(lone).all() and lone.shape == (5,)


def test_draws_in_batches_are_draws_of_all(monkeypatch):
    values = _rng(19).normal(size=8)
    whole = stats.pair_bootstrap(_mean(values), 8, _rng(20), num_draws=50)
    monkeypatch.setattr("halfway.stats.composite._BATCH", 56)  # seven draws at once
    parts = stats.pair_bootstrap(_mean(values), 8, _rng(20), num_draws=50)
    np.testing.assert_allclose(parts, whole, rtol=1e-9)


def test_mistakes():
    with pytest.raises(ValueError, match=r"return shape \(1,\) for weights of shape \(1, 3\), got"):
        stats.influence_values(lambda weights: weights, 3)
    with pytest.raises(ValueError, match=r"valid must have shape \(3,\), one a pair, got \(2,\)"):
        stats.composite_test(_mean(np.ones(3)), 3, alternative="less", valid=[True, True])
    with pytest.raises(ValueError, match=r"one number of pairs are needed, got \[2, 3\]"):
        stats.valid_pairs(np.ones((4, 2)), np.ones(3))
    with pytest.raises(ValueError, match="margin of a two-sided alternative must be above 0"):
        stats.composite_test(_mean(np.ones(3)), 3, alternative="two-sided")
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got 95"):
        stats.composite_test(_mean(np.ones(1)), 1, alternative="less", confidence=95)
