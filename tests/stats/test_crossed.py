"""Means over surrogates, targets and examples: by hand, against the variance over draws, size."""

import math

import numpy as np
import pytest
import scipy.stats

from halfway import stats

SIZE = 8
NUM_DRAWS = 2000


def _draws(seed, spreads, shape=(SIZE, SIZE), num_draws=NUM_DRAWS):
    """Matrices of expectation 0: effects of surrogates, of targets and of cells."""
    rng = np.random.default_rng(seed)
    rows, columns, cells = spreads
    return (
        rows * rng.standard_normal((num_draws, shape[0], 1))
        + columns * rng.standard_normal((num_draws, 1, shape[1]))
        + cells * rng.standard_normal((num_draws, *shape))
    )


@pytest.mark.quick
def test_hand_computed():
    # Row sums of residuals ±2, column sums ±1, four cells: V = 2 (4 + 4)/16 + 2 (1 + 1)/16.
    crossed = stats.crossed_mean([[1.0, 2.0], [3.0, 4.0]])
    assert crossed.estimate == 2.5
    assert crossed.standard_error == pytest.approx(math.sqrt(1.25))
    assert crossed.degrees == pytest.approx(1.25**2 / (1 + 0.25**2))
    half = scipy.stats.t.ppf(0.975, crossed.degrees) * math.sqrt(1.25)
    assert (crossed.low, crossed.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert crossed[-4:] == (2, 2, 0, 0)


def test_where_only_surrogates_differ_it_is_the_t_test_over_them():
    rng = np.random.default_rng(1)
    each = rng.standard_normal(6)
    crossed = stats.crossed_mean(np.tile(each[:, None], 9))
    expected = scipy.stats.ttest_1samp(each, 0.0, alternative="greater")
    interval = scipy.stats.ttest_1samp(each, 0.0).confidence_interval()
    assert (crossed.low, crossed.high) == pytest.approx(tuple(interval))
    assert crossed.degrees == pytest.approx(5)
    test = stats.crossed_test(crossed, alternative="greater")
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.p_reverse == pytest.approx(1 - expected.pvalue)
    less = stats.crossed_test(crossed, alternative="less")
    assert (less.p_value, less.p_reverse) == (test.p_reverse, test.p_value)
    # Targets are treated alike.
    assert stats.crossed_mean(np.tile(each, (9, 1)))[:5] == pytest.approx(crossed[:5])


@pytest.mark.parametrize("spreads", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 2), (1, 0.3, 0.5)])
def test_the_variance_of_the_mean_is_that_over_draws(spreads):
    values = _draws(2, spreads)
    means = [stats.crossed_mean(matrix) for matrix in values]
    measured = np.mean([mean.standard_error**2 for mean in means])
    rows, columns, cells = (s**2 / SIZE for s in spreads)
    truth = rows + columns + cells / SIZE
    assert np.var([mean.estimate for mean in means]) == pytest.approx(truth, rel=0.15)
    # The cells' own part is counted twice: that is all that it is too large by.
    assert measured == pytest.approx(truth + cells / SIZE, rel=0.1)


@pytest.mark.parametrize("spreads", [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0.3, 0.3), (0, 0, 1)])
@pytest.mark.parametrize("diagonal", [False, True])
def test_size_with_eight_of_each(spreads, diagonal):
    values = _draws(3, spreads)
    if not diagonal:
        values[:, np.eye(SIZE, dtype=bool)] = np.nan
    rejected = [
        stats.crossed_test(stats.crossed_mean(matrix), alternative="greater").p_value < 0.05
        for matrix in values
    ]
    assert np.mean(rejected) < 0.075
    if spreads[2] == 0:  # and it does not buy that by being blind
        assert np.mean(rejected) > 0.025


def test_cells_as_if_independent_would_be_wrong():
    """What the crossed error is for: sixty-four cells are not sixty-four draws."""
    values = _draws(4, (1, 1, 0.5)).reshape(NUM_DRAWS, -1)
    naive = scipy.stats.ttest_1samp(values, 0.0, axis=1, alternative="greater").pvalue < 0.05
    assert naive.mean() > 0.2


