"""The tangent kernel against Jacobians, and its spectrum against what is known of it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import landscapes, meeting, models
from halfway.meeting import tangents

RNG = np.random.default_rng(0)


def network(kind="mlp", **config):
    """Returns the `apply_fn` and the parameters of a small network for images of 3 x 3."""
    module = models.build({"kind": kind, **config}, num_classes=3)
    apply_fn = lambda params, x: module.apply({"params": params}, x)  # noqa: E731
    variables = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 3, 3, 1)))
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])  # biases too
    return apply_fn, params


@pytest.fixture(scope="module")
def mlp():
    return network(widths=(6, 5), activation="tanh")


IMAGES = jax.random.uniform(jax.random.key(0), (7, 3, 3, 1))


# ---- the kernel


def test_kernel_of_dense_layers_is_that_of_jacobians(mlp):
    apply_fn, params = mlp
    jacobian = jax.jit(jax.jacrev(apply_fn))(params, IMAGES)
    flat = np.concatenate([leaf.reshape(7, 3, -1) for leaf in jax.tree.leaves(jacobian)], -1)
    expected = np.einsum("icd,jcd->ij", flat, flat, dtype=np.float64) / 3
    assert len(tangents._dense_layers(apply_fn, params, IMAGES, 4)) == 3
    for chunk_size in (3, 64):
        kernel = compiled(
            meeting.tangent_kernel, apply_fn, params, IMAGES, IMAGES[:5], chunk_size=chunk_size
        )
        np.testing.assert_allclose(kernel, expected[:, :5], rtol=2e-6)
    np.testing.assert_allclose(
        compiled(meeting.tangent_kernel, apply_fn, params, IMAGES), expected, rtol=2e-6
    )


@pytest.mark.parametrize("kind", ["cnn", "scaled", "tied", "no bias", "branch", "mapped"])
def test_other_models_have_the_kernel_of_jacobians_too(kind, mlp):
    apply_fn, params = mlp
    is_dense = False
    if kind == "cnn":
        apply_fn, params = network("cnn", features=(2,), widths=())
    elif kind == "scaled":  # each parameter has another gradient than the layer's
        halved_fn = apply_fn
        apply_fn = lambda p, x: halved_fn(jax.tree.map(lambda leaf: leaf / 2, p), x)  # noqa: E731
    elif kind == "branch":
        branch_fn = apply_fn
        apply_fn = lambda p, x: jax.lax.cond(  # noqa: E731
            x.mean() > 0, lambda: branch_fn(p, x), lambda: jnp.zeros((x.shape[0], 3))
        )
    elif kind == "mapped":
        single_fn = apply_fn
        apply_fn = lambda p, x: jax.lax.map(lambda image: single_fn(p, image[None])[0], x)  # noqa: E731
    else:
        is_dense = kind == "no bias"

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = x.reshape(x.shape[0], -1)
                layer = nn.Dense(9, use_bias=False)
                return nn.Dense(3, use_bias=kind == "tied")(
                    layer(nn.tanh(layer(x))) if kind == "tied" else nn.tanh(layer(x))
                )

        net = Net()
        apply_fn, params = net.apply, jax.jit(net.init)(jax.random.key(2), IMAGES)
    assert bool(tangents._dense_layers(apply_fn, params, IMAGES, 4)) == is_dense
    expected = compiled(landscapes.trace_ntk, apply_fn, params, IMAGES, IMAGES)
    kernel = compiled(meeting.tangent_kernel, apply_fn, params, IMAGES, chunk_size=4)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)


def test_a_jitted_model_keeps_nothing_of_what_was_put_into_it(mlp):
    apply_fn, params = mlp
    jitted_fn = jax.jit(apply_fn)
    kernel = compiled(meeting.tangent_kernel, jitted_fn, params, IMAGES)
    np.testing.assert_allclose(
        kernel, compiled(meeting.tangent_kernel, apply_fn, params, IMAGES), rtol=1e-6
    )
    logits = jitted_fn(params, IMAGES)
    np.testing.assert_allclose(logits, jax.jit(apply_fn)(params, IMAGES), rtol=1e-6)


def test_mean_over_draws(mlp):
    apply_fn, params = mlp
    draws = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
    mean = compiled(meeting.mean_tangent_kernel, apply_fn, draws, IMAGES, IMAGES[:4])
    kernel_fn = jax.jit(functools.partial(meeting.tangent_kernel, apply_fn))
    kernels = [
        kernel_fn(jax.tree.map(lambda leaf: leaf[index], draws), IMAGES, IMAGES[:4])  # noqa: B023
        for index in range(3)
    ]
    np.testing.assert_allclose(mean, np.mean(kernels, 0), rtol=1e-6)
    lifted = jax.jit(jax.vmap(kernel_fn, (0, None, None)))(draws, IMAGES, IMAGES[:4])
    np.testing.assert_allclose(lifted, kernels, rtol=1e-5)


def test_no_chunk(mlp):
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        meeting.tangent_kernel(*mlp, IMAGES, chunk_size=0)


# ---- the spectrum


def units(*shape):
    """Returns the unit directions of inputs of a shape, with mean ddᵀ = I."""
    size = int(np.prod(shape))
    return jnp.sqrt(size) * jnp.eye(size).reshape(size, *shape)


def linear_kernel(first, second):
    return first @ second.T


def polynomial_kernel(first, second):
    return (1 + first @ second.T / 4) ** 3


def spectrum_of(kernel_fn, x, targets=None, key=None, **options):
    targets = x[:, :1] if targets is None else targets
    return meeting.empirical_spectrum(kernel_fn, key, x, targets, **options)


def test_linear_kernel_has_the_roughness_of_its_eigenvalues():
    """φ_i = ⟨u_i, x⟩/√λ_i on inputs of second moments UΛUᵀ, so that W = Λ⁻¹."""
    x = jax.random.normal(jax.random.key(0), (50, 4)) * jnp.array([[2.0, 1.0, 0.7, 0.3]])
    spectrum = spectrum_of(linear_kernel, x, directions=units(4), num_modes=4)
    moments = np.asarray(x, float).T @ np.asarray(x, float) / 50
    values = np.linalg.eigvalsh(moments)[::-1]
    np.testing.assert_allclose(spectrum.scale, values.sum(), rtol=1e-6)
    np.testing.assert_allclose(spectrum.eigenvalues, values / values.sum(), rtol=1e-5)
    np.testing.assert_allclose(spectrum.weights, np.diag(1 / values), rtol=1e-4, atol=1e-4)
    inner = spectrum.eigenfunctions.T @ spectrum.eigenfunctions / 50
    np.testing.assert_allclose(inner, np.eye(4), atol=1e-5)


def dense_weights(kernel_fn, x, spectrum):
    """Returns W from the Jacobians of the eigenfunctions as they are written, in float64."""
    size = x.shape[0]
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda point: kernel_fn(point[None], x)[0])))(
        x
    )  # [N, N, ...]
    slopes = np.asarray(slopes, float).reshape(size, size, -1) / float(spectrum.scale)
    functions, values = (
        np.asarray(array, float) for array in (spectrum.eigenfunctions, spectrum.eigenvalues)
    )
    gradients = np.einsum("nmd,mk->nkd", slopes, functions) / (size * values[None, :, None])
    return np.einsum("nid,njd->ij", gradients, gradients) / size


@pytest.mark.parametrize("rows_at_once", [512, 5])  # in three parts, the last of them padded
@pytest.mark.parametrize("kind", ["polynomial", "tangent"])
def test_roughness_is_that_of_dense_derivatives(kind, rows_at_once, mlp, monkeypatch):
    monkeypatch.setattr(tangents, "_ROWS_AT_ONCE", rows_at_once)
    kernel_fn, x = polynomial_kernel, jax.random.normal(jax.random.key(2), (13, 3))
    if kind == "tangent":
        apply_fn, params = mlp
        x = jax.random.uniform(jax.random.key(2), (13, 3, 3, 1))
        draws = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf / 2]), params)
        kernel_fn = functools.partial(meeting.mean_tangent_kernel, apply_fn, draws, chunk_size=5)
    directions = units(*x.shape[1:])
    spectrum = spectrum_of(kernel_fn, x, x.reshape(13, -1), directions=directions, num_modes=6)
    expected = dense_weights(kernel_fn, x, spectrum)
    sizes = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    np.testing.assert_allclose(spectrum.weights / sizes, expected / sizes, atol=2e-4)
    # not diagonal
    correlations = (expected / sizes)[~np.eye(6, dtype=bool)]
    assert np.abs(correlations).max() > 0.2


def test_kernel_and_targets_are_what_the_eigenfunctions_make():
    x = jax.random.normal(jax.random.key(3), (20, 5))
    targets = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)
    kernel_fn = lambda first, second: jnp.exp(first @ second.T / 5)  # noqa: E731
    spectrum = spectrum_of(kernel_fn, x, targets, num_directions=0)
    assert spectrum.weights is None
    functions, values = (
        np.asarray(array, float) for array in (spectrum.eigenfunctions, spectrum.eigenvalues)
    )
    kernel = np.asarray(kernel_fn(x, x)) / spectrum.scale
    np.testing.assert_allclose(functions * values @ functions.T, kernel, atol=1e-5)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose([values.sum(), np.diagonal(kernel).mean()], 1, rtol=1e-5)
    np.testing.assert_allclose(functions @ spectrum.coefficients, targets, atol=1e-5)
    square = (spectrum.coefficients**2).sum()
    np.testing.assert_allclose(square, (targets**2).sum() / 20, rtol=1e-5)


def test_random_directions_are_unbiased():
    """The mean of many estimates is W within its standard errors, drawn and given alike."""
    x = jax.random.normal(jax.random.key(2), (12, 3))
    exact = spectrum_of(polynomial_kernel, x, directions=units(3), num_modes=4).weights
    functions = spectrum_of(polynomial_kernel, x, num_directions=0, num_modes=4)
    keys = jax.random.split(jax.random.key(4), 400)
    estimate = functools.partial(
        tangents._slope_products, x, functions.eigenfunctions, kernel_fn=polynomial_kernel
    )
    inverse = 1 / (12 * functions.eigenvalues * functions.scale)
    products = jax.jit(jax.vmap(lambda key: estimate(key[None])))(keys)
    estimates = np.asarray(products * inverse[None, :, None] * inverse[None, None])
    errors = estimates.std(0, ddof=1) / np.sqrt(400)
    z = (estimates.mean(0) - exact) / errors
    assert np.abs(z).max() < 4
    assert 0.5 < np.sqrt((z**2).mean()) < 1.6
    drawn = spectrum_of(
        polynomial_kernel, x, key=jax.random.key(5), num_directions=16, num_modes=4
    ).weights
    assert (np.abs(drawn - exact) < 5 * errors * np.sqrt(400 / 16)).all()
    given = jax.random.normal(jax.random.key(6), (16, 12, 3))
    weights = spectrum_of(polynomial_kernel, x, directions=given, num_modes=4).weights
    assert (np.abs(weights - exact) < 5 * errors * np.sqrt(400 / 16)).all()


def test_rounding_is_replaced_by_the_floor():
    x = jax.random.normal(jax.random.key(0), (30, 2))
    spectrum = spectrum_of(linear_kernel, x, num_directions=0, floor=1e-4)
    np.testing.assert_array_equal(spectrum.eigenvalues[2:], np.full(28, np.float32(1e-4)))
    assert (spectrum.eigenvalues[:2] > 1e-2).all()


def test_all_of_the_roughness_predicts_kernel_regression_and_its_diagonal_does_not(digits):
    """As P10 says of an empirical kernel: digits, drawn from a pool of ten times as many."""
    pool = digits.pool("all")
    x = jnp.asarray(pool.images[:400]).reshape(400, -1)
    targets = jax.nn.one_hot(jnp.asarray(pool.labels[:400]), 10) - 0.1

    def kernel_fn(first, second):
        squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
        return jnp.exp(-squares / 7)  # about their median

    spectrum = spectrum_of(kernel_fn, x, targets, directions=units(64))

    def features_fn(key, number):
        return spectrum.eigenfunctions[jax.random.choice(key, 400, (number,), replace=False)]

    run = functools.partial(
        meeting.simulate_kernel_regression, features_fn, num_examples=40, num_replicates=60
    )
    modes, options = spectrum[:2], {"ridge": 1e-6, "noise": 0.0}
    measured = jax.jit(run)(jax.random.key(8), *modes, weights=spectrum.weights, **options)
    mu_f, mu_j = (
        getattr(measured, f"signal_{space}").mean() / getattr(measured, f"norm_{space}").mean()
        for space in ("function", "input")
    )
    law_fn = functools.partial(jax.jit(meeting.spectral_law), *modes, 40, **options)
    whole = law_fn(weights=spectrum.weights)
    diagonal = law_fn(weights=jnp.diagonal(spectrum.weights))
    assert abs(whole.function_coefficient - mu_f) < 0.05
    assert abs(whole.input_coefficient - mu_j) < 0.05
    assert diagonal.input_coefficient - mu_j > 2 * abs(whole.input_coefficient - mu_j)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": np.ones((4, 1))}, r"targets must have shape \[5, C\], got \(4, 1\)"),
        ({"num_modes": 6}, r"num_modes must be in \[1, 5\], got 6"),
        ({"floor": 0.0}, "floor must be finite and above 0, got 0.0"),
        ({"directions": np.ones((2, 3))}, r"directions must have shape \[R, \*\(2,\)\]"),
        ({"num_directions": -1}, "num_directions must be at least 0, got -1"),
        ({"num_directions": 2}, "a key is needed to draw directions"),
    ],
)
def test_arguments_out_of_range(options, message):
    x = jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)
    options = {"num_directions": 0} | options
    with pytest.raises(ValueError, match=message) as error:
        spectrum_of(linear_kernel, x, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", [jnp.zeros((3, 3)), jnp.full((3, 3), jnp.nan)])
def test_a_kernel_without_a_scale(kernel):
    with pytest.raises(ValueError, match="the kernel must be finite with a positive diagonal"):
        spectrum_of(lambda a, b: kernel, jnp.ones((3, 1)), num_directions=0)
