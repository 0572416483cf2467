"""Synthetic data: draws against the population quantities that are known of them."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from halfway import data, losses
from halfway.data import synthetic

KEY = jax.random.key(0)
# Compiled once for each shape, where every operation on its own would be.
draw_regression = jax.jit(synthetic.linear_regression, static_argnums=1)
draw_mixture = jax.jit(synthetic.gaussian_mixture, static_argnames=("num_classes", "shape"))
draw_teacher = jax.jit(synthetic.teacher, static_argnames=("num_classes", "inputs"))
logits_of = jax.jit(lambda law, x: law.logits(x))
posterior_of = jax.jit(lambda law, x: jnp.exp(law.logits(x)))
errors_of = jax.jit(lambda law, x, labels: losses.error(law.logits(x), labels))


@functools.partial(jax.jit, static_argnames="number")
def sample(law, key, number):
    return law.sample(key, number)


@functools.partial(jax.jit, static_argnames="number")
def monte_carlo(law, key, number=20_000):
    return law.bayes_error_monte_carlo(key, number)


def z_value(values, expected):
    """Returns how many standard errors the mean of independent values `[N]` is off."""
    values = np.asarray(values, float)
    return (values.mean() - float(expected)) / (values.std(ddof=1) / np.sqrt(len(values)))


# Regression


@pytest.mark.parametrize(("dimension", "noise"), [(1, 1.0), (5, 0.0), (5, 2.0), (30, 0.5)])
@pytest.mark.parametrize("seed", range(2))
def test_gradient_moments_are_those_of_the_population(dimension, noise, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    law = draw_regression(keys[0], dimension, signal=2.0, noise=noise)

    @jax.jit
    def run(law, keys):
        weights = law.optimum + 0.7 * jax.random.normal(keys[1], (dimension,))
        x, y = law.sample(keys[2], 40_000)

        def loss(weights, x, y):
            return (x @ weights - y) ** 2 / 2

        values, gradients = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))(weights, x, y)
        exact = {
            "risk": law.risk(weights),
            "mean": law.mean_gradient(weights),
            "variance": law.gradient_variance(weights),
            "n_half": law.n_half(weights),
        }
        return values, gradients, exact

    values, gradients, exact = jax.device_get(run(law, keys))
    mean, n_half = exact["mean"], exact["n_half"]
    assert abs(z_value(values, exact["risk"])) < 4
    assert abs(z_value(gradients @ mean, mean @ mean)) < 4
    for axis in range(min(dimension, 3)):
        assert abs(z_value(gradients[:, axis], mean[axis])) < 4
    spread = np.sum((gradients - mean[None]) ** 2, axis=1)
    assert abs(z_value(spread, exact["variance"])) < 4
    # The ratio of means, by its error to first order
    assert abs(z_value(spread - n_half * (gradients @ mean), 0.0)) < 4
    np.testing.assert_allclose(n_half, exact["variance"] / (mean @ mean), rtol=1e-5)


def test_gradient_of_the_risk_is_the_mean_gradient():
    law = draw_regression(KEY, 4, noise=0.3)
    weights = np.arange(8, dtype=np.float32).reshape(2, 4)

    @jax.jit
    def run(law, weights):
        slopes = jax.vmap(jax.grad(law.risk))(weights)
        return slopes, law.mean_gradient(weights), law.risk(weights), law.n_half(weights)

    slopes, gradients, risk, n_half = run(law, weights)
    assert risk.shape == n_half.shape == (2,)
    np.testing.assert_allclose(slopes, gradients, rtol=1e-6)
    optimum = np.asarray(law.optimum)
    np.testing.assert_allclose(optimum @ optimum, 1.0, rtol=1e-6)
    *_, risk, n_half = run(law, np.stack([optimum, optimum]))
    assert risk[0] == pytest.approx(0.15)
    assert np.isposinf(n_half[0])


# Mixtures


def brute_force_posterior(law, x, rate):
    """Returns P(label | x) by Bayes' rule on SciPy's densities of the classes, in float64."""
    means = np.asarray(law.means, float).reshape(len(law.means), -1)
    x = np.asarray(x, float).reshape(len(x), -1)
    log_density = stats.norm.logpdf(x[:, None], means[None], float(law.scale)).sum(-1)
    density = np.exp(log_density - log_density.max(1, keepdims=True))
    clean = density / density.sum(1, keepdims=True)
    # The label is a class that was kept, or one of C draws.
    flip = (1 - rate) * np.eye(len(means)) + rate / len(means)
    return clean @ flip


slopes_of = jax.jit(
    jax.grad(lambda law, x, labels: losses.cross_entropy(law.logits(x), labels).sum(), 1)
)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("num_classes", "shape"), [(2, (3,)), (10, (8, 8, 1)), (4, (2, 3, 2))])
def test_posterior_is_that_of_bayes_rule(num_classes, shape, rate):
    law = draw_mixture(KEY, num_classes=num_classes, shape=shape, separation=2.0, noise_rate=rate)
    x, labels = sample(law, jax.random.key(1), 500)
    assert x.shape == (500, *shape) and labels.shape == (500,) and labels.dtype == jnp.int32
    posterior = posterior_of(law, x)
    np.testing.assert_allclose(posterior, brute_force_posterior(law, x, rate), atol=1e-4)
    slopes = slopes_of(law, x, labels)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_posterior_is_calibrated_on_draws(rate):
    """The labels that are drawn have the posterior's probabilities: means, label noise and all."""
    law = draw_mixture(KEY, num_classes=3, separation=1.5, noise_rate=rate)
    x, labels = jax.device_get(sample(law, jax.random.key(1), 20_000))
    posterior = np.asarray(posterior_of(law, x))
    for label in range(3):
        is_label = (labels == label).astype(float)
        assert abs(z_value(is_label - posterior[:, label], 0)) < 4
        assert abs(z_value((is_label - posterior[:, label]) * posterior[:, label], 0)) < 4


