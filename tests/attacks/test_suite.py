"""AutoAttack: exact on linear models, survivors only, chunks and company without influence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_network
from support.small_network import network

from halfway import attacks, losses
from halfway.attacks import base, suite
from halfway.attacks.minimum_norm import fast_boundary

KEY = jax.random.key(0)
QUICK = {"num_steps": 10, "num_targets": 2, "num_queries": 20, "chunk_size": 8}


@pytest.fixture(scope="module")
def problem():
    return small_network.problem(21, 12, wrong=4)


@functools.partial(jax.jit, static_argnames=("stages", "num_queries", "chunk_size", "num_targets"))
def run(params, key, x, labels, threat, **options):
    attack = functools.partial(attacks.auto_attack, functools.partial(network, params))
    return attack(key, x, labels, threat=threat, **QUICK | options)


@pytest.mark.parametrize(("name", "num_classes"), [("linf", 5), ("linf", 3), ("l2", 5), ("l1", 5)])
def test_robustness_of_a_linear_model_is_exact(name, num_classes):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.4, 0.6, (40, 6)), jnp.float32)
    weights = rng.normal(size=(6, num_classes))
    bias = -0.5 * weights.sum(0)
    logits = np.asarray(x, float) @ weights + bias
    labels = logits.argmax(1)
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[name]
    lengths = np.linalg.norm(weights[:, labels, None] - weights[:, None], dual, 0)
    ahead = logits[range(40), labels][:, None] - logits
    ways = np.where(np.eye(num_classes)[labels] > 0, np.inf, ahead / np.maximum(lengths, 1e-9))
    away = np.min(ways, 1)
    epsilon = float(np.median(away))
    assert epsilon < 0.4 and np.abs(away - epsilon).min() > 0
    w, b = jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32)
    found = jax.jit(
        functools.partial(
            attacks.auto_attack,
            lambda x: x @ w + b[None],
            threat=getattr(attacks, name)(epsilon),
            num_steps=40,
            num_queries=50,
            chunk_size=16,
        )
    )(KEY, x, jnp.asarray(labels))
    # But for inputs at the very boundary.
    clear = np.abs(away / epsilon - 1) > 0.01
    np.testing.assert_array_equal(np.asarray(found.success)[clear], (away < epsilon)[clear])
    assert clear.sum() >= 36


@pytest.mark.parametrize("stage", suite.STAGES)
def test_a_stage_is_its_attack_on_each_survivor_by_itself(stage, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    threat = attacks.linf(0.02)
    found = run(params, KEY, x, labels, threat, stages=(stage,))
    key = jax.random.fold_in(KEY, 0)

    @jax.jit
    def alone(key, image, label, target):
        if stage == "fab_t":
            return threat.project(_fab_alone(logits_fn, image, label, target), image), 2 * 10 + 6
        loss_fn = {
            "apgd_ce": losses.cross_entropy,
            "apgd_t": lambda z, y: -losses.targeted_dlr(y)(z, target),
            "square": losses.margin,
        }[stage]
        attack = attacks.square if stage == "square" else attacks.apgd
        count = {"num_queries": 20} if stage == "square" else {"num_steps": 10}
        one = attack(logits_fn, key, image, label, threat=threat, loss_fn=loss_fn, **count)
        return one.adversarial, one.queries[0]

    fooled, queries, margins = [], [], []
    for row in range(21):
        image, label = x[row : row + 1], labels[row : row + 1]
        logits = np.asarray(logits_fn(image)[0])
        order = [k for k in np.argsort(-logits) if k != label[0]]
        done, spent = bool(logits.argmax() != label[0]), 1
        best = float(losses.margin(logits_fn(image), label)[0])
        for rank in range(2 if stage.endswith("_t") else 1):
            if done:
                break
            target = jnp.array([order[rank]])
            own = key if stage in ("apgd_ce", "square") else jax.random.fold_in(key, rank)
            own = jax.random.fold_in(own, row)
            point, count = alone(own, image, label, target)
            margin = float(losses.margin(logits_fn(point), label)[0])
            done, spent = margin > 0, spent + int(count) + 1
            best = margin if done else max(best, margin)
        fooled.append(done)
        queries.append(spent)
        margins.append(best)
    assert 1 < np.sum(fooled) < 21
    np.testing.assert_array_equal(found.success, fooled)
    np.testing.assert_array_equal(found.queries, queries)
    np.testing.assert_allclose(found.loss, margins, atol=1e-4)


def _fab_alone(logits_fn, image, label, target):
    """The nearest point of any other class, along boundaries to one of them."""
    goal = base.objective(logits_fn, label, losses.margin)
    linearize = fast_boundary.class_ahead(logits_fn, label, target)
    kept, _ = fast_boundary.search(
        goal, linearize, image, "linf", (0.0, 1.0), num_steps=10, queries_of_step=2
    )
    return kept.point


def test_chunks_company_and_models_at_once_do_not_matter(problem):
    params, x, labels = problem
    epsilon = jnp.linspace(0.01, 0.1, 21)
    two = functools.partial(run, stages=("apgd_t", "square"))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    whole = two(params, KEY, x, labels, attacks.linf(epsilon))
    assert 2 < int(whole.success.sum()) < 21
    other = two(params, KEY, x, labels, attacks.linf(epsilon), chunk_size=50)
    np.testing.assert_allclose(other.adversarial, whole.adversarial, atol=1e-5)
    np.testing.assert_array_equal(other.queries, whole.queries)
    part = two(params, KEY, x[:9], labels[:9], attacks.linf(epsilon[:9]))
    np.testing.assert_allclose(part.adversarial, whole.adversarial[:9], atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda p: two(p, KEY, x, labels, attacks.linf(epsilon))))(stacked)
    np.testing.assert_array_equal(mapped.success[0], whole.success)
    np.testing.assert_allclose(mapped.adversarial[0], whole.adversarial, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["linf", *(pytest.param(n, marks=pytest.mark.slow) for n in ("l2", "l1"))]
)
def test_results_are_feasible_and_what_is_fooled_rests(name, problem):
    params, x, labels = problem
    epsilon = {"linf": 0.03, "l2": 0.08, "l1": 0.3}[name]
    threat = getattr(attacks, name)(epsilon)
    logits_fn = functools.partial(network, params)
    last = suite.clean(logits_fn, x, labels, chunk_size=8)
    np.testing.assert_array_equal(last.adversarial, x)
    assert last.success.tolist() == [row == 4 for row in range(21)]
    for index, stage in enumerate(suite.STAGES[: 3 if name == "l1" else 4]):
        step = jax.jit(functools.partial(suite.stage, stage, logits_fn, threat=threat, **QUICK))
        found = step(jax.random.fold_in(KEY, index), x, labels, last)
        logits = logits_fn(found.adversarial)
        np.testing.assert_array_equal(found.success, jnp.argmax(logits, -1) != labels)
        np.testing.assert_allclose(found.loss, losses.margin(logits, labels), atol=1e-5)
        away = np.asarray(attacks.distance(found.adversarial, x, name))
        assert (away <= epsilon + 1e-6).all()
        done = np.asarray(last.success)
        for new, old in zip(found, last, strict=True):
            np.testing.assert_array_equal(np.asarray(new)[done], np.asarray(old)[done])
        assert (found.loss >= last.loss).all()
        np.testing.assert_array_equal(np.asarray(found.queries > last.queries), ~done)
        last = found
    if name != "l2":  # one after another is what the whole is
        whole = run(params, KEY, x, labels, threat)
        np.testing.assert_array_equal(whole.queries, last.queries)
        np.testing.assert_allclose(whole.adversarial, last.adversarial, atol=1e-5)
    assert 2 < int(last.success.sum()) < 21


def test_inputs_misclassified_from_the_start_are_reported_apart(problem):
    params, x, labels = problem
    found = run(params, KEY, x, labels, attacks.linf(0.03), stages=("apgd_ce",))
    logits_fn = functools.partial(network, params)
    what = attacks.outcome(logits_fn, x, labels, found)
    assert what.misclassified.tolist() == [row == 4 for row in range(21)]
    np.testing.assert_array_equal(sum(np.asarray(w, int) for w in what), 1)
    np.testing.assert_array_equal(what.fooled | what.misclassified, found.success)
    broken = attacks.outcome(lambda x: jnp.full((21, 5), jnp.nan), x, labels, found)
    assert broken.misclassified.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("apgd",)}, "stages must be of apgd_ce, apgd_t, fab_t, square, got 'apgd'"),
        ({"num_targets": 0}, "num_targets must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message, problem):
    params, x, labels = problem
    with pytest.raises(ValueError, match=message):
        attacks.auto_attack(
            functools.partial(network, params), KEY, x, labels, threat=attacks.linf(0.1), **options
        )
