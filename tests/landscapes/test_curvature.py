"""Curvature against dense Hessians in float64, planted spectra and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from support.programs import compiled

from halfway import landscapes, losses, models


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def quadratic(spectrum, seed=0):
    """Returns a quadratic `loss_fn` on a pytree, its dense Hessian, and its minimum 0."""
    size = len(spectrum)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    matrix = jnp.asarray(basis * spectrum @ basis.T)

    def loss_fn(params):
        flat = ravel_pytree(params)[0]
        return 0.5 * flat @ matrix @ flat

    zeros = {"a": jnp.zeros((2, 3), float), "b": jnp.zeros(size - 6, float)}
    return loss_fn, matrix, zeros


@pytest.fixture(scope="module")
def network():
    """A small network's loss, outputs, parameters and dense Hessian."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.uniform(size=(12, 2, 2, 1)))
        labels = jnp.asarray(rng.integers(0, 3, 12))
        module = models.build({"kind": "mlp", "widths": (5,), "activation": "tanh"}, num_classes=3)
        shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
        params = jax.tree.map(lambda s: jnp.asarray(0.7 * rng.standard_normal(s.shape)), shapes)

        def output_fn(params):
            return jnp.asarray(module.apply({"params": params}, images))

        def mean_loss(logits):
            return losses.cross_entropy(logits, labels).mean()

        def loss_fn(params):
            return mean_loss(output_fn(params))

        flat, unravel = ravel_pytree(params)
        dense = jax.jit(jax.hessian(lambda v: loss_fn(unravel(v))))(flat)
        return loss_fn, output_fn, mean_loss, params, dense


def test_hessian_product_is_the_dense_one(network):
    loss_fn, _, _, params, dense = network
    flat, unravel = ravel_pytree(params)
    vector = jnp.asarray(np.random.default_rng(1).standard_normal(flat.shape))
    product = compiled(landscapes.hessian_product, loss_fn, params, unravel(vector))
    np.testing.assert_allclose(ravel_pytree(product)[0], dense @ vector, rtol=1e-9, atol=1e-12)


def test_gauss_newton_product_is_the_dense_one(network):
    _, output_fn, mean_loss, params, dense = network
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def dense_product(flat):
        jacobian = jax.jacobian(lambda v: output_fn(unravel(v)).ravel())(flat)
        outputs = output_fn(unravel(flat))
        inner = jax.hessian(lambda z: mean_loss(z.reshape(outputs.shape)))(outputs.ravel())
        return jacobian.T @ inner @ jacobian

    matrix = np.asarray(dense_product(flat))
    assert np.linalg.eigvalsh(matrix).min() > -1e-12
    assert np.abs(matrix - dense).max() > 1e-3  # so that H itself would not pass
    vector = np.random.default_rng(1).standard_normal(flat.shape)
    product = compiled(
        landscapes.gauss_newton_product, output_fn, mean_loss, params, unravel(jnp.asarray(vector))
    )
    np.testing.assert_allclose(ravel_pytree(product)[0], matrix @ vector, rtol=1e-9, atol=1e-12)


def test_top_eigenvalues_are_the_dense_ones_and_vectors_eigenvectors(network):
    loss_fn, _, _, params, dense = network
    find = jax.jit(
        lambda params, key: landscapes.top_eigenvalues(
            loss_fn, params, key, num_eigenvalues=5, tolerance=1e-9
        )
    )
    values, vectors = find(params, jax.random.key(0))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[::-1][:5], rtol=1e-5)
    for i in range(5):
        vector = ravel_pytree(jax.tree.map(lambda leaf, i=i: leaf[i], vectors))[0]
        assert np.linalg.norm(vector) == pytest.approx(1)
        np.testing.assert_allclose(dense @ vector, values[i] * vector, atol=1e-7)


def test_largest_is_algebraic_not_by_magnitude():
    loss_fn, _, zeros = quadratic(np.array([-9.0, -4, -1, 0, 0.5, 1, 2, 3]))
    find = functools.partial(compiled, landscapes.top_eigenvalues)
    values, _ = find(loss_fn, zeros, jax.random.key(0), num_eigenvalues=2)
    np.testing.assert_allclose(values, [3, 2], rtol=1e-6)
    negative, _, zeros = quadratic(-np.arange(1.0, 9))
    values, _ = find(negative, zeros, jax.random.key(0), num_eigenvalues=8)
    np.testing.assert_allclose(values, -np.arange(1.0, 9), rtol=1e-6)


