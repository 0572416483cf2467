import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from support.programs import compiled

from halfway import attacks, losses
from halfway.attacks import base
from halfway.attacks.threat import LINF

KEY = jax.random.key(0)


def mlp(params, x):
    w1, w2 = params
    return jnp.tanh(x.reshape(x.shape[0], -1) @ w1) @ w2


def mlp_params(key, num_features=12, num_classes=4, width=16):
    k1, k2 = jax.random.split(key)
    return (
        jax.random.normal(k1, (num_features, width)),
        jax.random.normal(k2, (width, num_classes)),
    )


PARAMS = mlp_params(jax.random.key(1))
X = jax.random.uniform(jax.random.key(2), (6, 12))
LABELS = jnp.argmax(mlp(PARAMS, X), axis=-1).at[0].add(1) % 4  # the first is misclassified


@functools.partial(jax.jit, static_argnames=("random_start", "num_restarts", "num_steps", "best"))
def attack_mlp(params, key, x, labels, threat, **options):
    return attacks.pgd(functools.partial(mlp, params), key, x, labels, threat=threat, **options)


def assert_same(result, expected, rtol=1e-5):
    for field, a, b in zip(result._fields, result, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6, err_msg=field)


def rows(result, index):
    return jax.tree.map(lambda leaf: leaf[index], result)


# Known answers


def linear_problem(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=shape).astype(np.float32)
    x.flat[::5], x.flat[1::7] = 0, 1  # some on the bounds
    weights = rng.standard_normal((int(np.prod(shape[1:])), 2)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(2, size=shape[0])), jnp.asarray(weights)


@pytest.mark.parametrize(
    ("shape", "loss_fn"),
    [((8,), losses.margin), ((8, 5), losses.cross_entropy), ((8, 4, 4, 2), losses.margin)],
)
def test_pgd_reaches_the_optimum_of_a_linear_model(loss_fn, shape):
    x, labels, weights = linear_problem(shape)
    epsilon = 0.2

    def logits_fn(x):
        return x.reshape(x.shape[0], -1) @ weights

    attack = jax.jit(
        functools.partial(
            attacks.pgd, logits_fn, threat=attacks.linf(epsilon), loss_fn=loss_fn, num_steps=8
        )
    )
    result = attack(KEY, x, labels)
    # The margin is affine in x, and cross-entropy of two classes increases with it: every feature
    # goes to the end of its interval that the sign of its slope points to.
    slope = np.asarray(weights)[:, 1 - labels] - np.asarray(weights)[:, labels]
    up = (slope.T > 0).reshape(shape)
    low, high = np.maximum(x - epsilon, 0), np.minimum(x + epsilon, 1)
    np.testing.assert_allclose(result.adversarial, np.where(up, high, low), atol=1e-7)
    optimum = np.where(up, high, low).reshape(shape[0], -1) * slope.T
    margin = losses.margin(logits_fn(result.adversarial), labels)
    np.testing.assert_allclose(margin, optimum.sum(axis=1), rtol=1e-4, atol=1e-5)
    assert 0 < result.success.mean() <= 1
    # A targeted attack on the other class of two goes to the same corner.
    targeted = attack(KEY, x, labels, targets=1 - labels)
    np.testing.assert_array_equal(targeted.adversarial, result.adversarial)


@pytest.mark.quick
def test_fgsm_takes_one_whole_step():
    x, labels, weights = linear_problem((8, 5))
    threat = attacks.linf(0.1)
    result = compiled(attacks.fgsm, lambda x: x @ weights, KEY, x, labels, threat=threat)
    slope = np.asarray(weights)[:, 1 - labels] - np.asarray(weights)[:, labels]
    expected = np.clip(np.asarray(x) + np.float32(0.1) * np.sign(slope.T), 0, 1)
    np.testing.assert_allclose(result.adversarial, expected, atol=1e-7)
    np.testing.assert_array_equal(result.queries, 2)


