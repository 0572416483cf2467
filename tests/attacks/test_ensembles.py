"""Attacks on several models: against single models, optima by hand, and loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from support.programs import compiled

from halfway import attacks, losses
from halfway.attacks import base, ensembles, variance_reduction

KEY = jax.random.key(0)
SHAPE, NUM_CLASSES, M = (4, 5, 5, 1), 4, 3
THREATS = {"linf": attacks.linf(0.1), "l2": attacks.l2(0.5), "l1": attacks.l1(2.0, fraction=0.2)}


def mixed(logits_fn, key, x, labels, *, threat, loss_fn=losses.cross_entropy, targets=None):
    """Everything that a gradient can be made of, composed."""
    goal = attacks.objective(logits_fn, labels, loss_fn, targets)
    gradient = attacks.diverse_inputs(attacks.exact_gradient(goal))
    gradient = attacks.scaled_copies(gradient, num_scales=2)
    radius = 1.5 * threat.radius(x)
    gradient = attacks.variance_tuned(gradient, num_neighbours=2, radius=radius)
    gradient = attacks.smoothed(gradient, kernel_size=3)
    gradient = attacks.look_ahead(gradient, step=0.1 * threat.radius(x), decay=1.0)
    rule = attacks.momentum(threat, 0.1, decay=1.0)
    options = {"threat": threat, "num_steps": 3, "best": False}
    return attacks.ascend(goal, gradient, rule, key, x, **options)


ATTACKS = {
    "pgd": functools.partial(attacks.pgd, num_steps=5, random_start=True),
    "mi_fgsm": functools.partial(attacks.mi_fgsm, num_steps=3),
    "mixed": mixed,
    "apgd": functools.partial(attacks.apgd, num_steps=8),
}
each_way = pytest.mark.parametrize("how", ensembles.HOW)


def model(params, x):
    w1, w2 = params
    return jnp.tanh(x.reshape(x.shape[0], -1) @ w1) @ w2


def draw(seed):
    k1, k2 = jax.random.split(jax.random.key(seed))
    features = int(np.prod(SHAPE[1:]))
    return 0.5 * jax.random.normal(k1, (features, 6)), jax.random.normal(k2, (6, NUM_CLASSES))


def stack(*members):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def member(params, k):
    return jax.tree.map(lambda leaf: leaf[k], params)


PARAMS = stack(*map(draw, range(M)))
X = jax.random.uniform(jax.random.key(9), SHAPE)
LABELS = jnp.argmax(sum(model(member(PARAMS, k), X) for k in range(M)), -1)
TARGETS = (LABELS + 1) % NUM_CLASSES


SLOPE = jax.jit(jax.grad(lambda x, params, y: losses.cross_entropy(model(params, x), y).sum()))


def slope(params, x, labels=LABELS, sign=1):
    """The gradient of one model's cross-entropy, in float64."""
    return sign * np.asarray(SLOPE(jnp.asarray(x, jnp.float32), params, labels), float)


@functools.partial(jax.jit, static_argnames=("how", "attack", "options"))
def _together(how, attack, options, params, key, x, labels, threat, targets):
    logits_fn, loss_fn = ensembles.ensemble(model, params, how)
    options = dict(options, threat=threat, targets=targets)
    return attack(logits_fn, key, x, labels, loss_fn=loss_fn, **options)


def together(how, params=PARAMS, attack="pgd", x=X, labels=LABELS, key=KEY, **options):
    """The result of an attack on the ensemble: one program for all calls of the same shapes."""
    threat = options.pop("threat", THREATS["linf"])
    targets, options = options.pop("targets", None), tuple(options.items())
    return _together(how, ATTACKS[attack], options, params, key, x, labels, threat, targets)


@functools.partial(jax.jit, static_argnames="attack")
def single(attack, params, targets):
    """The result of an attack on one model."""
    logits_fn = functools.partial(model, params)
    return attack(logits_fn, KEY, X, LABELS, threat=THREATS["linf"], targets=targets)


@jax.jit
def of_each(params, x):
    """Logits `[B, M, C]` and losses `[B, M]` of each model."""
    logits = jax.vmap(model, (0, None), 1)(params, x)
    return logits, jax.vmap(losses.cross_entropy, (1, None), 1)(logits, LABELS)


# What an objective makes of several models


