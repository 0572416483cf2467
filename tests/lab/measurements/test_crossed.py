"""Surrogates crossed with targets: blocks, sides, and models looked at one by one."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import transfer
from halfway.lab.measurements import crossed
from halfway.lab.measurements.context import Context
from halfway.populations import Halves, Sample

CONFIG = tiny_run.config(training={"probe_steps": (0, 5, 10)})


@pytest.fixture(scope="module")
def context(digits):
    """What is looked at here takes S, and no model of the population."""
    condition = crossed.common_condition(CONFIG, 3)
    rows = np.random.default_rng(0).permutation(1000)[:40]
    held = Sample(jnp.asarray(np.stack([rows] * 3)), *[jnp.zeros((3, 40), int)] * 2)
    population = SimpleNamespace(condition=condition, halves=Halves(held, held, held))
    return Context(jax.random.key(1), (population,), digits.pool(CONFIG.subset), CONFIG)


@pytest.mark.quick
def test_a_common_condition_is_the_configs_but_for_s_and_probes():
    condition = crossed.common_condition(CONFIG, 5, architecture="other")
    expected = {"num_pairs": 5, "common_holdout": True, "architecture": "other"}
    expected |= {"probe_steps": (0, 10)}
    fields = dataclasses.asdict(condition)
    assert {name: fields[name] for name in expected} == expected
    first = dataclasses.asdict(crossed.condition(CONFIG, CONFIG.architectures[0]))
    assert {name for name in fields if fields[name] != first[name]} == set(expected)


@pytest.mark.quick
def test_blocks_are_disjoint_and_leave_the_rest_out():
    params = {"w": jnp.arange(14).reshape(7, 2), "b": jnp.arange(7)}
    cut = crossed.blocks(params, 3)
    np.testing.assert_array_equal(cut["b"], [[0, 1, 2], [3, 4, 5]])
    assert cut["w"].shape == (2, 3, 2)
    both = jnp.stack([params["b"], 10 + params["b"]], 1)
    np.testing.assert_array_equal(crossed.side(both, crossed.TARGET), 10 + params["b"])


def test_models_of_other_architectures_are_evaluated_by_their_own_program(context):
    shape = {"kind": "linear"}
    other = dataclasses.replace(context.condition, architecture="linear", model=shape)
    rows = crossed.example_rows(context)
    x, labels = context.shared.images[rows], context.shared.labels[rows]
    keys = jax.random.split(jax.random.key(2), 3)
    models = jax.vmap(lambda key: other.module.init(key, x[:1])["params"])(keys)
    points = jnp.stack([x, 1 - x])
    outcome = crossed.evaluate(context, models, points, other)
    assert outcome.correct.shape == (3, 2, len(rows))
    for m, r in np.ndindex(3, 2):
        model = jax.tree.map(lambda leaf, m=m: leaf[m], models)
        expected = transfer.evaluate(functools.partial(other.apply_fn, model), points[r], labels)
        np.testing.assert_allclose(outcome.loss[m, r], expected.loss, atol=1e-5)
        np.testing.assert_array_equal(outcome.predicted[m, r], expected.predicted)


def test_examples_of_s_are_as_many_as_are_attacked(context, monkeypatch):
    monkeypatch.setattr(crossed, "NUM_CROSSED", 7)
    rows = crossed.example_rows(context)
    np.testing.assert_array_equal(rows, context.population.halves.s.indices[0][:7])
