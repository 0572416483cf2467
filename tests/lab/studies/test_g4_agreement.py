"""How often models of a pair differ and err, counted again one by one, and who may vote."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import meeting
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g4.measure import AGREEMENT
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
# Fewer examples than places: the last ones of a half are padding, which nobody trains on.
CONDITION = dataclasses.replace(condition(CONFIG, "mlp"), num_examples=50, capacity=60, overlap=0.5)


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


def _measure(population, pool):
    dataset = AGREEMENT.measure(Context(jax.random.key(4), (population,), pool, CONFIG))
    return Measured(dataset)


@pytest.fixture(scope="module")
def predictions(trained, pool):
    """`[P, 2, N]` classes that each model predicts on the pool, one model after the other."""
    logits_fn = jax.jit(CONDITION.apply_fn)
    images = jnp.asarray(pool.images)
    models = [
        jax.tree.map(lambda leaf, index=index: leaf[index], trained.params)
        for index in np.ndindex(CONFIG.num_pairs, 2)
    ]
    classes = [np.asarray(logits_fn(model, images)).argmax(-1) for model in models]
    return np.reshape(classes, (CONFIG.num_pairs, 2, -1))


def _calibration_error(trained, predictions, labels, pairs):
    """The calibration error of the vote of some pairs, each model where it has not trained."""
    may_vote = np.ones(predictions.shape, bool)
    for pair, side in np.ndindex(predictions.shape[:2]):
        half = trained.halves[side]
        rows = np.asarray(half.indices[pair])[: CONDITION.num_examples]
        may_vote[pair, side, rows] = False
    assert (~may_vote).sum(-1).tolist() == [[CONDITION.num_examples] * 2] * CONFIG.num_pairs
    shape = -1, len(labels)
    chosen = predictions[pairs].reshape(shape), may_vote[pairs].reshape(shape)
    votes = meeting.votes(chosen[0], CONFIG.num_classes, chosen[1])
    return meeting.class_aggregated_calibration_error(votes, labels)


def test_counts_on_the_third_sample_and_the_vote_on_the_pool(trained, pool, predictions):
    agreement = _measure(trained, pool)
    labels = np.asarray(pool.labels)
    for pair in range(CONFIG.num_pairs):
        rows = np.asarray(trained.halves.s.indices[pair])
        first, second = predictions[pair][:, rows]
        assert agreement.read("num_compared")[pair] == len(rows) == CONFIG.num_holdout
        assert agreement.read("num_disagree")[pair] == (first != second).sum() > 0
        wrong = [(side != labels[rows]).sum() for side in (first, second)]
        assert agreement.read("num_wrong", "pair", "model")[pair].tolist() == wrong
    expected = _calibration_error(trained, predictions, labels, slice(None))
    np.testing.assert_allclose(agreement["calibration_error"], expected, rtol=1e-12)


def test_a_pair_that_diverged_has_no_numbers_and_no_vote(trained, pool, predictions):
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), trained.params)
    agreement = _measure(trained.replace(params=params), pool)
    for name in ("num_compared", "num_disagree"):
        assert np.isnan(agreement.read(name)).tolist() == [False, True, False]
    assert np.isnan(agreement.read("num_wrong", "pair", "model")).all(-1).tolist() == [
        False,
        True,
        False,
    ]
    expected = _calibration_error(trained, predictions, np.asarray(pool.labels), [0, 2])
    np.testing.assert_allclose(agreement["calibration_error"], expected, rtol=1e-12)


def test_without_a_pair_the_vote_is_undefined(trained, pool):
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, trained.params)
    agreement = _measure(trained.replace(params=params), pool)
    assert np.isnan(agreement["calibration_error"])
    assert np.isnan(agreement.read("num_disagree")).all()
