"""P7 against its simulation on both sides of n = d, and P8 against a quadratic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import meeting
from halfway.meeting import closed_forms

# n, d, two σ: 0 only where n < d − 1, since otherwise it leaves nothing random
SETTINGS = [
    *[(7, 1, 0.7, 1.5), (16, 10, 0.1, 1.0), (40, 25, 0.3, 1.0)],
    *[(1, 7, 0.0, 1.0), (10, 21, 0.3, 1.5), (26, 36, 0.0, 1.0)],
]
MORE_SETTINGS = [
    *SETTINGS,
    *[(21, 10, 0.5, 2.0), (50, 20, 0.7, 3.0), (10, 16, 0.0, 0.5), (20, 50, 0.5, 2.0)],
]
SIGNAL = 1.5


def z_values(simulation, expected):
    """Returns how many standard errors each mean of a simulation is from its closed form."""
    simulation = {name: np.asarray(values, float) for name, values in simulation._asdict().items()}
    expected = {name: float(value) for name, value in expected._asdict().items()}
    size = len(simulation["risk"])
    # The ratio of means: its error to first order is that of overlap − μ · norm, over the norm.
    pairs = {name: (values, expected[name]) for name, values in simulation.items()}
    pairs["coefficient"] = (
        simulation["overlap"] - expected["coefficient"] * simulation["norm"],
        0.0,
    )
    return {
        name: (values.mean() - mean) / (values.std(ddof=1) / np.sqrt(size))
        for name, (values, mean) in pairs.items()
    }


@pytest.fixture(
    scope="module",
    params=[SETTINGS, pytest.param(MORE_SETTINGS, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def simulations(request):
    """Returns the z values of every setting."""
    z_by_setting = {}
    for seed, (n, d, *sigmas) in enumerate(request.param):
        # 2,000 replicates of these sizes are one chunk: a second would be compiled again.
        arguments = {"num_examples": n, "dimension": d, "signal": SIGNAL}
        simulate = jax.jit(
            functools.partial(meeting.simulate_linear_gaussian, **arguments, num_replicates=2000)
        )
        for key, sigma in zip(jax.random.split(jax.random.key(seed)), sigmas, strict=True):
            exact = meeting.linear_gaussian(**arguments, noise=sigma**2)
            z_by_setting[n, d, sigma] = z_values(simulate(key, noise=sigma**2), exact)
    return z_by_setting


def test_closed_forms_are_the_means_of_the_simulation(simulations):
    assert len(simulations) in (12, 20)
    assert all(len(values) == 5 for values in simulations.values())
    largest = max(simulations, key=lambda setting: max(map(abs, simulations[setting].values())))
    assert max(map(abs, simulations[largest].values())) < 4, (largest, simulations[largest])


def test_z_values_are_those_of_a_standard_normal(simulations):
    """Neither so large that a form is wrong, nor so small that errors are overstated."""
    z = np.array([list(values.values()) for values in simulations.values()])
    assert 0.7 < np.sqrt((z**2).mean()) < 1.3
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(len(z))


@pytest.mark.parametrize(("n", "d"), [(5, 2), (40, 34), (10, 10), (11, 10)])
def test_without_noise_enough_examples_find_the_optimum(n, d):
    exact = meeting.linear_gaussian(n, d, 2.0, 0.0)
    np.testing.assert_allclose(exact, [0, 2, 2, 1, 0], rtol=1e-6)
    if n - d >= 2:
        options = {"num_examples": n, "dimension": d, "signal": 2.0, "noise": 0.0}
        simulation = compiled(
            meeting.simulate_linear_gaussian, jax.random.key(0), num_replicates=9, **options
        )
        np.testing.assert_allclose(simulation.risk, np.zeros(9), atol=1e-8)
        np.testing.assert_allclose(simulation.overlap, np.full(9, 2.0), rtol=1e-4)


def test_without_noise_there_is_no_gap():
    n = jnp.arange(1, 21)
    exact = meeting.linear_gaussian(n, 10, 1.0, 0.0)
    share = np.minimum(1, np.arange(1, 21) / 10)
    np.testing.assert_allclose(exact.risk, 1 - share, atol=1e-6)
    np.testing.assert_allclose(exact.coefficient, share, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_many_examples(noise):
    exact = meeting.linear_gaussian(10**9, 10, 2.0, noise)
    np.testing.assert_allclose(exact, [0, 2, 2, 1, 0], rtol=1e-6, atol=1e-7)
    # n R / (σ² d) tends to 1, and counts far from each other are not rounded
    rate = 1e6 * meeting.linear_gaussian(10**6, 10, 2.0, 1.0).risk / 10
    np.testing.assert_allclose(rate, 1.0, rtol=1e-4)
    close = meeting.linear_gaussian(10**8 + 3, 10**8, 1.0, 1.0)
    np.testing.assert_allclose(close.risk, 1e8 / 2, rtol=1e-5)


def test_transfer_is_a_function_of_risk_only_with_many_examples():
    n, d = jnp.array([12, 30, 200, 5, 20]), jnp.array([10, 20, 10, 10, 40])
    exact = meeting.linear_gaussian(n, d, 1.5, 0.8)
    curve = 1 / (1 + np.asarray(exact.risk) / 1.5)
    is_many = np.asarray(n > d)
    np.testing.assert_allclose(exact.coefficient[is_many], curve[is_many], rtol=1e-6)
    assert (np.abs(exact.coefficient - curve)[~is_many] > 0.05).all()
    np.testing.assert_array_equal(exact.midpoint_risk[is_many], exact.risk[is_many] / 2)
    assert (np.abs(exact.midpoint_risk - exact.risk / 2)[~is_many] > 0.05).all()


def test_midpoint_risk_is_that_of_the_framework():
    n, d, signal, noise = 12, 30, 1.5, 0.8
    exact = meeting.linear_gaussian(n, d, signal, noise)
    expected = (exact.norm + exact.overlap) / 2 - 2 * n / d * signal + signal
    np.testing.assert_allclose(exact.midpoint_risk, expected, rtol=1e-6)


@pytest.mark.quick
def test_few_examples_by_hand():
    # n = 2, d = 5: a = .4, V = σ² · 2 / (5 − 2 − 1) = σ²
    exact = meeting.linear_gaussian(2, 5, 1.0, 3.0)
    np.testing.assert_allclose(exact, [3.6, 0.16, 3.4, 0.16 / 3.4, 0.6 * 0.8 + 1.5], rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(9, 10), (10, 10), (11, 10)])
def test_the_gap_around_n_equal_to_d(n, d):
    with pytest.raises(ValueError, match=f"got {n} and {d}: the risk has no expectation") as error:
        meeting.linear_gaussian(n, d, 1.0, 0.1)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"got {n} and {d}"):
        meeting.linear_gaussian(jnp.array([20, n]), d, 1.0, 0.1)
    for traced in (
        jax.jit(meeting.linear_gaussian)(n, d, 1.0, 0.1),
        jax.jit(functools.partial(meeting.linear_gaussian, n, d))(1.0, 0.1),
        jax.vmap(lambda noise: meeting.linear_gaussian(n, d, 1.0, noise))(jnp.array([0.1])),
    ):
        assert np.isnan(jax.tree.leaves(traced)).all()
    assert np.isfinite(jax.jit(meeting.linear_gaussian)(n, d, 1.0, 0.0)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 1.0, 1.0), "num_examples must be at least 1, got 0"),
        ((5, jnp.array([2, -3]), 1.0, 1.0), "dimension must be at least 1, got -3"),
        ((5, 2, -1.0, 1.0), "signal must be finite and at least 0, got -1.0"),
        ((5, 2, 1.0, np.nan), "noise must be finite and at least 0, got nan"),
        ((5, 2, 1.0, [1.0, np.inf]), "noise must be finite and at least 0, got inf"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        meeting.linear_gaussian(*arguments)
    if all(np.ndim(value) == 0 for value in arguments):
        n, d, signal, noise = arguments
        with pytest.raises(ValueError, match=message):
            meeting.simulate_linear_gaussian(
                jax.random.key(0),
                num_examples=n,
                dimension=d,
                signal=signal,
                noise=noise,
                num_replicates=2,
            )


def test_no_replicates():
    with pytest.raises(ValueError, match="num_replicates must be at least 1, got 0"):
        meeting.simulate_linear_gaussian(
            jax.random.key(0), num_examples=9, dimension=2, signal=1.0, noise=1.0, num_replicates=0
        )


def test_without_signal_or_noise_there_is_no_coefficient():
    exact = meeting.linear_gaussian(20, 10, 0.0, 0.0)
    assert np.isnan(exact.coefficient) and not np.isnan(exact.norm)
    slopes = jax.grad(lambda s: meeting.linear_gaussian(20, 10, s, 0.0).risk)(0.0)
    assert slopes == 0


def test_arrays_broadcast_and_lift():
    n, d, noise = jnp.array([[5], [30]]), jnp.array([10, 15, 20]), 0.5
    exact = meeting.linear_gaussian(n, d, 1.0, noise)
    assert all(field.shape == (2, 3) for field in exact)
    single = meeting.linear_gaussian(30, 15, 1.0, noise)
    np.testing.assert_allclose([field[1, 1] for field in exact], single, rtol=1e-6)
    lifted = jax.vmap(lambda n: jax.vmap(lambda d: meeting.linear_gaussian(n, d, 1.0, noise))(d))
    mapped = jax.jit(lifted)(n[:, 0])
    jitted = jax.jit(meeting.linear_gaussian)(n, d, 1.0, noise)
    for field, other, third in zip(exact, mapped, jitted, strict=True):
        np.testing.assert_allclose(field, other, rtol=1e-6)
        np.testing.assert_allclose(field, third, rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(30, 10), (10, 30), (10, 10)])
def test_derivatives_are_slopes(n, d):
    def fields(signal, noise):
        return jnp.stack(meeting.linear_gaussian(n, d, signal, noise))

    @jax.jit
    def run(signal, noise):
        forward, reverse = (
            derivative(fields, argnums=(0, 1))(signal, noise)
            for derivative in (jax.jacfwd, jax.jacrev)
        )
        return fields(signal, noise), forward, reverse

    step = np.float32(1e-2)
    for noise in (0.0, 0.5):
        if n == d and noise:  # no expectation
            continue
        here, (by_signal, by_noise), reverse = jax.device_get(run(1.5, noise))
        np.testing.assert_allclose(reverse, (by_signal, by_noise), rtol=1e-5)
        assert np.isfinite(by_signal).all() and np.isfinite(by_noise).all()
        above, below = (np.asarray(run(1.5 + sign * step, noise)[0]) for sign in (1, -1))
        np.testing.assert_allclose(by_signal, (above - below) / (2 * step), rtol=1e-2, atol=1e-4)
        if n != d:
            slope = (np.asarray(run(1.5, noise + step)[0]) - here) / step
            np.testing.assert_allclose(by_noise, slope, rtol=3e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("n", "d"),
    # The nearest to square are the hardest.
    [(100, 94), (94, 100), (8, 1)]
    + [
        pytest.param(*n_d, marks=pytest.mark.slow) for n_d in ((40, 34), (34, 40), (20, 60), (1, 8))
    ],
)
def test_solver_is_that_of_numpy_in_float64(n, d):
    x_key, y_key = jax.random.split(jax.random.key(n))
    x, y = jax.random.normal(x_key, (200, n, d)), jax.random.normal(y_key, (200, n))
    solutions = np.asarray(jax.jit(jax.vmap(meeting.minimum_norm_fit))(x, y))
    expected = np.stack(
        [np.linalg.lstsq(*pair, rcond=None)[0] for pair in zip(*map(np.float64, (x, y)))]  # noqa: B905
    )
    error = np.linalg.norm(solutions - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 3e-5  # without its refinement 4e-4 and 5e-5 at the first two


def test_simulation_repeats_and_is_cut_into_chunks(monkeypatch):
    simulate = functools.partial(
        meeting.simulate_linear_gaussian,
        num_examples=12,
        dimension=5,
        signal=1.0,
        noise=0.5,
        num_replicates=10,
    )
    whole = jax.jit(simulate)(jax.random.key(3))
    assert all(field.shape == (10,) for field in whole)
    assert len(np.unique(whole.risk)) == 10
    # In chunks of 4, 4 and 2
    monkeypatch.setattr(closed_forms, "_CHUNK", 4 * 12 * 5)
    for field, other in zip(whole, compiled(simulate, jax.random.key(3)), strict=True):
        np.testing.assert_allclose(field, other, rtol=1e-5)
    # halves are independent of each other
    assert not np.allclose(whole.overlap, whole.norm)


@pytest.mark.parametrize("seed", range(3))
def test_midpoint_of_a_quadratic(seed):
    rng = np.random.default_rng(seed)
    root, slope, offset = rng.normal(size=(6, 6)), rng.normal(size=6), rng.normal()
    hessian = root + root.T  # indefinite
    a, b = rng.normal(size=(2, 6))

    def loss(theta):
        return theta @ hessian @ theta / 2 + slope @ theta + offset

    curvature = (a - b) @ hessian @ (a - b)
    midpoint = meeting.quadratic_midpoint(loss(a), loss(b), curvature)
    np.testing.assert_allclose(midpoint, loss((a + b) / 2), rtol=1e-5, atol=1e-5)


def test_midpoints_of_many_pairs():
    losses = jnp.arange(6.0).reshape(2, 3)
    midpoints = jax.jit(meeting.quadratic_midpoint)(losses, losses + 1, 8 * jnp.ones((2, 3)))
    np.testing.assert_allclose(midpoints, losses - 0.5)
