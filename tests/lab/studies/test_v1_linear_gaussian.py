"""Linear models on linear-Gaussian data, attacked by the code that attacks networks, lie on P7."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import losses, meeting
from halfway.lab.measurements.context import Context
from halfway.lab.studies.v1 import linear_gaussian
from halfway.lab.studies.v1.linear_gaussian import DIMENSION, HALF_SIZES, LINEAR_GAUSSIAN
from halfway.lab.study import conditions
from halfway.lab.study.records import Measured

CONFIG = tiny_run.config()
NUM_REPLICATES = 400


@pytest.fixture(scope="module")
def measured():
    condition = dataclasses.replace(conditions.condition(CONFIG, "mlp"), num_pairs=2)
    population = types.SimpleNamespace(condition=condition, finite=np.ones(2, bool))
    context = Context(jax.random.key(3), (population,), None, CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_gaussian, "NUM_REPLICATES", NUM_REPLICATES)
        return Measured(LINEAR_GAUSSIAN.measure(context))


def _ratio(measured, name):
    other, own_increase = (
        measured.read(name, "pair", "num_examples", target=target).sum(0)
        for target in linear_gaussian.TARGETS
    )
    return other / own_increase


@pytest.fixture(scope="module")
def exact():
    return meeting.linear_gaussian(np.array(HALF_SIZES), DIMENSION, 1.0, 1.0)


@pytest.mark.parametrize("name", ["increase", "product"])
def test_transfer_lies_on_the_curve_of_p7(measured, exact, name):
    ratio = _ratio(measured, name)
    # From a fifth to almost all: the curve, not one point of it.
    assert ratio[0] < 0.25 and ratio[-1] > 0.9
    np.testing.assert_allclose(ratio, exact.coefficient, atol=0.03)
    # Transfer as a function of generalization alone, both as measured.
    risk = measured.read("risk", "pair", "num_examples").sum(0) / NUM_REPLICATES
    np.testing.assert_allclose(risk, exact.risk, rtol=0.1)
    np.testing.assert_allclose(ratio, 1 / (1 + risk), atol=0.03)


def test_the_curve_is_stored_beside_the_replicates_of_each_pair(measured, exact):
    np.testing.assert_allclose(measured.read("exact", "num_examples"), exact.coefficient)
    assert measured["num_replicates"].item() == NUM_REPLICATES // 2
    assert measured.dataset.sizes["pair"] == 2
    assert measured.dataset["num_examples"].values.tolist() == list(HALF_SIZES)


@pytest.mark.quick
def test_every_pair_has_as_many_replicates():
    assert [linear_gaussian.num_each(500, pairs) for pairs in (1, 16, 500, 501)] == [500, 32, 1, 1]
    sums = linear_gaussian.sum_each(jnp.arange(6.0), 2)
    assert sums.tolist() == [3, 12] and sums.dtype == np.float64


def test_an_attack_moves_both_as_far_as_their_gradients_say():
    weights = jnp.array([[[1.0, 2.0, -1.0] + [0.0] * 17, [0.5, -1.0, 3.0] + [0.0] * 17]])
    # As many as are measured: the same program.
    size = len(HALF_SIZES) * NUM_REPLICATES
    keys = jax.random.split(jax.random.key(0), size)
    moved, products = linear_gaussian.attack(keys, jnp.tile(weights, (size, 1, 1)))
    (a, b), number = np.asarray(weights[0]), 2
    # Two logits ±⟨w, x⟩: the margin loss has gradient ±2w.
    expected = np.array([2 * number * 4 * a @ b, number * 4 * (a @ a + b @ b)])
    np.testing.assert_allclose(products[0], expected, rtol=1e-5)
    np.testing.assert_allclose(moved[0], linear_gaussian.TIME * expected, rtol=1e-3)


def test_least_squares_is_that_of_the_examples_in_use():
    key = jax.random.split(jax.random.key(1), (NUM_REPLICATES,))
    weights, optima = linear_gaussian.fit(key, jnp.int32(80))
    assert weights.shape == (NUM_REPLICATES, 2, DIMENSION)
    assert optima.shape == (NUM_REPLICATES, DIMENSION)
    np.testing.assert_allclose((optima**2).sum(-1), 1, rtol=1e-5)
    risk = ((weights - optima[:, None]) ** 2).sum(-1).mean()
    assert float(risk) == pytest.approx(20 / 59, rel=0.06)


@pytest.mark.quick
def test_two_opposite_logits_have_the_score_as_half_of_their_margin():
    w, x = jnp.array([1.0, -2.0]), jnp.array([[3.0, 1.0], [0.0, 1.0]])
    logits_fn = functools.partial(linear_gaussian.two_logits, w)
    np.testing.assert_allclose(losses.margin(logits_fn(x), jnp.array([1, 0])), [-2.0, -4.0])
