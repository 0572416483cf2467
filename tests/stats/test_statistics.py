"""Mathematics against mathematics: hand-worked cases, SciPy, brute force, and simulation."""

# pyright: reportAttributeAccessIssue=false
# (SciPy's result classes are built at run time.)

import itertools
import math

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from halfway import stats

INF = math.inf
FLOATS = st.floats(-100, 100, allow_nan=False, width=32)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _ratios(rng, shape, *, mean_den=3.0, ratio=0.4, correlation=0.7, noise=1.0):
    """Numerators and denominators, jointly normal, of expected ratio `ratio`."""
    first, second = rng.standard_normal((2, *shape))
    den = mean_den + first
    num = ratio * mean_den + noise * (correlation * first + math.sqrt(1 - correlation**2) * second)
    return num, den


def _within_binomial_error(count, num_draws, probability, sigmas=4.0):
    return abs(count / num_draws - probability) < sigmas * math.sqrt(
        probability * (1 - probability) / num_draws
    )


# Fieller


@pytest.mark.quick
def test_fieller_hand_computed():
    # Means 2 and 4, variances 1 and 1, covariance 1/2, P = 3, t_.975(2)² = 2·.95²/(1 − .95²).
    num, den = [1.0, 2.0, 3.0], [4.0, 3.0, 5.0]
    t2 = 2 * 0.95**2 / (1 - 0.95**2)
    a, b, v_aa, v_ab, v_bb = 2.0, 4.0, 1 / 3, 0.5 / 3, 1 / 3
    roots = np.roots([b**2 - t2 * v_bb, -2 * (a * b - t2 * v_ab), a**2 - t2 * v_aa])
    result = stats.fieller(num, den)
    assert result.estimate == 0.5
    np.testing.assert_allclose(sorted(roots), [result.low, result.high], rtol=1e-12)
    assert (result.num_pairs, result.num_excluded) == (3, 0)


def test_fieller_is_the_set_that_the_test_keeps():
    num, den = _ratios(_rng(), (12,))
    low, high = stats.fieller(num, den)[1:3]
    for bound in (low, high):
        assert scipy.stats.ttest_1samp(num - bound * den, 0).pvalue == pytest.approx(0.05, rel=1e-9)
    low_p = stats.ratio_test(num, den, low, alternative="greater").p_value
    high_p = stats.ratio_test(num, den, high, alternative="less").p_value
    assert (low_p, high_p) == pytest.approx((0.025, 0.025), rel=1e-9)
    # An interval of another confidence is another set.
    wide = stats.fieller(num, den, confidence=0.99)
    assert scipy.stats.ttest_1samp(num - wide.low * den, 0).pvalue == pytest.approx(0.01, rel=1e-9)


def test_fieller_of_constant_denominators_is_the_t_interval():
    values = _rng(1).normal(0.3, 1, 16)
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    result = stats.fieller(2 * values, np.full(16, 2.0), confidence=0.9)
    np.testing.assert_allclose(result[:3], (values.mean(), *interval), rtol=1e-12)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.9])
def test_fieller_covers_95_percent(correlation):
    draws = 3000
    num, den = _ratios(_rng(2), (draws, 16), correlation=correlation)
    results = np.array([stats.fieller(n, d)[1:3] for n, d in zip(num, den, strict=True)])
    assert np.isfinite(results).all()
    covered = np.sum((results[:, 0] <= 0.4) & (results[:, 1] >= 0.4))
    assert _within_binomial_error(covered, draws, 0.95)


def test_fieller_with_weak_denominators_is_unbounded_and_covers():
    draws = 1500
    num, den = _ratios(_rng(3), (draws, 16), mean_den=0.3)
    results = np.array([stats.fieller(n, d)[1:3] for n, d in zip(num, den, strict=True)])
    includes_zero = scipy.stats.ttest_1samp(den, 0, axis=1).pvalue > 0.05
    np.testing.assert_array_equal(~np.isfinite(results).all(1), includes_zero)
    assert 0.5 < includes_zero.mean() < 1
    covered = np.mean((results[:, 0] <= 0.4) & (results[:, 1] >= 0.4))
    assert covered > 0.95 - 4 * math.sqrt(0.05 * 0.95 / draws)