def test_steepest_step_and_dual_norm():
    gradient = jnp.array([[1.0, -2.0], [0.0, 3.0], [0.0, 0.0]])
    threat = attacks.linf(1.0)
    step = threat.steepest(gradient)
    np.testing.assert_array_equal(step, [[1, -1], [0, 1], [0, 0]])
    np.testing.assert_array_equal(threat.dual_norm(gradient), [3, 3, 0])
    np.testing.assert_array_equal((gradient * step).sum(axis=1), threat.dual_norm(gradient))
    np.testing.assert_array_equal(threat.dual_norm(jnp.array([-2.0, 1.0])), [2, 1])


def test_the_best_iterate_is_kept_with_its_own_loss():
    # Loss −(x − .53)², walk .5, .55, .5: the best is in the middle of the walk.
    def logits_fn(x):
        return jnp.stack([jnp.ones_like(x), -((x - 0.53) ** 2)], axis=-1)

    attack = functools.partial(
        compiled,
        attacks.pgd,
        logits_fn,
        KEY,
        jnp.array([0.5]),
        jnp.array([0]),
        threat=attacks.linf(0.1),
        loss_fn=lambda logits, labels: logits[:, 1],
        relative_step=0.5,
        num_steps=2,
    )
    best, last = attack(), attack(best=False)
    np.testing.assert_allclose(best.adversarial, [0.55], rtol=1e-6)
    np.testing.assert_allclose(best.loss, [-(0.02**2)], rtol=1e-4)
    np.testing.assert_allclose(last.adversarial, [0.5], rtol=1e-6)
    np.testing.assert_allclose(last.loss, [-(0.03**2)], rtol=1e-4)


def test_success_counts_before_loss():
    # The loss grows with x; only x near .52 is misclassified. Walk .50, .52, .54, ..., .60.
    def logits_fn(x):
        return jnp.stack([jnp.zeros_like(x), 0.01 - jnp.abs(x - 0.52), x - 10], axis=-1)

    result = compiled(
        attacks.pgd,
        logits_fn,
        KEY,
        jnp.array([0.5]),
        jnp.array([0]),
        threat=attacks.linf(0.1),
        loss_fn=lambda logits, labels: logits[:, 2],
        relative_step=0.2,
        num_steps=5,
    )
    assert result.success.all()
    np.testing.assert_allclose(result.adversarial, [0.52], rtol=1e-5)
    np.testing.assert_allclose(result.loss, [-9.48], rtol=1e-5)


@pytest.mark.parametrize("best", [True, False])
def test_an_example_that_stops_early_rests_at_its_first_success(best):
    """Walk .50, .52, ..., .60; the first example is misclassified from .53, the second nowhere."""

    def logits_fn(x):
        return jnp.stack([jnp.array([0.53, 9.0]), x], axis=-1)

    attack = functools.partial(
        compiled,
        attacks.pgd,
        logits_fn,
        KEY,
        jnp.full(2, 0.5),
        jnp.array([0, 0]),
        threat=attacks.linf(0.1),
        relative_step=0.2,
        num_steps=5,
        best=best,
    )
    result = attack(early_stop=True)
    np.testing.assert_allclose(result.adversarial, [0.54, 0.6], rtol=1e-6)
    assert result.success.tolist() == [True, False]
    np.testing.assert_allclose(attack().adversarial, [0.6, 0.6], rtol=1e-6)  # off by default


# Degenerate cases


@pytest.mark.parametrize("options", [{"random_start": True, "num_restarts": 2}, {}])
def test_budget_zero_is_the_identity(options):
    result = attack_mlp(PARAMS, KEY, X, LABELS, attacks.linf(0.0), num_steps=3, **options)
    np.testing.assert_array_equal(result.adversarial, X)
    np.testing.assert_array_equal(result.success, losses.error(mlp(PARAMS, X), LABELS) == 1)
    assert result.success[0]
    assert not result.success[1:].any()


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("options", [{"relative_step": 0.0, "num_steps": 3}, {"num_steps": 0}])
def test_no_step_is_the_identity(options, best):
    result = attack_mlp(PARAMS, KEY, X, LABELS, attacks.linf(0.1), best=best, **options)
    np.testing.assert_array_equal(result.adversarial, X)
    np.testing.assert_array_equal(result.queries, options["num_steps"] + 1)


