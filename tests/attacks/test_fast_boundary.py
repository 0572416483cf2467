"""FAB and Carlini–Wagner: projections onto planes against solvers, restarts, features at bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from support import small_network
from support.programs import compiled

from halfway import attacks, losses
from halfway.attacks import base
from halfway.attacks.minimum_norm import fast_boundary, nearest

KEY = jax.random.key(0)
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


to_plane = jax.jit(fast_boundary.to_plane, static_argnums=(3, 4))


def least_norm(norm, weights, amount, low, high):
    """The least norm of a move within bounds along which a linear function gains the amount."""
    n = len(weights)
    if norm == "l2":
        result = scipy.optimize.minimize(
            lambda z: z @ z,
            np.zeros(n),
            jac=lambda z: 2 * z,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda z: z @ weights - amount},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        return np.sqrt(result.fun) if result.success else np.nan
    if norm == "l1":
        limits = [(0, h) for h in high] + [(0, -v) for v in low]
        result = scipy.optimize.linprog(
            np.ones(2 * n), A_eq=np.r_[weights, -weights][None], b_eq=[amount], bounds=limits
        )
    else:
        column, eye = np.ones((n, 1)), np.eye(n)
        result = scipy.optimize.linprog(
            np.r_[np.zeros(n), 1],
            A_ub=np.block([[eye, -column], [-eye, -column]]),
            b_ub=np.zeros(2 * n),
            A_eq=np.r_[weights, 0][None],
            b_eq=[amount],
            bounds=[*zip(low, high, strict=True), (0, None)],
        )
    return result.fun if result.status == 0 else np.nan


@pytest.mark.parametrize("norm", ORDER)
def test_moves_to_a_plane_are_the_least(norm):
    rng = np.random.default_rng(0)
    x, weights = rng.uniform(size=(8, 12)), rng.normal(size=(8, 12))
    x[0] = np.round(x[0])  # all features at a bound
    x[1] = np.round(2 * x[1]) / 2
    weights[2, 3:6], weights[3, :9] = 1.5, 0.0  # ties, and features that do not matter
    solved = 0
    for amount in (0.0, 0.3, 2.0, -1.0, -30.0):
        moves = to_plane(
            np.float32(x), np.float32(weights), np.full(8, amount, np.float32), norm, (0.0, 1.0)
        )
        moves = np.asarray(moves, float)
        assert ((x + moves >= -1e-6) & (x + moves <= 1 + 1e-6)).all()
        for row in range(8):
            up = weights[row] * amount > 0
            most = np.abs(weights[row] * np.where(up, 1 - x[row], x[row])).sum()
            gain = moves[row] @ weights[row]
            # The plane is reached, or else the corner that comes nearest.
            assert gain == pytest.approx(np.sign(amount) * min(abs(amount), most), abs=1e-5)
            expected = least_norm(norm, weights[row], amount, -x[row], 1 - x[row])
            if most > abs(amount) and np.isfinite(expected):
                solved += 1
                assert np.linalg.norm(moves[row], ORDER[norm]) <= expected + 1e-4
    assert solved > 20


@pytest.mark.quick
def test_without_bounds_moves_are_those_of_the_dual_norm():
    weights = jnp.array([[3.0, -4.0, 0.0]])
    zero, wide = jnp.zeros((1, 3)), (-np.inf, np.inf)
    for norm, expected in {
        "linf": [1, -1, 0],
        "l2": [21 / 25, -28 / 25, 0],
        "l1": [0, -1.75, 0],
    }.items():
        move = to_plane(zero, weights, jnp.array([7.0]), norm, wide)
        np.testing.assert_allclose(move[0], expected, rtol=1e-5)
        nothing = to_plane(zero, 0 * weights, jnp.ones(1), norm, wide)
        np.testing.assert_array_equal(nothing, 0)


@pytest.fixture(scope="module")
def curved():
    params, x, labels = small_network.problem(40, 12)
    return functools.partial(small_network.network, params), x, labels


def test_restarts_are_never_worse_and_find_nearer_points(curved):
    logits_fn, x, labels = curved
    attack = functools.partial(attacks.fab, logits_fn, KEY, x, labels, norm="l2", num_steps=20)
    away = [
        np.asarray(
            attacks.distance(jax.jit(functools.partial(attack, num_restarts=n))().adversarial, x)
        )
        for n in (1, 4)
    ]
    # Up to the last secant steps, which look along other segments.
    assert (away[1] <= away[0] * 1.001).all()
    assert (away[1] < away[0] * 0.95).sum() >= 3


def test_the_last_steps_end_at_the_boundary(curved):
    logits_fn, x, labels = curved
    result = compiled(attacks.fab, logits_fn, KEY, x, labels, norm="l2", num_steps=30)
    move = result.adversarial - x
    inside = jnp.argmax(logits_fn(x + 0.98 * move), -1) == labels
    assert result.success.all() and inside.mean() > 0.9


@pytest.mark.parametrize(
    ("attack", "options", "jacobians"),
    [
        (attacks.fab, {"num_restarts": 2}, 2 * 4),
        (attacks.fab, {"targets": 1}, 0),
        (attacks.carlini_wagner, {"num_searches": 2}, 1),
        (attacks.carlini_wagner, {"num_searches": 2, "targets": 1}, 0),
    ],
)
def test_queries_count_every_evaluation(attack, options, jacobians, curved):
    logits_fn, x, labels = curved
    if "targets" in options:
        options = options | {"targets": (labels + 1) % 5}
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return logits_fn(x)

    result = compiled(attack, counted, KEY, x, labels, num_steps=4, **options)
    jax.effects_barrier()
    # The gradients of all five logits count as five, though the model is evaluated once for them.
    assert int(result.queries[0]) == len(calls) + 4 * jacobians


def test_features_at_the_bounds_can_leave_them():
    """Only moves away from a bound help, and the nearest success is known."""
    weights = jnp.array([[-3.0, 3.0], [4.0, -4.0]])
    corner, bias = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, -2.0]])
    logits_fn = lambda x: (x - corner) @ weights + bias  # noqa: E731
    x, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
    # Within the box every move away from the corner adds to f_0 − f_1 = 4 + 6 a + 8 b.
    near = compiled(attacks.carlini_wagner, logits_fn, KEY, x, labels, num_steps=50)
    assert not near.success.any()
    flipped = lambda x: (x - corner) @ -weights + bias  # noqa: E731
    result = compiled(attacks.carlini_wagner, flipped, KEY, x, labels)
    assert result.success.all()
    # 4 − 6 a − 8 b = 0 is nearest at distance 4/10.
    np.testing.assert_allclose(result.adversarial, [[1 - 0.24, 0.32]], atol=0.01)
    assert float(attacks.distance(result.adversarial, x)[0]) == pytest.approx(0.4, rel=0.01)


def test_confidence_is_the_margin_of_the_result(curved):
    logits_fn, x, labels = curved
    for shift in (0.0, -100.0):  # all logits negative

        def shifted(x, shift=shift):
            return logits_fn(x) + shift

        result = jax.jit(functools.partial(attacks.carlini_wagner, shifted, confidence=0.5))(
            KEY, x, labels
        )
        assert result.success.mean() > 0.9
        assert (np.asarray(result.loss)[np.asarray(result.success)] >= 0.5 - 1e-4).all()
        assert np.median(result.loss) < 0.6


def disc(x):
    """Two classes in the plane, the second beyond the unit circle: f_1 − f_0 = ‖x‖² − 1."""
    return jnp.stack([jnp.zeros(x.shape[0]), (x**2).sum(1) - 1], 1)


def test_a_walk_against_its_formulas():
    """Steps of FAB in l2 far from any bound, written out in float64 (arXiv 1907.02044)."""
    overshoot, backward, bias = 1.05, 0.8, 0.2
    x, start = np.array([0.3, 0.1]), np.array([0.2, 0.7])
    point, nearest_one, distance, shares, backs = start, None, np.inf, [], 0
    for _ in range(6):
        normal, ahead = 2 * point, point @ point - 1
        here = -ahead * normal / (normal @ normal)
        there = -(ahead + normal @ (x - point)) * normal / (normal @ normal)
        lengths = np.linalg.norm(here), np.linalg.norm(there)
        shares.append(min(lengths[0] / sum(lengths), bias))
        a = shares[-1]
        point = (1 - a) * (point + overshoot * here) + a * (x + overshoot * there)
        if point @ point > 1:
            backs += 1
            if np.linalg.norm(point - x) < distance:
                nearest_one, distance = point, np.linalg.norm(point - x)
            point = (1 - backward) * x + backward * point
    assert backs >= 2 and bias in shares and min(shares) < bias  # both cases of each are met
    inputs = jnp.asarray(x[None], jnp.float32)
    goal = base.objective(disc, jnp.array([0]), losses.margin, None)
    kept, end = fast_boundary.walk(
        goal,
        nearest.nearest_class(disc, jnp.array([0]), "l2"),
        inputs,
        jnp.asarray(start[None], jnp.float32),
        nearest.nothing(inputs),
        "l2",
        (-50.0, 50.0),
        num_steps=6,
        overshoot=overshoot,
        backward=backward,
        bias=bias,
    )
    np.testing.assert_allclose(end[0], point, atol=1e-5)
    np.testing.assert_allclose(kept.point[0], nearest_one, atol=1e-5)
    np.testing.assert_allclose(kept.distance[0], distance, rtol=1e-5)


def test_a_restart_begins_within_half_of_what_was_found(monkeypatch):
    """A walk that stays where it begins and says it found something at distance 2."""

    def stay(goal, linearize, x, start, kept, *rest, **options):
        return kept._replace(point=start, distance=jnp.full(x.shape[0], 2.0)), start

    monkeypatch.setattr(fast_boundary, "walk", stay)
    x, labels = jnp.full((64, 3), 5.0), jnp.zeros(64, jnp.int32)
    never = lambda x: jnp.tile(jnp.array([[1.0, 0.0]]), (x.shape[0], 1))  # noqa: E731
    goal = base.objective(never, labels, losses.margin, None)
    keys = jax.random.split(KEY, 1)
    kept, _ = fast_boundary.search(
        goal, None, x, "l2", (0.0, 10.0), num_steps=1, queries_of_step=1, restarts=keys
    )
    away = np.linalg.norm(kept.point - x, axis=1)
    assert away.max() <= 1 and away.max() > 0.8  # uniform in the ball of radius 1


def test_carlini_wagner_goes_to_the_nearest_class_not_the_runner_up():
    """The second logit is .1 behind and flat, the third .2 behind and steep."""
    slopes, behind = jnp.array([[0.0, 0.1, 0.0], [0.0, 0.0, 1.0]]), jnp.array([[0.0, -0.1, -0.2]])
    x, labels = jnp.full((1, 2), 3.0), jnp.array([0])
    result = compiled(
        attacks.carlini_wagner,
        lambda z: (z - x) @ slopes + behind,
        KEY,
        x,
        labels,
        bounds=(0.0, 6.0),
    )
    assert result.success.all()
    assert float(attacks.distance(result.adversarial, x)[0]) == pytest.approx(0.2, rel=0.01)
