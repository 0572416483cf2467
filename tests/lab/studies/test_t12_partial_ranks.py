"""Partial rank correlations over surrogates and targets: planted structure, and what permutes."""

import numpy as np
import pytest
from scipy import stats

from halfway.lab.studies.t12 import partial_ranks
from halfway.lab.studies.t12.partial_ranks import Quantities

PLACE = np.repeat([0, 1, 2, 3], 8)
SIZE = len(PLACE)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(partial_ranks, "NUM_PERMUTATIONS", 399)
    monkeypatch.setattr(partial_ranks, "NUM_RESAMPLES", 200)


def quantities(rng, weights=(0.0, 0.0, 0.0), shift=None):
    """Outcomes that follow size, alignment and variability by weights, the same on both sets."""
    size, variability = rng.normal(size=(2, SIZE))
    alignment = rng.normal(size=(SIZE, SIZE))
    outcome = weights[0] * size + weights[1] * alignment + weights[2] * variability[:, None]
    outcome = outcome + rng.normal(size=(SIZE, SIZE))
    if shift is not None:
        outcome, alignment = outcome + shift, alignment + shift
    return Quantities(*(np.stack([v, v]) for v in (outcome, size, alignment, variability)))


def test_each_predictor_has_its_own_correlation():
    planted = quantities(np.random.default_rng(0), (1.0, 0.5, -1.0))
    result = partial_ranks.correlate(planted, PLACE)
    # Of normal variables ranks see a little less than the values themselves, centred in blocks.
    member = (PLACE[:, None] == np.arange(4)) / np.sqrt(8)
    values = partial_ranks._way(planted, np.ones(SIZE, bool), 0)
    values = values - member @ (member.T @ values @ member) @ member.T
    expected = partial_ranks._partials(partial_ranks._correlations(values))
    np.testing.assert_allclose(result.estimate, expected, atol=0.1)
    np.testing.assert_array_equal(np.sign(expected), [1, 1, -1])
    assert (result.low < result.estimate).all() and (result.estimate < result.high).all()
    # Without the others known, what they do is noise.
    assert (np.abs(result.alone[:, 0]) < np.abs(result.estimate)).all()
    assert np.abs(result.null.mean(1)).max() < 0.05 and result.num_conditions == SIZE
    assert (np.abs(result.null).max(1) < np.abs(result.estimate)).all()


@pytest.mark.quick
def test_partial_correlations_are_those_of_residuals():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 500))
    values[0] += values[1] - 0.5 * values[2]
    values[2] += 0.8 * values[1]
    values -= values.mean(1, keepdims=True)
    partials = partial_ranks._partials(np.corrcoef(values))
    for index in range(3):
        others = np.delete(values[1:], index, 0).T
        left = [
            v - others @ np.linalg.lstsq(others, v, rcond=None)[0]
            for v in (values[0], values[1 + index])
        ]
        assert partials[index] == pytest.approx(stats.pearsonr(*left).statistic)


def test_what_architectures_share_is_no_correlation():
    # Surrogate and target architectures move outcome and alignment alike.
    rng = np.random.default_rng(2)
    shift = 20.0 * rng.normal(size=(4, 4))[PLACE][:, PLACE]
    result = partial_ranks.correlate(quantities(rng, shift=shift), PLACE)
    assert np.abs(result.estimate).max() < 0.15 and np.abs(result.alone[:, 0]).max() < 0.15


def test_predictor_and_outcome_come_from_different_sets():
    rng = np.random.default_rng(3)
    first, second = (quantities(rng, (2.0, 2.0, -2.0)) for _ in range(2))
    # Each set follows its own predictors, which have nothing to do with the other set's.
    apart = Quantities(*(np.stack([a[0], b[0]]) for a, b in zip(first, second, strict=True)))
    assert np.abs(partial_ranks.correlate(apart, PLACE).estimate).max() < 0.4
    assert np.abs(partial_ranks.correlate(first, PLACE).estimate).min() > 0.65


def test_a_permutation_keeps_what_does_not_move():
    # Size is of targets: permuting surrogates would change nothing.
    rng = np.random.default_rng(4)
    ways = [
        partial_ranks._ranks(
            partial_ranks._way(quantities(rng, (1.0, 0, 0)), np.ones(SIZE, bool), way), PLACE
        )
        for way in (0, 1)
    ]
    plain = np.array([partial_ranks._correlations(ranked) for ranked in ways])
    for ranked in ways:
        assert np.ptp(ranked[1], axis=0).max() == 0 and np.ptp(ranked[3], axis=1).max() == 0
    null = partial_ranks._permuted(ways, plain, PLACE, 100, rng)
    assert null.shape == (3, 100) and (null.std(1) > 0).all()
    # Where every architecture has one order only, nothing is left to permute.
    still = partial_ranks._permuted(ways, plain, np.arange(SIZE), 5, rng)
    np.testing.assert_allclose(still, np.tile(still[:, :1], 5))
    np.testing.assert_allclose(still[:, 0], partial_ranks._partials(plain).mean(0))