def test_success_is_that_of_every_model_and_a_loss_of_each_stands_for_its_least():
    nan = float("nan")
    logits = jnp.array(
        [
            [[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]],  # both wrong, towards different classes
            [[0.0, 1.0, 0.0], [3.0, 0.0, 0.0]],  # one wrong
            [[0.0, 1.0, 0.0], [0.0, 4.0, 0.0]],  # both say class 1
            [[0.0, 1.0, 0.0], [0.0, nan, 0.0]],
        ]
    )
    labels, targets = jnp.zeros(4, int), jnp.ones(4, int)
    each = jax.jit(jax.vmap(losses.margin, (1, None), 1))
    away = base.objective(lambda x: logits[: len(x)], labels[:3], each)
    to = base.objective(lambda x: logits[: len(x)], labels[:3], each, targets[:3])
    np.testing.assert_array_equal(away.success(logits[:3]), [True, False, True])
    np.testing.assert_array_equal(to.success(logits[:3]), [False, False, True])
    # Margins of label 0: (1, 2), (1, −3), (1, 4). Of target 1: (−1, 2), (−1, 3), (−1, −4).
    np.testing.assert_allclose(away.value(jnp.zeros(3))[0], [1, -3, 1])
    np.testing.assert_allclose(to.value(jnp.zeros(3))[0], [-2, -3, 1])
    for aims in (None, targets):
        goal = base.objective(lambda x: logits, labels, losses.cross_entropy, aims)
        assert not goal.success(logits)[3]


def test_a_single_model_is_not_taken_for_several():
    with pytest.raises(ValueError, match=r"loss per example, \(\d+,\), got float32 of shape"):
        attacks.pgd(
            functools.partial(model, draw(0)),
            KEY,
            X,
            LABELS,
            threat=THREATS["linf"],
            loss_fn=lambda logits, labels: logits,
        )


# Ensembles


