"""G3 to G8 and what they stand on, from training to words, on a config as small as it can be."""

import json

import numpy as np
import pytest
from support import tiny_run

from halfway.lab import studies
from halfway.lab.measurements import fresh, grid
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Identity, Run
from halfway.lab.studies.g4 import study as g4
from halfway.lab.studies.g8 import gap_paths
from halfway.lab.study.records import NUMBERS, Measured
from halfway.lab.study.verdict import WORDS

pytestmark = pytest.mark.slow
NAMES = ("G1", "G3", "G4", "G5", "G6", "G7", "G8", "V3")
KEPT = ("n ÷2", "ρ = 0.4", "width ×4", "tanh")
"""Interventions of the grid."""


def _config():
    return tiny_run.digits(
        "tiny",
        num_pairs=2,
        num_examples=60,
        num_holdout=60,
        models={"mlp": {"kind": "mlp", "widths": (8,)}},
        training={"probe_steps": (0, 10, 60), "batch_size": 16},
    )


def _smaller(monkeypatch):
    """Makes what the studies fix on their own as small as the config."""
    whole_design = grid.design

    def few(config):
        plan = whole_design(config)
        kept = [item for item in plan.interventions if item.name in KEPT]
        return grid.Grid({grid.MLP: plan.bases[grid.MLP]}, tuple(kept))

    monkeypatch.setattr(grid, "design", few)
    monkeypatch.setattr(g4, "PAIRS", 1)
    monkeypatch.setattr(fresh, "MOST_STEPS", 6)
    monkeypatch.setattr(gap_paths, "NUM_STEPS", 20)
    monkeypatch.setattr(gap_paths, "ADAM_STEPS", 10)


@pytest.fixture(scope="module")
def done(digits, tmp_path_factory):
    """All run at once, as `experiments.reproduce --only=G3,G4,...` would."""
    with pytest.MonkeyPatch.context() as patch:
        _smaller(patch)
        config = _config()
        path = tmp_path_factory.mktemp("generalization") / "run"
        run = Run.create(path, Identity("small", config.to_dict(), "checksum"), 2)
        chosen = [studies.available()[name] for name in NAMES]
        pipeline.measure(run, chosen, digits.pool("all"))
        verdicts = pipeline.conclude(run)
        requests = [request for study in chosen for request in study.needs(run.config)]
        yield run, verdicts, run.records(requests)


def test_each_has_a_verdict_with_numbers(done):
    run, verdicts, _ = done
    assert [verdict.id for verdict in verdicts] == list(NAMES)
    stored = json.loads((run.path / "verdicts.json").read_text())
    for verdict, plain in zip(verdicts, stored, strict=True):
        assert verdict.evidence == "none"  # two pairs
        assert np.isfinite(verdict.effect)
        assert verdict.num_excluded == 0
        words = WORDS[verdict.kind] if verdict.kind != "hypothesis" else ("not at this size",)
        assert plain["verdict"] in words
        assert verdict.verdict == plain["verdict"] and plain["effect"] == verdict.effect


def test_figures_and_report_are_written_whole(done):
    run, verdicts, _ = done
    drawn = {path.name for path in (run.path / "figures").iterdir()}
    stems = {name.rsplit(".", 1)[0] for name in drawn}
    for verdict in verdicts:
        assert any(stem.startswith(verdict.id.lower()) for stem in stems)
    assert {"g3_leads", "g8_memorization", "g8_gap"} <= stems
    html = (run.path / "report.html").read_text()
    for verdict in verdicts:
        assert f'id="{verdict.id.lower()}"' in html
    # The table of G3 is folded below its figure, a row for each measure.
    assert "Error of the predicted gap by factor, in numbers" in html
    for name in grid.RIVALS.values():
        assert name in html
    assert "nan" not in html.lower().replace("resonan", "")


def test_records_say_what_rules_read(done):
    *_, records = done
    # A class whose examples are all learned at once has no order; one that a half lacks meets none.
    undefined = {"rank_correlation", "class_matrix"}
    # The best constant predictor of a half that lacks a class leaves it no probability.
    infinite = {"constant_cross_entropy"}
    names = {name: set() for name, _ in records.datasets}
    for (name, _), dataset in records.datasets.items():
        measured = Measured(dataset)
        assert measured.finite.all()
        names[name] |= {str(variable) for variable in dataset.data_vars}
        for number in {*dataset.attrs[NUMBERS]} - undefined:
            values = measured[number].values
            fine = ~np.isnan(values) if number in infinite else np.isfinite(values)
            assert fine.all(), (name, number)
    for name, quantities in {
        "agreement": {"num_disagree"},
        "learning_times": {"rank_correlation"},
        "barriers": {"barrier"},
        "classes": {"class_matrix"},
        "confusions": {"confusion", "pixel_product"},
        "memorization": {"own_own", "gap"},
        "descent_gap": {"gap", "summed"},
        "walk_gap": {"gap", "summed"},
        "complexity": {"early_square"},
    }.items():
        assert quantities <= names[name], name
    barriers = [dataset for (name, _), dataset in records.datasets.items() if name == "barriers"]
    assert all({"as trained", "permutation matched"} <= set(d["path"].values) for d in barriers)


def test_verdicts_again_from_disk_are_the_same(done, monkeypatch):
    run, verdicts, _ = done
    _smaller(monkeypatch)
    again = pipeline.conclude(Run.open(run.path))
    assert [v.to_json() for v in again] == [v.to_json() for v in verdicts]
    assert [v.id for v in again] == studies.sort_ids(NAMES)
