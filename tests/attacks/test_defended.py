"""Randomized models and models without a gradient: means, stand-ins, and every attack that asks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks, losses
from halfway.attacks import base

KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(1), (12, 3))
X = jax.random.uniform(jax.random.key(2), (20, 12))
WITH_ESTIMATOR = [
    name
    for name in attacks.__all__
    if callable(fn := getattr(attacks, name))
    and "estimator" in inspect.signature(fn).parameters
    and name != "ascend"
]


def mean_fn(x):
    return (x - 0.5) @ WEIGHTS


LABELS = mean_fn(X).argmax(-1)


def draw_fn(key, x):
    """A linear model with random signs of features left out: its mean is the linear model."""
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return (2 * kept * (x - 0.5)) @ WEIGHTS


def gradient_of(estimator_of, loss_fn, key=KEY):
    goal = base.objective(mean_fn, LABELS, loss_fn)
    estimator = estimator_of(goal)
    return estimator, estimator.estimate(key, estimator.init(X), X)


def minus_logit(logits, labels):
    return -logits[jnp.arange(len(labels)), labels]


def test_the_mean_over_draws_is_unbiased():
    """Of a loss that is linear in the logits, to the gradient of the mean model."""
    _, exact = gradient_of(base.exact_gradient, minus_logit)
    errors = []
    for num_draws in (64, 4096):
        estimator, estimate = gradient_of(attacks.eot(draw_fn, num_draws=num_draws), minus_logit)
        assert estimator.num_queries == num_draws
        away = np.asarray(estimate.gradient - exact.gradient)
        # Each feature is twice itself or 0: a standard deviation of its own size.
        scatter = away / np.asarray(exact.gradient) * np.sqrt(num_draws)
        assert abs(scatter.std() - 1) < 0.1 and abs(scatter.mean()) < 4 / np.sqrt(scatter.size)
        errors.append(np.abs(np.asarray(estimate.logits - mean_fn(X))).mean())
    assert errors[1] < errors[0] / 4
    np.testing.assert_allclose(estimate.loss, minus_logit(estimate.logits, LABELS), atol=1e-4)


def test_every_estimate_draws_anew():
    estimator, first = gradient_of(attacks.eot(draw_fn, num_draws=2), losses.cross_entropy)
    again = estimator.estimate(KEY, (), X)
    other = estimator.estimate(jax.random.key(5), (), X)
    np.testing.assert_array_equal(first.gradient, again.gradient)
    assert (first.gradient != other.gradient).any()


def test_a_stand_in_gives_the_gradient_and_the_model_the_rest():
    def stairs(x):
        return mean_fn(jnp.round(4 * x) / 4)

    goal = base.objective(stairs, LABELS, losses.cross_entropy)
    assert (base.exact_gradient(goal).estimate(None, (), X).gradient == 0).all()
    estimate = attacks.bpda(mean_fn)(goal).estimate(None, (), X)
    _, smooth = gradient_of(base.exact_gradient, losses.cross_entropy)
    np.testing.assert_array_equal(estimate.gradient, smooth.gradient)
    np.testing.assert_allclose(estimate.logits, stairs(X), atol=1e-6)
    loss = losses.cross_entropy(stairs(X), LABELS)
    np.testing.assert_allclose(estimate.loss, loss, atol=1e-6)


def test_straight_through_has_the_values_of_one_and_the_slope_of_the_other():
    through = attacks.straight_through(jnp.floor, lambda x: x**2)
    values, slopes = jax.vmap(jax.value_and_grad(through))(jnp.array([0.3, 1.7]))
    np.testing.assert_array_equal(values, [0, 1])
    np.testing.assert_allclose(slopes, [0.6, 3.4])


@pytest.mark.parametrize("name", WITH_ESTIMATOR)
def test_every_attack_that_takes_an_estimator_follows_it(name):
    """A model of steps, which no gradient leads through, and a stand-in that leads through it."""

    def stairs(x):
        return mean_fn(jnp.round(32 * x) / 32)

    assert len(WITH_ESTIMATOR) >= 10
    images = (20, 4, 3, 1)
    flat = lambda fn: lambda x: fn(x.reshape(len(x), -1))  # noqa: E731
    attack = functools.partial(
        getattr(attacks, name), key=KEY, labels=LABELS, threat=attacks.linf(0.3)
    )
    if name == "ti_fgsm":
        attack = functools.partial(attack, kernel_size=1)
    run = jax.jit(
        lambda x, **options: attack(flat(stairs), x=x, **options), static_argnames="estimator"
    )
    x = X.reshape(images)
    blind = run(x)
    led = run(x, estimator=attacks.bpda(flat(mean_fn)))
    assert float(led.success.mean()) >= 0.9
    assert float(blind.success.mean()) <= float(led.success.mean()) - 0.3


def test_a_gradient_of_ones_own():
    """Any function of the objective to an estimator: here one that goes the other way."""

    def backwards(goal):
        exact = base.exact_gradient(goal)

        def estimate(key, state, x):
            estimate = exact.estimate(key, state, x)
            return estimate._replace(gradient=-estimate.gradient)

        return exact._replace(estimate=estimate)

    for attack in (attacks.pgd, attacks.apgd):
        options = {"threat": attacks.linf(0.1), "num_steps": 10}
        ahead = attack(mean_fn, KEY, X, LABELS, **options)
        back = attack(mean_fn, KEY, X, LABELS, estimator=backwards, **options)
        assert back.success.sum() < ahead.success.sum()


@pytest.mark.quick
def test_no_draw_is_refused():
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        attacks.eot(draw_fn, num_draws=0)