def test_moments_of_a_class():
    law = draw_mixture(KEY, num_classes=4, shape=(5,), scale=0.3, center=-1.0)
    x, labels = jax.device_get(sample(law, jax.random.key(2), 20_000))
    for label in range(4):
        rest = (x - np.asarray(law.means)[label][None])[labels == label]
        assert abs(z_value(rest[:, 0], 0.0)) < 4
        assert abs(z_value((rest**2).mean(1), 0.09)) < 4


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("separation", [0.5, 2.0])
def test_bayes_error_of_two_classes(separation, rate):
    law = draw_mixture(KEY, num_classes=2, separation=separation, noise_rate=rate, scale=0.5)
    exact = jax.jit(lambda law: law.bayes_error())(law)
    x, labels = sample(law, jax.random.key(1), 20_000)
    assert abs(z_value(errors_of(law, x, labels), exact)) < 4
    error = monte_carlo(law, jax.random.key(2))
    # Nothing varies where all labels are noise.
    assert abs(error.estimate - exact) < 4 * error.standard_error + 1e-6
    assert error.standard_error < 0.005


def test_bayes_error_of_more_classes():
    law = draw_mixture(KEY, num_classes=10, separation=3.0, noise_rate=0.2)
    with pytest.raises(ValueError, match="closed form for two classes, got 10"):
        law.bayes_error()
    error = monte_carlo(law, jax.random.key(2))
    x, labels = sample(law, jax.random.key(1), 20_000)
    errors = np.asarray(errors_of(law, x, labels))
    both = np.hypot(error.standard_error, errors.std() / np.sqrt(len(errors)))
    assert abs(errors.mean() - error.estimate) < 4 * both


def test_separation_is_a_root_mean_square():
    law = draw_mixture(KEY, num_classes=60, shape=(200,), separation=3.0, scale=0.5)
    means = np.asarray(law.means)
    off = np.linalg.norm(means[:, None] - means[None], axis=-1)[~np.eye(60, dtype=bool)]
    assert np.sqrt((off**2).mean()) / 0.5 == pytest.approx(3.0, rel=0.05)


# Teachers


@pytest.mark.parametrize("inputs", ["normal", "uniform"])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_teacher_labels(inputs, temperature):
    law = draw_teacher(KEY, num_classes=4, temperature=temperature, inputs=inputs)
    x, labels = jax.device_get(sample(law, jax.random.key(1), 20_000))
    assert x.shape == (20_000, 8, 8, 1) and labels.dtype == jnp.int32
    low, mean, variance = {"normal": (-10, 0, 1), "uniform": (0, 0.5, 1 / 12)}[inputs]
    assert x.min() >= low and abs(z_value(x[:, 0, 0, 0], mean)) < 4
    assert abs(z_value((x[:, 3, 2, 0] - mean) ** 2, variance)) < 4
    logits = np.asarray(jax.jit(law.apply_fn)(law.params, x))
    if temperature is None:
        np.testing.assert_array_equal(labels, logits.argmax(1))
        np.testing.assert_array_equal(logits_of(law, x), logits)
    else:
        posterior = special.softmax(logits / temperature, 1)
        log_odds = np.asarray(logits_of(law, x))
        np.testing.assert_allclose(special.softmax(log_odds, 1), posterior, rtol=1e-5)
        for label in range(4):
            off = (labels == label).astype(float) - posterior[:, label]
            assert abs(z_value(off, 0)) < 4 and abs(z_value(off * posterior[:, label], 0)) < 4
    shares = np.bincount(labels, minlength=4) / len(labels)
    assert shares.min() > 0.1