def test_a_ratio_is_linearized():
    rng = np.random.default_rng(5)
    den = rng.uniform(3, 4, (SIZE, SIZE))
    num = 0.4 * den + 0.1 * rng.standard_normal((SIZE, 1)) + 0.1 * rng.standard_normal((1, SIZE))
    crossed = stats.crossed_ratio(num, den)
    assert crossed.estimate == pytest.approx(num.sum() / den.sum())
    linear = stats.crossed_mean((num - crossed.estimate * den) / den.mean())
    assert linear.estimate == pytest.approx(0, abs=1e-12)
    assert crossed.standard_error == pytest.approx(linear.standard_error)
    # Denominators that are all alike only change the unit.
    same = stats.crossed_ratio(num, np.full(num.shape, 2.0))
    mean = stats.crossed_mean(num / 2)
    assert same[:5] == pytest.approx(mean[:5])
    # And where the ratio is the same everywhere it has no error.
    exact = stats.crossed_ratio(0.3 * den, den)
    assert exact.standard_error == 0 and exact.low == exact.high == exact.estimate
    assert exact.estimate == pytest.approx(0.3)


def test_coverage_of_a_ratio():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(1000):
        den = 5 + rng.standard_normal((SIZE, 1)) + 0.5 * rng.standard_normal((1, SIZE))
        num = 0.6 * den + rng.standard_normal((SIZE, 1)) + rng.standard_normal((1, SIZE))
        crossed = stats.crossed_ratio(num, den)
        covered += crossed.low <= 0.6 <= crossed.high
    assert 0.92 < covered / 1000 < 0.99


def test_what_is_not_finite_leaves_and_is_counted():
    values = _draws(7, (1, 1, 1), num_draws=1)[0]
    some = values.copy()
    some[np.eye(SIZE, dtype=bool)] = np.nan
    crossed = stats.crossed_mean(some)
    assert crossed.estimate == pytest.approx(np.nanmean(some))
    assert crossed[-4:] == (SIZE, SIZE, 0, 0)
    gone = some.copy()
    gone[3], gone[:, 5], gone[:, 6] = np.inf, np.nan, 1e200
    smaller = np.delete(np.delete(some, 3, 0), [5, 6], 1)
    crossed = stats.crossed_mean(gone)
    assert crossed[-4:] == (SIZE - 1, SIZE - 2, 0, 3)
    assert crossed[:-1] == pytest.approx(stats.crossed_mean(smaller)[:-1])
    den = np.ones(values.shape)
    den[3], den[:, 5:7] = np.nan, np.nan
    assert stats.crossed_ratio(some, den)[:5] == pytest.approx(crossed[:5])
    test = stats.crossed_test(crossed, alternative="greater")
    assert (test.num_pairs, test.num_excluded) == (2 * SIZE - 3, 3)


def test_order_and_unit_do_not_matter():
    values = _draws(8, (1, 2, 1), (5, 7), 1)[0]
    crossed = stats.crossed_mean(values)
    rng = np.random.default_rng(9)
    shuffled = values[rng.permutation(5)][:, rng.permutation(7)]
    assert stats.crossed_mean(shuffled) == pytest.approx(crossed)
    scaled = stats.crossed_mean(1e6 * values)
    assert scaled.standard_error == pytest.approx(1e6 * crossed.standard_error)
    assert scaled.degrees == pytest.approx(crossed.degrees)
    turned = stats.crossed_mean(values.T)
    assert turned[:5] == pytest.approx(crossed[:5])
    assert (turned.num_surrogates, turned.num_targets) == (7, 5)


@pytest.mark.parametrize(
    "values",
    [
        np.full((3, 3), np.nan),
        np.ones((1, 5)),
        np.ones((5, 1)),
        np.array([[1, np.nan], [np.nan] * 2]),
    ],
)
def test_too_little_decides_nothing(values):
    crossed = stats.crossed_mean(values)
    assert math.isfinite(crossed.estimate)
    assert (crossed.low, crossed.high, crossed.standard_error) == (-math.inf, math.inf, math.inf)
    for alternative in ("greater", "less"):
        assert stats.crossed_test(crossed, alternative=alternative)[3:5] == (1.0, 1.0)


def test_no_spread_is_a_point():
    crossed = stats.crossed_mean(np.full((4, 6), 0.1))
    assert crossed.standard_error == 0 and crossed.low == crossed.high == crossed.estimate
    assert crossed.estimate == pytest.approx(0.1)
    assert stats.crossed_test(crossed, alternative="greater")[3:5] == (0.0, 1.0)
    assert stats.crossed_test(crossed, alternative="less")[3:5] == (1.0, 0.0)
    at = stats.crossed_test(crossed, crossed.estimate, alternative="greater")
    assert at[3:5] == (1.0, 1.0)
    none = stats.crossed_ratio(np.zeros((3, 3)), np.zeros((3, 3)))
    assert none.estimate == 0 and math.isinf(none.standard_error)


