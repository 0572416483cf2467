"""Size and power over a grid of factors: effects that are unrelated share the factors all the same.

A quantity of the grid moves with each factor by an effect of its own, smoothly in the size of the
intervention. Two that have nothing to do with each other are then alike within every factor.
"""

import math

import numpy as np
import pytest

from halfway import stats

GRID = {"n": 3, "ρ": 6, "length": 4, "width": 2, "depth": 1, "decay": 2, "rate": 1, "batch": 1}
GRID |= {"optimizer": 1, "activation": 1, "architecture": 2, "shared data": 3, "start": 1}
"""Interventions of each factor: 13 factors, 28 interventions."""
SIZES = np.array([*GRID.values()])
FACTORS = np.repeat([*GRID], SIZES)
LEVELS = np.concatenate([np.linspace(1, 2, size) for size in SIZES])
WITHIN = ~np.isin(FACTORS, ["shared data", "start"])
"""Interventions that measures fitted within a data set are compared on: 11 factors."""
OFFSET = 0.01


def _quantity(rng, base=0.0, heavy=False):
    """Contrasts `[N]`: effects of factors with some curvature, noise, and the error of the base."""
    place = np.repeat(np.arange(SIZES.size), SIZES)
    shape = (2, SIZES.size)
    linear, curved = rng.standard_t(2, shape) if heavy else rng.standard_normal(shape)
    smooth = linear[place] * LEVELS + 0.3 * curved[place] * LEVELS**2
    return smooth + 0.1 * rng.standard_normal(place.size) - base * rng.standard_normal()


def _advantage(measure, rival, outcome, factors):
    """Relative difference of errors out of factor, `[F]`; positive where the measure errs less."""

    def errors(predictor):
        slopes = stats.out_of_factor_slopes(predictor, outcome, factors)
        return stats.factor_means(np.abs(outcome - slopes * predictor), factors).means

    first, second = errors(measure), errors(rival)
    return (second - first) / (second + first + OFFSET)


def _flips(rng, base, heavy):
    """The test of a measure against a rival, neither of which has to do with the outcome."""
    measure, rival, outcome = (
        _quantity(rng, base, heavy and index == 1)[WITHIN] for index in range(3)
    )
    return stats.sign_flip_test(_advantage(measure, rival, outcome, FACTORS[WITHIN]))


WORLDS = [(0.0, False), (0.2, False), (0.0, True)]
"""Error of the base, which enters all contrasts, and whether the rival has outlying effects."""


@pytest.mark.parametrize(("base", "heavy"), WORLDS)
def test_sign_flips_have_their_size_under_unrelated_effects(base, heavy):
    rng = np.random.default_rng(1)
    tests = [_flips(rng, base, heavy) for _ in range(60)]
    for name in ("p_value", "p_reverse"):
        assert np.mean([getattr(test, name) < 0.05 for test in tests]) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("base", "heavy"), WORLDS)