def test_a_breakdown_does_not_end_in_nan_or_in_copies():
    @jax.jit
    def find(matrix):
        def loss_fn(z):
            return 0.5 * z @ matrix @ z

        return landscapes.top_eigenvalues(
            loss_fn, jnp.zeros(12), jax.random.key(1), num_eigenvalues=8, tolerance=1e-10
        )

    for rank in (0, 1, 3):
        spectrum = np.array([*np.arange(rank, 0, -1.0), *np.zeros(12 - rank)])
        _, matrix, _ = quadratic(spectrum)
        values, rows = jax.device_get(find(matrix))
        np.testing.assert_allclose(values, spectrum[:8], atol=1e-12)
        np.testing.assert_allclose(rows @ rows.T, np.eye(8), atol=1e-9)


def test_lanczos_stays_orthogonal_where_the_plain_recurrence_does_not():
    matrix = np.diag(np.geomspace(1e-6, 1e6, 60)).astype(np.float32)
    start = np.ones(60, np.float32)
    state = compiled(
        landscapes.lanczos, lambda v: matrix @ v, start, jax.random.key(0), num_steps=60
    )
    basis = np.asarray(state.basis)
    np.testing.assert_allclose(basis @ basis.T, np.eye(60), atol=1e-5)
    plain, vector, previous = [], start / np.linalg.norm(start), 0 * start
    coupling = np.float32(0)
    for _ in range(60):
        plain.append(vector)
        rest = matrix @ vector - coupling * previous
        rest = rest - (rest @ vector) * vector
        coupling = np.linalg.norm(rest)
        previous, vector = vector, rest / coupling
    plain = np.stack(plain)
    assert np.abs(plain @ plain.T - np.eye(60)).max() > 0.1


def test_lanczos_stops_where_told_to():
    state = compiled(
        landscapes.lanczos,
        lambda v: jnp.arange(1.0, 9) * v,
        jnp.ones(8, float),
        jax.random.key(0),
        num_steps=8,
        stop_fn=lambda state: state.num_steps >= 3,
    )
    assert int(state.num_steps) == 3
    assert not state.basis[3:].any()


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_trace_is_unbiased_and_its_standard_error_the_spread(network, method):
    loss_fn, _, _, params, dense = network
    estimates, errors = jax.jit(
        jax.vmap(
            lambda key: landscapes.hessian_trace(
                loss_fn, params, key, num_samples=12, method=method
            )
        )
    )(jax.random.split(jax.random.key(0), 1000))
    z = (estimates.mean() - jnp.trace(dense)) / (estimates.std() / np.sqrt(1000))
    assert abs(z) < 4
    assert np.sqrt((errors**2).mean()) == pytest.approx(float(estimates.std()), rel=0.15)


def test_hutchinson_has_the_variance_of_the_formula(network):
    loss_fn, _, _, params, dense = network
    estimates, _ = jax.jit(
        jax.vmap(lambda key: landscapes.hessian_trace(loss_fn, params, key, num_samples=2))
    )(jax.random.split(jax.random.key(1), 4000))
    formula = 2 * ((dense**2).sum() - (jnp.diag(dense) ** 2).sum())
    assert 2 * float(estimates.var()) == pytest.approx(float(formula), rel=0.15)


@pytest.mark.quick
def test_hutchinson_is_exact_on_a_diagonal_hessian():
    loss_fn = lambda z: 0.5 * (jnp.arange(5.0) * z**2).sum()  # noqa: E731
    estimate, error = compiled(
        landscapes.hessian_trace, loss_fn, jnp.ones(5), jax.random.key(0), num_samples=4
    )
    assert (float(estimate), float(error)) == (10.0, 0.0)


def test_hutch_plus_plus_is_exact_below_its_rank():
    loss_fn, _, zeros = quadratic(np.array([5.0, -3, 2] + [0.0] * 9))
    estimate, error = compiled(
        landscapes.hessian_trace,
        loss_fn,
        zeros,
        jax.random.key(0),
        num_samples=15,
        method="hutch++",
    )
    assert float(estimate) == pytest.approx(4)
    assert float(error) < 1e-10


