"""Means over pairs and examples: by hand, where one side is missing, and the size."""

import numpy as np
import pytest
import scipy.stats

from halfway import stats


def test_examples_widen_the_interval_and_nothing_else():
    values = np.random.default_rng(4).normal(0.1, 0.05, 16)
    alone = stats.two_way_test(values, np.zeros(100), alternative="greater")
    error = values.std(ddof=1) / 4
    # As much again by examples: twice the variance.
    examples = np.array([1.0, -1.0] * 50) * error * np.sqrt(0.99) / 10
    wider = stats.two_way_test(values, examples, alternative="greater")
    assert alone.estimate == wider.estimate and alone.p_value < wider.p_value
    degrees = 4 / (1 / 15 + 1 / 99)
    half = scipy.stats.t.ppf(0.975, degrees) * error * np.sqrt(2)
    np.testing.assert_allclose(wider.high - wider.estimate, half)
    less = stats.two_way_test(values, examples, alternative="less")
    np.testing.assert_allclose([less.p_value, less.p_reverse], [wider.p_reverse, wider.p_value])
    undecided = stats.two_way_test([1.0, np.nan], examples, alternative="greater")
    assert (undecided.low, undecided.p_value) == (-np.inf, 1.0)


@pytest.mark.slow
def test_with_effects_of_examples_the_test_keeps_its_size():
    rng = np.random.default_rng(5)
    rejected = [[], []]
    for _ in range(2000):
        of_examples = rng.normal(size=60)
        rows = rng.permuted(np.tile(np.arange(60), (16, 1)), axis=1)[:, :20]
        values = of_examples[rows].mean(1) + rng.normal(0, 0.1, 16)
        added = np.bincount(rows.ravel(), (of_examples[rows] - values[:, None]).ravel(), 60) / 320
        for place, examples in enumerate((np.zeros(60), added)):
            test = stats.two_way_test(values, examples, alternative="greater")
            rejected[place].append(test.p_value < 0.05)
    assert np.mean(rejected[0]) > 0.1  # a t over pairs alone
    assert np.mean(rejected[1]) < 0.06


@pytest.mark.parametrize(
    ("values", "examples"),
    [
        ([1.0, 1.0, 1.0], [0.0, 0.0]),  # no spread: a point
        ([1.0], [0.1, -0.1]),
        ([], [0.1, -0.1]),
        ([1.0, np.nan], [0.1, -0.1]),
        ([1.0, 2.0, np.inf], []),
        ([1.0, 2.0], [0.1, np.nan]),
    ],
)
def test_with_too_little_on_one_side_it_is_the_test_over_pairs(values, examples):
    for alternative in ("greater", "less"):
        expected = stats.mean_test(values, 0.5, alternative=alternative)
        assert stats.two_way_test(values, examples, 0.5, alternative=alternative) == expected


def test_pairs_that_differ_in_nothing_leave_the_examples():
    test = stats.two_way_test([1.0, 1.0, 1.0], [0.3, -0.3, 0.0], alternative="greater")
    half = scipy.stats.t.ppf(0.975, 2) * np.sqrt(1.5 * 0.18)
    np.testing.assert_allclose([test.low, test.high], [1 - half, 1 + half])


def test_sizes_that_overflow_leave():
    test = stats.two_way_test([1.0, 2.0, 1e200], [0.1, -0.1, 1e200], alternative="greater")
    assert (test.num_pairs, test.num_excluded) == (2, 1)
    left = stats.two_way_test([1.0, 2.0], [0.1, -0.1], alternative="greater")
    assert test[:-1] == left[:-1]


def test_a_side_is_asked_for():
    with pytest.raises(ValueError, match="'greater' or 'less', got 'two-sided'"):
        stats.two_way_test(
            [0.0, 1.0],
            [0.1, -0.1],
            alternative="two-sided",  # pyright: ignore[reportArgumentType]
        )
