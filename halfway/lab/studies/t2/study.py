"""T2: input-gradient alignment predicts transfer example by example."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t2 import figures as drawing
from halfway.lab.studies.t2.measure import FIRST_ORDER
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
MARGIN = (0.8, 1.25)
"""Calibration slopes that count as calibrated."""
NUM_BINS = 5
"""Bins of the target's margin, of equal counts within a direction; times class: the strata."""
POOLED, STRATIFIED, CALIBRATION = "pooled", "stratified", "calibration"


class Outcomes(NamedTuple):
    """What happens to each example of S in the directions A→B and B→A, `[P, 2, B]` each.

    Attributes:
      eligible: the attack fools the surrogate, and both models are right on the clean image.
      fooled: the attack on the surrogate fools the target.
      target_loss: margin loss of the target on the clean image.
      score: ⟨h_B, s(h_A)⟩.
      predicted: change of the target's margin loss by one small step, to first order.
      actual: the same as measured.
      labels: `[P, B]`, the classes.
      finite: `[P]`, pairs whose models stayed finite.
    """

    eligible: np.ndarray
    fooled: np.ndarray
    target_loss: np.ndarray
    score: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray
    labels: np.ndarray
    finite: np.ndarray


class Sums(NamedTuple):
    """Numerators and denominators `[P]` of both AUCs and of the calibration slope."""

    pooled: RatioTerms
    stratified: RatioTerms
    calibration: RatioTerms


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns transfer and first-order predictions of the first architecture at ρ = 0."""
    trained = (decided_on(config),)
    return [Request(measurement, trained) for measurement in (LEARNING, TRANSFER, FIRST_ORDER)]


def outcomes(attacked: Measured, predicted: Measured) -> Outcomes:
    """Returns the outcomes of every example by direction.

    Args:
      attacked: of `TRANSFER`.
      predicted: of `FIRST_ORDER`.
    """
    correct, loss = (
        attacked.read(name, "pair", "model", "example") for name in ("clean_correct", "clean_loss")
    )
    fooled = attacked.read("fooled", "pair", "surrogate", "target", "example")
    surrogate, target = np.array([0, 1]), np.array([1, 0])
    score, change, actual = (
        predicted.read(name, "pair", "surrogate", "example")
        for name in ("score", "predicted", "actual")
    )
    return Outcomes(
        eligible=correct.all(1, keepdims=True) & fooled[:, surrogate, surrogate],
        fooled=fooled[:, surrogate, target],
        target_loss=loss[:, target],
        score=score,
        predicted=change,
        actual=actual,
        labels=attacked.read("label", "pair", "example"),
        finite=attacked.finite,
    )


def margin_bins(loss: np.ndarray) -> np.ndarray:
    """Returns `[B]` the bin of each margin loss, `NUM_BINS` bins of equal counts by rank."""
    ranks = np.empty(len(loss), int)
    ranks[np.argsort(loss, kind="stable")] = np.arange(len(loss))
    return NUM_BINS * ranks // max(1, len(loss))


def sums(examples: Outcomes) -> Sums:
    """Returns the sums of both AUCs and of the slope, each over both directions of a pair.

    The AUCs are over eligible examples; A→B and B→A are compared within themselves. The slope is
    over all of S. NaN for pairs that diverged.

    Args:
      examples: of `outcomes`.
    """
    num_pairs = len(examples.finite)
    total = np.where(examples.finite, 0.0, np.full((3, 2, num_pairs), np.nan))
    for p in np.flatnonzero(examples.finite):
        for direction in range(2):
            place = p, direction
            eligible = examples.eligible[place]
            score, fooled = examples.score[place][eligible], examples.fooled[place][eligible]
            bins = margin_bins(examples.target_loss[place][eligible])
            strata = NUM_BINS * examples.labels[p][eligible].astype(int) + bins
            total[0, :, p] += stats.auc(score, fooled)
            total[1, :, p] += stats.auc(score, fooled, strata)
            total[2, :, p] += stats.slope(examples.predicted[place], examples.actual[place])
    return Sums(*(RatioTerms(*terms) for terms in total))


def _examples(records: Records) -> Outcomes:
    trained = decided_on(records.config)
    return outcomes(records.get(TRANSFER, trained), records.get(FIRST_ORDER, trained))


def decide(records: Records) -> Outcome:
    """Returns two AUCs above ½ and the calibration slope within its margins."""
    config, total = records.config, sums(_examples(records))
    parts = [
        rules.part(
            stats.bounded(stats.ratio_test(*terms, 0.5, alternative="greater")),
            label,
            f"AUC of ⟨h_B, s(h_A)⟩ for fooling B at ε = {config.attack.epsilon:g}, {how}",
            "greater",
            0.5,
            control=control,
        )
        for label, terms, how, control in (
            (POOLED, total.pooled, "all examples together", ""),
            (STRATIFIED, total.stratified, "within margin bin and class", "margin and class"),
        )
    ]
    parts.append(
        rules.part(
            stats.ratio_equivalence(*total.calibration, *MARGIN),
            CALIBRATION,
            "slope of measured against predicted change, one clipped step, "
            f"ε = {config.attack.epsilon_calibration:g}",
            "within",
            *MARGIN,
        )
    )
    headline = rules.headline(
        f"AUC ({config.architectures[0]})",
        stats.bounded(stats.fieller(*total.pooled)),
        "within margin bin and class",
        stats.bounded(stats.fieller(*total.stratified)),
    )
    return Outcome(tuple(parts), (POOLED,), (headline,))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the transfer rate by predicted change, and the calibration of one step.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    examples = _examples(records)
    slope = stats.fieller(*sums(examples).calibration).estimate
    shape = examples.eligible.shape
    pair = np.broadcast_to(np.arange(shape[0])[:, None, None], shape)
    chosen = examples.eligible & examples.finite[:, None, None]
    axes = drawing.rates(
        examples.score[chosen],
        examples.fooled[chosen],
        pair[chosen],
        ylabel=f"share that fools B at ε = {records.config.attack.epsilon:g}",
    )
    caption = TEXT.caption("t2_rates", verdict)
    drawn = [Figure("t2_rates", caption, rules.figure_of(axes))]
    predicted, actual = (
        (values - values.mean(-1, keepdims=True))[examples.finite].ravel()
        for values in (examples.predicted, examples.actual)
    )
    pairs = pair[examples.finite].ravel()
    axes = drawing.calibration(predicted, actual, pairs, slope=slope, margin=MARGIN)
    caption = TEXT.caption("t2_calibration", verdict, **words(verdict))
    return [*drawn, Figure("t2_calibration", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the calibration slope, and the slopes that count as calibrated."""
    part = next(part for part in verdict.parts if part.name == CALIBRATION)
    return {
        "slope": wording.format_estimate(part.estimate, part.low, part.high),
        "least": f"{MARGIN[0]:g}",
        "most": f"{MARGIN[1]:g}",
    }


STUDY = Study("T2", TEXT, needs, decide, figures, words, stands_on=("T1",))