def test_sign_flips_have_their_size_far_out(base, heavy):
    rng = np.random.default_rng(2)
    tests = [_flips(rng, base, heavy) for _ in range(2000)]
    for name in ("p_value", "p_reverse"):
        p_values = np.array([getattr(test, name) for test in tests])
        assert np.mean(p_values < 0.0026) <= 0.008
        assert np.mean(p_values < 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_interventions_as_if_independent_would_be_wrong():
    """What factor means are for: the same comparison with each intervention for itself."""
    rng = np.random.default_rng(3)
    rejected = []
    for _ in range(500):
        measure, rival, outcome = (_quantity(rng)[WITHIN] for _ in range(3))
        errors = [
            np.abs(outcome - stats.out_of_factor_slopes(x, outcome, FACTORS[WITHIN]) * x)
            for x in (measure, rival)
        ]
        difference = errors[1] - errors[0]
        rejected.append(stats.mean_test(difference, alternative="greater").p_value < 0.05)
    assert np.mean(rejected) > 0.1


def test_ranks_of_conditions_as_if_independent_would_be_wrong():
    rng = np.random.default_rng(4)
    rejected = []
    for _ in range(200):
        ranks = stats.spearman(_quantity(rng), _quantity(rng), rng=rng, num_permutations=199)
        rejected.append(np.mean(np.append(ranks.permuted, 1.0) >= ranks.estimate) < 0.05)
    assert np.mean(rejected) > 0.1


# Predictions frozen elsewhere: this grid is given, pairs are drawn


def _frozen(rng, num_pairs=16):
    """The contrast of two rivals' mean errors over the grid, tested at its value without noise.

    Neither prediction has to do with the outcome. A pair is one draw in all interventions: part of
    its noise is common to them.
    """
    logits, *predictions = (_quantity(rng) for _ in range(3))
    outcome, first, second = (1 / (1 + np.exp(-x)) for x in (logits, *predictions))
    noise = rng.standard_normal((28, num_pairs)) + rng.standard_normal(num_pairs)
    den = 1 + 0.1 * rng.standard_normal((28, num_pairs))
    num = outcome[:, None] * den + 0.03 * noise

    def contrast(measured):
        return np.mean(np.abs(measured - second) - np.abs(measured - first), -1)

    return stats.composite_test(
        lambda weights: contrast(stats.weighted_ratio(weights, num, den)),
        num_pairs,
        contrast(outcome),
        alternative="greater",
    )


def test_frozen_predictions_have_their_size_under_unrelated_effects():
    rng = np.random.default_rng(5)
    tests = [_frozen(rng) for _ in range(60)]
    for name in ("p_value", "p_reverse"):
        assert np.mean([getattr(test, name) < 0.05 for test in tests]) <= 0.1


@pytest.mark.slow
def test_frozen_predictions_have_their_size_far_out():
    rng = np.random.default_rng(6)
    tests = [_frozen(rng) for _ in range(2000)]
    for name in ("p_value", "p_reverse"):
        p_values = np.array([getattr(test, name) for test in tests])
        assert np.mean(p_values < 0.0026) <= 0.008
        assert np.mean(p_values < 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_gate_keeps_what_a_single_factor_carries_from_deciding():
    """A contrast over the grid that is large in one factor and of the other sign elsewhere."""
    carried = np.where(FACTORS == "ρ", 0.3, -0.02)
    assert carried.mean() > 0.04
    assert not stats.sign_holds(carried, FACTORS)
    assert stats.sign_holds(np.where(FACTORS == "ρ", 0.3, 0.02), FACTORS)


# Power


@pytest.mark.parametrize(("number", "effect"), [(11, 1.5), (13, 1.3)])
def test_power_of_sign_flips(number, effect):
    """At this mean over factors, in their standard deviations, Holm's first step is passed."""
    values = effect + np.random.default_rng(7).standard_normal((1500, number))
    p_values = np.array([stats.sign_flip_test(draw).p_value for draw in values])
    assert np.mean(p_values < 0.0025) >= 0.8
    # What a t-test, which knows that these are normal, sees sooner, is not lost by much.
    weaker = [stats.mean_test(draw, alternative="greater").p_value for draw in values]
    assert np.mean(p_values < 0.0025) > np.mean(np.array(weaker) < 0.0025) - 0.1


def test_fewer_than_nine_factors_cannot_decide_in_the_family_of_19():
    assert stats.sign_flip_test(np.ones(8)).p_value > 0.05 / 19
    assert stats.sign_flip_test(np.ones(9)).p_value < 0.05 / 19


def test_a_measure_that_predicts_is_told_from_one_that_does_not():
    rng = np.random.default_rng(8)
    p_values = []
    for _ in range(200):
        outcome, rival = (_quantity(rng)[WITHIN] for _ in range(2))
        measure = 0.5 * outcome + 0.05 * rng.standard_normal(outcome.size)
        test = stats.sign_flip_test(_advantage(measure, rival, outcome, FACTORS[WITHIN]))
        p_values.append(test.p_value)
    assert np.mean(np.array(p_values) < 0.0025) >= 0.8
