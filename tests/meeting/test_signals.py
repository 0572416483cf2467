"""Signal and noise against planted truths, dense gradients and independent draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support.planted import DELTA, DIM, NOISE, SIGNAL, apply_linear, draw, square, z_score

from halfway import losses, meeting, models, stats

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames=("size", "replicates", "num_blocks"))
def replicate(key, size, replicates, num_blocks=4):
    def measure(key):
        x, y = draw(key, size)
        scale = meeting.noise_scale(
            apply_linear, DELTA, x, y, loss_fn=square, num_blocks=num_blocks
        )
        return scale, jnp.square(jax.grad(lambda w: square(apply_linear(w, x), y).mean())(DELTA))

    return jax.vmap(measure)(jax.random.split(key, replicates))


MODULE = models.build({"kind": "mlp", "widths": (6,), "activation": "tanh"}, num_classes=3)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(size=(37, 3, 3, 1)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 3, 37), jnp.int32)
PARAMS = jax.jit(MODULE.init)(KEY, IMAGES)["params"]


def apply_fn(params, x):
    return jnp.asarray(MODULE.apply({"params": params}, x))


def test_moments_of_a_sample_against_numpy():
    vectors = RNG.standard_normal((9, 4)) + 0.5
    gram = vectors @ vectors.T
    signal, noise = meeting.unbiased_signal(9, jnp.asarray(gram.sum()), jnp.asarray(np.trace(gram)))
    np.testing.assert_allclose(signal, gram[~np.eye(9, dtype=bool)].mean(), rtol=1e-4)
    np.testing.assert_allclose(noise, np.trace(np.cov(vectors.T)), rtol=1e-5)
    # Counts whose squares overflow 32 bits.
    many = jnp.array(60_000)
    np.testing.assert_allclose(
        meeting.unbiased_signal(many, jnp.float32(36e8), jnp.float32(12e4)), [1.0, 1.0], rtol=1e-3
    )


def test_signal_and_noise_are_unbiased():
    scales, squares = replicate(KEY, 24, 1000)
    assert abs(z_score(scales.signal, SIGNAL)) < 4
    assert abs(z_score(scales.noise, NOISE)) < 4
    # With the diagonal, the squared norm of the mean gradient, it is not: signal + noise / n.
    naive = np.asarray(squares).sum(1)
    assert abs(z_score(naive, SIGNAL + NOISE / 24)) < 4
    assert z_score(naive, SIGNAL) > 10
    # Some estimates of a signal are below 0: none was clipped.
    assert float(scales.signal.min()) < 0


def test_the_standard_error_is_the_spread_over_replicates():
    scales, _ = replicate(jax.random.key(1), 320, 600, num_blocks=16)
    spread = float(scales.n_half.std())
    typical = float(jnp.sqrt((scales.standard_error**2).mean()))
    assert typical == pytest.approx(spread, rel=0.15)


def test_fieller_covers_the_scale_of_a_population():
    replicates, pairs = 400, 24
    scales, _ = replicate(jax.random.key(2), 40, replicates * pairs)
    noise, signal = (
        np.asarray(v).reshape(replicates, pairs) for v in (scales.noise, scales.signal)
    )
    truth = NOISE / SIGNAL
    intervals = [stats.fieller(n, s) for n, s in zip(noise, signal, strict=True)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert np.mean([np.isfinite(i.high) for i in intervals]) > 0.9  # not because they are infinite
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / replicates)


@pytest.fixture(scope="module")
def each():
    """The gradient `[N, d]` of each example."""
    flat, unravel = ravel_pytree(PARAMS)
    example_loss = lambda v, x, y: losses.cross_entropy(apply_fn(unravel(v), x[None]), y[None])[0]  # noqa: E731
    gradients = jax.jit(jax.vmap(jax.grad(example_loss), (None, 0, 0)))
    return np.asarray(gradients(flat, IMAGES, LABELS), np.float64)


@pytest.mark.parametrize("num_blocks, chunk_size", [(2, 1), (5, 3), (50, 64)])
def test_chunks_and_blocks_change_nothing(num_blocks, chunk_size, each):
    scale = jax.jit(
        lambda p: meeting.noise_scale(
            apply_fn, p, IMAGES, LABELS, num_blocks=num_blocks, chunk_size=chunk_size
        )
    )(PARAMS)
    gram = each @ each.T
    signal, noise = gram[~np.eye(37, dtype=bool)].mean(), np.trace(np.cov(each.T))
    np.testing.assert_allclose(scale.signal, signal, rtol=1e-4)
    np.testing.assert_allclose(scale.noise, noise, rtol=1e-4)
    np.testing.assert_allclose(scale.n_half, noise / signal, rtol=1e-4)
    # The jackknife by hand, on what is left without each block.
    rest = [np.arange(37) % num_blocks != r for r in range(min(num_blocks, 37))]
    z = []
    for keep in rest:
        inner = gram[np.ix_(keep, keep)]
        left = (inner.sum() - np.trace(inner)) / (keep.sum() * (keep.sum() - 1))
        z.append(np.trace(np.cov(each[keep].T)) - noise / signal * left)
    error = np.sqrt(np.var(z) * (len(z) - 1)) / signal
    np.testing.assert_allclose(scale.standard_error, error, rtol=1e-3)


def test_what_is_masked_does_not_enter():
    mask = jnp.asarray(RNG.uniform(size=37) < 0.6)
    broken = jnp.where(mask[:, None, None, None], IMAGES, jnp.nan)
    run = jax.jit(functools.partial(meeting.noise_scale, apply_fn))
    padded = run(PARAMS, broken, LABELS, mask)
    alone = run(PARAMS, IMAGES[mask], LABELS[mask])
    np.testing.assert_allclose(padded[:3], alone[:3], rtol=1e-4)
    assert np.isfinite(padded.standard_error)
    nothing = run(PARAMS, IMAGES, LABELS, jnp.zeros(37, bool))
    assert not np.isfinite(nothing.n_half)


def test_layers_sum_to_the_whole():
    run = jax.jit(lambda p: meeting.noise_scale_by_layer(apply_fn, p, IMAGES, LABELS))
    by_layer = run(PARAMS)
    whole = jax.jit(lambda p: meeting.noise_scale(apply_fn, p, IMAGES, LABELS))(PARAMS)
    assert list(by_layer) == ["Dense_0", "Dense_1"]
    for field in ("signal", "noise"):
        parts = [getattr(scale, field) for scale in by_layer.values()]
        np.testing.assert_allclose(sum(parts), getattr(whole, field), rtol=1e-6)
        assert min(parts) > 0
    # A layer alone: the others are held fixed.
    for name, scale in by_layer.items():
        of_layer = lambda part, x, name=name: apply_fn(PARAMS | {name: part}, x)  # noqa: E731
        alone = jax.jit(lambda p, f=of_layer: meeting.noise_scale(f, p, IMAGES, LABELS))(
            PARAMS[name]
        )
        np.testing.assert_allclose(np.stack(scale), np.stack(alone), rtol=1e-3)


def test_noise_scale_under_vmap_and_grad():
    members = jnp.stack([DELTA, 2 * DELTA])
    x, y = draw(KEY, 30)
    run = jax.jit(lambda w: meeting.noise_scale(apply_linear, w, x, y, loss_fn=square))
    mapped = jax.jit(jax.vmap(run))(members)
    for i in range(2):
        np.testing.assert_allclose(
            [leaf[i] for leaf in mapped], np.stack(run(members[i])), rtol=1e-4
        )
    slope = jax.jit(jax.grad(lambda w: run(w).noise))(DELTA)
    step = 1e-2 * jnp.arange(1.0, DIM + 1)
    change = run(DELTA + step).noise - run(DELTA - step).noise  # exact: noise is quadratic in w
    np.testing.assert_allclose(2 * slope @ step, change, rtol=1e-3)


def test_two_batch_sizes_are_unbiased():
    @jax.jit
    @jax.vmap
    def norms(key):
        x, y = draw(key, 20)
        grad = jax.grad(lambda w, n: square(apply_linear(w, x[:n]), y[:n]).mean())
        return [(grad(DELTA, n) ** 2).sum() for n in (4, 20)]

    small, big = norms(jax.random.split(jax.random.key(3), 1000))
    signal, noise = meeting.noise_scale_from_batches(small, big, small=4, big=20)
    assert abs(z_score(signal, SIGNAL)) < 4
    assert abs(z_score(noise, NOISE)) < 4


def test_an_ensembles_signal_and_noise_are_unbiased():
    rng = np.random.default_rng(1)
    mean, scale = rng.standard_normal((3, 2, 2)), rng.uniform(0.5, 2, (3, 2, 2))
    draws = mean + scale * rng.standard_normal((1000, 6, 3, 2, 2))
    ensembles = jax.jit(jax.vmap(meeting.ensemble_noise))(jnp.asarray(draws, jnp.float32))
    truth = (mean**2).sum((1, 2)), (scale**2).sum((1, 2))
    for values, expected in zip((ensembles.signal, ensembles.noise), truth, strict=True):
        for b in range(3):
            assert abs(z_score(values[:, b], expected[b])) < 4
    ratio = stats.fieller(np.asarray(ensembles.noise.sum(1)), np.asarray(ensembles.signal.sum(1)))
    assert ratio.low < truth[1].sum() / truth[0].sum() < ratio.high
    ensemble = meeting.ensemble_noise(jnp.asarray(draws[0], jnp.float32))
    np.testing.assert_allclose(
        ensemble.k_half, ensemble.noise.sum() / ensemble.signal.sum(), rtol=1e-6
    )
    assert ensemble.k_half.shape == ()


@pytest.mark.quick
def test_classes_pool_their_examples():
    by_example = meeting.EnsembleNoise(jnp.array([1.0, 2.0, 4.0]), jnp.array([3.0, 5.0, 2.0]), None)
    pooled = meeting.noise_by_class(by_example, jnp.array([0, 0, 2]), num_classes=3)
    np.testing.assert_allclose(pooled.signal, [3, 0, 4])
    np.testing.assert_allclose(pooled.noise, [8, 0, 2])
    np.testing.assert_allclose(pooled.k_half, [8 / 3, np.nan, 0.5])


def test_layers_of_any_tree():
    assert meeting.leaves_by_layer(jnp.ones(3)).keys() == {""}
    assert list(meeting.leaves_by_layer([1, {"a": 2}])) == ["0", "1"]


def test_impossible_arguments_are_refused():
    x, y = draw(KEY, 8)
    run = functools.partial(meeting.noise_scale, apply_linear, DELTA, x, y, loss_fn=square)
    with pytest.raises(ValueError, match="num_blocks must be at least 2, got 1"):
        run(num_blocks=1)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        run(chunk_size=0)
    with pytest.raises(ValueError, match="small < big, got 8 and 8"):
        meeting.noise_scale_from_batches(jnp.ones(()), jnp.ones(()), small=8, big=8)
    with pytest.raises(ValueError, match="at least two models, got 1"):
        meeting.ensemble_noise(jnp.ones((1, 3, 4)))
