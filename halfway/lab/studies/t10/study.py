"""T10: what lies on the data transfers, what leaves it less."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import transfer
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.t10 import figures as drawing
from halfway.lab.studies.t10.measure import (
    MANIFOLD_PARTS,
    NUM_COMPONENTS,
    PARTS,
    VARIANCE,
)
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict

TEXT = text.load(__file__)
LEAD = 0.1
"""By which M_x of the part on the data must exceed that of the part off them."""
NAMES = {
    "on": "part on the data",
    "off": "part off the data",
    "rest": "part without variance",
    "whole": "whole perturbation",
}
"""The parts in words."""


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns the parts' effects for each architecture at ρ = 0."""
    return [
        Request(measurement, (condition(config, name),))
        for name in config.architectures
        for measurement in (LEARNING, MANIFOLD_PARTS)
    ]


def terms(split: Measured, part: str) -> RatioTerms:
    """Returns numerators and denominators of M_x at a part of the perturbation.

    Args:
      split: of `MANIFOLD_PARTS`.
      part: of `PARTS`.
    """
    increase = split.read("increase", "pair", "surrogate", "target", part=part)
    return RatioTerms(transfer.both_directions(increase), transfer.both_directions(increase, "own"))


def _energy(split: Measured, part: str) -> RatioTerms:
    """Returns `[P]` the energy of a part and that of the perturbation, both directions summed."""
    inside, everything = (
        split.read("energy", "pair", "surrogate", part=name).sum(-1) for name in (part, "whole")
    )
    return RatioTerms(inside, everything)


def _by_architecture(records: Records) -> dict[str, Measured]:
    config = records.config
    return {
        name: records.get(MANIFOLD_PARTS, condition(config, name)) for name in config.architectures
    }


def decide(records: Records) -> Outcome:
    """Returns each architecture's lead of the part on the data, as a difference of two M_x.

    M_x at a part is the rise of the other model's margin loss over that of the attacked one, both
    along that part, summed over all of S and both directions. The test is the paired t on
    linearized values.
    """
    parts, headlines, described = [], [], []
    for architecture, split in _by_architecture(records).items():
        decision = stats.ratio_difference(
            *terms(split, "on"),
            *terms(split, "off"),
            threshold=LEAD,
            alternative="greater",
            paired=True,
        )
        statistic = (
            f"M_x of components 1 to {NUM_COMPONENTS} of S minus M_x of the next ones up to "
            f"{100 * VARIANCE:g} % of the variance, ε = {records.config.attack.epsilon:g}, "
            "equal norm"
        )
        parts.append(
            rules.part(decision, architecture, statistic, "greater", LEAD, control=TEXT.controls[0])
        )
        on, off, rest, whole = (stats.fieller(*terms(split, part)) for part in PARTS)
        headlines.append(
            rules.headline(f"M_x of the {NAMES['on']} ({architecture})", on, NAMES["off"], off)
        )
        described.append(
            rules.headline(
                f"M_x of the {NAMES['rest']} ({architecture})", rest, NAMES["whole"], whole
            )
        )
        described += _described(split, architecture)
    names = tuple(records.config.architectures)
    return Outcome(tuple(parts), names, (*headlines, *described))


def _described(split: Measured, architecture: str) -> list[Headline]:
    """Returns energy shares of the two parts, and what they do to the attacked model itself."""
    on, off = (stats.bounded(stats.fieller(*_energy(split, part))) for part in ("on", "off"))
    relative = stats.fieller(terms(split, "off").denominators, terms(split, "on").denominators)
    return [
        rules.headline(
            f"share of the perturbation's energy in the {NAMES['on']} ({architecture})",
            on,
            NAMES["off"],
            off,
        ),
        rules.headline(
            f"rise of the attacked model's own loss along the {NAMES['off']} ({architecture}), "
            "relative to the other part",
            relative,
        ),
    ]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns M_x of both parts against each other, and of all parts beside the whole.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    by_architecture = _by_architecture(records)
    coefficients = {
        part: {name: rules.ratios(*terms(split, part)) for name, split in by_architecture.items()}
        for part in PARTS
    }
    lead = drawing.parts(coefficients["on"], coefficients["off"], lead=LEAD)
    intervals = [
        [rules.triple(stats.fieller(*terms(split, part))) for part in PARTS]
        for split in by_architecture.values()
    ]
    beside = plots.pair_comparison(
        np.array(list(coefficients["on"].values())),
        np.array([[coefficients[part][name] for part in PARTS[1:]] for name in by_architecture]),
        names=list(by_architecture),
        treatment=NAMES["on"],
        control_names=[NAMES[part] for part in PARTS[1:]],
        xlabel="M_x, share of the attacked model's rise that the other model sees",
        intervals=intervals,
        threshold=0.0,
    )
    named = words(verdict)
    number = [split.read("num_components") for split in by_architecture.values()]
    finite = np.concatenate(number)[np.isfinite(np.concatenate(number))]
    held = f"{np.median(finite):.0f}" if finite.size else "all"
    return [
        Figure(name, TEXT.caption(name, verdict, **named, held=held), rules.figure_of(axes))
        for name, axes in (("t10_parts", lead), ("t10_variance", beside))
    ]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns M_x of both parts, the number of components, their variance and the least lead."""
    least = min(verdict.parts, key=lambda part: part.clearance)
    pairs = verdict.headlines[: len(verdict.parts)]
    return {
        "coefficients": "; ".join(map(wording.format_headline, pairs)),
        "num_components": str(NUM_COMPONENTS),
        "variance": f"{100 * VARIANCE:g} %",
        "lead": f"{LEAD:g}",
        "least": wording.format_estimate(least.estimate, least.low, least.high),
        "least_name": least.name,
    }


STUDY = Study("T10", TEXT, needs, decide, figures, words, stands_on=("T1",))
