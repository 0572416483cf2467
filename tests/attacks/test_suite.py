"""AutoAttack: exact on linear models, survivors only, chunks and company without influence."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_network
from support.small_network import network

from halfway import attacks, losses
from halfway.attacks import base
from halfway.attacks.auto import suite
from halfway.attacks.minimum_norm import fast_boundary

KEY = jax.random.key(0)
QUICK = {"num_steps": 10, "num_targets": 2, "num_queries": 20, "chunk_size": 8}


margin_of = jax.jit(losses.margin)


@pytest.fixture(scope="module")
def problem():
    return small_network.problem(21, 12, wrong=4)


@functools.partial(
    jax.jit, static_argnames=("version", "num_queries", "num_restarts", "chunk_size", "num_targets")
)
def run(params, key, x, labels, threat, **options):
    attack = functools.partial(attacks.auto_attack, functools.partial(network, params))
    return attack(key, x, labels, threat=threat, **QUICK | options)


def nightly(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# Each stage is exact in its norm in the tests of its own; three classes are fewer than targets.
@pytest.mark.parametrize(
    ("name", "num_classes"), [("linf", 3), ("l1", 5), nightly("linf", 5), nightly("l2", 5)]
)
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
    result = jax.jit(
        functools.partial(
            attacks.auto_attack,
            lambda x: x @ w + b[None],
            threat=getattr(attacks, name)(epsilon),
            num_steps=40,
            num_restarts=1,
            num_queries=50,
            chunk_size=16,
        )
    )(KEY, x, jnp.asarray(labels))
    # But for inputs at the very boundary.
    clear = np.abs(away / epsilon - 1) > 0.01
    np.testing.assert_array_equal(np.asarray(result.success)[clear], (away < epsilon)[clear])
    assert clear.sum() >= 36


@pytest.mark.parametrize("stage", suite.VERSIONS["standard"])
def test_a_stage_is_its_attack_on_each_survivor_by_itself(stage, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    threat = attacks.linf(0.02)
    result = run(params, KEY, x, labels, threat, version=(stage,))
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
        stage_result = attack(logits_fn, key, image, label, threat=threat, loss_fn=loss_fn, **count)
        return stage_result.adversarial, stage_result.queries[0]

    clean = jax.jit(logits_fn)
    fooled, queries, margins = [], [], []
    for row in range(21):
        image, label = np.asarray(x)[row : row + 1], np.asarray(labels)[row : row + 1]
        logits = np.asarray(clean(image)[0])
        order = [k for k in np.argsort(-logits) if k != label[0]]
        done, spent = bool(logits.argmax() != label[0]), 1
        best = float(margin_of(clean(image), label)[0])
        for rank in range(2 if stage.endswith("_t") else 1):
            if done:
                break
            target = np.array([order[rank]])
            key_stage = key if stage in ("apgd_ce", "square") else jax.random.fold_in(key, rank)
            key_stage = jax.random.fold_in(key_stage, row)
            point, count = alone(key_stage, image, label, target)
            margin = float(margin_of(clean(point), label)[0])
            done, spent = margin > 0, spent + int(count) + 1
            best = margin if done else max(best, margin)
        fooled.append(done)
        queries.append(spent)
        margins.append(best)
    assert 1 < np.sum(fooled) < 21
    np.testing.assert_array_equal(result.success, fooled)
    np.testing.assert_array_equal(result.queries, queries)
    # A batch and an example alone round differently, and a step goes along signs: where rounding
    # turns the sign of a slope near 0 the walk ends elsewhere, as close to its goal.
    away = np.abs(np.asarray(result.loss) - margins)
    assert (away < 1e-4).sum() >= 20 and away.max() < 0.01


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
    epsilon = np.linspace(0.01, 0.1, 21, dtype=np.float32)
    attack = functools.partial(run, version=("apgd_t",))
    whole = attack(params, KEY, x, labels, attacks.linf(epsilon))
    assert 2 < int(whole.success.sum()) < 21
    threat = attacks.linf(epsilon[:9])
    part = attack(params, KEY, x[:9], labels[:9], threat, chunk_size=50)
    np.testing.assert_allclose(part.adversarial, whole.adversarial[:9], atol=1e-5)
    np.testing.assert_array_equal(part.queries, whole.queries[:9])
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, np.float32(0.5) * leaf]), params)
    lifted = jax.jit(jax.vmap(lambda p: attack(p, KEY, x[:9], labels[:9], threat)))
    mapped = lifted(stacked)
    np.testing.assert_array_equal(mapped.success[0], whole.success[:9])
    np.testing.assert_allclose(mapped.adversarial[0], whole.adversarial[:9], atol=1e-4)


@pytest.mark.parametrize("name", ["linf", nightly("l2"), nightly("l1")])
def test_results_are_feasible_and_what_is_fooled_rests(name, problem):
    params, x, labels = problem
    epsilon = {"linf": 0.03, "l2": 0.08, "l1": 0.3}[name]
    threat = getattr(attacks, name)(epsilon)
    logits_fn = functools.partial(network, params)
    standard = suite.VERSIONS["standard"]
    stages = ("apgd_t", "square") if name == "linf" else standard
    plan = suite.Plan(stages, **QUICK)
    last = suite.clean(logits_fn, x, labels, plan)
    np.testing.assert_array_equal(last.adversarial, x)
    assert last.success.tolist() == [row == 4 for row in range(21)]
    for index in range(len(stages)):
        step = jax.jit(functools.partial(suite.stage, index, logits_fn, threat=threat, plan=plan))
        result = step(jax.random.fold_in(KEY, index), x, labels, last)
        logits = np.asarray(logits_fn(result.adversarial))
        np.testing.assert_array_equal(result.success, logits.argmax(-1) != labels)
        np.testing.assert_allclose(result.loss, margin_of(logits, labels), atol=1e-5)
        away = np.asarray(attacks.distance(result.adversarial, x, name))
        assert (away <= epsilon + 1e-6).all()
        done = np.asarray(last.success)
        for new, old in zip(result, last, strict=True):
            np.testing.assert_array_equal(np.asarray(new)[done], np.asarray(old)[done])
        assert (np.asarray(result.loss) >= np.asarray(last.loss)).all()
        spent = np.asarray(result.queries) - np.asarray(last.queries)
        np.testing.assert_array_equal(spent > 0, ~done)
        last = result
    if name != "l2":  # one after another is what the whole is
        whole = run(params, KEY, x, labels, threat, version=stages)
        np.testing.assert_array_equal(whole.queries, last.queries)
        np.testing.assert_allclose(whole.adversarial, last.adversarial, atol=1e-5)
    assert 2 < int(last.success.sum()) < 21


def test_inputs_misclassified_from_the_start_are_reported_apart(problem):
    params, x, labels = problem
    result = run(params, KEY, x, labels, attacks.linf(0.03), version=("apgd_ce",))
    logits_fn = functools.partial(network, params)
    what = attacks.outcome(logits_fn, x, labels, result)
    assert what.misclassified.tolist() == [row == 4 for row in range(21)]
    np.testing.assert_array_equal(sum(np.asarray(w, int) for w in what), 1)
    np.testing.assert_array_equal(what.fooled | what.misclassified, result.success)
    broken = attacks.outcome(lambda x: jnp.full((21, 5), jnp.nan), x, labels, result)
    assert broken.misclassified.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": ("apgd",)}, "stages must be of apgd_ce, apgd_dlr, .*, square, got 'apgd'"),
        ({"version": "best"}, "version must be one of standard, plus, rand, or stages, got 'best'"),
        ({"version": "rand"}, "needs draw_fn, a function of a key and inputs to logits"),
        ({"num_restarts": 0}, "num_restarts must be at least 1, got 0"),
        ({"num_targets": 0}, "num_targets must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
@pytest.mark.quick
def test_bad_options_are_refused(options, message, problem):
    params, x, labels = problem
    with pytest.raises(ValueError, match=message):
        attacks.auto_attack(
            functools.partial(network, params), KEY, x, labels, threat=attacks.linf(0.1), **options
        )


@pytest.mark.parametrize(
    ("version", "norm"),
    [(("apgd_dlr", "fab"), "linf"), nightly("plus", "l2"), nightly("standard", "l1")],
)
def test_stages_say_which_of_them_fooled(version, norm, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    threat = getattr(attacks, norm)({"linf": 0.03, "l2": 0.08, "l1": 0.3}[norm])
    result = run(params, KEY, x, labels, threat, version=version, num_restarts=2)
    stages = suite.VERSIONS.get(version, version)
    assert result.stage[4] == -1  # misclassified from the start
    np.testing.assert_array_equal(result.stage == len(stages), ~result.success)
    assert result.stage[result.success & (jnp.arange(21) != 4)].min() >= 0
    # What the first stage fools alone is what it is said to have fooled.
    plan = suite.Plan(stages[:1], num_restarts=2, **QUICK)
    clean = suite.clean(logits_fn, x, labels, plan)
    key = jax.random.fold_in(KEY, 0)
    first = jax.jit(functools.partial(suite.stage, 0, logits_fn, threat=threat, plan=plan))
    won = first(key, x, labels, clean).success & ~clean.success
    np.testing.assert_array_equal(result.stage == 0, won)
    assert 0 < won.sum() < 20


def test_a_randomized_model_is_attacked_along_mean_gradients(problem):
    """Noise that turns the gradient of one draw to nothing does not turn that of the mean."""
    _, x, labels = problem
    weights = jax.random.normal(KEY, (12, 5))

    def draw_fn(key, x):
        away = jax.random.rademacher(key, (len(x), 1), float)
        return mean_fn(x) + away * jnp.sin(40 * x.sum(1, keepdims=True)) * weights[:1]

    def mean_fn(x):
        return (x - 0.5) @ weights

    labels = mean_fn(x).argmax(-1)
    options = {"num_steps": 20, "chunk_size": 32, "num_draws": 32}
    attack = functools.partial(
        attacks.auto_attack, mean_fn, KEY, x, labels, threat=attacks.linf(0.03), version="rand"
    )
    result = jax.jit(lambda: attack(draw_fn=draw_fn, **options))()
    exact = jax.jit(lambda: attack(draw_fn=lambda key, x: mean_fn(x), **options))()
    assert abs(float(result.success.mean() - exact.success.mean())) < 0.15
    assert result.stage.max() <= 2 and result.queries.max() > 20 * 32


@pytest.fixture(scope="module")
def steps(problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    options = {"threat": attacks.linf(0.03), "version": ("apgd_ce", "apgd_t")} | QUICK
    return functools.partial(
        attacks.auto_attack_steps, logits_fn, KEY, np.asarray(x), np.asarray(labels), **options
    )


def test_steps_end_where_the_whole_does(steps, problem):
    params, x, labels = problem
    progress = list(steps())
    whole = run(params, KEY, x, labels, attacks.linf(0.03), version=("apgd_ce", "apgd_t"))
    last = progress[-1].result
    for name in ("success", "stage", "queries"):
        np.testing.assert_array_equal(getattr(last, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(last.adversarial, whole.adversarial, atol=1e-5)
    # Clean inputs first; then three chunks of eight of the twenty that are left.
    assert [step.stage for step in progress[:4]] == [-1, 0, 0, 0]
    assert [len(step.left) for step in progress[1:4]] == [12, 4, 0]
    assert not progress[1].result.success[8:].any() or progress[1].result.success[4]


def test_steps_go_on_from_any_of_them(steps):
    progress = list(steps())
    for place in (0, 1, len(progress) - 2):
        kept = jax.tree.map(np.array, progress[place].result)
        resumed = list(steps(progress=progress[place]))
        assert len(resumed) == len(progress) - place - 1
        for ours, expected in zip(resumed[-1].result, progress[-1].result, strict=True):
            np.testing.assert_array_equal(ours, expected)
        jax.tree.map(np.testing.assert_array_equal, progress[place].result, kept)


def test_a_last_smaller_chunk_compiles_nothing(problem):
    params, x, labels = problem
    options = {"threat": attacks.linf(0.03), "version": ("apgd_ce",)} | QUICK

    def shapes(number):
        traced = []

        def logits_fn(x):
            traced.append(x.shape)
            return network(params, x)

        rows = np.asarray(x)[:number], np.asarray(labels)[:number]
        list(attacks.auto_attack_steps(logits_fn, KEY, *rows, **options))
        return [shape[0] for shape in traced if shape[0] != number]

    assert shapes(16) == shapes(21)  # two chunks, and three of which the last has five inputs


def test_a_small_batch_is_not_filled_up(problem):
    """Four inputs are attacked as four, whatever the size of chunks."""
    params, x, labels = problem

    def attack(chunk_size):
        options = QUICK | {"chunk_size": chunk_size, "version": ("apgd_ce",)}
        return jax.jit(
            lambda x, y: attacks.auto_attack(
                functools.partial(network, params), KEY, x, y, threat=attacks.linf(0.03), **options
            )
        ).lower(x[:4], labels[:4])

    assert attack(64).as_text() == attack(4).as_text()


def test_steps_refuse_what_attacks_refuse(steps, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    with pytest.raises(ValueError, match="outside of the bounds"):
        attacks.auto_attack_steps(logits_fn, KEY, 255 * x, labels, threat=attacks.linf(0.1))
    with pytest.raises(ValueError, match="version must be one of"):
        steps(version="best")


@pytest.mark.quick
def test_a_plan_has_the_defaults_of_the_attack():
    parameters = inspect.signature(attacks.auto_attack).parameters
    for field in dataclasses.fields(suite.Plan):
        assert parameters[field.name].default == field.default


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_steps_keep_the_type_of_inputs(dtype, problem):
    """As `auto_attack` does, FAB among the stages, and where they go on."""
    params, x, labels = problem
    options = QUICK | {"threat": attacks.linf(0.03), "version": ("apgd_ce", "fab_t")}
    attack = functools.partial(
        attacks.auto_attack_steps, functools.partial(network, params), KEY, **options
    )
    short = jnp.asarray(x, dtype)
    progress = list(attack(short, labels))
    for step in progress:
        assert step.result.adversarial.dtype == dtype
    whole = attacks.auto_attack(functools.partial(network, params), KEY, short, labels, **options)
    np.testing.assert_array_equal(progress[-1].result.success, whole.success)
    resumed = list(attack(short, labels, progress=progress[2]))
    jax.tree.map(np.testing.assert_array_equal, resumed[-1].result, progress[-1].result)


def test_steps_of_no_inputs_are_one_result_of_none(steps, problem):
    params, x, labels = problem
    logits_fn = functools.partial(network, params)
    empty = np.asarray(x)[:0], np.asarray(labels)[:0]
    (step,) = attacks.auto_attack_steps(logits_fn, KEY, *empty, threat=attacks.linf(0.03))
    assert step.result.adversarial.shape == empty[0].shape and step.result.stage.shape == (0,)
