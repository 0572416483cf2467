"""Diagnostics: each sign on a model or an attack that has it, and none on a healthy one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import attacks, losses

KEY = jax.random.key(0)
W1, W2 = 2 * jax.random.normal(jax.random.key(1), (12, 16)), jax.random.normal(KEY, (16, 4))
X = jax.random.uniform(jax.random.key(2), (60, 12))


def healthy(x):
    return jnp.tanh(x @ W1) @ W2


LABELS = jnp.argmax(healthy(X), -1).at[:3].add(1) % 4


@functools.partial(jax.jit, static_argnames=("attack", "logits_fn", "options"))
def _diagnose(attack, logits_fn, threat, x, labels, options):
    options = {"num_queries": 60} | dict(options)
    return attacks.diagnose(attack, logits_fn, KEY, x, labels, threat=threat, **options)


def diagnose(
    logits_fn, attack=attacks.pgd, x=X, labels=LABELS, epsilon=0.03, threat=None, **options
):
    """The diagnosis of a model and an attack: one program for all inputs and budgets."""
    threat = attacks.linf(epsilon) if threat is None else threat
    return _diagnose(attack, logits_fn, threat, x, labels, tuple(options.items()))


def said(result):
    return " | ".join(attacks.in_words(result))


def test_a_healthy_model_and_attack_have_nothing_to_say():
    result = diagnose(healthy)
    assert attacks.in_words(result) == ()
    assert int(result.num_inputs) == 57 and result.zero_gradient == 0
    np.testing.assert_allclose(result.budgets, 0.03 * np.array([0.25, 0.5, 1, 2]), rtol=1e-6)
    assert (np.diff(result.success_rates) >= 0).all() and result.coupling < 1e-5
    # Shares are of what is classified rightly from the start.
    alone = compiled(attacks.pgd, healthy, KEY, X, LABELS, threat=attacks.linf(0.03))
    fooled = np.asarray(alone.success)[3:].mean()
    assert float(result.success_rates[2]) == pytest.approx(fooled)


def test_no_gradient_and_a_black_box_that_wins():
    steep = diagnose(lambda x: 1e4 * healthy(x))  # cross-entropy saturates, all else is the same
    assert steep.zero_gradient > 0.5 and steep.saturated == steep.zero_gradient
    assert "cross-entropy saturates at" in said(steep) and "no gradient" not in said(steep)
    stairs = diagnose(lambda x: healthy(jnp.round(x * 16) / 16), epsilon=0.1)
    assert stairs.zero_gradient == 1 and stairs.saturated == 0
    assert "the loss has no gradient at 100.0%" in said(stairs)
    assert stairs.success_rates[2] == 0
    other = compiled(
        attacks.square,
        lambda x: healthy(jnp.round(x * 16) / 16),
        jax.random.split(KEY)[1],
        X,
        LABELS,
        threat=attacks.linf(0.1),
        num_queries=60,
    )
    right = losses.error(healthy(jnp.round(X * 16) / 16), LABELS) == 0
    assert float(stairs.black_box_only) == pytest.approx(np.asarray(other.success)[right].mean())
    assert "Square fools" in said(stairs)


def test_gradients_that_are_not_finite_count_as_none():
    def broken(x):
        # The derivative is infinite where the first feature is 0.
        return healthy(x) + jnp.sqrt(x[:, :1]) * jnp.array([[1.0, 2.0, 1.0, 1.0]])

    x = X.at[:30, 0].set(0.0)
    result = diagnose(broken, x=x, labels=jnp.argmax(broken(x), -1))
    assert result.zero_gradient == 0  # one component is not all of a gradient
    only = x[:, :1]
    model = lambda x: jnp.sqrt(x) * jnp.array([[-1.0, 1.0]]) + jnp.array([[2.0, 0.0]])  # noqa: E731
    result = diagnose(model, x=only, labels=jnp.zeros(60, int))
    assert result.zero_gradient == 0.5


def test_success_that_falls_with_the_budget():
    def overshooting(logits_fn, key, x, labels, *, threat):
        """Fools everything up to a budget, and nothing beyond."""
        result = attacks.pgd(logits_fn, key, x, labels, threat=threat)
        return result._replace(success=jnp.broadcast_to(threat.epsilon < 0.02, labels.shape))

    result = diagnose(healthy, overshooting)
    np.testing.assert_array_equal(result.success_rates, [1, 1, 0, 0])
    assert "success falls from 100.0% to 0.0% as the budget grows from 0.015 to 0.03" in said(
        result
    )


def test_successes_that_rounding_undoes():
    """The boundary is a quarter of a step of 8 bits away from an image that is stored exactly."""
    x = jnp.full((10, 1), 128 / 255)
    edge = 128.25 / 255

    def logits_fn(x):
        return jnp.concatenate([edge - x, x - edge], 1)

    labels = jnp.zeros(10, int)
    close = diagnose(logits_fn, x=x, labels=labels, epsilon=0.4 / 255)
    assert close.success_rates[2] == 1 and close.lost_by_rounding == 1
    assert "rounding to 8 bits undoes 100.0% of the successes" in said(close)
    far = diagnose(logits_fn, x=x, labels=labels, epsilon=2 / 255)
    assert far.lost_by_rounding == 0 and not attacks.in_words(far)
    none = diagnose(logits_fn, x=x, labels=labels, epsilon=0.01 / 255)
    assert np.isnan(none.lost_by_rounding)


def test_a_model_that_couples_examples():
    def coupled(x):
        return healthy(x - x.mean(0, keepdims=True))

    result = diagnose(coupled, labels=jnp.argmax(coupled(X), -1))
    assert result.coupling > 0.1 and "the model couples examples" in said(result)


def test_other_norms_and_infinite_bounds():
    for threat in (attacks.l2(0.2), attacks.l1(0.5)):
        result = diagnose(healthy, threat=threat, num_queries=20, scales=(0.5, 1.0))
        assert 0 <= result.black_box_only < 0.2
        assert result.success_rates.shape == (2,)
    # Bounds that are known while tracing, not data.
    threat = attacks.linf(0.03, bounds=(-jnp.inf, jnp.inf))
    run = functools.partial(attacks.diagnose, attacks.pgd, healthy, threat=threat, num_queries=20)
    result = jax.jit(functools.partial(run, scales=(1.0,)))(KEY, X, LABELS)
    assert np.isnan(result.lost_by_rounding) and result.success_rates[0] > 0


def test_nothing_rightly_classified_is_said():
    result = diagnose(healthy, labels=(jnp.argmax(healthy(X), -1) + 1) % 4)
    assert attacks.in_words(result) == (
        "no input is classified rightly: there is nothing to attack",
    )


@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, 0.5), (0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.quick
def test_bad_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales must increase from above 0 and have 1 among them"):
        diagnose(healthy, scales=scales)


@pytest.mark.slow
def test_models_can_be_mapped():
    stacked = jnp.stack([W1, 2 * W1])

    def diagnose(weights):
        model = lambda x: jnp.tanh(x @ weights) @ W2  # noqa: E731
        return attacks.diagnose(
            attacks.fgsm, model, KEY, X[:8], LABELS[:8], threat=attacks.linf(0.03), num_queries=5
        )

    both = jax.jit(jax.vmap(diagnose))(stacked)
    for mapped, alone in zip(both, jax.jit(diagnose)(2 * W1), strict=True):
        np.testing.assert_allclose(mapped[1], alone, atol=1e-5)


def test_probabilities_in_the_place_of_logits():
    result = diagnose(lambda x: jax.nn.softmax(healthy(x)))
    assert result.probabilities == 1
    assert "the outputs are probabilities, not logits" in said(result)
    # Logits in [0, 1] are no probabilities, and neither are logarithms of these.
    assert diagnose(lambda x: jax.nn.sigmoid(healthy(x))).probabilities < 0.1
    assert diagnose(lambda x: jax.nn.log_softmax(healthy(x))).probabilities == 0


def test_a_randomized_model_is_not_one_that_couples_examples():
    def noisy(x):
        return healthy(x) + 0.3 * jax.random.normal(KEY, (len(x), 4))

    result = diagnose(noisy)
    assert result.randomness > 0.05
    assert "the model is randomized" in said(result) and "couples" not in said(result)

    def coupled(x):
        return healthy(x - x.mean(0, keepdims=True) + 0.5)

    result = diagnose(coupled)
    assert result.randomness < 1e-4 and result.coupling > 0.05
    assert "couples" in said(result) and "randomized" not in said(result)
