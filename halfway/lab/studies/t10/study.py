"""T10: the on- and off-manifold parts of a perturbation transfer differently."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.t10.measure import MANIFOLD_PARTS, NUM_COMPONENTS
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader

MARGIN = 0.05
"""A difference of M_x within it counts as none: the reverse of the claim."""
PART = "on against off"
PLANTED = 0.1
"""Difference of M_x at effect 1, twice the margin; equal at effect 0 and below."""
LEVEL, NOISE = 0.4, 0.035
"""Planted M_x of the off-part, and the standard deviation over pairs of each part's M_x."""
INCREASE = {"on": 9.9, "off": 4.4}
"""Planted mean increase of A's own margin loss."""


def sums(reader: Reader, key: str, quantity: str, subset: str) -> np.ndarray:
    """Returns `[P]` a sum over S and both directions A→B and B→A, NaN if diverged."""
    values = reader.cube(key, quantity, ("pair", "surrogate"), subset=subset).sum(-1)
    return np.where(reader.finite(key), values, np.nan)


def terms(reader: Reader, key: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` numerators and denominators of M_x at a part of the perturbation."""
    other, own = (sums(reader, key, "part_increase", f"{part}.{who}") for who in ("other", "own"))
    return other, own


def energy(reader: Reader, key: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` the energy on the subspace and all of it, of a kind of perturbation."""
    on, every = (sums(reader, key, "part_energy", f"{kind}.{what}") for what in ("on", "all"))
    return on, every


@dataclasses.dataclass(frozen=True)
class T10:
    """M_x(on) − M_x(off) ≠ 0 at equal norm, two-sided."""

    id: str = "T10"
    claim: str = (
        "The parts of a perturbation on and off the data's subspace transfer to different degrees."
    )
    controls: tuple[str, ...] = (
        "the other part, of equal l2 norm on each example",
        "the energy share k/d of a random direction",
    )
    smallest_effect: str = (
        f"a difference of {PLANTED:g} in M_x, of either sign; within ±{MARGIN:g} counts as equal"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns the parts' effects for each architecture at ρ = 0; the first decides."""
        return [
            Request(measurement, (condition(config, name),))
            for name in config.architectures
            for measurement in (LEARNING, MANIFOLD_PARTS)
        ]

    def decide(self, records: Records) -> Outcome:
        """Returns the two-sided test of the difference, with the equivalence as its reverse."""
        reader, config = Reader(records), records.config
        key = condition(config, config.architectures[0]).key
        decision = stats.ratio_difference(
            *terms(reader, key, "on"),
            *terms(reader, key, "off"),
            threshold=0.0,
            alternative="two-sided",
            margin=MARGIN,
            paired=True,
        )
        part = rules.part(
            decision,
            PART,
            f"M_x of the part on {NUM_COMPONENTS} principal directions minus M_x of the part off "
            f"them, ε = {config.attack.epsilon:g}, equal norm; reverse: within ±{MARGIN:g}",
            "different",
            0.0,
            control="the part off the subspace",
        )
        headlines, warnings = [], []
        for name in config.architectures:
            key = condition(config, name).key
            if reader.has(key, "part_increase"):
                on, off = (stats.fieller(*terms(reader, key, p)) for p in ("on", "off"))
                headlines.append(
                    rules.headline(f"M_x of the on-part ({name})", on, "of the off-part", off)
                )
            if reader.has(key, "part_energy"):
                headlines += self._described(reader, key, name)
                warnings += self._warnings(reader, key, name)
        return Outcome((part,), (PART,), tuple(headlines), tuple(warnings))

    @staticmethod
    def _described(reader: Reader, key: str, name: str):
        expected = float(
            np.mean(reader.cube(key, "part_energy", ("pair", "surrogate"), subset="expected"))
        )
        shares = [stats.fieller(*energy(reader, key, kind)) for kind in ("attack", "noise")]
        number = sums(reader, key, "part_examples", "all")
        right = sums(reader, key, "part_right", "both_correct")
        found = [
            rules.headline(
                f"energy share of the subspace ({name}), {expected:.3g} in a random direction",
                shares[0],
                "matched noise",
                shares[1],
            ),
            rules.headline(
                f"M_x of the whole at that norm ({name})",
                stats.fieller(*terms(reader, key, "whole")),
            ),
        ]
        for who, words in (("own", "A"), ("other", "B")):
            rates = [
                stats.fieller(sums(reader, key, "part_fooled", f"{p}.{who}"), right)
                for p in ("on", "off")
            ]
            found.append(
                rules.headline(
                    f"share fooled of {words} ({name}), on-part", rates[0], "off-part", rates[1]
                )
            )
        own = [
            stats.fieller(sums(reader, key, "part_increase", f"{p}.own"), number)
            for p in ("on", "off")
        ]
        found.append(
            rules.headline(
                f"A's own increase of margin loss ({name}), on-part", own[0], "off-part", own[1]
            )
        )
        return found

    @staticmethod
    def _warnings(reader: Reader, key: str, name: str) -> list[str]:
        number = np.nansum(sums(reader, key, "part_examples", "all"))
        shortened, *unequal = (
            np.nansum(sums(reader, key, "part_examples", subset)) / max(number, 1)
            for subset in ("shortened", "unequal.on", "unequal.off")
        )
        kept = [stats.fieller(*energy(reader, key, part)).estimate for part in ("on", "off")]
        return [
            f"T10, {name}: on {100 * shortened:.1f} % of the examples the box kept a part below "
            "the l2 norm of the perturbation, and all were made as long as that one; "
            f"{100 * sum(unequal):.1f} % are unequal in norm. After clipping {100 * kept[0]:.0f} % "
            f"of the on-part's energy and {100 * kept[1]:.0f} % of the off-part's is on the "
            "subspace.",
        ]

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's M_x of both parts, and the energy share beside its control."""
        reader, config = Reader(records), records.config
        names = [
            name
            for name in config.architectures
            if reader.has(condition(config, name).key, "part_increase")
        ]
        keys = [condition(config, name).key for name in names]
        on, off = (
            {
                name: rules.ratios(*terms(reader, key, part))
                for name, key in zip(names, keys, strict=True)
            }
            for part in ("on", "off")
        )
        axes = plots.parts(on, off, margin=MARGIN)
        seen = {
            "supported": f"{'Above' if verdict.effect > 0 else 'Below'} the line: the "
            f"{'on' if verdict.effect > 0 else 'off'}-part transfers more",
            "refuted": "The two are equal within the band",
            "inconclusive": "Neither a difference nor equality is settled",
        }[verdict.verdict]
        figures = [
            Figure(
                "t10_parts",
                "Each dot is a pair: what a step along each part of A's perturbation does to B, as "
                f"a share of what it does to A. {seen} ({names[0]} decides). The band of "
                f"±{MARGIN:g} counts as equal.",
                rules.figure_of(axes),
            )
        ]
        if all(reader.has(key, "part_energy") for key in keys):
            figures.append(self._energy(reader, names, keys))
        return figures

    @staticmethod
    def _energy(reader: Reader, names: Sequence[str], keys: Sequence[str]) -> Figure:
        own, noise = (
            np.array([rules.ratios(*energy(reader, key, kind)) for key in keys])
            for kind in ("attack", "noise")
        )
        expected = float(
            np.mean(reader.cube(keys[0], "part_energy", ("pair", "surrogate"), subset="expected"))
        )
        axes = plots.pair_comparison(
            own,
            noise[:, None],
            names=names,
            treatment="perturbation",
            control_names=["matched noise"],
            xlabel="share of the energy on the data's subspace, ‖Pδ‖²/‖δ‖²",
            threshold=expected,
        )
        caption = (
            f"How much of the perturbation lies on {NUM_COMPONENTS} principal directions of A's "
            f"training images. The dashed line, {expected:.3g}, is what a random direction has; in "
            "grey, noise within the box and matched in norm."
        )
        return Figure("t10_energy", caption, rules.figure_of(axes))

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        part = verdict.parts[0]
        difference = wording.format_estimate(part.estimate, part.low, part.high)
        number = wording.format_headline(verdict.headlines[0])
        more = "on" if part.estimate > 0 else "off"
        opening = (
            f"The {NUM_COMPONENTS} directions in which A's training images vary most stand for the "
            "data's subspace. We split A's perturbation of each image into its part on that "
            "subspace and the rest, make both equally long, and ask of each how far it moves B as "
            f"a share of how far it moves A. {number}; the difference is {difference}."
        )
        ending = {
            "supported": (
                f"They differ: the {more}-part transfers more. "
                + (
                    "What two models share of an attack is more in how images differ than in what "
                    "no image shows."
                    if more == "on"
                    else "What two models share of an attack is more in what hardly any image "
                    "shows than in how images differ."
                )
            ),
            "refuted": (
                f"They are equal within ±{MARGIN:g}: {verdict.reason}. The two shares would have "
                "to lie further apart, in either direction."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The difference would have to be "
                f"clear of 0, or its interval to lie within ±{MARGIN:g}."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [PART]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose M_x differ by .1 times `effect`, and not at all below 0.

        The null is one point, with the claim on both of its sides. Its reverse is equality, which
        at a third of the noise is shown every time; at all of it in about half of the draws.
        """
        config = plants.CONFIG
        difference = 0.0 if boundary else PLANTED * max(effect, 0.0)
        noise = NOISE if effect >= 0 else NOISE / 3
        one = condition(config, config.architectures[0])
        shape = (config.num_pairs, 2)
        values = {"finite": np.ones(config.num_pairs)}
        for part, mean in INCREASE.items():
            own = config.num_holdout * rng.normal(mean, 0.05 * mean, shape)
            share = LEVEL + (difference if part == "on" else 0.0)
            other = own * (share + rng.normal(0, noise, (config.num_pairs, 1)))
            values[plants.named("part_increase", f"{part}.own")] = own
            values[plants.named("part_increase", f"{part}.other")] = other
        return plants.records(config, {one: values})


STUDY = T10()
