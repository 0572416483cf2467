"""Rank correlations against SciPy, by hand, and under their null."""

import numpy as np
import pytest
from scipy import stats

from halfway import ranks


def test_one_stratum_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
    found = ranks.spearman(x, y)
    assert found.estimate == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found.num_strata, found.num_undefined) == (1, 0)


def test_strata_take_away_what_only_differs_between_them():
    rng = np.random.default_rng(1)
    strata = np.repeat([0, 1, 2], 200)
    x, y = (10 * strata + rng.standard_normal(600) for _ in range(2))
    assert ranks.spearman(x, y).estimate > 0.8
    within = ranks.spearman(x, y, strata)
    assert abs(within.estimate) < 0.1
    one = [stats.spearmanr(x[strata == s], y[strata == s]).statistic for s in range(3)]
    assert within.estimate == pytest.approx(np.mean(one))


def test_strata_weigh_by_their_entries_and_undefined_ones_are_counted():
    x = [0, 1, 0, 1, 2, 5, 5, 7]
    y = [0, 1, 2, 1, 0, 1, 2, 3]
    strata = [0, 0, 1, 1, 1, 2, 2, 3]  # +1 of two, −1 of three, constant, a lone entry
    found = ranks.spearman(x, y, strata)
    assert found.estimate == pytest.approx((2 * 1 - 3 * 1) / 5)
    assert (found.num_strata, found.num_undefined) == (2, 1)
    nothing = ranks.spearman([1, 1], [0, 1], rng=np.random.default_rng(0), num_permutations=3)
    assert np.isnan(nothing.estimate) and np.isnan(nothing.permuted).all()


def test_permutations_keep_strata_and_lose_everything_else():
    rng = np.random.default_rng(2)
    strata = np.repeat(np.arange(4), 30)
    x = 10 * strata + rng.standard_normal(120)
    found = ranks.spearman(x, x, strata, rng=rng, num_permutations=2000)
    assert found.estimate == pytest.approx(1)
    # Within a stratum of m the permuted correlation has mean 0 and variance 1/(m − 1).
    error = np.sqrt(1 / (4 * 29) / 2000)
    assert abs(found.permuted.mean()) < 4 * error
    assert found.permuted.var() == pytest.approx(1 / (4 * 29), rel=0.15)


@pytest.mark.parametrize(
    "arguments, options, message",
    [(([1, 2], [1]), {}, "equal length, got 2, 1 and 2"),
     (([1, 2], [1, 2], [0]), {}, "equal length, got 2, 2 and 1"),
     (([1, 2], [1, 2]), {"num_permutations": 5}, "permutations need rng")],
)  # fmt: skip
def test_what_cannot_be_ranked_is_said(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ranks.spearman(*arguments, **options)
