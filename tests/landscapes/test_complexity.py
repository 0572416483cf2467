"""Measures of a trained network against dense linear algebra, paths counted one by one, by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import landscapes, models

SIZES = (4, 5, 3)


def draw(seed=0):
    """A small MLP, biases not zero, with inputs in [0, 1]."""
    rng = np.random.default_rng(seed)
    params = {
        f"Dense_{i}": {
            "kernel": rng.normal(size=shape).astype(np.float32),
            "bias": rng.normal(size=shape[1]).astype(np.float32),
        }
        for i, shape in enumerate(itertools.pairwise(SIZES))
    }
    module = models.MLP(num_classes=SIZES[-1], widths=SIZES[1:-1])
    return (lambda params, x: module.apply({"params": params}, x)), params


def test_norms_are_those_of_dense_linear_algebra():
    _, params = draw()
    weights = [np.asarray(layer["kernel"], np.float64) for layer in params.values()]
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    norm = compiled(landscapes.parameter_norm, params)
    assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-6)
    start = jax.tree.map(np.zeros_like, params)
    distance = jax.jit(landscapes.parameter_distance)
    assert distance(params, start) == pytest.approx(np.linalg.norm(flat), rel=1e-6)
    assert distance(params, params) == 0
    spectral = sum(np.log(np.linalg.norm(w, 2)) for w in weights)
    frobenius = sum(np.log(np.linalg.norm(w)) for w in weights)
    product = compiled(landscapes.log_spectral_product, params)
    assert product == pytest.approx(spectral, rel=1e-5)
    product = compiled(landscapes.log_frobenius_product, params)
    assert product == pytest.approx(frobenius, rel=1e-6)


def test_a_convolution_is_the_matrix_of_its_kernel():
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 4)).astype(np.float32)
    (matrix,) = landscapes.weight_matrices({"kernel": kernel, "bias": jnp.ones(4)})
    assert matrix.shape == (18, 4)
    np.testing.assert_array_equal(matrix, kernel.reshape(18, 4))


def test_path_norm_sums_over_paths():
    apply_fn, params = draw()
    (w1, b1), (w2, b2) = (
        (np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64))
        for layer in params.values()
    )
    total = 0.0
    for i, j, k in itertools.product(*map(range, SIZES)):
        total += (w1[i, j] * w2[j, k]) ** 2
    for j, k in itertools.product(*map(range, SIZES[1:])):
        total += (b1[j] * w2[j, k]) ** 2
    total += (b2**2).sum()
    norm = compiled(landscapes.path_norm, apply_fn, params, jnp.ones((1, 2, 2, 1)))
    assert norm == pytest.approx(np.sqrt(total), rel=1e-5)


def test_path_norm_does_not_see_a_rescaling_between_layers():
    apply_fn, params = draw()
    scaled = dict(params)
    scaled["Dense_0"] = jax.tree.map(lambda leaf: 3 * leaf, params["Dense_0"])
    scaled["Dense_1"] = params["Dense_1"] | {"kernel": params["Dense_1"]["kernel"] / 3}
    unit_input = jnp.ones((1, 2, 2, 1))
    x = jnp.asarray(np.random.default_rng(2).uniform(size=(6, 2, 2, 1)), jnp.float32)

    @jax.jit
    def run(params):
        norms = (
            landscapes.path_norm(apply_fn, params, unit_input),
            landscapes.parameter_norm(params),
        )
        return apply_fn(params, x), *norms

    (logits, path, norm), (scaled_logits, scaled_path, scaled_norm) = run(params), run(scaled)
    np.testing.assert_allclose(scaled_logits, logits, rtol=1e-4, atol=1e-5)
    assert path == pytest.approx(float(scaled_path), rel=1e-5)
    assert scaled_norm > 1.5 * norm


@pytest.mark.quick
def test_margins_by_hand():
    logits = jnp.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0], [1.0, 1.5, -1.0], [9.0, 9.0, 9.0]])
    labels = jnp.array([0, 2, 0, 1])
    mask = jnp.array([True, True, True, False])
    margins, find = [2.0, 3.0, -0.5], jax.jit(landscapes.margin_quantile)
    for quantile in (0.0, 0.1, 0.5, 1.0):
        margin = find(logits, labels, mask, quantile=quantile)
        assert margin == pytest.approx(np.quantile(margins, quantile))
    assert find(logits[:3], labels[:3], quantile=0.5) == 2.0


def test_flatness_of_a_quadratic_is_known():
    # E L(σ u) = ½ σ² tr H, so that σ = √(2 rise / tr H).
    curvatures = jnp.asarray(np.random.default_rng(3).uniform(0.5, 2, 3000), jnp.float32)

    def loss_fn(w):
        return 0.5 * (curvatures * w**2).sum()

    expected = np.sqrt(2 * 0.1 / float(curvatures.sum()))
    sigma = compiled(
        landscapes.flatness, loss_fn, jnp.zeros(3000), jax.random.key(0), num_samples=20
    )
    assert sigma == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("slope", "end"), [(0.0, 1.0), (1e6, 1e-3)])
def test_flatness_stays_within_its_ends(slope, end):
    sigma = compiled(
        landscapes.flatness,
        lambda w: slope * (w**2).sum(),
        jnp.zeros(50),
        jax.random.key(0),
        num_steps=14,
    )
    assert sigma == pytest.approx(end, rel=1e-2)


def test_flatness_counts_what_is_not_a_number_as_risen():
    def loss_fn(w):
        return jnp.where(jnp.abs(w).max() > 0.01, jnp.nan, 0.0)

    assert compiled(landscapes.flatness, loss_fn, jnp.zeros(50), jax.random.key(0)) < 0.02


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_flatness_needs_an_interval(ends):
    with pytest.raises(ValueError, match="0 < low < high"):
        landscapes.flatness(jnp.sum, jnp.zeros(2), jax.random.key(0), low=ends[0], high=ends[1])


def test_measures_map_over_members_under_jit():
    apply_fn, params = draw()
    _, other = draw(1)
    stacked = jax.tree.map(lambda a, b: np.stack([a, b]), params, other)
    x = jnp.asarray(np.random.default_rng(4).uniform(size=(6, 2, 2, 1)), jnp.float32)
    labels = jnp.arange(6) % 3

    def measures(params, key):
        def loss_fn(params):
            return -jax.nn.log_softmax(apply_fn(params, x))[jnp.arange(6), labels].mean()

        return {
            "norm": landscapes.parameter_norm(params),
            "spectral": landscapes.log_spectral_product(params),
            "path": landscapes.path_norm(apply_fn, params, jnp.ones((1, 2, 2, 1))),
            "margin": landscapes.margin_quantile(apply_fn(params, x), labels),
            "flat": landscapes.flatness(loss_fn, params, key),
        }

    keys = jax.random.split(jax.random.key(5), 2)
    lifted = jax.jit(jax.vmap(measures))(stacked, keys)
    measure = jax.jit(measures)
    for index, member in enumerate((params, other)):
        for name, value in measure(member, keys[index]).items():
            assert lifted[name][index] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    norm, slope = jax.jit(jax.value_and_grad(landscapes.parameter_norm))(params)
    expected = params["Dense_0"]["bias"] / float(norm)
    np.testing.assert_allclose(slope["Dense_0"]["bias"], expected, rtol=1e-5)
