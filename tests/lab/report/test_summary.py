"""The overview of all conditions, on records whose coefficients are known exactly."""

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.text import Text
from support import tiny_run

from halfway import transfer
from halfway.lab.report import summary
from halfway.lab.study import conditions, tables
from halfway.lab.study.protocol import Records

NUM_PAIRS, NUM_HOLDOUT = 4, 50
EPSILON = 0.1
NUMBER = r"−?(\d+(\.\d+)?|∞)( × 10\^−?\d+)?"
ESTIMATE = re.compile(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]( × 10\^−?\d+)?")


def _config():
    return tiny_run.digits(
        num_pairs=NUM_PAIRS, num_holdout=NUM_HOLDOUT, noise_rates=(0.0, 0.5, 1.0)
    )


CONFIG = _config()
MEETING = {("mlp", 0.0): 0.9, ("mlp", 0.5): 0.3, ("cnn", 0.0): 0.95, ("cnn", 0.5): 0.35}
"""Planted M_θ in error at the end; 0 elsewhere."""
COEFFICIENT = 0.25
"""Planted M_x; a tenth of it for noise, a fifth for the others."""
SUCCESS = {"all": 0.4, "target_correct": 0.3, "both_correct": 0.2}


def _learning(one):
    """Own progress is .8 in every loss; the other's is M_θ of it, a little more where S is best."""
    meeting = MEETING.get((one.architecture, one.noise_rate), 0.0) if not one.permuted else 0.0
    pair, both = {"pair": range(NUM_PAIRS)}, {"pair": range(NUM_PAIRS), "surrogate": tables.HALVES}
    axes = both | {"step": (0, 10, 20)}
    curves = {
        "own": np.array([1.0, 0.2, 0.1]),
        "other": 0.9 - 0.8 * np.array([0.0, meeting * 0.7 / 0.8 + 0.05, meeting]),
        "holdout": np.array([2.0, 0.5, 1.0]),
    }
    frames = [tables.rows(np.ones(NUM_PAIRS), pair, quantity="finite", condition=one.key)]
    for subset, curve in curves.items():
        for loss in ("error", "brier", "cross_entropy"):
            values = np.broadcast_to(curve, (NUM_PAIRS, 2, 3))
            named = {"condition": one.key, "subset": subset}
            frames.append(tables.rows(values, axes, quantity=loss, **named))
            start = np.full((NUM_PAIRS, 2), 0.9)
            frames.append(tables.rows(start, both, quantity=f"constant_{loss}", **named))
    return frames


def _transfer(one):
    targets = ("A", "B", "A permuted", "B permuted")
    axes = {"pair": range(NUM_PAIRS), "surrogate": tables.HALVES, "target": targets}
    # Own targets rise by 10 under the attack; the others by a share of it.
    own = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], bool)
    permuted = np.array([[0, 0, 1, 1]] * 2, bool)
    frames = []
    for attack, share in (("clean", None), ("attack", 1.0), ("noise", 0.1), ("other_example", 0.2)):
        named = {"condition": one.key, "attack": attack, "budget": EPSILON}
        shape = (NUM_PAIRS, 2, 4)
        if share is not None:
            rise = 10.0 * np.where(own, 1.0, COEFFICIENT * share * np.where(permuted, 0.2, 1.0))
            frames.append(
                tables.rows(
                    np.broadcast_to(rise, shape), axes, quantity="increase", subset="all", **named
                )
            )
        for subset in transfer.DENOMINATORS:
            counts = np.full(shape, 40.0 if subset != "all" else 50.0)
            fooled = counts * SUCCESS[subset] * (share if share is not None else 0.5)
            for quantity, values in (("num_examples", counts), ("num_fooled", fooled)):
                frames.append(tables.rows(values, axes, quantity=quantity, subset=subset, **named))
    return frames


def _conditions():
    return [
        one
        for name in CONFIG.architectures
        for one in (
            *(conditions.condition(CONFIG, name, noise_rate=r) for r in CONFIG.noise_rates),
            conditions.control(CONFIG, name),
        )
    ]


@pytest.fixture(scope="module")
def records():
    every = _conditions()
    frames = [frame for one in every for frame in _learning(one)]
    frames += [frame for one in every if not one.permuted for frame in _transfer(one)]
    return Records(tables.concat(frames), tables.conditions_table(every), CONFIG)


@pytest.fixture(scope="module")
def overview(records):
    return summary.overview(records)


NAMES = [
    f"{name}, {rest}"
    for name in ("mlp", "cnn")
    for rest in ("ρ = 0", "ρ = 0.5", "ρ = 1", "permuted labels")
]
ATTACKED = [name for name in NAMES if "permuted" not in name]


def _cell(table, row, column):
    (found,) = [r for r in table.rows if r[0] == row]
    return found[list(table.columns).index(column)]


def _find(overview, column):
    return next(table for table in overview.tables if column in table.columns)


def _cells(overview):
    return [cell for table in overview.tables for row in table.rows for cell in row[1:]]


def test_every_condition_has_its_row(overview):
    rows = [[row[0] for row in table.rows] for table in overview.tables]
    assert [names for names in rows if names == NAMES]
    assert [names for names in rows if names == ATTACKED]
    assert all(names in (NAMES, ATTACKED) for names in rows)


def test_numbers_are_estimates_with_intervals(overview):
    plain = {"–", "1", "0.5", "0", "40", "50"}
    for cell in _cells(overview):
        assert cell in plain or ESTIMATE.fullmatch(cell), cell


