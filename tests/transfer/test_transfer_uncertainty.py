"""Intervals over surrogates, targets and examples: closed forms, coverage, pairing."""

import numpy as np
import pytest

from halfway import transfer


def rng(seed=0):
    return np.random.default_rng(seed)


def additive(seed, shape, sizes, mean=1.0):
    """Outcomes mean + a_k + b_m + c_b + e of given standard deviations."""
    draws, (a, b, c, e) = rng(seed), sizes
    k, m, n = shape
    return (
        mean
        + a * draws.normal(size=(k, 1, 1))
        + b * draws.normal(size=(1, m, 1))
        + c * draws.normal(size=(1, 1, n))
        + e * draws.normal(size=shape)
    )


def bootstrap(values, seed=0, **options):
    return transfer.crossed_bootstrap(values, np.ones(1), rng(seed), **options)


@pytest.mark.quick
def test_one_pair_of_models_is_a_mean_over_examples():
    values = rng(1).random((1, 1, 60)) < 0.3
    interval = bootstrap(values, num_resamples=20_000)
    assert interval.estimate == pytest.approx(values.mean())
    expected = values.std(ddof=1) / np.sqrt(60)
    assert interval.standard_error == pytest.approx(expected, rel=0.03)
    assert interval.degrees == pytest.approx(59)
    assert interval.shares == {"surrogates": 0.0, "targets": 0.0, "examples": 1.0}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_factor_alone_gives_its_own_error(axis):
    shape = [1, 1, 1]
    shape[axis] = 7
    values = np.broadcast_to(rng(2).normal(size=shape), (7, 7, 7))
    interval = bootstrap(values, num_resamples=20_000)
    levels = np.moveaxis(values, axis, 0)[:, 0, 0]
    assert interval.standard_error == pytest.approx(levels.std(ddof=1) / np.sqrt(7), rel=0.03)
    assert interval.degrees == pytest.approx(6)
    assert list(interval.shares.values())[axis] == pytest.approx(1)


def test_more_cells_are_no_more_models():
    # Twice the examples of the same models: what surrogates and targets add stays.
    sizes = (0.5, 0.3, 0.0, 0.0)
    few, many = (bootstrap(additive(3, (6, 6, n), sizes)) for n in (20, 2000))
    assert many.standard_error == pytest.approx(few.standard_error, rel=0.1)
    assert many.shares["examples"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [(6, 6, 40), (3, 12, 20)])
def test_intervals_cover(shape):
    sizes = (0.3, 0.2, 0.4, 1.0)
    hits, naive = [], []
    for seed in range(200):
        values = additive(seed, shape, sizes)
        interval = bootstrap(values, seed, num_resamples=200)
        hits.append(interval.low <= 1.0 <= interval.high)
        error = values.std() / np.sqrt(values.size)
        naive.append(abs(values.mean() - 1.0) < 1.96 * error)
    assert 0.9 <= np.mean(hits) <= 0.995
    assert np.mean(naive) < 0.6  # cells are not independent


@pytest.mark.parametrize("number", [4, 8])
def test_intervals_of_shared_models_cover(number):
    # Each model is a surrogate and a target; the diagonal, through itself, is another matter.
    hits = []
    for seed in range(200):
        draws = rng(seed)
        effect = 0.4 * draws.normal(size=number)
        values = 1 + effect[:, None, None] + effect[None, :, None]
        values = values + draws.normal(size=(number, number, 10))
        values[np.arange(number), np.arange(number)] = 100.0
        interval = bootstrap(values, seed, num_resamples=200, shared_models=True)
        hits.append(interval.low <= 1.0 <= interval.high)
        assert abs(interval.estimate) < 5
    assert 0.9 <= np.mean(hits) <= 0.995
    assert set(interval.shares) == {"models", "examples"}


def test_two_shared_models_are_one_pair():
    values = rng(7).normal(size=(2, 2, 50))
    interval = bootstrap(values, shared_models=True, num_resamples=20_000)
    pair = (values[0, 1] + values[1, 0]) / 2
    assert interval.estimate == pytest.approx(pair.mean())
    assert interval.standard_error == pytest.approx(pair.std(ddof=1) / np.sqrt(50), rel=0.03)
    assert interval.shares == {"models": 0.0, "examples": 1.0}


@pytest.mark.quick
def test_a_ratio_is_of_sums():
    fooled = np.zeros((2, 2, 4))
    counted = np.ones((2, 2, 4))
    counted[0] = [1, 0, 0, 0]
    fooled[1, :, :2] = 1
    fooled[0, :, 0] = 1
    interval = transfer.crossed_bootstrap(fooled, counted, rng())
    assert interval.estimate == pytest.approx(6 / 10)  # the mean of the cells' rates would be .75


def test_what_is_not_finite_is_left_out():
    values = additive(4, (3, 4, 10), (0.1, 0.1, 0.1, 0.1))
    broken = values.copy()
    broken[1, 2] = np.nan
    interval = bootstrap(broken)
    assert interval.estimate == pytest.approx(np.nanmean(broken))
    assert interval.standard_error == pytest.approx(bootstrap(values).standard_error, rel=0.3)
    again = bootstrap(values[:, :, ::-1][::-1], 1, num_resamples=20_000)
    same = bootstrap(values, 2, num_resamples=20_000)
    assert again.estimate == pytest.approx(same.estimate)
    assert again.standard_error == pytest.approx(same.standard_error, rel=0.03)


def test_nothing_to_divide_by():
    interval = transfer.crossed_bootstrap(np.zeros((2, 2, 3)), np.zeros(3), rng())
    assert np.isnan(interval.estimate) and (interval.low, interval.high) == (-np.inf, np.inf)
    flat = bootstrap(np.ones((2, 2, 3)))
    assert (flat.estimate, flat.low, flat.high) == (1, 1, 1)


def test_pairs_cancel_what_they_share():
    shared = additive(5, (6, 6, 30), (0.5, 0.5, 0.5, 0.0))
    noise = 0.05 * rng(6).normal(size=shared.shape)
    den = np.ones(1)
    paired = transfer.paired_bootstrap((shared + 0.1 + noise, den), (shared, den), rng())
    alone = bootstrap(shared)
    assert paired.estimate == pytest.approx(0.1 + noise.mean())
    assert paired.standard_error < 0.1 * alone.standard_error
    assert paired.low < 0.1 < paired.high and paired.low > 0
    same = transfer.paired_bootstrap((shared, den), (shared, den), rng())
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((2, 3)), {}, r"\[K, M, B\] are needed, got \(2, 3\)"),
        (np.ones((2, 3, 4)), {"shared_models": True}, r"\[K, K, B\]"),
        (np.ones((2, 2, 4)), {"confidence": 1.0}, "confidence must lie in"),
    ],
)
def test_arrays_that_are_none(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(values, **options)


def test_matrices_of_other_models_are_not_compared():
    with pytest.raises(ValueError, match="one shape"):
        transfer.paired_bootstrap(
            (np.ones((2, 2, 3)), np.ones(3)), (np.ones((2, 3, 3)), np.ones(3)), rng()
        )
