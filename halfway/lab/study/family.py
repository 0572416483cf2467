"""How the tests of all studies together become verdicts."""

import math
from collections.abc import Mapping, Sequence

from halfway import stats
from halfway.lab.study.evidence import MIN_PAIRS
from halfway.lab.study.protocol import Study
from halfway.lab.study.verdict import (
    HELD,
    WORDS,
    Evidence,
    Outcome,
    PartResult,
    Verdict,
    Word,
)
from halfway.lab.study.wording import format_p, format_rule

LEVEL = 0.05
MAX_EXCLUDED = 1 / 16
"""More than this share of pairs with a number that is not finite makes a verdict inconclusive."""


def conclude(
    outcomes: Sequence[tuple[Study, Outcome]],
    *,
    family_size: int,
    evidence: Evidence,
    by_study: Mapping[str, Evidence] | None = None,
) -> list[Verdict]:
    """Returns the verdicts of all studies that were run, hypotheses adjusted over the whole family.

    A control is met, and a verification verified, where each of its tests has raw p < .05. One
    p-value a hypothesis, the largest over its tests; Holm over all, those not run entering as 1.
    Supported: adjusted p < .05. Refuted: the adjusted p of the reverse < .05. Otherwise, and where
    a gate is not met, a control that it stands on is not, or too many pairs are left out,
    inconclusive with the reason. In a run of evidence "none" hypotheses have no verdict. A
    description is "described", whatever it found.

    Args:
      outcomes: study and outcome of each that was run.
      family_size: the number of hypotheses there are.
      evidence: the kind that the run is, see `evidence.kind`.
      by_study: the kind of each study's verdict, by id, where it may differ.
    """
    checks = {
        study.id: _check(study, outcome)
        for study, outcome in outcomes
        if study.kind in ("control", "verification")
    }
    family = [(study, outcome) for study, outcome in outcomes if study.kind == "hypothesis"]
    adjusted = stats.holm([outcome.p_value for _, outcome in family], family_size)
    reverse = stats.holm([outcome.p_reverse for _, outcome in family], family_size)
    p_values = {
        study.id: (float(p), float(r))
        for (study, _), p, r in zip(family, adjusted, reverse, strict=True)
    }

    def kinds(study: Study) -> Evidence:
        return (by_study or {}).get(study.id, evidence)

    words = {name: word for name, (word, _) in checks.items()}
    verdicts = []
    for study, outcome in outcomes:
        if study.id in checks:
            word, reason = checks[study.id]
            verdicts.append(_verdict(study, outcome, word, reason, None, kinds(study)))
            continue
        if study.kind == "description":
            verdicts.append(_described(study, outcome, kinds(study)))
            continue
        p_adjusted, p_reverse = p_values[study.id]
        word, reason = _decide(outcome, p_adjusted, p_reverse, family_size)
        if reason_to_doubt := doubt(study, words):
            word, reason = "inconclusive", reason_to_doubt
        if evidence == "none":
            word, reason = "not at this size", f"at least {MIN_PAIRS} pairs are needed"
        verdicts.append(_verdict(study, outcome, word, reason, p_adjusted, kinds(study)))
    return verdicts


def _described(study: Study, outcome: Outcome, evidence: Evidence) -> Verdict:
    """Returns what stands for the verdict of a description: its first number, and no test."""
    first = outcome.headlines[0]
    return Verdict(
        id=study.id,
        claim=study.claim,
        verdict="described",
        reason="a description decides nothing",
        effect=first.estimate,
        interval=(first.low, first.high),
        p_value=math.nan,
        p_adjusted=None,
        control="; ".join(study.text.controls),
        num_pairs=outcome.num_pairs,
        evidence=evidence,
        parts=(),
        headlines=outcome.headlines,
        warnings=outcome.warnings,
        kind=study.kind,
    )


