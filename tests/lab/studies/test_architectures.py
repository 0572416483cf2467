"""Attacks across architectures: against attacks made one by one, and what the rule reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import losses, plots, populations, stats, transfer
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.studies.t11 import measure as architectures
from halfway.lab.studies.t11 import study as t11
from halfway.lab.studies.t11.measure import CROSSING, NAMES
from halfway.lab.study import plants, tables

KEY = jax.random.key(5)


_config = functools.partial(tiny_run.config, training={"probe_steps": (0, 5, 30)})


CONFIG = _config()
FEW = ("linear", "mlp")
"""Whose programs compile in a moment: the others are models like these to what is tested."""


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def trained(pool):
    every = architectures.settings(CONFIG)
    return {name: populations.train(every[name], pool) for name in FEW}


@pytest.fixture(scope="module")
def measured(trained, pool):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "NAMES", FEW)
        return {
            name: CROSSING.measure(
                KEY, [trained[name], *(o for n, o in trained.items() if n != name)], pool, CONFIG
            )
            for name in FEW
        }


def test_settings_are_five_architectures_on_one_s():
    config = tiny_run.digits()
    found = architectures.settings(config)
    assert tuple(found) == NAMES == tuple(one.architecture for one in found.values())
    assert {one.num_pairs for one in found.values()} == {8}
    assert {one.num_holdout for one in found.values()} == {config.num_holdout}
    assert all(one.common_holdout and one.seed == config.seed for one in found.values())
    assert dict(found["cnn"].model) == {k: v for k, v in config.models["cnn"].items()}
    assert dict(found["transformer"].model)["patch"] == 2
    for pairs, number in ((2, 3), (6, 6), (16, 8), (64, 8)):
        one = architectures.settings(_config(num_pairs=pairs))["linear"]
        assert one.num_pairs == number
    models = {
        "mlp": {"kind": "mlp", "widths": (7,)},
        "residual": {"kind": "residual", "features": (4,)},
    }
    own = _config(models=models, dataset="mnist")
    found = architectures.settings(own)
    assert dict(found["residual"].model)["features"] == (4,)
    assert dict(found["mlp"].model)["widths"] == (7,)
    assert dict(found["transformer"].model)["patch"] == 4


def test_all_five_take_the_images(pool):
    for one in architectures.settings(CONFIG).values():
        populations.validate(one, pool)


def test_cells_are_those_of_attacks_made_one_by_one(trained, measured, pool):
    rows = np.asarray(trained["mlp"].halves.s.indices[0])
    x, y = jnp.asarray(pool.images[rows], jnp.float32), jnp.asarray(pool.labels[rows])
    attack = attack_of(settings_of(CONFIG), CONFIG.attack.epsilon)

    def model(name, p, side):
        params = jax.tree.map(lambda leaf: leaf[p, side], trained[name].params)
        return functools.partial(trained[name].apply_fn, params)

    total = 0
    for surrogate, target, i, j in (
        ("linear", "mlp", 0, 1),
        ("mlp", "linear", 2, 0),
        ("mlp", "mlp", 1, 2),
    ):
        arrays, place = measured[surrogate].arrays, (i, FEW.index(target), j)
        one, other = model(surrogate, i, 0), model(target, j, 1)
        points = attack(one, KEY, x, y).adversarial
        both = (one(x).argmax(-1) == y) & (other(x).argmax(-1) == y)
        assert arrays["num_examples"][place] == int(both.sum()) > 0
        fooled = int((both & (other(points).argmax(-1) != y)).sum())
        assert arrays["num_fooled"][place] == pytest.approx(fooled, abs=1)
        for name, fn, value in (
            ("increase", other, arrays["increase"][place]),
            ("own_increase", one, arrays["own_increase"][i]),
        ):
            expected = float((losses.margin(fn(points), y) - losses.margin(fn(x), y)).sum())
            assert value == pytest.approx(expected, rel=1e-3), name
        total += fooled
        noise = transfer.matched_noise(jax.random.split(KEY, 3)[i], x, points).points
        lost = int((both & (other(noise).argmax(-1) != y)).sum())
        assert arrays["num_fooled_noise"][place] == pytest.approx(lost, abs=1)
    assert total > 0


def test_a_surrogate_that_is_also_first_target_is_the_same_model(trained, measured):
    """The order of populations does not matter to the order of the arrays."""
    for name in FEW:
        arrays = measured[name].arrays
        assert arrays["num_fooled"].shape == (3, len(FEW), 3)
        assert (arrays["num_fooled"] <= arrays["num_examples"]).all()
        table = tables.normalize(measured[name].table)
        assert set(table["condition"]) == {trained[name].condition.key}


def _records():
    return t11.STUDY.plant(np.random.default_rng(0), 1.0)


def test_cells_leave_out_pairs_and_what_diverged():
    records = _records()
    every = architectures.settings(plants.CONFIG)
    cells = t11.Cells(records)
    values = cells.read("linear", "cnn", "num_fooled")
    array = records.arrays["crossing", every["linear"].key]["num_fooled"]
    assert np.isnan(np.diag(values)).all()
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_array_equal(values[off], array[:, NAMES.index("cnn")][off])
    assert cells.rate("linear", "cnn")[-3:] == (8, 8, 0)
    table = records.table.copy()
    lost = (table["condition"] == every["cnn"].key) & (table["pair"] == 5)
    table.loc[lost & (table["quantity"] == "finite"), "value"] = 0.0
    cells = t11.Cells(dataclasses.replace(records, table=table))
    assert np.isnan(cells.read("linear", "cnn", "num_fooled")[:, 5]).all()
    assert np.isnan(cells.read("cnn", "mlp", "own_increase")[5]).all()
    assert np.isfinite(cells.read("linear", "mlp", "num_fooled")).sum() == 56
    assert cells.rate("linear", "cnn")[-3:] == (8, 7, 1)
    assert cells.rate("cnn", "linear")[-3:] == (7, 8, 1)


def test_the_rule_reads_one_cell_a_test():
    records = _records()
    parts = {part.name: part for part in t11.STUDY.decide(records).parts}
    assert len(parts) == 20
    assert not any(name.split(" to ")[0] == name.split(" to ")[1] for name in parts)
    every = architectures.settings(plants.CONFIG)
    arrays = records.arrays["crossing", every["mlp"].key]
    off, place = ~np.eye(8, dtype=bool), NAMES.index("residual")
    num, noise, den = (
        np.where(off, arrays[name][:, place], np.nan)
        for name in ("num_fooled", "num_fooled_noise", "num_examples")
    )
    expected = stats.crossed_ratio(num - noise, den)
    part = parts["mlp to residual"]
    assert (part.estimate, part.low, part.high) == pytest.approx(expected[:3])
    assert (part.num_pairs, part.num_excluded) == (16, 0)


def test_a_matrix_shows_its_intervals():
    matrix = np.array([[[0.5, 0.4, 0.6], [0.1, -0.1, 0.3]], [[0.2, -np.inf, np.inf], [np.nan] * 3]])
    ax = plots.interval_matrix(matrix, names=["a", "b"], label="share")
    words = sorted(text.get_text() for text in ax.texts)
    assert words == sorted(["0.50", "[0.40, 0.60]", "0.10", "[−0.10, 0.30]", "0.20"])
    assert len(ax.patches) == 2
    (image,) = ax.images
    assert image.get_clim() == (0, 0.5)
    assert {t.get_color() for t in ax.texts} <= {plots.INK, plots.PAPER}
    assert not plots.interval_matrix(matrix, names=["a", "b"], label="share", framed=False).patches
    with pytest.raises(ValueError, match=r"for 3 by 3 names; \[K, M, 3\] is needed"):
        plots.interval_matrix(matrix, names=["a", "b", "c"], label="share")
