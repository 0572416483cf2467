"""Balls of l2 and l1: projections against independent solutions, uniform draws, steepest steps."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from halfway import attacks

KEY = jax.random.key(0)
MAKE = {"l2": attacks.l2, "l1": attacks.l1}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
project = jax.jit(lambda threat, adversarial, x: threat.project(adversarial, x))
UNIT = st.floats(0, 1, width=32, allow_subnormal=False)


def norms(name, moves):
    return np.linalg.norm(np.asarray(moves, np.float64).reshape(len(moves), -1), ORDER[name], 1)


def brute_force(name, adversarial, x, epsilon):
    """The nearest point of ball and box, in double precision, by bisection of the multiplier."""
    move = adversarial - x
    room = np.where(move > 0, 1 - x, x)

    def moves(multiplier):
        if name == "l2":
            return np.minimum(np.abs(move) / (1 + multiplier), room)
        return np.clip(np.abs(move) - multiplier, 0, room)

    low, high = 0.0, 1e12 if name == "l2" else np.abs(move).max() + 1
    if np.linalg.norm(moves(0.0), ORDER[name]) <= epsilon:
        high = 0.0
    for _ in range(400):
        middle = 0.5 * (low + high)
        if np.linalg.norm(moves(middle), ORDER[name]) > epsilon:
            low = middle
        else:
            high = middle
    return x + np.sign(move) * moves(high)


@pytest.mark.parametrize("name", MAKE)
@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    x=hnp.arrays(np.float32, (3, 5), elements=st.one_of(st.sampled_from([0.0, 1.0]), UNIT)),
    moved=hnp.arrays(np.float32, (3, 5), elements=st.floats(-3, 3, width=32)),
    epsilon=hnp.arrays(np.float32, (3,), elements=st.floats(0.015625, 2, width=32)),
)
def test_projection_is_the_nearest_point_of_ball_and_box(name, x, moved, epsilon):
    result = np.asarray(project(MAKE[name](epsilon), moved, x), np.float64)
    for row in range(3):
        expected = brute_force(
            name, moved[row].astype(float), x[row].astype(float), float(epsilon[row])
        )
        np.testing.assert_allclose(result[row], expected, atol=2e-5)
    assert ((result >= 0) & (result <= 1)).all()
    assert (norms(name, result - x) <= epsilon + 5 * np.spacing(np.float32(1))).all()


def test_projection_against_a_general_solver():
    rng = np.random.default_rng(0)
    x, moved = rng.uniform(size=6), rng.normal(0.5, 1.5, 6)
    for name, epsilon in (("l2", 0.4), ("l1", 0.7)):
        # Positive and negative parts, so that the l1 norm is linear.
        start = np.zeros(12)
        limits = [(0, 1 - v) for v in x] + [(0, v) for v in x]

        def distance(z):
            return ((x + z[:6] - z[6:] - moved) ** 2).sum()

        def left(z, name=name, epsilon=epsilon):
            return epsilon - z.sum() if name == "l1" else epsilon**2 - ((z[:6] - z[6:]) ** 2).sum()

        outcome = scipy.optimize.minimize(
            distance,
            start,
            bounds=limits,
            constraints={"type": "ineq", "fun": left},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        expected = x + outcome.x[:6] - outcome.x[6:]
        threat = MAKE[name](epsilon)
        result = project(threat, jnp.float32(moved[None]), jnp.float32(x[None]))[0]
        np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_what_is_outside_lands_on_the_surface_and_what_is_inside_stays(name):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.uniform(0.4, 0.6, (20, 7, 7, 3)), jnp.float32)
    far = x + jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    threat = MAKE[name](0.3)
    result = project(threat, far, x)
    np.testing.assert_allclose(norms(name, result - x), 0.3, rtol=1e-5)
    np.testing.assert_allclose(project(threat, result, x), result, atol=1e-6)
    near = x + 1e-4 * jnp.sign(far - x)
    np.testing.assert_allclose(project(threat, near, x), near, atol=1e-7)
    np.testing.assert_array_equal(project(MAKE[name](0.0), far, x), x)


@pytest.mark.parametrize("name", MAKE)
def test_many_features_and_small_budgets_stay_feasible(name):
    rng = np.random.default_rng(2)
    x = jnp.asarray(np.round(4 * rng.uniform(size=(8, 28, 28, 1))) / 4, jnp.float32)
    far = jnp.asarray(rng.normal(0.5, 1, x.shape), jnp.float32)
    for epsilon in (1e-2, 0.5, 3.0, 30.0, 1e4):
        point = np.asarray(project(MAKE[name](epsilon), far, x))
        assert ((point >= 0) & (point <= 1)).all()
        # One ulp of each feature.
        slack = np.linalg.norm(np.full(784, np.spacing(np.float32(1)) / 4), ORDER[name])
        assert (norms(name, point - np.asarray(x)) <= epsilon + slack).all()
    np.testing.assert_allclose(point, np.clip(far, 0, 1), atol=1e-7)


@pytest.mark.parametrize("name", MAKE)
def test_draws_are_uniform_in_the_ball(name):
    start = jax.jit(MAKE[name](0.4, bounds=(-jnp.inf, jnp.inf)).random_start)
    small = start(KEY, np.zeros((4000, 2), np.float32))
    # In two dimensions the share within radius r is (r/ε)².
    share = (norms(name, small) / 0.4) ** 2
    assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3
    assert np.abs(np.asarray(small).mean(0)).max() < 0.02
    large = np.asarray(start(KEY, np.zeros((20, 100, 100), np.float32)))
    np.testing.assert_allclose(norms(name, large), 0.4, rtol=0.01)
    # A draw belongs to its place: a shorter batch draws the same.
    again = start(KEY, np.zeros((7, 100, 100), np.float32))
    np.testing.assert_array_equal(again, large[:7])


def test_steepest_steps_gain_the_dual_norm():
    g = np.float32([[1.0, -2.0]])
    many = np.random.default_rng(3).normal(size=(9, 4, 5)).astype(np.float32)
    gains = {"linf": 3.0, "l2": np.sqrt(5), "l1": 2.0}
    for name, make in ({"linf": attacks.linf} | MAKE).items():
        threat = make(1.0)
        both = jax.jit(lambda g, t=threat: (t.steepest(g), t.dual_norm(g)))
        step, norm = jax.device_get(both(g))
        assert float((g * step).sum()) == pytest.approx(gains[name])
        assert float(norm[0]) == pytest.approx(gains[name])
        assert norms(name, step)[0] == pytest.approx(1)
        steps, dual = jax.device_get(both(many))
        np.testing.assert_allclose((many * steps).sum((1, 2)), dual, rtol=1e-5)
        assert (both(0 * many)[0] == 0).all()
    # No other step of that norm gains more.
    others = np.random.default_rng(4).normal(size=(10_000, 2))
    for name in MAKE:
        others_of = others / norms(name, others)[:, None]
        assert (others_of @ np.array([1.0, -2.0])).max() <= gains[name] + 1e-9


def test_steps_of_l1_split_among_ties_and_among_a_fraction():
    tied = jnp.array([[2.0, -2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 1e-30]])
    np.testing.assert_allclose(
        attacks.l1(1.0).steepest(tied), [[1 / 3, -1 / 3, 0, 1 / 3], [0, 0, 0, 1]], rtol=1e-6
    )
    g = jnp.array([[4.0, -3.0, 2.0, -1.0]])
    np.testing.assert_allclose(attacks.l1(1.0, fraction=0.5).steepest(g), [[0.5, -0.5, 0, 0]])
    np.testing.assert_allclose(attacks.l1(1.0, fraction=1.0).steepest(g)[0], np.sign(g[0]) / 4)
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got 1.5"):
        attacks.l1(1.0, fraction=1.5)
    assert attacks.l1(1.0, fraction=0.3).norm is attacks.l1(0.2, fraction=0.3).norm


@pytest.mark.quick
def test_tiny_and_huge_gradients_have_a_direction():
    for scale in (1e-30, 1e30):
        step = attacks.l2(1.0).steepest(scale * jnp.array([[3.0, 4.0]]))
        np.testing.assert_allclose(step, [[0.6, 0.8]], rtol=1e-5)


@pytest.mark.parametrize("name", MAKE)
def test_another_budget_compiles_nothing_and_budgets_map(name):
    count = []

    @jax.jit
    def run(threat, far, x):
        count.append(1)
        return threat.project(far, x)

    rng = np.random.default_rng(5)
    x, far = (jnp.asarray(rng.uniform(-k, 1 + k, (3, 6)), jnp.float32) for k in (0, 1))
    budgets = [0.1, 0.5, jnp.float32(0.7)]
    each = [run(MAKE[name](epsilon), far, x) for epsilon in budgets]
    assert len(count) == 1
    budgets = jnp.array(budgets)
    mapped = jax.jit(jax.vmap(lambda e: MAKE[name](e).project(far, x)))(budgets)
    np.testing.assert_allclose(mapped, np.stack(each), atol=1e-6)
    per_example = project(MAKE[name](budgets), far, x)
    np.testing.assert_allclose(per_example, np.stack(each)[range(3), range(3)], atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_projection_is_the_nearest_point_of_a_whole_image_too(name):
    rng = np.random.default_rng(6)
    x = np.where(rng.uniform(size=(4, 784)) < 0.6, rng.integers(0, 2, (4, 784)), 0.3)
    moves = rng.normal(size=x.shape) * np.array([[0.01], [1.0], [1.0], [5.0]])
    x, far = np.float32(x), np.float32(x + moves)
    for epsilon in (0.05, 3.0, 20.0):
        result = np.asarray(project(MAKE[name](epsilon), far, x), np.float64)
        for row in range(4):
            expected = brute_force(name, far[row].astype(float), x[row].astype(float), epsilon)
            np.testing.assert_allclose(result[row], expected, atol=5e-6)


# Some features alone

MASK = np.array([True, False, True, True, False, True])
MAKERS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}


@pytest.mark.parametrize("name", MAKERS)
def test_within_a_mask_everything_is_as_with_its_features_alone(name):
    """The ball in the subspace of the mask: projection, steepest step and dual norm."""
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(40, 6)).astype(np.float32)
    moved = rng.normal(0.5, 1.0, (40, 6)).astype(np.float32)
    epsilon = rng.uniform(0.05, 1.0, 40).astype(np.float32)
    whole, part = MAKERS[name](epsilon).within(MASK), MAKERS[name](epsilon)
    ours = np.asarray(whole.project(moved, x))
    np.testing.assert_array_equal(ours[:, ~MASK], x[:, ~MASK])
    np.testing.assert_allclose(ours[:, MASK], part.project(moved[:, MASK], x[:, MASK]), atol=1e-6)
    step = np.asarray(whole.steepest(moved))
    assert (step[:, ~MASK] == 0).all()
    np.testing.assert_allclose(step[:, MASK], part.steepest(moved[:, MASK]), atol=1e-6)
    np.testing.assert_allclose(whole.dual_norm(moved), part.dual_norm(moved[:, MASK]), rtol=1e-5)
    start = np.asarray(whole.random_start(KEY, x))
    np.testing.assert_array_equal(start[:, ~MASK], x[:, ~MASK])
    assert (start[:, MASK] != x[:, MASK]).any() and (norms(name, start - x) <= epsilon + 1e-6).all()


ATTACKS = {
    "apgd": {"num_steps": 20},
    "auto_attack": {"num_steps": 20, "num_queries": 50, "num_targets": 1},
    "mi_fgsm": {},
    "pgd": {"num_steps": 20},
    "square": {"num_queries": 200},
    "universal": {"num_epochs": 30},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_stay_within_a_patch_and_use_all_of_it(name):
    """A linear model, of which the worst patch is known: every feature of it at a bound."""
    images = jax.random.uniform(KEY, (8, 4, 4, 1))
    mask = np.zeros((4, 4, 1), bool)
    mask[1:3, 1:3] = True
    weights = jax.random.normal(jax.random.key(1), (16,))

    def logits_fn(x):
        lead = (x.reshape(len(x), -1) - 0.5) @ weights
        return jnp.stack([jnp.zeros_like(lead), lead], -1)

    labels = logits_fn(images).argmax(-1)
    if name == "universal":  # one perturbation cannot lead both ways
        images, labels = images[labels == 1], labels[labels == 1]
    attack = getattr(attacks, name)
    result = jax.jit(
        lambda x, y: attack(logits_fn, KEY, x, y, threat=attacks.patch(mask), **ATTACKS[name])
    )(images, labels)
    moved = np.asarray(result.adversarial != images)
    assert not moved[:, ~mask].any() and moved[:, mask].any()
    sign = np.where(labels == 1, -1, 1)[:, None, None, None]
    best = np.where(mask, sign * np.asarray(weights).reshape(4, 4, 1) > 0, images)
    expected = logits_fn(jnp.asarray(best, jnp.float32)).argmax(-1) != labels
    np.testing.assert_array_equal(np.asarray(result.success) <= np.asarray(expected), True)
    if name != "universal":
        np.testing.assert_array_equal(result.success, expected)
        assert expected.any()


def test_masks_and_patches_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="mask must be an array of bool, got float32"):
        attacks.linf(0.1).within(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="mask must be True somewhere"):
        attacks.l2(0.1).within(np.zeros(3, bool))
    with pytest.raises(ValueError, match="a patch needs finite bounds"):
        attacks.patch(np.ones(3, bool), bounds=(-np.inf, 1.0))
