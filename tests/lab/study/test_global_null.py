"""What a run with permuted labels may claim: nothing that needs true ones."""

import dataclasses

import pytest
from support import commands

from halfway.lab import studies
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Run
from halfway.lab.study import family, global_null, registration
from halfway.lab.study.verdict import Outcome, PartResult

SIZE = studies.family_size()


def _part(p_value, kind="test", name="a"):
    return PartResult(
        name=name,
        kind=kind,
        statistic="mean",
        estimate=0.1,
        low=0.0,
        high=0.2,
        direction="greater",
        threshold=(0.0,),
        p_value=p_value,
        p_reverse=None,
        num_pairs=16,
    )


def _claimed(name, *parts, without_labels=None):
    study = dataclasses.replace(studies.available()[name], stands_on=())
    outcome = Outcome(parts, (parts[0].name,))
    verdicts = family.conclude([(study, outcome)], family_size=SIZE, evidence="exploratory")
    return global_null.claimed(verdicts, family_size=SIZE, without_labels=without_labels or {})


@pytest.mark.quick
def test_gates_are_ignored_and_a_claim_needs_the_familys_level():
    (row,) = _claimed("G7", _part(0.001), _part(0.9, "gate", "b"))
    assert row.claims and row.is_wrong and row.p_value == 0.001
    (row,) = _claimed("G7", _part(0.001), _part(0.003, name="b"))
    assert not row.claims and row.p_value == 0.003


@pytest.mark.quick
def test_what_was_said_beforehand_is_not_wrong():
    (row,) = _claimed("G7", _part(0.001), without_labels={"G7": "a reason"})
    assert row.claims and not row.is_wrong and row.reason == "a reason"


@pytest.mark.quick
def test_a_control_claims_by_its_tests_and_at_its_own_level():
    equivalence = _part(0.9, "equivalence", "b")
    (row,) = _claimed("T1", _part(0.04), equivalence)
    assert row.claims
    (row,) = _claimed("T1", _part(0.06), equivalence)
    assert not row.claims


@pytest.mark.quick
def test_verifications_are_not_asked():
    assert _claimed("V3", _part(0.001)) == []


@pytest.mark.quick
def test_the_lock_lists_hypotheses_with_reasons():
    listed = registration.without_labels()
    assert "G8" in listed and all(listed.values())
    known = studies.available()
    assert all(known[name].kind == "hypothesis" for name in listed)


@pytest.mark.slow
def test_a_shuffled_pool_claims_nothing(tmp_path):
    """All studies on digits with 16 pairs, labels of the pool permuted: an hour or more."""
    result = commands.call(
        tmp_path, "reproduce", "--only=all", "--config.shuffled_labels=True", "--workdir=run"
    )
    assert result.code == 0, result.err
    verdicts = pipeline.decide(Run.open(tmp_path / "run")).verdicts
    rows = global_null.claimed(
        verdicts, family_size=SIZE, without_labels=registration.without_labels()
    )
    assert len(rows) == SIZE + 2
    assert [row.id for row in rows if row.is_wrong] == []
    assert {verdict.verdict for verdict in verdicts if verdict.kind == "control"} == {"not met"}
    # What stands on a control that is not met says so, whatever its tests say.
    words = {verdict.verdict for verdict in verdicts if verdict.kind == "hypothesis"}
    assert words == {"inconclusive"}
