"""A contest of measures: planted orders, luck that must not count, and the size of its test."""

import numpy as np
import pytest

from halfway import stats
from halfway.lab.studies.g3 import contest

CONDITIONS, PAIRS = 32, 8
STRATA = np.repeat([0, 1], CONDITIONS // 2)
LEVELS = np.array([[i // 8 % 2, i // 4 % 2, i // 2 % 2, i % 2] for i in range(CONDITIONS)])


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    # A standard error to 4 %; the study takes 10,000.
    monkeypatch.setattr(contest, "NUM_RESAMPLES", 300)


def play(measures, outcome, **kwargs):
    measures = np.asarray(measures)
    rivals = kwargs.pop("num_rivals", len(measures) - 1)
    return contest.contest(
        measures, np.ones_like(measures), outcome, STRATA, LEVELS, num_rivals=rivals, **kwargs
    )


def planted(rng, correlations, noise=0.1):
    """Measures that follow the outcome's true values across conditions to a correlation each."""
    true = rng.normal(size=CONDITIONS)
    outcome = true[:, None] + noise * rng.normal(size=(CONDITIONS, PAIRS))
    measures = [
        (c * true + np.sqrt(1 - c**2) * rng.normal(size=CONDITIONS))[:, None]
        + noise * rng.normal(size=(CONDITIONS, PAIRS))
        for c in correlations
    ]
    return np.array(measures), outcome


@pytest.mark.quick
def test_a_perfect_measure_wins_over_noise():
    rng = np.random.default_rng(0)
    result = play(*planted(rng, [1.0, 0.0, 0.3], noise=0.01))
    assert result.tau[0] > 0.95 and result.p_value < 1e-4 < 0.99 < result.p_reverse
    assert result.lead == pytest.approx(result.tau[0] - np.abs(result.tau[1:]).max(), abs=0.02)
    assert result.low[0] <= result.tau[0] <= result.high[0] <= 1


def test_a_rival_of_either_sign_counts_and_the_trial_has_a_sign():
    rng = np.random.default_rng(1)
    measures, outcome = planted(rng, [0.2, 0.1, 1.0], noise=0.01)
    for sign in (1, -1):
        result = play(measures * np.array([1, 1, sign])[:, None, None], outcome)
        assert result.best == 2 and result.lead < -0.5 and result.p_reverse < 1e-3
    against = planted(rng, [1.0, 0.1], noise=0.01)
    assert play(-against[0], against[1]).lead < -0.9
    assert play(-against[0], against[1], sign=-1.0).lead > 0.5


def test_what_is_only_described_is_no_rival():
    rng = np.random.default_rng(2)
    measures, outcome = planted(rng, [0.8, 0.1, 1.0], noise=0.01)
    alone = play(measures, outcome, num_rivals=1)
    assert alone.best == 1 and alone.lead > 0
    assert alone.tau[2] > 0.95
    assert play(measures, outcome).lead < 0


def test_the_luck_of_a_pair_does_not_count():
    # Measure and outcome share all of their noise, pair by pair, and nothing else.
    rng = np.random.default_rng(3)
    luck = rng.normal(size=(CONDITIONS, PAIRS))
    rival = rng.normal(size=(CONDITIONS, PAIRS))
    taus = [play([luck + 0.01 * rng.normal(size=luck.shape), rival], luck).tau[0] for _ in range(3)]
    together = stats.kendall(luck.mean(1), luck.mean(1), STRATA)
    assert together == 1 and np.abs(taus).max() < 0.35


def test_only_conditions_of_one_stratum_are_compared():
    rng = np.random.default_rng(4)
    measures, outcome = planted(rng, [0.0, 0.0])
    shift = 100.0 * STRATA[:, None]
    unmoved, moved = play(measures, outcome), play(measures + shift, outcome + shift)
    np.testing.assert_allclose(unmoved.tau, moved.tau)
    np.testing.assert_allclose(unmoved.standard_error, moved.standard_error)
    assert moved.pooled.min() > 0.4 > np.abs(unmoved.pooled).max()


def test_granulated_looks_at_one_factor_at_a_time():
    rng = np.random.default_rng(5)
    outcome = (3.0 * LEVELS[:, 0] + LEVELS[:, 1])[:, None] + 1e-3 * rng.normal(
        size=(CONDITIONS, PAIRS)
    )
    # The measure is right about the first factor, wrong about the second, blind to the others.
    measure = (LEVELS[:, 0] - 0.5 * LEVELS[:, 1])[:, None] + np.zeros((CONDITIONS, PAIRS))
    result = play([measure, outcome], outcome)
    assert result.granulated.shape == (4, 2)
    np.testing.assert_allclose(result.granulated[:2, 0], [1, -1])
    assert np.isnan(result.granulated[2:, 0]).all()
    np.testing.assert_allclose(result.granulated[:2, 1], 1)


def test_a_measure_is_a_ratio_of_sums():
    rng = np.random.default_rng(6)
    true = rng.normal(size=(CONDITIONS, 1))
    size = rng.uniform(0.1, 10, (CONDITIONS, PAIRS))
    numerators = np.stack([np.exp(true) * size, rng.normal(size=size.shape)])
    denominators = np.stack([size, np.ones_like(size)])
    outcome = true + np.zeros((CONDITIONS, PAIRS))
    result = contest.contest(numerators, denominators, outcome, STRATA, LEVELS, num_rivals=1)
    assert result.tau[0] == pytest.approx(1)
    # Without signal a ratio is larger than any other, not negative.
    denominators[0, outcome.mean(1).argmax()] = -1.0
    again = contest.contest(numerators, denominators, outcome, STRATA, LEVELS, num_rivals=1)
    assert again.tau[0] == pytest.approx(1)


def test_pairs_that_do_not_count_leave_alone_the_others():
    rng = np.random.default_rng(7)
    measures, outcome = planted(rng, [0.9, 0.2])
    holed = measures.copy()
    holed[0, 4, :3] = np.nan
    replaced = measures.copy()
    replaced[:, 4, :3] = 1e6
    gone = outcome.copy()
    gone[4, :3] = np.nan
    for result in (play(holed, outcome), play(replaced, gone)):
        assert np.isfinite(result.lead) and result.tau[0] > 0.5
    np.testing.assert_allclose(play(holed, outcome).tau, play(replaced, gone).tau)
    empty = outcome.copy()
    empty[4] = np.nan
    rest = np.arange(CONDITIONS) != 4
    without = contest.contest(
        measures[:, rest], 1.0, outcome[rest], STRATA[rest], LEVELS[rest], num_rivals=1
    )
    np.testing.assert_allclose(play(measures, empty).tau, without.tau)


def test_nothing_to_compare_decides_nothing():
    outcome = np.full((CONDITIONS, PAIRS), np.nan)
    result = play(np.ones((2, CONDITIONS, PAIRS)), outcome)
    assert (result.lead, result.p_value, result.p_reverse) == (0, 1, 1)
    with pytest.raises(ValueError, match="at least two are needed"):
        play(np.ones((2, CONDITIONS, 1)), outcome[:, :1])


def test_the_same_records_give_the_same_answer():
    records = planted(np.random.default_rng(8), [0.5, 0.4])
    first, second = play(*records), play(*records)
    assert first.standard_error == second.standard_error and first.lead == second.lead


def test_standard_error_against_many_draws():
    rng = np.random.default_rng(9)
    results = [play(*planted(rng, [0.8, 0.3], noise=0.5)) for _ in range(60)]
    spread = np.std([result.lead for result in results], ddof=1)
    # On the careful side, but no more than half again.
    assert 0.8 * spread < np.mean([result.standard_error for result in results]) < 1.6 * spread


def _conditions(rng, splits=3, correlation=-0.5):
    measure = rng.normal(size=(splits, CONDITIONS))
    rest = np.sqrt(1 - correlation**2) * rng.normal(size=measure.shape)
    return measure, correlation * measure + rest


def test_permutations_give_the_tau_of_permuted_conditions(monkeypatch):
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 50)
    measure, outcome = _conditions(np.random.default_rng(10))
    # Ties, and a measure that is infinite, in whatever is ranked.
    measure[:, :3], outcome[0] = np.inf, np.round(outcome[0])
    fast = contest.permuted(measure, outcome, STRATA)
    # One more condition, alone in its stratum and without an outcome, takes the general way.
    more = np.c_[measure, np.zeros(3)], np.c_[outcome, np.full(3, np.nan)], np.r_[STRATA, 2]
    np.testing.assert_allclose(contest.permuted(*more), fast, atol=1e-12)
    assert len(np.unique(fast)) > 40


def test_permutations_stay_within_strata(monkeypatch):
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 200)
    measure, outcome = _conditions(np.random.default_rng(11))
    shift = 100.0 * STRATA
    null = contest.permuted(measure, outcome, STRATA)
    np.testing.assert_array_equal(contest.permuted(measure + shift, outcome + shift, STRATA), null)
    assert abs(null.mean()) < 3 * null.std() / np.sqrt(200)
    # Of two strata of one condition each nothing can be permuted, and nothing is compared.
    alone = contest.permuted(measure[:, :2], outcome[:, :2], np.array([0, 1]))
    assert np.isnan(alone).all()


def test_a_permutation_is_the_same_in_every_split(monkeypatch):
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 100)
    measure, outcome = _conditions(np.random.default_rng(12), splits=1)
    single = contest.permuted(measure, outcome, STRATA)
    same = contest.permuted(measure.repeat(4, 0), outcome.repeat(4, 0), STRATA)
    np.testing.assert_allclose(same, single, atol=1e-12)


def test_more_than_a_byte_of_conditions(monkeypatch):
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 4)
    rng = np.random.default_rng(13)
    values = rng.normal(size=(1, 300))
    whole = contest.permuted(values, values, np.zeros(300, int))
    holed = np.c_[values, 0.0], np.c_[values, np.nan], np.r_[np.zeros(300, int), 1]
    np.testing.assert_allclose(whole, contest.permuted(*holed), atol=1e-12)
    assert np.abs(whole).max() < 0.2


def test_splits_take_measure_and_outcome_from_disjoint_pairs():
    pairs = np.broadcast_to(np.eye(PAIRS)[:, None], (PAIRS, CONDITIONS, PAIRS))
    outcome = np.broadcast_to(2.0 ** np.arange(PAIRS), (CONDITIONS, PAIRS))
    splits, resamples = contest.halved(pairs, np.ones(pairs.shape), outcome, STRATA)
    assert splits.measures.shape == (PAIRS, contest.NUM_SPLITS, CONDITIONS)
    measured = splits.measures[:, :, 0].T > 0
    outcomes = (splits.outcome[:, 0] * (PAIRS - PAIRS // 2)).astype(int)
    for mask, bits in zip(measured, outcomes, strict=True):
        assert bits == 2**PAIRS - 1 - sum(1 << p for p in np.flatnonzero(mask))
    blocks = list(resamples)
    assert sum(len(block.outcome) for block in blocks) == contest.NUM_RESAMPLES