def test_fieller_exclusive_case_is_reported_as_the_whole_line():
    # The denominators straddle 0, the numerators do not: c = 0 is rejected, large |c| is not.
    num, den = np.array([5.0, 5.1, 4.9, 5.0]), np.array([1.0, -1.0, 2.0, -1.5])
    assert scipy.stats.ttest_1samp(num, 0).pvalue < 0.001
    assert scipy.stats.ttest_1samp(num - 1e3 * den, 0).pvalue > 0.05
    assert stats.fieller(num, den)[1:3] == (-INF, INF)


def test_fieller_of_proportional_pairs_is_a_point():
    den = _rng(4).uniform(1, 2, 16)
    result = stats.fieller(0.3 * den, den)
    assert result.low <= result.estimate <= result.high
    assert result.high - result.low < 1e-15


def test_fieller_does_not_care_about_the_sign_of_both():
    num, den = _ratios(_rng(5), (16,))
    assert stats.fieller(-num, -den) == stats.fieller(num, den)


# Linearization


def test_linearized_hand_computed():
    # M = 6/12; residuals 1 - 2, 2 - 1.5, 3 - 2.5; mean(den) = 4.
    values, ratio = stats.linearized([1.0, 2.0, 3.0], [4.0, 3.0, 5.0])
    assert ratio == 0.5
    np.testing.assert_allclose(values, [-0.25, 0.125, 0.125])


def test_linearized_keeps_the_place_of_a_pair_that_left():
    values, ratio = stats.linearized([1.0, 7.0, 2.0, 3.0], [4.0, np.nan, 3.0, 5.0])
    np.testing.assert_allclose(values, [-0.25, np.nan, 0.125, 0.125])
    assert ratio == 0.5


def test_linearized_values_have_the_standard_error_of_the_ratio():
    num, den = _ratios(_rng(6), (4000, 64))
    measured = np.std(num.sum(1) / den.sum(1))
    predicted = [
        np.std(stats.linearized(n, d).values, ddof=1) / 8 for n, d in zip(num, den, strict=True)
    ]
    assert np.mean(predicted) == pytest.approx(measured, rel=0.04)  # 1/sqrt(8000) = .011


# One-sided tests


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_mean_test_is_scipys(alternative):
    values = _rng(7).normal(0.5, 1, 16)
    expected = scipy.stats.ttest_1samp(values, 0.2, alternative=alternative)
    other = {"greater": "less", "less": "greater"}[alternative]
    result = stats.mean_test(values, 0.2, alternative=alternative)
    assert result.estimate == pytest.approx(values.mean(), rel=1e-14)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    reverse = scipy.stats.ttest_1samp(values, 0.2, alternative=other).pvalue
    assert result.p_reverse == pytest.approx(reverse, rel=1e-9)
    interval = scipy.stats.ttest_1samp(values, 0.2).confidence_interval(0.95)
    np.testing.assert_allclose(result[1:3], interval, rtol=1e-12)


@pytest.mark.quick
def test_mean_test_hand_computed():
    # mean 2, se 1/sqrt(3): t = 2 sqrt(3); with two degrees of freedom the tail is algebraic.
    t = 2 * math.sqrt(3)
    p = 0.5 - t / (2 * math.sqrt(2 + t**2))
    result = stats.mean_test([1.0, 2.0, 3.0], alternative="greater")
    assert (result.p_value, result.p_reverse) == pytest.approx((p, 1 - p), rel=1e-12)


def test_far_tails_do_not_underflow_to_zero():
    result = stats.mean_test(1 + 1e-3 * _rng(8).normal(size=16), alternative="greater")
    assert 0 < result.p_value < 1e-30
    assert result.p_reverse == 1


