"""Transfer and gap over the grid: what is read, and which correlations come out."""

import numpy as np
import pytest
import scipy.stats
from lab.studies.plants import t3 as planted
from lab.studies.plants.g3 import CONDITIONS

from halfway import stats
from halfway.lab.measurements.grid import STOP_LOSS
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.t3 import transfer_gap
from halfway.lab.study.records import Records


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(contest, "NUM_RESAMPLES", 200)
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 499)


@pytest.fixture(scope="module")
def records():
    return planted.plant(np.random.default_rng(0), 1.0)


@pytest.fixture(scope="module")
def measures(records):
    return transfer_gap.transfer_and_gap(records)


@pytest.mark.quick
def test_both_directions_are_summed(records, measures):
    attacked = records.get(TRANSFER, CONDITIONS[3])
    increase = attacked["increase"].sel(pair=2)
    moved = {(a, b): increase.sel(surrogate=a, target=b).item() for a in "AB" for b in "AB"}
    assert measures.numerators[0, 3, 2] == pytest.approx(moved["A", "B"] + moved["B", "A"])
    assert measures.denominators[0, 3, 2] == pytest.approx(moved["A", "A"] + moved["B", "B"])
    size = attacked["gradient_norm"].sel(pair=2).sum().item()
    assert measures.numerators[1, 3, 2] == pytest.approx(size)
    assert measures.finite.all() and measures.reached.all()
    assert set(measures.strata) == {0, 1}


def _with_last_loss(records, condition, pair, value):
    """Records in which B of a pair ends at another cross-entropy on its own half."""
    place = LEARNING.name, condition.id
    changed = records.datasets[place].copy(deep=True)
    where = {"pair": pair, "model": "B", "sample": "own", "step": condition.probe_steps[-1]}
    changed["cross_entropy"].loc[where] = value
    return Records(records.config, records.datasets | {place: changed})


def test_a_pair_short_of_the_loss_leaves_with_all_it_measured(records):
    def read(value):
        changed = _with_last_loss(records, CONDITIONS[5], 1, value)
        return transfer_gap.transfer_and_gap(changed)

    # Where training stops it has come there, in its own precision.
    assert read(float(np.float32(STOP_LOSS))).reached.all()
    short = read(1.01 * STOP_LOSS)
    assert (~short.reached).sum() == 1 and short.finite.all()
    assert np.isnan(short.gap[5, 1]) and np.isnan(short.numerators[:, 5, 1]).all()
    assert np.isfinite(np.delete(short.gap[5], 1)).all()


def test_correlations_by_hand(measures):
    result = transfer_gap.correlate_with_gap(measures)
    splits, _ = contest.halved(*measures[:3], measures.strata)
    alone, partial, pooled = [], [], []
    for values, outcome in zip(splits.measures.swapaxes(0, 1), splits.outcome, strict=True):
        pairs = (values[0], outcome), (values[0], values[1]), (values[1], outcome)
        xy, xz, zy = (float(stats.kendall(*pair, measures.strata)) for pair in pairs)
        partial.append((xy - xz * zy) / np.sqrt((1 - xz**2) * (1 - zy**2)))
        alone.append(
            [
                scipy.stats.kendalltau(
                    values[0][measures.strata == s], outcome[measures.strata == s]
                ).statistic
                for s in (0, 1)
            ]
        )
        pooled.append(scipy.stats.kendalltau(values[0], outcome).statistic)
    assert result.partial[0] == pytest.approx(np.mean(partial))
    np.testing.assert_allclose([tau for tau, *_ in result.strata], np.mean(alone, 0))
    # Strata of one size count the same.
    assert result.within[0] == pytest.approx(np.mean(alone))
    assert (
        result.pooled[0] == pytest.approx(np.mean(pooled)) and result.pooled[0] < result.within[0]
    )
    assert result.within[1] < result.within[0] < result.within[2] < 0
    assert result.p_value == 1 / 500 and result.p_reverse == 1


def test_a_cause_of_both_is_partialled_out(measures):
    rng, shape = np.random.default_rng(1), measures.gap.shape
    cause = rng.normal(size=(shape[0], 1))
    noise = 0.4 * rng.normal(size=(2, shape[0], 1))
    both = [cause + apart + 0.01 * rng.normal(size=shape) for apart in noise]
    moved = measures._replace(
        numerators=np.array([-both[0], cause + np.zeros(shape)]),
        denominators=np.ones((2, *shape)),
        gap=both[1],
    )
    result = transfer_gap.correlate_with_gap(moved)
    # Kendall's partial τ takes away most of it, and not all.
    assert result.within[0] < -0.5 and abs(result.partial[0]) < 0.5 * abs(result.within[0])


def test_nothing_left_decides_nothing(records):
    diverged = {
        place: dataset.assign(finite=("pair", np.zeros(dataset.sizes["pair"], bool)))
        for place, dataset in records.datasets.items()
    }
    measures = transfer_gap.transfer_and_gap(Records(records.config, diverged))
    assert not measures.finite.any()
    result = transfer_gap.correlate_with_gap(measures)
    assert (result.p_value, result.p_reverse) == (1, 1) and np.isnan(result.within[0])