def test_a_gradient_that_is_not_finite_takes_no_step():
    # d sqrt(x)/dx is infinite at 0 and NaN below; the second feature has slope 1.
    def logits_fn(x):
        return jnp.stack([jnp.zeros(x.shape[0]), jnp.sqrt(x[:, 0]) + x[:, 1] - 9], axis=-1)

    x = jnp.array([[0.0, 0.5], [0.25, 0.5]])
    result = compiled(
        attacks.pgd,
        logits_fn,
        KEY,
        x,
        jnp.array([0, 0]),
        threat=attacks.linf(0.1),
        loss_fn=losses.margin,
    )
    np.testing.assert_allclose(result.adversarial, [[0.0, 0.6], [0.35, 0.6]], rtol=1e-6)
    assert np.isfinite(result.loss).all()


@pytest.mark.parametrize("targets", [None, jnp.array([1, 1, 1])])
def test_nan_logits_are_no_success_and_no_point(targets):
    # The first example is NaN from the start, the second beyond .55, the third never.
    def logits_fn(x):
        broken = x > jnp.array([-1.0, 0.55, 2.0])
        return jnp.stack([jnp.where(broken, jnp.nan, 0.0), x - 9], axis=-1)

    x = jnp.full(3, 0.5)
    result = compiled(
        attacks.pgd,
        logits_fn,
        KEY,
        x,
        jnp.array([0, 0, 0]),
        threat=attacks.linf(0.1),
        targets=targets,
    )
    assert not result.success.any()
    np.testing.assert_allclose(result.adversarial[1:], [0.545, 0.6], rtol=1e-5)
    np.testing.assert_allclose(result.adversarial[0], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(result.loss), [True, False, False])


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf"), np.array([0.1, -0.1])])
@pytest.mark.quick
def test_bad_budgets_are_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite and at least 0, got"):
        attacks.linf(epsilon)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, float("nan")), (0.5, 0.5)])
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="lower < upper"):
        attacks.linf(0.1, bounds=bounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"relative_step": -0.1}, "relative_step must be finite and at least 0, got -0.1"),
        ({"relative_step": float("nan")}, "relative_step must be finite and at least 0, got nan"),
        ({"num_restarts": 0}, "num_restarts must be at least 1, got 0"),
        ({"num_restarts": 2}, "num_restarts must be 1 without random_start, got 2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        model = functools.partial(mlp, PARAMS)
        attacks.pgd(model, KEY, X, LABELS, threat=attacks.linf(0.1), **options)


def test_wrong_shapes_are_refused():
    attack = functools.partial(attacks.pgd, functools.partial(mlp, PARAMS), KEY)
    with pytest.raises(ValueError, match="x has 6 examples, labels has 3"):
        attack(X, LABELS[:3], threat=attacks.linf(0.1))
    with pytest.raises(AssertionError):
        attack(X, LABELS, threat=attacks.linf(jnp.full(3, 0.1)))
    with pytest.raises(ValueError, match="x has 6 examples, targets has 3"):
        attack(X, LABELS, threat=attacks.linf(0.1), targets=LABELS[:3])
    with pytest.raises(ValueError, match=r"loss per example, \(6,\), got float32 of shape \(\)"):
        attack(X, LABELS, threat=attacks.linf(0.1), loss_fn=lambda z, y: jnp.zeros(()))


# The threat model

UNIT = st.floats(0, 1, width=32, allow_subnormal=False)
# Tiny numbers are flushed to zero, and so are differences of them.
TINY = float(np.finfo(np.float32).tiny)
project = jax.jit(lambda threat, adversarial, x: threat.project(adversarial, x))


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    x=hnp.arrays(np.float32, (3, 4), elements=st.one_of(st.sampled_from([0.0, 1.0]), UNIT)),
    moved=hnp.arrays(np.float32, (3, 4), elements=st.floats(-3, 3, width=32)),
    epsilon=hnp.arrays(np.float32, (3,), elements=UNIT),
)
def test_projection_is_exact_to_one_ulp(x, moved, epsilon):
    threat = attacks.linf(epsilon)
    result = np.asarray(project(threat, moved, x))
    x64, epsilon64 = x.astype(np.float64), epsilon.astype(np.float64)[:, None]
    low, high = np.maximum(x64 - epsilon64, 0), np.minimum(x64 + epsilon64, 1)
    nearest = np.clip(moved.astype(np.float64), low, high)
    assert (np.abs(result - nearest) <= np.spacing(np.abs(result)) + TINY).all()
    assert ((result >= 0) & (result <= 1)).all()
    np.testing.assert_array_equal(project(threat, result, x), result)