def test_ratio_test_is_the_t_test_on_num_minus_c_den():
    num, den = _ratios(_rng(9), (16,))
    result = stats.ratio_test(num, den, 0.3, alternative="greater")
    expected = scipy.stats.ttest_1samp(num - 0.3 * den, 0, alternative="greater").pvalue
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert result[:3] == stats.fieller(num, den)[:3]


def test_ratio_test_has_its_size():
    draws = 3000
    num, den = _ratios(_rng(10), (draws, 16))
    results = [
        stats.ratio_test(n, d, 0.4, alternative="less") for n, d in zip(num, den, strict=True)
    ]
    assert _within_binomial_error(sum(r.p_value < 0.05 for r in results), draws, 0.05)
    assert _within_binomial_error(sum(r.p_reverse < 0.05 for r in results), draws, 0.05)


def test_ratios_of_denominators_without_a_positive_mean_are_undecided():
    num, den = _rng(11).normal(1, 0.1, (2, 16))
    for result in (
        stats.ratio_test(num, -den, 0.5, alternative="less"),
        stats.ratio_test(num, -den, 0.5, alternative="greater"),
        stats.ratio_equivalence(num, -den, -2, 2),
        stats.ratio_difference(num, den, num, -den, alternative="greater", paired=True),
        stats.ratio_difference(num, -den, num, den, alternative="less", paired=False),
    ):
        assert result[1:5] == (-INF, INF, 1, 1)
        assert math.isfinite(result.estimate) and result.estimate != 0


# Differences of two ratios


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_ratio_difference_of_constant_denominators_is_scipys(alternative):
    rng = _rng(12)
    first, second = rng.normal(0.7, 1, 16), rng.normal(0.2, 2, 16)
    den = np.ones(16)
    paired = stats.ratio_difference(
        first, den, second, den, threshold=0.1, alternative=alternative, paired=True
    )
    expected = scipy.stats.ttest_rel(first - 0.1, second, alternative=alternative)
    assert paired.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert paired.p_reverse == pytest.approx(1 - expected.pvalue, rel=1e-9)
    interval = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(paired[1:3], interval, rtol=1e-12)

    second, den_2 = second[:11], den[:11]
    welch = stats.ratio_difference(
        first, den, second, den_2, threshold=0.1, alternative=alternative, paired=False
    )
    expected = scipy.stats.ttest_ind(first - 0.1, second, equal_var=False, alternative=alternative)
    assert welch.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    interval = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(welch[1:3], interval, rtol=1e-12)
    assert welch.estimate == pytest.approx(first.mean() - second.mean(), rel=1e-12)


def test_ratio_difference_is_definition_1():
    rng = _rng(13)
    (num_1, den_1), (num_2, den_2) = _ratios(rng, (16,)), _ratios(rng, (16,), ratio=0.2)
    ratio_1, ratio_2 = num_1.sum() / den_1.sum(), num_2.sum() / den_2.sum()
    z_1 = (num_1 - ratio_1 * den_1) / den_1.mean()
    z_2 = (num_2 - ratio_2 * den_2) / den_2.mean()
    sample = ratio_1 - ratio_2 + z_1 - z_2
    result = stats.ratio_difference(num_1, den_1, num_2, den_2, alternative="greater", paired=True)
    expected = scipy.stats.ttest_1samp(sample, 0, alternative="greater").pvalue
    assert result.estimate == pytest.approx(ratio_1 - ratio_2, rel=1e-12)
    assert result.p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_ratio_difference_has_its_size_and_coverage(paired):
    """Conditions of unlike denominators and noise; paired ones share most of their noise."""
    draws = 3000
    rng = _rng(14)
    shared = rng.standard_normal((draws, 16)) if paired else 0.0
    num_1, den_1 = _ratios(rng, (draws, 16), mean_den=6, ratio=0.5)
    num_2, den_2 = _ratios(rng, (draws, 16 if paired else 24), ratio=0.3, noise=0.4)
    num_1, num_2 = num_1 + 4 * shared, num_2 + 2 * shared
    results = [
        stats.ratio_difference(*data, threshold=0.2, alternative="greater", paired=paired)
        for data in zip(num_1, den_1, num_2, den_2, strict=True)
    ]
    # The linearization is first order: its own error is allowed for beside the binomial one.
    rate = np.mean([r.p_value < 0.05 for r in results])
    reverse = np.mean([r.p_reverse < 0.05 for r in results])
    coverage = np.mean([r.low <= 0.2 <= r.high for r in results])
    assert abs(rate - 0.05) < 4 * math.sqrt(0.05 * 0.95 / draws) + 0.005
    assert abs(reverse - 0.05) < 4 * math.sqrt(0.05 * 0.95 / draws) + 0.005
    assert abs(coverage - 0.95) < 4 * math.sqrt(0.05 * 0.95 / draws) + 0.005


