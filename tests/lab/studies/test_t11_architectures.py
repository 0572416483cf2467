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
def measured(trained, pool):
    def measure(name):
        others = [population for other, population in trained.items() if other != name]
        return ARCHITECTURES.measure(Context(KEY, (trained[name], *others), pool, CONFIG))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "NAMES", FEW)
        return {name: Measured(measure(name)) for name in FEW}


@pytest.mark.quick
def test_conditions_are_five_architectures_on_one_s():
    config = tiny_run.digits()
    conditions = architectures.compared_on(config)
    assert tuple(conditions) == NAMES == tuple(c.architecture for c in conditions.values())
    assert {c.num_pairs for c in conditions.values()} == {8}
    assert {c.num_holdout for c in conditions.values()} == {config.num_holdout}
    assert all(c.common_holdout and c.seed == config.seed for c in conditions.values())
    assert dict(conditions["cnn"].model) == {k: v for k, v in config.models["cnn"].items()}
    assert dict(conditions["transformer"].model)["patch"] == 2
    for pairs, number in ((2, 3), (6, 6), (16, 8), (64, 8)):
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


def test_cells_are_those_of_attacks_made_one_by_one(trained, measured, pool):
    rows = np.asarray(trained["mlp"].halves.s.indices[0])
    x, y = jnp.asarray(pool.images[rows], jnp.float32), jnp.asarray(pool.labels[rows])

    logits = {name: jax.jit(population.apply_fn) for name, population in trained.items()}

    def params_of(name, p, side):
        return jax.tree.map(lambda leaf: leaf[p, side], trained[name].params)

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
    def noise_of(key, points):
        return transfer.matched_noise(key, x, points).points

    total = 0
    for surrogate, target, i, j in (
        ("linear", "mlp", 0, 1),
        ("mlp", "linear", 2, 0),
        ("mlp", "mlp", 1, 2),
    ):
        dataset = measured[surrogate].dataset
        cell = dataset.sel(pair=i, architecture=target, target=j)
        first, second = params_of(surrogate, i, 0), params_of(target, j, 1)
        attacked = functools.partial(logits[surrogate], first)
        other = functools.partial(logits[target], second)
        points = attack(trained[surrogate].apply_fn, first)
        right = attacked(x).argmax(-1) == y
        both = right & (other(x).argmax(-1) == y)
        assert cell["num_examples"] == int(both.sum()) > 0
        fooled = int((both & (other(points).argmax(-1) != y)).sum())
        assert cell["num_fooled"].sel(points="attack") == pytest.approx(fooled, abs=1)
        for name, fn in (("increase", other), ("own_increase", attacked)):
            expected = float((losses.margin(fn(points), y) - losses.margin(fn(x), y)).sum())
            assert float(cell[name]) == pytest.approx(expected, rel=1e-3), name
        assert cell["own_examples"] == int(right.sum())
        lost = int((right & (attacked(points).argmax(-1) != y)).sum())
        assert cell["own_fooled"] == pytest.approx(lost, abs=1)
        total += fooled
        key = jax.random.split(named_key(KEY, "noise"), 6)[i]
        noise = noise_of(key, points)
        lost = int((both & (other(noise).argmax(-1) != y)).sum())
        assert cell["num_fooled"].sel(points="noise") == pytest.approx(lost, abs=1)
    assert total > 0


def test_every_surrogate_meets_every_target(measured):
    for crossed in measured.values():
        dims = "pair", "points", "architecture", "target"
        fooled = crossed.read("num_fooled", *dims)
        assert fooled.shape == (6, 2, len(FEW), 6)
        number = crossed.read("num_examples", "pair", "architecture", "target")
        assert (fooled <= number[:, None]).all()
        assert (crossed.read("own_fooled") <= crossed.read("own_examples")).all()


# What the rule reads


@pytest.fixture(scope="module")
def records():
    return planted.plant(np.random.default_rng(0), 1.0)


def _dataset(records, name):
    return records.datasets[ARCHITECTURES.name, architectures.compared_on(plants.CONFIG)[name].id]


def test_cells_leave_out_pairs_and_what_diverged(records):
    cells = t11.cells(records)
    values = cells["linear", "cnn"].num_fooled
    array = _dataset(records, "linear")["num_fooled"].sel(points="attack", architecture="cnn")
    assert np.isnan(np.diag(values)).all()
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_array_equal(values[off], array.transpose("pair", "target").values[off])
    assert t11.fooling_rate(cells["linear", "cnn"])[-4:] == (8, 8, 0, 0)
    lost = _dataset(records, "cnn").copy(deep=True)
    lost["finite"][5] = False
    place = ARCHITECTURES.name, architectures.compared_on(plants.CONFIG)["cnn"].id
    cells = t11.cells(Records(records.config, records.datasets | {place: lost}))
    assert np.isnan(cells["linear", "cnn"].num_fooled[:, 5]).all()
    assert np.isnan(cells["cnn", "mlp"].own_increase[5]).all()
    assert np.isfinite(cells["linear", "mlp"].num_fooled).sum() == 56
    assert t11.fooling_rate(cells["linear", "cnn"])[-4:] == (8, 7, 0, 1)
    assert t11.fooling_rate(cells["cnn", "linear"])[-4:] == (7, 8, 0, 1)


def test_the_rule_reads_one_cell_a_test(records):
    parts = {part.name: part for part in t11.STUDY.decide(records).parts}
    assert len(parts) == 20
    assert not any(name.split(" to ")[0] == name.split(" to ")[1] for name in parts)
    dataset = _dataset(records, "mlp").sel(architecture="residual")
    fooled, noise, number = (
        np.where(np.eye(8, dtype=bool), np.nan, values.transpose("pair", "target").values)
        for values in (
            dataset["num_fooled"].sel(points="attack"),
            dataset["num_fooled"].sel(points="noise"),
            dataset["num_examples"],
        )
    )
    expected = stats.crossed_ratio(fooled - noise, number)
    part = parts["mlp to residual"]
    assert (part.estimate, part.low, part.high) == pytest.approx(expected[:3])
    assert (part.num_pairs, part.num_excluded) == (16, 0)