def test_bounds_other_than_the_unit_interval():
    x = jnp.array([[-1.0, 0.0, 2.0]])
    moved = jnp.array([[-9.0, 9.0, 9.0]])
    np.testing.assert_array_equal(
        attacks.linf(0.5, bounds=(-1.0, 2.0)).project(moved, x), [[-1.0, 0.5, 2.0]]
    )
    unbounded = attacks.linf(0.5, bounds=(-jnp.inf, jnp.inf))
    np.testing.assert_array_equal(unbounded.project(moved, x), [[-1.5, 0.5, 2.5]])


@pytest.mark.parametrize("random_start", [False, True])
def test_every_result_is_feasible(random_start):
    x = jnp.round(X * 4) / 4  # many features on the bounds
    for epsilon in (1e-6, 8 / 255, 0.3, 2.0):
        result = attack_mlp(
            PARAMS, KEY, x, LABELS, attacks.linf(epsilon), num_steps=7, random_start=random_start
        )
        point = np.asarray(result.adversarial)
        assert ((point >= 0) & (point <= 1)).all()
        distance = np.abs(point.astype(np.float64) - np.asarray(x))
        assert (distance <= np.float32(epsilon) + np.spacing(point)).all()
        assert distance.max() > 0.8 * min(epsilon, 0.5)  # 1e-6 is 17 ulp of 1


def test_random_start_is_uniform_in_the_ball():
    epsilon = jnp.array([0.1, 0.3])
    x = jnp.full((2, 100, 100), 0.5)
    start = attacks.linf(epsilon).random_start(KEY, x)
    noise = np.asarray((start - x) / epsilon.reshape(2, 1, 1), np.float64).reshape(2, -1)
    assert np.abs(noise).max() <= 1 + 1e-5
    for sample in noise:
        # Means of 10⁴ draws: five standard errors around the moments of a uniform on [−1, 1].
        assert abs(sample.mean()) < 5 * np.sqrt(1 / 3) / 100
        assert abs((sample**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45) / 100
        assert scipy.stats.kstest(sample, "uniform", (-1, 2)).pvalue > 1e-3
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05
    assert not np.array_equal(start, attacks.linf(epsilon).random_start(jax.random.key(1), x))


def test_random_start_is_clipped_to_the_bounds():
    start = np.asarray(attacks.linf(0.3).random_start(KEY, jnp.ones((50, 200))))
    assert start.max() == 1
    assert start.min() >= 0.7
    assert abs((start == 1).mean() - 0.5) < 0.03
    assert abs(start[start < 1].mean() - 0.85) < 0.005


# The result


@pytest.mark.parametrize("random_start", [False, True])
def test_loss_and_success_belong_to_the_returned_point(random_start):
    threat = attacks.linf(0.1)
    result = attack_mlp(
        PARAMS,
        KEY,
        X,
        LABELS,
        threat,
        random_start=random_start,
        num_restarts=3 if random_start else 1,
        num_steps=10,
        relative_step=0.7,
    )
    logits = mlp(PARAMS, result.adversarial)
    np.testing.assert_allclose(result.loss, losses.cross_entropy(logits, LABELS), rtol=1e-5)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits, axis=-1) != LABELS)
    assert result.success.dtype == bool
    assert result.queries.dtype == jnp.int32
    np.testing.assert_array_equal(result.queries, 33 if random_start else 11)
    clean = losses.cross_entropy(mlp(PARAMS, X), LABELS)
    if not random_start:
        assert (result.loss >= clean - 1e-6).all()


