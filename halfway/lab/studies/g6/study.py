"""G6: θ_A and θ_B meet in the middle after permutation matching."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.g6.measure import BARRIERS
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

LEVEL = 0.02
"""An error barrier below this is none (as in Frankle et al.)."""
TRUNK_STEPS = 50
LOW, GAIN = "matched", "raw minus matched"
QUANTITY = "barrier_error_linear"
NOISE = (0.012, 0.065)
"""Planted standard deviations over pairs of the matched barrier, and of the raw one above it."""
PLANTED = (0.014, 0.1)
"""Matched barrier below `LEVEL`, and raw above matched, by this much at effect 1."""
WORDS = {"raw": "as trained", "matched": "permutation matched"}


def compared(config: RunConfig) -> tuple[Condition, Condition, Condition]:
    """Returns the condition that decides, and those of a shared start and of a shared trunk."""
    own = condition(config, config.architectures[0])
    trunk = min(TRUNK_STEPS, own.probe_steps[-1])
    return (
        own,
        dataclasses.replace(own, shared_start=True),
        dataclasses.replace(own, shared_start=True, trunk_steps=trunk),
    )


def barrier(reader: Reader, key: str, path: str, quantity: str = QUANTITY) -> np.ndarray:
    """Returns `[P]` heights of a path, NaN for pairs that diverged."""
    return np.where(reader.finite(key), reader.cube(key, quantity, subset=path), np.nan)


@dataclasses.dataclass(frozen=True)
class G6:
    """The error barrier of the matched segment is below .02, and matching lowers it."""

    id: str = "G6"
    claim: str = "Two models meet in the middle of weight space once their units are matched."
    controls: tuple[str, ...] = (
        "the segment as trained; from a shared start; from a shared trunk",
    )
    smallest_effect: str = "a matched barrier of .006, and a raw one .1 above it"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training of all three, and the barriers between their models."""
        every = compared(config)
        return [*(Request(LEARNING, (one,)) for one in every), Request(BARRIERS, every)]

    def decide(self, records: Records) -> Outcome:
        """Returns the matched barrier below its level, and the raw one above the matched."""
        reader, config = Reader(records), records.config
        key = compared(config)[0].key
        raw, matched = (barrier(reader, key, path) for path in ("raw", "matched"))
        parts = [
            rules.part(
                stats.mean_test(matched, LEVEL, alternative="less"),
                LOW,
                "error barrier on S of the matched segment, above the line between its ends",
                "less",
                LEVEL,
            ),
            rules.part(
                stats.mean_test(raw - matched, 0.0, alternative="greater"),
                GAIN,
                "error barrier on S as trained minus matched",
                "greater",
                0.0,
                control="as trained",
            ),
        ]
        levels = [stats.mean_test(v, alternative="greater") for v in (matched, raw)]
        headlines = [rules.headline("error barrier, matched", levels[0], "as trained", levels[1])]
        headlines += [
            rules.headline(
                f"error barrier, {path}",
                stats.mean_test(barrier(reader, key, path), alternative="greater"),
            )
            for path in self._others(records)
        ]
        return Outcome(tuple(parts), (LOW,), tuple(headlines))

    @staticmethod
    def _others(records: Records) -> list[str]:
        """Returns the paths that are described: from a shared start and from a shared trunk."""
        key = compared(records.config)[0].key
        stored = records.arrays.get((BARRIERS.name, key), {})
        return sorted(n.removeprefix("error.") for n in stored if n.startswith("error.shared"))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns error and cross-entropy along the segments, where their curves are stored."""
        reader = Reader(records)
        key = compared(records.config)[0].key
        curves = records.arrays.get((BARRIERS.name, key), {})
        finite = reader.finite(key)
        seen = {
            "supported": "Once matched, no barrier is left",
            "refuted": "A barrier is left after matching, or matching does not lower it",
            "inconclusive": "Whether a barrier is left after matching is not settled",
        }[verdict.verdict]
        heights = plots.pair_comparison(
            barrier(reader, key, "matched")[None],
            barrier(reader, key, "raw")[None, None],
            names=records.config.architectures[:1],
            treatment="permutation matched",
            control_names=["as trained"],
            xlabel="error barrier on S, above the line between the ends",
        )
        caption = (
            f"Each dot is a pair: the highest point of the error on S between θ_A and θ_B. {seen}; "
            f"below {LEVEL:g} counts as none."
        )
        figures = [Figure("g6_heights", caption, rules.figure_of(heights))]
        for loss, label in (("error", "error on S"), ("cross_entropy", "cross-entropy on S, nats")):
            lines = {
                WORDS.get(name, name): curves[f"{loss}.{name}"][finite]
                for name in ("matched", "raw", *self._others(records))
                if f"{loss}.{name}" in curves
            }
            if lines:
                axes = plots.barriers(lines, control=WORDS["raw"], ylabel=label)
                caption = (
                    f"{label[0].upper()}{label[1:]} on the straight line from θ_A to θ_B: mean and "
                    f"95 % interval over pairs; dashed, the line between the ends. {seen}. A trunk "
                    "is trained on both halves together before the two part."
                )
                figures.append(Figure(f"g6_segment_{loss}", caption, rules.figure_of(axes)))
        return figures

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "The order of a network's hidden units means nothing, so two models can be far apart "
            "and alike. We permute the units of θ_B to match those of θ_A, walk straight from one "
            f"to the other, and ask how far the error rises on the way. {numbers}."
        )
        ending = {
            "supported": (
                "Between matched models it hardly rises: apart from the names of their units, two "
                "halves end in one valley."
            ),
            "refuted": (
                f"In detail: {verdict.reason}. On this data and at this width permutations alone "
                "do not bring the two models into one valley; wider networks, or another way of "
                "matching, would have to."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The barrier would have to be clear "
                f"of {LEVEL:g}, and the raw one clear of the matched."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns both tests."""
        return [LOW, GAIN]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records with a matched barrier of .02 − .014 and a raw one .1 above, at 1."""
        config = plants.CONFIG
        low = 0.0 if boundary == LOW else PLANTED[0] * effect
        gain = 0.0 if boundary == GAIN else PLANTED[1] * effect
        matched = rng.normal(LEVEL - low, NOISE[0], config.num_pairs)
        raw = matched + rng.normal(gain, NOISE[1], config.num_pairs)
        values = {"matched": matched, "raw": raw}
        parts = {
            compared(config)[0]: {
                "finite": np.ones(config.num_pairs),
                **{plants.named(QUANTITY, name): v for name, v in values.items()},
            }
        }
        return plants.records(config, parts)


STUDY = G6()
