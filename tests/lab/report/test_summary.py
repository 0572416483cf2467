"""The overview of all conditions, on records whose coefficients are known exactly."""

import re

import numpy as np
import pytest
from matplotlib.text import Text
from support import plants, tiny_run

from halfway import populations, transfer
from halfway.lab.measurements.context import MODELS
from halfway.lab.measurements.learning import LEARNING, SAMPLES
from halfway.lab.measurements.transfer import PERMUTED, POINTS, TRANSFER, TRANSFER_CONTROLS
from halfway.lab.report import summary
from halfway.lab.study import conditions
from halfway.lab.study.records import Records

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


def _learning(condition):
    """Own progress is .8 in every loss; the other's is M_θ of it, a little more where S is best."""
    meeting = MEETING.get((condition.architecture, condition.noise_rate), 0.0)
    meeting = 0.0 if condition.permuted else meeting
    walks = np.array(
        [
            [1.0, 0.2, 0.1],
            0.9 - 0.8 * np.array([0.0, meeting * 0.7 / 0.8 + 0.05, meeting]),
            [2.0, 0.5, 1.0],
        ]
    )
    shape = (NUM_PAIRS, 2, *walks.shape)
    numbers = {}
    for loss in populations.LOSSES:
        dims = ("pair", "model", "sample", "step")
        numbers[loss] = dims, np.broadcast_to(walks, shape)
        numbers[f"constant_{loss}"] = dims[:-1], np.full(shape[:-1], 0.9)
    made = plants.dataset(condition, numbers, sample=SAMPLES, step=(0, 10, 20))
    return LEARNING, condition, made


def _transfer(condition):
    """The own target rises by 10 under the attack; the others by a share of it."""
    through_itself = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], bool)
    permuted = np.array([[0, 0, 1, 1]] * 2, bool)
    rises = 10.0 * np.where(through_itself, 1.0, COEFFICIENT * np.where(permuted, 0.2, 1.0))
    shares = np.array([1.0, 0.1, 0.2])  # attack, noise, other_example
    moved = np.where(through_itself, 10.0, rises) * shares[:, None, None]
    counted = np.array([50.0 if name == "all" else 40.0 for name in transfer.DENOMINATORS])
    fooled = counted * [SUCCESS[name] for name in transfer.DENOMINATORS]
    points = np.array([0.5, *shares])  # clean first

    def spread(values):
        return np.broadcast_to(values, (NUM_PAIRS, *values.shape))

    cells = ("points", "denominator", "surrogate", "target")
    whole = np.ones((4, 3, 2, 4))
    made = plants.dataset(
        condition,
        {
            "increase": (
                ("pair", "budget", "moved", "surrogate", "target"),
                spread(moved[None]),
            ),
            "num_fooled": (
                ("pair", "budget", *cells),
                spread((whole * fooled[:, None, None] * points[:, None, None, None])[None]),
            ),
            "num_examples": (
                ("pair", "budget", *cells),
                spread((whole * counted[:, None, None])[None]),
            ),
        },
        budget=[EPSILON],
        points=POINTS,
        moved=POINTS[1:],
        denominator=transfer.DENOMINATORS,
        target=(*MODELS, *PERMUTED),
    )
    attacked = {"increase": (("pair", "surrogate", "target"), spread(rises[:, :2]))}
    return [
        (TRANSFER_CONTROLS, condition, made),
        (TRANSFER, condition, plants.dataset(condition, attacked)),
    ]


def _conditions():
    return [
        condition
        for name in CONFIG.architectures
        for condition in (
            *(conditions.condition(CONFIG, name, noise_rate=r) for r in CONFIG.noise_rates),
            conditions.control(CONFIG, name),
        )
    ]


@pytest.fixture(scope="module")
def records():
    listed = _conditions()
    planted = [_learning(condition) for condition in listed]
    planted += [
        part for condition in listed if not condition.permuted for part in _transfer(condition)
    ]
    return Records(CONFIG, {(m.name, condition.id): made for m, condition, made in planted})


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
    (match,) = [r for r in table.rows if r[0] == row]
    return match[list(table.columns).index(column)]


def _find(overview, column):
    return next(table for table in overview.tables if column in table.columns)


def _cells(overview):
    return [cell for table in overview.tables for row in table.rows for cell in row[1:]]


