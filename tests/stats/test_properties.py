"""What holds for every sample: scale, order, intervals around estimates, p within [0, 1]."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from halfway import stats

SETTINGS = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
HOLES = st.one_of(NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf]))
POSITIVE = st.floats(0.1, 10)
SIDES = st.sampled_from(["greater", "less"])


def pairs(entries, most=12):
    """Returns a strategy of values `[P]` and positive denominators `[P]`."""
    return st.lists(st.tuples(entries, POSITIVE), max_size=most).map(
        lambda rows: (
            tuple(np.array(v, float) for v in zip(*rows, strict=True)) or 2 * (np.zeros(0),)
        )
    )


def grid(v, d):
    """Returns values and denominators as matrices `[2, P]`, of which rows are surrogates."""
    return np.stack([v, v[::-1]]), np.stack([d, d[::-1]])


# Values [P], denominators [P], threshold and side to a decision on Σ values / Σ denominators, or on
# the mean where the denominators do not enter.
TESTS = {
    "mean_equivalence": lambda v, d, t, side: stats.mean_equivalence(v, t - 1, t + 1),
    "mean_test": lambda v, d, t, side: stats.mean_test(v, t, alternative=side),
    "mean_test, two-sided": lambda v, d, t, side: stats.mean_test(
        v, t, alternative="two-sided", margin=1.0
    ),
    "ratio_difference, paired": lambda v, d, t, side: stats.ratio_difference(
        v, d, v[::-1], d[::-1], threshold=t, alternative=side, paired=True
    ),
    "ratio_difference, unpaired": lambda v, d, t, side: stats.ratio_difference(
        v, d, v[1:], d[1:], threshold=t, alternative=side, paired=False
    ),
    "ratio_equivalence": lambda v, d, t, side: stats.ratio_equivalence(v, d, t - 1, t + 1),
    "ratio_test": lambda v, d, t, side: stats.ratio_test(v, d, t, alternative=side),
    "sign_flip_test": lambda v, d, t, side: stats.sign_flip_test(v, t, alternative=side),
    "crossed_test": lambda v, d, t, side: stats.crossed_test(
        stats.crossed_ratio(*grid(v, d)), t, alternative=side
    ),
}
# Whose margins are in the unit of the values.
WITH_MARGINS = {"mean_equivalence", "mean_test, two-sided", "ratio_equivalence"}
# Whose order matters: the second sample is made from the first by place.
BY_PLACE = {"ratio_difference, paired", "ratio_difference, unpaired", "crossed_test"}


@pytest.mark.quick
@pytest.mark.parametrize("name", TESTS)
def test_intervals_hold_estimates_and_p_values_are_probabilities(name):
    @SETTINGS
    @hypothesis.given(pairs(HOLES), st.floats(-10, 10), SIDES)
    def check(sample, threshold, side):
        decision = TESTS[name](*sample, threshold, side)
        slack = 1e-12 * abs(decision.estimate)
        assert math.isfinite(decision.estimate)
        assert decision.low - slack <= decision.estimate <= decision.high + slack
        assert 0 <= decision.p_value <= 1 and 0 <= decision.p_reverse <= 1

    check()


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name in TESTS if name not in WITH_MARGINS])
def test_the_unit_of_the_values_does_not_matter(name):
    """A power of two rounds nothing, so that all but the unit of the result is the same."""

    @SETTINGS
    @hypothesis.given(
        pairs(NUMBERS), st.floats(-10, 10), SIDES, st.sampled_from([2.0**-20, 2.0**20])
    )
    def check(sample, threshold, side, unit):
        values, denominators = sample
        decision = TESTS[name](values, denominators, threshold, side)
        scaled = TESTS[name](unit * values, denominators, unit * threshold, side)
        np.testing.assert_allclose(
            [v * unit for v in decision[:3]], scaled[:3], rtol=1e-9, atol=1e-9 * unit
        )
        np.testing.assert_allclose(decision[3:5], scaled[3:5], atol=1e-9)

    check()


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name in TESTS if name not in BY_PLACE])
def test_the_order_of_pairs_does_not_matter(name):
    @SETTINGS
    @hypothesis.given(pairs(NUMBERS), st.floats(-10, 10), SIDES, st.randoms(use_true_random=False))
    def check(sample, threshold, side, random):
        order = list(range(len(sample[0])))
        random.shuffle(order)
        decision = TESTS[name](*sample, threshold, side)
        shuffled = TESTS[name](*(v[order] for v in sample), threshold, side)
        size = 1 + np.abs(sample[0]).max(initial=0)
        np.testing.assert_allclose(decision[:3], shuffled[:3], rtol=1e-7, atol=1e-7 * size)
        np.testing.assert_allclose(decision[3:5], shuffled[3:5], atol=1e-6)

    check()


@pytest.mark.quick
@pytest.mark.parametrize("name", ["mean_test", "ratio_test", "sign_flip_test", "crossed_test"])
def test_the_other_side_of_the_mirrored_sample_is_the_same_claim(name):
    @SETTINGS
    @hypothesis.given(pairs(NUMBERS), st.floats(-10, 10))
    def check(sample, threshold):
        values, denominators = sample
        greater = TESTS[name](values, denominators, threshold, "greater")
        less = TESTS[name](-values, denominators, -threshold, "less")
        np.testing.assert_allclose(greater[3:5], less[3:5], atol=1e-9)
        np.testing.assert_allclose(
            [greater.estimate, greater.low, greater.high], [-less.estimate, -less.high, -less.low]
        )

    check()


@pytest.mark.quick
@SETTINGS
@hypothesis.given(st.lists(st.booleans(), max_size=30))
def test_shares_lie_within_their_intervals(successes):
    rate = stats.share(successes)
    assert 0 <= rate.low <= rate.high <= 1
    if successes:
        assert rate.low - 1e-12 <= rate.estimate <= rate.high + 1e-12
        assert stats.share(sorted(successes)) == rate
        mirrored = stats.share([not success for success in successes])
        np.testing.assert_allclose([mirrored.low, mirrored.high], [1 - rate.high, 1 - rate.low])


@pytest.mark.quick
@SETTINGS
@hypothesis.given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12), st.randoms())
def test_rank_correlations_know_neither_unit_nor_order(points, random):
    x, y = np.array(points).T
    shuffled = list(range(len(x)))
    random.shuffle(shuffled)
    for measure in (
        lambda a, b: stats.spearman(a, b).estimate,
        lambda a, b: float(stats.kendall(a, b)),
    ):
        value = measure(x, y)
        if math.isnan(value):
            continue
        assert -1 - 1e-12 <= value <= 1 + 1e-12
        np.testing.assert_allclose(measure(4 * x, y / 8), value, atol=1e-12)
        np.testing.assert_allclose(measure(x[shuffled], y[shuffled]), value, atol=1e-12)
        np.testing.assert_allclose(measure(y, x), value, atol=1e-12)
        np.testing.assert_allclose(measure(-x, y), -value, atol=1e-12)


@pytest.mark.quick
@SETTINGS
@hypothesis.given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.randoms())
def test_adjusted_p_values_know_no_order_and_never_fall(p_values, random):
    adjusted = stats.holm(p_values, len(p_values))
    assert (adjusted >= np.array(p_values)).all() and (adjusted <= 1).all()
    order = list(range(len(p_values)))
    random.shuffle(order)
    np.testing.assert_array_equal(
        stats.holm(np.array(p_values)[order], len(order)), adjusted[order]
    )
