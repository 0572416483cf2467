"""G1, a control: training on one half descends the other."""

from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import learning
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition, control
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__, "control")
CONTROL = "permuted labels"
LEAD = 0.05
"""By which M_θ must exceed that of the control."""


def conditions(config: RunConfig, architecture: str) -> tuple[Condition, Condition]:
    """Returns the condition without label noise, and its control of equal seeds.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    return condition(config, architecture), control(config, architecture)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training under both conditions, for each architecture."""
    return [
        Request(LEARNING, (trained,))
        for architecture in config.architectures
        for trained in conditions(config, architecture)
    ]


def _terms(records: Records, architecture: str) -> list[learning.RatioTerms]:
    """Returns the terms of M_θ with true labels, and with permuted ones."""
    return [
        learning.meeting_terms(records.get(LEARNING, trained))
        for trained in conditions(records.config, architecture)
    ]


def decide(records: Records) -> Outcome:
    """Returns one paired test of M_θ minus that of its control for each architecture."""
    parts, headlines = [], []
    for architecture in records.config.architectures:
        true, permuted = _terms(records, architecture)
        decision = stats.ratio_difference(
            *true, *permuted, threshold=LEAD, alternative="greater", paired=True
        )
        statistic = f"M_θ in error minus M_θ with {CONTROL}"
        parts.append(
            rules.part(decision, architecture, statistic, "greater", LEAD, control=CONTROL)
        )
        headlines.append(
            rules.headline(
                f"M_θ in error ({architecture})",
                stats.fieller(*true),
                CONTROL,
                stats.fieller(*permuted),
            )
        )
    return Outcome(tuple(parts), tuple(records.config.architectures), tuple(headlines))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's M_θ beside its control.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    names = records.config.architectures
    terms = [_terms(records, architecture) for architecture in names]
    ratios = np.array([[rules.ratios(*kind) for kind in kinds] for kinds in terms])
    intervals = [[rules.triple(stats.fieller(*kind)) for kind in kinds] for kinds in terms]
    axes = plots.pair_comparison(
        ratios[:, 0],
        ratios[:, 1:],
        names=names,
        treatment="true labels",
        control_names=[CONTROL],
        xlabel="M_θ in error, share of own progress that the other half makes",
        intervals=np.array(intervals),
    )
    caption = TEXT.caption("g1_meeting", verdict)
    return [Figure("g1_meeting", caption, rules.figure_of(axes))]


STUDY = Study("G1", TEXT, needs, decide, figures, kind="control")