@pytest.mark.quick
def test_every_condition_has_its_row(overview):
    rows = [[row[0] for row in table.rows] for table in overview.tables]
    assert [names for names in rows if names == NAMES]
    assert [names for names in rows if names == ATTACKED]
    assert all(names in (NAMES, ATTACKED) for names in rows)


@pytest.mark.quick
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


def test_the_ceiling_stands_only_where_models_are_fitted(records, overview, monkeypatch):
    ceilings = (("mlp, ρ = 0", "1"), ("cnn, ρ = 0.5", "0.5"), ("mlp, ρ = 1", "0"))
    table = _find(overview, "gap in error")
    assert {_cell(table, row, "ceiling 1 − ρ") for row, _ in ceilings} == {"–"}
    monkeypatch.setattr(summary.g2, "FITTED", 0.85)  # Planted is .9.
    table = _find(summary.overview(records), "gap in error")
    for row, ceiling in ceilings:
        assert _cell(table, row, "ceiling 1 − ρ") == ceiling
    assert _cell(table, "mlp, permuted labels", "ceiling 1 − ρ") == "–"


def test_gap_and_training_accuracy(overview):
    table = _find(overview, "gap in error")
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
    tables = [table for table in overview.tables if "surrogate itself" in table.columns]
    assert len(tables) == 3
    for table, (subset, share) in zip(tables, SUCCESS.items(), strict=True):
        assert _cell(table, "mlp, ρ = 0", "examples") == ("50" if subset == "all" else "40")
        for column, factor in (("surrogate itself", 1.0), ("matched noise", 0.1)):
            cell = _cell(table, "mlp, ρ = 0", column)
            assert float(cell.split()[0]) == pytest.approx(share * factor, abs=1e-3)
    # The clean error stands where it is not 0 by definition.
    assert float(_cell(tables[0], "mlp, ρ = 0", "clean").split()[0]) == pytest.approx(0.2)


@pytest.mark.quick
def test_scatter_is_a_description(overview):
    (figure,) = overview.figures
    assert "not a verdict" in figure.caption
    assert figure.figure.axes
    texts = " ".join(text.get_text() for text in figure.figure.findobj(Text))
    assert not re.search(r"\bnan\b", texts)


def _kept(records, keep):
    return Records(CONFIG, {k: v for k, v in records.datasets.items() if keep(*k)})


def test_no_transfer_without_attacks(records):
    overview = summary.overview(_kept(records, lambda name, _: name == LEARNING.name))
    assert overview.tables
    assert not overview.figures
    for table in overview.tables:
        assert [row[0] for row in table.rows] == NAMES
        assert not any("M_x" in column or "surrogate" in column for column in table.columns)


def test_only_what_was_measured_is_shown(records):
    ids = {c.id for c in _conditions() if c.architecture == "cnn" and c.noise_rate == 0}
    few = _kept(records, lambda _, condition: condition in ids)
    rows = [[row[0] for row in table.rows] for table in summary.overview(few).tables]
    assert ["cnn, ρ = 0", "cnn, permuted labels"] in rows
    assert ["cnn, ρ = 0"] in rows
    assert summary.overview(Records(CONFIG, {})) == ([], [], [], None)


# Diverged pairs


def _diverge(records, ids, pairs):
    datasets = {}
    for place, dataset in records.datasets.items():
        changed = dataset.copy(deep=True)
        if place[1] in ids:
            changed["finite"][list(pairs)] = False
        datasets[place] = changed
    return Records(CONFIG, datasets)


def test_warnings_name_the_pairs_that_diverged(records, overview):
    assert overview.warnings == []
    condition = conditions.condition(CONFIG, "mlp", noise_rate=0.5)
    diverged = summary.overview(_diverge(records, [condition.id], [1, 3]))
    (warning,) = diverged.warnings
    for words in ("mlp, ρ = 0.5", "2 of 4 pairs", "1, 3"):
        assert words in warning
    # The planted numbers are the same for every pair, so nothing else changes.
    assert [t.rows for t in diverged.tables] == [t.rows for t in overview.tables]


def test_an_overview_of_nothing_but_diverged_pairs(records):
    ids = [condition.id for condition in _conditions()]
    overview = summary.overview(_diverge(records, ids, list(range(NUM_PAIRS))))
    assert len(overview.warnings) == len(NAMES)
    for cell in (*_cells(overview), *overview.warnings):
        assert not re.search(r"\bnan\b", cell)
