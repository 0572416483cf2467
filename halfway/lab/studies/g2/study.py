"""G2: noise costs more meeting than the wrong labels themselves."""

import itertools
from collections.abc import Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import learning
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g2 import figures as drawing
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Outcome, PartResult, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
MARGIN = 0.03
"""Of the leakage check at ρ = 1: half-widths of M_θ in error."""
GATE = 0.95
"""Mean training accuracy that every rate must exceed."""


def conditions(config: RunConfig, architecture: str) -> dict[float, Condition]:
    """Returns the condition of each noise rate, ascending.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    return {rate: condition(config, architecture, noise_rate=rate) for rate in config.noise_rates}


def steps(config: RunConfig, architecture: str) -> dict[str, tuple[float, float]]:
    """Returns each step from one noise rate below 1 to the next, by the name of its test.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    below = [rate for rate in config.noise_rates if rate < 1]
    return {
        f"{architecture}, ρ {low:g} to {high:g}": (low, high)
        for low, high in itertools.pairwise(below)
    }


def leakage(architecture: str) -> str:
    """Returns the name of the test at ρ = 1."""
    return f"{architecture}, ρ = 1"


def share(terms: learning.RatioTerms, rate: float) -> learning.RatioTerms:
    """Returns the terms of M_θ/(1 − ρ), from those of M_θ.

    Args:
      terms: of M_θ.
      rate: ρ, below 1.
    """
    return learning.RatioTerms(terms.numerators / (1 - rate), terms.denominators)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training at every noise rate, for each architecture."""
    return [
        Request(LEARNING, (trained,))
        for architecture in config.architectures
        for trained in conditions(config, architecture).values()
    ]


def decide(records: Records) -> Outcome:
    """Returns the adjacent differences, the leakage check and the gates of each architecture."""
    config = records.config
    parts, gates, headlines, first = [], [], [], []
    for architecture in config.architectures:
        learned = {
            rate: records.get(LEARNING, trained)
            for rate, trained in conditions(config, architecture).items()
        }
        terms = {rate: learning.meeting_terms(measured) for rate, measured in learned.items()}
        differences = _differences(config, architecture, terms)
        parts += differences
        first.append(differences[0].name)
        parts.append(
            rules.part(
                stats.ratio_equivalence(*terms[1.0], -MARGIN, MARGIN),
                leakage(architecture),
                "M_θ in error at ρ = 1",
                "within",
                -MARGIN,
                MARGIN,
            )
        )
        gates += [
            rules.gate(
                learning.training_accuracy(measured),
                f"{architecture}, trained at ρ = {rate:g}",
                "mean training accuracy",
                GATE,
                bounds=(0, 1),
            )
            for rate, measured in learned.items()
        ]
        least, *_, most = (rate for rate in terms if rate < 1)
        headlines.append(
            rules.headline(
                f"M_θ/(1 − ρ) at ρ = {most:g} ({architecture})",
                stats.fieller(*share(terms[most], most)),
                f"at ρ = {least:g}",
                stats.fieller(*terms[least]),
            )
        )
    return Outcome(tuple(parts + gates), tuple(first), tuple(headlines))


def _differences(
    config: RunConfig, architecture: str, terms: dict[float, learning.RatioTerms]
) -> list[PartResult]:
    """Returns a paired test of each step: M_θ/(1 − ρ) at the higher rate is less."""
    return [
        rules.part(
            stats.ratio_difference(
                *share(terms[high], high),
                *share(terms[low], low),
                threshold=0.0,
                alternative="less",
                paired=True,
            ),
            name,
            f"M_θ/(1 − ρ) in error at ρ = {high:g} minus the same at {low:g}",
            "less",
            0.0,
            control="the ceiling",
        )
        for name, (low, high) in steps(config, architecture).items()
    ]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns M_θ against the noise rate, under the ceiling, with training accuracy.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    learned = [
        [records.get(LEARNING, trained) for trained in conditions(config, architecture).values()]
        for architecture in config.architectures
    ]
    intervals = [
        [rules.triple(stats.fieller(*learning.meeting_terms(measured))) for measured in row]
        for row in learned
    ]
    accuracies = [
        [np.nanmean(learning.training_accuracy(measured)) for measured in row] for row in learned
    ]
    rates = np.array(config.noise_rates)
    axes = drawing.dose_response(
        rates,
        *np.moveaxis(np.array(intervals), -1, 0),
        names=config.architectures,
        ceiling=1 - rates,
        training_accuracy=np.array(accuracies),
        gate=GATE,
    )
    caption = TEXT.caption("g2_dose_response", verdict)
    return [Figure("g2_dose_response", caption, rules.figure_of(axes))]


STUDY = Study("G2", TEXT, needs, decide, figures, stands_on=("G1",))
