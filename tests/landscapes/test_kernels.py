"""Empirical tangent kernels against dense Jacobians, and alignments in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from halfway import landscapes, losses, models

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(size=(7, 4, 4, 1)), jnp.float32)
OTHERS = jnp.asarray(RNG.uniform(size=(5, 4, 4, 1)), jnp.float32)
MODULE = models.build({"kind": "mlp", "widths": (6,), "activation": "tanh"}, num_classes=3)
PARAMS = jax.jit(MODULE.init)(jax.random.key(0), IMAGES)["params"]


def apply_fn(params, x):
    return jnp.asarray(MODULE.apply({"params": params}, x))


@pytest.fixture(scope="module")
def dense():
    """The kernel from dense Jacobians `[N, C, D]`."""
    flat, unravel = ravel_pytree(PARAMS)
    jacobians = jax.jit(jax.jacfwd(lambda v, x: apply_fn(unravel(v), x)))
    return np.einsum("icd,jed->ijce", jacobians(flat, IMAGES), jacobians(flat, OTHERS))


@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_kernel_is_the_product_of_dense_jacobians(block_size, dense):
    run = jax.jit(
        lambda x, y: (
            landscapes.empirical_ntk(apply_fn, PARAMS, x, y, block_size=block_size),
            landscapes.trace_ntk(apply_fn, PARAMS, x, y, block_size=block_size),
        )
    )
    kernel, traces = run(IMAGES, OTHERS)
    assert kernel.shape == (7, 5, 3, 3)
    np.testing.assert_allclose(kernel, dense, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(traces, np.trace(dense, axis1=2, axis2=3) / 3, rtol=1e-4)


def test_gradients_meet_by_the_kernel():
    """⟨∇L_A, ∇L_B⟩ = (1/nm) Σ_ij r_iᵀ K(x_i, x_j) r_j with r = softmax − onehot (P6)."""
    labels = [jnp.asarray(RNG.integers(0, 3, len(x))) for x in (IMAGES, OTHERS)]

    @jax.jit
    def both(params):
        residuals, gradients = [], []
        for x, y in zip((IMAGES, OTHERS), labels, strict=True):
            residuals.append(jax.nn.softmax(apply_fn(params, x)) - jax.nn.one_hot(y, 3))
            mean = lambda p, x=x, y=y: losses.cross_entropy(apply_fn(p, x), y).mean()  # noqa: E731
            gradients.append(ravel_pytree(jax.grad(mean)(params))[0])
        kernel = landscapes.empirical_ntk(apply_fn, params, IMAGES, OTHERS)
        product = jnp.einsum("ic,ijce,je->", residuals[0], kernel, residuals[1]) / (7 * 5)
        return product, gradients[0] @ gradients[1]

    product, expected = both(PARAMS)
    assert float(product) == pytest.approx(float(expected), rel=1e-4)


def test_ensembles_are_vmapped():
    members = jax.tree.map(lambda leaf: np.stack([leaf, np.float32(-0.5) * leaf]), PARAMS)
    run = jax.jit(lambda p: landscapes.trace_ntk(apply_fn, p, IMAGES, OTHERS))
    together = jax.jit(jax.vmap(run))(members)
    for i in range(2):
        alone = run(jax.tree.map(lambda leaf, i=i: leaf[i], members))
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-5)


alignment = jax.jit(landscapes.kernel_alignment, static_argnames="centered")


@pytest.mark.quick
def test_alignment_by_hand():
    first, second = np.float32(np.diag([1.0, 0.0])), np.float32(np.diag([0.0, 1.0]))
    assert float(alignment(first, second, centered=False)) == 0
    # Centred, both are ¼ [[1, -1], [-1, 1]].
    assert float(alignment(first, second)) == pytest.approx(1)


def test_alignment_ignores_scale_and_what_is_shared_by_all():
    root = RNG.standard_normal((2, 6, 6))
    first, second = (np.float32(r @ r.T) for r in root)
    plain = alignment(first, second)
    assert float(alignment(3 * first, second + 50)) == pytest.approx(float(plain), abs=1e-4)
    assert float(alignment(first, second + 50, centered=False)) != pytest.approx(
        float(alignment(first, second, centered=False)), abs=1e-2
    )
    centre = np.eye(6) - 1 / 6
    left, right = (centre @ np.asarray(m) @ centre for m in (first, second))
    dense = (left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum())
    assert float(plain) == pytest.approx(dense, rel=1e-4)
    assert np.isnan(alignment(first, np.ones((6, 6), np.float32)))


def test_blocks_hold_an_example_at_least():
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        landscapes.trace_ntk(apply_fn, PARAMS, IMAGES, OTHERS, block_size=0)


# Inputs of integers, and sides without examples


@pytest.mark.parametrize("name", ["empirical_ntk", "trace_ntk"])
def test_images_of_bytes_and_tokens_have_kernels(name):
    kernel_fn = getattr(landscapes, name)
    table = jnp.asarray(RNG.standard_normal((9, 4)), jnp.float32)

    def read(params, tokens):  # a table of rows, one for each token
        return params[tokens].sum(1)

    tokens = np.array([[0, 1], [1, 2], [3, 3]], np.int32)
    onehots = np.eye(9, dtype=np.float32)[tokens].sum(1)
    run = jax.jit(lambda t: kernel_fn(read, table, t, t))
    expected = onehots @ onehots.T
    kernel = np.asarray(run(tokens))
    kernel = np.einsum("ijcc->ij", kernel) / 4 if kernel.ndim == 4 else kernel
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)
    images = RNG.integers(0, 255, (7, 4, 4, 1)).astype(np.uint8)
    bytes_fn = jax.jit(lambda x: kernel_fn(lambda p, z: apply_fn(p, z / 255), PARAMS, x, x))
    floats_fn = jax.jit(lambda x: kernel_fn(apply_fn, PARAMS, x, x))
    np.testing.assert_allclose(
        bytes_fn(images), floats_fn((images / 255).astype(np.float32)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.quick
@pytest.mark.parametrize("side", ["first", "second"])
@pytest.mark.parametrize("name", ["empirical_ntk", "trace_ntk", "grouped_ntk"])
def test_an_empty_side_is_said(name, side):
    x, y = (IMAGES[:0], OTHERS) if side == "first" else (IMAGES, OTHERS[:0])
    weights = [jnp.ones((len(v), 2, 3)) for v in (x, y)] if name == "grouped_ntk" else []
    with pytest.raises(
        ValueError, match=rf"{side} must hold at least one example, \[N, ...\], got"
    ):
        getattr(landscapes, name)(apply_fn, PARAMS, x, y, *weights)


@pytest.mark.quick
def test_weights_of_other_examples_are_said():
    weights = [jnp.ones((len(v), 2, 3)) for v in (IMAGES, OTHERS)]
    with pytest.raises(ValueError, match="left has weights of 5 examples for 7 inputs"):
        landscapes.grouped_ntk(apply_fn, PARAMS, IMAGES, OTHERS, *weights[::-1])


@pytest.mark.quick
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_kernels_of_small_and_large_numbers_are_aligned(scale):
    kernel = np.float32(scale) * np.float32([[2, 0], [0, 1]])
    assert float(landscapes.kernel_alignment(kernel, kernel)) == pytest.approx(1)