def test_pairing_uses_what_the_conditions_share():
    rng = _rng(15)
    shared = rng.normal(0, 1, 16)
    first, second = shared + rng.normal(0.2, 0.1, 16), shared + rng.normal(0, 0.1, 16)
    den = np.ones(16)
    p = {
        paired: stats.ratio_difference(
            first, den, second, den, alternative="greater", paired=paired
        ).p_value
        for paired in (True, False)
    }
    assert p[True] < 1e-3 and p[False] > 0.1


# Equivalence


def test_equivalence_is_two_one_sided_tests():
    values = _rng(16).normal(0.01, 0.02, 16)
    above = scipy.stats.ttest_1samp(values, -0.03, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, 0.03, alternative="less").pvalue
    result = stats.mean_equivalence(values, -0.03, 0.03)
    assert result.p_value == pytest.approx(max(above, below), rel=1e-9)
    assert result.p_reverse == 1
    assert result[:3] == stats.mean_test(values, alternative="less")[:3]


def test_equivalence_holds_where_the_90_percent_interval_is_inside():
    num, den = _ratios(_rng(17), (16,))
    _, low, high, *_ = stats.fieller(num, den, confidence=0.9)
    for margins in ((low, high + 1), (low - 1, high)):
        assert stats.ratio_equivalence(num, den, *margins).p_value == pytest.approx(0.05, rel=1e-9)


def test_equivalence_reversed_is_a_value_outside_on_either_side():
    values = _rng(18).normal(0, 0.1, 16)
    p = scipy.stats.ttest_1samp(values, 0.05, alternative="less").pvalue
    for sign in (1, -1):
        result = stats.mean_equivalence(sign * values, *sorted((sign * 0.05, sign * 0.5)))
        assert result.p_reverse == pytest.approx(2 * p, rel=1e-9)
        assert result.p_value == pytest.approx(1 - p, rel=1e-9)


@pytest.mark.parametrize("margin", [-0.1, 0.1])
def test_equivalence_at_its_margin_has_its_size(margin):
    draws = 3000
    values = _rng(19).normal(margin, 0.1, (draws, 16))
    results = [stats.mean_equivalence(v, -0.1, 0.1) for v in values]
    # The other margin is five standard errors away, so the size is the level itself.
    assert _within_binomial_error(sum(r.p_value < 0.05 for r in results), draws, 0.05)
    assert _within_binomial_error(sum(r.p_reverse < 0.05 for r in results), draws, 0.025)


# Holm


@pytest.mark.quick
def test_holm_hand_computed():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, made monotone .04 .06 .06 .06.
    np.testing.assert_allclose(stats.holm([0.03, 0.01, 0.04, 0.02], 4), [0.06, 0.04, 0.06, 0.06])
    # Sixteen hypotheses that were not run: times 20, 19, 18, 17.
    np.testing.assert_allclose(stats.holm([0.03, 0.01, 0.04, 0.02], 20), [0.54, 0.2, 0.68, 0.38])
    np.testing.assert_array_equal(stats.holm([0.9, 0.0], 20), [1, 0])
    assert stats.holm([], 20).shape == (0,)


