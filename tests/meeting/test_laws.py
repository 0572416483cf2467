"""The laws on networks, by equivalence tests on disjoint sets; memorization in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.planted import DELTA, DIM, NOISE, SIGNAL, apply_linear, draw, square, z_score

from halfway import losses, meeting, models, stats

KEY = jax.random.key(0)


def equivalent(measured, predicted, margin):
    """Returns p of |difference of two ratios of sums| < margin, over paired replicates."""
    ratios = [np.asarray(v, np.float64) for v in (*measured, *predicted)]
    sides = [
        stats.ratio_difference(*ratios, threshold=t, alternative=side, paired=True).p_value
        for t, side in ((-margin, "greater"), (margin, "less"))
    ]
    return max(sides)


def ratio(terms):
    return float(np.sum(terms[0]) / np.sum(terms[1]))


# The first law


@pytest.mark.quick
def test_laws_by_hand():
    np.testing.assert_allclose(meeting.first_law(jnp.array([0.0, 4.0, 12.0]), 4.0), [0, 0.5, 0.75])
    np.testing.assert_allclose(meeting.second_law(jnp.array([1.0, 3.0]), 1.0), [0.5, 0.75])
    # ⟨h̄, h⟩ = s, ‖h̄‖² = s + v/k, ‖h‖² = s + v.
    s, v, k = 2.0, 3.0, jnp.array([1.0, 2.0, 8.0])
    expected = s / jnp.sqrt((s + v / k) * (s + v))
    np.testing.assert_allclose(meeting.second_law_alignment(k, v / s), expected, rtol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(meeting.first_law), (0, None)))(k, 2.0)
    np.testing.assert_allclose(slope, 2 / (k + 2) ** 2, rtol=1e-5)
    assert meeting.first_law(5, jnp.inf) == 0


def test_blocks_by_brute_force():
    x, y = draw(KEY, 23)
    run = lambda w, size: meeting.block_terms(  # noqa: E731
        apply_linear, w, x, y, num_examples=5, loss_fn=square, chunk_size=size
    )
    residuals = x @ DELTA - y
    each = np.asarray(x * residuals[:, None], np.float64)[:20].reshape(4, 5, DIM).mean(1)
    gram = each @ each.T
    for size in (None, 2):
        terms = jax.jit(functools.partial(run, size=size))(DELTA)
        np.testing.assert_allclose(terms.numerator, gram[~np.eye(4, dtype=bool)].mean(), rtol=1e-4)
        np.testing.assert_allclose(terms.denominator, np.trace(gram) / 4, rtol=1e-4)
    run = jax.jit(functools.partial(run, size=None))
    mapped = jax.vmap(run)(jnp.stack([DELTA, -DELTA]))
    np.testing.assert_allclose(mapped.numerator[0], terms.numerator, rtol=1e-4)
    slope = jax.grad(lambda w: run(w).denominator)(DELTA)
    step = 0.1 * jnp.arange(1.0, DIM + 1)
    change = run(DELTA + step).denominator - run(DELTA - step).denominator
    np.testing.assert_allclose(2 * slope @ step, change, rtol=1e-3)


def test_inner_products_and_norms_of_blocks_are_unbiased():
    @jax.jit
    @jax.vmap
    def run(key):
        x, y = draw(key, 24)
        return meeting.block_terms(apply_linear, DELTA, x, y, num_examples=6, loss_fn=square)

    terms = run(jax.random.split(jax.random.key(1), 1000))
    assert abs(z_score(terms.numerator, SIGNAL)) < 4
    assert abs(z_score(terms.denominator, SIGNAL + NOISE / 6)) < 4
    mu = meeting.first_law(6, NOISE / SIGNAL)
    assert abs(z_score(terms.numerator - mu * terms.denominator, 0.0)) < 4


ARCHITECTURES = {
    "mlp": {"kind": "mlp", "widths": (32, 32)},
    "cnn": {"kind": "cnn", "features": (8, 16), "widths": (32,)},
}
SIZES = (5, 20, 80, 320)


@pytest.mark.parametrize("architecture", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_the_first_law_at_initialization(architecture, digits):
    """n_half from one part of the digits, μ from the rest, at 64 initializations."""
    pool = digits.pool("all")
    images, labels = jnp.asarray(pool.images), jnp.asarray(pool.labels)
    module = models.build(ARCHITECTURES[architecture], num_classes=10)
    apply_fn = lambda params, x: module.apply({"params": params}, x)  # noqa: E731

    @jax.jit
    def run(keys):
        def at(key):
            key_init, key_split = jax.random.split(key)
            params = module.init(key_init, images[:1])["params"]
            order = jax.random.permutation(key_split, images.shape[0])
            x, y = images[order], labels[order]
            scale = meeting.noise_scale(apply_fn, params, x[:512], y[:512], num_blocks=2)
            terms = [
                meeting.block_terms(apply_fn, params, x[512:], y[512:], num_examples=n)
                for n in SIZES
            ]
            return scale, terms

        return jax.lax.map(at, keys)

    scale, terms = run(jax.random.split(KEY, 64))
    signal, noise = np.asarray(scale.signal), np.asarray(scale.noise)
    n_half = noise.sum() / signal.sum()
    for n, measured in zip(SIZES, terms, strict=True):
        predicted = signal, signal + noise / n
        np.testing.assert_allclose(ratio(predicted), meeting.first_law(n, n_half), rtol=1e-5)
        margin = 0.03 if ratio(predicted) > 0.2 else 0.15 * ratio(predicted)
        assert abs(ratio(measured) - ratio(predicted)) < margin
        assert equivalent(measured, predicted, margin) < 0.05, n


# The second law


@pytest.fixture(scope="module")
def gradients():
    """Input gradients `[32, 36, 64, 12]` of 32 ensembles, each model trained on data of its own."""
    module = models.build({"kind": "mlp", "widths": (16,)}, num_classes=3)
    centres = jax.random.normal(jax.random.key(1), (3, 12))

    def sample(key, size):
        key_labels, key_x = jax.random.split(key)
        labels = jax.random.randint(key_labels, (size,), 0, 3)
        return centres[labels] + jax.random.normal(key_x, (size, 12)), labels

    def apply_fn(params, x):
        return module.apply({"params": params}, x.reshape(-1, 3, 4, 1))

    @jax.jit
    def run(key):
        key_models, key_points = jax.random.split(key)
        x, labels = sample(key_points, 64)

        def input_gradient(key):
            key_init, key_data = jax.random.split(key)
            inputs, input_labels = sample(key_data, 40)
            loss = lambda p: losses.cross_entropy(apply_fn(p, inputs), input_labels).mean()  # noqa: E731
            params = module.init(key_init, x[:1].reshape(-1, 3, 4, 1))["params"]
            step = lambda _, p: jax.tree.map(lambda a, g: a - 0.3 * g, p, jax.grad(loss)(p))  # noqa: E731
            params = jax.lax.fori_loop(0, 30, step, params)
            return jax.grad(lambda x: losses.margin(apply_fn(params, x), labels).sum())(x)

        return jax.vmap(jax.vmap(input_gradient))(jax.random.split(key_models, (32, 36)))

    return run(KEY)


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_the_second_law(gradients, k):
    """k_half from twelve models of each ensemble, μ and the alignment from its other 24."""
    ensembles = jax.vmap(meeting.ensemble_noise)(gradients[:, :12])
    signal, noise = (np.asarray(v.sum(1), np.float64) for v in (ensembles.signal, ensembles.noise))
    k_half = noise.sum() / signal.sum()
    assert 0.2 < k_half < 5
    terms = jax.vmap(functools.partial(meeting.surrogate_terms, num_surrogates=k))(
        gradients[:, 12:28], gradients[:, 28:]
    )
    measured = np.asarray(terms.products.mean(1)), np.asarray(terms.surrogate)
    assert abs(ratio(measured) - meeting.second_law(k, k_half)) < 0.03
    assert equivalent(measured, (signal, signal + noise / k), 0.03) < 0.05
    squares = measured[1].mean() * float(terms.targets.mean())
    alignment = measured[0].mean() / np.sqrt(squares)
    assert abs(alignment - meeting.second_law_alignment(k, k_half)) < 0.03


def test_surrogates_by_brute_force():
    rng = np.random.default_rng(0)
    surrogates, targets = rng.standard_normal((7, 3, 2, 2)), rng.standard_normal((4, 3, 2, 2))
    surrogates, targets = surrogates + 1, targets + 1
    terms = jax.jit(functools.partial(meeting.surrogate_terms, num_surrogates=3))(
        jnp.asarray(surrogates, jnp.float32), jnp.asarray(targets, jnp.float32)
    )
    blocks = [surrogates[:3].mean(0), surrogates[3:6].mean(0)]
    products = [np.mean([(b * t).sum() for b in blocks]) for t in targets]
    np.testing.assert_allclose(terms.products, products, rtol=1e-4)
    surrogate = np.mean([(b**2).sum() for b in blocks])
    np.testing.assert_allclose(terms.surrogate, surrogate, rtol=1e-4)
    squares = (targets**2).sum((1, 2, 3))
    np.testing.assert_allclose(terms.targets, squares, rtol=1e-4)
    np.testing.assert_allclose(terms.coefficient, np.mean(products) / surrogate, rtol=1e-4)
    cosine = np.mean(products) / np.sqrt(surrogate * squares.mean())
    np.testing.assert_allclose(terms.alignment, cosine, rtol=1e-4)


# Memorization


def landscape(w, half):
    return square(apply_linear(w, half[0]), half[1]).mean()


def measure(w, a, b, s):
    """The three numbers of κ at the weights of one pair."""
    g_a, g_b = (jax.grad(landscape)(w, half) for half in (a, b))
    scale = meeting.noise_scale(apply_linear, w, *s, loss_fn=square, num_blocks=2)
    return g_a @ g_a, g_a @ g_b, scale.noise


def pair(key, size):
    return [draw(k, n) for k, n in zip(jax.random.split(key, 3), (size, size, 60), strict=True)]


def test_nothing_is_memorized_of_fresh_data():
    run = jax.jit(jax.vmap(lambda key: measure(DELTA, *pair(key, 12))))
    kappa = meeting.memorization(*run(jax.random.split(jax.random.key(4), 1000)), num_examples=12)
    assert abs(z_score(kappa.numerators, 0.0)) < 4
    interval = stats.fieller(np.asarray(kappa.numerators), np.asarray(kappa.denominators))
    assert interval.low < 0 < interval.high
    assert float(kappa.estimate) == pytest.approx(interval.estimate, abs=1e-5)


def test_all_is_memorized_where_the_own_gradient_is_0():
    def run(key):
        a, b, s = pair(key, 12)
        return measure(jnp.linalg.solve(a[0].T @ a[0], a[0].T @ a[1]), a, b, s)

    terms = jax.jit(jax.vmap(run))(jax.random.split(KEY, 20))
    kappa = meeting.memorization(*terms, num_examples=12)
    np.testing.assert_allclose(kappa.estimate, 1, atol=1e-4)
    assert (
        meeting.gap_rate(kappa.estimate, terms[2].mean(), num_examples=12, learning_rate=0.1) < 1e-5
    )


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def test_the_gap_grows_by_what_is_not_memorized(float64):
    """Along gradient descent on A: the change of the gap, and κ rising from 0 towards 1."""
    size, pairs, eta = 20, 2000, 0.02

    def run(key):
        a, b, s = pair(key, size)

        def step(w, _):
            gap = lambda w: landscape(w, b) - landscape(w, a)  # noqa: E731
            gradient = jax.grad(landscape)(w, a)
            after = [gap(w - scale * eta * gradient) - gap(w) for scale in (1, 0.5)]
            terms = measure(w, a, b, s)
            descend = lambda _, w: w - 0.05 * jax.grad(landscape)(w, a)  # noqa: E731
            return jax.lax.fori_loop(0, 20, descend, w), (after, terms)

        return jax.lax.scan(step, DELTA.astype(float), None, length=6)[1]

    changes, terms = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(5), pairs))
    kappas = []
    for t in range(6):
        own_own, own_other, trace_cov = (v[:, t] for v in terms)
        kappa = meeting.memorization(own_own, own_other, trace_cov, num_examples=size)
        kappas.append(float(kappa.estimate))
        errors = []
        for change, rate in zip(changes, (eta, eta / 2), strict=True):
            expected = meeting.gap_rate(
                kappa.estimate, trace_cov.mean(), num_examples=size, learning_rate=rate
            )
            errors.append(abs(float(change[:, t].mean() - expected)))
            assert errors[-1] < 0.1 * abs(float(expected)) + 1e-5
        assert 3.5 < errors[0] / errors[1] < 4.5  # the error is of second order in η
    assert abs(kappas[0]) < 0.05
    assert np.all(np.diff(kappas) > 0)
    assert 0.8 < kappas[-1] < 1


def test_impossible_sizes_are_refused():
    x, y = draw(KEY, 8)
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"8 examples make no two blocks of num_examples={n}"):
            meeting.block_terms(apply_linear, DELTA, x, y, num_examples=n, loss_fn=square)
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"num_surrogates must lie in \[1, 2\], got {k}"):
            meeting.surrogate_terms(jnp.ones((2, 3, 4)), jnp.ones((1, 3, 4)), num_surrogates=k)