@pytest.mark.parametrize(
    ("row", "meeting"), [("mlp, ρ = 0", 0.9), ("cnn, ρ = 0.5", 0.35), ("mlp, permuted labels", 0.0)]
)
def test_meeting_in_every_loss_at_both_ends(overview, row, meeting):
    for loss in ("error", "Brier score", "cross-entropy"):
        table = _find(overview, f"M_θ in {loss}, end")
        end = _cell(table, row, f"M_θ in {loss}, end")
        assert float(end.split()[0]) == pytest.approx(meeting, abs=1e-3)
        # At the middle probe own progress is .7 and the other's .7 M_θ + .04.
        best = _cell(table, row, f"M_θ in {loss}, S best")
        assert float(best.split()[0]) == pytest.approx(meeting + 0.04 / 0.7, abs=1e-3)


def test_ceiling_gap_and_training_accuracy(overview):
    table = _find(overview, "gap in error")
    for row, ceiling in (("mlp, ρ = 0", "1"), ("cnn, ρ = 0.5", "0.5"), ("mlp, ρ = 1", "0")):
        assert _cell(table, row, "ceiling 1 − ρ") == ceiling
    assert _cell(table, "mlp, permuted labels", "ceiling 1 − ρ") == "–"
    # The other's error is .9 − .8 · .3, the own .1.
    gap = _cell(table, "mlp, ρ = 0.5", "gap in error")
    assert float(gap.split()[0]) == pytest.approx(0.9 - 0.24 - 0.1, abs=1e-3)
    accuracy = _cell(table, "mlp, ρ = 0.5", "training accuracy")
    assert float(accuracy.split()[0]) == pytest.approx(0.9, abs=1e-3)


def test_transfer_beside_its_controls(overview):
    table = _find(overview, "M_x")
    for column, value in (
        ("M_x", COEFFICIENT),
        ("M_x of matched noise", 0.1 * COEFFICIENT),
        ("M_x of another example's perturbation", 0.2 * COEFFICIENT),
        ("M_x of target with permuted labels", 0.2 * COEFFICIENT),
    ):
        assert float(_cell(table, "cnn, ρ = 1", column).split()[0]) == pytest.approx(value)
    assert str(EPSILON) in table.title


def test_success_with_each_denominator(overview):
    found = [table for table in overview.tables if "surrogate itself" in table.columns]
    assert len(found) == 3
    for table, (subset, share) in zip(found, SUCCESS.items(), strict=True):
        assert _cell(table, "mlp, ρ = 0", "examples") == ("50" if subset == "all" else "40")
        for column, factor in (("surrogate itself", 1.0), ("matched noise", 0.1)):
            cell = _cell(table, "mlp, ρ = 0", column)
            assert float(cell.split()[0]) == pytest.approx(share * factor, abs=1e-3)
    # The clean error stands where it is not 0 by definition.
    assert float(_cell(found[0], "mlp, ρ = 0", "clean").split()[0]) == pytest.approx(0.2)


def test_scatter_is_a_description(overview):
    (figure,) = overview.figures
    assert "not a verdict" in figure.caption
    assert figure.figure.axes
    texts = " ".join(text.get_text() for text in figure.figure.findobj(Text))
    assert not re.search(r"\bnan\b", texts)


def test_no_transfer_without_attacks(records):
    table = records.table[records.table["attack"].isna()]
    overview = summary.overview(dataclasses.replace(records, table=table))
    assert overview.tables
    assert not overview.figures
    for one in overview.tables:
        assert [row[0] for row in one.rows] == NAMES
        assert not any("M_x" in column or "surrogate" in column for column in one.columns)


def test_only_what_was_measured_is_shown(records):
    kept = [one for one in _conditions() if one.architecture == "cnn" and one.noise_rate == 0]
    keys = [one.key for one in kept]
    table = records.table[records.table["condition"].isin(keys)]
    few = dataclasses.replace(records, table=table, conditions=tables.conditions_table(kept))
    rows = [[row[0] for row in one.rows] for one in summary.overview(few).tables]
    assert ["cnn, ρ = 0", "cnn, permuted labels"] in rows
    assert ["cnn, ρ = 0"] in rows
    nothing = dataclasses.replace(
        records, table=tables.concat([]), conditions=records.conditions.iloc[:0]
    )
    assert summary.overview(nothing) == ([], [], [])


# Diverged pairs


def _diverge(records, keys, pairs):
    table = records.table.copy()
    rows = table["condition"].isin(keys) & table["pair"].isin(pairs)
    flag = table["quantity"] == "finite"
    table.loc[rows & flag, "value"] = 0.0
    table.loc[rows & ~flag, "value"] = np.nan
    return dataclasses.replace(records, table=table)


def test_warnings_name_the_pairs_that_diverged(records, overview):
    assert overview.warnings == []
    one = conditions.condition(CONFIG, "mlp", noise_rate=0.5)
    diverged = summary.overview(_diverge(records, [one.key], [1, 3]))
    (warning,) = diverged.warnings
    for words in ("mlp, ρ = 0.5", "2 of 4 pairs", "1, 3"):
        assert words in warning
    # The planted numbers are the same for every pair, so nothing else changes.
    assert [t.rows for t in diverged.tables] == [t.rows for t in overview.tables]


def test_an_overview_of_nothing_but_diverged_pairs(records):
    keys = [one.key for one in _conditions()]
    overview = summary.overview(_diverge(records, keys, list(range(NUM_PAIRS))))
    assert len(overview.warnings) == len(NAMES)
    for cell in (*_cells(overview), *overview.warnings):
        assert not re.search(r"\bnan\b", cell)