def test_spectral_density_has_the_moments_of_the_hessian(network):
    """Wrong quadrature weights (first components not squared, or the last) fail here."""
    loss_fn, _, _, params, dense = network
    density = jax.jit(
        lambda key: landscapes.spectral_density(loss_fn, params, key, num_steps=6, num_samples=400)
    )(jax.random.key(0))
    np.testing.assert_allclose(density.weights.sum(-1), 1, rtol=1e-9)
    power = jnp.eye(len(dense))
    for degree in (1, 2, 3):
        power = power @ dense
        moments = (density.weights * density.nodes**degree).sum(-1)
        z = (moments.mean() - jnp.trace(power) / len(dense)) / (moments.std() / np.sqrt(400))
        assert abs(z) < 4, degree


def test_full_quadrature_weights_are_squared_projections_of_the_start():
    spectrum = np.arange(1.0, 9)
    loss_fn, matrix, zeros = quadratic(spectrum)
    density = compiled(
        landscapes.spectral_density, loss_fn, zeros, jax.random.key(0), num_steps=8, num_samples=3
    )
    np.testing.assert_allclose(density.nodes, np.tile(spectrum, (3, 1)), rtol=1e-9)
    _, vectors = np.linalg.eigh(matrix)
    key = jax.random.split(jax.random.split(jax.random.key(0), 3)[1])[0]
    start = jax.random.normal(key, (8,), float)
    start = start / jnp.linalg.norm(start)
    np.testing.assert_allclose(density.weights[1], (vectors.T @ start) ** 2, atol=1e-9)


def test_smoothed_density_integrates_to_one_and_has_an_error():
    loss_fn, _, zeros = quadratic(np.arange(1.0, 9))
    density = compiled(
        landscapes.spectral_density, loss_fn, zeros, jax.random.key(0), num_steps=4, num_samples=20
    )
    grid = np.linspace(-2, 12, 400)
    curve, error = jax.device_get(compiled(landscapes.smooth_density, density, grid, width=0.3))
    assert float(curve.sum() * (grid[1] - grid[0])) == pytest.approx(1, abs=1e-3)
    assert (error > 0).any() and (error >= 0).all()


def test_sharpness_of_a_quadratic():
    spectrum = np.arange(1.0, 9)
    loss_fn, matrix, zeros = quadratic(spectrum)
    worst = compiled(
        landscapes.worst_case_sharpness,
        loss_fn,
        zeros,
        jax.random.key(0),
        radius=0.5,
        num_steps=200,
    )
    assert float(worst) == pytest.approx(0.5 * 0.5**2 * 8, rel=1e-3)
    sam = jax.jit(functools.partial(landscapes.sam_sharpness, loss_fn, radius=0.5))
    assert float(sam(zeros)) == 0  # no gradient
    flat, matrix = np.ones(8), np.asarray(matrix)
    gradient = matrix @ flat
    moved = flat + 0.5 * gradient / np.linalg.norm(gradient)
    expected = 0.5 * (moved @ matrix @ moved - flat @ matrix @ flat)
    assert float(sam(jax.tree.map(np.ones_like, zeros))) == pytest.approx(expected)


def test_ensembles_are_vmapped_and_nothing_else_changes(network):
    loss_fn, _, _, params, _ = network
    members = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf, -leaf]), params)
    keys = jax.random.split(jax.random.key(0), 3)

    def everything(params, key):
        find = landscapes.top_eigenvalues
        return (
            find(loss_fn, params, key, num_eigenvalues=2, tolerance=1e-10).values,
            landscapes.hessian_trace(loss_fn, params, key, num_samples=6, method="hutch++"),
            landscapes.worst_case_sharpness(loss_fn, params, key, radius=0.1, num_steps=3),
            landscapes.sam_sharpness(loss_fn, params, radius=0.1),
        )

    together = jax.jit(jax.vmap(everything))(members, keys)
    measure = jax.jit(everything)
    together = jax.device_get(together)
    for i in range(3):
        alone = measure(jax.tree.map(lambda leaf, i=i: leaf[i], members), keys[i])
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), mine, alone)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, p, k: landscapes.top_eigenvalues(f, p, k, num_eigenvalues=9), r"\[1, 8\]"),
        (
            lambda f, p, k: landscapes.hessian_trace(f, p, k, num_samples=1),
            "at least 2 samples, got 1",
        ),
        (
            lambda f, p, k: landscapes.hessian_trace(f, p, k, num_samples=5, method="hutch++"),
            "at least 6 samples, got 5",
        ),
        (
            lambda f, p, k: landscapes.hessian_trace(f, p, k, num_samples=5, method="dense"),
            "'dense'",
        ),
        (
            lambda f, p, k: landscapes.spectral_density(f, p, k, num_steps=9, num_samples=1),
            r"\[1, 8\], the dimension, got 9",
        ),
    ],
)
def test_what_is_out_of_range_is_said(call, message):
    loss_fn, _, zeros = quadratic(np.arange(1.0, 9))
    with pytest.raises(ValueError, match=message):
        call(loss_fn, zeros, jax.random.key(0))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6])