def nightly(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# What each `how` computes is checked below; here, that attacks take what it returns.
@pytest.mark.parametrize(
    ("name", "how"),
    [("pgd", "logits"), ("pgd", "worst"), ("mi_fgsm", "worst"), ("apgd", "worst")]
    + [("mixed", "worst"), nightly("pgd", "probabilities"), nightly("pgd", "loss")]
    + [nightly(name, how) for name in ("mi_fgsm", "apgd") for how in ensembles.HOW[:3]],
)
def test_an_ensemble_of_one_is_the_model(name, how):
    params, targets = draw(1), None if name == "pgd" else TARGETS
    alone = single(ATTACKS[name], params, targets)
    result = together(how, stack(params), name, targets=targets)
    np.testing.assert_allclose(result.adversarial, alone.adversarial, atol=1e-6)
    np.testing.assert_array_equal(result.success, alone.success)
    np.testing.assert_allclose(result.loss, alone.loss, rtol=1e-5)
    np.testing.assert_array_equal(result.queries, alone.queries)


@pytest.mark.parametrize("vectorized", [True, False])
@each_way
def test_logits_and_losses_are_those_of_the_models_by_hand(how, vectorized):
    logits_fn, loss_fn = ensembles.ensemble(
        model, PARAMS, how, losses.cross_entropy, vectorized=vectorized
    )
    each = np.asarray(of_each(PARAMS, X)[0], float)
    softmax = np.exp(each) / np.exp(each).sum(-1, keepdims=True)
    logits = {"logits": each.mean(1), "probabilities": np.log(softmax.mean(1))}.get(how, each)
    given, loss = jax.jit(lambda x: (logits_fn(x), loss_fn(logits_fn(x), LABELS)))(X)
    np.testing.assert_allclose(given, logits, rtol=1e-4, atol=1e-5)
    rows = np.arange(len(X))
    alone = -np.log(softmax[rows, :, LABELS])
    mean = np.log(np.exp(each.mean(1)).sum(-1)) - each.mean(1)[rows, LABELS]
    expected = {
        "logits": mean,
        "probabilities": -np.log(softmax.mean(1)[rows, LABELS]),
        "loss": alone.mean(1),
        "worst": alone,
    }
    np.testing.assert_allclose(loss, expected[how], rtol=1e-4)


def test_the_mean_of_linear_models_is_the_linear_model_of_the_mean():
    weights = jax.random.normal(KEY, (M, 25, NUM_CLASSES))
    linear = lambda w, x: x.reshape(x.shape[0], -1) @ w  # noqa: E731
    labels = jnp.argmax(linear(weights.mean(0), X), -1)
    attack = functools.partial(compiled, attacks.mi_fgsm, threat=THREATS["l2"], num_steps=4)
    averaged = attack(lambda x: linear(weights.mean(0), x), KEY, X, labels)
    logits_fn, loss_fn = ensembles.ensemble(linear, weights)
    result = attack(logits_fn, KEY, X, labels, loss_fn=loss_fn)
    np.testing.assert_allclose(result.adversarial, averaged.adversarial, atol=1e-5)
    np.testing.assert_allclose(result.loss, averaged.loss, rtol=1e-4)
    np.testing.assert_array_equal(result.success, averaged.success)


def test_the_gradient_of_the_mean_loss_is_the_mean_gradient():
    for aims, sign in ((None, 1), (TARGETS, -1)):
        logits_fn, loss_fn = ensembles.ensemble(model, PARAMS, "loss")
        goal = base.objective(logits_fn, LABELS, loss_fn, aims)
        estimator = base.exact_gradient(goal)
        result = jax.jit(lambda x: estimator.estimate(None, (), x).gradient)(X)  # noqa: B023
        labels = LABELS if aims is None else aims
        each = [slope(member(PARAMS, k), X, labels, sign) for k in range(M)]
        np.testing.assert_allclose(result, np.mean(each, 0), rtol=1e-4, atol=1e-6)


def test_mean_probabilities_of_models_that_are_certain_stay_finite():
    scale = jnp.array([1.0, -1.0]) * 400
    certain = lambda s, x: s * x @ jnp.array([[1.0, -1.0]])  # noqa: E731
    logits_fn, loss_fn = ensembles.ensemble(certain, scale, "probabilities")
    x, labels = jnp.array([[1.0]]), jnp.array([0])
    # The models say (1, 0) and (0, 1): the mean is (1/2, 1/2).
    np.testing.assert_allclose(jax.jit(logits_fn)(x), np.log([[0.5, 0.5]]), rtol=1e-6)
    both_wrong = ensembles.ensemble(certain, jnp.abs(scale), "probabilities").logits_fn
    value = lambda x: loss_fn(both_wrong(x), 1 - labels).sum()  # noqa: E731
    loss, gradient = jax.jit(jax.value_and_grad(value))(x)
    np.testing.assert_allclose(loss, 800)
    np.testing.assert_allclose(gradient, [[800]])


# The hardest model: z_1 − z_0 is δ_1 − .3 for one and −δ_1 + δ_2/2 for the other. In the cube of
# side 2 the larger least is .1, at δ = (.4, 1). Class 2 is out of the question.
DUEL = (
    jnp.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, -1.0, 0.0], [0.0, 0.5, 0.0]]]),
    jnp.array([[0.0, -0.3, -9.0], [0.0, 0.0, -9.0]]),
)


@functools.partial(jax.jit, static_argnames=("how", "attack"))
def _duel(how, attack, params, targets):
    apply_fn = lambda p, x: x @ p[0] + p[1][None]  # noqa: E731
    logits_fn, loss_fn = ensembles.ensemble(apply_fn, params, how, losses.margin)
    options = {"threat": attacks.linf(1.0, (-5.0, 5.0)), "loss_fn": loss_fn, "targets": targets}
    return attack(logits_fn, KEY, jnp.zeros((2, 2)), jnp.array([0, 0]), **options)


def duel(how, attack, targets, *, order=(0, 1)):
    return _duel(how, attack, tuple(leaf[np.array(order)] for leaf in DUEL), targets)


@pytest.mark.parametrize("targets", [None, jnp.array([1, 1])], ids=["away", "towards"])
def test_the_worst_case_is_the_maximin_by_hand(targets):
    slow = functools.partial(attacks.pgd, num_steps=400, relative_step=0.01)
    for order in ((0, 1), (1, 0)):
        result = duel("worst", slow, targets, order=order)
        np.testing.assert_allclose(result.loss, 0.1, atol=0.011)
        np.testing.assert_allclose(result.adversarial, [[0.4, 1.0]] * 2, atol=0.011)
        assert result.success.all()
    # The mean of the losses does not depend on δ_1: nothing fools the first model.
    mean = duel("loss", slow, targets)
    np.testing.assert_allclose(mean.adversarial, [[0.0, 1.0]] * 2, atol=1e-5)
    np.testing.assert_allclose(mean.loss, 0.1, atol=1e-5)
    assert not mean.success.any()
    auto = duel("worst", functools.partial(attacks.apgd, num_steps=100), targets)
    np.testing.assert_allclose(auto.loss, 0.1, atol=0.02)


