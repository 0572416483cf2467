"""Measurements as labelled arrays: names, what is read of them, and what is stored and exported."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from support import plants

from halfway import populations
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.runtime import pipeline
from halfway.lab.study import conditions, records
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured, Measurement, Records, Request

pytestmark = pytest.mark.quick

MLP = condition(plants.CONFIG, "mlp")
SMALL = dataclasses.replace(MLP, num_pairs=3)


def many(number):
    return tuple(dataclasses.replace(MLP, seed=seed) for seed in range(number))


# Requests


def test_a_request_of_few_conditions_names_them_all():
    few = many(8)
    assert Request(LEARNING, few).id == "-".join(["learning", *(part.id for part in few)])


def test_a_request_of_many_conditions_has_a_name_that_a_file_can_have():
    whole = many(40)
    ids = {Request(LEARNING, part).id for part in (whole, whole[:39], whole[:1] + whole[:0:-1])}
    assert len(ids) == 3  # by what they are, and by their order
    assert all(len(name) < 60 and name.startswith(f"learning-{MLP.id}-") for name in ids)
    assert Request(LEARNING, whole).id in ids


def test_a_measurement_has_a_name_that_files_can_be_told_apart_by():
    for name in ("a-b", "a/b", "a b", ""):
        with pytest.raises(ValueError, match="letters, digits"):
            Measurement(name, lambda context: context)


def test_a_condition_in_a_few_words():
    assert pipeline.label(MLP) == "mlp ρ=0"
    other = dataclasses.replace(MLP, overlap=0.25, shared_start=True, noise_rate=0.4)
    assert pipeline.label(other) == "mlp ρ=0.4 ω=0.25 one start"
    assert pipeline.label(dataclasses.replace(MLP, permuted=True)) == "mlp permuted"


# What is read


def dataset():
    return plants.dataset(
        SMALL,
        {
            "q": (("pair", "model", "step"), np.arange(12.0).reshape(3, 2, 2)),
            "shared": (("step",), np.array([5.0, 6.0])),
        },
        {"fooled": (("pair", "example"), np.array([[True, False], [True, True], [False, True]]))},
        step=(0, 7),
    )


def test_values_are_read_by_label_in_the_order_asked_for():
    measured = Measured(dataset())
    np.testing.assert_array_equal(measured.read("q", step=7, model="B"), [3, 7, 11])
    np.testing.assert_array_equal(
        measured.read("q", "step", "pair", model="A"), [[0, 4, 8], [1, 5, 9]]
    )
    turned = Measured(dataset().isel(step=[1, 0], model=[1, 0]))
    np.testing.assert_array_equal(turned.read("q", step=7, model="B"), [3, 7, 11])
    assert "q" in measured and "other" not in measured


@pytest.mark.parametrize(
    ("name", "dims", "labels"),
    [
        ("q", (), {"step": 7}),  # the model is left over
        ("q", ("pair", "model"), {"step": 3}),
        ("q", ("pair", "model"), {"budget": 3}),
        ("other", (), {}),
    ],
)
def test_what_is_not_there_or_left_over_is_an_error(name, dims, labels):
    with pytest.raises((LookupError, ValueError)):
        Measured(dataset()).read(name, *dims, **labels)


def test_numbers_of_diverged_pairs_are_nan_and_outcomes_stay():
    changed = dataset()
    changed["finite"][1] = False
    measured = Measured(changed)
    assert measured.finite.tolist() == [True, False, True]
    assert np.isnan(measured.read("q", step=0, model="A")).tolist() == [False, True, False]
    np.testing.assert_array_equal(measured.read("shared", "step"), [5, 6])
    assert (
        measured.read("fooled", "pair", "example").tolist() == dataset()["fooled"].values.tolist()
    )
    # What is stored is not touched.
    assert np.isfinite(changed["q"].values).all()


def test_records_know_what_they_hold():
    held = Records(plants.CONFIG, {(LEARNING.name, SMALL.id): dataset()})
    assert held.has(LEARNING, SMALL) and not held.has(LEARNING, MLP)
    assert held.get(LEARNING, SMALL) is held.get(LEARNING, SMALL)
    with pytest.raises(LookupError, match=MLP.id):
        held.get(LEARNING, MLP)


# Storage and export


def test_a_dataset_is_taken_apart_and_made_again():
    made = dataset()
    again = records.from_arrays(*records.to_arrays(made))
    assert again.identical(made)
    assert again["fooled"].dtype == bool and again["q"].dtype == np.float64


def test_a_table_has_a_row_for_each_number():
    other = plants.dataset(MLP, {"n": (("pair",), np.full(MLP.num_pairs, math.nan))})
    table = records.to_table({("b", MLP.id): other, ("a", SMALL.id): dataset()})
    assert list(table.columns[:3]) == ["measurement", "condition", "quantity"]
    assert table.columns[-1] == "value" and {"pair", "model", "step"} <= set(table.columns)
    assert table["measurement"].tolist() == sorted(table["measurement"])
    assert "fooled" not in set(table["quantity"])  # single examples are in the arrays
    rows = table[(table["quantity"] == "q") & (table["step"] == 7) & (table["model"] == "B")]
    assert rows["value"].tolist() == [3, 7, 11] and rows["pair"].tolist() == [0, 1, 2]
    shared = table[table["quantity"] == "shared"]
    assert shared["pair"].isna().all() and shared["value"].tolist() == [5, 6]


def test_labels_that_are_numbers_here_and_words_there_are_stored_as_words(tmp_path):
    def of_target(labels):
        variables = {"x": ("target", np.ones(len(labels))), "finite": ("pair", [True])}
        coords = {"pair": [0], "target": labels}
        return xr.Dataset(variables, coords, {records.NUMBERS: ("x",)})

    table = records.to_table({("a", "c"): of_target([0, 1]), ("b", "c"): of_target(["other"])})
    table.to_parquet(tmp_path / "records.parquet")
    back = pd.read_parquet(tmp_path / "records.parquet")
    assert back["target"].dropna().tolist() == ["0", "1", "other"]


def test_conditions_table_names_every_field():
    config = plants.CONFIG
    listed = [condition(config, "cnn", noise_rate=0.2), conditions.control(config, "mlp")]
    table = records.conditions_table(listed)
    assert table.index.tolist() == [condition.id for condition in listed]
    assert table.index.name == "condition"
    assert set(table.columns) == {f.name for f in dataclasses.fields(populations.Condition)}
    assert table["noise_rate"].tolist() == [0.2, 0.0]
    assert table["permuted"].tolist() == [False, True]
    assert table["architecture"].tolist() == ["cnn", "mlp"]
