"""Transfer of a tiny trained population against the library called on one pair by itself."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import plants, tiny_run

from halfway import attacks, losses
from halfway import transfer as library
from halfway.lab import studies
from halfway.lab.measurements import transfer
from halfway.lab.measurements.context import MODELS, Context
from halfway.lab.measurements.transfer import PERMUTED, POINTS, TRANSFER, TRANSFER_CONTROLS
from halfway.lab.study import conditions
from halfway.lab.study.records import Measured, Records

NUM_STEPS, NUM_HOLDOUT = 3, 40


def _config(**attack):
    training = {"probe_steps": (0, 5, 30)}
    return tiny_run.config(training=training, attack={"budgets": (0.05, 0.1)} | attack)


CONFIG = _config()
NUM_PAIRS, EPSILON = CONFIG.num_pairs, CONFIG.attack.epsilon
KEY = jax.random.key(11)
TARGETS = (*MODELS, *PERMUTED)
CELLS = "pair", "surrogate", "target"


@pytest.fixture(scope="module")
def trained(train):
    """The population without noise and its control with permuted labels."""
    return train(conditions.condition(CONFIG, "mlp")), train(conditions.control(CONFIG, "mlp"))


@pytest.fixture(scope="module")
def attacked(trained, pool):
    return Measured(TRANSFER.measure(Context(KEY, trained[:1], pool, CONFIG)))


@pytest.fixture(scope="module")
def controlled(trained, pool):
    return Measured(TRANSFER_CONTROLS.measure(Context(KEY, trained, pool, CONFIG)))


def _pick(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _diverged(population, *index):
    params = jax.tree.map(lambda leaf: leaf.at[index].set(jnp.nan), population.params)
    return population.replace(params=params)


def _holdout(population, pool, pair):
    rows = np.asarray(population.halves.s.indices[pair])
    return jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])


ATTACK = functools.partial(
    attacks.pgd, threat=attacks.linf(EPSILON), loss_fn=losses.margin, num_steps=NUM_STEPS
)


# The attack alone


def test_what_is_measured_is_the_attack_on_one_pair(attacked, trained, pool):
    (population, _), apply_fn = trained, trained[0].apply_fn

    @jax.jit
    def attack(params, x, labels):
        logits_fn = functools.partial(apply_fn, params)
        gradient = jax.grad(lambda z: losses.margin(logits_fn(z), labels).sum())(x)
        return ATTACK(logits_fn, KEY, x, labels).adversarial, gradient

    @jax.jit
    def look(params, x, labels):
        logits = apply_fn(params, x)
        return losses.margin(logits, labels), logits.argmax(-1) == labels

    for p in range(NUM_PAIRS):
        x, labels = _holdout(population, pool, p)
        np.testing.assert_array_equal(attacked["label"][p], labels)
        models = [_pick(population.params, p, k) for k in range(2)]
        clean = [[np.asarray(v) for v in look(params, x, labels)] for params in models]
        for k, surrogate in enumerate(MODELS):
            loss, right = clean[k]
            where = {"pair": p, "model": surrogate}
            np.testing.assert_allclose(attacked["clean_loss"].sel(where), loss, atol=1e-4)
            np.testing.assert_array_equal(attacked["clean_correct"].sel(where), right)
            moved, gradient = attack(models[k], x, labels)
            size = attacked["gradient_norm"].sel(pair=p, surrogate=surrogate)
            np.testing.assert_allclose(size, np.abs(gradient).sum(), rtol=1e-4)
            for m, target in enumerate(MODELS):
                after, unfooled = (np.asarray(v) for v in look(models[m], moved, labels))
                cell = {"pair": p, "surrogate": surrogate, "target": target}
                rise = float((after - clean[m][0]).sum())
                increase = attacked["increase"].sel(cell)
                np.testing.assert_allclose(increase, rise, rtol=1e-3, atol=1e-3)
                np.testing.assert_array_equal(attacked["fooled"].sel(cell), ~unfooled)
                for denominator, counted in (
                    ("all", np.ones(NUM_HOLDOUT, bool)),
                    ("target_correct", clean[m][1]),
                    ("both_correct", clean[m][1] & right),
                ):
                    rate = cell | {"denominator": denominator}
                    assert attacked["num_examples"].sel(rate) == counted.sum()
                    assert attacked["num_fooled"].sel(rate) == (counted & ~unfooled).sum()


def test_a_diverged_pair_is_undefined_and_the_others_stay(attacked, trained, pool):
    broken = _diverged(trained[0], 1, 0)
    measured = Measured(TRANSFER.measure(Context(KEY, (broken,), pool, CONFIG)))
    assert measured.finite.tolist() == [True, False, True]
    for name in ("increase", "num_fooled", "num_examples", "gradient_norm"):
        values, whole = measured[name].values, attacked[name].values
        assert np.isnan(values[1]).all()
        np.testing.assert_array_equal(values[[0, 2]], whole[[0, 2]])


# Its controls


@pytest.mark.quick
def test_budgets():
    clean = conditions.condition(CONFIG, "mlp")
    noisy = conditions.condition(CONFIG, "mlp", noise_rate=0.2)
    config = _config(epsilon=0.1, budgets=(0.2, 0.05))
    assert transfer.budgets_of(clean, config) == (0.05, 0.1, 0.2)
    assert transfer.budgets_of(noisy, config) == (0.1,)
    assert transfer.budgets_of(clean, CONFIG) == (0.05, 0.1)


def test_controls_hold_every_number(controlled):
    sizes = {"pair": NUM_PAIRS, "budget": 2, "surrogate": 2, "target": 4}
    assert dict(controlled["increase"].sizes) == sizes | {"moved": 3}
    assert controlled["increase"]["moved"].values.tolist() == list(POINTS[1:])
    assert controlled["increase"]["target"].values.tolist() == list(TARGETS)
    for name in ("num_fooled", "num_examples"):
        counts = controlled[name]
        assert dict(counts.sizes) == sizes | {"points": 4, "denominator": 3}
        assert ((counts >= 0) & (counts <= NUM_HOLDOUT) & (counts == np.round(counts))).all()
    matched = controlled["matched"]
    assert dict(matched.sizes) == {"pair": NUM_PAIRS, "budget": 2, "control": 2, "surrogate": 2}
    assert ((matched > 0.5) & (matched <= 1)).all()
    assert controlled["increase"]["budget"].values.tolist() == [0.05, 0.1]


def test_controls_of_one_pair_recomputed(controlled, trained, pool):
    pair, apply_fn = NUM_PAIRS - 1, trained[0].apply_fn
    true, permuted = (population.params for population in trained)
    surrogates = _pick(true, pair)
    targets = jax.tree.map(lambda a, b: jnp.concatenate([a[pair], b[pair]]), true, permuted)
    key = Context(KEY, trained, pool, CONFIG).pair_keys()[pair]
    x, labels = _holdout(trained[0], pool, pair)
    compute = jax.jit(
        lambda surrogates, targets: library.transfer_matrix(
            apply_fn, surrogates, apply_fn, targets, key, x, labels, attack=ATTACK
        )
    )
    matrix = jax.tree.map(np.asarray, compute(surrogates, targets))
    clean, right = matrix.target["clean"], matrix.target["clean"].correct[None]
    counted = {
        "all": np.ones((2, 4, NUM_HOLDOUT), bool),
        "target_correct": np.repeat(right, 2, 0),
        "both_correct": right & matrix.surrogate["clean"].correct[:, None],
    }
    read = functools.partial(controlled.read, budget=EPSILON)
    for points in POINTS:
        wrong = ~np.broadcast_to(matrix.target[points].correct, (2, 4, NUM_HOLDOUT))
        for denominator, examples in counted.items():
            where = {"points": points, "denominator": denominator}
            number = read("num_examples", *CELLS, **where)[pair]
            np.testing.assert_array_equal(number, examples.sum(-1))
            fooled = read("num_fooled", *CELLS, **where)[pair]
            np.testing.assert_array_equal(fooled, (examples & wrong).sum(-1))
        if points != "clean":
            rise = (matrix.target[points].loss - clean.loss).sum(-1)
            increase = read("increase", *CELLS, moved=points)[pair]
            np.testing.assert_allclose(increase, rise, rtol=1e-3, atol=1e-3)
    for control in POINTS[2:]:
        share = read("matched", "pair", "surrogate", control=control)[pair]
        np.testing.assert_allclose(share, matrix.matched[control].mean(-1), atol=1e-6)


def test_the_attack_is_the_same_with_and_without_controls(attacked, controlled):
    of_pair = controlled.dataset.sel(budget=EPSILON, target=list(MODELS))
    increase = of_pair["increase"].sel(moved="attack").transpose(*CELLS)
    np.testing.assert_allclose(increase, attacked["increase"], rtol=1e-4, atol=1e-3)
    cells = "pair", "denominator", "surrogate", "target"
    for name in ("num_fooled", "num_examples"):
        counts = of_pair[name].sel(points="attack").transpose(*cells)
        np.testing.assert_array_equal(counts, attacked[name])
    of_all = attacked["num_fooled"].sel(denominator="all")
    np.testing.assert_array_equal(attacked["fooled"].sum("example"), of_all)


def test_larger_budgets_and_own_targets_move_more(controlled):
    rise = functools.partial(transfer.control_terms, controlled, "increase")
    own_rise = rise("attack", "own", budget=0.1)
    assert (own_rise > rise("attack", "own", budget=0.05)).all()
    other = rise("attack", "other", budget=0.1)
    assert (own_rise > other).all()
    assert (other > rise("noise", "other", budget=0.1)).all()


def test_a_target_that_diverged_is_not_fooled(controlled, trained, pool):
    true, permuted = trained
    context = Context(KEY, (true, _diverged(permuted, 1, 0)), pool, CONFIG)
    broken = Measured(TRANSFER_CONTROLS.measure(context))
    rate = {"points": "attack", "denominator": "all"}
    for name, labels in (
        ("num_fooled", rate),
        ("num_examples", rate),
        ("increase", {"moved": "attack"}),
    ):
        values, whole = (
            measured.read(name, *CELLS, budget=EPSILON, **labels)
            for measured in (broken, controlled)
        )
        gone = np.isnan(values)
        # Both models of the control's pair leave, and nothing else.
        assert gone[1][:, [TARGETS.index(name) for name in PERMUTED]].all()
        assert gone.sum() == 4
        np.testing.assert_allclose(values[~gone], whole[~gone])


def test_a_rule_reads_what_is_measured(attacked, controlled, trained):
    place = trained[0].condition.id
    # Of ρ = 1 as well, which the rule looks at too.
    noise_alone = dataclasses.replace(trained[0].condition, noise_rate=1.0).id
    measured = {
        (TRANSFER.name, place): attacked,
        (TRANSFER.name, noise_alone): attacked,
        (TRANSFER_CONTROLS.name, place): controlled,
    }
    records = Records(CONFIG, {key: value.dataset for key, value in measured.items()})
    outcome = studies.available()["T1"].decide(records)
    for part in outcome.parts:
        assert math.isfinite(part.estimate)
        assert (part.num_pairs, part.num_excluded) == (NUM_PAIRS, 0)


def test_a_measurement_repeats_and_its_key_decides_the_controls_alone(controlled, trained, pool):
    again = TRANSFER_CONTROLS.measure(Context(KEY, trained, pool, CONFIG))
    assert again.identical(controlled.dataset)
    other = TRANSFER_CONTROLS.measure(Context(jax.random.key(12), trained, pool, CONFIG))
    for points in ("clean", "attack"):  # the attack is not random; its controls are
        for name in ("num_fooled", "num_examples"):
            np.testing.assert_array_equal(
                other[name].sel(points=points), controlled[name].sel(points=points)
            )
    increase = other["increase"] != controlled["increase"]
    assert not increase.sel(moved="attack").any()
    assert increase.sel(moved="noise").mean() > 0.9


# Coefficients by hand


VALUES = np.arange(2)[:, None, None] + np.outer([1, 10], [1, 2, 3, 4])
"""[P, 2, 4]: 10^surrogate · target + pair, surrogate A being 0, B 1, the targets 1 to 4."""
PAIRS = conditions.condition(tiny_run.config(num_pairs=2), "mlp")


def _controlled(finite=(True, True)):
    """Counts that differ by points, denominator and budget."""
    shifts = [np.array([0.0, shift]) for shift in (0.3, 0.2, 0.1)]
    shift = functools.reduce(np.add.outer, shifts)[..., None, None]
    dims = "pair", "points", "denominator", "budget", "surrogate", "target"
    dataset = plants.dataset(
        PAIRS,
        {"num_fooled": (dims, VALUES[:, None, None, None] + shift)},
        points=("attack", "noise"),
        denominator=("all", "both_correct"),
        budget=(0.1, 0.2),
        target=TARGETS,
    )
    dataset["finite"] = "pair", np.array(finite)
    return Measured(dataset)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"target": "other"}, 2 + 10),
        ({"target": "own"}, 1 + 20),
        ({"target": "permuted"}, 4 + 30),
        ({"budget": 0.2}, 2 + 10 + 2 * 0.1),
        ({"denominator": "both_correct"}, 2 + 10 + 2 * 0.2),
        ({"points": "noise"}, 2 + 10 + 2 * 0.3),
    ],
)
def test_control_terms_sum_both_directions(where, expected):
    usual = {"points": "attack", "target": "other", "budget": 0.1, "denominator": "all"}
    sums = transfer.control_terms(_controlled(), "num_fooled", **usual | where)
    np.testing.assert_allclose(sums, [expected, expected + 2])


def test_control_terms_leave_out_diverged_pairs_and_refuse_other_budgets():
    read = functools.partial(
        transfer.control_terms, points="attack", target="other", denominator="all"
    )
    sums = read(_controlled((False, True)), "num_fooled", budget=0.1)
    assert np.isnan(sums).tolist() == [True, False]
    with pytest.raises(LookupError):
        read(_controlled(), "num_fooled", budget=0.15)


@pytest.mark.quick
def test_coefficient_terms_are_the_other_models_rise_and_the_own():
    increase = ("pair", "surrogate", "target"), VALUES[..., :2]
    terms = transfer.coefficient_terms(Measured(plants.dataset(PAIRS, {"increase": increase})))
    np.testing.assert_array_equal(terms.numerators, [2 + 10, 2 + 10 + 2])
    np.testing.assert_array_equal(terms.denominators, [1 + 20, 1 + 20 + 2])
