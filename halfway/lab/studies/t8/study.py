"""T8: models share an adversarial subspace."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.t8.measure import EPSILON, NUM_DIRECTIONS, SUBSPACE
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader

PART = "fooling against not fooling"
PLANTED = 0.05
"""Lead of the rate along directions that fool A, at effect 1."""
RATE, NOISE = 0.2, 0.02
"""Planted rate along the other directions, and the standard deviation over pairs of the lead."""
SIDES = ("along", "beside")
FREE = "the difference without a box, where cosine and length are equal"


def sums(reader: Reader, key: str, quantity: str, subset: str) -> np.ndarray:
    """Returns `[P]` a sum over examples and both directions A→B and B→A, NaN if diverged."""
    values = reader.cube(key, quantity, ("pair", "surrogate"), subset=subset).sum(-1)
    return np.where(reader.finite(key), values, np.nan)


def terms(reader: Reader, key: str, where: str = "box") -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` summed differences of B's two rates, and the number of examples they are of."""
    along, beside = (sums(reader, key, "shared_rate", f"{side}.{where}") for side in SIDES)
    return along - beside, sums(reader, key, "shared_examples", f"mixed.{where}")


@dataclasses.dataclass(frozen=True)
class T8:
    """Along A's orthogonal directions: B's rate where A is fooled minus where it is not, > 0."""

    id: str = "T8"
    claim: str = "Of orthogonal directions, those that fool one model fool the other more often."
    controls: tuple[str, ...] = (
        "the same example's directions, of equal cosine to A's gradient, that do not fool A",
    )
    smallest_effect: str = "B fooled .05 more often along directions that fool A"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns steps along orthogonal directions, of the first architecture at ρ = 0."""
        one = condition(config, config.architectures[0])
        return [Request(LEARNING, (one,)), Request(SUBSPACE, (one,))]

    def decide(self, records: Records) -> Outcome:
        """Returns the mean within-example difference of B's fooling rates."""
        reader, config = Reader(records), records.config
        key = condition(config, config.architectures[0]).key
        part = rules.part(
            stats.ratio_test(*terms(reader, key), 0.0, alternative="greater"),
            PART,
            "B's fooling rate along A's orthogonal directions that fool A minus along those that "
            f"do not, on the same example, ε = {EPSILON:g} (l2)",
            "greater",
            0.0,
            control="directions that do not fool A",
        )
        headlines = [
            self._rates(reader, key, "box", "B's fooling rate along directions that fool A")
        ]
        described = reader.has(key, "shared_directions")
        if described:
            headlines += self._described(reader, key)
        return Outcome((part,), (PART,), tuple(headlines), self._warnings(reader, key))

    @staticmethod
    def _rates(reader: Reader, key: str, where: str, label: str):
        number = sums(reader, key, "shared_examples", f"mixed.{where}")
        along, beside = (
            stats.fieller(sums(reader, key, "shared_rate", f"{side}.{where}"), number)
            for side in SIDES
        )
        return rules.headline(label, along, "directions that do not", beside)

    def _described(self, reader: Reader, key: str):
        """Returns the same without a box, and numbers of directions as the literature has them."""
        number = sums(reader, key, "shared_examples", "both_correct")

        def mean(subset, over=number):
            return stats.fieller(sums(reader, key, "shared_directions", subset), over)

        fooling = sums(reader, key, "shared_directions", "surrogate.box")
        most = sums(reader, key, "shared_directions", "surrogate.most")
        k = NUM_DIRECTIONS
        return [
            self._rates(reader, key, "free", "B's rate without a box, along those that fool A"),
            rules.headline(FREE, stats.fieller(*terms(reader, key, "free"))),
            rules.headline(
                f"directions of {k} that fool A",
                mean("surrogate.box"),
                "B, along the same",
                mean("target.box"),
            ),
            rules.headline("share of them that fool B too", mean("both.box", fooling)),
            rules.headline(
                "dimensions of A's adversarial subspace, as many directions as first order grants",
                mean("surrogate.most"),
                "granted",
                mean("predicted.most"),
            ),
            rules.headline("dimensions that A and B share", mean("both.most")),
            rules.headline("share of the dimensions that B shares", mean("both.most", most)),
        ]

    @staticmethod
    def _warnings(reader: Reader, key: str) -> tuple[str, ...]:
        if not reader.has(key, "shared_step"):
            return ()
        number = sums(reader, key, "shared_examples", "mixed.box")
        found = {
            name: [
                stats.fieller(sums(reader, key, "shared_step", f"{name}.{side}.box"), number)
                for side in SIDES
            ]
            for name in ("length", "gain")
        }
        (length, other_length), (gain, other_gain) = (
            [one.estimate for one in both] for both in found.values()
        )
        return (
            f"T8: the box shortens steps of {EPSILON:g}: those that fool A are {length:.2f} long "
            f"and those that do not {other_length:.2f}, and keep {gain:.2f} and {other_gain:.2f} "
            "of the first-order gain on A; only without a box are cosine and length equal exactly.",
        )

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns B's two rates by how many directions fool A, and numbers of directions."""
        config = records.config
        key = condition(config, config.architectures[0]).key
        arrays = records.arrays[SUBSPACE.name, key]
        finite = Reader(records).finite(key)
        own, other, both = (
            np.asarray(arrays[f"{name}.box"], np.int64).reshape(len(finite), -1)[finite]
            for name in ("surrogate", "target", "both")
        )
        most = int(max(NUM_DIRECTIONS, own.max(initial=0)))
        rates = plots.rates_by_number(own, both, other - both, num_directions=most)
        seen = {
            "supported": "The line of those that fool A lies above",
            "refuted": "The line of those that fool A lies below",
            "inconclusive": "The two lines cannot be told apart",
        }[verdict.verdict]
        shares = plots.numbers_of_directions(
            {"fool A": own, "fool A and B": both}, num_directions=most
        )
        return [
            Figure(
                "t8_rates",
                f"{most} orthogonal directions a step of {EPSILON:g} long, of equal cosine to A's "
                "gradient: how often B is fooled along those that fool A and, in grey, along the "
                f"same examples' others, by how many fool A. {seen}. Bands are 95 % intervals over "
                "pairs.",
                rules.figure_of(rates),
            ),
            Figure(
                "t8_dimensions",
                "Share of the examples, of those that both models have right, with at least so "
                "many orthogonal directions that fool A, and that fool both models.",
                rules.figure_of(shares),
            ),
        ]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        part = verdict.parts[0]
        lead = wording.format_estimate(part.estimate, part.low, part.high)
        number = wording.format_headline(verdict.headlines[0])
        opening = (
            f"Around each image we take {NUM_DIRECTIONS} directions at right angles to each other "
            "that all climb A's loss equally steeply at first, and step along each. Some fool A, "
            f"some do not, and B has had no say in either. {number}; the mean difference within "
            f"an image is {lead}."
        )
        free = [wording.format_headline(h) for h in verdict.headlines if h.label == FREE]
        if free:
            opening += (
                " The box of allowed pixels cuts steps that fool A less than the others, which is "
                f"a part of that difference: {free[0]}."
            )
        ending = {
            "supported": (
                "So where one direction leads A astray and its neighbour does not, B tends to tell "
                "them apart in the same way: the two models share more than a gradient."
            ),
            "refuted": (
                f"That lead is negative: {verdict.reason}. Directions that fool A would have to "
                "fool B more often than their neighbours do, not less."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The lead would have to be clear of "
                "0, with more pairs or with more images of which some directions fool A and some "
                "do not."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [PART]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records in which B's rate leads by .05 times `effect` along what fools A."""
        config = plants.CONFIG
        lead = 0.0 if boundary else PLANTED * effect
        shape = (config.num_pairs, 2)
        mixed = np.round(rng.normal(0.5, 0.02, shape) * config.num_holdout)
        # Both directions of a pair share their noise, which is the most they can.
        beside = RATE + rng.normal(0, NOISE, (config.num_pairs, 1))
        along = beside + lead + rng.normal(0, NOISE, (config.num_pairs, 1))
        values = {
            "finite": np.ones(config.num_pairs),
            plants.named("shared_rate", "along.box"): mixed * along,
            plants.named("shared_rate", "beside.box"): mixed * beside,
            plants.named("shared_examples", "mixed.box"): mixed,
        }
        size = (*shape, config.num_holdout)
        own = rng.integers(0, NUM_DIRECTIONS + 1, size)
        both = rng.binomial(own, 0.3)
        arrays = {"surrogate.box": own, "both.box": both}
        arrays["target.box"] = both + rng.binomial(NUM_DIRECTIONS - own, RATE)
        one = condition(config, config.architectures[0])
        return plants.records(config, {one: values}, {(SUBSPACE.name, one.key): arrays})


STUDY = T8()
