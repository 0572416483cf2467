"""Auto-PGD: its checkpoints, its optimum on linear models, its bookkeeping, its losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_network
from support.programs import compiled
from support.small_network import network

from halfway import attacks, losses
from halfway.attacks import base
from halfway.attacks.auto import auto_pgd as module

KEY = jax.random.key(0)


def nightly(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def problem():
    return small_network.problem(40, 12)


@pytest.mark.quick
def test_checkpoints_are_those_of_the_reference():
    assert module.checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert module.checkpoints(1) == ()
    for steps in (5, 10, 20, 50, 1000):
        places = module.checkpoints(steps)
        assert list(places) == sorted(set(places)) and places[0] > 0 and places[-1] < steps
    assert module.checkpoints(1000)[:3] == (220, 410, 570)


@pytest.mark.parametrize(
    ("name", "loss_fn"),
    [(name, losses.cross_entropy) for name in ("linf", "l2", "l1")] + [("linf", losses.margin)],
)
def test_the_optimum_of_a_linear_model(name, loss_fn):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.4, 0.6, (5, 10)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(10, 2)), jnp.float32)
    labels = jnp.asarray(rng.integers(2, size=5))
    difference = np.asarray(weights[:, 1] - weights[:, 0], float)
    epsilon = {"linf": 0.05, "l2": 0.1, "l1": 0.2}[name]
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[name]
    threat = getattr(attacks, name)(epsilon)
    result = compiled(
        attacks.apgd,
        lambda x: x @ weights,
        KEY,
        x,
        labels,
        threat=threat,
        loss_fn=loss_fn,
        num_steps=60,
    )
    clean = losses.margin(x @ weights, labels)
    expected = np.asarray(clean) + epsilon * np.linalg.norm(difference, dual)
    reached = losses.margin(result.adversarial @ weights, labels)
    np.testing.assert_allclose(reached, expected, rtol=2e-3)


@pytest.mark.parametrize("name", ["l2", nightly("linf")])  # walks in l∞ are checked step by step
def test_it_is_stronger_than_pgd_of_as_many_steps(name, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    threat = {"linf": attacks.linf(0.03), "l2": attacks.l2(0.08)}[name]
    ours = compiled(attacks.apgd, logits_fn, KEY, x, labels, threat=threat, num_steps=50)
    plain = compiled(attacks.pgd, logits_fn, KEY, x, labels, threat=threat, num_steps=50)
    assert ours.success.mean() >= plain.success.mean() - 0.05
    assert 0.1 < ours.success.mean() < 0.95


def test_loss_and_success_belong_to_the_point_and_queries_are_counted(problem):
    params, x, labels = problem
    threat = attacks.linf(0.03)
    result = compiled(
        attacks.apgd,
        functools.partial(network, params),
        KEY,
        x,
        labels,
        threat=threat,
        num_steps=12,
        num_restarts=2,
    )
    logits = network(params, result.adversarial)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits, -1) != labels)
    np.testing.assert_allclose(result.loss, losses.cross_entropy(logits, labels), rtol=1e-5)
    assert (result.queries == 26).all()
    distance = np.abs(np.asarray(result.adversarial, float) - np.asarray(x, float)).max()
    assert distance <= 0.03 + 1e-7


def reference(gradient_fn, x, epsilon, num_steps):
    """One example of l∞ Auto-PGD as the paper's pseudo-code has it, from x, in float64."""
    project = lambda z: np.clip(np.clip(z, x - epsilon, x + epsilon), 0, 1)  # noqa: E731
    point, before, step = x.copy(), x.copy(), 2 * epsilon
    loss, gradient = gradient_fn(point)
    best, best_loss, best_gradient = point.copy(), loss, gradient
    trace, last_best, halved, last = [loss], loss, True, 0
    for k in range(num_steps):
        ahead = project(point + step * np.sign(gradient))
        weight = 1.0 if k == 0 else 0.75
        moved = project(point + weight * (ahead - point) + (1 - weight) * (point - before))
        before, point = point, moved
        loss, gradient = gradient_fn(point)
        trace.append(loss)
        if loss > best_loss:
            best, best_loss, best_gradient = point.copy(), loss, gradient
        if k + 1 in module.checkpoints(num_steps):
            gap = k + 1 - last
            gains = sum(a > b for a, b in zip(trace[-gap:], trace[-gap - 1 : -1], strict=True))
            halve = gains <= 0.75 * gap or (not halved and last_best >= best_loss)
            if halve:
                step, point, gradient = step / 2, best.copy(), best_gradient
            last, last_best, halved = k + 1, best_loss, halve
    return best_loss