@each_way
def test_several_of_the_same_are_one(how):
    params = draw(2)
    once, thrice = together(how, stack(params)), together(how, stack(*[params] * M))
    np.testing.assert_allclose(thrice.adversarial, once.adversarial, atol=1e-6)
    np.testing.assert_allclose(thrice.loss, once.loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "threat"),
    [
        ("logits", "linf"),
        ("worst", "linf"),
        ("worst", "l1"),
        nightly("probabilities", "linf"),
        nightly("loss", "linf"),
    ],
)
def test_results_are_feasible_and_belong_to_their_point(how, threat):
    result = together(how, attack="mi_fgsm", threat=THREATS[threat], relative_step=0.5)
    assert_feasible(result.adversarial, threat)
    each, alone = (np.asarray(v, float) for v in of_each(PARAMS, result.adversarial))
    mean = scipy.special.softmax(each, -1).mean(1)
    fooled = {
        "logits": each.mean(1).argmax(-1) != LABELS,
        "probabilities": mean.argmax(-1) != LABELS,
    }.get(how, (each.argmax(-1) != np.asarray(LABELS)[:, None]).all(1))
    np.testing.assert_array_equal(result.success, fooled)
    rows = np.arange(len(X)), np.asarray(LABELS)
    loss = {
        "logits": scipy.special.logsumexp(each.mean(1), -1) - each.mean(1)[rows],
        "probabilities": -np.log(mean[rows]),
        "loss": alone.mean(1),
        "worst": alone.min(1),
    }
    np.testing.assert_allclose(result.loss, loss[how], rtol=1e-4)


def assert_feasible(point, threat, x=X):
    point, x = np.asarray(point, float), np.asarray(x, float)
    assert ((point >= 0) & (point <= 1)).all()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[threat]
    moved = np.linalg.norm((point - x).reshape(len(x), -1), order, 1)
    epsilon = float(THREATS[threat].epsilon)
    assert (moved <= epsilon * (1 + 1e-5)).all() and moved.min() > 0.2 * epsilon


@pytest.mark.parametrize("how", ["logits", "worst"])
def test_a_batch_cut_or_permuted_gives_the_same(how):
    options = {"attack": "mi_fgsm", "relative_step": 0.5}
    whole = together(how, **options)
    order = np.array([2, 0, 3])
    part = together(how, x=X[order], labels=LABELS[order], **options)
    np.testing.assert_allclose(part.adversarial, whole.adversarial[order], atol=1e-6)
    np.testing.assert_allclose(part.loss, whole.loss[order], rtol=1e-5)


@pytest.mark.parametrize("how", ["worst", nightly("probabilities")])
def test_ensembles_mapped_equal_a_loop(how):
    many = stack(PARAMS, stack(*map(draw, range(3, 3 + M))))
    mapped = jax.jit(jax.vmap(lambda params: together(how, params).adversarial))(many)
    for k in range(2):
        np.testing.assert_allclose(mapped[k], together(how, member(many, k)).adversarial, atol=1e-5)


@each_way
def test_a_model_that_diverged_is_never_fooled(how):
    broken = jax.tree.map(lambda leaf: np.array(leaf), PARAMS)
    for leaf in jax.tree.leaves(broken):
        leaf[1] = np.nan
    result = together(how, broken)
    assert not result.success.any() and np.isnan(result.loss).all()
    assert np.isfinite(result.adversarial).all()


# One left out


@functools.partial(jax.jit, static_argnames="how")
def left_out(params=PARAMS, targets=None, how="logits"):
    attack = functools.partial(ATTACKS["pgd"], threat=THREATS["linf"])
    return ensembles.leave_one_out(attack, model, params, KEY, X, LABELS, how=how, targets=targets)


