"""What gradients say before an attack: closed forms for linear models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import attacks, losses, meeting, transfer

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 5)), jnp.float32)
LABELS = jnp.zeros(6, jnp.int32)


def gradients(seed, number):
    return np.random.default_rng(seed).normal(size=(number, 6, 2, 5)).astype(np.float32)


@pytest.mark.parametrize(("threat_fn", "order"), [(attacks.linf, 1), (attacks.l2, 2)])
def test_alignment_is_the_share_of_the_best_step(threat_fn, order):
    a, b = gradients(1, 3), gradients(2, 4)
    align = jax.jit(functools.partial(transfer.alignment, threat=threat_fn(0.1)))
    tau = np.asarray(align(a, b))
    assert tau.shape == (3, 4, 6)
    for k, m, i in np.ndindex(*tau.shape):
        u, v = a[k, i].ravel(), b[m, i].ravel()
        step = np.sign(u) if order == 1 else u / np.linalg.norm(u)
        assert tau[k, m, i] == pytest.approx(step @ v / np.linalg.norm(v, order), abs=1e-5)
    assert np.abs(tau).max() <= 1
    same = align(a, a)
    np.testing.assert_allclose(np.diagonal(same), 1, rtol=1e-5)


def test_alignment_is_tau_of_first_order():
    weights = np.random.default_rng(3).normal(size=(2, 10, 3)).astype(np.float32)
    fns = [functools.partial(lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w), w) for w in weights]
    threat = attacks.linf(0.1, bounds=(-9.0, 9.0))

    @jax.jit
    def run(x, labels):
        h = jnp.stack([transfer.input_gradients(fn, x, labels) for fn in fns])
        tau = transfer.alignment(h, h, threat=threat)
        return tau[0, 1], transfer.first_order(*fns, x, labels, threat=threat).tau

    np.testing.assert_allclose(*run(X, LABELS), rtol=1e-5)


def test_gradients_and_sizes_of_a_linear_model():
    weight = np.random.default_rng(4).normal(size=(10, 2)).astype(np.float32)
    fn = lambda x: x.reshape(len(x), -1) @ weight  # noqa: E731
    h = np.asarray(compiled(transfer.input_gradients, fn, X, LABELS))
    rise = weight[:, 1] - weight[:, 0]
    np.testing.assert_allclose(h.reshape(6, -1), np.tile(rise, (6, 1)), rtol=1e-5)
    for threat_fn, order in ((attacks.linf, 1), (attacks.l2, 2)):
        size = compiled(transfer.gradient_size, h[None], threat=threat_fn(0.1))
        np.testing.assert_allclose(size, np.full((1, 6), np.linalg.norm(rise, order)), rtol=1e-5)
    # That much a step of length ε adds, and no step adds more.
    threat = attacks.l2(0.1, bounds=(-9.0, 9.0))
    options = {"threat": threat, "loss_fn": losses.margin}
    result = compiled(attacks.pgd, fn, jax.random.key(0), X, LABELS, **options)
    margin = jax.jit(losses.margin)
    before, after = (np.asarray(margin(fn(np.asarray(x)), LABELS)) for x in (X, result.adversarial))
    np.testing.assert_allclose(after - before, 0.1 * np.asarray(size)[0], rtol=1e-4)


@pytest.mark.quick
def test_variability_is_over_replicates():
    values = np.random.default_rng(5).normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(
        transfer.loss_variability(jnp.asarray(values)), values.var(0, ddof=1), rtol=1e-5
    )
    with pytest.raises(ValueError, match="two replicates, got 1"):
        transfer.loss_variability(jnp.ones((1, 3)))


def test_k_half_of_each_example_is_that_of_a_class_of_its_own():
    h = gradients(6, 5)
    h[:, :3] += 2.0

    @jax.jit
    def run(h):
        ensemble = meeting.ensemble_noise(h)
        by_class = meeting.noise_by_class(ensemble, jnp.arange(6), num_classes=6)
        return ensemble, by_class.k_half, meeting.noise_by_example(ensemble).k_half

    ensemble, alone, k_half = jax.device_get(run(h))
    positive = np.asarray(ensemble.signal) > 0
    np.testing.assert_allclose(k_half[positive], np.asarray(alone)[positive], rtol=1e-6)
    assert positive[:3].all() and np.isinf(k_half[~positive]).all()
    assert (k_half[:3] < 1).all()  # noise 10, signal about 40
    pooled = np.sum(ensemble.noise) / np.sum(ensemble.signal)
    np.testing.assert_allclose(ensemble.k_half, pooled, rtol=1e-5)
