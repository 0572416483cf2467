"""Fresh models trained on perturbations: one of them by hand, and what must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t6 as planted
from support import tiny_run

from halfway import attacks, losses, populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t6 import measure, study
from halfway.lab.studies.t6.measure import FEATURES, INPUTS, TARGETS
from halfway.lab.study import family
from halfway.lab.study.records import Records

NUM_STEPS = 30  # as other tests train
NUM_EXAMPLES = 50  # of the 60 of a half
KEY = jax.random.key(6)


def _config(**attack):
    training = {"probe_steps": (0, NUM_STEPS), "learning_rate": 0.02}
    return tiny_run.config(training=training, attack=attack)


CONFIG = _config()
NUM_PAIRS = CONFIG.num_pairs  # three on two devices: the padding must not show
CONDITION = study.decided_on(CONFIG)


@pytest.fixture(autouse=True, scope="module")
def _part_of_a_half():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "NUM_EXAMPLES", NUM_EXAMPLES)
        yield


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


@pytest.fixture(scope="module")
def measured(trained, pool):
    return _measure(trained, pool)


def _measure(population, pool, config=CONFIG, key=KEY):
    return FEATURES.measure(Context(key, (population,), pool, config))


def test_a_fresh_model_by_hand(trained, measured, pool):
    images, labels = np.asarray(pool.images, np.float32), np.asarray(pool.labels, np.int32)
    pair, side = NUM_PAIRS - 1, 1
    of_pair = {"pair": pair, "surrogate": "AB"[side], "targets": "uniform"}

    @jax.jit
    def draw(key):
        key_start, key_run = (jax.random.split(part)[side] for part in jax.random.split(key))
        key_targets, _, key_order = jax.random.split(key_run, 3)
        start = CONDITION.module.init(key_start, images[:1])["params"]
        stream = populations.index_stream(
            key_order,
            NUM_EXAMPLES,
            capacity=NUM_EXAMPLES,
            num_steps=NUM_STEPS,
            batch_size=CONDITION.batch_size,
        )
        return start, jax.random.randint(key_targets, (NUM_EXAMPLES,), 0, 10, jnp.int32), stream

    start, targets, stream = draw(Context(KEY, (trained,), pool, CONFIG).pair_keys()[pair])
    rows = np.asarray(trained.halves.b.indices)[pair, :NUM_EXAMPLES]
    holdout = np.asarray(trained.halves.s.indices)[pair]
    x, clean, targets = images[rows], labels[rows], np.asarray(targets)
    surrogate = jax.tree.map(lambda leaf: np.asarray(leaf)[pair, side], trained.params)
    attack = functools.partial(
        attacks.pgd,
        functools.partial(CONDITION.apply_fn, surrogate),
        threat=attacks.linf(0.1),
        loss_fn=losses.margin,
        num_steps=3,
        relative_step=0.15,
    )
    attacked = jax.jit(attack)(KEY, x, clean, targets=targets)
    elsewhere = targets != clean
    assert measured["num_aimed"].sel(of_pair) == elsewhere.sum()
    assert measured["num_aimed"].sel(of_pair | {"targets": "shifted"}) == NUM_EXAMPLES
    hit = (np.asarray(attacked.success) & elsewhere).sum()
    np.testing.assert_allclose(measured["num_hit"].sel(of_pair), hit, atol=1)

    optimizer = populations.make_optimizer(CONDITION.optimizer, CONDITION.learning_rate)
    step = jax.jit(functools.partial(populations.train_step, CONDITION.apply_fn, optimizer))
    predict = jax.jit(lambda params, x: CONDITION.apply_fn(params, x).argmax(-1))
    for name, inputs in (("attack", np.asarray(attacked.adversarial)), ("unperturbed", x)):
        state = populations.init_state(start, optimizer)
        for batch in np.asarray(stream):
            state = step(state, inputs[batch], targets[batch])
        for quantity, at, wanted in (
            ("accuracy", images[holdout], labels[holdout]),
            ("next_accuracy", images[holdout], (labels[holdout] + 1) % 10),
            ("own_accuracy", inputs, targets),
        ):
            expected = (np.asarray(predict(state.params, at)) == wanted).mean()
            # An example on a boundary may fall on either side.
            share = measured[quantity].sel(of_pair | {"inputs": name})
            np.testing.assert_allclose(share, expected, atol=0.026)


def test_every_accuracy_and_count_is_there_once(measured):
    both = {"pair": NUM_PAIRS, "surrogate": 2, "targets": len(TARGETS)}
    for name in ("accuracy", "next_accuracy", "own_accuracy"):
        assert dict(measured[name].sizes) == both | {"inputs": len(INPUTS)}
        assert ((measured[name] > -1e-6) & (measured[name] < 1 + 1e-6)).all()
    for name in ("num_hit", "num_aimed", "matched"):
        assert dict(measured[name].sizes) == both
    assert (measured["num_hit"] <= measured["num_aimed"]).all()
    assert ((measured["matched"] > 0.5) & (measured["matched"] <= 1)).all()
    assert len(measured.data_vars) == 7  # and who is finite


def test_shifted_labels_leak_by_construction_and_random_ones_do_not(measured):
    unperturbed = measured.sel(inputs="unperturbed").mean(("pair", "surrogate"))
    right, following = unperturbed["accuracy"], unperturbed["next_accuracy"]
    assert following.sel(targets="shifted") > 0.5 and right.sel(targets="shifted") < 0.1
    assert abs(right.sel(targets="uniform") - 0.1) < 0.1
    assert (measured["num_aimed"].sel(targets="shifted") == NUM_EXAMPLES).all()
    assert (measured["num_aimed"].sel(targets="uniform") < NUM_EXAMPLES).all()


def test_without_a_budget_all_inputs_teach_the_same(trained, pool):
    weak = _measure(trained, pool, _config(epsilon=1e-9))
    for name in ("accuracy", "next_accuracy", "own_accuracy"):
        spread = weak[name].max("inputs") - weak[name].min("inputs")
        assert spread.max() <= 0.026
    # Only what the model got wrong by itself is at its target.
    assert weak["num_hit"].sum() < 0.1 * weak["num_aimed"].sum()


def test_with_a_large_budget_targets_are_reached_and_teach_the_classes(trained, pool, measured):
    strong = _measure(trained, pool, _config(epsilon=0.5))
    assert strong["num_hit"].sum() > 2 * measured["num_hit"].sum()
    taught = strong["accuracy"].sel(targets="uniform").mean(("pair", "surrogate"))
    controls = taught.sel(inputs=["noise", "unperturbed"])
    assert taught.sel(inputs="attack") > controls.max() + 0.1


def test_other_draws_are_other_numbers_and_the_same_are_the_same(trained, pool, measured):
    assert _measure(trained, pool).identical(measured)
    other = _measure(trained, pool, key=jax.random.key(7))
    assert (other["num_aimed"] != measured["num_aimed"]).any()
    # Pairs and directions draw their own.
    assert len(np.unique(measured["accuracy"].sel(targets="uniform", inputs="attack"))) > 1


def test_a_fresh_model_that_diverges_is_no_number(trained, pool):
    wild = dataclasses.replace(CONDITION, learning_rate=1e38)
    dataset = _measure(trained.replace(condition=wild), pool)
    assert np.isnan(dataset["accuracy"]).all()
    assert np.isfinite(dataset["num_hit"]).all()


def test_the_rule_reads_what_is_measured(measured):
    records = Records(CONFIG, {(FEATURES.name, CONDITION.id): measured})
    outcome = study.decide(records)
    for part in outcome.parts:
        assert np.isfinite(part.estimate)
        assert (part.num_pairs, part.num_excluded) == (NUM_PAIRS, 0)
    attacked = study.accuracy(records.get(FEATURES, CONDITION), "uniform", "attack")
    chosen = measured["accuracy"].sel(targets="uniform", inputs="attack")
    np.testing.assert_allclose(attacked, chosen.mean("surrogate"))


# The study


def _leaking(name, level):
    """Planted records in which a control teaches the classes."""
    records = planted.plant(np.random.default_rng(0), 3.0)
    (dataset,) = records.datasets.values()
    dataset["matched"] = dataset["matched"].dims, np.full(dataset["matched"].shape, 0.99)
    around = 0.01 * np.linspace(0, 1, dataset.sizes["pair"])[:, None]
    for control, mean in {"unperturbed": 0.09, "noise": 0.09, name: level}.items():
        dataset["accuracy"].loc[{"targets": "uniform", "inputs": control}] = mean + around
    return records


def test_leaks_are_said_and_the_largest_control_decides():
    for name, words in (("unperturbed", "labels leak"), ("noise", "a perturbation's size")):
        outcome = study.decide(_leaking(name, 0.3))
        assert words in outcome.warnings[0] and "1.0 %" in outcome.warnings[1]
        failed = [part.name for part in outcome.parts if not part.passed]
        assert failed == [study.CONTROLS[name]]
        verdict = _conclude(outcome)
        assert verdict.verdict == "refuted"
        assert ("Labels leak" in study.STUDY.explain(verdict)) == (name == "unperturbed")
    whole = study.decide(_leaking("noise", 0.09))
    assert all(part.passed for part in whole.parts)
    assert len(whole.warnings) == 1 and "box" in whole.warnings[0]


def _conclude(outcome):
    alone = dataclasses.replace(study.STUDY, stands_on=())  # T1 is decided elsewhere
    (verdict,) = family.conclude([(alone, outcome)], family_size=19, evidence="exploratory")
    return verdict


def test_shifted_labels_and_what_the_attack_reached_are_described():
    records = _leaking("noise", 0.09)
    outcome = study.decide(records)
    estimates = {h.label: h.estimate for h in outcome.headlines}
    assert estimates["with t = c + 1, accuracy for c"] == pytest.approx(0.02)
    assert estimates["with t = c + 1, accuracy for c + 1"] == pytest.approx(0.9)
    reached = outcome.headlines[-1]
    assert reached.label == "perturbed images that the attacked model takes for t"
    assert reached.estimate == pytest.approx(0.1)
    assert reached.control[0] == pytest.approx(35 / 320)
    (figure,) = study.figures(records, _conclude(outcome))
    labels = [text.get_text() for text in figure.figure.axes[0].get_yticklabels()]
    assert len(labels) == 6 and "labelled c + 1" in figure.caption