@pytest.mark.parametrize("how", ["logits", nightly("worst")])
def test_each_result_is_the_attack_on_the_others(how):
    result = left_out(PARAMS, TARGETS, how=how)
    assert result.adversarial.shape == (M, *SHAPE) and result.success.shape == (M, SHAPE[0])
    for k, key in enumerate(jax.random.split(KEY, M)):
        others = jax.tree.map(lambda leaf: np.delete(leaf, k, 0), PARAMS)  # noqa: B023
        alone = together(how, others, key=key, targets=TARGETS)
        np.testing.assert_allclose(result.adversarial[k], alone.adversarial, atol=1e-6)
        np.testing.assert_allclose(result.loss[k], alone.loss, rtol=1e-5)
        np.testing.assert_array_equal(result.queries[k], alone.queries)


def test_the_model_left_out_does_not_matter_and_the_others_do():
    before, other = left_out(PARAMS, TARGETS), draw(77)
    for k in range(M):
        changed = stack(*(other if i == k else member(PARAMS, i) for i in range(M)))
        after = left_out(changed, TARGETS)
        same = [np.array_equal(before.adversarial[i], after.adversarial[i]) for i in range(M)]
        assert same == [i == k for i in range(M)]


# SVRE


def by_hand(members, draws, *, num_inner, decay=0.9, inner_decay=0.7, sign=1, labels=LABELS):
    """A walk in float64; `draws` gives the models of each inner walk."""
    clip = lambda z: np.clip(np.clip(z, start - 0.1, start + 0.1), 0, 1)  # noqa: E731
    start = np.asarray(X, float)
    point, momentum = start, 0.0
    for models in draws:
        at_point = [slope(params, point, labels, sign) for params in members]
        inner, gathered = point, 0.0
        for k in models[:num_inner]:
            term = slope(members[k], inner, labels, sign) - at_point[k] + np.mean(at_point, 0)
            gathered = inner_decay * gathered + term
            inner = clip(inner + 0.03 * np.sign(gathered))
        scale = np.abs(gathered).mean((1, 2, 3), keepdims=True)
        momentum = decay * momentum + gathered / scale
        point = clip(point + 0.02 * np.sign(momentum))
    return point


@functools.partial(jax.jit, static_argnames="options")
def _svre(params, threat, x, labels, targets, options):
    return attacks.svre(
        model, KEY, x, labels, params=params, threat=threat, targets=targets, **dict(options)
    )


SVRE = dict(num_steps=4, relative_step=0.2, decay=0.9, inner_decay=0.7, inner_step=0.3)


def svre(params=PARAMS, threat=THREATS["linf"], x=X, labels=LABELS, targets=None, **options):
    return _svre(params, threat, x, labels, targets, tuple((SVRE | options).items()))


def models_drawn(num_steps, num_inner):
    keys = [jax.random.split(jax.random.fold_in(KEY, t), num_inner) for t in range(num_steps)]
    return np.array([[int(jax.random.randint(key, (), 0, M)) for key in inner] for inner in keys])


@pytest.mark.parametrize("copies", [1, 3])
def test_svre_on_copies_of_one_model_is_momentum_within_momentum(copies):
    params = draw(3)
    result = svre(stack(*[params] * copies), num_inner=4)
    expected = by_hand([params], np.zeros((4, 4), int), num_inner=4)
    np.testing.assert_allclose(result.adversarial, expected, atol=1e-6)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["away", "towards"])
def test_svre_by_hand(targets):
    result = svre(targets=targets)
    draws = models_drawn(4, 4 * M)
    assert len({tuple(models) for models in draws}) == 4 and set(draws.ravel()) == set(range(M))
    members = [member(PARAMS, k) for k in range(M)]
    aim = dict(labels=LABELS) if targets is None else dict(labels=targets, sign=-1)
    expected = by_hand(members, draws, num_inner=4 * M, **aim)
    np.testing.assert_allclose(result.adversarial, expected, atol=1e-6)
    assert (result.queries == 4 * (M + 4 * M) + M).all()


def reduced(num_inner, decay=0.0, step=0.03):
    goal_fn = lambda f: base.objective(f, LABELS, losses.cross_entropy)  # noqa: E731
    members = ensembles.members_of(model, PARAMS, vectorized=False)
    return variance_reduction.variance_reduced(
        goal_fn, members, X, threat=THREATS["linf"], num_inner=num_inner, step=step, decay=decay
    )


