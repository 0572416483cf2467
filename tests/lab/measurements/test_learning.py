"""Landscapes along training as they are stored, and M_θ from them, counted by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import plants, tiny_run

from halfway import populations
from halfway.lab import studies
from halfway.lab.measurements import learning
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.learning import LEARNING, SAMPLES
from halfway.lab.study import conditions
from halfway.lab.study.records import NUMBERS, Measured, Records

STEPS = (0, 5, 30)
CONFIG = tiny_run.config(training={"probe_steps": STEPS})
LISTED = conditions.condition(CONFIG, "mlp"), conditions.control(CONFIG, "mlp")
PRODUCTS = ("own_own", "own_other", "other_other")


def _population(condition, seed):
    """A population as training gives it, of random numbers."""
    rng = np.random.default_rng(seed)
    both = (condition.num_pairs, 2)
    walks = lambda: rng.random((*both, len(STEPS)))  # noqa: E731
    return populations.Population(
        condition=condition,
        params={"kernel": jnp.ones((*both, 4))},
        halves=None,
        trained_labels=None,
        landscapes={s: {loss: walks() for loss in populations.LOSSES} for s in SAMPLES},
        constant={s: {loss: rng.random(both) for loss in populations.LOSSES} for s in SAMPLES},
        products={name: walks() for name in PRODUCTS},
        num_steps=rng.integers(1, 30, both),
    )


def _measure(population):
    return LEARNING.measure(Context(jax.random.key(11), (population,), None, CONFIG))


# The measurement


@pytest.mark.quick
def test_learning_is_what_the_probes_saw():
    population = _population(LISTED[0], 0)
    dataset = _measure(population)
    measured = Measured(dataset)
    for sample in SAMPLES:
        for loss in populations.LOSSES:
            walks = measured.read(loss, "pair", "model", "step", sample=sample)
            np.testing.assert_array_equal(walks, population.landscapes[sample][loss])
            constant = measured.read(f"constant_{loss}", "pair", "model", sample=sample)
            np.testing.assert_array_equal(constant, population.constant[sample][loss])
    for product in PRODUCTS:
        values = measured.read(f"gradient_{product}", "pair", "model", "step")
        np.testing.assert_array_equal(values, population.products[product])
    steps = measured.read("num_steps", "pair", "model")
    np.testing.assert_array_equal(steps, population.num_steps)
    assert dataset["step"].values.tolist() == list(STEPS)
    # Two arrays a loss, three products, the number of steps: all of them numbers of rules.
    assert len(dataset.attrs[NUMBERS]) == 2 * len(populations.LOSSES) + 3 + 1
    assert set(dataset.data_vars) == {*dataset.attrs[NUMBERS], "finite"}
    assert measured.finite.all()


def test_a_pair_that_diverged_is_named_and_has_no_numbers():
    population = _population(LISTED[0], 0)
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), population.params)
    dataset = _measure(population.replace(params=params))
    measured = Measured(dataset)
    assert measured.finite.tolist() == [True, False, True]
    assert np.isfinite(dataset["error"]).all()  # what the probes saw looks finite
    walks = measured.read("error", "pair", "model", "step", sample="own")
    assert np.isnan(walks).all((1, 2)).tolist() == [False, True, False]


def test_a_rule_reads_what_is_measured():
    parts = [_population(condition, seed) for seed, condition in enumerate(LISTED)]
    measured = {(LEARNING.name, part.condition.id): _measure(part) for part in parts}
    outcome = studies.available()["G1"].decide(Records(CONFIG, measured))
    for part in outcome.parts:
        assert math.isfinite(part.estimate)
        assert (part.num_pairs, part.num_excluded) == (CONFIG.num_pairs, 0)


# Coefficients by hand

ERROR = {
    # [P, 2, T] at steps 0, 5, 9
    "own": [[[0.9, 0.2, 0.0], [0.8, 0.4, 0.1]], [[0.9, 0.3, 0.2], [0.9, 0.5, 0.0]]],
    "other": [[[0.9, 0.4, 0.3], [0.9, 0.5, 0.6]], [[0.8, 0.6, 0.5], [0.9, 0.7, 0.4]]],
}
CONSTANT = {"own": [[0.9, 0.8], [0.9, 0.9]], "other": [[0.9, 0.9], [0.8, 0.9]]}
# The least cross-entropy of S: pair 0 at 5 and 9, pair 1 at 0 and 5.
HOLDOUT = [[[2.0, 1.0, 3.0], [2.0, 1.5, 1.0]], [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]]


def _learned(finite=(True, True), error=ERROR, holdout=HOLDOUT):
    """Learning of two pairs."""
    condition = conditions.condition(tiny_run.config(num_pairs=2), "mlp")
    unread = np.full((2, 2, 3), np.nan)
    walks = {
        "error": [error["own"], error["other"], unread],
        "cross_entropy": [unread, unread, holdout],
    }
    of_walks = "pair", "model", "sample", "step"
    numbers = {loss: (of_walks, np.stack(parts, 2)) for loss, parts in walks.items()}
    starts = np.stack([CONSTANT["own"], CONSTANT["other"], unread[..., 0]], 2)
    numbers["constant_error"] = of_walks[:3], starts
    dataset = plants.dataset(condition, numbers, sample=SAMPLES, step=(0, 5, 9))
    dataset["finite"] = "pair", np.array(finite)
    return Measured(dataset)


@pytest.mark.quick
def test_meeting_terms_by_hand():
    end = learning.meeting_terms(_learned())
    # Both directions summed: (.9 − .3) + (.9 − .6); (.9 − 0) + (.8 − .1).
    np.testing.assert_allclose(end.numerators, [0.9, 0.3 + 0.5])
    np.testing.assert_allclose(end.denominators, [1.6, 0.7 + 0.9])
    best = learning.meeting_terms(_learned(), at="best")
    # Model by model: pair 0 at steps 5 and 9, pair 1 at 0 and 5.
    np.testing.assert_allclose(best.numerators, [0.5 + 0.3, 0.0 + 0.2], atol=1e-12)
    np.testing.assert_allclose(best.denominators, [0.7 + 0.7, 0.0 + 0.4], atol=1e-12)


@pytest.mark.quick
def test_gap_and_training_accuracy_by_hand():
    np.testing.assert_allclose(learning.gap(_learned()), [(0.3 + 0.5) / 2, (0.3 + 0.4) / 2])
    np.testing.assert_allclose(learning.training_accuracy(_learned()), [0.95, 0.9])


def _nan_losses():
    error = {name: np.array(values) for name, values in ERROR.items()}
    holdout = np.array(HOLDOUT)
    for values in (*error.values(), holdout):
        values[1, 0, 1:] = np.nan
    return error, holdout


@pytest.mark.parametrize("losses", [(ERROR, HOLDOUT), _nan_losses()], ids=["finite", "NaN"])
def test_a_diverged_pair_leaves_whatever_its_losses_and_moves_no_other(losses):
    broken, whole = _learned((True, False), *losses), _learned()
    for at in ("end", "best"):
        terms = learning.meeting_terms(broken, at=at)
        for column, expected in zip(terms, learning.meeting_terms(whole, at=at), strict=True):
            assert column[0] == expected[0] and np.isnan(column[1])
    for statistic in (learning.gap, learning.training_accuracy):
        values = statistic(broken)
        assert values[0] == statistic(whole)[0] and np.isnan(values[1])
