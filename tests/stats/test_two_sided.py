"""Claims that something differs, in either direction: the test and its reverse."""

import numpy as np
import pytest
import scipy.stats

from halfway import stats

MARGIN = 0.1


def _values(shift, seed=0, size=16, noise=1.0):
    return shift + noise * np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("shift", [-1.0, -0.2, 0.0, 0.3, 1.0])
def test_the_p_value_is_scipys_and_the_reverse_is_a_tost(shift):
    values = _values(shift)
    decision = stats.mean_test(values, 0.2, alternative="two-sided", margin=MARGIN)
    assert decision.p_value == pytest.approx(scipy.stats.ttest_1samp(values, 0.2).pvalue, rel=1e-9)
    tost = stats.mean_equivalence(values, 0.2 - MARGIN, 0.2 + MARGIN)
    assert decision.p_reverse == pytest.approx(tost.p_value, rel=1e-9)
    # It agrees with the interval, which is that of a one-sided test.
    one_sided = stats.mean_test(values, 0.2, alternative="greater")
    assert decision[:3] == one_sided[:3]
    assert (decision.p_value < 0.05) == (not decision.low <= 0.2 <= decision.high)


@pytest.mark.parametrize("paired", [True, False])
def test_a_difference_of_ratios_is_twice_the_smaller_side(paired):
    rng = np.random.default_rng(3)
    den = rng.uniform(1, 2, (2, 16))
    num = den * rng.normal([[0.5], [0.45]], 0.05, (2, 16))
    terms = (num[0], den[0], num[1], den[1])

    def test(alternative, threshold=0.0, margin=None):
        return stats.ratio_difference(
            *terms, threshold=threshold, alternative=alternative, paired=paired, margin=margin
        )

    decision = test("two-sided", margin=MARGIN)
    greater, less = test("greater").p_value, test("less").p_value
    assert decision.p_value == pytest.approx(2 * min(greater, less), rel=1e-9)
    ends = test("greater", -MARGIN).p_value, test("less", MARGIN).p_value
    assert decision.p_reverse == pytest.approx(max(ends), rel=1e-9)
    swapped = stats.ratio_difference(
        *terms[2:], *terms[:2], alternative="two-sided", paired=paired, margin=MARGIN
    )
    assert swapped.p_value == pytest.approx(decision.p_value, rel=1e-9)
    assert swapped.p_reverse == pytest.approx(decision.p_reverse, rel=1e-9)


def test_the_test_has_its_size_on_both_sides_and_equality_is_shown_with_little_noise():
    p_values = [
        stats.mean_test(_values(0.0, s), alternative="two-sided", margin=MARGIN).p_value
        for s in range(2_000)
    ]
    assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2_000)
    sides = [
        stats.mean_test(_values(s, 1), alternative="two-sided", margin=MARGIN).p_value
        for s in (-2.0, 2.0)
    ]
    assert max(sides) < 1e-4
    equal = stats.mean_test(_values(0, noise=0.02), alternative="two-sided", margin=MARGIN)
    assert equal.p_reverse < 1e-6


@pytest.mark.quick
def test_without_spread_or_pairs():
    same = stats.mean_test([0.0, 0.0, 0.0], alternative="two-sided", margin=MARGIN)
    assert (same.p_value, same.p_reverse) == (1.0, 0.0)
    apart = stats.mean_test([0.3, 0.3, 0.3], alternative="two-sided", margin=MARGIN)
    assert (apart.p_value, apart.p_reverse) == (0.0, 1.0)
    lone = stats.mean_test([0.3], alternative="two-sided", margin=MARGIN)
    assert (lone.p_value, lone.p_reverse) == (1.0, 1.0)


def test_a_margin_belongs_to_two_sides_and_two_sides_to_a_margin():
    for margin in (None, 0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="margin of a two-sided alternative must be above 0"):
            stats.mean_test([0.0, 1.0], alternative="two-sided", margin=margin)
    with pytest.raises(ValueError, match=r"margin is of a two-sided alternative, got 0\.1"):
        stats.ratio_test([0.0, 1.0], [1.0, 1.0], 0.0, alternative="less", margin=0.1)
