"""The family of twenty hypotheses, and how tests become verdicts."""

from collections.abc import Iterable, Sequence

from halfway import stats
from halfway.lab.study.protocol import Evidence, Outcome, PartResult, Study, Verdict, Word
from halfway.lab.study.wording import format_p

FAMILY: tuple[tuple[str, str], ...] = (
    ("G1", "training on one half descends the other"),
    ("G2", "noise costs more than the wrong labels"),
    ("G3", "early coherence predicts the gap"),
    ("G4", "halves disagree as often as they err"),
    ("G5", "halves meet class by class"),
    ("G6", "weights meet in the middle, matched"),
    ("G7", "halves learn the same examples first"),
    ("G8", "fresh data memorizes nothing"),
    ("T1", "an attack moves the other model"),
    ("T2", "gradient alignment predicts transfer"),
    ("T3", "transfer follows generalization"),
    ("T4", "attacks align before accuracy"),
    ("T5", "shared data is not needed"),
    ("T6", "perturbations are features"),
    ("T7", "more surrogates, by the second law"),
    ("T8", "models share adversarial directions"),
    ("T9", "decision boundaries meet"),
    ("T10", "on- and off-manifold parts differ"),
    ("T11", "transfer crosses architectures"),
    ("T12", "size, alignment, variability all tell"),
)
"""Id and a claim in few words, in the order of the report. Holm is over all of them."""

LEVEL = 0.05
MAX_EXCLUDED = 1 / 16
"""More than this share of pairs with a number that is not finite makes a verdict inconclusive."""


def conclude(outcomes: Sequence[tuple[Study, Outcome]], *, evidence: Evidence) -> list[Verdict]:
    """Returns the verdicts of all hypotheses that were run, adjusted over the whole family.

    One p-value a hypothesis, the largest over its tests; Holm over twenty, those not run entering
    as 1. Supported: adjusted p < .05. Refuted: the adjusted p of the reverse < .05. Otherwise, and
    where a gate is not met or too many pairs diverged, inconclusive with the reason.

    Args:
      outcomes: study and outcome of each hypothesis that was run.
      evidence: the kind that the run is, see `evidence.kind`.
    """
    adjusted = stats.holm([outcome.p_value for _, outcome in outcomes], len(FAMILY))
    reverse = stats.holm([outcome.p_reverse for _, outcome in outcomes], len(FAMILY))
    return [
        _verdict(study, outcome, float(p), float(r), evidence)
        for (study, outcome), p, r in zip(outcomes, adjusted, reverse, strict=True)
    ]


def _verdict(
    study: Study, outcome: Outcome, adjusted: float, reverse: float, kind: Evidence
) -> Verdict:
    word, reason = _decide(outcome, adjusted, reverse)
    effect = outcome.effect
    return Verdict(
        id=study.id,
        claim=study.claim,
        verdict=word,
        reason=reason,
        effect=effect.estimate,
        interval=(effect.low, effect.high),
        p_value=outcome.p_value,
        p_adjusted=adjusted,
        control="; ".join(study.controls),
        num_pairs=min(part.num_pairs for part in outcome.parts),
        evidence=kind,
        parts=outcome.parts,
        headlines=outcome.headlines,
        warnings=outcome.warnings,
        num_excluded=max(part.num_excluded for part in outcome.parts),
    )


def _decide(outcome: Outcome, adjusted: float, reverse: float) -> tuple[Word, str]:
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
            f"every test holds; largest p, Holm-adjusted over 20, is {format_p(adjusted)}",
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


def sort_ids(ids: Iterable[str]) -> list[str]:
    """Returns hypotheses in the order of the family."""
    names = [name for name, _ in FAMILY]
    return sorted(ids, key=names.index)
