"""G5: halves meet class by class."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.g5.measure import CLASSES, LABELS, MATRICES
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
DECIDES = "residual-free, at initialization"


def on_holdout(config: RunConfig) -> Condition:
    """Returns the condition that is looked at: trained on S, so that θ depends on neither half."""
    trained = condition(config, config.architectures[0])
    return dataclasses.replace(trained, on_holdout=True)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training on S and the class matrices before and after it."""
    trained = on_holdout(config)
    return [Request(LEARNING, (trained,)), Request(CLASSES, (trained,))]


def contrasts(
    classes: Measured, matrix: str = MATRICES[0], step: int = 0
) -> tuple[RatioTerms, RatioTerms]:
    """Returns the terms of a contrast by true and by shuffled labels, both directions summed.

    Args:
      classes: of `CLASSES`.
      matrix: of `MATRICES`.
      step: 0, or the last of training on S.
    """

    def read(name: str, labels: str) -> np.ndarray:
        return classes.read(name, "pair", "model", matrix=matrix, labels=labels, step=step).sum(-1)

    true, shuffled = (
        RatioTerms(read("class_contrast", labels), read("class_size", labels)) for labels in LABELS
    )
    return true, shuffled


def decide(records: Records) -> Outcome:
    """Returns the contrast minus that of shuffled labels, at initialization."""
    trained = on_holdout(records.config)
    classes = records.get(CLASSES, trained)
    true, shuffled = contrasts(classes)
    part = rules.part(
        stats.ratio_difference(*true, *shuffled, threshold=0.0, alternative="greater", paired=True),
        DECIDES,
        "(mean diagonal − mean off-diagonal)/mean|entry| minus the same for shuffled labels",
        "greater",
        0.0,
        control="shuffled labels",
    )
    last = trained.probe_steps[-1]
    headlines = (
        _headline(DECIDES, true, shuffled),
        _headline("residual-free, trained on S", *contrasts(classes, MATRICES[0], last)),
        _headline("with residuals, at initialization", *contrasts(classes, MATRICES[1])),
        _headline("with residuals, trained on S", *contrasts(classes, MATRICES[1], last)),
    )
    return Outcome((part,), (DECIDES,), headlines)


def _headline(where: str, true: RatioTerms, shuffled: RatioTerms) -> Headline:
    """Returns a contrast beside that of shuffled labels."""
    return rules.headline(
        f"contrast, {where}", stats.fieller(*true), "shuffled labels", stats.fieller(*shuffled)
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's contrast beside its control, and the mean matrices.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    classes = records.get(CLASSES, on_holdout(records.config))
    true, shuffled = (rules.ratios(*terms) for terms in contrasts(classes))
    axes = plots.pair_comparison(
        true[None],
        shuffled[None, None],
        names=records.config.architectures[:1],
        treatment="true labels",
        control_names=["shuffled labels"],
        xlabel="(mean diagonal − mean off-diagonal) / mean |entry|, at initialization",
    )
    caption = TEXT.caption("g5_contrast", verdict)
    drawn = [Figure("g5_contrast", caption, rules.figure_of(axes))]
    if classes.finite.any():
        drawn += _matrices(classes, verdict)
    return drawn


def _matrices(classes: Measured, verdict: Verdict) -> list[Figure]:
    """Returns the residual-free matrix before and after training on S, mean over A, B and pairs."""
    chosen = classes["class_matrix"].sel(matrix=MATRICES[0], labels=LABELS[0])
    matrices = chosen.transpose("step", "pair", "model", "class", "other_class").values
    drawn = []
    for when, of_pairs in zip(("start", "end"), matrices[:, classes.finite], strict=True):
        axes = plots.meeting_matrix(
            np.nanmean(of_pairs, (0, 1)), label="tr K(x, x′)/C, mean over A and B"
        )
        name = f"g5_matrix_{when}"
        drawn.append(Figure(name, TEXT.caption(name, verdict), rules.figure_of(axes)))
    return drawn


STUDY = Study("G5", TEXT, needs, decide, figures, stands_on=("G1",))