def test_the_reduced_gradient_has_the_mean_gradient_as_its_mean():
    estimator = reduced(2)
    keys = jax.random.split(KEY, 32)
    result = np.asarray(
        jax.jit(jax.vmap(lambda key: estimator.estimate(key, (), X).gradient))(keys), float
    )
    members = [member(PARAMS, k) for k in range(M)]
    at_x = np.stack([slope(params, X) for params in members])
    # The first term is the mean gradient, whichever model was drawn: the second is taken here.
    there = np.clip(np.asarray(X, float) + 0.03 * np.sign(at_x.mean(0)), 0, 1)
    at_there = np.stack([slope(params, there) for params in members])
    terms = at_there - at_x + at_x.mean(0)[None]
    distance = np.abs(result[:, None] - terms[None]).max((2, 3, 4, 5))
    np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
    assert set(distance.argmin(1)) == set(range(M)) and np.sort(distance, 1)[:, 1].min() > 1e-3
    one_of_each = [result[distance.argmin(1) == k][0] for k in range(M)]
    np.testing.assert_allclose(np.mean(one_of_each, 0), at_there.mean(0), rtol=1e-4, atol=1e-5)
    spread = lambda values: ((values - values.mean(0)) ** 2).sum()  # noqa: E731
    assert spread(terms) < 0.1 * spread(at_there)


def test_what_the_reduced_gradient_says_of_its_point_lets_a_walk_keep_its_best():
    estimator = reduced(3)
    result = jax.jit(lambda x: estimator.estimate(KEY, (), x))(X)
    each, alone = of_each(PARAMS, X)
    np.testing.assert_allclose(result.logits, each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.loss, np.mean(alone, 1), rtol=1e-5)
    assert estimator.num_queries == M + 3
    logits_fn, loss_fn = ensembles.ensemble(model, PARAMS, "loss")
    goal = base.objective(logits_fn, LABELS, loss_fn)
    away = optax.chain(base.steepest(THREATS["linf"]), optax.scale(-0.1))
    options = {"threat": THREATS["linf"], "num_steps": 3, "key": KEY, "best": True}
    kept = jax.jit(lambda x: base.iterate(goal, estimator, away, x, x, **options))(X)
    # Every step goes down: the best point is the first.
    np.testing.assert_array_equal(kept.point, X)


@pytest.mark.parametrize("threat", ["linf", "l1"])
def test_svre_is_feasible_and_its_success_is_that_of_every_model(threat):
    result = svre(threat=THREATS[threat])
    assert_feasible(result.adversarial, threat)
    each, alone = (np.asarray(v) for v in of_each(PARAMS, result.adversarial))
    fooled = each.argmax(-1) != np.asarray(LABELS)[:, None]
    np.testing.assert_array_equal(result.success, fooled.all(1))
    np.testing.assert_allclose(result.loss, alone.mean(1), rtol=1e-4)
    assert (np.asarray(result.loss) > np.mean(of_each(PARAMS, X)[1], 1)).all()


def test_svre_does_not_couple_examples_and_is_mapped_over_budgets():
    whole, order = svre(), np.array([2, 0, 3])
    part = svre(x=X[order], labels=LABELS[order])
    np.testing.assert_allclose(part.adversarial, whole.adversarial[order], atol=1e-6)
    budgets = jnp.array([0.05, 0.1])
    run = lambda epsilon: svre(threat=attacks.linf(epsilon)).adversarial  # noqa: E731
    mapped = np.asarray(jax.jit(jax.vmap(run))(budgets))
    np.testing.assert_allclose(mapped[1], whole.adversarial, atol=1e-6)
    moved = np.abs(mapped - np.asarray(X)[None]).max((1, 2, 3, 4))
    np.testing.assert_allclose(moved[0], 0.04, rtol=1e-4)  # 4 steps of a fifth


# Models of different architectures


APART = [model] * M, [member(PARAMS, k) for k in range(M)]
"""The models of PARAMS, as a function each."""


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


MIXED = [linear, model], [jax.random.normal(jax.random.key(5), (25, NUM_CLASSES)), draw(0)]


@each_way
def test_functions_of_one_architecture_are_their_stacked_parameters(how):
    def value_and_slope(apply_fn, params):
        logits_fn, loss_fn = ensembles.ensemble(apply_fn, params, how)
        goal = base.objective(logits_fn, LABELS, loss_fn, TARGETS)
        return jax.jit(base.exact_gradient(goal).estimate)(None, (), X)

    expected, result = value_and_slope(model, PARAMS), value_and_slope(*APART)
    assert result.logits.shape == expected.logits.shape
    for given, wanted in zip(result[:3], expected[:3], strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-6)


