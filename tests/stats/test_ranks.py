"""Rank correlations against SciPy, by hand, and under their null."""

import numpy as np
import pytest
import scipy.stats

from halfway import stats

pytestmark = pytest.mark.quick


def test_one_stratum_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
    correlation = stats.spearman(x, y)
    assert correlation.estimate == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert (correlation.num_strata, correlation.num_undefined) == (1, 0)


def test_strata_take_away_what_only_differs_between_them():
    rng = np.random.default_rng(1)
    strata = np.repeat([0, 1, 2], 200)
    x, y = (10 * strata + rng.standard_normal(600) for _ in range(2))
    assert stats.spearman(x, y).estimate > 0.8
    within = stats.spearman(x, y, strata)
    assert abs(within.estimate) < 0.1
    by_stratum = [scipy.stats.spearmanr(x[strata == s], y[strata == s]).statistic for s in range(3)]
    assert within.estimate == pytest.approx(np.mean(by_stratum))


def test_strata_weigh_by_their_entries_and_undefined_ones_are_counted():
    x = [0, 1, 0, 1, 2, 5, 5, 7]
    y = [0, 1, 2, 1, 0, 1, 2, 3]
    strata = [0, 0, 1, 1, 1, 2, 2, 3]  # +1 of two, −1 of three, constant, a lone entry
    correlation = stats.spearman(x, y, strata)
    assert correlation.estimate == pytest.approx((2 * 1 - 3 * 1) / 5)
    assert (correlation.num_strata, correlation.num_undefined) == (2, 1)
    nothing = stats.spearman([1, 1], [0, 1], rng=np.random.default_rng(0), num_permutations=3)
    assert np.isnan(nothing.estimate) and np.isnan(nothing.permuted).all()


def test_permutations_keep_strata_and_lose_everything_else():
    rng = np.random.default_rng(2)
    strata = np.repeat(np.arange(4), 30)
    x = 10 * strata + rng.standard_normal(120)
    correlation = stats.spearman(x, x, strata, rng=rng, num_permutations=2000)
    assert correlation.estimate == pytest.approx(1)
    # Within a stratum of m the permuted correlation has mean 0 and variance 1/(m − 1).
    error = np.sqrt(1 / (4 * 29) / 2000)
    assert abs(correlation.permuted.mean()) < 4 * error
    assert correlation.permuted.var() == pytest.approx(1 / (4 * 29), rel=0.15)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([1, 2], [1]), {}, "equal length, got 2, 1 and 2"),
        (([1, 2], [1, 2], [0]), {}, "equal length, got 2, 2 and 1"),
        (([1, 2], [1, 2]), {"num_permutations": 5}, "permutations need rng"),
    ],
)
def test_what_cannot_be_ranked_is_said(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        stats.spearman(*arguments, **options)


# Kendall


def _scipy(x, y):
    return scipy.stats.kendalltau(x, y).statistic


def test_kendall_is_scipys_for_every_vector_with_ties():
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 6, (3, 7, 25)), rng.integers(0, 6, (7, 25))
    taus = stats.kendall(x, y)
    assert taus.shape == (3, 7)
    expected = [[_scipy(x[m, r], y[r]) for r in range(7)] for m in range(3)]
    np.testing.assert_allclose(taus, expected, atol=1e-12)


def test_kendall_of_more_entries_than_a_byte_counts_and_more_vectors_than_a_block():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(600, 150)), rng.normal(size=150)
    taus = stats.kendall(x, y)
    for row in (0, 511, 512, 599):
        assert taus[row] == pytest.approx(_scipy(x[row], y), abs=1e-12)
    # All 127 signs of a shift alike: a byte is just enough.
    assert stats.kendall(np.arange(128), np.arange(128)) == 1
    assert stats.kendall(np.arange(129), -np.arange(129)) == -1


def test_kendall_compares_within_strata_alone():
    rng = np.random.default_rng(7)
    strata = np.repeat(["a", "b", "c"], [5, 8, 2])
    x, y = rng.integers(0, 4, (2, 15))
    total, untied = 0, [0, 0]
    for i in range(15):
        for j in range(i):
            if strata[i] == strata[j]:
                a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
                total, untied = total + a * b, [untied[0] + a * a, untied[1] + b * b]
    expected = total / np.sqrt(untied[0] * untied[1])
    assert stats.kendall(x, y, strata) == pytest.approx(expected)
    # What only differs between strata is not seen.
    far = x + 100 * np.unique(strata, return_inverse=True)[1]
    assert stats.kendall(far, y, strata) == pytest.approx(expected)


def test_kendall_leaves_out_what_is_not_a_number():
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 9, (2, 20)).astype(float)
    x[3], y[7] = np.nan, np.nan
    kept = np.isfinite(x) & np.isfinite(y)
    assert stats.kendall(x, y) == pytest.approx(_scipy(x[kept], y[kept]))
    assert np.isnan(stats.kendall(np.ones(4), np.arange(4)))
    assert np.isnan(stats.kendall([np.nan, 1.0], [1.0, 2.0]))
    # Infinite is larger than anything, and tied with itself.
    assert stats.kendall([1.0, np.inf, np.inf], [1.0, 2.0, 3.0]) == pytest.approx(2 / np.sqrt(6))


def test_an_entry_drawn_twice_is_not_compared_with_itself():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(2, 10))
    rows = np.array([0, 0, 1, 2, 3, 4, 4, 4])
    once = np.unique(rows)
    tau = stats.kendall(x[rows], y[rows])
    weights = np.bincount(rows, minlength=10)
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    both = weights[:, None] * weights * (1 - np.eye(10))
    assert tau == pytest.approx((both * signs).sum() / both.sum())
    assert stats.kendall(x[once], y[once]) == pytest.approx(_scipy(x[once], y[once]))


def test_kendall_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="must be of equal length, got 3, 2 and 3"):
        stats.kendall([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="got 2, 2 and 3"):
        stats.kendall([1, 2], [1, 2], [0, 0, 0])
