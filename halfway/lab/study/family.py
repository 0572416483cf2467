"""How the tests of all hypotheses together become verdicts."""

from collections.abc import Sequence

from halfway import stats
from halfway.lab.study.protocol import Study
from halfway.lab.study.verdict import Evidence, Outcome, PartResult, Verdict, Word
from halfway.lab.study.wording import format_p

LEVEL = 0.05
MAX_EXCLUDED = 1 / 16
"""More than this share of pairs with a number that is not finite makes a verdict inconclusive."""


def conclude(
    outcomes: Sequence[tuple[Study, Outcome]], *, family_size: int, evidence: Evidence
) -> list[Verdict]:
    """Returns the verdicts of all hypotheses that were run, adjusted over the whole family.

    One p-value a hypothesis, the largest over its tests; Holm over all, those not run entering as
    1. Supported: adjusted p < .05. Refuted: the adjusted p of the reverse < .05. Otherwise, and
    where a gate is not met or too many pairs diverged, inconclusive with the reason.

    Args:
      outcomes: study and outcome of each hypothesis that was run.
      family_size: the number of hypotheses there are.
      evidence: the kind that the run is, see `evidence.kind`.
    """
    adjusted = stats.holm([outcome.p_value for _, outcome in outcomes], family_size)
    reverse = stats.holm([outcome.p_reverse for _, outcome in outcomes], family_size)
    return [
        _verdict(study, outcome, (float(p), float(r)), family_size, evidence)
        for (study, outcome), p, r in zip(outcomes, adjusted, reverse, strict=True)
    ]


def _verdict(
    study: Study,
    outcome: Outcome,
    adjusted: tuple[float, float],
    family_size: int,
    evidence: Evidence,
) -> Verdict:
    word, reason = _decide(outcome, *adjusted, family_size)
    effect = outcome.effect
    return Verdict(
        id=study.id,
        claim=study.claim,
        verdict=word,
        reason=reason,
        effect=effect.estimate,
        interval=(effect.low, effect.high),
        p_value=outcome.p_value,
        p_adjusted=adjusted[0],
        control="; ".join(study.text.controls),
        num_pairs=min(part.num_pairs for part in outcome.parts),
        evidence=evidence,
        parts=outcome.parts,
        headlines=outcome.headlines,
        warnings=outcome.warnings,
        num_excluded=max(part.num_excluded for part in outcome.parts),
    )


def _decide(
    outcome: Outcome, adjusted: float, reverse: float, family_size: int
) -> tuple[Word, str]:
    too_many = [p for p in outcome.parts if _share_excluded(p) > MAX_EXCLUDED]
    if too_many:
        worst = max(too_many, key=_share_excluded)
        total = worst.num_excluded + worst.num_pairs
        return "inconclusive", (
            f"{worst.num_excluded} of {total} pairs of '{worst.name}' diverged in training, more "
            "than 1 in 16"
        )
    unmet = [part for part in outcome.parts if part.kind == "gate" and not part.passed]
    if unmet:
        part = unmet[0]
        sign = ">" if part.direction == "greater" else "<"
        return "inconclusive", (
            f"gate not met: {part.statistic} ({part.name}) is {part.estimate:.3g}, not {sign} "
            f"{part.threshold[0]:g}"
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
