"""Measurements of a tiny trained population against its arrays and the library called directly."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, losses, populations, transfer
from halfway.lab import studies
from halfway.lab.measurements import measurements
from halfway.lab.measurements.measurements import FIRST_ORDER, LEARNING, TRANSFER
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Identity, Run
from halfway.lab.study import conditions, tables
from halfway.lab.study.protocol import Measured, Measurement, Records, Request

NUM_PAIRS = 3  # on two devices: the padding must not show


_config = functools.partial(
    tiny_run.config,
    num_pairs=NUM_PAIRS,
    training={"probe_steps": (0, 5, 30)},
    attack={"budgets": (0.05, 0.1)},
)


CONFIG = _config()
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def trained(pool):
    """The population without noise and its control with permuted labels."""
    own = populations.train(conditions.condition(CONFIG, "mlp"), pool)
    permuted = populations.train(conditions.control(CONFIG, "mlp"), pool)
    return own, permuted


@pytest.fixture(scope="module")
def transferred(trained, pool):
    return TRANSFER.measure(KEY, trained, pool, CONFIG)


@pytest.fixture(scope="module")
def first_order(trained, pool):
    return FIRST_ORDER.measure(KEY, trained[:1], pool, CONFIG)


@pytest.fixture(scope="module")
def records(trained, transferred, first_order, pool):
    """All that was measured, as a run would hold it."""
    parts = [LEARNING.measure(KEY, [one], pool, CONFIG).table for one in trained]
    key = trained[0].condition.key
    return Records(
        tables.concat([*parts, transferred.table, first_order.table]),
        tables.conditions_table([one.condition for one in trained]),
        CONFIG,
        {("transfer", key): transferred.arrays, ("first_order", key): first_order.arrays},
    )


def _reader(table):
    return tables.Reader(Records(table, tables.conditions_table([]), CONFIG))


def _pick(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


# Learning


def test_learning_is_what_the_probes_saw(trained, pool):
    for population in trained:
        key = population.condition.key
        measured = LEARNING.measure(KEY, [population], pool, CONFIG)
        reader = _reader(measured.table)
        num_rows = NUM_PAIRS
        for subset in ("own", "other", "holdout"):
            for loss in populations.LOSSES:
                curves = reader.cube(key, loss, ("pair", "surrogate", "step"), subset=subset)
                assert curves.shape == (NUM_PAIRS, 2, 3)
                np.testing.assert_array_equal(curves, population.landscapes[subset][loss])
                constant = reader.cube(
                    key, f"constant_{loss}", ("pair", "surrogate"), subset=subset
                )
                np.testing.assert_array_equal(constant, population.constant[subset][loss])
                num_rows += curves.size + constant.size
        for product in ("own_own", "own_other", "other_other"):
            values = reader.cube(key, f"gradient_{product}", ("pair", "surrogate", "step"))
            np.testing.assert_array_equal(values, population.products[product])
            num_rows += values.size
        np.testing.assert_array_equal(reader.cube(key, "finite"), np.ones(NUM_PAIRS))
        assert len(measured.table) == num_rows
        assert set(measured.table["condition"]) == {key}
        assert sorted(measured.table["step"].dropna().unique()) == [0, 5, 30]
        assert not measured.arrays


def test_learning_names_the_pair_that_diverged(trained, pool):
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), trained[0].params)
    broken = trained[0].replace(params=params)
    table = LEARNING.measure(KEY, [broken], pool, CONFIG).table
    assert _reader(table).finite(broken.condition.key).tolist() == [True, False, True]


# Transfer


def test_budgets():
    own = conditions.condition(CONFIG, "mlp")
    noisy = conditions.condition(CONFIG, "mlp", noise_rate=0.2)
    config = _config(attack={"epsilon": 0.1, "budgets": (0.2, 0.05)})
    assert measurements.budgets_of(own, config) == (0.05, 0.1, 0.2)
    assert measurements.budgets_of(noisy, config) == (0.1,)
    assert measurements.budgets_of(own, CONFIG) == (0.05, 0.1)


def test_transfer_has_every_row_once(transferred, trained):
    table, key = transferred.table, trained[0].condition.key
    assert set(table["condition"]) == {key}
    reader = _reader(table)
    both = ("pair", "surrogate", "target", "budget")
    num_rows = 0
    for attack in ("clean", "attack", "noise", "other_example"):
        if attack != "clean":
            num_rows += reader.cube(key, "increase", both, attack=attack, subset="all").size
        for subset in transfer.DENOMINATORS:
            for quantity in ("num_fooled", "num_examples"):
                cube = reader.cube(key, quantity, both, attack=attack, subset=subset)
                assert cube.shape == (NUM_PAIRS, 2, 4, 2)
                assert ((cube >= 0) & (cube <= 40) & (cube == np.round(cube))).all()
                num_rows += cube.size
    for attack in ("noise", "other_example"):
        matched = reader.cube(key, "matched", both[:2] + both[3:], attack=attack)
        assert ((matched > 0.5) & (matched <= 1)).all()
        num_rows += matched.size
    assert len(table) == num_rows


@pytest.fixture(scope="module")
def recomputed(trained, pool):
    """Transfer of one pair at one budget, without the program that is measured."""
    own, permuted = trained
    p, apply_fn = 2, trained[0].apply_fn
    rows = np.asarray(own.halves.s.indices[p])
    x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
    models = [_pick(own.params, p, 0), _pick(own.params, p, 1)]
    models += [_pick(permuted.params, p, 0), _pick(permuted.params, p, 1)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    attack = functools.partial(
        attacks.pgd, threat=attacks.linf(0.1), loss_fn=losses.margin, num_steps=3
    )
    matrix = jax.jit(
        lambda surrogates, targets: transfer.transfer_matrix(
            apply_fn,
            surrogates,
            apply_fn,
            targets,
            jax.random.fold_in(KEY, p),
            x,
            labels,
            attack=attack,
        )
    )(stack(*models[:2]), stack(*models))
    return p, matrix, labels


def test_transfer_of_one_pair_recomputed(transferred, trained, recomputed):
    p, matrix, labels = recomputed
    key, reader = trained[0].condition.key, _reader(transferred.table)
    targets = ("A", "B", "A permuted", "B permuted")
    for k, surrogate in enumerate("AB"):
        for m, target in enumerate(targets):
            where = {"pair": p, "surrogate": surrogate, "target": target, "budget": 0.1}
            clean = matrix.target["clean"]
            for attack in ("attack", "noise", "other_example"):
                rise = float((matrix.target[attack].loss[k, m] - clean.loss[m]).sum())
                stored = reader.cube(key, "increase", attack=attack, subset="all", **where)
                np.testing.assert_allclose(stored, [rise], rtol=1e-3, atol=1e-3)
            fooled = ~np.asarray(matrix.target["attack"].correct[k, m])
            right = np.asarray(clean.correct[m])
            both = right & np.asarray(matrix.surrogate["clean"].correct[k])
            for subset, counted in (
                ("all", np.ones(40, bool)),
                ("target_correct", right),
                ("both_correct", both),
            ):
                named = {"attack": "attack", "subset": subset} | where
                assert reader.cube(key, "num_examples", **named) == [counted.sum()]
                assert reader.cube(key, "num_fooled", **named) == [(counted & fooled).sum()]
    arrays = {name: values[p] for name, values in transferred.arrays.items()}
    np.testing.assert_array_equal(arrays["labels"], labels)
    for d in range(2):  # A→B, then B→A
        target = matrix.target["clean"]
        np.testing.assert_array_equal(arrays["target_correct"][d], target.correct[1 - d])
        np.testing.assert_allclose(arrays["target_loss"][d], target.loss[1 - d], atol=1e-4)
        np.testing.assert_array_equal(
            arrays["target_fooled"][d], ~matrix.target["attack"].correct[d, 1 - d]
        )
        own = matrix.surrogate
        np.testing.assert_array_equal(arrays["surrogate_correct"][d], own["clean"].correct[d])
        np.testing.assert_array_equal(arrays["surrogate_fooled"][d], ~own["attack"].correct[d])


def test_arrays_agree_with_the_table(records, transferred, trained):
    reader, key = tables.Reader(records), trained[0].condition.key
    fooled = reader.directed(key, "num_fooled", attack="attack", budget=0.1)
    np.testing.assert_array_equal(fooled, transferred.arrays["target_fooled"].sum((1, 2)))
    own = reader.directed(key, "num_fooled", attack="attack", budget=0.1, target="own")
    np.testing.assert_array_equal(own, transferred.arrays["surrogate_fooled"].sum((1, 2)))


def test_larger_budgets_and_own_targets_move_more(records, trained):
    reader, key = tables.Reader(records), trained[0].condition.key
    rise = functools.partial(reader.directed, key, "increase", attack="attack")
    own = rise(budget=0.1, target="own")
    assert (own > rise(budget=0.05, target="own")).all()
    assert (own > rise(budget=0.1)).all()
    assert (rise(budget=0.1) > reader.directed(key, "increase", attack="noise", budget=0.1)).all()


def test_a_target_that_diverged_is_not_fooled(trained, transferred, pool):
    one, permuted = trained
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), permuted.params)
    broken = TRANSFER.measure(KEY, [one, permuted.replace(params=params)], pool, CONFIG)
    reader, whole, key = _reader(broken.table), _reader(transferred.table), one.condition.key
    for quantity in ("num_fooled", "num_examples", "increase"):
        which = {"attack": "attack", "subset": "all", "budget": 0.1}
        by = ("pair", "surrogate", "target")
        cube = reader.cube(key, quantity, by, **which)
        gone = np.isnan(cube)
        # Targets in alphabetical order: A, A permuted, B, B permuted; both of the pair leave.
        assert gone[1, :, [1, 3]].all()
        assert gone.sum() == 4
        np.testing.assert_allclose(cube[~gone], whole.cube(key, quantity, by, **which)[~gone])


@pytest.mark.parametrize("name", ["G1", "T1", "T2"])
def test_rules_read_what_is_measured(name, records):
    outcome = studies.available()[name].decide(records)
    for part in outcome.parts:
        assert math.isfinite(part.estimate)
        assert (part.num_pairs, part.num_excluded) == (NUM_PAIRS, 0)


# First order


def test_first_order_is_the_library_called_pair_by_pair(first_order, trained, pool):
    own = trained[0]
    apply_fn = own.apply_fn

    @jax.jit
    def direct(surrogate, target, x, labels):
        return transfer.first_order(
            functools.partial(apply_fn, surrogate),
            functools.partial(apply_fn, target),
            x,
            labels,
            threat=attacks.linf(CONFIG.attack.epsilon_calibration),
        )

    for p in range(NUM_PAIRS):
        rows = np.asarray(own.halves.s.indices[p])
        x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
        for d in range(2):
            models = _pick(own.params, p, d), _pick(own.params, p, 1 - d)
            for name, values in direct(*models, x, labels)._asdict().items():
                assert first_order.arrays[name].shape == (NUM_PAIRS, 2, 40)
                np.testing.assert_allclose(
                    first_order.arrays[name][p, d], values, rtol=1e-4, atol=1e-4
                )
    tau = _reader(first_order.table).cube(own.condition.key, "tau", ("pair", "surrogate"))
    np.testing.assert_allclose(tau, first_order.arrays["tau"].mean(-1), rtol=1e-5)
    assert len(first_order.table) == 2 * NUM_PAIRS


def test_first_order_of_a_diverged_pair_is_undefined_and_quiet(trained, pool, first_order):
    params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), trained[0].params)
    measured = FIRST_ORDER.measure(KEY, [trained[0].replace(params=params)], pool, CONFIG)
    tau = _reader(measured.table).cube(trained[0].condition.key, "tau", ("pair", "surrogate"))
    assert np.isnan(tau).all(-1).tolist() == [False, True, False]
    np.testing.assert_array_equal(measured.arrays["score"][0], first_order.arrays["score"][0])


# Keys


class _Recording:
    """A study that needs measurements which only write down the key they got."""

    def __init__(self, *salts):
        self.id, self.salts, self.seen = "G1", salts, {}

    def needs(self, config):
        one = conditions.condition(config, "mlp")
        return [Request(Measurement(f"salt{s}", s, self._measure(s)), (one,)) for s in self.salts]

    def _measure(self, salt):
        def measure(key, population, pool, config):
            self.seen[salt] = jax.random.key_data(key).tolist()
            table = tables.rows([0.0], {"pair": [0]}, condition=population[0].condition.key)
            return Measured(table.assign(quantity=f"salt{salt}"))

        return measure


def test_a_key_depends_on_seed_and_salt_alone(trained, pool, tmp_path):
    def keys(name, *salts, seed=0):
        config = _config(seed=seed)
        run = Run.create(tmp_path / name, Identity("tiny", config.to_dict(), "none"), 2)
        one = trained[0].replace(condition=conditions.condition(config, "mlp"))
        run.save_population(one)
        study = _Recording(*salts)
        pipeline.measure(run, [study], pool)
        return study.seen

    alone = keys("alone", 101)
    among = keys("among", 103, 101, 102)
    assert among[101] == alone[101]
    assert len({tuple(key) for key in among.values()}) == 3
    assert keys("other", 101, seed=1)[101] != alone[101]


def test_a_measurement_repeats(transferred, trained, pool):
    again = TRANSFER.measure(KEY, trained, pool, CONFIG)
    np.testing.assert_array_equal(again.table["value"], transferred.table["value"])
    other = TRANSFER.measure(jax.random.key(12), trained, pool, CONFIG)
    changed = (other.table["value"] != transferred.table["value"]).to_numpy()
    # The attack is not random; its controls are.
    named = transferred.table["attack"].to_numpy()
    assert not changed[np.isin(named, ["clean", "attack"])].any()
    noise = (named == "noise") & (transferred.table["quantity"] == "increase").to_numpy()
    assert changed[noise].mean() > 0.9
    assert math.isfinite(transferred.table["value"].sum())