@hypothesis.settings(deadline=None, max_examples=100, derandomize=True)
@hypothesis.given(st.lists(st.floats(0, 1), max_size=8), st.integers(0, 4))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, num_missing):
    family = p_values + [1.0] * num_missing
    adjusted = stats.holm(p_values, len(family))
    np.testing.assert_allclose(adjusted, stats.holm(family, len(family))[: len(p_values)])
    for level in (0.01, 0.05, 0.3):
        # The procedure as Holm states it: step down until the first that is kept.
        rejected = set()
        for step, i in enumerate(sorted(range(len(family)), key=family.__getitem__)):
            if not family[i] * (len(family) - step) <= level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= level} == {
            i for i in rejected if i < len(p_values)
        }


# AUC and slope


def _auc_by_hand(scores, positive, strata):
    concordant = comparable = 0.0
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if positive[i] and not positive[j] and strata[i] == strata[j]:
            comparable += 1
            concordant += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
    return concordant, comparable


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.sampled_from("abc")), max_size=25)
)
def test_auc_is_brute_force(examples):
    scores, positive, strata = zip(*examples, strict=True) if examples else ((), (), ())
    assert stats.auc(scores, positive, strata) == _auc_by_hand(scores, positive, strata)
    single_stratum = ["a"] * len(scores)
    assert stats.auc(scores, positive) == _auc_by_hand(scores, positive, single_stratum)


def test_auc_of_a_population():
    rng = _rng(28)
    scores, positive = rng.normal(size=1200), rng.random(1200) < 0.3
    strata = rng.integers(50, size=1200)
    assert stats.auc(scores, positive, strata) == _auc_by_hand(scores, positive, strata)
    expected = scipy.stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert stats.auc(scores, positive).concordant == expected


def test_auc_with_a_score_that_is_not_finite_leaves_the_ratio():
    good, bad = stats.auc([1.0, 2.0], [False, True]), stats.auc([1.0, np.nan], [False, True])
    result = stats.fieller([good.concordant, bad.concordant], [good.comparable, bad.comparable])
    assert result == (1, -INF, INF, 1, 1)


def test_slope_is_least_squares():
    x, y = _rng(29).normal(3, 1, (2, 100))
    numerator, denominator = stats.slope(x, y)
    assert numerator / denominator == pytest.approx(scipy.stats.linregress(x, y).slope, rel=1e-12)
    assert stats.slope([1.0, 2.0, 3.0], [5.0, 5.0, 9.0]) == (4, 2)
    assert stats.slope([], []) == (0, 0)
    assert np.isnan(stats.slope([1.0, 2.0], [1.0, np.inf])).all()


# What holds for all of them

TESTS = {
    "fieller": lambda n, d: stats.fieller(n, d),
    "mean": lambda n, d: stats.mean_test(n, 0.2, alternative="greater"),
    "ratio": lambda n, d: stats.ratio_test(n, d, 0.2, alternative="less"),
    "mean equivalence": lambda n, d: stats.mean_equivalence(n, -0.5, 0.5),
    "ratio equivalence": lambda n, d: stats.ratio_equivalence(n, d, -0.5, 0.5),
    "paired": lambda n, d: stats.ratio_difference(
        n, d, n / 2 + 1, np.abs(d), threshold=0.1, alternative="greater", paired=True
    ),
    "welch": lambda n, d: stats.ratio_difference(
        n, d, n / 2 + 1, np.abs(d), threshold=0.1, alternative="less", paired=False
    ),
}
every_test = pytest.mark.parametrize("test", TESTS.values(), ids=TESTS.keys())
ratio_tests = pytest.mark.parametrize(
    "test", [TESTS[name] for name in ("fieller", "ratio", "ratio equivalence")]
)


