"""Holm over all hypotheses, what they stand on, and the word that each study gets."""

import json
import math
import types

import pytest

from halfway.lab import studies
from halfway.lab.study import family
from halfway.lab.study.verdict import Headline, Outcome, PartResult

pytestmark = pytest.mark.quick


def _part(p_value=1e-6, p_reverse=1.0, **fields):
    defaults = {
        "name": "mlp",
        "kind": "test",
        "statistic": "M_θ",
        "estimate": 0.4,
        "low": 0.3,
        "high": 0.5,
        "direction": "greater",
        "threshold": (0.0,),
        "num_pairs": 16,
    }
    return PartResult(**(defaults | fields), p_value=p_value, p_reverse=p_reverse)


def _gate(estimate, **fields):
    defaults = {"name": "fitted", "kind": "gate", "threshold": (0.95,), "estimate": estimate}
    return _part(None, None, **(defaults | fields))


def _study(name, kind="hypothesis", stands_on=()):
    text = types.SimpleNamespace(controls=("one control", "another"))
    return types.SimpleNamespace(
        id=name, claim="A claim.", text=text, kind=kind, stands_on=stands_on
    )


def _conclude(*outcomes, evidence="exploratory"):
    pairs = [(_study(f"G{number}"), outcome) for number, outcome in enumerate(outcomes, 1)]
    return family.conclude(pairs, family_size=20, evidence=evidence)


def _alone(*parts, **options):
    return _conclude(Outcome(parts, ("mlp",)), **options)[0]


def test_the_family():
    listed = studies.listed()
    assert [study.id for study in listed] == list(studies.available())
    assert len({study.short for study in listed}) == len(listed)
    hypotheses = [study.id for study in listed if study.kind == "hypothesis"]
    assert studies.family_size() == len(hypotheses)
    assert {"G1", "T1"} == {study.id for study in listed if study.kind == "control"}
    assert {"V1", "V2", "V3"} <= {study.id for study in listed if study.kind == "verification"}
    assert studies.sort_ids({"T10", "T2", "G8", "G1", "T1"}) == ["G1", "G8", "T1", "T2", "T10"]


# Holm


def test_holm_over_twenty_by_hand():
    p_values = (0.001, 0.04, 0.0024, 0.002)
    verdicts = _conclude(*(Outcome((_part(p),), ("mlp",)) for p in p_values))
    # Sorted: .001 · 20, .002 · 19, .0024 · 18, .04 · 17; what was not run enters as 1.
    assert [v.p_adjusted for v in verdicts] == pytest.approx([0.02, 0.68, 0.0432, 0.038])
    assert [v.p_value for v in verdicts] == list(p_values)
    assert [v.verdict for v in verdicts] == [
        "supported",
        "inconclusive",
        "supported",
        "supported",
    ]
    assert [v.id for v in verdicts] == ["G1", "G2", "G3", "G4"]


def test_running_maximum():
    verdicts = _conclude(*(Outcome((_part(p),), ("mlp",)) for p in (0.002, 0.00205)))
    # .00205 · 19 is less than .002 · 20: the order of p-values is kept.
    assert [v.p_adjusted for v in verdicts] == pytest.approx([0.04, 0.04])


def test_one_alone_pays_for_all_twenty():
    assert _alone(_part(0.0024)).verdict == "supported"
    verdict = _alone(_part(0.0026))
    assert verdict.verdict == "inconclusive"
    assert verdict.p_adjusted == pytest.approx(0.052)
    assert _alone(_part(0.3)).p_adjusted == 1.0


# Words


def test_supported_needs_every_test():
    held, failed = _part(1e-9), _part(0.2, 0.8, name="cnn")
    verdict = _alone(held, failed)
    assert (verdict.verdict, verdict.p_value) == ("inconclusive", 0.2)
    assert "'cnn'" in verdict.reason
    assert _alone(held, _part(1e-4, name="cnn")).verdict == "supported"


def test_refuted_by_the_smallest_reverse_times_the_number_of_tests():
    held = _part(1e-9)
    # Two tests over a family of twenty: .001 · 2 · 20 < .05 < .0013 · 2 · 20.
    refuted = _alone(held, _part(0.999, 0.001, name="cnn"))
    assert refuted.verdict == "refuted"
    assert "'cnn'" in refuted.reason
    assert "0.04" in refuted.reason
    assert _alone(held, _part(0.999, 0.0013, name="cnn")).verdict == "inconclusive"
    # Gates are not tests and do not count as such.
    met = _gate(0.99)
    assert _alone(held, _part(0.999, 0.001, name="cnn"), met).verdict == "refuted"