# Surrogates, targets and examples


def _outcomes(seed, spreads, shape, num_draws):
    """Outcomes of expectation 0: effects of surrogates, targets, examples, and of single ones."""
    rng = np.random.default_rng(seed)
    num_rows, num_columns, num_examples = shape
    rows, columns, examples, entries = spreads
    return (
        rows * rng.standard_normal((num_draws, num_rows, 1, 1))
        + columns * rng.standard_normal((num_draws, 1, num_columns, 1))
        + examples * rng.standard_normal((num_draws, 1, 1, num_examples))
        + entries * rng.standard_normal((num_draws, *shape))
    )


@pytest.mark.quick
def test_three_ways_hand_computed():
    # Effects ±1 of surrogates, ±2 of targets, ±3 of examples; 8 entries, sums of 4 in a cluster.
    signs = np.array([-1.0, 1.0])
    values = signs[:, None, None] + 2 * signs[:, None] + 3 * signs
    crossed = stats.crossed_mean(10 + values)
    variances = np.array([2 * 2 * (4 * effect) ** 2 / 64 for effect in (1, 2, 3)])
    assert crossed.estimate == 10
    assert crossed.standard_error == pytest.approx(math.sqrt(variances.sum()))
    assert crossed.degrees == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    assert crossed[-4:] == (2, 2, 2, 0)


def test_three_ways_in_closed_form_with_missing_entries():
    values = _outcomes(10, (1, 1, 1, 1), (4, 5, 6), 1)[0]
    values[1, 2], values[:, :, 4], values[0, 0, 0] = np.nan, np.inf, np.nan
    present = np.isfinite(values)
    number, mean = present.sum(), values[present].mean()
    residuals = np.where(present, values - mean, 0)
    variances = []
    for axis, count in enumerate((4, 5, 5)):
        sums = [residuals.take(index, axis).sum() for index in range(values.shape[axis])]
        variances.append(count / (count - 1) * np.square(sums).sum() / number**2)
    crossed = stats.crossed_mean(values)
    assert crossed.estimate == pytest.approx(mean)
    assert crossed.standard_error == pytest.approx(math.sqrt(sum(variances)))
    degrees = sum(variances) ** 2 / (np.square(variances) / [3, 4, 4]).sum()
    assert crossed.degrees == pytest.approx(degrees)
    # An example that nobody counts is no model that is missing.
    assert crossed[-4:] == (4, 5, 5, 0)
    without = stats.crossed_mean(np.delete(values, 4, 2))
    assert without[:-1] == pytest.approx(crossed[:-1])


def test_where_only_examples_differ_it_is_the_t_test_over_them():
    each = np.random.default_rng(11).standard_normal(30)
    crossed = stats.crossed_mean(np.tile(each, (4, 5, 1)))
    interval = scipy.stats.ttest_1samp(each, 0.0).confidence_interval()
    assert (crossed.low, crossed.high) == pytest.approx(tuple(interval))
    assert crossed.degrees == pytest.approx(29)
    # Where they do not, it is the matrix of means over them.
    matrix = _draws(12, (1, 1, 1), (4, 5), 1)[0]
    alike = stats.crossed_mean(np.repeat(matrix[:, :, None], 30, 2))
    assert alike[:5] == pytest.approx(stats.crossed_mean(matrix)[:5])
    assert (alike.num_examples, stats.crossed_mean(matrix).num_examples) == (30, 0)


@pytest.mark.parametrize("spreads", [(1, 0, 0, 0), (0, 0, 1, 0), (0.3, 0.3, 1, 0), (1, 1, 2, 3)])
def test_the_variance_three_ways_is_that_over_draws(spreads):
    shape = (6, 6, 20)
    crossed = [stats.crossed_mean(values) for values in _outcomes(13, spreads, shape, 1500)]
    *sides, entries = (s**2 for s in spreads)
    alone = entries / math.prod(shape)
    truth = sum(side / size for side, size in zip(sides, shape, strict=True)) + alone
    assert np.var([mean.estimate for mean in crossed]) == pytest.approx(truth, rel=0.15)
    measured = np.mean([mean.standard_error**2 for mean in crossed])
    # The entries' own part is counted three times.
    assert measured == pytest.approx(truth + 2 * alone, rel=0.1)


