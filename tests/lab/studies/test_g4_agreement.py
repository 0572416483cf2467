"""How often models of a pair differ and err, counted again one by one; settings and the gate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import g4 as planted
from support import tiny_run

from halfway.lab.measurements.context import Context
from halfway.lab.studies.g4 import study
from halfway.lab.studies.g4.measure import AGREEMENT
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured, Records

CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
# Fewer examples than places: the last ones of a half are padding, which nobody trains on.
CONDITION = dataclasses.replace(condition(CONFIG, "mlp"), num_examples=50, capacity=60, overlap=0.5)


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


def _measure(population, pool):
    dataset = AGREEMENT.measure(Context(jax.random.key(4), (population,), pool, CONFIG))
    return Measured(dataset)


def test_counts_on_the_third_sample(trained, pool):
    agreement = _measure(trained, pool)
    logits_fn, images = jax.jit(CONDITION.apply_fn), jnp.asarray(pool.images)
    for pair in range(CONFIG.num_pairs):
        rows = np.asarray(trained.halves.s.indices[pair])
        labels = np.asarray(pool.labels)[rows]
        models = [
            jax.tree.map(lambda leaf, place=(pair, side): leaf[place], trained.params)
            for side in range(2)
        ]
        first, second = (np.asarray(logits_fn(m, images[rows])).argmax(-1) for m in models)
        assert agreement.read("num_compared")[pair] == len(rows) == CONFIG.num_holdout
        assert agreement.read("num_disagree")[pair] == (first != second).sum() > 0
        wrong = [(side != labels).sum() for side in (first, second)]
        assert agreement.read("num_wrong", "pair", "model")[pair].tolist() == wrong
        assert agreement.read("num_largest")[pair] == max(np.unique(labels, return_counts=True)[1])


def test_a_pair_that_diverged_has_no_numbers(trained, pool):
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), trained.params)
    shares = study.shares(_measure(trained.replace(params=params), pool))
    for values in shares:
        assert np.isnan(values).tolist() == [False, True, False]


@pytest.mark.quick
def test_settings_differ_in_what_their_names_say():
    config = tiny_run.digits()
    settings = [study.setting(config, name) for name in study.SETTINGS]
    assert {(s.num_examples, s.num_holdout, s.num_pairs) for s in settings} == {(150, 1497, 64)}
    shared = [(s.overlap, s.shared_start, s.shared_order) for s in settings]
    assert shared == [(0, False, False), (1, False, True), (1, True, False), (1, False, False)]
    assert [trained.num_examples for trained in study.larger(config)] == [300, 600]
    requests = study.needs(config)
    assert len({request.id for request in requests}) == len(requests) == 12


@pytest.mark.quick
def test_the_gate_counts_the_most_frequent_class_of_the_third_sample():
    records = planted.plant(np.random.default_rng(0), 1.0)
    gate = study.decide(records).parts[-1]
    assert gate.kind == "gate" and gate.passed
    # The same error, where nine of ten examples are of one class: a constant does about as well.
    (place,) = records.datasets
    skewed = records.datasets[place].copy(deep=True)
    skewed["num_largest"][:] = 0.92 * skewed["num_compared"]
    parts = study.decide(Records(records.config, {place: skewed})).parts
    assert parts[-1].estimate == pytest.approx(gate.estimate * 0.89 / 0.08, rel=0.02)
    assert not parts[-1].passed and parts[0].passed