def test_reverse_is_adjusted_over_the_family_too():
    outcomes = [Outcome((_part(0.9, p),), ("mlp",)) for p in (0.001, 0.002, 0.0026)]
    # .001 · 20, .002 · 19, .0026 · 18.
    assert [v.verdict for v in _conclude(*outcomes)] == ["refuted"] * 3
    assert _conclude(outcomes[2])[0].verdict == "inconclusive"


def test_nan_p_values_decide_nothing():
    verdict = _alone(_part(math.nan, math.nan))
    assert (verdict.verdict, verdict.p_value, verdict.p_adjusted) == ("inconclusive", 1.0, 1.0)


@pytest.mark.parametrize("p_value", [1e-9, 0.999])
def test_a_gate_that_is_not_met(p_value):
    verdict = _alone(_part(p_value, 1 - p_value), _gate(0.99), _gate(0.93, name="trained at ρ = 1"))
    assert verdict.verdict == "inconclusive"
    assert "trained at ρ = 1" in verdict.reason
    assert "0.93" in verdict.reason
    assert "0.95" in verdict.reason
    # Raw and adjusted values are reported all the same.
    assert verdict.p_value == p_value


def test_a_gate_is_met_strictly_above_its_threshold():
    assert _alone(_part(), _gate(0.951)).verdict == "supported"
    assert _alone(_part(), _gate(0.95)).verdict == "inconclusive"
    assert _alone(_part(), _gate(0.94, direction="less")).verdict == "supported"
    assert _alone(_part(), _gate(math.nan)).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("num_excluded", "num_pairs", "word"),
    [
        (1, 15, "supported"),
        (2, 14, "inconclusive"),
        (4, 60, "supported"),
        (5, 59, "inconclusive"),
        (16, 0, "inconclusive"),
        (1, 5, "inconclusive"),
    ],
)
def test_more_than_one_in_sixteen_diverged(num_excluded, num_pairs, word):
    part = _part(num_excluded=num_excluded, num_pairs=num_pairs)
    gate = _gate(0.99, num_excluded=num_excluded, num_pairs=num_pairs)
    for parts in ((part,), (_part(name="cnn"), part), (_part(), gate)):
        verdict = _alone(*parts)
        assert verdict.verdict == word
        assert verdict.num_excluded == num_excluded
        if word == "inconclusive":
            assert f"{num_excluded} of {num_excluded + num_pairs} pairs" in verdict.reason


def test_diverged_pairs_are_named_before_anything_else():
    refuted = _part(0.999, 1e-9, num_excluded=3, num_pairs=13)
    verdict = _alone(refuted, _gate(0.5))
    assert verdict.verdict == "inconclusive"
    assert verdict.reason == (
        "3 of 16 pairs of 'mlp', more than 1 in 16, diverged in training or have no defined value"
    )


# What a verdict reports


@pytest.mark.parametrize(
    ("direction", "threshold", "mlp", "cnn", "worse"),
    [
        ("greater", (0.0,), 0.4, 0.2, 0.2),
        ("less", (0.0,), -0.4, -0.2, -0.2),
        ("greater", (0.5,), 0.4, 0.9, 0.4),
        ("within", (0.8, 1.25), 1.0, 1.24, 1.24),
        ("within", (-0.03, 0.03), -0.02, 0.01, -0.02),
    ],
)
def test_effect_is_the_first_part_of_the_worse_architecture(direction, threshold, mlp, cnn, worse):
    shared = {"direction": direction, "threshold": threshold}
    parts = tuple(
        _part(name=name, estimate=value, low=value - 0.1, high=value + 0.2, **shared)
        for name, value in (("mlp", mlp), ("cnn", cnn))
    )
    # A later part of the rule, and a gate, are nearer to their thresholds but are not the first.
    others = (_part(name="second", estimate=0.0), _gate(0.96))
    (verdict,) = _conclude(Outcome((*others, *parts), ("mlp", "cnn")))
    assert verdict.effect == worse
    assert verdict.interval == pytest.approx((worse - 0.1, worse + 0.2))


def test_verdict_carries_the_study_and_the_smallest_number_of_pairs():
    headline = Headline("M_θ", 0.9, 0.8, 1.0, "control", (0.1, 0.0, 0.2))
    parts = (_part(), _part(name="cnn", num_pairs=15, num_excluded=1), _gate(0.99))
    (verdict,) = _conclude(Outcome(parts, ("mlp",), (headline,), ("Beware.",)))
    assert (verdict.id, verdict.claim) == ("G1", "A claim.")
    assert "one control" in verdict.control
    assert "another" in verdict.control
    assert (verdict.num_pairs, verdict.num_excluded) == (15, 1)
    assert (verdict.parts, verdict.headlines, verdict.warnings) == (
        parts,
        (headline,),
        ("Beware.",),
    )