@pytest.mark.parametrize("second", [4.9, -4.9])
def test_power_iteration_is_rayleighs_quotient_or_the_ritz_value_of_two_iterates(num_steps, second):
    start = np.random.default_rng(4).standard_normal(8)
    _, matrix, _ = quadratic(np.array([5.0, second, 2.0, 1.0, 0.5, 0.1, 0.0, 0.0]))
    value = landscapes.power_iteration(
        lambda v: matrix @ v, jnp.asarray(start), num_steps=num_steps
    )
    matrix = np.asarray(matrix)
    iterates = [np.linalg.matrix_power(matrix, k) @ start for k in range(num_steps)]
    last = iterates[-1] / np.linalg.norm(iterates[-1])
    expected = last @ matrix @ last
    if second < 0 and num_steps > 1:  # the signs differ: the last two iterates together
        basis, _ = np.linalg.qr(np.stack(iterates[-2:], 1))
        ritz = np.linalg.eigvalsh(basis.T @ matrix @ basis)
        if ritz[0] < 0 < ritz[1] and min(abs(ritz)) >= 0.8 * max(abs(ritz)):
            expected = ritz[np.argmax(abs(ritz))]
        else:
            assert num_steps < 3
    assert value == pytest.approx(expected, rel=1e-9)


def test_power_iteration_finds_the_largest_of_either_sign(network):
    spectrum = np.array([5.0, -3.0, 2.0, 1.0, 0.5, 0.1, 0.0, 0.0])
    start = jnp.asarray(np.random.default_rng(4).standard_normal(8))

    @functools.partial(jax.jit, static_argnums=1)
    def iterate(matrix, num_steps):
        return landscapes.power_iteration(lambda v: matrix @ v, start, num_steps=num_steps)

    for sign in (1, -1):
        _, matrix, _ = quadratic(sign * spectrum)
        assert iterate(matrix, 40) == pytest.approx(5.0 * sign, rel=1e-9)
    # The error falls as the 2 K-th power of the ratio of the two largest.
    _, matrix, _ = quadratic(spectrum)
    errors = [5 - float(iterate(matrix, k)) for k in (8, 12)]
    assert errors[1] / errors[0] == pytest.approx((3 / 5) ** 8, rel=0.2)
    loss_fn, _, _, params, dense = network
    values = np.linalg.eigvalsh(dense)
    expected = values[np.argmax(np.abs(values))]
    keys = jax.random.split(jax.random.key(1), 2)
    both = jax.jit(jax.vmap(lambda key: landscapes.sharpness(loss_fn, params, key, num_steps=60)))(
        keys
    )
    np.testing.assert_allclose(both, expected, rtol=1e-3)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def sharpness_of(diagonal, key):
    """The sharpness of a quadratic from each of several starts."""
    zeros = jnp.zeros_like(diagonal)
    return landscapes.sharpness(lambda z: 0.5 * z @ (diagonal * z), zeros, key)


@pytest.mark.parametrize("scale", [1.0, 1e22, 1e-28])
@pytest.mark.parametrize("pair", [(3.0, -3.0), (3.0, -2.99), (2.9, -3.0), (3.0, -2.5)])
def test_an_eigenvalue_of_the_other_sign_and_nearly_the_same_size(pair, scale):
    """Known elsewhere: Rayleigh's quotient of a mixture, anything between the two."""
    diagonal = np.float32(scale) * np.float32([*pair, *np.full(30, 0.1)])

    values = np.asarray(sharpness_of(diagonal, jax.random.split(jax.random.key(0), 20)), float)
    values = values / scale
    assert np.abs(np.abs(values) - 3).max() < 1e-4
    if pair[0] != -pair[1]:
        assert (np.sign(values) == (1 if pair[0] == 3 else -1)).all()


