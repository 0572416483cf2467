"""Attacks across architectures: against attacks made one by one, and what the rule reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t11 as planted
from support import plants, tiny_run

from halfway import attacks, losses, populations, stats, transfer
from halfway.keys import named_key
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t11 import measure as architectures
from halfway.lab.studies.t11 import study as t11
from halfway.lab.studies.t11.measure import ARCHITECTURES, NAMES
from halfway.lab.study.records import Measured, Records

KEY = jax.random.key(5)


# Six models of each, of the shape that other tests train too.
_config = functools.partial(
    tiny_run.config, num_holdout=50, training={"probe_steps": (0, 40)}, num_pairs=6
)
CONFIG = _config()
FEW = ("linear", "mlp")
"""Whose programs compile in a moment: the others are models like these to what is tested."""


@pytest.fixture(scope="module")
def trained(train):
    conditions = architectures.compared_on(CONFIG)
    return {name: train(conditions[name]) for name in FEW}


@pytest.fixture(scope="module")
def nothing(train):
    """Surrogates that trained on permuted labels."""
    conditions = architectures.compared_on(CONFIG)
    return {name: train(architectures.control_of(conditions[name])) for name in FEW}


@pytest.fixture(scope="module")
def measured(trained, nothing, pool):
    def measure(name):
        others = [population for other, population in trained.items() if other != name]
        members = trained[name], nothing[name], *others
        return ARCHITECTURES.measure(Context(KEY, members, pool, CONFIG))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "NAMES", FEW)
        return {name: Measured(measure(name)) for name in FEW}


@pytest.mark.quick
def test_conditions_are_five_architectures_on_one_s():
    config = tiny_run.digits()
    conditions = architectures.compared_on(config)
    assert tuple(conditions) == NAMES == tuple(c.architecture for c in conditions.values())
    assert {c.num_pairs for c in conditions.values()} == {16}
    assert {c.num_holdout for c in conditions.values()} == {config.num_holdout}
    assert all(c.common_holdout and c.seed == config.seed for c in conditions.values())
    assert dict(conditions["cnn"].model) == {k: v for k, v in config.models["cnn"].items()}
    assert dict(conditions["transformer"].model)["patch"] == 2
    for pairs, number in ((2, 3), (6, 6), (16, 16), (64, 16)):
        condition = architectures.compared_on(_config(num_pairs=pairs))["linear"]
        assert condition.num_pairs == number
    models = {
        "mlp": {"kind": "mlp", "widths": (7,)},
        "residual": {"kind": "residual", "features": (4,)},
    }
    conditions = architectures.compared_on(_config(models=models, dataset="mnist"))
    assert dict(conditions["residual"].model)["features"] == (4,)
    assert dict(conditions["mlp"].model)["widths"] == (7,)
    assert dict(conditions["transformer"].model)["patch"] == 4


def test_all_five_take_the_images(pool):
    for condition in architectures.compared_on(CONFIG).values():
        populations.validate(condition, pool)


def test_outcomes_are_those_of_attacks_made_one_by_one(trained, nothing, measured, pool):
    rows = np.asarray(trained["mlp"].halves.s.indices[0])
    x, y = jnp.asarray(pool.images[rows], jnp.float32), jnp.asarray(pool.labels[rows])

    logits = {name: jax.jit(population.apply_fn) for name, population in trained.items()}

    def params_of(population, p, side):
        return jax.tree.map(lambda leaf: leaf[p, side], population.params)

    @functools.partial(jax.jit, static_argnums=0)
    def attack(apply_fn, params):
        return attacks.pgd(
            functools.partial(apply_fn, params),
            KEY,
            x,
            y,
            threat=attacks.linf(CONFIG.attack.epsilon),
            loss_fn=losses.margin,
            num_steps=CONFIG.attack.num_steps,
            relative_step=CONFIG.attack.relative_step,
        ).adversarial

    @jax.jit
    def move(key, points):
        return transfer.other_example(key, x, points).points

    total = 0
    for surrogate, target, i, j in (
        ("linear", "mlp", 0, 1),
        ("mlp", "linear", 2, 0),
        ("mlp", "mlp", 1, 2),
    ):
        apply_fn = trained[surrogate].apply_fn
        cell = measured[surrogate].dataset.sel(pair=i, architecture=target, target=j)
        first, second = params_of(trained[surrogate], i, 0), params_of(trained[target], j, 1)
        attacked = functools.partial(logits[surrogate], first)
        other = functools.partial(logits[target], second)
        points = attack(apply_fn, first)
        right = attacked(x).argmax(-1) == y
        np.testing.assert_array_equal(cell["right"], right)
        np.testing.assert_array_equal(cell["target_right"], other(x).argmax(-1) == y)
        key = jax.random.split(named_key(KEY, "other example"), 6)[i]
        made = {
            "attack": points,
            "other_example": move(key, points),
            "permuted": attack(apply_fn, params_of(nothing[surrogate], i, 0)),
        }
        for name, where in made.items():
            errs = np.asarray(other(where).argmax(-1) != y)
            # An example on a boundary may fall on either side.
            assert (cell["wrong"].sel(points=name).values != errs).sum() <= 1, name
            total += errs.sum()
        for name, fn in (("increase", other), ("own_increase", attacked)):
            expected = float((losses.margin(fn(points), y) - losses.margin(fn(x), y)).sum())
            assert float(cell[name]) == pytest.approx(expected, rel=1e-3), name
        assert cell["own_examples"] == int(right.sum())
        lost = int((right & (attacked(points).argmax(-1) != y)).sum())
        assert cell["own_fooled"] == pytest.approx(lost, abs=1)
    assert total > 0


def test_every_surrogate_meets_every_target(measured):
    for crossed in measured.values():
        wrong = crossed.read("wrong", "pair", "points", "architecture", "target", "example")
        assert wrong.shape == (6, 3, len(FEW), 6, 50)
        assert crossed.read("target_right", "architecture", "target", "example").shape[:2] == (2, 6)
        assert (crossed.read("own_fooled") <= crossed.read("own_examples")).all()


# What the rule reads


@pytest.fixture(scope="module")
def records():
    return planted.plant(np.random.default_rng(0), 1.0)


def _dataset(records, name):
    return records.datasets[ARCHITECTURES.name, architectures.compared_on(plants.CONFIG)[name].id]


def test_cells_leave_out_pairs_and_what_diverged(records):
    cells = t11.cells(records)
    cell, place = cells["linear", "cnn"], {"points": "attack", "architecture": "cnn"}
    wrong = _dataset(records, "linear")["wrong"].sel(place).transpose("pair", "target", "example")
    np.testing.assert_array_equal(cell.wrong["attack"], wrong)
    assert np.isnan(np.diag(cell.increase)).all()
    for counted in cell.counted.values():
        np.testing.assert_array_equal(counted, ~np.eye(16, dtype=bool))
    assert _counts(t11.fooling_rate(cell)) == (16, 16, 0)

    conditions = architectures.compared_on(plants.CONFIG)
    lost = _without(records, ARCHITECTURES, conditions["cnn"], 5)
    cells = t11.cells(lost)
    assert not cells["linear", "cnn"].counted["attack"][:, 5].any()
    assert np.isnan(cells["cnn", "mlp"].own_increase[5]).all()
    assert cells["linear", "mlp"].counted["attack"].sum() == 240
    assert _counts(t11.fooling_rate(cells["linear", "cnn"])) == (16, 15, 1)
    assert _counts(t11.fooling_rate(cells["cnn", "linear"])) == (15, 16, 1)

    # A surrogate that learned nothing and diverged is missed by its own comparison alone.
    control = architectures.control_of(conditions["linear"])
    cells = t11.cells(_without(records, LEARNING, control, 3))
    leads = [t11.lead(cells["linear", "cnn"], name) for name in t11.CONTROLS]
    assert [_counts(lead) for lead in leads] == [(16, 16, 0), (15, 16, 1)]


def _counts(crossed):
    return crossed.num_surrogates, crossed.num_targets, crossed.num_excluded


def _without(records, measurement, condition, pair):
    """Records in which a pair of a condition diverged."""
    place = measurement.name, condition.id
    lost = records.datasets[place].copy(deep=True)
    lost["finite"][pair] = False
    return Records(records.config, records.datasets | {place: lost})


def test_the_rule_reads_two_comparisons_of_each_cell(records):
    parts = {part.name: part for part in t11.STUDY.decide(records).parts}
    assert len(parts) == 40
    names = [name.split(",")[0].split(" to ") for name in parts]
    assert not any(surrogate == target for surrogate, target in names)
    dataset = _dataset(records, "mlp").sel(architecture="residual")
    right = dataset["right"].values[:, None] & dataset["target_right"].values
    wrong = {
        name: dataset["wrong"].sel(points=name).transpose("pair", "target", "example").values
        for name in architectures.POINTS
    }
    counted = np.where(np.eye(16, dtype=bool)[..., None] | ~right, np.nan, 1.0)
    for control, words in t11.CONTROLS.items():
        part = parts[f"mlp to residual, {words}"]
        outcomes = wrong["attack"].astype(float) - wrong[control]
        # Means over what both had right: the same without the others.
        estimate = np.nanmean(outcomes * counted)
        assert part.estimate == pytest.approx(estimate)
        numbers = np.where(np.eye(16, dtype=bool)[..., None], np.nan, right)
        expected = stats.crossed_ratio(outcomes * right, numbers)
        assert (part.low, part.high) == pytest.approx(expected[1:3])
        assert (part.num_pairs, part.num_excluded) == (32, 0)