@pytest.mark.parametrize(
    ("num_steps", "epsilon"), [(1, 0.05), (40, 0.05), nightly(5, 0.05), nightly(20, 0.3)]
)
def test_walks_are_those_of_the_pseudo_code(problem, num_steps, epsilon):
    params, x, labels = problem
    result = compiled(
        attacks.apgd,
        functools.partial(network, params),
        KEY,
        x,
        labels,
        threat=attacks.linf(epsilon),
        num_steps=num_steps,
        random_start=False,
    )
    largest = _largest_losses(params, x, labels, num_steps, epsilon)
    both = jax.jit(
        jax.value_and_grad(
            lambda z, label: losses.cross_entropy(network(params, z[None]), label[None])[0]
        )
    )
    expected = []
    for row in range(40):

        def gradient_fn(z, row=row):
            loss, gradient = both(jnp.asarray(z, jnp.float32), labels[row])
            return float(loss), np.asarray(gradient, float)

        expected.append(reference(gradient_fn, np.asarray(x[row], float), epsilon, num_steps))
    np.testing.assert_allclose(largest, expected, rtol=2e-3)
    # To a few millionths for all but walks on which rounding turns a sign.
    assert np.mean(np.isclose(largest, expected, rtol=3e-5)) > 0.9
    assert (result.loss <= largest + 1e-5).all()  # a success of less loss is kept before


def _largest_losses(params, x, labels, num_steps, epsilon):
    """The largest loss of each walk, where success counts for nothing."""
    goal = base.objective(functools.partial(network, params), labels, losses.cross_entropy)
    blind = goal._replace(success=lambda logits: jnp.zeros(logits.shape[0], bool))
    look, memory, _ = module._look(blind, base.exact_gradient, x)
    threat = attacks.linf(epsilon)
    walk = jax.jit(lambda x: module._walk(look, memory, KEY, x, x, threat, num_steps))
    return np.asarray(walk(x).loss)


def test_targeted_losses_reach_their_targets(problem):
    params, x, labels = problem
    targets = (labels + 1) % 5
    loss_fn = losses.targeted_dlr(labels)
    for chosen in (losses.cross_entropy, loss_fn):
        result = compiled(
            attacks.apgd,
            functools.partial(network, params),
            KEY,
            x,
            labels,
            threat=attacks.linf(0.3),
            targets=targets,
            loss_fn=chosen,
            num_steps=30,
        )
        classes = jnp.argmax(network(params, result.adversarial), -1)
        np.testing.assert_array_equal(result.success, classes == targets)
        assert result.success.mean() > 0.5


def test_a_batch_permuted_or_cut_gives_the_same_results(problem):
    params, x, labels = problem
    attack = functools.partial(
        attacks.apgd, functools.partial(network, params), threat=attacks.linf(0.03), num_steps=15
    )
    fixed = jax.jit(functools.partial(attack, random_start=False))
    attack = jax.jit(attack)
    whole = attack(KEY, x, labels)
    cut = attack(KEY, x[:7], labels[:7])
    np.testing.assert_allclose(cut.adversarial, whole.adversarial[:7], atol=1e-6)
    order = np.random.default_rng(0).permutation(40)
    moved = fixed(KEY, x[order], labels[order])
    np.testing.assert_allclose(
        moved.adversarial, fixed(KEY, x, labels).adversarial[order], atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be at least 1, and 1 without random_start, got 0"),
        ({"num_restarts": 2, "random_start": False}, "got 2"),
    ],
)
@pytest.mark.quick
def test_bad_options_are_refused(problem, options, message):
    params, x, labels = problem
    with pytest.raises(ValueError, match=message):
        attacks.apgd(
            functools.partial(network, params), KEY, x, labels, threat=attacks.linf(0.1), **options
        )


