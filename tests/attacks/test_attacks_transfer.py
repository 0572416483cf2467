"""Attacks made to transfer: each by hand in NumPy, and what all of them share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

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


SLOPE = jax.jit(jax.grad(lambda x, labels: losses.cross_entropy(LOGITS(x), labels).sum()))


def gradient(x, labels=LABELS):
    return np.asarray(SLOPE(jnp.asarray(x), labels), float)


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
    return compiled(attack, LOGITS, KEY, X, LABELS, threat=threat, **options)


@functools.partial(jax.jit, static_argnames="name")
def walk(name, params=PARAMS, x=X, labels=LABELS, threat=THREATS["linf"]):
    """The result of a named attack: one program for all tests of what attacks share."""
    options = {"num_steps": 4} | ({} if name in ("bim", "apgd") else {"relative_step": 0.3})
    options |= {"num_neighbours": 2} if name == "vmi_fgsm" else {}
    logits_fn = functools.partial(model, params)
    return getattr(attacks, name)(logits_fn, KEY, x, labels, threat=threat, **options)


def ascend(goal, gradient_fn, update_rule, **options):
    return jax.jit(
        lambda key, x: attacks.ascend(goal, gradient_fn, update_rule, key, x, **options)
    )(KEY, X)


# By hand


def test_bim_takes_equal_steps_that_reach_the_budget():
    result = run(attacks.bim, num_steps=4)
    x = np.asarray(X, float)
    for _ in range(4):
        x = step(x, gradient(x), relative=0.25)
    np.testing.assert_allclose(result.adversarial, x, atol=1e-6)
    assert (result.queries == 5).all()


def test_momentum_adds_normalized_gradients_not_signs():
    def rule(x, state):
        momentum = 0.7 * (0 if state is None else state) + scaled(gradient(x))
        return momentum, momentum

    result = run(attacks.mi_fgsm, num_steps=4, decay=0.7)
    np.testing.assert_allclose(result.adversarial, by_hand(rule), atol=1e-6)
    assert (result.queries == 5).all()


def test_nesterov_looks_ahead_along_the_same_momentum():
    def rule(x, state):
        momentum = 0.0 if state is None else state
        ahead = x + 0.1 * 0.1 * 0.7 * momentum
        momentum = 0.7 * momentum + scaled(gradient(ahead))
        return momentum, momentum

    result = run(attacks.ni_fgsm, num_steps=4, decay=0.7)
    np.testing.assert_allclose(result.adversarial, by_hand(rule), atol=1e-6)
    moved = run(attacks.mi_fgsm, num_steps=4, decay=0.7)
    assert not np.array_equal(result.adversarial, moved.adversarial)


def test_scales_are_halves_and_the_gradient_is_of_the_point():
    def rule(x, state):
        return sum(0.5**i * gradient(0.5**i * x) for i in range(3)), None

    goal = attacks.objective(LOGITS, LABELS, losses.cross_entropy)
    gradient_fn = attacks.scaled_copies(attacks.exact_gradient(goal), num_scales=3)
    threat = attacks.linf(0.1)
    update_rule = attacks.momentum(threat, 0.1, decay=0.0)
    result = ascend(goal, gradient_fn, update_rule, threat=threat, num_steps=4)
    np.testing.assert_allclose(result.adversarial, by_hand(rule), atol=1e-6)
    assert (result.queries == 13).all()
    assert (walk("si_fgsm").queries == 4 * 5 + 1).all()


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

    result = run(attacks.ti_fgsm, num_steps=4)
    np.testing.assert_allclose(result.adversarial, by_hand(rule), atol=1e-6)


@pytest.mark.quick
def test_smoothing_keeps_what_is_constant_inside():
    inner = base.Estimator(lambda x: (), lambda k, s, x: base.GradientEstimate(x, x, x, s), 1)

    def smooth_of(x, **options):
        smoothed = estimators.smoothed(inner, **options)
        return np.asarray(jax.jit(lambda x: smoothed.estimate(None, (), x).gradient)(x))

    flat = smooth_of(np.ones((1, 9, 9, 3), np.float32), kernel_size=5)
    np.testing.assert_allclose(flat[0, 2:-2, 2:-2], 1, rtol=1e-6)
    assert flat[0, 0, 0, 0] < 0.6
    impulse = np.zeros((1, 9, 9, 2), np.float32)
    impulse[0, 4, 4, 1] = 1.0
    smooth = smooth_of(impulse, kernel_size=3, deviation=1.0)
    assert (smooth[..., 0] == 0).all() and float(smooth.sum()) == pytest.approx(1)
    assert (smooth[0, :3] == 0).all() and (smooth[0, 3:6, 3:6, 1] > 0).all()


def test_variance_tuning_uses_the_variance_of_the_step_before():
    goal = base.objective(LOGITS, LABELS, losses.cross_entropy)
    tuned = estimators.variance_tuned(base.exact_gradient(goal), num_neighbours=4000, radius=0.05)
    keys = jax.random.split(KEY, 2)
    estimate = jax.jit(tuned.estimate)
    first = estimate(keys[0], tuned.init(X), X)
    # Nothing has been seen before the first step.
    np.testing.assert_allclose(first.gradient, gradient(X), rtol=1e-4, atol=1e-6)
    other = np.clip(np.asarray(X) + np.float32(0.1), 0, 1)
    second = estimate(keys[1], first.state, other)
    added = np.asarray(second.gradient) - gradient(other)
    rng = np.random.default_rng(0)
    moves = rng.uniform(-0.05, 0.05, (4000, *SHAPE)).astype(np.float32)
    slopes = jax.jit(jax.vmap(lambda x: SLOPE(x, LABELS)))(np.asarray(X)[None] + moves)
    expected = np.asarray(slopes).mean(0) - gradient(X)
    error = np.linalg.norm(added - expected) / np.linalg.norm(expected)
    assert error < 0.4
    assert tuned.num_queries == 4001
    np.testing.assert_allclose(second.loss, losses.cross_entropy(LOGITS(other), LABELS), rtol=1e-5)


def test_diverse_inputs_are_shrunk_moved_and_padded_with_black():

    def value(x):
        return x.sum((1, 2, 3)), jnp.zeros((x.shape[0], 2))

    white = jnp.ones((300, 10, 10, 1))

    def look(probability, smallest):
        goal = base.Objective(value, lambda logits: logits[:, 0] > 0, lambda logits: logits[:, 0])
        chain = estimators.diverse_inputs(
            base.exact_gradient(goal), probability=probability, smallest=smallest
        )
        return jax.jit(lambda x: chain.estimate(KEY, (), x))(white)

    result = look(1.0, 0.5)
    # The loss is the sum of the pixels, so that a pixel's gradient is the area it was shrunk to.
    area = np.asarray(result.gradient).sum((1, 2, 3)) / 100
    sides = np.sqrt(100 * area)
    assert (area < 1.01).all() and area.min() < 0.35 and area.max() > 0.85
    assert len(np.unique(np.round(sides))) == 6  # 5 to 10 pixels
    assert np.isnan(result.loss).all() and np.isnan(result.logits).all()
    np.testing.assert_allclose(look(0.0, 0.5).gradient, 1)
    changed = np.abs(np.asarray(look(0.5, 0.5).gradient).sum((1, 2, 3)) / 100 - 1) > 1e-3
    assert 0.4 < changed.mean() < 0.6


# What all of them share


@pytest.mark.parametrize(
    ("name", "threat"),
    [(name, "linf") for name in NAMED]
    + [("mi_fgsm", "l2"), ("mi_fgsm", "l1")]
    # Every attack ends in the same steps.
    + [
        pytest.param(name, threat, marks=pytest.mark.slow)
        for name in NAMED
        for threat in ("l2", "l1")
        if name != "mi_fgsm"
    ],
)
def test_results_are_feasible_and_belong_to_their_point(name, threat):
    result = walk(name, threat=THREATS[threat])
    point = np.asarray(result.adversarial, float)
    assert ((point >= 0) & (point <= 1)).all()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[threat]
    moved = np.linalg.norm((point - np.asarray(X, float)).reshape(4, -1), order, 1)
    epsilon = float(THREATS[threat].epsilon)
    assert (moved <= epsilon * (1 + 1e-5)).all() and moved.min() > 0.2 * epsilon
    logits = LOGITS(result.adversarial)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits, -1) != LABELS)
    np.testing.assert_allclose(result.loss, losses.cross_entropy(logits, LABELS), rtol=1e-4)
    assert (np.asarray(result.loss) > np.asarray(losses.cross_entropy(LOGITS(X), LABELS))).all()


@pytest.mark.parametrize("name", [n for n in NAMED if n != "bim"])
def test_no_budget_and_no_gradient_change_nothing(name):
    still = walk(name, threat=attacks.linf(0.0))
    np.testing.assert_array_equal(still.adversarial, X)
    flat = walk(name, jax.tree.map(np.zeros_like, PARAMS))
    np.testing.assert_array_equal(flat.adversarial, X)
    assert np.isfinite(flat.loss).all()


@pytest.mark.parametrize("name", [n for n in NAMED if n not in ("di_fgsm", "vmi_fgsm")])
def test_a_batch_permuted_gives_the_same_results(name):
    order = np.array([2, 0, 3, 1])  # the draws of the other two belong to places
    moved = walk(name, x=X[order], labels=LABELS[order])
    np.testing.assert_allclose(moved.adversarial, walk(name).adversarial[order], atol=1e-6)


@pytest.mark.parametrize("name", ["mi_fgsm", "di_fgsm", "ti_fgsm", "vmi_fgsm", "apgd"])
def test_vmapped_over_models_and_cut_short_equals_a_loop(name):
    stacked = jax.tree.map(lambda a, b: np.stack([a, b]), PARAMS, draw(7)[0])
    lifted = jax.jit(jax.vmap(lambda params, x, y: walk(name, params, x, y), (0, None, None)))
    mapped = lifted(stacked, X[:2], LABELS[:2])
    for index in range(2):
        alone = walk(name, jax.tree.map(lambda leaf: leaf[index], stacked))  # noqa: B023
        np.testing.assert_allclose(mapped.adversarial[index], alone.adversarial[:2], atol=1e-5)


def test_targets_are_approached():
    targets = (LABELS + 1) % 4
    result = compiled(
        attacks.mi_fgsm, LOGITS, KEY, X, LABELS, threat=attacks.linf(0.3), targets=targets
    )
    before = losses.cross_entropy(LOGITS(X), targets)
    assert (np.asarray(-result.loss) < np.asarray(before)).all()
    np.testing.assert_array_equal(
        result.success, jnp.argmax(LOGITS(result.adversarial), -1) == targets
    )


def test_everything_composes():
    goal, threat = attacks.objective(LOGITS, LABELS, losses.cross_entropy), attacks.linf(0.1)
    gradient_fn = attacks.diverse_inputs(attacks.exact_gradient(goal))
    gradient_fn = attacks.scaled_copies(gradient_fn, num_scales=2)
    gradient_fn = attacks.variance_tuned(gradient_fn, num_neighbours=2, radius=0.15)
    gradient_fn = attacks.smoothed(gradient_fn, kernel_size=3)
    gradient_fn = attacks.look_ahead(gradient_fn, step=0.01, decay=1.0)
    update_rule = attacks.momentum(threat, 0.1, decay=1.0)
    options = {"threat": threat, "num_steps": 3}
    result = ascend(goal, gradient_fn, update_rule, **options)
    assert (result.queries == 3 * 2 * 3 + 1).all()
    assert (np.asarray(result.loss) > np.asarray(losses.cross_entropy(LOGITS(X), LABELS))).all()


def test_a_named_attack_is_the_composition_that_its_docstring_says():
    goal, threat = attacks.objective(LOGITS, LABELS, losses.cross_entropy), attacks.linf(0.1)
    gradient_fn = attacks.look_ahead(
        attacks.scaled_copies(attacks.exact_gradient(goal)), step=0.01, decay=1.0
    )
    update_rule = attacks.momentum(threat, 0.1, decay=1.0)
    options = {"threat": threat, "num_steps": 4, "best": False}
    composed = ascend(goal, gradient_fn, update_rule, **options)
    named = compiled(attacks.si_fgsm, LOGITS, KEY, X, LABELS, threat=threat, num_steps=4)
    jax.tree.map(np.testing.assert_array_equal, composed, named)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("di_fgsm", {"probability": 1.5}, r"probability must lie in \[0, 1\], got 1.5"),
        ("di_fgsm", {"smallest": 0.0}, r"smallest must lie in \(0, 1\], got 0.0"),
        ("si_fgsm", {"num_scales": 0}, "num_scales must be at least 1, got 0"),
        ("vmi_fgsm", {"num_neighbours": 0}, "num_neighbours must be at least 1, got 0"),
        ("ti_fgsm", {"kernel_size": 4}, "kernel_size must be odd and at least 1, got 4"),
        ("mi_fgsm", {"num_steps": -1}, "num_steps must be at least 0"),
        ("mi_fgsm", {"relative_step": -1.0}, "relative_step must be finite and at least 0"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(attacks, name)(LOGITS, KEY, X, LABELS, threat=attacks.linf(0.1), **options)