def test_the_walk_starts_at_x_unless_told_otherwise():
    threat = attacks.linf(0.1)
    first, other = (
        attack_mlp(PARAMS, jax.random.key(seed), X, LABELS, threat, num_steps=3) for seed in (0, 1)
    )
    assert_same(first, other, rtol=0)
    first, other = (
        attack_mlp(
            PARAMS, jax.random.key(seed), X, LABELS, threat, num_steps=0, random_start=True
        ).adversarial
        for seed in (0, 1)
    )
    assert (first != other).mean() > 0.9


def test_more_restarts_are_never_worse():
    results = [
        attack_mlp(
            PARAMS, key, X, LABELS, attacks.linf(0.2), num_steps=2, random_start=True, best=False
        )
        for key in jax.random.split(KEY, 3)
    ]
    together = attack_mlp(
        PARAMS,
        KEY,
        X,
        LABELS,
        attacks.linf(0.2),
        num_steps=2,
        random_start=True,
        best=False,
        num_restarts=3,
    )
    losses_alone = np.stack([result.loss for result in results])
    success_alone = np.stack([result.success for result in results])
    np.testing.assert_array_equal(together.success, success_alone.any(axis=0))
    of_the_best = np.where(success_alone == success_alone.any(axis=0), losses_alone, -np.inf)
    np.testing.assert_allclose(together.loss, of_the_best.max(axis=0), rtol=1e-5)
    assert len(set(losses_alone.argmax(axis=0))) > 1


def test_a_targeted_attack_descends_to_its_target():
    targets = (LABELS + 1) % 4
    logits_fn = functools.partial(mlp, PARAMS)
    attack = functools.partial(
        compiled, attacks.pgd, logits_fn, KEY, X, LABELS, loss_fn=losses.margin, targets=targets
    )
    near, far = attack(threat=attacks.linf(0.05)), attack(threat=attacks.linf(0.5))
    for result in (near, far):
        logits = logits_fn(result.adversarial)
        np.testing.assert_allclose(result.loss, -losses.margin(logits, targets), rtol=1e-4)
        np.testing.assert_array_equal(result.success, jnp.argmax(logits, axis=-1) == targets)
    assert (near.loss > -losses.margin(logits_fn(X), targets)).all()
    assert near.success.mean() < far.success.mean()


# Examples, models and budgets


@pytest.mark.parametrize("shape", [(6,), (6, 2, 3, 2)])
def test_a_batch_permuted_or_cut_gives_the_same_results(shape):
    params = mlp_params(jax.random.key(3), num_features=int(np.prod(shape[1:])))
    x = jax.random.uniform(KEY, shape)
    labels = jnp.arange(6) % 4
    attack = functools.partial(attack_mlp, params, KEY, threat=attacks.linf(0.1), num_steps=5)
    whole = attack(x=x, labels=labels)
    order = jnp.array([3, 1, 5, 0, 4, 2])
    assert_same(attack(x=x[order], labels=labels[order]), rows(whole, order))
    for i in range(2):
        assert_same(attack(x=x[i : i + 1], labels=labels[i : i + 1]), rows(whole, slice(i, i + 1)))


def test_a_batch_cut_short_draws_the_same_starts():
    threat = attacks.linf(0.1)
    whole = threat.random_start(KEY, X)
    np.testing.assert_array_equal(threat.random_start(KEY, X[:2]), whole[:2])


def test_vmapped_over_parameters_equals_a_loop():
    keys = jax.random.split(jax.random.key(4), 3)
    stacked = jax.jit(jax.vmap(mlp_params))(keys)
    options = {"random_start": True, "num_steps": 5}

    def attack(params):
        return attack_mlp(params, KEY, X, LABELS, attacks.linf(0.1), **options)

    mapped = jax.vmap(attack)(stacked)
    for i in range(3):
        assert_same(rows(mapped, i), attack(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)))


