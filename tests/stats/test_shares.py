"""Intervals of shares end where shares do."""

import math

import numpy as np
import pytest

from halfway import stats, transfer


@pytest.mark.quick
def test_ends_beyond_the_range_are_cut_off_and_nothing_else_changes():
    rate = stats.fieller([9, 10, 10, 10], [10, 10, 10, 10])
    assert rate.high > 1
    bounded = stats.bounded(rate)
    assert bounded == rate._replace(high=1.0)
    assert stats.bounded(bounded) == bounded
    few = stats.mean_test([0.0, 0.0, 0.1], alternative="greater")
    assert few.low < 0
    assert stats.bounded(few) == few._replace(low=0.0)
    inside = stats.mean_test([0.4, 0.5, 0.6], alternative="greater")
    assert stats.bounded(inside) == inside


def test_an_interval_without_ends_has_those_of_the_range():
    unknown = stats.fieller([0.5], [1.0])
    assert stats.bounded(unknown)[1:3] == (0.0, 1.0)
    assert stats.bounded(unknown, -1, 1)[1:3] == (-1, 1)


def test_whatever_has_ends_is_bounded():
    cells = np.array([[1.0, 1.0, 0.7], [1.0, 0.9, 1.0], [1.0, 1.0, 1.0]])
    crossed = stats.crossed_mean(cells)
    assert crossed.high > 1 and stats.bounded(crossed).high == 1.0
    assert stats.bounded(crossed).standard_error == crossed.standard_error
    outcomes = np.random.default_rng(0).random((3, 3, 4)) < 0.9
    resampled = transfer.crossed_bootstrap(outcomes, np.ones(4), np.random.default_rng(1))
    assert resampled.high > 1 and stats.bounded(resampled).high == 1.0
    undefined = transfer.crossed_bootstrap(
        outcomes, np.zeros(4), np.random.default_rng(1), num_resamples=2
    )
    assert math.isnan(stats.bounded(undefined).estimate)


def test_no_coverage_is_lost():
    rng = np.random.default_rng(2)
    rates = rng.binomial(30, 0.97, (1000, 16)) / 30
    tests = [stats.mean_test(rate, alternative="greater") for rate in rates]
    cut = [stats.bounded(test) for test in tests]
    assert any(test.high > 1 for test in tests)
    covered = [[test.low <= 0.97 <= test.high for test in kind] for kind in (tests, cut)]
    assert covered[0] == covered[1]


def test_mistakes():
    with pytest.raises(ValueError, match="low < high, got low=1, high=0"):
        stats.bounded(stats.fieller([1.0], [1.0]), 1, 0)
