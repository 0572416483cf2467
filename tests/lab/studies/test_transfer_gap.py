"""Transfer and gap over the grid: what is read, and which correlations come out."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from halfway import stats
from halfway.lab.measurements.grid import MAX_STEPS, STOP_LOSS
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.t3 import study as t3
from halfway.lab.studies.t3 import transfer_gap
from halfway.lab.study.tables import Reader


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(contest, "NUM_RESAMPLES", 200)
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 499)


@pytest.fixture(scope="module")
def records():
    return t3.STUDY.plant(np.random.default_rng(0), 1.0)


def _read(records):
    return transfer_gap.read(Reader(records), records.config)


def _changed(records, value, **where):
    table = records.table.copy()
    rows = np.ones(len(table), bool)
    for name, wanted in where.items():
        rows &= (table[name] == wanted).to_numpy(bool, na_value=False)
    assert rows.any()
    table.loc[rows, "value"] = value
    return dataclasses.replace(records, table=table)


def test_both_directions_are_summed(records):
    found, key = _read(records), records.conditions.index[3]
    table = records.table[(records.table["condition"] == key) & (records.table["pair"] == 2)]
    moved = table[table["quantity"] == "increase"].set_index(["surrogate", "target"])["value"]
    assert found.numerators[0, 3, 2] == pytest.approx(moved["A", "B"] + moved["B", "A"])
    assert found.denominators[0, 3, 2] == pytest.approx(moved["A", "A"] + moved["B", "B"])
    size = table.loc[table["quantity"] == "gradient_norm", "value"].sum()
    assert found.numerators[1, 3, 2] == pytest.approx(size)
    assert found.finite.all() and found.reached.all()
    assert set(found.strata) == {0, 1}


def test_a_pair_short_of_the_loss_leaves_with_all_it_measured(records):
    key = records.conditions.index[5]
    where = {"condition": key, "pair": 1, "quantity": "cross_entropy", "surrogate": "B"}
    where |= {"subset": "own", "step": MAX_STEPS}
    at = _read(_changed(records, float(np.float32(STOP_LOSS)), **where))
    assert at.reached.all()  # where training stops it has come there, in its own precision
    found = _read(_changed(records, 1.01 * STOP_LOSS, **where))
    assert (~found.reached).sum() == 1 and found.finite.all()
    assert np.isnan(found.gap[5, 1]) and np.isnan(found.numerators[:, 5, 1]).all()
    assert np.isfinite(np.delete(found.gap[5], 1)).all()


def test_correlations_by_hand(records):
    found = _read(records)
    own = transfer_gap.correlate(found)
    splits, _ = contest.halved(*found[:3], found.strata)
    alone, partial, pooled = [], [], []
    for measures, outcome in zip(splits.measures.swapaxes(0, 1), splits.outcome, strict=True):
        pair = (measures[0], outcome), (measures[0], measures[1]), (measures[1], outcome)
        xy, xz, zy = (float(stats.kendall(*one, found.strata)) for one in pair)
        partial.append((xy - xz * zy) / np.sqrt((1 - xz**2) * (1 - zy**2)))
        alone.append(
            [
                scipy.stats.kendalltau(
                    measures[0][found.strata == s], outcome[found.strata == s]
                ).statistic
                for s in (0, 1)
            ]
        )
        pooled.append(scipy.stats.kendalltau(measures[0], outcome).statistic)
    assert own.partial[0] == pytest.approx(np.mean(partial))
    np.testing.assert_allclose([one[0] for one in own.strata], np.mean(alone, 0))
    # Strata of one size count the same.
    assert own.within[0] == pytest.approx(np.mean(alone))
    assert own.pooled[0] == pytest.approx(np.mean(pooled)) and own.pooled[0] < own.within[0]
    assert own.within[1] < own.within[0] < own.within[2] < 0
    assert own.p_value == 1 / 500 and own.p_reverse == 1


def test_a_cause_of_both_is_partialled_out(records):
    found = _read(records)
    rng = np.random.default_rng(1)
    cause = rng.normal(size=(len(found.gap), 1))
    noise = 0.4 * rng.normal(size=(2, len(found.gap), 1))
    both = [cause + one + 0.01 * rng.normal(size=found.gap.shape) for one in noise]
    moved = found._replace(
        numerators=np.array([-both[0], cause + np.zeros(found.gap.shape)]),
        denominators=np.ones((2, *found.gap.shape)),
        gap=both[1],
    )
    own = transfer_gap.correlate(moved)
    # Kendall's partial τ takes away most of it, and not all.
    assert own.within[0] < -0.5 and abs(own.partial[0]) < 0.5 * abs(own.within[0])


def test_nothing_left_decides_nothing(records):
    found = _read(_changed(records, 0.0, quantity="finite"))
    own = transfer_gap.correlate(found)
    assert (own.p_value, own.p_reverse) == (1, 1) and np.isnan(own.within[0])
