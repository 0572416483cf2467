"""What gradients say before an attack: closed forms for linear models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks, losses, meeting, transfer

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 5)), jnp.float32)
LABELS = jnp.zeros(6, jnp.int32)


def gradients(seed, number):
    return np.random.default_rng(seed).normal(size=(number, 6, 2, 5)).astype(np.float32)


@pytest.mark.parametrize(("threat_fn", "order"), [(attacks.linf, 1), (attacks.l2, 2)])
def test_alignment_is_the_share_of_the_best_step(threat_fn, order):
    a, b = gradients(1, 3), gradients(2, 4)
    found = np.asarray(transfer.alignment(jnp.asarray(a), jnp.asarray(b), threat=threat_fn(0.1)))
    assert found.shape == (3, 4, 6)
    for k, m, i in np.ndindex(*found.shape):
        u, v = a[k, i].ravel(), b[m, i].ravel()
        step = np.sign(u) if order == 1 else u / np.linalg.norm(u)
        assert found[k, m, i] == pytest.approx(step @ v / np.linalg.norm(v, order), abs=1e-5)
    assert np.abs(found).max() <= 1
    same = transfer.alignment(jnp.asarray(a), jnp.asarray(a), threat=threat_fn(0.1))
    np.testing.assert_allclose(np.diagonal(same), 1, rtol=1e-5)


def test_alignment_is_tau_of_first_order():
    weights = np.random.default_rng(3).normal(size=(2, 10, 3)).astype(np.float32)
    fns = [functools.partial(lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w), w) for w in weights]
    threat = attacks.linf(0.1, bounds=(-9.0, 9.0))
    h = jnp.stack([transfer.input_gradients(fn, X, LABELS) for fn in fns])
    expected = transfer.first_order(*fns, X, LABELS, threat=threat).tau
    found = transfer.alignment(h, h, threat=threat)
    np.testing.assert_allclose(found[0, 1], expected, rtol=1e-5)


def test_gradients_and_sizes_of_a_linear_model():
    weight = jnp.asarray(np.random.default_rng(4).normal(size=(10, 2)), jnp.float32)
    fn = lambda x: x.reshape(len(x), -1) @ weight  # noqa: E731
    h = transfer.input_gradients(fn, X, LABELS)
    rise = np.asarray(weight[:, 1] - weight[:, 0])
    np.testing.assert_allclose(h.reshape(6, -1), np.tile(rise, (6, 1)), rtol=1e-5)
    for threat_fn, order in ((attacks.linf, 1), (attacks.l2, 2)):
        size = transfer.gradient_size(h[None], threat=threat_fn(0.1))
        np.testing.assert_allclose(size, np.full((1, 6), np.linalg.norm(rise, order)), rtol=1e-5)
    # That much a step of length ε adds, and no step adds more.
    threat = attacks.l2(0.1, bounds=(-9.0, 9.0))
    made = attacks.pgd(fn, jax.random.key(0), X, LABELS, threat=threat, loss_fn=losses.margin)
    gained = losses.margin(fn(made.adversarial), LABELS) - losses.margin(fn(X), LABELS)
    np.testing.assert_allclose(gained, 0.1 * size[0], rtol=1e-4)


def test_variability_is_over_replicates():
    values = np.random.default_rng(5).normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(
        transfer.loss_variability(jnp.asarray(values)), values.var(0, ddof=1), rtol=1e-5
    )
    with pytest.raises(ValueError, match="two replicates, got 1"):
        transfer.loss_variability(jnp.ones((1, 3)))


def test_k_half_of_each_example_is_that_of_a_class_of_its_own():
    h = jnp.asarray(gradients(6, 5)).at[:, :3].add(2.0)
    found = meeting.ensemble_noise(h)
    alone = meeting.noise_by_class(found, jnp.arange(6), num_classes=6).k_half
    k_half = np.asarray(meeting.noise_by_example(found).k_half)
    positive = np.asarray(found.signal) > 0
    np.testing.assert_allclose(k_half[positive], np.asarray(alone)[positive], rtol=1e-6)
    assert positive[:3].all() and np.isinf(k_half[~positive]).all()
    assert (k_half[:3] < 1).all()  # noise 10, signal about 40
    pooled = np.sum(found.noise) / np.sum(found.signal)
    np.testing.assert_allclose(found.k_half, pooled, rtol=1e-5)