@pytest.mark.quick
def test_teacher_of_ones_own():
    def apply_fn(params, x):
        return x @ params

    law = synthetic.Teacher(jnp.eye(3), None, apply_fn, (3,))
    x, labels = jax.device_get(sample(law, KEY, 10))
    np.testing.assert_array_equal(labels, x.argmax(1))


@pytest.mark.quick
def test_kind_of_inputs():
    with pytest.raises(ValueError, match="inputs must be 'normal' or 'uniform', got 'cauchy'"):
        synthetic.teacher(KEY, inputs="cauchy").sample(KEY, 3)  # pyright: ignore


# All of them

LAWS = {
    "regression": lambda key: draw_regression(key, 6),
    "mixture": lambda key: draw_mixture(key, noise_rate=0.3),
    "teacher": lambda key: draw_teacher(key, temperature=1.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_same_key_same_data(name):
    law, again = (LAWS[name](jax.random.key(5)) for _ in range(2))
    for leaf, other in zip(jax.tree.leaves(law), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(leaf, other)
    first, second = (sample(law, jax.random.key(1), 50) for _ in range(2))
    for array, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(array, other)
    other = sample(law, jax.random.key(2), 50)
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("name", LAWS)
def test_fresh_data_at_every_step_of_one_program(name):
    """The law is data of the program: no compilation for another law or another key."""

    @jax.jit
    def run(law, key):
        def step(_, key):
            return None, law.sample(key, 8)

        return jax.lax.scan(step, None, jax.random.split(key, 3))[1]

    keys = jax.random.split(KEY, 4)
    x, labels = run(LAWS[name](keys[0]), keys[1])
    assert x.shape[:2] == labels.shape == (3, 8)
    assert len(np.unique(np.asarray(x)[:, 0].reshape(3, -1), axis=0)) == 3
    run(LAWS[name](keys[2]), keys[3])
    assert run._cache_size() == 1
    x, labels = jax.jit(jax.vmap(lambda key: LAWS[name](key).sample(key, 8)))(keys)
    assert x.shape[:2] == labels.shape == (4, 8)


# The named data set


def test_mixture_is_a_data_set(tmp_path):
    dataset = data.load("mixture", tmp_path / "nothing")
    assert (dataset.name, dataset.version, dataset.num_classes) == ("mixture", "1.0.0", 10)
    assert dataset.train.images.shape == (6000, 8, 8, 1)
    assert dataset.test.images.shape == (1000, 8, 8, 1)
    assert dataset.checksum == synthetic.MIXTURE_CHECKSUM
    assert dataset.checksum == data.load("mixture").checksum
    assert not list(tmp_path.iterdir())
    images, labels = dataset.pool()
    assert images.dtype == np.float32 and labels.dtype == np.int32
    # Nothing is clipped.
    assert images.min() > 0 and images.max() < 1
    levels = 255 * images.astype(float)
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert abs(stats.chisquare(np.bincount(labels, minlength=10)).pvalue - 0.5) < 0.499


def test_mixture_is_drawn_from_its_distribution():
    images, labels = data.load("mixture").pool()
    law = synthetic.mixture()
    assert law.means.shape == (10, 8, 8, 1)
    rest = images - np.asarray(law.means)[labels]
    assert abs(z_value(rest.mean((1, 2, 3)), 0.0)) < 4
    assert abs(z_value((rest**2).mean((1, 2, 3)), law.scale**2)) < 4
    posterior = np.asarray(posterior_of(law, images))
    is_label = np.eye(10)[labels]
    assert abs(z_value(((is_label - posterior) * posterior).sum(1), 0)) < 4
    errors = posterior.argmax(1) != labels
    assert abs(z_value(errors, monte_carlo(law, KEY).estimate)) < 4


def test_named_data_sets_need_no_jax():
    code = "import sys; from halfway import data; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
