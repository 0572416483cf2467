"""T8: models share an adversarial subspace."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.t8 import figures as drawing
from halfway.lab.studies.t8.measure import FOOLED, NUM_DIRECTIONS, SIDES, SUBSPACE
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition
from halfway.stats import Estimate

TEXT = text.load(__file__)
PART = "fooling against not fooling"
LEAD = 0.0
"""By which B's rate along directions that fool A exceeds that along the others."""
ENOUGH = "examples with both kinds"
LEAST_EXAMPLES = 100
"""Mean number over pairs of examples of which some directions fool A and some do not: more."""


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns steps along orthogonal directions, of the first architecture at ρ = 0."""
    trained = decided_on(config)
    return [Request(LEARNING, (trained,)), Request(SUBSPACE, (trained,))]


def total(steps: Measured, name: str, **labels: Any) -> np.ndarray:
    """Returns `[P]` a sum over examples and both directions A→B and B→A, NaN if diverged.

    Args:
      steps: of `SUBSPACE`.
      name: of a number.
      **labels: of its further dimensions.
    """
    return steps.read(name, "pair", "surrogate", **labels).sum(-1)


def contrast_terms(steps: Measured, bounds: str = "free") -> RatioTerms:
    """Returns summed differences of B's two rates, and the number of examples they are of.

    Args:
      steps: of `SUBSPACE`.
      bounds: "free" of the box, or the "box".
    """
    along, beside = (total(steps, "rate", bounds=bounds, side=side) for side in SIDES)
    return RatioTerms(along - beside, total(steps, "num_mixed", bounds=bounds))


def _by_side(steps: Measured, name: str, bounds: str) -> list[Estimate]:
    """Returns the mean over mixed examples of a number, along what fools A and beside it."""
    number = total(steps, "num_mixed", bounds=bounds)
    return [stats.fieller(total(steps, name, bounds=bounds, side=side), number) for side in SIDES]


def decide(records: Records) -> Outcome:
    """Returns the mean within-example difference of B's fooling rates, without a box.

    A ratio of sums: differences within an example, over examples of which some of the directions
    fool A and some do not. Both directions A→B and B→A of a pair are summed, in the gate on the
    number of such examples too, which is a mean over pairs.
    """
    steps = records.get(SUBSPACE, decided_on(records.config))
    terms = contrast_terms(steps)
    test = rules.part(
        stats.bounded(stats.ratio_test(*terms, LEAD, alternative="greater"), -1.0),
        PART,
        "B's fooling rate along A's orthogonal directions that fool A minus along those that do "
        f"not, on the same example, steps of {length_of(steps):.2f} (l2) without a box",
        "greater",
        LEAD,
        control="directions that do not fool A",
    )
    gate = rules.gate(
        terms.denominators,
        ENOUGH,
        "examples of a pair of which some directions fool A and some do not",
        LEAST_EXAMPLES,
        bounds=(0.0, np.inf),
    )
    return Outcome((test, gate), (PART,), (*_rates(steps), *_counts(steps)))


def length_of(steps: Measured) -> float:
    """Returns the length of a step, in l2.

    Args:
      steps: of `SUBSPACE`.
    """
    return float(steps.read("step_length"))


def _rates(steps: Measured) -> list[Headline]:
    """Returns B's rates without a box, and inside it, where steps are shortened unequally."""
    headlines = []
    for bounds, label in (
        ("free", "B's fooling rate along directions that fool A"),
        ("box", "B's rate inside the box, along those that fool A"),
    ):
        along, beside = (stats.bounded(rate) for rate in _by_side(steps, "rate", bounds))
        headlines.append(rules.headline(label, along, "directions that do not", beside))
    difference = stats.bounded(stats.fieller(*contrast_terms(steps, "box")), -1.0)
    headlines.append(rules.headline("the difference inside the box", difference))
    for name, label in (
        ("length", "length of steps that fool A, inside the box"),
        ("gain", "first-order gain on A of steps that fool it, inside the box (1 without)"),
    ):
        along, beside = _by_side(steps, name, "box")
        headlines.append(rules.headline(label, along, "those that do not", beside))
    return headlines


def _counts(steps: Measured) -> list[Headline]:
    """Returns numbers of directions and of dimensions, as the literature has them."""
    number = total(steps, "num_examples")
    fooled_a, fooled_b, both = (
        total(steps, "num_directions", bounds="free", fooled=fooled) for fooled in FOOLED
    )
    granted, fooling, shared = (
        total(steps, "num_dimensions", dimension=dimension)
        for dimension in ("granted", "fooling", "shared")
    )
    return [
        rules.headline(
            f"directions of {NUM_DIRECTIONS} that fool A",
            stats.fieller(fooled_a, number),
            "B, along the same",
            stats.fieller(fooled_b, number),
        ),
        rules.headline(
            "share of them that fool B too", stats.bounded(stats.fieller(both, fooled_a))
        ),
        rules.headline(
            "dimensions of A's adversarial subspace, as many directions as first order grants",
            stats.fieller(fooling, number),
            "granted",
            stats.fieller(granted, number),
        ),
        rules.headline("dimensions that A and B share", stats.fieller(shared, number)),
        rules.headline(
            "share of the dimensions that B shares", stats.bounded(stats.fieller(shared, fooling))
        ),
    ]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns B's two rates by how many directions fool A, and numbers of directions.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    steps = records.get(SUBSPACE, decided_on(records.config))
    fooled_a, fooled_b, both = (
        steps.read(
            "directions", "pair", "surrogate", "example", bounds="free", fooled=fooled
        ).reshape(len(steps.finite), -1)[steps.finite]
        for fooled in FOOLED
    )
    rates = drawing.rates_by_number(fooled_a, both, fooled_b - both, num_directions=NUM_DIRECTIONS)
    counts = {"fool A": fooled_a, "fool A and B": both}
    shares = drawing.numbers_of_directions(counts, num_directions=NUM_DIRECTIONS)
    filling = {**words(verdict), "length": f"{length_of(steps):.2f}"}
    return [
        Figure(name, TEXT.caption(name, verdict, **filling), rules.figure_of(axes))
        for name, axes in (("t8_rates", rates), ("t8_dimensions", shares))
    ]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns how many directions are followed."""
    del verdict
    return {"num_directions": str(NUM_DIRECTIONS)}


STUDY = Study("T8", TEXT, needs, decide, figures, words, stands_on=("T1",))
