"""Lengths over the whole range of numbers, and the parameters among a pytree's leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import trees

norm, unit, power_of_two = map(jax.jit, (trees.norm, trees.unit, trees.power_of_two))
TREE = {
    "w": np.float32([1.0, 2.0]),
    "steps": np.array([7, 8]),
    "flag": True,
    "key": jax.random.key(0),
}


@pytest.mark.quick
def test_bytes_are_counted_of_arrays_and_of_shapes():
    tree = {"w": jnp.ones((2, 3)), "steps": np.zeros(4, np.int16), "flag": jnp.array(True)}
    assert trees.num_bytes(tree) == 24 + 8 + 1
    assert trees.num_bytes(jax.eval_shape(lambda: tree)) == 33
    assert trees.num_bytes({}) == 0


@pytest.mark.quick
def test_a_power_of_two_is_the_largest_below():
    with np.errstate(over="ignore"):
        powers = np.float32(2.0) ** np.arange(-126, 128, dtype=np.float32)
    for factor in (1.0, 1.5, 1.9999999):
        np.testing.assert_array_equal(power_of_two(powers * np.float32(factor)), powers)
    np.testing.assert_array_equal(power_of_two(np.float32([0, np.inf, np.nan])), 0.5)


@pytest.mark.quick
@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1.0, 1e25, 1e37])
def test_lengths_neither_overflow_nor_underflow(scale):
    vector = np.float32(scale) * np.float32([3, -4])
    assert float(norm(vector)) == pytest.approx(5 * scale, rel=1e-6)
    np.testing.assert_allclose(unit(vector), [0.6, -0.8], rtol=1e-6)
    assert float(trees.length({"a": vector[:1], "b": vector[1:]})) == pytest.approx(5 * scale)


def test_lengths_of_ordinary_vectors_are_those_of_numpy_bit_by_bit():
    """Scaling by a power of two rounds nothing, so that no measured number has changed."""
    vectors = np.random.default_rng(0).standard_normal((50, 257)).astype(np.float32)
    plain = jax.jit(lambda v: jnp.linalg.norm(v, axis=1))(vectors)
    np.testing.assert_array_equal(jax.jit(lambda v: trees.norm(v, axis=1))(vectors), plain)


@pytest.mark.quick
def test_no_length_has_a_unit_vector_of_none():
    assert not unit(jnp.zeros(3)).any() and float(norm(jnp.zeros(3))) == 0
    assert np.isfinite(jax.grad(lambda v: trees.unit(v).sum())(jnp.zeros(3))).all()
    assert np.isnan(unit(jnp.array([np.nan, 1.0]))).all()


@pytest.mark.quick
def test_leaves_that_are_no_parameters_stay():
    doubled = trees.map_floating(lambda w: 2 * w, TREE)
    assert doubled["steps"] is TREE["steps"] and doubled["key"] is TREE["key"]
    flat, unravel = trees.flatten(TREE)
    np.testing.assert_array_equal(flat, TREE["w"])
    direction = unravel(flat, direction=True)
    assert not direction["steps"].any() and direction["flag"] is False
    np.testing.assert_array_equal(direction["w"], TREE["w"])
    assert jax.tree.leaves(trees.only_floating(TREE))[0].shape == (2,)


@pytest.mark.quick
def test_half_precision_is_computed_in_single_and_stays_half():
    halves = {"w": jnp.full(1000, 1.0, jnp.bfloat16)}
    assert float(trees.length(halves)) == pytest.approx(np.sqrt(1000), rel=1e-6)
    assert float(trees.inner(halves, halves)) == 1000
    assert trees.map_floating(lambda w: w + 1, halves)["w"].dtype == jnp.bfloat16
    flat, unravel = trees.flatten(halves)
    assert flat.dtype == jnp.float32 and unravel(flat)["w"].dtype == jnp.bfloat16


@pytest.mark.quick
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: trees.split({"a": {"b": 1j}}), "tensor 'a/b' is complex64"),
        (lambda: trees.split({"a": 1}), "no tensor holds floating-point numbers"),
        (lambda: trees.split({}), "0 tensors of no dtype"),
        (lambda: trees.select(TREE, {"w": 1.0}), "the two pytrees differ in structure"),
        (lambda: trees.real(1j), "real numbers are needed"),
        (lambda: trees.pad_by_first(jnp.ones((0, 2)), 3), "has no first entry to pad with"),
    ],
)
def test_what_cannot_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.quick
def test_finite_trees():
    assert bool(trees.is_finite({})) and bool(trees.is_finite(TREE))
    assert not bool(trees.is_finite(TREE | {"w": jnp.array([1.0, np.nan])}))
