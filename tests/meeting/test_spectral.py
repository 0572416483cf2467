"""P10 against its equation in float64, its limits and its simulation; label noise by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from halfway import meeting
from halfway.meeting import spectral

RNG = np.random.default_rng(0)
NUM_MODES = 400
POWERS = np.arange(1, NUM_MODES + 1.0)
LAW, LINEAR = jax.jit(meeting.spectral_law), jax.jit(meeting.linear_gaussian)
"""As one program for each shape, where every operation on its own would be compiled."""


def reference(eigenvalues, coefficients, n, *, ridge=0.0, noise=0.0, weights=None):
    """Returns ϰ, E, μ_f and μ_J in float64, with the root as SciPy finds it."""
    lam, v = (np.asarray(values, np.float64) for values in (eigenvalues, coefficients))
    v = v.reshape(len(lam), -1)

    def excess(log_kappa):
        kappa = np.exp(log_kappa)
        return (lam / (lam + kappa)).sum() + ridge / kappa - n

    low, high = np.log(lam[lam > 0].min()) - 40, np.log(lam.sum() + ridge) + 5
    kappa = np.exp(brentq(excess, low, high, xtol=1e-14, rtol=1e-14))
    learned = lam / (lam + kappa)
    error = n / (n - (learned**2).sum()) * (((1 - learned) ** 2 @ (v**2).sum(1)) + noise)
    means = learned[:, None] * v
    shares = []
    for w in (np.eye(len(lam)), np.diag(weights) if np.ndim(weights) == 1 else weights):
        signal = np.einsum("ij,ic,jc->", w, means, means)
        shares.append(signal / (signal + np.diagonal(w) @ learned**2 * error / n))
    return kappa, error, *shares


def fields(law):
    return law.effective_ridge, law.error, law.function_coefficient, law.input_coefficient


@pytest.mark.parametrize(
    ("size", "power", "n", "ridge", "unit"),
    [
        (400, 1.5, 30, 0.0, 1.0),
        (400, 1.5, 30, 1e-2, 1e-25),
        (400, 3.0, 300, 0.0, 1e25),
        (50, 1.0, 100, 1e-3, 1.0),
        (50, 4.0, 100, 1e-9, 1.0),
        (400, 6.0, 100, 0.0, 1.0),
        (400, 1.5, 30, 1e4, 1.0),
        (10, 0.0, 9, 0.0, 1.0),
    ],
)
def test_law_is_its_equation_in_float64(size, power, n, ridge, unit):
    spectrum = (np.arange(1.0, size + 1) ** -power * unit).astype(np.float32)
    v, root = RNG.normal(size=(size, 3)), RNG.normal(size=(size, 5))
    ridge = np.float32(ridge * unit)
    for weights in (RNG.uniform(size=size), root @ root.T):
        law = LAW(spectrum, np.float32(v), n, ridge=ridge, noise=0.3, weights=np.float32(weights))
        expected = reference(spectrum, v, n, ridge=float(ridge), noise=0.3, weights=weights)
        np.testing.assert_allclose(fields(law), expected, rtol=2e-5)


def test_float64_has_all_its_digits():
    spectrum, v = POWERS**-2.0, POWERS**-1.0
    with jax.enable_x64(True):
        law = LAW(spectrum, v, 30, ridge=1e-3, noise=0.3, weights=POWERS)
        assert law.error.dtype == np.float64
        expected = reference(spectrum, v, 30, ridge=1e-3, noise=0.3, weights=POWERS)
        np.testing.assert_allclose(fields(law), expected, rtol=1e-11)


@pytest.mark.quick
def test_a_single_mode_by_hand():
    # λ = 1, n = 2, δ = 1: 1/(1 + ϰ) + 1/ϰ = 2, so ϰ² = 1/2; v = 1, σ² = 0
    kappa = np.sqrt(0.5)
    share = 1 / (1 + kappa)
    error = 2 / (2 - share**2) * (1 - share) ** 2
    law = LAW(np.ones(1), np.ones(1), 2, ridge=1.0, weights=np.full(1, 3.0))
    np.testing.assert_allclose(law.effective_ridge, kappa, rtol=1e-6)
    np.testing.assert_allclose(law.learnabilities, [share], rtol=1e-6)
    np.testing.assert_allclose(law.error, error, rtol=1e-6)
    np.testing.assert_allclose(law.signal_input, 3 * share**2, rtol=1e-6)
    np.testing.assert_allclose(law.noise_input, 3 * share**2 * error / 2, rtol=1e-6)
    np.testing.assert_allclose(law.noise_function, share**2 * error / 2, rtol=1e-6)


def test_more_examples_than_modes_learn_all_of_them():
    spectrum, v = np.array([2.0, 0.0, 0.5, 1e-6]), np.ones(4)
    law = LAW(spectrum, v, 13, noise=0.7)
    assert law.effective_ridge == 0
    np.testing.assert_array_equal(law.learnabilities, [1, 0, 1, 1])
    # what the mode of eigenvalue 0 holds is noise to the others
    np.testing.assert_allclose(law.error, 13 / 10 * (1 + 0.7), rtol=1e-6)
    np.testing.assert_allclose(law.signal_function, 3, rtol=1e-6)
    assert np.isnan(law.input_coefficient) and np.isnan(law.signal_input)


@pytest.mark.parametrize("n", [3, 13])
def test_a_ridge_that_vanishes_is_none(n):
    spectrum, v = np.array([2.0, 1.0, 0.5, 0.3, 0.0]), np.ones(5)
    small, none = (LAW(spectrum, v, n, ridge=r, noise=0.7) for r in (1e-7, 0.0))
    for value, limit in zip(small, none, strict=True):
        np.testing.assert_allclose(value, limit, rtol=1e-5, atol=1e-6)


def test_the_number_of_positive_eigenvalues_is_refused():
    spectrum, v = np.array([2.0, 0.0, 0.5]), np.ones(3)
    with pytest.raises(ValueError, match="not be the number of positive eigenvalues, 2, without"):
        meeting.spectral_law(spectrum, v, 2)
    traced = LAW(spectrum, v, 2, weights=v)
    assert all(np.isnan(field).all() for field in traced)
    defined = LAW(spectrum, v, 2, ridge=0.1, weights=v)
    assert all(np.isfinite(field).all() for field in defined)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eigenvalues": [1.0, -0.1]}, "eigenvalues must be finite and at least 0, got -0.1"),
        ({"eigenvalues": [1.0, np.inf]}, "eigenvalues must be finite and at least 0, got inf"),
        ({"eigenvalues": 1.0}, r"eigenvalues must have shape \[K\], got \(\)"),
        ({"coefficients": np.ones(3)}, r"coefficients must have shape \[2\] or \[2, C\]"),
        ({"weights": np.ones((2, 3))}, r"weights must have shape \[2\] or \[2, 2\]"),
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        (
            {"num_examples": [4, 5]},
            r"num_examples must be a scalar, got shape \(2,\): use jax.vmap",
        ),
        ({"ridge": -1.0}, "ridge must be finite and at least 0, got -1.0"),
        ({"noise": np.nan}, "noise must be finite and at least 0, got nan"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    defaults = {"eigenvalues": [1.0, 0.5], "coefficients": [1.0, 1.0], "num_examples": 5}
    options = defaults | arguments
    modes = options.pop("eigenvalues"), options.pop("coefficients")
    with pytest.raises(ValueError, match=message) as error:
        meeting.spectral_law(*modes, **options)
    assert "\n" not in str(error.value)
    if "scalar" not in message:
        with pytest.raises(ValueError, match=message):
            meeting.simulate_kernel_regression(
                meeting.gaussian_features, jax.random.key(0), *modes, num_replicates=2, **options
            )


def test_vmapped_and_looped_agree():
    spectrum, v = (POWERS**-1.5)[:60], (POWERS**-1.0)[:60]
    law = functools.partial(LAW, spectrum, v, weights=POWERS[:60])
    n, ridge, noise = jnp.array([5, 30, 90]), jnp.array([0.0, 1e-2, 0.0]), jnp.array([0.0, 1.0, 2])
    lifted = jax.jit(jax.vmap(lambda *args: law(args[0], ridge=args[1], noise=args[2])))(
        n, ridge, noise
    )
    for index in range(3):
        single = law(int(n[index]), ridge=ridge[index], noise=noise[index])
        for field, value in zip(lifted, single, strict=True):
            np.testing.assert_allclose(field[index], value, rtol=1e-6)


def test_permuted_modes_and_units_change_nothing():
    spectrum, v, w = POWERS[:50] ** -1.5, POWERS[:50] ** -1.0, POWERS[:50]
    options = {"ridge": 1e-2, "noise": 0.4}
    law = LAW(spectrum, v, 20, weights=w, **options)
    order = RNG.permutation(50)
    mixed = LAW(spectrum[order], v[order], 20, weights=w[order], **options)
    np.testing.assert_allclose(fields(mixed), fields(law), rtol=1e-6)
    np.testing.assert_allclose(mixed.learnabilities, law.learnabilities[order], rtol=1e-5)
    scaled = LAW(7 * spectrum, v, 20, weights=w, ridge=7e-2, noise=0.4)
    np.testing.assert_allclose(fields(scaled)[1:], fields(law)[1:], rtol=1e-6)
    np.testing.assert_allclose(scaled.effective_ridge, 7 * law.effective_ridge, rtol=1e-6)
    # targets are turned in the space of outputs
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    outputs = v[:, None] * RNG.normal(size=(50, 3))
    some, others = (
        LAW(spectrum, targets, 20, weights=w, **options) for targets in (outputs, outputs @ turn)
    )
    np.testing.assert_allclose(fields(some), fields(others), rtol=1e-6)


@jax.jit
def values(spectrum, v, n, ridge, noise, weights):
    law = meeting.spectral_law(spectrum, v, n, ridge=ridge, noise=noise, weights=weights)
    return jnp.stack(fields(law))


@jax.jit
def derivatives(*arguments):
    numbers = tuple(range(len(arguments)))
    return [derivative(values, numbers)(*arguments) for derivative in (jax.jacfwd, jax.jacrev)]


@pytest.mark.parametrize(("n", "ridge"), [(5.0, 0.0), (5.0, 0.1), (30.0, 0.0), (30.0, 0.1)])
def test_derivatives_are_slopes(n, ridge):
    spectrum, v = np.array([2.0, 1.0, 0.7, 0.4, 0.2, 0.1, 0.05, 0.02]), np.linspace(1, 0.3, 8)
    root = RNG.normal(size=(8, 8))
    with jax.enable_x64(True):
        arguments = [np.asarray(a, float) for a in (spectrum, v, n, ridge, 0.3, root @ root.T)]
        forward, reverse = jax.device_get(derivatives(*arguments))
        for index, argument in enumerate(arguments):
            np.testing.assert_allclose(forward[index], reverse[index], rtol=1e-8, atol=1e-12)
            # The ridge starts at 0, from where there is one side only.
            is_end = index == 3 and ridge == 0
            sides = (1e-6, 0.0) if is_end else (1e-6, -1e-6)
            ends = [
                np.asarray(values(*arguments[:index], argument + side, *arguments[index + 1 :]))
                for side in sides
            ]
            slope = (ends[0] - ends[1]) / (sides[0] - sides[1])
            total = forward[index].reshape(len(slope), -1).sum(1)
            tolerance = 1e-4 if is_end else 1e-7
            np.testing.assert_allclose(total, slope, rtol=tolerance, atol=1e-8)


def test_second_derivatives():
    spectrum, v = np.array([2.0, 1.0, 0.7, 0.4, 0.2]), np.ones(5)
    with jax.enable_x64(True):
        slope_fn = jax.jit(
            jax.grad(lambda r: meeting.spectral_law(spectrum, v, 3.0, ridge=r, noise=0.3).error)
        )
        curvature = jax.grad(slope_fn)(0.2)
        differences = (slope_fn(0.2 + 1e-5) - slope_fn(0.2 - 1e-5)) / 2e-5
        np.testing.assert_allclose(curvature, differences, rtol=1e-6)


# ---- limits


def test_equal_modes_are_the_linear_gaussian_model():
    """P7, to O(1/n): n and d doubled halve the difference."""
    for ratio, noise in ((2.0, 0.5), (0.5, 0.5), (3.0, 1.0), (0.25, 0.2)):
        errors = []
        for d in (64, 128):
            n = int(ratio * d)
            exact = LINEAR(n, d, signal=1.0, noise=noise)
            ones = np.ones(d)
            law = LAW(ones, ones / np.sqrt(d), n, noise=noise, weights=ones)
            np.testing.assert_allclose(law.input_coefficient, law.function_coefficient, rtol=1e-6)
            np.testing.assert_allclose(law.signal_function, exact.overlap, rtol=1e-5)
            errors.append(float(law.function_coefficient - exact.coefficient))
        np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)
        assert 1e-5 < abs(errors[0]) < 0.02


def test_noise_lowers_both_and_gradients_more():
    """What the law says: rougher modes hold more of the noise, so that μ_J < μ_f."""
    laws = [
        LAW(POWERS**-1.5, POWERS**-1.0, 100, noise=noise, weights=POWERS**2)
        for noise in (0.0, 0.1, 1.0)
    ]
    functions, inputs = (
        np.array([getattr(law, name) for law in laws])
        for name in ("function_coefficient", "input_coefficient")
    )
    assert (np.diff(functions) < 0).all() and (np.diff(inputs) < 0).all()
    assert (inputs < functions).all()


# ---- label noise


@pytest.mark.parametrize(("rate", "num_classes"), [(0.0, 3), (0.3, 2), (0.4, 5), (1.0, 4)])
def test_label_noise_by_brute_force(rate, num_classes):
    """The mean and variance of a noisy one-hot target over all outcomes of each label."""
    labels = np.array([0, 1, 1, 0, num_classes - 1])
    # ten functions that are orthonormal on five examples do not exist; five do
    functions = np.sqrt(5) * np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    one_hot = np.eye(num_classes)
    clean = functions.T @ (one_hot[labels] - 1 / num_classes) / 5
    chances = (1 - rate) * one_hot[labels] + rate / num_classes
    means = chances @ one_hot
    deviations = ((one_hot[None] - means[:, None]) ** 2).sum(-1)
    variances = (chances * deviations).sum(1)
    coefficients, noise = meeting.label_noise_terms(clean, rate, num_classes)
    np.testing.assert_allclose(coefficients, functions.T @ (means - 1 / num_classes) / 5, atol=1e-6)
    np.testing.assert_allclose(np.full(5, noise), variances, atol=1e-6)


def test_label_noise_out_of_range():
    with pytest.raises(ValueError, match=r"noise_rate must be in \[0, 1\], got 1.5"):
        meeting.label_noise_terms(np.ones((2, 3)), 1.5, 3)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        meeting.label_noise_terms(np.ones((2, 1)), 0.5, 1)
    rates = jnp.array([0.0, 0.5])
    lifted = jax.vmap(lambda rate: meeting.label_noise_terms(jnp.ones((2, 3)), rate, 3))(rates)
    np.testing.assert_allclose(lifted[0][1], 0.5 * np.ones((2, 3)))


# ---- simulation


def simulate(features_fn, n, num_replicates):
    return jax.jit(
        functools.partial(
            meeting.simulate_kernel_regression,
            functools.partial(features_fn, num_modes=NUM_MODES),
            num_examples=n,
            num_replicates=num_replicates,
        )
    )


def compare(simulation, law):
    """Returns measured over predicted minus 1, its standard error, and the prediction, by space."""
    rows = {}
    for space in ("function", "input"):
        signal, norm = (
            np.asarray(getattr(simulation, f"{name}_{space}"), float) for name in ("signal", "norm")
        )
        predicted = float(getattr(law, f"{space}_coefficient"))
        measured = signal.mean() / norm.mean()
        spread = (signal - measured * norm).std(ddof=1) / np.sqrt(len(signal)) / norm.mean()
        rows[space] = measured / predicted - 1, spread / predicted, predicted
    return rows


MORE_GAUSSIAN = [
    (1.5, 1.5, 30, [(0.0, 0.0), (1.0, 1e-2)], 696),
    (2.0, 2.0, 30, [(0.0, 1e-2), (1.0, 1e-2)], 696),
    (1.2, 1.0, 104, [(0.0, 1e-3), (0.3, 0.0)], 100),
    (1.5, 1.5, 200, [(0.0, 0.0), (1.0, 1e-2)], 104),
]


@pytest.mark.parametrize(
    ("power", "decay", "n", "settings", "num_replicates"),
    [
        (1.5, 1.5, 30, [(0.0, 0.0), (0.1, 1e-2)], 174),
        *(pytest.param(*setting, marks=pytest.mark.slow) for setting in MORE_GAUSSIAN),
    ],
)
def test_gaussian_features_have_the_stated_errors(power, decay, n, settings, num_replicates):
    """1 % in μ_f; in μ_J 1.5 %, or 10 % below .1; plus three standard errors of the simulation."""
    spectrum, v = jnp.asarray(POWERS**-power), jnp.asarray(POWERS ** (-decay / 2))
    v = v / jnp.linalg.norm(v)
    run = simulate(meeting.gaussian_features, n, num_replicates)
    for index, (noise, ridge) in enumerate(settings):
        options = {"noise": noise, "ridge": ridge, "weights": jnp.asarray(POWERS)}
        law = LAW(spectrum, v, n, **options)
        measured = run(jax.random.key(100 * n + index), spectrum, v, **options)
        rows = compare(measured, law)
        for space, stated in (("function", 0.01), ("input", 0.015)):
            error, spread, predicted = rows[space]
            stated = 0.1 if space == "input" and predicted < 0.1 else stated
            assert abs(error) < stated + 3 * spread, (noise, ridge, space, rows)
        errors = np.asarray(measured.error, float)
        spread = errors.std(ddof=1) / np.sqrt(len(errors))
        assert abs(errors.mean() - law.error) < 0.03 * law.error + 3 * spread


@pytest.mark.parametrize(
    ("n", "num_replicates"), [(20, 500), pytest.param(60, 500, marks=pytest.mark.slow)]
)
def test_fourier_modes_have_the_stated_errors(n, num_replicates):
    """6 % in μ_f and 37 % in μ_J for λ = max(k, 1)⁻², σ² up to .1 and δ = .01."""
    frequencies = meeting.fourier_frequencies(NUM_MODES)
    spectrum = jnp.maximum(frequencies, 1) ** -2.0
    v = jnp.sqrt(spectrum) / jnp.linalg.norm(jnp.sqrt(spectrum))
    run = simulate(meeting.fourier_features, n, num_replicates)
    for index, noise in enumerate((0.0, 0.1)):
        options = {"noise": noise, "ridge": 1e-2, "weights": frequencies**2}
        law = LAW(spectrum, v, n, **options)
        rows = compare(run(jax.random.key(n + index), spectrum, v, **options), law)
        for space, stated in (("function", 0.06), ("input", 0.37)):
            error, spread, _ = rows[space]
            assert abs(error) < stated + 3 * spread, (n, noise, space, rows)


@pytest.mark.parametrize("n", [2, 7])
def test_a_single_replicate_is_kernel_regression(n):
    """Solved as written, from the same draws, in float64; fewer and more examples than modes."""
    spectrum, v = np.array([1.0, 0.6, 0.3]), RNG.normal(size=(3, 2))
    root = RNG.normal(size=(3, 3))
    weights = root @ root.T
    features_fn = functools.partial(meeting.gaussian_features, num_modes=3)
    run = functools.partial(
        meeting.simulate_kernel_regression, features_fn, num_examples=n, num_replicates=1
    )
    run, key = jax.jit(run), jax.random.key(3)
    (replicate,) = jax.random.split(key, 1)
    for ridge, noise in ((0.0, 0.0), (0.1, 0.5)):
        measured = run(key, spectrum, v, ridge=ridge, noise=noise, weights=weights)
        fits = []
        for half in jax.random.split(replicate):
            x_key, noise_key = jax.random.split(half)
            phi = np.asarray(features_fn(x_key, n), float)
            y = phi @ v + np.sqrt(noise / 2) * np.asarray(jax.random.normal(noise_key, (n, 2)))
            inverse = np.linalg.pinv(phi * spectrum @ phi.T + ridge * np.eye(n))
            fits.append(spectrum[:, None] * phi.T @ inverse @ y)
        a, b = fits
        expected = [
            ((a - v) ** 2).sum() / 2 + ((b - v) ** 2).sum() / 2 + noise,
            (a * b).sum(),
            (a**2 + b**2).sum() / 2,
            np.trace(a.T @ weights @ b),
            np.trace(a.T @ weights @ a + b.T @ weights @ b) / 2,
        ]
        np.testing.assert_allclose(np.concatenate(measured), expected, rtol=1e-4, atol=1e-5)


def test_noise_is_drawn_for_each_half():
    """With features that are the same for all, what is left is noise of variance σ² per half."""
    basis = jnp.asarray(np.sqrt(8) * np.linalg.qr(RNG.normal(size=(8, 4)))[0], jnp.float32)
    run = jax.jit(
        functools.partial(
            meeting.simulate_kernel_regression,
            lambda key, number: basis,
            num_examples=8,
            num_replicates=4000,
        )
    )
    v = jnp.zeros((4, 3))
    whole = run(jax.random.key(1), jnp.ones(4), v, noise=0.6)
    # w − v = Φᵀξ/8: variance (σ²/3)/8 in each of 4 modes and 3 outputs
    spread = whole.norm_function.std() / np.sqrt(4000)
    assert abs(whole.norm_function.mean() - 4 * 0.6 / 8) < 4 * spread
    assert abs(whole.signal_function.mean()) < 4 * whole.signal_function.std() / np.sqrt(4000)
    np.testing.assert_allclose(whole.error, whole.norm_function + 0.6, rtol=1e-6)


def test_simulation_is_cut_into_chunks(monkeypatch):
    def run():
        simulate_fn = functools.partial(
            meeting.simulate_kernel_regression,
            functools.partial(meeting.fourier_features, num_modes=7),
            num_examples=5,
            num_replicates=10,
        )
        options = {"noise": 0.1, "ridge": 0.01, "weights": jnp.diag(jnp.arange(7.0))}
        return jax.jit(simulate_fn)(jax.random.key(3), jnp.ones(7), jnp.ones(7), **options)

    whole = run()
    assert all(field.shape == (10,) for field in whole)
    # In chunks of 4, 4 and 2
    monkeypatch.setattr(spectral, "_CHUNK", 4 * 2 * 5 * 7)
    for field, other in zip(whole, run(), strict=True):
        np.testing.assert_allclose(field, other, rtol=1e-4)
    with pytest.raises(ValueError, match="num_replicates must be at least 1, got 0"):
        meeting.simulate_kernel_regression(
            meeting.gaussian_features, jax.random.key(0), [1.0], [1.0], num_examples=2,
            num_replicates=0,
        )  # fmt: skip


def test_fourier_modes_are_orthonormal_with_their_roughness():
    @jax.jit
    def products(x):
        modes = meeting.fourier_modes(x, 9)
        slopes = jax.vmap(jax.jacfwd(lambda x: meeting.fourier_modes(x[None], 9)[0]))(x)
        drawn = meeting.fourier_features(jax.random.key(0), 2000, 3)
        return modes.T @ modes / 32, slopes.T @ slopes / 32, drawn.T @ drawn / 2000

    inner, roughness, sampled = products(2 * np.pi * np.arange(32) / 32)
    np.testing.assert_allclose(inner, np.eye(9), atol=1e-5)
    np.testing.assert_allclose(roughness, np.diag([0, 1, 1, 4, 4, 9, 9, 16, 16]), atol=2e-4)
    np.testing.assert_allclose(sampled, np.eye(3), atol=0.1)
    frequencies = meeting.fourier_frequencies(9)
    np.testing.assert_array_equal(frequencies, [0, 1, 1, 2, 2, 3, 3, 4, 4])
