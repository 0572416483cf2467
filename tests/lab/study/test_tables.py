"""Records: how rows are written and read back, with meeting coefficients counted by hand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from halfway import populations
from halfway.lab.study import conditions, plants, tables
from halfway.lab.study.protocol import COLUMNS, Records
from halfway.lab.study.tables import Reader

NAN = math.nan
KEY = "c0"


def _records(*frames):
    return Records(tables.concat(frames), pd.DataFrame(), plants.CONFIG)


def _shuffled(records, seed=0):
    table = records.table.sample(frac=1, random_state=seed, ignore_index=True)
    return dataclasses.replace(records, table=table)


# Writing


def test_rows_hold_one_number_each():
    values = np.arange(6.0).reshape(3, 2)
    table = tables.rows(
        values,
        {"pair": range(3), "surrogate": tables.HALVES},
        condition=KEY,
        quantity="q",
        budget=0.1,
    )
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 6
    for _, row in table.iterrows():
        assert row["value"] == values[row["pair"], "AB".index(row["surrogate"])]
        assert (row["condition"], row["quantity"], row["budget"]) == (KEY, "q", 0.1)
        assert row[["target", "attack", "step", "subset"]].isna().all()


def test_rows_of_another_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        tables.rows(np.zeros((2, 3)), {"pair": range(3), "surrogate": tables.HALVES})


def test_types_do_not_depend_on_what_is_in_the_columns():
    whole = tables.rows(np.ones((1, 1)), {"pair": [0], "step": [5]}, condition=KEY, quantity="q")
    bare = tables.rows(np.ones(1, np.float32), {"pair": [0]})
    nothing = tables.concat([])
    both = tables.concat([whole, bare])
    for table in (whole, bare, nothing, both):
        assert list(table.columns) == list(COLUMNS)
        kinds = {name: str(table[name].dtype) for name in COLUMNS}
        assert {kinds["pair"], kinds["step"]} == {"Int64"}
        assert {kinds["budget"], kinds["value"]} == {"float64"}
        assert {kinds[name] for name in ("condition", "surrogate", "quantity")} == {"string"}
    assert len(nothing) == 0
    assert both["pair"].tolist() == [0, 0]
    assert both.index.tolist() == [0, 1]
    assert both["step"].isna().tolist() == [False, True]


def test_normalize_does_not_change_its_argument():
    table = pd.DataFrame({"value": [1], "pair": [2]})
    tables.normalize(table)
    assert list(table.columns) == ["value", "pair"]
    assert table["pair"].dtype == np.int64


def _mixed():
    """Rows of every kind: with and without steps, budgets and targets, and a value of NaN."""
    pair = {"pair": range(3)}
    return tables.concat(
        [
            tables.rows([1.0, 0.0, 1.0], pair, condition=KEY, quantity="finite"),
            tables.rows(
                [[[0.1, NAN]], [[0.3, 0.4]], [[0.5, 0.6]]],
                pair | {"surrogate": ["A"], "step": [0, 7]},
                condition=KEY,
                quantity="error",
                subset="own",
            ),
            tables.rows(
                [1.0, 2.0, 1e-30],
                pair,
                condition="c1",
                quantity="increase",
                attack="noise",
                target="B permuted",
                budget=0.1,
            ),
        ]
    )


def test_parquet_gives_the_same_table_and_the_same_arrays(tmp_path):
    table = _mixed()
    table.to_parquet(tmp_path / "records.parquet")
    back = tables.normalize(pd.read_parquet(tmp_path / "records.parquet"))
    pd.testing.assert_frame_equal(back, table)
    first, second = (Reader(Records(t, pd.DataFrame(), plants.CONFIG)) for t in (table, back))
    for condition, quantity, by, which in (
        (KEY, "finite", ("pair",), {}),
        (KEY, "error", ("pair", "surrogate", "step"), {"subset": "own"}),
        ("c1", "increase", ("pair",), {"attack": "noise", "target": "B permuted", "budget": 0.1}),
    ):
        np.testing.assert_array_equal(
            first.cube(condition, quantity, by, **which),
            second.cube(condition, quantity, by, **which),
        )


def test_conditions_table_names_every_field():
    config = plants.CONFIG
    listed = [
        conditions.condition(config, "cnn", noise_rate=0.2),
        conditions.control(config, "mlp"),
    ]
    table = tables.conditions_table(listed)
    assert table.index.tolist() == [one.key for one in listed]
    assert table.index.name == "condition"
    assert set(table.columns) == {f.name for f in dataclasses.fields(populations.Condition)}
    assert table["noise_rate"].tolist() == [0.2, 0.0]
    assert table["permuted"].tolist() == [False, True]
    assert table["architecture"].tolist() == ["cnn", "mlp"]


# Cubes


def _grid():
    values = np.arange(12.0).reshape(3, 2, 2)
    axes = {"pair": [2, 0, 1], "surrogate": ["B", "A"], "step": [10, 9]}
    return values, tables.rows(values, axes, condition=KEY, quantity="q", subset="own")


def test_cube_orders_its_labels_whatever_the_order_of_rows():
    values, table = _grid()
    other = tables.rows(np.full(3, 99.0), {"pair": range(3)}, condition="c1", quantity="q")
    records = _records(table, other)
    # Ascending: pairs 0, 1, 2 were given as 2, 0, 1; halves A, B and steps 9, 10 the other way.
    expected = values[[1, 2, 0]][:, ::-1, ::-1]
    for seed in range(3):
        reader = Reader(_shuffled(records, seed))
        np.testing.assert_array_equal(
            reader.cube(KEY, "q", ("pair", "surrogate", "step")), expected
        )
        np.testing.assert_array_equal(
            reader.cube(KEY, "q", ("step", "pair"), surrogate="B", subset="own"), expected[:, 1].T
        )
        np.testing.assert_array_equal(
            reader.cube(KEY, "q", step=10, surrogate="A"), expected[:, 0, 1]
        )


def test_cube_refuses_holes():
    _, table = _grid()
    for row in (0, 5, 11):
        with pytest.raises(LookupError, match="11 rows do not fill"):
            Reader(_records(table.drop(index=row))).cube(KEY, "q", ("pair", "surrogate", "step"))


def test_cube_refuses_doubles():
    _, table = _grid()
    with pytest.raises(LookupError, match="13 rows"):
        Reader(_records(table, table.iloc[[4]])).cube(KEY, "q", ("pair", "surrogate", "step"))
    # A hole and a double: as many rows as places.
    mended = _records(table.drop(index=3), table.iloc[[4]])
    with pytest.raises(LookupError, match="12 rows"):
        Reader(mended).cube(KEY, "q", ("pair", "surrogate", "step"))
    # An axis that was forgotten.
    with pytest.raises(LookupError):
        Reader(_records(table)).cube(KEY, "q", ("pair", "surrogate"))


def test_cube_refuses_what_is_not_there():
    reader = Reader(_records(_grid()[1]))
    for condition, quantity, which in (
        ("c9", "q", {}),
        (KEY, "other", {}),
        (KEY, "q", {"subset": "holdout"}),
        (KEY, "q", {"attack": "noise"}),
        (KEY, "q", {"budget": 0.1}),
    ):
        with pytest.raises(LookupError, match="no "):
            reader.cube(condition, quantity, ("pair", "surrogate", "step"), **which)
    assert reader.has(KEY, "q")
    assert not reader.has(KEY, "other")
    assert not reader.has("c9", "q")
    with pytest.raises(LookupError):
        Reader(_records()).cube(KEY, "q")


# Coefficients

ERROR = {
    # [P, 2, T] at steps 0, 5, 9
    "own": [[[0.9, 0.2, 0.0], [0.8, 0.4, 0.1]], [[0.9, 0.3, 0.2], [0.9, 0.5, 0.0]]],
    "other": [[[0.9, 0.4, 0.3], [0.9, 0.5, 0.6]], [[0.8, 0.6, 0.5], [0.9, 0.7, 0.4]]],
}
CONSTANT = {"own": [[0.9, 0.8], [0.9, 0.9]], "other": [[0.9, 0.9], [0.8, 0.9]]}
# The least cross-entropy of S: pair 0 at 5 and 9, pair 1 at 0 and 5.
HOLDOUT = [[[2.0, 1.0, 3.0], [2.0, 1.5, 1.0]], [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]]


def _learned(finite=(1.0, 1.0), error=ERROR, holdout=HOLDOUT):
    pair, both = {"pair": range(2)}, {"pair": range(2), "surrogate": tables.HALVES}
    axes = both | {"step": (0, 5, 9)}
    named = {"condition": KEY}
    frames = [tables.rows(finite, pair, quantity="finite", **named)]
    for subset in ("own", "other"):
        frames += [
            tables.rows(error[subset], axes, quantity="error", subset=subset, **named),
            tables.rows(CONSTANT[subset], both, quantity="constant_error", subset=subset, **named),
        ]
    frames.append(tables.rows(holdout, axes, quantity="cross_entropy", subset="holdout", **named))
    return _records(*frames)


@pytest.mark.parametrize("shuffle", [False, True])
def test_meeting_terms_by_hand(shuffle):
    records = _learned()
    reader = Reader(_shuffled(records) if shuffle else records)
    end = reader.terms(KEY)
    # Both directions summed: (.9 − .3) + (.9 − .6); (.9 − 0) + (.8 − .1).
    np.testing.assert_allclose(end.numerators, [0.9, 0.3 + 0.5])
    np.testing.assert_allclose(end.denominators, [1.6, 0.7 + 0.9])
    best = reader.terms(KEY, at="best")
    # Model by model: pair 0 at steps 5 and 9, pair 1 at 0 and 5.
    np.testing.assert_allclose(best.numerators, [0.5 + 0.3, 0.0 + 0.2], atol=1e-12)
    np.testing.assert_allclose(best.denominators, [0.7 + 0.7, 0.0 + 0.4], atol=1e-12)


def test_gap_and_training_accuracy_by_hand():
    reader = Reader(_learned())
    np.testing.assert_allclose(reader.gap(KEY), [(0.3 + 0.5) / 2, (0.3 + 0.4) / 2])
    np.testing.assert_allclose(reader.training_accuracy(KEY), [0.95, 0.9])


def test_a_diverged_pair_leaves_even_if_its_error_looks_finite():
    reader = Reader(_learned(finite=(1.0, 0.0)))
    assert reader.finite(KEY).tolist() == [True, False]
    for at in ("end", "best"):
        for column in reader.terms(KEY, at=at):
            assert np.isnan(column).tolist() == [False, True]
    assert np.isnan(reader.gap(KEY)).tolist() == [False, True]
    assert np.isnan(reader.training_accuracy(KEY)).tolist() == [False, True]


def test_nan_losses_of_a_diverged_pair_move_no_other():
    broken = {name: np.array(values) for name, values in ERROR.items()}
    holdout = np.array(HOLDOUT)
    for values in (*broken.values(), holdout):
        values[1, 0, 1:] = NAN
    for at in ("end", "best"):
        terms = Reader(_learned((1.0, 0.0), broken, holdout)).terms(KEY, at=at)
        whole = Reader(_learned()).terms(KEY, at=at)
        for one, other in zip(terms, whole, strict=True):
            assert one[0] == other[0]
            assert np.isnan(one[1])


def _transferred(finite=(1.0, 1.0)):
    """Value = 10^surrogate · target + pair, surrogate A being 0, B 1, the targets 1 to 4."""
    targets = ("A", "B", "A permuted", "B permuted")
    values = np.arange(2)[:, None, None] + np.outer([1, 10], [1, 2, 3, 4])
    axes = {"pair": range(2), "surrogate": tables.HALVES, "target": targets}
    frames = [tables.rows(finite, {"pair": range(2)}, condition=KEY, quantity="finite")]
    for attack, subset, budget, shift in (
        ("attack", "all", 0.1, 0.0),
        ("attack", "all", 0.2, 0.1),
        ("attack", "both_correct", 0.1, 0.2),
        ("noise", "all", 0.1, 0.3),
    ):
        frames.append(
            tables.rows(
                values + shift,
                axes,
                condition=KEY,
                quantity="increase",
                attack=attack,
                subset=subset,
                budget=budget,
            )
        )
    return _records(*frames)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"target": "other"}, 2 + 10),
        ({"target": "own"}, 1 + 20),
        ({"target": "permuted"}, 4 + 30),
        ({"budget": 0.2}, 2 + 10 + 2 * 0.1),
        ({"subset": "both_correct"}, 2 + 10 + 2 * 0.2),
        ({"attack": "noise"}, 2 + 10 + 2 * 0.3),
    ],
)
def test_directed_sums_both_directions(which, expected):
    reader = Reader(_shuffled(_transferred()))
    sums = reader.directed(KEY, "increase", **({"attack": "attack", "budget": 0.1} | which))
    np.testing.assert_allclose(sums, [expected, expected + 2])


def test_directed_leaves_out_diverged_pairs_and_refuses_other_budgets():
    reader = Reader(_transferred((0.0, 1.0)))
    sums = reader.directed(KEY, "increase", attack="attack", budget=0.1)
    assert np.isnan(sums).tolist() == [True, False]
    with pytest.raises(LookupError):
        reader.directed(KEY, "increase", attack="attack", budget=0.15)


def test_a_stack_is_cubes_of_one_shape():
    rng = np.random.default_rng(0)
    axes = {"pair": range(3), "surrogate": tables.HALVES}
    values = rng.normal(size=(2, 4, 3, 2))
    frames = [
        tables.rows(values[q, c], axes, condition=f"c{c}", quantity=f"q{q}", subset=subset)
        for q in range(2)
        for c in range(4)
        for subset in ("own", "other")
    ]
    reader = Reader(_shuffled(_records(*frames)))
    keys = ["c2", "c0", "c3"]
    found = reader.stack(keys, ["q1", "q0"], ("pair", "surrogate"), subset="own")
    np.testing.assert_array_equal(found, values[::-1][:, [2, 0, 3]])
    one = reader.cube("c3", "q0", ("pair", "surrogate"), subset="own")
    np.testing.assert_array_equal(one, found[1, 2])
    with pytest.raises(LookupError, match="no 'q2' of condition c0"):
        reader.stack(["c0", "c1"], ["q0", "q2"], ("pair", "surrogate"), subset="own")
    with pytest.raises(LookupError, match="do not fill"):
        reader.stack(keys, ["q0"], ("pair",), subset="own")
    fewer = tables.rows(np.ones(2), {"pair": range(2)}, condition="c9", quantity="q0")
    short = _records(*frames, fewer)
    with pytest.raises(LookupError, match=r"'q0' of condition c0, c9"):
        Reader(short).stack(["c0", "c9"], ["q0"])
