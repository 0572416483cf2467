"""Square Attack: its windows and bumps against their definition, linear models, bookkeeping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import small_network
from support.programs import compiled
from support.small_network import network

from halfway import attacks, losses
from halfway.attacks import random_search as module

KEY = jax.random.key(0)
WIDE = (-jnp.inf, jnp.inf)


@pytest.fixture(scope="module")
def problem():
    return small_network.problem(20, 6, 6, 2, wrong=3)


@functools.partial(jax.jit, static_argnames="num_queries")
def search(params, x, labels, threat, targets=None, num_queries=120):
    """The result of a search: one program for all tests of what norms share."""
    logits_fn, options = functools.partial(network, params), {"num_queries": num_queries}
    return attacks.square(logits_fn, KEY, x, labels, threat=threat, targets=targets, **options)


@pytest.mark.quick
def test_windows_shrink_as_in_the_paper():
    sizes = module.window_sizes(28, 28, 10_000, 0.8, 1)
    assert len(sizes) == 9_998
    for query, halvings in ((0, 0), (10, 0), (11, 1), (51, 2), (201, 3), (8001, 9)):
        side = max(round((0.8 * 784 / 2**halvings) ** 0.5), 1)
        assert sizes[query] == (side, side), query
    # Scaled to the number of queries.
    assert module.window_sizes(28, 28, 1000, 0.8, 1)[2] == sizes[20]
    # Those of l2 are odd, and never smaller than 3.
    odd = module.window_sizes(28, 28, 5000, 0.8, 3)
    assert {n % 2 for size in odd for n in size} == {1} and min(odd) == (3, 3)
    # Windows of a line are pieces of it, those of a narrow image as wide as it is.
    assert module.window_sizes(100, 1, 10_000, 0.8, 1)[0] == (80, 1)
    assert module.window_sizes(4, 100, 10_000, 0.5, 1)[0] == (4, 50)
    assert all(a <= 2 and b <= 2 for a, b in module.window_sizes(2, 2, 50, 1.0, 3))


def test_every_place_is_as_likely_the_last_row_and_column_included():
    size = jnp.array([3, 2])
    keys = jax.random.split(KEY, 4000)
    rows, columns = jax.jit(jax.vmap(lambda k: module._place(k, (5, 6), size)))(keys)
    counts = np.zeros((3, 5), int)
    np.add.at(counts, (-np.asarray(rows[:, 0]), -np.asarray(columns[:, 0])), 1)
    assert counts.sum() == 4000  # nowhere else
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


def pyramids(height, width):
    """Two halves above each other, each a pile of ever larger rectangles around its middle."""
    result, start = np.zeros((height, width)), 0
    for sign, rows in ((1, height // 2), (-1, height - height // 2)):
        half = np.zeros((rows, width))
        for k in range(max(rows // 2, width // 2) + 1):
            top, left = max(rows // 2 - k, 0), max(width // 2 - k, 0)
            half[top : rows // 2 + k + 1, left : width // 2 + k + 1] += 1 / (k + 1) ** 2
        if rows:
            result[start : start + rows] = sign * half / np.linalg.norm(half)
        start += rows
    return result


bump = jax.jit(module.bump, static_argnums=3)


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (7, 5), (9, 9), (1, 1)])
def test_bumps_are_piles_of_rectangles(size):
    row, column = 2, 1
    places = np.arange(12) - row, np.arange(11) - column
    expected = np.zeros((12, 11))
    expected[row : row + size[0], column : column + size[1]] = pyramids(*size)
    result = bump(*places, np.array(size), False)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    expected[row : row + size[0], column : column + size[1]] = pyramids(*size[::-1]).T
    result = bump(*places, np.array(size), True)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_the_start_is_stripes_or_a_grid_of_the_whole_budget():
    start_of = {fn: jax.jit(fn, static_argnums=(1, 3)) for fn in (module._stripes, module._grid)}
    stripes = np.asarray(start_of[module._stripes](KEY, (6, 7, 3), jnp.float32(0.2), np.inf))
    np.testing.assert_allclose(np.abs(stripes), 0.2)
    assert (stripes == stripes[:1]).all() and len(np.unique(stripes[0], axis=0)) > 1
    grid = np.asarray(start_of[module._grid](KEY, (28, 28, 2), jnp.float32(0.7), 2))
    assert np.linalg.norm(grid) == pytest.approx(0.7, rel=1e-5)
    inner = grid[1:26, 1:26]  # 25 of 28 pixels, in the middle
    np.testing.assert_array_equal(grid[[0, 26, 27]], 0)
    tile = inner[:5, :5, 0] / np.linalg.norm(inner[:5, :5, 0])
    kinds = [sign * t for sign in (1, -1) for t in (pyramids(5, 5), pyramids(5, 5).T)]
    result = {
        next(i for i, k in enumerate(kinds) if np.allclose(2 * t, k, atol=1e-5))
        for t in (
            inner[5 * i : 5 * i + 5, 5 * j : 5 * j + 5, c] * 5 / 0.7
            for i in range(5)
            for j in range(5)
            for c in range(2)
        )
    }
    assert result == {0, 1, 2, 3} and np.linalg.norm(tile) == pytest.approx(1)


def test_a_proposal_of_l2_moves_norm_between_two_windows():
    rng = np.random.default_rng(0)
    x = np.zeros((9, 9, 2), np.float32)
    moves = rng.normal(size=x.shape).astype(np.float32)
    size, changed, emptied = np.array([3, 3]), [], 0
    propose = jax.jit(lambda key, radius: module._bump(key, moves, x, radius, size, WIDE, 2))
    for radius in (float(np.linalg.norm(moves)), 2 * float(np.linalg.norm(moves))):
        for key in jax.random.split(KEY, 10):
            new = np.asarray(propose(key, jnp.float32(radius)))
            assert np.linalg.norm(new) == pytest.approx(radius, rel=1e-5)
            same = np.isclose(new, moves, rtol=1e-4).all(-1)
            gone = (new == 0).all(-1)
            changed.append((~same).sum())
            assert gone.sum() <= 9
            emptied += bool(gone.any())
            if not gone.any():  # one window lies on the other
                continue
            # Where neither window is, nothing changes, though the whole is scaled to the budget.
            assert (~same).sum() <= 18
            # Each channel keeps its norm, but for its part of what was spare.
            spare = (radius**2 - float((moves**2).sum())) / 2
            before = np.asarray((moves**2).sum((0, 1))) + spare
            np.testing.assert_allclose((new**2).sum((0, 1)), before, rtol=1e-4)
    assert max(changed) > 9 and emptied > 15


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_it_comes_near_the_optimum_of_a_linear_model(name):
    side = {"linf": 4, "l2": 3}[name]
    # Single pixels are set one after another in l∞; in l2 a slope that is itself a bump.
    slope = np.random.default_rng(1).normal(size=16) if name == "linf" else pyramids(3, 3).ravel()
    weights = jnp.asarray(np.stack([-slope, slope], 1) / 2, jnp.float32)
    x, labels = jnp.full((6, side, side, 1), 0.5), jnp.zeros(6, int)
    bias = jnp.array([[99.0, 0.0]])  # never misclassified
    logits_fn = lambda x: x.reshape(x.shape[0], -1) @ weights + bias  # noqa: E731
    epsilon = 0.1
    threat = getattr(attacks, name)(epsilon)
    result = jax.jit(functools.partial(attacks.square, logits_fn, threat=threat, num_queries=800))(
        KEY, x, labels
    )
    gain = np.asarray(result.loss - losses.margin(logits_fn(x), labels))
    best = epsilon * (np.abs(slope).sum() if name == "linf" else np.linalg.norm(slope))
    assert (gain <= best * (1 + 1e-4)).all()
    assert (gain >= best * 0.999).all()
    assert not result.success.any() and (result.queries == 800).all()


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_results_are_feasible_and_belong_to_their_points(name, problem):
    params, x, labels = problem
    epsilon = {"linf": 0.05, "l2": 0.25}[name]
    x = x.at[0].set(0.0).at[1].set(1.0)
    epsilons = np.full(20, epsilon, np.float32)
    result = search(params, x, labels, getattr(attacks, name)(epsilons))
    logits = network(params, result.adversarial)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits, -1) != labels)
    np.testing.assert_allclose(result.loss, losses.margin(logits, labels), atol=1e-5)
    point = np.asarray(result.adversarial)
    assert ((point >= 0) & (point <= 1)).all()
    away = np.asarray(attacks.distance(result.adversarial, x, name))
    assert (away <= epsilon * (1 + 1e-6) + 1e-7).all() and away.max() > 0.8 * epsilon
    assert 0.2 < result.success.mean() < 1
    # What is misclassified from the start stays where it is, at the cost of one query.
    np.testing.assert_array_equal(point[3], x[3])
    assert result.success[3] and result.queries[3] == 1
    queries = np.asarray(result.queries)
    assert (queries[~np.asarray(result.success)] == 120).all()
    assert len(np.unique(queries)) > 3


def test_losses_never_fall_and_queries_count_every_evaluation(problem):
    params, x, labels = problem
    losses_seen = []
    for number in (2, 40):
        calls = []

        def counted(x, calls=calls):
            jax.debug.callback(lambda: calls.append(1))
            return network(params, x)

        result = compiled(
            attacks.square, counted, KEY, x, labels, threat=attacks.linf(0.02), num_queries=number
        )
        jax.effects_barrier()
        losses_seen.append(np.asarray(result.loss))
        assert len(calls) == result.queries.max() == number
    # Other windows in other searches, but all from the same start.
    assert (losses_seen[1] >= losses_seen[0]).all()
    assert losses_seen[1].mean() > losses_seen[0].mean()


def test_a_success_is_kept_though_its_loss_is_lower():
    """Misclassified where a feature is below .5, which the loss that is ascended speaks against."""

    def logits_fn(x):
        return jnp.stack([x[:, 0] - 0.5, jnp.zeros(x.shape[0])], -1)

    def loss_fn(logits, labels):
        return logits[:, 0]

    x = jnp.full((40, 1), 0.55)
    result = compiled(
        attacks.square,
        logits_fn,
        KEY,
        x,
        jnp.zeros(40, int),
        threat=attacks.linf(0.1),
        loss_fn=loss_fn,
        num_queries=12,
    )
    # Half of the starts are up; each of ten queries is down with probability one half.
    assert result.success.mean() > 0.97
    np.testing.assert_allclose(result.adversarial[result.success], 0.45, rtol=1e-5)


def test_targets_are_reached(problem):
    params, x, labels = problem
    targets = (labels + 1) % 5
    result = search(params, x, labels, attacks.linf(0.3), targets, num_queries=200)
    predicted = jnp.argmax(network(params, result.adversarial), -1)
    np.testing.assert_array_equal(result.success, predicted == targets)
    assert result.success.mean() > 0.7


@pytest.mark.parametrize("name", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_a_batch_cut_models_mapped_and_budgets_of_each(name, problem):
    params, x, labels = problem
    epsilons = np.linspace(0.01, 0.2, 20, dtype=np.float32)
    threat, cut = (getattr(attacks, name)(values) for values in (epsilons, epsilons[:7]))
    whole = search(params, x, labels, threat)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, np.float32(0.5) * leaf]), params)
    lifted = jax.jit(jax.vmap(search, (0, None, None, None)))
    mapped = lifted(stacked, x[:7], labels[:7], cut)
    np.testing.assert_allclose(mapped.adversarial[0], whole.adversarial[:7], atol=1e-5)
    np.testing.assert_array_equal(mapped.queries[0], whole.queries[:7])
    # Budget 0 leaves everything as it is.
    still = search(params, x, labels, getattr(attacks, name)(np.zeros(20, np.float32)))
    np.testing.assert_allclose(still.adversarial, x, atol=1e-7)


def test_inputs_that_are_no_images(problem):
    params, x, labels = problem
    for name, shape in (("l2", (72,)), ("linf", (3, 4, 3, 2))):
        result = compiled(
            attacks.square,
            functools.partial(network, params),
            KEY,
            x.reshape(-1, *shape),
            labels,
            threat=getattr(attacks, name)(0.3),
            num_queries=30,
        )
        assert result.adversarial.shape == (20, *shape) and result.success.mean() > 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_queries": 1}, "num_queries must be at least 2, got 1"),
        ({"first_share": 0.0}, r"first_share must lie in \(0, 1\], got 0.0"),
    ],
)
def test_bad_options_are_refused(options, message, problem):
    params, x, labels = problem
    with pytest.raises(ValueError, match=message):
        attacks.square(
            functools.partial(network, params),
            KEY,
            x,
            labels,
            **{"threat": attacks.linf(0.1)} | options,
        )


def test_a_proposal_of_l1_moves_norm_between_two_windows():
    """Each channel keeps the sum of its two windows, and what was spare is shared."""
    moves = np.random.default_rng(0).normal(size=(9, 9, 2)).astype(np.float32)
    x, size, radius = np.zeros_like(moves), np.array([3, 3]), 1.5 * np.abs(moves).sum()
    propose = jax.jit(lambda key: module._bump(key, moves, x, jnp.float32(radius), size, WIDE, 1))
    for key in jax.random.split(KEY, 5):
        new = np.asarray(propose(key))
        assert np.abs(new).sum() == pytest.approx(radius, rel=1e-5)
        before = np.abs(moves).sum((0, 1)) + (radius - np.abs(moves).sum()) / 2
        np.testing.assert_allclose(np.abs(new).sum((0, 1)), before, rtol=1e-4)


def test_in_l1_it_stays_in_the_ball_and_finds_what_is_near(problem):
    params, x, labels = problem
    attack = functools.partial(attacks.square, functools.partial(network, params), KEY, x, labels)
    results = {
        epsilon: jax.jit(lambda e=epsilon: attack(threat=attacks.l1(e), num_queries=300))()
        for epsilon in (0.2, 1.0)
    }
    for epsilon, result in results.items():
        away = attacks.distance(result.adversarial, x, "l1")
        assert (away <= epsilon * (1 + 1e-6)).all()
        assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    clean = losses.margin(network(params, x), labels)
    assert (results[1.0].loss > clean).mean() > 0.9
    assert results[1.0].success.mean() > results[0.2].success.mean()
