"""T8: models share an adversarial subspace."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.t8 import figures as drawing
from halfway.lab.studies.t8.measure import EPSILON, FOOLED, NUM_DIRECTIONS, SIDES, SUBSPACE
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition
from halfway.stats import Estimate

TEXT = text.load(__file__)
PART = "fooling against not fooling"


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


def contrast_terms(steps: Measured, bounds: str = "box") -> RatioTerms:
    """Returns summed differences of B's two rates, and the number of examples they are of.

    Args:
      steps: of `SUBSPACE`.
      bounds: "box" or "free".
    """
    along, beside = (total(steps, "rate", bounds=bounds, side=side) for side in SIDES)
    return RatioTerms(along - beside, total(steps, "num_mixed", bounds=bounds))


def _by_side(steps: Measured, name: str, bounds: str) -> list[Estimate]:
    """Returns the mean over mixed examples of a number, along what fools A and beside it."""
    number = total(steps, "num_mixed", bounds=bounds)
    return [stats.fieller(total(steps, name, bounds=bounds, side=side), number) for side in SIDES]


def decide(records: Records) -> Outcome:
    """Returns the mean within-example difference of B's fooling rates."""
    steps = records.get(SUBSPACE, decided_on(records.config))
    part = rules.part(
        stats.bounded(stats.ratio_test(*contrast_terms(steps), 0.0, alternative="greater"), -1.0),
        PART,
        "B's fooling rate along A's orthogonal directions that fool A minus along those that do "
        f"not, on the same example, ε = {EPSILON:g} (l2)",
        "greater",
        0.0,
        control="directions that do not fool A",
    )
    headlines = [*_rates(steps), *_counts(steps)]
    return Outcome((part,), (PART,), tuple(headlines), (_shortened(steps),))


def _rates(steps: Measured) -> list[Headline]:
    """Returns B's rates within the box, and without it, where cosine and length are equal."""
    headlines = []
    for bounds, label in (
        ("box", "B's fooling rate along directions that fool A"),
        ("free", "B's rate without a box, along those that fool A"),
    ):
        along, beside = (stats.bounded(rate) for rate in _by_side(steps, "rate", bounds))
        headlines.append(rules.headline(label, along, "directions that do not", beside))
    difference = stats.bounded(stats.fieller(*contrast_terms(steps, "free")), -1.0)
    label = "the difference without a box, where cosine and length are equal"
    return [*headlines, rules.headline(label, difference)]


def _counts(steps: Measured) -> list[Headline]:
    """Returns numbers of directions and of dimensions, as the literature has them."""
    number = total(steps, "num_examples")
    fooled_a, fooled_b, both = (
        total(steps, "num_directions", bounds="box", fooled=fooled) for fooled in FOOLED
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


def _shortened(steps: Measured) -> str:
    """Returns a warning about what the box takes from steps."""
    length, other_length = (mean.estimate for mean in _by_side(steps, "length", "box"))
    gain, other_gain = (mean.estimate for mean in _by_side(steps, "gain", "box"))
    return (
        f"T8: the box shortens steps of {EPSILON:g}: those that fool A are {length:.2f} long and "
        f"those that do not {other_length:.2f}, and keep {gain:.2f} and {other_gain:.2f} of the "
        "first-order gain on A; only without a box are cosine and length equal exactly."
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns B's two rates by how many directions fool A, and numbers of directions.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    steps = records.get(SUBSPACE, decided_on(records.config))
    fooled_a, fooled_b, both = (
        steps.read(
            "directions", "pair", "surrogate", "example", bounds="box", fooled=fooled
        ).reshape(len(steps.finite), -1)[steps.finite]
        for fooled in FOOLED
    )
    rates = drawing.rates_by_number(fooled_a, both, fooled_b - both, num_directions=NUM_DIRECTIONS)
    counts = {"fool A": fooled_a, "fool A and B": both}
    shares = drawing.numbers_of_directions(counts, num_directions=NUM_DIRECTIONS)
    return [
        Figure(name, TEXT.caption(name, verdict, **words(verdict)), rules.figure_of(axes))
        for name, axes in (("t8_rates", rates), ("t8_dimensions", shares))
    ]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns how many directions are followed, and how far."""
    del verdict
    return {"num_directions": str(NUM_DIRECTIONS), "epsilon": f"{EPSILON:g}"}


STUDY = Study("T8", TEXT, needs, decide, figures, words, stands_on=("T1",))