def test_vmapped_over_budgets_and_steps_equals_a_loop():
    budgets = jnp.array([0.0, 0.05, 0.2])
    steps = jnp.array([0.15, 0.3, 0.5])

    def attack(epsilon, relative_step):
        threat = attacks.linf(epsilon)
        return attack_mlp(PARAMS, KEY, X, LABELS, threat, num_steps=5, relative_step=relative_step)

    mapped = jax.vmap(attack)(budgets, steps)
    for i in range(3):
        assert_same(rows(mapped, i), attack(budgets[i], steps[i]))
    assert (mapped.loss[2] > mapped.loss[0]).all()
    # A stacked threat model is the same thing.
    threats = jax.vmap(attacks.linf)(budgets)
    stacked = jax.vmap(lambda threat: attack_mlp(PARAMS, KEY, X, LABELS, threat, num_steps=5))
    assert_same(
        rows(stacked(threats), 1),
        attack_mlp(PARAMS, KEY, X, LABELS, attacks.linf(0.05), num_steps=5),
    )


@pytest.mark.parametrize("random_start", [False, True])
def test_budgets_per_example_equal_separate_calls(random_start):
    budgets = jnp.array([0.0, 0.05, 0.1, 0.1, 0.2, 0.3])
    options = {"num_steps": 5, "random_start": random_start}
    together = attack_mlp(PARAMS, KEY, X, LABELS, attacks.linf(budgets), **options)
    for i, epsilon in enumerate(budgets):
        alone = attack_mlp(PARAMS, KEY, X, LABELS, attacks.linf(epsilon), **options)
        assert_same(rows(together, i), rows(alone, i))


def test_another_budget_compiles_nothing():
    traced = []

    @jax.jit
    def attack(threat, relative_step):
        traced.append(threat)
        return attacks.pgd(
            functools.partial(mlp, PARAMS),
            KEY,
            X,
            LABELS,
            threat=threat,
            num_steps=2,
            relative_step=relative_step,
        )

    first = attack(attacks.linf(0.1), 0.15)
    second = attack(attacks.linf(jnp.float32(0.2), bounds=(0, 1)), 0.3)
    assert len(traced) == 1
    assert attack._cache_size() == 1
    assert not np.array_equal(first.adversarial, second.adversarial)


def test_a_threat_model_is_data_with_a_static_norm():
    threat = attacks.linf(0.1)
    leaves, structure = jax.tree.flatten(threat)
    assert len(leaves) == 3
    assert structure == jax.tree.structure(attacks.linf(0.3, bounds=(-1.0, 1.0)))
    assert hash(threat.norm) == hash(LINF)


# The pieces


def test_the_loop_takes_any_update_rule():
    """Momentum of normalized gradients and sign (MI-FGSM) is one chain more, no new loop."""
    x, labels, weights = linear_problem((8, 5))
    threat = attacks.linf(0.2)
    goal = base.objective(lambda x: x @ weights, labels, losses.margin)
    rule = optax.chain(
        optax.trace(decay=1.0),
        base.steepest(threat),
        base.scale_by_epsilon(threat),
        optax.scale(0.1),
    )
    result = jax.jit(
        lambda x: base.iterate(
            goal, base.exact_gradient(goal), rule, x, x, threat=threat, num_steps=12
        )
    )(x)
    expected = compiled(
        attacks.pgd, lambda x: x @ weights, KEY, x, labels, threat=threat, num_steps=12
    )
    np.testing.assert_allclose(result.point, expected.adversarial, atol=1e-6)


def test_a_step_spends_one_gradient_and_the_end_one_evaluation():
    calls = []

    def logits_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return mlp(PARAMS, x)

    result = compiled(attacks.pgd, logits_fn, KEY, X, LABELS, threat=attacks.linf(0.1), num_steps=4)
    jax.effects_barrier()
    assert len(calls) == result.queries[0] == 5


def test_memory_does_not_grow_with_the_number_of_steps():
    def bytes_needed(num_steps):
        lowered = attack_mlp.lower(PARAMS, KEY, X, LABELS, attacks.linf(0.1), num_steps=num_steps)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(200) == bytes_needed(10)
