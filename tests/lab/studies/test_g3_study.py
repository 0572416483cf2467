"""What G3 reads of the grid, and what it says of models that did not come to the loss."""

import numpy as np
import pytest
from lab.studies.plants import g3 as planted
from lab.studies.plants.g3 import CONDITIONS

from halfway.lab.measurements.grid import COMPLEXITY, RIVALS
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g3 import contest, study
from halfway.lab.study.records import Records


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(contest, "NUM_RESAMPLES", 200)


@pytest.fixture(scope="module")
def records():
    return planted.plant(np.random.default_rng(0), 1.0)


def test_measures_are_means_of_both_models_in_the_order_of_their_names(records):
    measures, (index, pair) = study.candidates(records), (70, 3)
    condition = CONDITIONS[index]
    complexity = records.get(COMPLEXITY, condition)
    signal, noise = (
        complexity[name].sel(pair=pair).mean().item() for name in ("early_signal", "early_noise")
    )
    ratio = measures.numerators[:, index, pair] / measures.denominators[:, index, pair]
    expected = [noise / signal]
    expected += [complexity["rivals"].sel(pair=pair, measure=name).mean().item() for name in RIVALS]
    expected.append(noise / signal / condition.num_examples)
    np.testing.assert_allclose(ratio, expected)
    assert len(study.NAMES) == len(ratio)
    error = records.get(LEARNING, condition)["error"].sel(pair=pair).isel(step=-1).mean("model")
    gap = error.sel(sample="other") - error.sel(sample="own")
    assert measures.gap[index, pair] == pytest.approx(gap.item())


def _changed(records, **garbage):
    """Records in which A of one pair did not come to the loss, and numbers of that pair are others.

    Args:
      records: planted.
      **garbage: what else replaces the numbers of the pair, by name of the measurement.
    """
    condition, datasets = CONDITIONS[5], dict(records.datasets)
    for measurement in (LEARNING, COMPLEXITY):
        place = measurement.name, condition.id
        datasets[place] = changed = datasets[place].copy(deep=True)
        for variable in changed.data_vars.values():
            if variable.name != "finite" and measurement.name in garbage:
                variable.loc[{"pair": 2}] = garbage[measurement.name]
    walk = datasets[LEARNING.name, condition.id]["cross_entropy"]
    walk.loc[{"pair": 2, "model": "A", "sample": "own", "step": condition.probe_steps[-1]}] = 0.06
    return Records(records.config, datasets)


def test_a_pair_that_did_not_come_to_the_loss_is_left_out_and_said(records):
    whole, outcome = (study.decide(given) for given in (records, _changed(records)))
    assert outcome.warnings == (
        "1 of 1024 pairs, of 1 of 128 conditions, had a model that did not come to a training loss "
        "of 0.05 in 4000 steps; these pairs are left out.",
    )
    assert not whole.warnings and outcome.parts != whole.parts
    # It is no divergence, and what it measured no longer matters.
    assert outcome.parts[0].num_excluded == 0
    garbage = {LEARNING.name: 1e3, COMPLEXITY.name: 1e3}
    assert study.decide(_changed(records, **garbage)) == outcome
