"""One perturbation for all: optima of linear models, walks by hand in NumPy, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks, losses
from halfway.attacks.ensembles import ensemble
from halfway.attacks.universal_perturbation import universal

KEY = jax.random.key(0)
WIDE = (-9.0, 9.0)
MAKE = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}
EPSILON = {"linf": 0.1, "l2": 0.3, "l1": 0.6}
each_norm = pytest.mark.parametrize("norm", MAKE)


def model(params, x):
    w1, w2 = params
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ w1) @ w2


def draw(num_examples=7):
    k1, k2, k3 = jax.random.split(jax.random.key(1), 3)
    params = jax.random.normal(k1, (6, 8)), jax.random.normal(k2, (8, 4))
    x = jnp.round(jax.random.uniform(k3, (num_examples, 3, 2)), 1)
    return params, x, jnp.argmax(model(params, x), -1)


PARAMS, X, LABELS = draw()
LOGITS = functools.partial(model, PARAMS)
TARGETS = (LABELS + 1) % 4
# A few inputs at each bound, so that bounds are felt.
X = X.at[:, 0, 0].set(0.0).at[:4, 1, 1].set(1.0)


@functools.partial(jax.jit, static_argnames=("logits_fn", "options"))
def _run(logits_fn, options, threat, x, labels, key, cap, targets):
    options = dict(options) | ({} if cap is None else {"cap": cap})
    return universal(logits_fn, key, x, labels, threat=threat, targets=targets, **options)


def run(threat, logits_fn=LOGITS, x=X, labels=LABELS, key=KEY, cap=None, targets=None, **options):
    """The result of an attack: one program for all calls of the same shapes."""
    return _run(logits_fn, tuple(options.items()), threat, x, labels, key, cap, targets)


def pick(logits, labels):
    """A linear loss: the logit of the label."""
    return jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


# Linear models


@pytest.mark.parametrize(
    ("norm", "loss_fn", "aim"),
    [(norm, losses.margin, "away") for norm in MAKE] + [("linf", losses.cross_entropy, "towards")],
)
def test_the_optimum_for_a_linear_model_and_one_label(norm, loss_fn, aim):
    weights = jax.random.normal(KEY, (5, 2))
    x, labels = jax.random.normal(jax.random.key(2), (7, 5)), jnp.zeros(7, int)
    threat = MAKE[norm](EPSILON[norm], WIDE)
    result = run(
        threat,
        lambda x: x @ weights,
        x,
        labels,
        loss_fn=loss_fn,
        batch_size=3,
        num_epochs=4,
        targets=labels if aim == "towards" else None,
    )
    h = np.asarray(weights[:, 1] - weights[:, 0], float) * (1 if aim == "away" else -1)
    steepest = {
        "linf": np.sign(h),
        "l2": h / np.linalg.norm(h),
        "l1": np.sign(h) * (np.abs(h) == np.abs(h).max()),
    }
    np.testing.assert_allclose(result.perturbation, EPSILON[norm] * steepest[norm], atol=2e-6)
    np.testing.assert_allclose(result.adversarial, x + result.perturbation[None], atol=1e-6)
    margin = np.asarray(x @ weights, float) @ [-1, 1] * (1 if aim == "away" else -1)
    gain = EPSILON[norm] * np.linalg.norm(h, {"linf": 1, "l2": 2, "l1": np.inf}[norm])
    if loss_fn is losses.margin:
        np.testing.assert_allclose(result.loss, margin + gain, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        result.success, margin + gain > 0 if aim == "away" else margin + gain >= 0
    )


@each_norm
def test_the_direction_is_that_of_the_mean_gradient_not_of_one_example(norm):
    weights = jnp.array([[3.0, -1.0, 0.5], [0.2, -1.0, 2.0], [-1.0, 0.9, 0.8], [0.0, 0.3, -2.0]])
    x, labels = jnp.zeros((6, 4)), jnp.array([0, 1, 1, 2, 2, 2])
    threat = MAKE[norm](0.25, WIDE)
    result = run(
        threat, lambda x: x @ weights, x, labels, loss_fn=pick, num_epochs=1, relative_step=1.0
    )
    mean = np.asarray(weights, float)[:, np.asarray(labels)].mean(1)
    step = 0.25 * np.asarray(threat.steepest(jnp.asarray(mean[None], jnp.float32)))[0]
    np.testing.assert_allclose(result.perturbation, step, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_epoch_sees_every_example_once(batch_size):
    # Example i pushes coordinate i alone, a step each time that it is seen.
    x, labels = jnp.zeros((7, 7)), jnp.arange(7)
    result = run(
        attacks.linf(1.0, WIDE),
        lambda x: x,
        x,
        labels,
        loss_fn=pick,
        batch_size=batch_size,
        num_epochs=3,
        relative_step=0.125,
    )
    np.testing.assert_array_equal(result.perturbation, jnp.full(7, 3 / 8))
    assert (result.queries == 4).all()


def test_an_example_at_the_cap_pushes_no_further():
    weights = jnp.array([[5.0, -1.0]])
    x, labels = jnp.array([[0.5], [0.25]]), jnp.array([0, 1])  # losses 2.5 and −.25
    attack = functools.partial(
        run, attacks.linf(0.25, WIDE), lambda x: x @ weights, x, labels, loss_fn=pick
    )
    free, capped = attack(), attack(cap=1.0)
    np.testing.assert_allclose(free.perturbation, 0.25)
    np.testing.assert_allclose(capped.perturbation, -0.25)
    np.testing.assert_allclose(capped.loss, [1.25, 0.0], atol=1e-6)  # itself not capped
    at_cap, low = (attack(cap=cap, num_epochs=1).perturbation for cap in (2.5, -9.0))
    np.testing.assert_allclose(at_cap, -0.025)
    np.testing.assert_array_equal(low, 0)


def test_what_a_bound_stops_does_not_count_and_the_way_back_stays_open():
    weights = jnp.array([[5.0, -1.0]])
    logits_fn, labels = lambda x: x @ weights, jnp.array([0, 1])
    threat = attacks.linf(0.25, (0.0, 1.0))
    # The first, which wants up by more, is at the upper bound.
    stopped = run(threat, logits_fn, jnp.array([[1.0], [0.5]]), labels, loss_fn=pick, num_epochs=1)
    np.testing.assert_allclose(stopped.perturbation, -0.025)
    # At the lower bound it can go up; a second that wants down is stopped there.
    free = run(threat, logits_fn, jnp.array([[0.0], [0.5]]), labels, loss_fn=pick)
    np.testing.assert_allclose(free.perturbation, 0.25)
    both = run(threat, logits_fn, jnp.array([[1.0], [0.0]]), labels, loss_fn=pick)
    np.testing.assert_array_equal(both.perturbation, 0)
    # From below the bound, where the second alone would drive it, the first brings it back.
    attack = functools.partial(
        run, threat, logits_fn, jnp.array([[0.0], [0.5]]), labels, loss_fn=pick, batch_size=1
    )
    for seed in range(4):  # steps cancel in either order
        np.testing.assert_allclose(attack(key=jax.random.key(seed)).perturbation, 0, atol=1e-7)


# By hand


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def both(x, labels):
    loss = losses.cross_entropy(LOGITS(x), labels)
    return loss.sum(), loss


def slope(x, labels, sign):
    gradient, loss = both(jnp.asarray(x, jnp.float32), labels)
    return sign * np.asarray(gradient, float), sign * np.asarray(loss, float)


def by_hand(labels, sign, *, batch_size, cap, num_epochs, bounded=True):
    x, delta = np.asarray(X, float), np.zeros(X.shape[1:])
    for key in jax.random.split(KEY, num_epochs):
        order = np.asarray(jax.random.permutation(key, jnp.arange(len(x))))
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            moved = x[rows] + delta
            g, loss = slope(np.clip(moved, 0, 1), labels[rows], sign)
            g[loss >= cap] = 0
            if bounded:
                g[(moved >= 1) & (g > 0) | (moved <= 0) & (g < 0)] = 0
            delta = np.clip(delta + np.sign(g.mean(0)) / 32, -1 / 8, 1 / 8)
    return delta


@pytest.mark.parametrize("aim", ["away", "towards"])
def test_the_walk_by_hand(aim):
    labels, sign, cap = (LABELS, 1, 0.8) if aim == "away" else (TARGETS, -1, -1.0)
    result = run(
        attacks.linf(1 / 8),
        num_epochs=4,
        batch_size=3,
        relative_step=1 / 4,
        cap=cap,
        targets=None if aim == "away" else TARGETS,
    )
    walk = functools.partial(by_hand, labels, sign, batch_size=3, num_epochs=4)
    np.testing.assert_allclose(result.perturbation, walk(cap=cap), atol=1e-6)
    # Neither the cap nor the bounds are idle here.
    assert np.abs(walk(cap=np.inf) - walk(cap=cap)).max() > 0.01
    assert np.abs(walk(cap=cap, bounded=False) - walk(cap=cap)).max() > 0.01


# What holds for all


@each_norm
def test_the_result_is_feasible_and_belongs_to_its_points(norm):
    threat = MAKE[norm](EPSILON[norm])
    result = run(threat, batch_size=3, relative_step=0.4, cap=0.5)
    point, delta = np.asarray(result.adversarial, float), np.asarray(result.perturbation, float)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    assert 0.2 < np.linalg.norm(delta.ravel(), order) / EPSILON[norm] <= 1 + 1e-6
    x = np.asarray(X, float)
    np.testing.assert_allclose(point, np.clip(x + delta, 0, 1), atol=1e-6)
    assert ((point >= 0) & (point <= 1)).all()
    moved = np.linalg.norm((point - x).reshape(7, -1), order, 1)
    assert (moved <= EPSILON[norm] * (1 + 1e-5)).all()
    applied = jax.jit(threat.project)(x + delta[None], X)
    np.testing.assert_allclose(applied, result.adversarial, atol=1e-6)
    logits = LOGITS(result.adversarial)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits, -1) != LABELS)
    np.testing.assert_allclose(result.loss, losses.cross_entropy(logits, LABELS), rtol=1e-4)
    assert result.loss.mean() > losses.cross_entropy(LOGITS(X), LABELS).mean()
    assert result.queries.dtype == jnp.int32 and (result.queries == 11).all()


def test_the_order_of_a_whole_batch_does_not_matter_and_its_examples_do():
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    whole, moved = run(attacks.l2(0.3)), run(attacks.l2(0.3), x=X[order], labels=LABELS[order])
    np.testing.assert_allclose(moved.perturbation, whole.perturbation, atol=1e-5)
    np.testing.assert_allclose(moved.loss, whole.loss[order], rtol=1e-3)
    np.testing.assert_array_equal(moved.success, whole.success[order])
    part = run(attacks.l2(0.3), x=X[:4], labels=LABELS[:4])
    assert np.abs(part.perturbation - whole.perturbation).max() > 1e-3


@pytest.mark.slow
def test_mapped_over_budgets_equals_a_loop():
    attack = functools.partial(run, num_epochs=3, batch_size=4, targets=TARGETS)
    budgets = jnp.array([0.0, 0.05, 0.1])
    mapped = jax.vmap(lambda epsilon: attack(attacks.linf(epsilon)))(budgets)
    for k, epsilon in enumerate(budgets):
        alone = attack(attacks.linf(epsilon))
        np.testing.assert_allclose(mapped.perturbation[k], alone.perturbation, atol=1e-6)
        np.testing.assert_array_equal(mapped.success[k], alone.success)
    np.testing.assert_array_equal(mapped.adversarial[0], X)


def test_several_models_are_fooled_together():
    weights = jnp.array([[[1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, -1.0]]])
    apply_fn = lambda w, x: (x - 0.5) @ w  # noqa: E731
    x = jnp.array([[0.6, 0.55], [0.55, 0.6], [0.7, 0.55]])
    logits_fn, loss_fn = ensemble(apply_fn, weights, "worst")
    result = run(
        attacks.linf(0.125), logits_fn, x, jnp.zeros(3, int), loss_fn=loss_fn, batch_size=2
    )
    np.testing.assert_allclose(result.perturbation, [-0.125, -0.125], rtol=1e-6)
    np.testing.assert_array_equal(result.success, [True, True, False])


def test_no_epoch_and_no_gradient_change_nothing():
    still = run(attacks.linf(0.1), num_epochs=0)
    np.testing.assert_array_equal(still.adversarial, X)
    assert (still.queries == 1).all() and not still.perturbation.any()
    np.testing.assert_allclose(still.loss, losses.cross_entropy(LOGITS(X), LABELS), rtol=1e-5)
    broken = run(attacks.linf(0.1), lambda x: jnp.nan * LOGITS(x))
    np.testing.assert_array_equal(broken.adversarial, X)
    assert not broken.success.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"threat": attacks.linf(np.full(7, 0.1))},
            r"one perturbation has one budget: epsilon must be a scalar, got shape \(7,\)",
        ),
        ({"num_epochs": -1}, "num_epochs must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"relative_step": np.nan}, "relative_step must be finite and at least 0, got nan"),
    ],
)
@pytest.mark.quick
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        universal(LOGITS, KEY, X, LABELS, **{"threat": attacks.linf(0.1)} | options)


def test_targets_of_another_length_are_refused():
    with pytest.raises(ValueError, match="x has 7 examples, targets has 3"):
        universal(LOGITS, KEY, X, LABELS, threat=attacks.linf(0.1), targets=TARGETS[:3])