# JSON

KEYS = {
    "id",
    "claim",
    "verdict",
    "reason",
    "effect",
    "interval",
    "p_value",
    "p_adjusted",
    "control",
    "num_pairs",
    "evidence",
    "parts",
}


def test_json_has_the_promised_keys_and_no_infinity():
    parts = (
        _part(low=-math.inf, high=math.inf),
        _part(name="cnn", estimate=0.5, low=0.2, high=math.inf),
        _gate(math.nan, low=-math.inf, high=math.inf),
    )
    headline = Headline("M_x", 0.1, -math.inf, math.inf, "noise", (0.0, -math.inf, 1.0))
    (verdict,) = _conclude(Outcome(parts, ("mlp", "cnn"), (headline,)))
    plain = verdict.to_json()
    assert set(plain) >= KEYS
    text = json.dumps(plain, allow_nan=False)
    back = json.loads(text)
    assert back == plain
    assert back["effect"] == 0.4
    assert back["interval"] == [None, None]
    assert [part["name"] for part in back["parts"]] == ["mlp", "cnn", "fitted"]
    assert (back["parts"][1]["low"], back["parts"][1]["high"]) == (0.2, None)
    assert back["parts"][2]["estimate"] is None
    assert back["parts"][2]["p_value"] is None
    assert back["headlines"][0]["control"] == [0.0, None, 1.0]


def test_json_of_a_bounded_verdict():
    plain = _alone(_part()).to_json()
    assert plain["interval"] == [0.3, 0.5]
    assert plain["verdict"] == "supported"
    assert plain["num_pairs"] == 16
    assert plain["p_adjusted"] == pytest.approx(2e-5)


@pytest.mark.parametrize("kind", ["exploratory", "confirmatory"])
def test_a_run_of_any_evidence_decides(kind):
    (verdict,) = _conclude(Outcome((_part(),), ("mlp",)), evidence=kind)
    assert (verdict.evidence, verdict.verdict) == (kind, "supported")


def test_a_run_of_no_evidence_decides_no_hypothesis():
    (verdict,) = _conclude(Outcome((_part(),), ("mlp",)), evidence="none")
    assert verdict.verdict == "not at this size"
    assert "16 pairs" in verdict.reason


# What hypotheses stand on


def _with_check(check, kind, **options):
    """A hypothesis that holds, and what it stands on."""
    pairs = [
        (_study("G1", kind), Outcome((check,), ("mlp",))),
        (_study("G2", stands_on=("G1",)), Outcome((_part(),), ("mlp",))),
    ]
    return family.conclude(pairs, family_size=19, **({"evidence": "exploratory"} | options))


@pytest.mark.parametrize(
    ("kind", "held", "failed"), [("control", "met", "not met"), ("verification", "verified", "off")]
)
def test_a_check_is_held_at_raw_p_and_carries_what_stands_on_it(kind, held, failed):
    check, verdict = _with_check(_part(0.04), kind)
    assert (check.verdict, verdict.verdict) == (held, "supported")
    assert check.p_adjusted is None
    # A check is no member of the family: alone in it, p · 19.
    assert verdict.p_adjusted == pytest.approx(19e-6)
    check, verdict = _with_check(_part(0.06), kind)
    assert (check.verdict, verdict.verdict) == (failed, "inconclusive")
    assert verdict.reason == f"G1, on which the claim stands, is {failed}"


def test_a_check_needs_every_part_and_its_pairs():
    verdicts = _with_check(_part(0.001, num_excluded=3, num_pairs=13), "control")
    assert [verdict.verdict for verdict in verdicts] == ["not met", "inconclusive"]
    assert "diverged" in verdicts[0].reason
    parts = _part(0.001), _gate(0.9)
    pairs = [(_study("G1", "control"), Outcome(parts, ("mlp",)))]
    (verdict,) = family.conclude(pairs, family_size=19, evidence="exploratory")
    assert verdict.verdict == "not met"
    assert "fitted" in verdict.reason


def test_a_check_that_was_not_run_carries_nothing():
    pairs = [(_study("G2", stands_on=("G1",)), Outcome((_part(),), ("mlp",)))]
    (verdict,) = family.conclude(pairs, family_size=19, evidence="exploratory")
    assert verdict.verdict == "inconclusive"
    assert "G1" in verdict.reason and "not run" in verdict.reason