def test_steps_of_l1_go_along_the_largest_components():
    gradient = jnp.array([[3.0, -5.0, 1.0, 4.0], [2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    result = module.largest_components(gradient, jnp.array([2.9, 1.0, 3.0]))
    np.testing.assert_allclose(
        result, [[0, -0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0]], rtol=1e-6
    )
    all_of_them = module.largest_components(gradient, jnp.array([99.0, 99.0, 99.0]))
    np.testing.assert_allclose(jnp.abs(all_of_them).sum(1), [1, 1, 0], rtol=1e-6)


def reference_l1(gradient_fn, x, project, epsilon, num_steps):
    """One example of l1 Auto-PGD as the paper has it, from x, in float64; its largest loss."""
    size, period = len(x), max(int(0.04 * num_steps), 1)
    point, step, number, last = x.copy(), epsilon, 0.2 * size, size
    loss, gradient = gradient_fn(point)
    best, best_loss, best_gradient = point.copy(), loss, gradient
    for k in range(num_steps):
        least = np.sort(np.abs(gradient))[::-1][max(int(number), 1) - 1]
        chosen = np.where(np.abs(gradient) >= least, np.sign(gradient), 0)
        point = project(point + step * chosen / np.abs(chosen).sum())
        loss, gradient = gradient_fn(point)
        if loss > best_loss:
            best, best_loss, best_gradient = point.copy(), loss, gradient
        if (k + 1) % period == 0:
            moved = (best != x).sum()
            if moved < 0.95 * last:
                step, point, gradient = epsilon, best.copy(), best_gradient
            else:
                step = max(step / 1.5, epsilon / 10)
            number, last = moved / 1.5, moved
    return best_loss


@pytest.mark.parametrize("num_steps", [60, nightly(5)])
def test_walks_of_l1_are_those_of_the_paper(problem, num_steps):
    params, x, labels = problem
    threat = attacks.l1(0.4)
    goal = base.objective(functools.partial(network, params), labels, losses.cross_entropy)
    blind = goal._replace(success=lambda logits: jnp.zeros(logits.shape[0], bool))
    look, memory, _ = module._look(blind, base.exact_gradient, x)
    walk = jax.jit(lambda x: module._sparse_walk(look, memory, KEY, x, x, threat, num_steps).loss)
    ours = np.asarray(walk(x))
    both = jax.jit(
        jax.value_and_grad(
            lambda z, label: losses.cross_entropy(network(params, z[None]), label[None])[0]
        )
    )
    project = jax.jit(lambda z, centre: threat.project(z[None], centre[None])[0])
    expected = []
    for row in range(12):

        def gradient_fn(z, row=row):
            loss, gradient = both(jnp.asarray(z, jnp.float32), labels[row])
            return float(loss), np.asarray(gradient, float)

        def onto(z, row=row):
            return np.asarray(project(jnp.asarray(z, jnp.float32), x[row]))

        expected.append(reference_l1(gradient_fn, np.asarray(x[row]), onto, 0.4, num_steps))
    np.testing.assert_allclose(ours[:12], expected, rtol=2e-2)
    assert np.mean(np.isclose(ours[:12], expected, rtol=1e-4)) > 0.8


@pytest.mark.parametrize("fraction", [0.2, nightly(0.0)])
def test_it_is_stronger_than_pgd_in_l1(fraction, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    ours = compiled(attacks.apgd, logits_fn, KEY, x, labels, threat=attacks.l1(0.25), num_steps=50)
    threat = attacks.l1(0.25, fraction=fraction)
    plain = compiled(attacks.pgd, logits_fn, KEY, x, labels, threat=threat, num_steps=50)
    assert ours.success.mean() >= plain.success.mean()
    # Among those that neither fools, where losses can be compared.
    left = ~np.asarray(ours.success | plain.success)
    assert np.asarray(ours.loss)[left].mean() >= np.asarray(plain.loss)[left].mean() - 1e-4
    assert 0.1 < ours.success.mean() < 0.95