@pytest.mark.parametrize("spreads", [(1, 1, 2, 2), (0.5, 0.5, 2, 0), (0.2, 0.2, 0.2, 1)])
def test_coverage_three_ways(spreads):
    num_draws = 1000
    values = _outcomes(14, spreads, (8, 8, 30), num_draws)
    values[:, np.eye(8, dtype=bool)] = np.nan  # a model is not attacked through itself
    crossed = [stats.crossed_mean(draw) for draw in values]
    covered = np.mean([mean.low <= 0 <= mean.high for mean in crossed])
    assert covered > 0.95 - 4 * math.sqrt(0.05 * 0.95 / num_draws)
    if spreads[3] < 1:  # and the interval is no wider than that asks for
        assert covered < 0.98


def test_given_the_examples_intervals_would_be_too_short():
    """What the third variance is for: effects of examples are in no mean over them."""
    values = _outcomes(15, (0.2, 0.2, 2, 1), (8, 8, 30), 500)
    matrices = [stats.crossed_mean(draw.mean(2)) for draw in values]
    covered = np.mean([mean.low <= 0 <= mean.high for mean in matrices])
    assert covered < 0.7


def test_a_ratio_three_ways_is_linearized():
    rng = np.random.default_rng(16)
    right = rng.random((5, 6, 40)) < 0.8
    fooled = right & (rng.random((5, 6, 40)) < 0.3)
    crossed = stats.crossed_ratio(fooled, right)
    assert crossed.estimate == fooled.sum() / right.sum()
    linear = stats.crossed_mean((fooled - crossed.estimate * right) / right.mean())
    assert crossed.standard_error == pytest.approx(linear.standard_error)
    assert crossed.degrees == pytest.approx(linear.degrees)


def test_order_and_axes_do_not_matter_three_ways():
    values = _outcomes(17, (1, 2, 1, 1), (4, 5, 7), 1)[0]
    values[2, 1, 3:] = np.nan
    crossed = stats.crossed_mean(values)
    rng = np.random.default_rng(18)
    shuffled = values[rng.permutation(4)][:, rng.permutation(5)][:, :, rng.permutation(7)]
    assert stats.crossed_mean(shuffled) == pytest.approx(crossed)
    turned = stats.crossed_mean(values.transpose(2, 0, 1))
    assert turned[:5] == pytest.approx(crossed[:5])
    assert turned[-4:] == (7, 4, 5, 0)


def test_blocks_of_outcomes_are_outcomes_of_all(monkeypatch):
    values = _outcomes(19, (1, 1, 1, 1), (7, 3, 5), 1)[0]
    values[6], values[0, :, 1] = np.nan, np.nan
    whole = stats.crossed_mean(values), stats.crossed_ratio(values > 0, values > -1)
    monkeypatch.setattr("halfway.stats.crossed._BATCH", 31)  # two surrogates at once
    parts = stats.crossed_mean(values), stats.crossed_ratio(values > 0, values > -1)
    for before, after in zip(whole, parts, strict=True):
        assert after == pytest.approx(before, rel=1e-12)


def test_too_little_decides_nothing_three_ways():
    single = stats.crossed_mean(np.random.default_rng(20).random((3, 3, 1)))
    assert (single.low, single.high) == (-math.inf, math.inf) and math.isfinite(single.estimate)
    assert stats.crossed_test(single, alternative="less")[3:5] == (1.0, 1.0)
    point = stats.crossed_mean(np.full((3, 4, 5), 0.1))
    assert point.standard_error == 0 and point.low == point.high == point.estimate
    test = stats.crossed_test(point, alternative="greater")
    assert test[3:] == (0.0, 1.0, 7, 0)


def test_mistakes():
    with pytest.raises(ValueError, match=r"\[K, M\] or outcomes \[K, M, B\], got .* shape \(3,\)"):
        stats.crossed_mean(np.ones(3))
    with pytest.raises(ValueError, match=r"one shape \[K, M\], got \(2, 3\) and \(3, 2\)"):
        stats.crossed_ratio(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\[K, M, B\], got \(2, 3, 4\) and \(2, 3\)"):
        stats.crossed_ratio(np.ones((2, 3, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got 95"):
        stats.crossed_mean(np.ones((2, 3)), confidence=95)
    with pytest.raises(ValueError, match="'greater' or 'less', got 'two-sided'"):
        stats.crossed_test(stats.crossed_mean(np.eye(3)), alternative="two-sided")
