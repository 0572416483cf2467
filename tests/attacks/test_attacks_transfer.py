"""Attacks made to transfer: each by hand in NumPy, and what all of them share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks, losses
from halfway.attacks import base, estimators

KEY = jax.random.key(0)
SHAPE = (4, 6, 6, 2)
NAMED = {
    name: getattr(attacks, name)
    for name in ("bim", "mi_fgsm", "ni_fgsm", "di_fgsm", "ti_fgsm", "si_fgsm", "vmi_fgsm")
}
THREATS = {"linf": attacks.linf(0.1), "l2": attacks.l2(0.8), "l1": attacks.l1(3.0, fraction=0.2)}


def model(params, x):
    w1, w2 = params
    return jnp.tanh(x.reshape(x.shape[0], -1) @ w1) @ w2


def draw(seed=1, num_classes=4):
    k1, k2, k3 = jax.random.split(jax.random.key(seed), 3)
    features = int(np.prod(SHAPE[1:]))
    params = (
        0.3 * jax.random.normal(k1, (features, 9)),
        jax.random.normal(k2, (9, num_classes)),
    )
    x = jax.random.uniform(k3, SHAPE)
    return params, x, jnp.argmax(model(params, x), -1)


PARAMS, X, LABELS = draw()
LOGITS = functools.partial(model, PARAMS)


def gradient(x, labels=LABELS):
    return np.asarray(
        jax.grad(lambda x: losses.cross_entropy(LOGITS(x), labels).sum())(jnp.asarray(x)), float
    )


def scaled(g):
    return g / np.abs(g).mean((1, 2, 3), keepdims=True)


def step(x, direction, epsilon=0.1, relative=0.1):
    moved = x + relative * epsilon * np.sign(direction)
    return np.clip(np.clip(moved, np.asarray(X) - epsilon, np.asarray(X) + epsilon), 0, 1)


def by_hand(rule, num_steps=4):
    """A walk of float64 steps; `rule(x, state)` gives the direction and the next state."""
    x, state = np.asarray(X, float), None
    for _ in range(num_steps):
        direction, state = rule(x, state)
        x = step(x, direction)
    return x


def run(attack, threat=THREATS["linf"], **options):
    return jax.jit(functools.partial(attack, LOGITS, threat=threat, **options))(KEY, X, LABELS)


# By hand


def test_bim_takes_equal_steps_that_reach_the_budget():
    found = run(attacks.bim, num_steps=4)
    x = np.asarray(X, float)
    for _ in range(4):
        x = step(x, gradient(x), relative=0.25)
    np.testing.assert_allclose(found.adversarial, x, atol=1e-6)
    assert (found.queries == 5).all()


def test_momentum_adds_normalized_gradients_not_signs():
    def rule(x, state):
        momentum = 0.7 * (0 if state is None else state) + scaled(gradient(x))
        return momentum, momentum

    found = run(attacks.mi_fgsm, num_steps=4, decay=0.7)
    np.testing.assert_allclose(found.adversarial, by_hand(rule), atol=1e-6)
    assert (found.queries == 5).all()


def test_nesterov_looks_ahead_along_the_same_momentum():
    def rule(x, state):
        momentum = 0.0 if state is None else state
        ahead = x + 0.1 * 0.1 * 0.7 * momentum
        momentum = 0.7 * momentum + scaled(gradient(ahead))
        return momentum, momentum

    found = run(attacks.ni_fgsm, num_steps=4, decay=0.7)
    np.testing.assert_allclose(found.adversarial, by_hand(rule), atol=1e-6)
    moved = run(attacks.mi_fgsm, num_steps=4, decay=0.7)
    assert not np.array_equal(found.adversarial, moved.adversarial)


def test_scales_are_halves_and_the_gradient_is_of_the_point():
    def rule(x, state):
        return sum(0.5**i * gradient(0.5**i * x) for i in range(3)), None

    found = run(attacks.mi_fgsm, num_steps=4, decay=0.0, num_scales=3)
    np.testing.assert_allclose(found.adversarial, by_hand(rule), atol=1e-6)
    assert (found.queries == 13).all()
    assert (run(attacks.si_fgsm, num_steps=2).queries == 11).all()


def test_smoothing_is_a_gaussian_of_each_channel_by_itself():
    from scipy.ndimage import convolve

    places = np.arange(15) - 7
    kernel = np.exp(-0.5 * (places / 3.0) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2

    def rule(x, state):
        g = gradient(x)
        return np.stack(
            [
                np.stack([convolve(g[b, ..., d], kernel, mode="constant") for d in range(2)], -1)
                for b in range(len(g))
            ]
        ), None

    found = run(attacks.ti_fgsm, num_steps=4)
    np.testing.assert_allclose(found.adversarial, by_hand(rule), atol=1e-6)


def test_smoothing_keeps_what_is_constant_inside():
    inner = base.Estimator(lambda x: (), lambda k, s, x: base.Estimate(x, x, x, s), 1)
    flat = estimators.smoothed(inner, size=5).estimate(None, (), jnp.ones((1, 9, 9, 3)))
    np.testing.assert_allclose(flat.gradient[0, 2:-2, 2:-2], 1, rtol=1e-6)
    assert flat.gradient[0, 0, 0, 0] < 0.6
    impulse = jnp.zeros((1, 9, 9, 2)).at[0, 4, 4, 1].set(1.0)
    seen = estimators.smoothed(inner, size=3, deviation=1.0).estimate(None, (), impulse).gradient
    assert (seen[..., 0] == 0).all() and float(seen.sum()) == pytest.approx(1)
    assert (seen[0, :3] == 0).all() and (seen[0, 3:6, 3:6, 1] > 0).all()


def test_variance_tuning_uses_the_variance_of_the_step_before():
    goal = base.objective(LOGITS, LABELS, losses.cross_entropy)
    tuned = estimators.variance_tuned(base.exact_gradient(goal), number=4000, radius=0.05)
    keys = jax.random.split(KEY, 2)
    first = tuned.estimate(keys[0], tuned.init(X), X)
    # Nothing has been seen before the first step.
    np.testing.assert_allclose(first.gradient, gradient(X), rtol=1e-4, atol=1e-6)
    other = jnp.clip(X + 0.1, 0, 1)
    second = tuned.estimate(keys[1], first.state, other)
    added = np.asarray(second.gradient) - gradient(other)
    rng = np.random.default_rng(0)
    moves = jnp.asarray(rng.uniform(-0.05, 0.05, (4000, *SHAPE)), jnp.float32)
    slope = jax.vmap(jax.grad(lambda x: losses.cross_entropy(LOGITS(x), LABELS).sum()))
    expected = np.asarray(slope(X[None] + moves).mean(0)) - gradient(X)
    error = np.linalg.norm(added - expected) / np.linalg.norm(expected)
    assert error < 0.4
    assert tuned.num_queries == 4001
    np.testing.assert_allclose(second.loss, losses.cross_entropy(LOGITS(other), LABELS), rtol=1e-5)


def test_diverse_inputs_are_shrunk_moved_and_padded_with_black():

    def value(x):
        return x.sum((1, 2, 3)), jnp.zeros((x.shape[0], 2))

    white = jnp.ones((300, 10, 10, 1))

    def look(probability, smallest):
        goal = base.Objective(value, lambda logits: logits[:, 0] > 0)
        chain = estimators.diverse_inputs(goal, probability=probability, smallest=smallest)
        return chain.estimate(KEY, (), white)

    found = look(1.0, 0.5)
    # The loss is the sum of the pixels, so that a pixel's gradient is the area it was shrunk to.
    area = np.asarray(found.gradient).sum((1, 2, 3)) / 100
    sides = np.sqrt(100 * area)
    assert (area < 1.01).all() and area.min() < 0.35 and area.max() > 0.85
    assert len(np.unique(np.round(sides))) == 6  # 5 to 10 pixels
    assert np.isnan(found.loss).all() and np.isnan(found.logits).all()
    np.testing.assert_allclose(look(0.0, 0.5).gradient, 1)
    changed = np.abs(np.asarray(look(0.5, 0.5).gradient).sum((1, 2, 3)) / 100 - 1) > 1e-3
    assert 0.4 < changed.mean() < 0.6


# What all of them share


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("name", NAMED)
def test_results_are_feasible_and_belong_to_their_point(name, threat):
    options = {} if name == "bim" else {"relative_step": 0.3}
    if name == "vmi_fgsm":
        options["num_neighbours"] = 3
    found = run(NAMED[name], THREATS[threat], num_steps=5, **options)
    point = np.asarray(found.adversarial, float)
    assert ((point >= 0) & (point <= 1)).all()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[threat]
    moved = np.linalg.norm((point - np.asarray(X, float)).reshape(4, -1), order, 1)
    epsilon = float(THREATS[threat].epsilon)
    assert (moved <= epsilon * (1 + 1e-5)).all() and moved.min() > 0.2 * epsilon
    logits = LOGITS(found.adversarial)
    np.testing.assert_array_equal(found.success, jnp.argmax(logits, -1) != LABELS)
    np.testing.assert_allclose(found.loss, losses.cross_entropy(logits, LABELS), rtol=1e-4)
    assert (np.asarray(found.loss) > np.asarray(losses.cross_entropy(LOGITS(X), LABELS))).all()


@pytest.mark.parametrize("name", [n for n in NAMED if n != "bim"])
def test_no_step_no_budget_and_no_gradient_change_nothing(name):
    attack = functools.partial(NAMED[name], num_steps=3)
    still = attack(LOGITS, KEY, X, LABELS, threat=attacks.linf(0.0))
    np.testing.assert_array_equal(still.adversarial, X)
    flat = attack(
        lambda x: jnp.zeros((x.shape[0], 4)) + 0 * x.sum(),
        KEY,
        X,
        LABELS,
        threat=attacks.linf(0.1),
    )
    np.testing.assert_array_equal(flat.adversarial, X)
    assert np.isfinite(flat.loss).all()


@pytest.mark.parametrize("name", NAMED)
def test_a_batch_cut_short_or_permuted_gives_the_same_results(name):
    options = {"num_steps": 3} | ({"num_neighbours": 2} if name == "vmi_fgsm" else {})
    attack = functools.partial(NAMED[name], LOGITS, threat=attacks.linf(0.1), **options)
    whole, cut = attack(KEY, X, LABELS), attack(KEY, X[:2], LABELS[:2])
    np.testing.assert_allclose(cut.adversarial, whole.adversarial[:2], atol=1e-6)
    if name not in ("di_fgsm", "vmi_fgsm"):  # their draws belong to places
        order = np.array([2, 0, 3, 1])
        moved = attack(KEY, X[order], LABELS[order])
        np.testing.assert_allclose(moved.adversarial, whole.adversarial[order], atol=1e-6)


@pytest.mark.parametrize("name", ["mi_fgsm", "di_fgsm", "si_fgsm", "vmi_fgsm", "apgd"])
def test_vmapped_over_models_equals_a_loop(name):
    options = {"num_steps": 3} | ({"num_neighbours": 2} if name == "vmi_fgsm" else {})
    attack = getattr(attacks, name)
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), PARAMS, draw(7)[0])

    def one(params):
        return attack(
            functools.partial(model, params), KEY, X, LABELS, threat=attacks.linf(0.1), **options
        )

    mapped = jax.jit(jax.vmap(one))(stacked)
    for index in range(2):
        alone = one(jax.tree.map(lambda leaf: leaf[index], stacked))  # noqa: B023
        np.testing.assert_allclose(mapped.adversarial[index], alone.adversarial, atol=1e-5)


def test_targets_are_approached():
    targets = (LABELS + 1) % 4
    found = attacks.mi_fgsm(LOGITS, KEY, X, LABELS, threat=attacks.linf(0.3), targets=targets)
    before = losses.cross_entropy(LOGITS(X), targets)
    assert (np.asarray(-found.loss) < np.asarray(before)).all()
    np.testing.assert_array_equal(
        found.success, jnp.argmax(LOGITS(found.adversarial), -1) == targets
    )


def test_everything_composes():
    found = run(
        attacks.mi_fgsm,
        num_steps=3,
        diversity=0.5,
        num_scales=2,
        kernel_size=3,
        lookahead=True,
        num_neighbours=2,
    )
    assert (found.queries == 3 * 2 * 3 + 1).all()
    assert (np.asarray(found.loss) > np.asarray(losses.cross_entropy(LOGITS(X), LABELS))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": 1.5}, r"diversity must lie in \[0, 1\], got 1.5"),
        ({"smallest": 0.0}, r"smallest must lie in \(0, 1\], got 0.0"),
        ({"num_scales": 0}, "num_scales must be at least 1, got 0"),
        ({"num_neighbours": -1}, "num_neighbours must be at least 0, got -1"),
        ({"kernel_size": 4}, "size must be odd, got 4"),
        ({"num_steps": -1}, "num_steps must be at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.mi_fgsm(LOGITS, KEY, X, LABELS, threat=attacks.linf(0.1), **options)