def _check(study: Study, outcome: Outcome) -> tuple[Word, str]:
    """Returns the word and the reason of a control or a verification."""
    held, failed = WORDS[study.kind]
    if missing := _missing(outcome):
        return failed, missing
    failing = [part for part in outcome.parts if not part.passed]
    if not failing:
        return held, "every part holds, each with raw p < .05"
    part = failing[0]
    p_value = "" if part.p_value is None else f", raw p {_equals(part.p_value)}"
    return failed, (
        f"'{part.name}' does not hold: {part.statistic} is {part.estimate:.3g}, must be "
        f"{format_rule(part)}{p_value}"
    )


def doubt(study: Study, words: Mapping[str, str]) -> str:
    """Returns why a hypothesis has nothing to stand on; empty where it has.

    Args:
      study: the hypothesis.
      words: what controls and verifications that were run have come to, by id.
    """
    for name in study.stands_on:
        word = words.get(name)
        if word is None:
            return f"{name}, on which the claim stands, was not run"
        if word not in HELD:
            return f"{name}, on which the claim stands, is {word}"
    return ""


def _verdict(
    study: Study,
    outcome: Outcome,
    word: Word,
    reason: str,
    p_adjusted: float | None,
    evidence: Evidence,
) -> Verdict:
    effect = outcome.effect
    return Verdict(
        id=study.id,
        claim=study.claim,
        verdict=word,
        reason=reason,
        effect=effect.estimate,
        interval=(effect.low, effect.high),
        p_value=outcome.p_value,
        p_adjusted=p_adjusted,
        control="; ".join(study.text.controls),
        num_pairs=min(part.num_pairs for part in outcome.parts),
        evidence=evidence,
        parts=outcome.parts,
        headlines=outcome.headlines,
        warnings=outcome.warnings,
        num_excluded=max(part.num_excluded for part in outcome.parts),
        kind=study.kind,
    )


def _missing(outcome: Outcome) -> str:
    """Returns how many pairs have no value where these are too many; else nothing."""
    too_many = [p for p in outcome.parts if _share_excluded(p) > MAX_EXCLUDED]
    if not too_many:
        return ""
    worst = max(too_many, key=_share_excluded)
    total = worst.num_excluded + worst.num_pairs
    return (
        f"{worst.num_excluded} of {total} pairs of '{worst.name}', more than 1 in 16, diverged in "
        "training or have no defined value"
    )


def _decide(
    outcome: Outcome, adjusted: float, reverse: float, family_size: int
) -> tuple[Word, str]:
    """Returns the word and the reason of a hypothesis, whatever it stands on."""
    if missing := _missing(outcome):
        return "inconclusive", missing
    unmet = [part for part in outcome.parts if part.kind == "gate" and not part.passed]
    if unmet:
        part = unmet[0]
        p_value = "" if part.p_value is None else f", raw p {_equals(part.p_value)}"
        return "inconclusive", (
            f"gate not met: {part.statistic} ({part.name}) is {part.estimate:.3g}, must be "
            f"{format_rule(part)}{p_value}"
        )
    if adjusted < LEVEL:
        return (
            "supported",
            f"every test holds; the largest p, Holm-adjusted over {family_size}, is "
            f"{format_p(adjusted)}",
        )
    if reverse < LEVEL:
        part = min(outcome.tests, key=lambda p: 1.0 if p.p_reverse is None else p.p_reverse)
        return "refuted", f"the reverse of '{part.name}' holds, adjusted p {_equals(reverse)}"
    part = max(outcome.tests, key=lambda p: 1.0 if p.p_value is None else p.p_value)
    return "inconclusive", (
        f"'{part.name}' is not clear of its threshold: adjusted p {_equals(adjusted)} for the "
        f"claim, {format_p(reverse)} for its reverse"
    )


def _equals(p_value: float) -> str:
    text = format_p(p_value)
    return text if text.startswith("<") else f"= {text}"


def _share_excluded(part: PartResult) -> float:
    total = part.num_pairs + part.num_excluded
    return part.num_excluded / total if total else 1.0
