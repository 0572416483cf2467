"""Fresh models trained on perturbations: one of them by hand, and what must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, losses, populations
from halfway.lab.studies.t6 import measure as features
from halfway.lab.studies.t6 import study as t6
from halfway.lab.studies.t6.measure import FEATURES, INPUTS, TARGETS, seen_name
from halfway.lab.study import family, tables
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Records

NUM_PAIRS = 3  # on two devices: the padding must not show
NUM_STEPS = 40
NUM_EXAMPLES = 50  # of the 60 of a half
KEY = jax.random.key(6)


def _config(**attack):
    training = {"probe_steps": (0, NUM_STEPS), "learning_rate": 0.02}
    return tiny_run.config(num_pairs=NUM_PAIRS, training=training, attack=attack)


CONFIG = _config()
ONE = condition(CONFIG, "mlp")


@pytest.fixture(autouse=True, scope="module")
def _part_of_a_half():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "NUM_EXAMPLES", NUM_EXAMPLES)
        yield


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def trained(pool):
    return populations.train(ONE, pool)


@pytest.fixture(scope="module")
def measured(trained, pool):
    return _read(FEATURES.measure(KEY, [trained], pool, CONFIG))


def _read(measured, one=ONE):
    """`{quantity: [P, 2, targets, inputs] or [P, 2, targets]}`."""
    reader = tables.Reader(Records(measured.table, tables.conditions_table([]), CONFIG))
    found = {}
    for quantity in measured.table["quantity"].unique():
        subsets = np.array([[seen_name(t, i) for i in INPUTS] for t in TARGETS])
        if quantity.removeprefix("feature_") in ("num_hit", "num_aimed", "matched"):
            subsets = np.array(TARGETS)
        cube = [
            reader.cube(one.key, quantity, ("pair", "surrogate"), subset=str(name))
            for name in subsets.ravel()
        ]
        shape = NUM_PAIRS, 2, *subsets.shape
        found[quantity.removeprefix("feature_")] = np.stack(cube, -1).reshape(shape)
    assert not measured.arrays
    assert sum(cube.size for cube in found.values()) == len(measured.table)
    return found


def test_a_fresh_model_by_hand(trained, measured, pool):
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    pair, side = NUM_PAIRS - 1, 1
    keys = jax.random.split(jax.random.fold_in(KEY, pair), (2, 2))[side]
    start = jax.jit(lambda key: ONE.module.init(key, images[:1])["params"])(keys[0])
    key_targets, _, key_order = jax.random.split(keys[1], 3)
    rows = trained.halves.b.indices[pair, :NUM_EXAMPLES]
    holdout = trained.halves.s.indices[pair]
    x, clean = images[rows], labels[rows]
    targets = jax.random.randint(key_targets, clean.shape, 0, 10, clean.dtype)
    surrogate = jax.tree.map(lambda leaf: leaf[pair, side], trained.params)
    attack = functools.partial(
        attacks.pgd,
        functools.partial(ONE.apply_fn, surrogate),
        threat=attacks.linf(0.1),
        loss_fn=losses.margin,
        num_steps=3,
        relative_step=0.15,
    )
    found = jax.jit(attack)(KEY, x, clean, targets=targets)
    elsewhere = np.asarray(targets != clean)
    assert measured["num_aimed"][pair, side].tolist() == [elsewhere.sum(), NUM_EXAMPLES]
    hit = (np.asarray(found.success) & elsewhere).sum()
    np.testing.assert_allclose(measured["num_hit"][pair, side, 0], hit, atol=1)

    stream = populations.index_stream(
        key_order,
        NUM_EXAMPLES,
        capacity=NUM_EXAMPLES,
        num_steps=NUM_STEPS,
        batch_size=ONE.batch_size,
    )
    optimizer = populations.make_optimizer(ONE.optimizer, ONE.learning_rate)
    step = jax.jit(functools.partial(populations.train_step, ONE.apply_fn, optimizer))
    for place, inputs in ((0, found.adversarial), (2, x)):
        state = populations.init_state(start, optimizer)
        for batch in stream:
            state = step(state, inputs[batch], targets[batch])
        for name, at, wanted in (
            ("accuracy", images[holdout], labels[holdout]),
            ("next_accuracy", images[holdout], (labels[holdout] + 1) % 10),
            ("own_accuracy", inputs, targets),
        ):
            expected = (ONE.apply_fn(state.params, at).argmax(-1) == wanted).mean()
            # An example on a boundary may fall on either side.
            np.testing.assert_allclose(measured[name][pair, side, 0, place], expected, atol=0.026)


def test_shifted_labels_leak_by_construction_and_random_ones_do_not(measured):
    unperturbed = INPUTS.index("unperturbed")
    shifted, uniform = (TARGETS.index(name) for name in ("shifted", "uniform"))
    right, following = (
        measured[name][..., unperturbed].mean((0, 1)) for name in ("accuracy", "next_accuracy")
    )
    assert following[shifted] > 0.5 and right[shifted] < 0.1
    assert abs(right[uniform] - 0.1) < 0.1
    assert (measured["num_aimed"][..., shifted] == NUM_EXAMPLES).all()
    assert (measured["num_aimed"][..., uniform] < NUM_EXAMPLES).all()


def test_without_a_budget_all_inputs_teach_the_same(trained, pool):
    found = _read(FEATURES.measure(KEY, [trained], pool, _config(epsilon=1e-9)))
    for name in ("accuracy", "next_accuracy", "own_accuracy"):
        np.testing.assert_allclose(found[name], found[name][..., :1] * np.ones(3), atol=0.026)
    # Only what the model got wrong by itself is at its target.
    assert found["num_hit"].sum() < 0.1 * found["num_aimed"].sum()


def test_with_a_large_budget_targets_are_reached_and_teach_the_classes(trained, pool, measured):
    found = _read(FEATURES.measure(KEY, [trained], pool, _config(epsilon=0.5)))
    assert found["num_hit"].sum() > 2 * measured["num_hit"].sum()
    attack, noise, unperturbed = found["accuracy"][:, :, 0].mean((0, 1))
    assert attack > max(noise, unperturbed) + 0.1


def test_other_draws_are_other_numbers_and_the_same_are_the_same(trained, pool, measured):
    again = _read(FEATURES.measure(KEY, [trained], pool, CONFIG))
    other = _read(FEATURES.measure(jax.random.key(7), [trained], pool, CONFIG))
    for name, values in measured.items():
        np.testing.assert_array_equal(again[name], values)
    assert not np.array_equal(other["num_aimed"], measured["num_aimed"])
    # Pairs and directions draw their own.
    assert len(np.unique(measured["accuracy"][:, :, 0, 0])) > 1


def test_a_fresh_model_that_diverges_is_no_number(trained, pool):
    wild = dataclasses.replace(ONE, learning_rate=1e38)
    found = _read(FEATURES.measure(KEY, [trained.replace(condition=wild)], pool, CONFIG), wild)
    assert np.isnan(found["accuracy"]).all()
    assert np.isfinite(found["num_hit"]).all()


# The study


def _leaking(name, level):
    """Planted records in which a control teaches the classes, and what is described is there."""
    records = t6.STUDY.plant(np.random.default_rng(0), 3.0)
    key = records.conditions.index[0]
    table = records.table.copy()
    for control, mean in {"unperturbed": 0.09, "noise": 0.09, name: level}.items():
        rows = (table["subset"] == seen_name("uniform", control)).fillna(False)
        table.loc[rows, "value"] = mean + 0.01 * np.linspace(0, 1, rows.sum())
    both = {"pair": range(16), "surrogate": tables.HALVES}
    seen = {"subset": [seen_name("shifted", inputs) for inputs in INPUTS]}
    parts = [
        tables.rows(np.full((16, 2, 3), value), both | seen, condition=key, quantity=quantity)
        for quantity, value in (("feature_accuracy", 0.02), ("feature_next_accuracy", 0.9))
    ]
    parts += [
        tables.rows(
            np.full((16, 2, 2), value),
            both | {"subset": TARGETS},
            condition=key,
            quantity=f"feature_{quantity}",
        )
        for quantity, value in (("num_hit", 30.0), ("num_aimed", 300.0), ("matched", 0.99))
    ]
    return dataclasses.replace(records, table=tables.concat([table, *parts]))


def test_leaks_are_said_and_the_largest_control_decides():
    for name, words in (("unperturbed", "labels leak"), ("noise", "a perturbation's size")):
        outcome = t6.STUDY.decide(_leaking(name, 0.3))
        assert words in outcome.warnings[0] and "1.0 %" in outcome.warnings[1]
        failed = [part.name for part in outcome.parts if not part.passed]
        assert failed == [t6.CONTROLS[name]]
        (verdict,) = family.conclude([(t6.STUDY, outcome)], evidence="exploratory")
        assert verdict.verdict == "refuted"
        assert ("Labels leak" in t6.STUDY.explain(verdict)) == (name == "unperturbed")
    whole = t6.STUDY.decide(_leaking("noise", 0.09))
    assert all(part.passed for part in whole.parts)
    assert len(whole.warnings) == 1 and "box" in whole.warnings[0]


def test_shifted_labels_and_what_the_attack_reached_are_described():
    records = _leaking("noise", 0.09)
    outcome = t6.STUDY.decide(records)
    found = {h.label: h.estimate for h in outcome.headlines}
    assert found["with t = c + 1, accuracy for c"] == pytest.approx(0.02)
    assert found["with t = c + 1, accuracy for c + 1"] == pytest.approx(0.9)
    assert found["perturbed images that the attacked model takes for t"] == pytest.approx(0.1)
    (verdict,) = family.conclude([(t6.STUDY, outcome)], evidence="exploratory")
    (figure,) = t6.STUDY.draw(records, verdict)
    labels = [text.get_text() for text in figure.figure.axes[0].get_yticklabels()]
    assert len(labels) == 6 and "labelled c + 1" in figure.caption
