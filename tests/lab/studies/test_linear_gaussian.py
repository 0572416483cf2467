"""Linear models on linear-Gaussian data, attacked by the code that attacks networks, lie on P7."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import losses, meeting
from halfway.lab.studies.t3 import linear_gaussian
from halfway.lab.studies.t3.linear_gaussian import DIMENSION, LINEAR_GAUSSIAN, SAMPLES


@pytest.fixture(scope="module")
def measured():
    population = types.SimpleNamespace(condition=types.SimpleNamespace(key="a" * 12))
    return LINEAR_GAUSSIAN.measure(jax.random.key(3), [population], None, None)


def _ratio(terms):
    return terms[..., 0].sum(0) / terms[..., 1].sum(0)


@pytest.mark.parametrize("name", ["attacked", "gradients"])
def test_transfer_lies_on_the_curve_of_p7(measured, name):
    exact = meeting.linear_gaussian(np.array(SAMPLES), DIMENSION, 1.0, 1.0)
    found = _ratio(measured.arrays[name])
    # From a fifth to almost all: the curve, not one point of it.
    assert found[0] < 0.25 and found[-1] > 0.9
    np.testing.assert_allclose(found, exact.coefficient, atol=0.03)
    # Transfer as a function of generalization alone, both as measured.
    risk = measured.arrays["risks"].mean(0)
    np.testing.assert_allclose(risk, exact.risk, rtol=0.1)
    np.testing.assert_allclose(found, 1 / (1 + risk), atol=0.03)


def test_the_table_says_how_far_from_it(measured):
    exact = meeting.linear_gaussian(np.array(SAMPLES), DIMENSION, 1.0, 1.0).coefficient
    farthest = np.abs(_ratio(measured.arrays["attacked"]) - np.asarray(exact)).max()
    table = measured.table
    assert table["quantity"].tolist() == ["distance_from_P7"]
    assert table["value"].item() == pytest.approx(farthest) and farthest < 0.03
    assert table["condition"].item() == "a" * 12


def test_an_attack_moves_both_as_far_as_their_gradients_say():
    weights = jnp.array([[[1.0, 2.0, -1.0] + [0.0] * 17, [0.5, -1.0, 3.0] + [0.0] * 17]])
    moved, products = linear_gaussian.attack(jax.random.split(jax.random.key(0), (1,)), weights)
    (a, b), number = np.asarray(weights[0]), 2
    # Two logits ±⟨w, x⟩: the margin loss has gradient ±2w.
    other, own = 2 * number * 4 * a @ b, number * 4 * (a @ a + b @ b)
    np.testing.assert_allclose(products[0], [other, own], rtol=1e-5)
    np.testing.assert_allclose(moved[0], linear_gaussian.TIME * np.array([other, own]), rtol=1e-3)


def test_least_squares_is_that_of_the_examples_in_use():
    key = jax.random.split(jax.random.key(1), (400,))
    weights, optima = linear_gaussian.fit(key, jnp.int32(80))
    assert weights.shape == (400, 2, DIMENSION) and optima.shape == (400, DIMENSION)
    np.testing.assert_allclose((optima**2).sum(-1), 1, rtol=1e-5)
    risk = ((weights - optima[:, None]) ** 2).sum(-1).mean()
    assert float(risk) == pytest.approx(20 / 59, rel=0.06)


def test_two_opposite_logits_have_the_score_as_half_of_their_margin():
    w, x = jnp.array([1.0, -2.0]), jnp.array([[3.0, 1.0], [0.0, 1.0]])
    logits_fn = functools.partial(linear_gaussian.two_logits, w)
    np.testing.assert_allclose(losses.margin(logits_fn(x), jnp.array([1, 0])), [-2.0, -4.0])