@pytest.mark.parametrize("scale", [1.0, 1e22, 1e-28])
def test_eigenvalues_of_any_size_are_right_to_the_tolerance(scale):
    spectrum = np.array([5.0, 4.0, 3.0, *np.linspace(0, 1, 30)])
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((33, 33)))
    matrix = (scale * (basis * spectrum) @ basis.T).astype(np.float32)
    pairs = compiled(
        landscapes.top_eigenvalues,
        lambda z: 0.5 * z @ (matrix @ z),
        np.zeros(33, np.float32),
        jax.random.key(0),
        num_eigenvalues=3,
    )
    np.testing.assert_allclose(np.asarray(pairs.values, float) / scale, [5, 4, 3], rtol=1e-4)
    assert pairs.converged.all() and (pairs.residuals < 0.03 * scale).all()


@pytest.mark.parametrize("number, max_steps, is_converged", [(300, 100, False), (40, 45, True)])
def test_what_has_not_converged_is_flagged(number, max_steps, is_converged):
    top = np.array([10.0, 9.999, 9.998, 9.997, 9.996])
    spectrum = np.array([*top, *np.linspace(-1, 9.9, number)])
    values, vectors, residuals, converged = jax.jit(
        lambda key: jax.tree.leaves(
            landscapes.top_eigenvalues(
                lambda z: 0.5 * z @ (spectrum * z),
                jnp.zeros(len(spectrum)),
                key,
                num_eigenvalues=5,
                max_steps=max_steps,
                tolerance=1e-6,
            )
        )
    )(jax.random.key(0))
    assert converged.all() == is_converged
    values, vectors = np.asarray(values), np.asarray(vectors)
    expected = np.linalg.norm(spectrum * vectors - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, expected, atol=1e-10)
    wrong = np.abs(values - top) > 1e-5
    assert not (wrong & converged).any()  # an eigenvalue, but not the fifth, is not converged
    assert wrong.any() == (not is_converged)


def test_eigenpairs_unpack_into_values_and_vectors():
    loss_fn, _, zeros = quadratic(np.arange(1.0, 9))
    pairs = compiled(
        landscapes.top_eigenvalues, loss_fn, zeros, jax.random.key(0), num_eigenvalues=2
    )
    values, vectors = pairs
    assert values is pairs.values and vectors is pairs.vectors


@pytest.mark.parametrize("scale", [1e22, 1e-28])
def test_traces_and_steps_of_small_and_large_curvature(scale):
    loss_fn = lambda z: 0.5 * np.float32(scale) * (jnp.arange(1.0, 9) * z**2).sum()  # noqa: E731
    ones = jnp.ones(8, jnp.float32)

    @jax.jit
    def run(key):
        trace = landscapes.hessian_trace(loss_fn, ones, key, num_samples=24, method="hutch++")
        return *trace, landscapes.sam_sharpness(loss_fn, ones, radius=0.5)

    trace, error, ascent = (float(v) / scale for v in run(jax.random.key(0)))
    assert trace == pytest.approx(36, rel=1e-4) and error < 1e-2
    gradient = np.arange(1.0, 9)
    moved = 1 + 0.5 * gradient / np.linalg.norm(gradient)
    assert ascent == pytest.approx(0.5 * (gradient * (moved**2 - 1)).sum(), rel=1e-4)


LANDSCAPES = {
    "hessian_product": lambda f, p, k: landscapes.hessian_product(f, p, p),
    "hessian_trace": lambda f, p, k: landscapes.hessian_trace(f, p, k, num_samples=2),
    "sam_sharpness": lambda f, p, k: landscapes.sam_sharpness(f, p, radius=0.1),
    "sharpness": landscapes.sharpness,
    "spectral_density": lambda f, p, k: landscapes.spectral_density(
        f, p, k, num_steps=2, num_samples=1
    ),
    "top_eigenvalues": lambda f, p, k: landscapes.top_eigenvalues(f, p, k, num_eigenvalues=1),
    "worst_case_sharpness": lambda f, p, k: landscapes.worst_case_sharpness(f, p, k, radius=0.1),
    "fit_bezier": lambda f, p, k: landscapes.fit_bezier(
        lambda params, key: f(params), p, p, k, optimizer=optax.sgd(0.1), num_steps=1
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("loss", ["an integer", "a loss for each example"])
@pytest.mark.parametrize("name", LANDSCAPES)
def test_a_loss_without_slope_is_refused(name, loss):
    loss_fn = {
        "an integer": lambda z: (z > 0).sum(),
        "a loss for each example": lambda z: z**2,
    }[loss]
    run = lambda z, key: LANDSCAPES[name](loss_fn, z, key)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"loss_fn must return a floating-point scalar, got (int|f)"
    ):
        jax.eval_shape(run, jnp.ones(3), jax.random.key(0))