def test_a_condition_without_models_leaves_as_surrogate_and_as_target():
    rng = np.random.default_rng(5)
    holed = quantities(rng, (1.0, 0.5, -1.0))
    holed.size[0, 3] = np.nan
    kept = np.arange(SIZE) != 3
    square = np.ix_([0, 1], kept, kept)
    rest = Quantities(
        holed.outcome[square],
        holed.size[:, kept],
        holed.alignment[square],
        holed.variability[:, kept],
    )
    result, other = (partial_ranks.correlate(*v) for v in ((holed, PLACE), (rest, PLACE[kept])))
    np.testing.assert_array_equal(result.estimate, other.estimate)
    np.testing.assert_array_equal(result.null, other.null)
    holed.size[0, :7] = np.nan
    assert partial_ranks.correlate(holed, PLACE).num_conditions == SIZE - 8
    holed.size[:] = np.nan
    empty = partial_ranks.correlate(holed, PLACE)
    assert np.isnan(empty.estimate).all() and empty.num_conditions == 0


def test_size_of_the_tests_where_targets_and_surrogates_have_noise_of_their_own():
    rng, number = np.random.default_rng(6), 60
    extreme = np.zeros((number, 3))
    for draw in range(number):
        planted = quantities(rng)
        noise = rng.normal(size=(2, SIZE))
        planted = planted._replace(outcome=planted.outcome + noise[0] + noise[1][:, None])
        result = partial_ranks.correlate(planted, PLACE)
        extreme[draw] = (result.null >= result.estimate[:, None]).mean(1) < 0.05
    assert (extreme.mean(0) < 0.13).all()


# From arrays to conditions


def _arrays(rng, size, num_pairs=6):
    wide = (size, num_pairs, size, num_pairs // 2 - 1)
    return {
        "num_examples": np.full(wide, 100),
        "num_fooled": rng.integers(20, 40, wide),
        "num_by_noise": rng.integers(0, 3, wide),
        "tau": rng.uniform(0.2, 0.6, wide),
        "margin": rng.normal(1, 0.3, (size, num_pairs, 20)),
        "size": rng.uniform(1, 2, (size, num_pairs)),
    }


def test_conditions_are_means_over_the_pairs_of_a_set():
    rng = np.random.default_rng(7)
    arrays = _arrays(rng, 3)
    result = partial_ranks.summarize_sets(arrays, np.ones((3, 6), bool))
    for way, pairs in enumerate(([0, 1, 2], [3, 4, 5])):
        part = {name: values[1, pairs] for name, values in arrays.items()}
        fooled = (part["num_fooled"][:, 2] - part["num_by_noise"][:, 2]).sum()
        assert result.outcome[way, 1, 2] == pytest.approx(fooled / 600)
        assert result.alignment[way, 1, 2] == pytest.approx(part["tau"][:, 2].mean())
        assert result.size[way, 1] == pytest.approx(part["size"].mean())
        expected = part["margin"].var(0, ddof=1).mean()
        assert result.variability[way, 1] == pytest.approx(expected)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e3])
def test_a_pair_that_diverged_is_neither_surrogate_nor_target(garbage):
    rng = np.random.default_rng(8)
    arrays, finite = _arrays(rng, 3), np.ones((3, 6), bool)
    finite[1, 4] = False
    whole = partial_ranks.summarize_sets(arrays, finite)
    broken = {name: values.astype(float) for name, values in arrays.items()}
    for values in broken.values():
        values[1, 4] = garbage
    result = partial_ranks.summarize_sets(broken, finite)
    for values, expected in zip(result, whole, strict=True):
        np.testing.assert_array_equal(values, expected)
    # As a target: what 3 and 5 did to it, at the place of pair 4 among the others of 3 and of 5.
    tau = arrays["tau"][0]
    kept = [tau[3, 1, 1], tau[5, 1, 0], *tau[4, 1]]
    assert result.alignment[1, 0, 1] == pytest.approx(np.mean(kept))
    finite[1, 5] = False
    assert np.isnan(partial_ranks.summarize_sets(broken, finite).variability[1, 1])