@each_way
def test_a_linear_model_and_a_network_by_hand(how):
    logits_fn, loss_fn = ensembles.ensemble(*MIXED, how)
    each = np.stack([fn(params, X) for fn, params in zip(*MIXED, strict=True)], 1).astype(float)
    rows, softmax = np.arange(len(X)), scipy.special.softmax(each, -1)
    alone = -np.log(softmax[rows, :, LABELS])
    joint = scipy.special.log_softmax(each.mean(1), -1)
    expected = {
        "logits": -joint[rows, LABELS],
        "probabilities": -np.log(softmax.mean(1)[rows, LABELS]),
        "loss": alone.mean(1),
        "worst": alone,
    }[how]
    np.testing.assert_allclose(loss_fn(logits_fn(X), LABELS), expected, rtol=1e-4)
    threat = THREATS["linf"]
    result = compiled(
        attacks.pgd, logits_fn, KEY, X, LABELS, threat=threat, loss_fn=loss_fn, num_steps=3
    )
    assert_feasible(result.adversarial, "linf")
    each = np.stack([fn(params, result.adversarial) for fn, params in zip(*MIXED, strict=True)], 1)
    fooled = {
        "logits": each.mean(1).argmax(-1) != LABELS,
        "probabilities": scipy.special.softmax(each, -1).mean(1).argmax(-1) != LABELS,
    }.get(how, (each.argmax(-1) != np.asarray(LABELS)[:, None]).all(1))
    np.testing.assert_array_equal(result.success, fooled)


def svre_of(apply_fns, params, **options):
    options = {"threat": THREATS["linf"]} | SVRE | options
    return jax.jit(lambda x: attacks.svre(apply_fns, KEY, x, LABELS, params=params, **options))(X)


def test_svre_draws_among_functions_as_among_stacked_parameters():
    expected, result = svre(targets=TARGETS), svre_of(*APART, targets=TARGETS)
    np.testing.assert_allclose(result.adversarial, expected.adversarial, atol=1e-6)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(result.success, expected.success)
    np.testing.assert_array_equal(result.queries, expected.queries)


def test_svre_on_a_linear_model_and_a_network():
    result = svre_of(*MIXED, num_inner=5)
    assert_feasible(result.adversarial, "linf")
    each = np.stack([fn(params, result.adversarial) for fn, params in zip(*MIXED, strict=True)])
    np.testing.assert_array_equal(result.success, (each.argmax(-1) != np.asarray(LABELS)).all(0))
    alone = -scipy.special.log_softmax(each, -1)[:, np.arange(len(X)), LABELS]
    np.testing.assert_allclose(result.loss, alone.mean(0), rtol=1e-4)
    assert (result.queries == 4 * (2 + 5) + 2).all()


def test_one_left_out_of_functions():
    attack = functools.partial(ATTACKS["pgd"], threat=THREATS["linf"])
    result = jax.jit(lambda x: ensembles.leave_one_out(attack, *APART, KEY, x, LABELS))(X)
    expected = left_out()
    for given, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_stacked_parameters_are_one_program_however_many_models_there_are():
    looks = []

    def counted(params, x):
        looks.append(1)
        return model(params, x)

    for vectorized in (True, False):
        for number in (1, M):
            params = stack(*map(draw, range(number)))
            jax.eval_shape(ensembles.ensemble(counted, params, vectorized=vectorized).logits_fn, X)
    assert len(looks) == 4


@pytest.mark.parametrize(
    ("apply_fns", "params", "message"),
    [
        ([], [], "apply_fn must be a function, or a sequence of at least 1, got none"),
        ([model], [draw(0), draw(1)], "params must be a sequence of 1 parameters, .*, got 2"),
        ([model, model], {"a": 0, "b": 1}, "params must be a sequence of 2 .*, got dict"),
        (
            [linear, linear],
            [jnp.zeros((25, 4)), jnp.zeros((25, 5))],
            r"logits of one shape \[B, C\], got \(4, 4\) and \(4, 5\)",
        ),
    ],
)
@pytest.mark.quick
def test_bad_sequences_are_refused(apply_fns, params, message):
    with pytest.raises(ValueError, match=message):
        ensembles.ensemble(apply_fns, params, "loss").logits_fn(X)
    with pytest.raises(ValueError, match=message):
        svre_of(apply_fns, params)


