"""T10: the on- and off-manifold parts of a perturbation transfer differently."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import transfer
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.t10 import figures as drawing
from halfway.lab.studies.t10.measure import MANIFOLD_PARTS, NUM_COMPONENTS
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict

TEXT = text.load(__file__)
MARGIN = 0.05
"""A difference of M_x within it counts as none: the reverse of the claim."""
PART = "on against off"


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns the parts' effects for each architecture at ρ = 0; the first decides."""
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


def energy(split: Measured, move: str) -> RatioTerms:
    """Returns `[P]` the energy on the subspace and all of it, both directions summed.

    Args:
      split: of `MANIFOLD_PARTS`.
      move: of `MOVES`.
    """
    on, everything = (
        split.read(name, "pair", "surrogate", move=move).sum(-1) for name in ("energy_on", "energy")
    )
    return RatioTerms(on, everything)


def measured(records: Records) -> dict[str, Measured]:
    """Returns the parts of each architecture that was measured; the first decides."""
    names = records.config.architectures
    conditions = {name: condition(records.config, name) for name in names}
    return {
        name: records.get(MANIFOLD_PARTS, trained)
        for name, trained in conditions.items()
        if name == names[0] or records.has(MANIFOLD_PARTS, trained)
    }


def decide(records: Records) -> Outcome:
    """Returns the two-sided test of the difference, with the equivalence as its reverse."""
    by_architecture = measured(records)
    split = by_architecture[records.config.architectures[0]]
    decision = stats.ratio_difference(
        *terms(split, "on"),
        *terms(split, "off"),
        threshold=0.0,
        alternative="two-sided",
        margin=MARGIN,
        paired=True,
    )
    part = rules.part(
        decision,
        PART,
        f"M_x of the part on {NUM_COMPONENTS} principal directions minus M_x of the part off them, "
        f"ε = {records.config.attack.epsilon:g}, equal norm; reverse: within ±{MARGIN:g}",
        "different",
        0.0,
        control="the part off the subspace",
    )
    headlines = [
        line for name, split in by_architecture.items() for line in _headlines(split, name)
    ]
    warnings = tuple(_clipped(split, name) for name, split in by_architecture.items())
    return Outcome((part,), (PART,), tuple(headlines), warnings)


def _headlines(split: Measured, name: str) -> list[Headline]:
    """Returns M_x of the parts and of the whole, energy shares, and what the attack does."""
    number, right = (
        split.read(count, "pair", "surrogate").sum(-1) for count in ("num_examples", "num_right")
    )

    def fooled(part: str, target: str) -> np.ndarray:
        values = split.read("num_fooled", "pair", "surrogate", "target", part=part)
        return transfer.both_directions(values, target)

    on, off = (stats.fieller(*terms(split, part)) for part in ("on", "off"))
    attack, noise = (
        stats.bounded(stats.fieller(*energy(split, move))) for move in ("attack", "noise")
    )
    expected = split["expected_share"].item()
    headlines = [
        rules.headline(f"M_x of the on-part ({name})", on, "of the off-part", off),
        rules.headline(
            f"energy share of the subspace ({name}), {expected:.3g} in a random direction",
            attack,
            "matched noise",
            noise,
        ),
        rules.headline(
            f"M_x of the whole at that norm ({name})", stats.fieller(*terms(split, "whole"))
        ),
    ]
    for target, model in (("own", "A"), ("other", "B")):
        on, off = (
            stats.bounded(stats.fieller(fooled(part, target), right)) for part in ("on", "off")
        )
        headlines.append(
            rules.headline(f"share fooled of {model} ({name}), on-part", on, "off-part", off)
        )
    on, off = (stats.fieller(terms(split, part).denominators, number) for part in ("on", "off"))
    label = f"A's own increase of margin loss ({name}), on-part"
    return [*headlines, rules.headline(label, on, "off-part", off)]


def _clipped(split: Measured, name: str) -> str:
    """Returns a warning about what the box does to the parts."""
    number = max(np.nansum(split.read("num_examples", "pair", "surrogate")), 1)
    shortened = np.nansum(split.read("num_shortened", "pair", "surrogate")) / number
    unequal = sum(
        np.nansum(split.read("num_unequal", "pair", "surrogate", part=part)) / number
        for part in ("on", "off")
    )
    kept = [stats.fieller(*energy(split, part)).estimate for part in ("on", "off")]
    return (
        f"T10, {name}: on {100 * shortened:.1f} % of the examples the box kept a part below the l2 "
        "norm of the perturbation, and all were made as long as that one; "
        f"{100 * unequal:.1f} % are unequal in norm. After clipping {100 * kept[0]:.0f} % of the "
        f"on-part's energy and {100 * kept[1]:.0f} % of the off-part's is on the subspace."
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's M_x of both parts, and the energy share beside its control.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    by_architecture = measured(records)
    on, off = (
        {name: rules.ratios(*terms(split, part)) for name, split in by_architecture.items()}
        for part in ("on", "off")
    )
    attack, noise = (
        np.array([rules.ratios(*energy(split, move)) for split in by_architecture.values()])
        for move in ("attack", "noise")
    )
    first = next(iter(by_architecture))
    expected = by_architecture[first]["expected_share"].item()
    shares = plots.pair_comparison(
        attack,
        noise[:, None],
        names=list(by_architecture),
        treatment="perturbation",
        control_names=["matched noise"],
        xlabel="share of the energy on the data's subspace, ‖Pδ‖²/‖δ‖²",
        threshold=expected,
    )
    named = {**words(verdict), "first": first, "expected": f"{expected:.3g}"}
    return [
        Figure(name, TEXT.caption(name, verdict, **named), rules.figure_of(axes))
        for name, axes in (
            ("t10_parts", drawing.parts(on, off, margin=MARGIN)),
            ("t10_energy", shares),
        )
    ]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the number of directions, the margin, and which part transfers more."""
    more, less, place = ("on", "off", "above") if verdict.effect > 0 else ("off", "on", "below")
    return {
        "num_components": str(NUM_COMPONENTS),
        "margin": f"{MARGIN:g}",
        "more": more,
        "less": less,
        "place": place,
    }


STUDY = Study("T10", TEXT, needs, decide, figures, words, stands_on=("T1",))