@every_test
def test_any_data_give_ordered_finite_answers_without_a_warning(test):
    @hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
    @hypothesis.given(
        st.lists(
            st.tuples(st.one_of(FLOATS, st.floats()), st.one_of(FLOATS, st.floats())), max_size=9
        )
    )
    def check(pairs):
        num, den = np.array(pairs, np.float64).reshape(-1, 2).T
        result = test(num, den)
        assert math.isfinite(result.estimate)
        assert result.low <= result.estimate <= result.high
        assert result.num_pairs + result.num_excluded == len(pairs)
        if isinstance(result, stats.Decision):
            assert 0 <= result.p_value <= 1 and 0 <= result.p_reverse <= 1
            assert max(result.p_value, result.p_reverse) >= 0.5
            if result.num_pairs < 2:
                assert result[1:5] == (-INF, INF, 1, 1)

    check()


@every_test
def test_the_order_of_pairs_does_not_matter(test):
    num, den = _ratios(_rng(30), (16,))
    order = _rng(31).permutation(16)
    np.testing.assert_allclose(test(num[order], den[order]), test(num, den), rtol=1e-9)


@ratio_tests
@pytest.mark.parametrize("scale", [1e-60, 3.0, 1e60])
def test_a_common_scale_does_not_matter(test, scale):
    num, den = _ratios(_rng(32), (16,))
    np.testing.assert_allclose(test(scale * num, scale * den), test(num, den), rtol=1e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_each_condition_has_its_own_scale(paired):
    rng = _rng(33)
    (num_1, den_1), (num_2, den_2) = _ratios(rng, (16,)), _ratios(rng, (16,), ratio=0.2)
    np.testing.assert_allclose(
        stats.ratio_difference(
            1e6 * num_1,
            1e6 * den_1,
            1e-6 * num_2,
            1e-6 * den_2,
            alternative="greater",
            paired=paired,
        ),
        stats.ratio_difference(num_1, den_1, num_2, den_2, alternative="greater", paired=paired),
        rtol=1e-9,
    )


@every_test
def test_pairs_that_are_not_finite_leave_and_are_counted(test):
    num, den = _ratios(_rng(34), (16,))
    more_num = np.concatenate([num[:3], [np.nan, -INF], num[3:], [1e200]])
    more_den = np.concatenate([den[:3], [1.0, 1.0], den[3:], [1.0]])
    expected, result = test(num, den), test(more_num, more_den)
    assert result[:-1] == expected[:-1]
    assert (expected.num_excluded, result.num_excluded) == (0, 3)


def test_what_leaves_a_difference():
    num, den = _ratios(_rng(35), (16,))
    bad_1, bad_2 = num.copy(), num[::-1].copy()
    bad_1[2], bad_2[[4, 5]] = np.nan, INF
    options = {"alternative": "greater", "threshold": 0.1}
    paired = stats.ratio_difference(bad_1, den, bad_2, den, paired=True, **options)
    keep = np.setdiff1d(np.arange(16), [2, 4, 5])
    expected = stats.ratio_difference(
        bad_1[keep], den[keep], bad_2[keep], den[keep], paired=True, **options
    )
    assert paired[:-2] == expected[:-2]
    assert paired[-2:] == (13, 3)
    welch = stats.ratio_difference(bad_1, den, bad_2, den, paired=False, **options)
    assert welch[-2:] == (14, 2)
    rows_1, rows_2 = np.delete(np.arange(16), 2), np.delete(np.arange(16), [4, 5])
    expected = stats.ratio_difference(
        bad_1[rows_1], den[rows_1], bad_2[rows_2], den[rows_2], paired=False, **options
    )
    assert welch[:-2] == expected[:-2]


@every_test
def test_fewer_than_two_pairs(test):
    empty, single = test(np.array([np.nan]), np.ones(1)), test(np.array([0.25]), np.ones(1))
    assert empty[:3] == (0, -INF, INF) and empty[-2:] == (0, 1)
    assert single[1:3] == (-INF, INF) and single[-2:] == (1, 0)
    assert single.estimate in (0.25, 0.25 - 1.125)
    for result in (empty, single):
        assert not isinstance(result, stats.Decision) or result[3:5] == (1, 1)


def test_zero_spread():
    third = [0.1 + 0.2] * 5  # not the float .3
    for threshold, expected in ((0.3, (1, 1)), (0.2, (0, 1)), (0.4, (1, 0))):
        result = stats.mean_test(third, threshold, alternative="greater")
        assert result[3:5] == expected
        assert result[:3] == pytest.approx((0.3, 0.3, 0.3), abs=1e-15)
        assert stats.mean_test(third, threshold, alternative="less")[3:5] == expected[::-1]
    den = _rng(36).uniform(1, 2, 7)
    for threshold, expected in ((0.3, (1, 1)), (0.2, (0, 1)), (0.4, (1, 0))):
        # Here num − c·den has a spread, unless c is the ratio itself.
        result = stats.ratio_test(0.3 * den, den, threshold, alternative="greater")
        assert result[3:5] == pytest.approx(expected, abs=1e-5)
        for paired in (True, False):
            result = stats.ratio_difference(
                0.7 * den,
                den,
                0.4 * den[::-1],
                den[::-1],
                threshold=threshold,
                alternative="greater",
                paired=paired,
            )
            assert result[3:5] == expected
            assert result[:3] == pytest.approx((0.3, 0.3, 0.3), abs=1e-14)
    assert stats.mean_equivalence(third, 0.2, 0.4)[3:5] == (0, 1)
    assert stats.mean_equivalence(third, 0.3, 0.4)[3:5] == (1, 1)
    assert stats.mean_equivalence(third, 0.4, 0.5)[3:5] == (1, 0)
    assert stats.mean_test(np.zeros(4), alternative="greater")[:5] == (0, 0, 0, 1, 1)


def test_small_but_real_spread_is_not_zero_spread():
    values = 1 + 1e-9 * _rng(37).normal(size=16)
    expected = scipy.stats.ttest_1samp(values, 1.0, alternative="greater").pvalue
    assert stats.mean_test(values, 1.0, alternative="greater").p_value == pytest.approx(expected)


def test_denominators_that_sum_to_zero():
    assert stats.fieller([1.0, 2.0], [1.0, -1.0]) == (0, -INF, INF, 2, 0)
    assert stats.ratio_test([1.0, 2.0], [0.0, 0.0], 0.5, alternative="less")[3:5] == (1, 1)
    values, ratio = stats.linearized([1.0, 2.0], [0.0, 0.0])
    assert ratio == 0 and np.isnan(values).all()


def test_mistakes_are_named():
    values = np.ones(3)
    with pytest.raises(ValueError, match=r"\[3, 2\]"):
        stats.fieller(values, values[:2])
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        stats.mean_test(values[None], alternative="greater")
    with pytest.raises(ValueError, match="two-sided"):
        stats.mean_test(values, alternative="two-sided")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"threshold.*nan"):
        stats.ratio_test(values, values, np.nan, alternative="less")
    with pytest.raises(ValueError, match=r"confidence.*95"):
        stats.fieller(values, values, confidence=95)
    with pytest.raises(ValueError, match="low=1, high=-1"):
        stats.mean_equivalence(values, 1, -1)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        stats.holm([0.1, 1.5], 20)
    with pytest.raises(ValueError, match="got nan"):
        stats.holm([np.nan], 20)
    with pytest.raises(ValueError, match="at least 2"):
        stats.holm([0.1, 0.2], 1)
    with pytest.raises(ValueError, match="one shape"):
        stats.auc(values, [True])