@pytest.mark.quick
def test_svre_looks_at_its_inputs_whatever_its_models_are():
    with pytest.raises(ValueError, match=r"labels must lie in 0 to 3.*got 7"):
        attacks.svre(MIXED[0], KEY, X, LABELS.at[0].set(7), params=MIXED[1], threat=THREATS["linf"])
    empty = attacks.svre(MIXED[0], KEY, X[:0], LABELS[:0], params=MIXED[1], threat=THREATS["linf"])
    assert empty.adversarial.shape == (0, *SHAPE[1:])


# Weights to attack


def noisy(key, params):
    """A convex loss of which the key draws the minibatch."""
    target = jax.random.normal(key, (3,))
    return ((params["w"] - target) ** 2).sum() + (params["w"].sum() * params["b"] - 1) ** 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_are_those_of_a_loop_of_sgd(momentum):
    start = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.3)}
    run = functools.partial(
        ensembles.collect_weights,
        loss_fn=noisy,
        num_models=3,
        steps_between=2,
        learning_rate=0.02,
        momentum=momentum,
    )
    result = jax.jit(run)(KEY, start)
    w, b, speed_w, speed_b = np.array([1.0, -2.0, 0.5]), 0.3, 0.0, 0.0
    for k, key_copy in enumerate(jax.random.split(KEY, 3)):
        for key in jax.random.split(key_copy, 2):
            target = np.asarray(jax.random.normal(key, (3,)), float)
            rest = 2 * (w.sum() * b - 1)
            speed_w = momentum * speed_w + 2 * (w - target) + rest * b
            speed_b = momentum * speed_b + rest * w.sum()
            w, b = w - 0.02 * speed_w, b - 0.02 * speed_b
        np.testing.assert_allclose(result["w"][k], w, rtol=1e-5)
        np.testing.assert_allclose(result["b"][k], b, rtol=1e-5)
    ensembles.ensemble(lambda p, x: x, result)


def test_only_the_copies_take_memory():
    start = jnp.zeros(10_000)

    def size(num_steps):
        run = functools.partial(
            ensembles.collect_weights,
            loss_fn=lambda key, p: (p**2).sum(),
            num_models=2,
            steps_between=num_steps,
            learning_rate=0.1,
        )
        return jax.jit(run).lower(KEY, start).compile().memory_analysis().temp_size_in_bytes

    assert size(100) - size(2) < start.nbytes


# What is refused


@pytest.mark.parametrize(
    ("params", "how", "message"),
    [
        (PARAMS, "mean", "how must be one of logits, probabilities, loss, worst, got 'mean'"),
        ({}, "loss", "over at least 1 model, got leading axes: no leaves"),
        (jnp.zeros((0, 2)), "loss", "over at least 1 model, got leading axes: 0"),
        ((jnp.zeros((2, 3)), jnp.zeros(3)), "loss", "share one leading axis .*axes: 2, 3"),
        ((jnp.zeros(()), jnp.zeros(3)), "loss", "got leading axes: none, 3"),
    ],
)
@pytest.mark.quick
def test_bad_ensembles_are_refused(params, how, message):
    with pytest.raises(ValueError, match=message):
        ensembles.ensemble(model, params, how)


@pytest.mark.quick
def test_bad_options_are_refused():
    attack = functools.partial(attacks.pgd, threat=THREATS["linf"])
    with pytest.raises(ValueError, match="leave_one_out needs at least 2 models, got 1"):
        ensembles.leave_one_out(attack, model, stack(draw(0)), KEY, X, LABELS)
    with pytest.raises(ValueError, match="how must be one of"):
        left_out(how="least")
    for options, message in (
        ({"num_inner": 0}, "num_inner must be at least 1, got 0"),
        ({"inner_step": -0.1}, "inner_step must be finite and at least 0, got -0.1"),
        ({"relative_step": np.inf}, "relative_step must be finite and at least 0, got inf"),
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"params": {}}, "params must share one leading axis"),
    ):
        with pytest.raises(ValueError, match=message):
            svre(**options)
    good = {"num_models": 1, "steps_between": 1, "learning_rate": 0.1}
    for options, message in (
        ({"num_models": 0}, "num_models must be at least 1, got 0"),
        ({"steps_between": 0}, "steps_between must be at least 1, got 0"),
        ({"learning_rate": np.nan}, "learning_rate must be finite and at least 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            ensembles.collect_weights(KEY, jnp.zeros(2), noisy, **good | options)
