import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import losses, meeting, populations, trees

KEY = jax.random.key(0)


def array(values):
    return jnp.asarray(values, jnp.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def z_score(values, expected):
    values = np.asarray(values, np.float64)
    return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))


# D1, the meeting coefficient


@pytest.mark.quick
def test_coefficient_by_hand():
    followed = array([[4.0, 9.0, 2.0], [10.0, 1.0, 9.995], [3.0, 0.0, 4.0]])
    other = array([[5.0, 0.0, 4.0], [6.0, 0.0, 5.5], [2.0, 0.0, 1.75]])
    result = meeting.coefficient(followed, other)
    np.testing.assert_allclose(result.numerators, [1.0, 0.5, 0.25])
    np.testing.assert_allclose(result.denominators, [2.0, 0.005, -1.0], atol=1e-6)
    # Progress of .005 on 10 and a climb are undefined for a pair, but stay in the sums.
    np.testing.assert_allclose(result.per_pair, [0.5, np.nan, np.nan])
    assert int(result.num_undefined) == 2
    np.testing.assert_allclose(result.estimate, 1.75 / 1.005, rtol=1e-5)


def test_coefficient_is_a_ratio_of_sums():
    result = meeting.coefficient(array([[1.0, 0.0], [3.0, 0.0]]), array([[1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(result.estimate, 1 / 4)  # not the mean of 1 and 0
    assert int(result.num_undefined) == 0


def test_planted_coefficients():
    followed = array(np.sort(normal(500, 6), axis=1)[:, ::-1] + 3)
    assert meeting.coefficient(followed, followed).estimate == 1.0
    independent = meeting.coefficient(followed, array(normal(500, 6, seed=1)))
    assert abs(z_score(independent.numerators, 0.0)) < 4
    np.testing.assert_allclose(independent.estimate, 0.0, atol=0.1)
    # Another half that shares half of the descent and adds noise of its own.
    halfway = meeting.coefficient(followed, 0.5 * followed + array(normal(500, 6, seed=2)))
    assert abs(z_score(halfway.numerators - 0.5 * halfway.denominators, 0.0)) < 4
    assert meeting.coefficient(followed, 0.5 * followed).estimate == 0.5


def test_coefficient_under_jit_vmap_and_grad():
    followed = array([[[4.0, 2.0], [1.0, 1.0]], [[2.0, 1.0], [5.0, 3.0]]])  # one pair is undefined
    other = array([[[3.0, 2.0], [1.0, 0.0]], [[2.0, 1.0], [5.0, 3.0]]])
    mapped = jax.jit(jax.vmap(meeting.coefficient))(followed, other)
    for i in range(2):
        jax.tree.map(
            np.testing.assert_allclose,
            jax.tree.map(lambda leaf, i=i: leaf[i], mapped),
            meeting.coefficient(followed[i], other[i]),
        )
    gradient = jax.jit(jax.grad(lambda g: meeting.coefficient(followed[0], g).estimate))(other[0])
    np.testing.assert_allclose(gradient, [[0.5, -0.5], [0.5, -0.5]])


# The constant predictor and the ceiling


def test_constant_predictor_by_hand():
    labels = jnp.array([2, 0, 2, 1, 2, 1, 1, 1, 1])
    logits = meeting.constant_predictor(labels, jnp.arange(9) < 6, 4)
    np.testing.assert_allclose(jnp.exp(logits), [1 / 6, 2 / 6, 3 / 6, 0.0], rtol=1e-6)
    assert jnp.argmax(logits) == 2  # with the padding it would be 1


@pytest.mark.parametrize("loss_fn", [losses.cross_entropy, losses.brier, losses.error])
def test_no_constant_beats_the_constant_predictor(loss_fn):
    labels = jnp.asarray(np.random.default_rng(0).choice(3, size=40, p=[0.2, 0.5, 0.3]))
    mask = jnp.arange(40) < 33

    @jax.jit
    @jax.vmap
    def landscape(logits):
        return losses.masked_mean(loss_fn(jnp.broadcast_to(logits[None], (40, 3)), labels), mask)

    best = landscape(meeting.constant_predictor(labels, mask, 3)[None])[0]
    axis = np.linspace(0.01, 0.98, 98)
    grid = np.array([(p, q, 1 - p - q) for p, q in itertools.product(axis, axis) if p + q < 0.995])
    others = np.asarray(landscape(array(np.log(grid))))
    assert best <= others.min() + 1e-6
    # And it is attained there only: the grid comes close, and not below.
    np.testing.assert_allclose(best, others.min(), atol=1e-3)


@pytest.mark.parametrize("noise_rate", [0.0, 0.4, 0.8])
def test_ceiling_against_a_simulated_perfect_predictor(noise_rate):
    """A is fitted, noise included; on B the clean label is predicted; B's labels are noisy."""
    num_pairs, size, num_classes = 4000, 60, 5
    rng = np.random.default_rng(0)
    clean = rng.integers(num_classes, size=(2, num_pairs, size))
    uniform = rng.integers(num_classes, size=clean.shape)
    noisy = np.where(rng.uniform(size=clean.shape) < noise_rate, uniform, clean)
    counts = (noisy[0][..., None] == np.arange(num_classes)).sum(1)
    majority = counts.argmax(1)
    followed = np.stack([1 - counts.max(1) / size, np.zeros(num_pairs)], axis=1)
    other = [(noisy[1] != majority[:, None]).mean(1), (noisy[1] != clean[1]).mean(1)]
    result = meeting.coefficient(array(followed), array(np.stack(other, axis=1)))
    majority_share = counts.max(1).mean() / size
    ceiling = float(meeting.ceiling(jnp.float32(noise_rate), num_classes, majority_share))
    assert abs(z_score(result.numerators - ceiling * result.denominators, 0.0)) < 4
    # About 1 - ρ, and below it by what the majority class already has.
    assert ceiling >= 1 - noise_rate


# D2, the local coefficient and the alignment


def test_local_coefficient_and_alignment_by_hand():
    u, v = array([[1.0, 0.0], [0.0, 3.0]]), array([[1.0, 2.0], [5.0, 0.0]])
    # Products 1 and 0, squares 1 and 9, 5 and 25: means of ratios would be 1/2 and so on.
    np.testing.assert_allclose(meeting.local_coefficient(u, v), 0.5 / 5.0)
    np.testing.assert_allclose(meeting.alignment(u, v), 0.5 / np.sqrt(5.0 * 15.0), rtol=1e-6)
    np.testing.assert_allclose(meeting.local_coefficient(u, u), 1.0)
    np.testing.assert_allclose(meeting.alignment(u, u), 1.0, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_signal_and_noise_meet_by_the_first_law(n):
    # Means of n gradients about a common one: μ = n / (n + n_half), n_half = tr Cov / ‖signal‖².
    signal, replicates = np.array([1.0, -0.5, 0.0, 2.0]), 20000
    deviations = np.array([2.0, 0.5, 3.0, 1.0])
    n_half = (deviations**2).sum() / (signal**2).sum()
    u, v = signal + deviations * normal(2, replicates, 4) / np.sqrt(n)
    expected = n / (n + n_half)
    for fn in (meeting.local_coefficient, meeting.alignment):
        # The standard error of a ratio of means, by linearization.
        error = np.std((u * v).sum(1) - expected * (u * u).sum(1)) / (u * u).sum(1).mean()
        assert abs(fn(array(u), array(v)) - expected) < 4 * error / np.sqrt(replicates)


def test_invariances():
    u, v = normal(2, 30, 4)
    rotation = np.linalg.qr(normal(4, 4, seed=1))[0]
    mu, cosine = (fn(array(u), array(v)) for fn in (meeting.local_coefficient, meeting.alignment))
    rotated = array(u @ rotation), array(v @ rotation)
    np.testing.assert_allclose(meeting.local_coefficient(*rotated), mu, rtol=1e-4)
    np.testing.assert_allclose(meeting.alignment(*rotated), cosine, rtol=1e-4)
    np.testing.assert_allclose(meeting.local_coefficient(array(2 * u), array(3 * v)), 1.5 * mu)
    np.testing.assert_allclose(meeting.alignment(array(2 * u), array(3 * v)), cosine, rtol=1e-6)
    np.testing.assert_allclose(meeting.alignment(array(u), array(-v)), -cosine, rtol=1e-6)
    # The alignment is symmetric, μ is not.
    np.testing.assert_allclose(meeting.alignment(array(v), array(u)), cosine, rtol=1e-6)
    assert abs(meeting.local_coefficient(array(v), array(u)) - mu) > 1e-3 * abs(mu)


def test_pytrees_equal_flattened_arrays():
    flat = [array(x) for x in normal(2, 7, 10)]
    trees = [{"w": x[:, :6].reshape(7, 2, 3), "b": x[:, 6:]} for x in flat]
    for fn in (meeting.local_coefficient, meeting.alignment):
        np.testing.assert_allclose(jax.jit(fn)(*trees), fn(*flat), rtol=1e-5)
    gradient = jax.grad(meeting.local_coefficient, argnums=1)(*flat)
    np.testing.assert_allclose(gradient, flat[0] / (flat[0] ** 2).sum(), rtol=1e-4, atol=1e-7)


# P1, the path identity


def quadratic(seed):
    root, linear = normal(3, 3, seed=seed), normal(3, seed=seed + 1)
    hessian = jnp.asarray(root @ root.T)
    return lambda z: 0.5 * z @ hessian @ z + jnp.asarray(linear) @ z


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("num_subdivisions", [1, 3])
def test_path_identity_is_exact_for_quadratics(float64, num_subdivisions):
    walk, loss_fn = jnp.asarray(normal(6, 3)), quadratic(5)
    result = meeting.path_identity(loss_fn, walk, num_subdivisions=num_subdivisions)
    values = [loss_fn(z) for z in walk]
    np.testing.assert_allclose(result.drop, values[0] - values[-1], rtol=1e-12)
    np.testing.assert_allclose(result.descents, -np.diff(values), rtol=1e-9, atol=1e-12)
    assert result.residual < 1e-12 * np.abs(values).max()


def test_the_meeting_coefficient_is_the_weighted_mean_of_local_ones(float64):
    walk, followed, other = jnp.asarray(normal(6, 3)), quadratic(5), quadratic(8)
    f, g = (meeting.path_identity(fn, walk) for fn in (followed, other))
    local = g.descents / f.descents
    mean = np.average(local, weights=f.descents)
    points = [jnp.array([[fn(z) for z in walk]]) for fn in (followed, other)]
    np.testing.assert_allclose(mean, meeting.coefficient(*points).estimate, rtol=1e-9)


@pytest.fixture(scope="module")
def problem():
    """A small network `loss(activation)(params)` on fixed data, and a start."""
    with jax.enable_x64(True):
        x, labels = jnp.asarray(normal(20, 4)), jnp.asarray(np.arange(20) % 3)
        start = {"w": jnp.asarray(normal(4, 6, seed=1)), "v": jnp.asarray(normal(6, 3, seed=2))}
    return x, labels, start


def apply_network(activation, params, x):
    return activation(x @ params["w"]) @ params["v"]


def record_walk(problem, activation, optimizer_name, learning_rate, num_steps=8):
    x, labels, start = problem
    optimizer = populations.make_optimizer(optimizer_name, learning_rate)
    apply_fn = functools.partial(apply_network, activation)

    def step(state, i):
        return populations.train_step(apply_fn, optimizer, state, x, labels)

    state = populations.init_state(start, optimizer)
    return populations.fit(step, lambda p: p, state, probe_steps=range(num_steps + 1))[1]


def loss_of(problem, activation):
    x, labels, _ = problem
    return lambda params: losses.cross_entropy(apply_network(activation, params, x), labels).mean()


WALKS = {"sgd": (jnp.tanh, "sgd", 0.3), "adam": (jax.nn.softplus, "adam", 0.03)}
RULES = {"trapezoid": ((2, 4, 8), 4), "simpson": ((1, 2, 4), 16)}


@pytest.mark.parametrize(
    "walk, rule",
    [
        ("sgd", "trapezoid"),
        ("adam", "simpson"),
        pytest.param("sgd", "simpson", marks=pytest.mark.slow),
        pytest.param("adam", "trapezoid", marks=pytest.mark.slow),
    ],
)
def test_residual_falls_by_its_order_when_subdivisions_double(float64, problem, walk, rule):
    (activation, optimizer, learning_rate), (parts, factor) = WALKS[walk], RULES[rule]
    loss_fn = loss_of(problem, activation)

    @jax.jit
    def run():
        walk = record_walk(problem, activation, optimizer, learning_rate)
        return [meeting.path_identity(loss_fn, walk, num_subdivisions=m, rule=rule) for m in parts]

    results = run()
    residuals = [float(result.residual) for result in results]
    assert results[0].drop > 0.05
    assert residuals[-1] > 1e-12  # far above rounding
    for coarse, fine in itertools.pairwise(residuals):
        assert 0.85 < coarse / fine / factor < 1.15


@pytest.mark.parametrize("num_subdivisions", [1, 2])
def test_simpsons_rule_is_exact_for_quartics(float64, num_subdivisions):
    walk = jnp.asarray(normal(5, 3))
    loss_fn = lambda z: (z**4 - z**3).sum()  # noqa: E731
    run = functools.partial(meeting.path_identity, loss_fn, walk, num_subdivisions=num_subdivisions)
    exact, rough = run(rule="simpson"), run()
    np.testing.assert_allclose(
        exact.descents, -np.diff([loss_fn(z) for z in walk]), rtol=1e-9, atol=1e-12
    )
    assert exact.residual < 1e-12 < 1e-3 < rough.residual


def test_a_relu_network_reports_its_residual(float64, problem):
    # No rate holds here; the identity does, since the loss is absolutely continuous.
    loss_fn = loss_of(problem, jax.nn.relu)

    @jax.jit
    def run():
        walk = record_walk(problem, jax.nn.relu, "sgd", 0.3)
        return meeting.path_identity(loss_fn, walk, num_subdivisions=64)

    result = run()
    assert 0 < result.residual < 0.01 * result.drop
    np.testing.assert_allclose(result.residual, abs(result.descents.sum() - result.drop))


def test_path_identity_of_many_walks_and_its_gradient():
    walks, loss_fn = array(normal(2, 4, 3)), lambda z: (z**2).sum()
    mapped = jax.jit(jax.vmap(functools.partial(meeting.path_identity, loss_fn)))(walks)
    jitted = jax.jit(functools.partial(meeting.path_identity, loss_fn))
    for i in range(2):
        for a, b in zip(mapped, jitted(walks[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: meeting.path_identity(loss_fn, z).descents.sum()))
    expected = np.zeros((4, 3))
    expected[0], expected[-1] = 2 * walks[0, 0], -2 * walks[0, -1]
    np.testing.assert_allclose(gradient(walks[0]), expected, rtol=1e-4, atol=1e-4)


def test_impossible_paths_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        meeting.path_identity(jnp.sum, jnp.ones((3, 2)), num_subdivisions=0)
    with pytest.raises(ValueError, match="at least two points"):
        meeting.path_identity(jnp.sum, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"rule must be one of .* got 'midpoint'"):
        meeting.path_identity(jnp.sum, jnp.ones((3, 2)), rule="midpoint")


# P2, the ghost half


def test_symmetric_gap_by_hand():
    own_losses, other_losses = array([[1.0, 2.0], [0.0, 0.5]]), array([[4.0, 3.0], [0.0, 0.0]])
    # ½ [(4 + 3) − (1 + 2)] and ½ [0 − .5].
    np.testing.assert_allclose(meeting.symmetric_gap(own_losses, other_losses), [2.0, -0.25])
    np.testing.assert_allclose(jax.jit(meeting.symmetric_gap)(own_losses[0], other_losses[0]), 2.0)


def test_symmetric_gap_is_unbiased():
    # The mean of n draws under squared loss: its expected gap is 2σ²/n.
    n, sigma = 5, 1.5
    a, b = sigma * normal(2, 4000, n)

    def landscape(half, model):
        return ((half - model.mean(1, keepdims=True)) ** 2).mean(1)

    own_losses = array(np.stack([landscape(a, a), landscape(b, b)], axis=-1))
    other_losses = array(np.stack([landscape(b, a), landscape(a, b)], axis=-1))
    gaps = np.asarray(meeting.symmetric_gap(own_losses, other_losses))
    assert gaps.shape == (4000,)
    assert abs(z_score(gaps, 2 * sigma**2 / n)) < 4
    # Both directions together are steadier than one.
    assert gaps.std() < np.asarray(other_losses - own_losses)[:, 0].std()


def test_split_null_variance_is_exact_over_all_splits():
    values = normal(8) ** 2
    all_splits = []
    for half in itertools.combinations(range(8), 4):
        rest = np.setdiff1d(np.arange(8), half)
        all_splits.append(values[list(half)].mean() - values[rest].mean())
    result = jax.jit(functools.partial(meeting.split_null, num_splits=4000))(KEY, array(values))
    np.testing.assert_allclose(result.variance, np.var(all_splits), rtol=1e-5)
    # Simulated splits are among them, their mean is 0, and all are drawn equally often.
    drawn = np.asarray(result.differences)
    assert drawn.shape == (4000,)
    nearest = np.abs(drawn[:, None] - np.array(all_splits)[None]).argmin(1)
    np.testing.assert_allclose(drawn, np.array(all_splits)[nearest], atol=1e-5)
    assert abs(z_score(drawn, 0.0)) < 4
    counts = np.bincount(nearest, minlength=70)
    statistic = ((counts - 4000 / 70) ** 2 / (4000 / 70)).sum()
    assert statistic < 69 + 4 * np.sqrt(2 * 69)


def test_split_null_needs_an_even_number():
    with pytest.raises(ValueError, match="got 7"):
        meeting.split_null(KEY, jnp.ones(7), num_splits=3)


# Finiteness


@pytest.mark.parametrize("value, finite", [(1e30, True), (np.nan, False), (-np.inf, False)])
@pytest.mark.quick
def test_one_number_decides_whether_a_tree_is_finite(value, finite):
    tree = {"a": jnp.ones((2, 3)).at[1, 2].set(value), "b": [jnp.arange(3)]}
    assert bool(jax.jit(trees.is_finite)(tree)) is finite
