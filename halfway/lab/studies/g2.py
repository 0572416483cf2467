"""G2: noise costs more meeting than the wrong labels themselves."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader

MARGIN = 0.03
"""Of the leakage check at ρ = 1: half-widths of M_θ in error."""
GATE = 0.95
"""Mean training accuracy that every rate must exceed."""


NOISE = {0.0: 0.012, 0.2: 0.018, 0.4: 0.018, 0.6: 0.010, 0.8: 0.022, 1.0: 0.018}
"""Planted standard deviations over pairs of M_θ: they give the measured ones of the differences,
which are smaller than independent pairs would have, since a pair shares its draws across rates."""


def _below_one(config: RunConfig) -> list[float]:
    return [float(rate) for rate in config.noise_rates if rate < 1]


def _name(architecture: str, low: float, high: float) -> str:
    return f"{architecture}, ρ {low:g} to {high:g}"


@dataclasses.dataclass(frozen=True)
class G2:
    """Each adjacent difference of M_θ/(1 − ρ) is negative, and at ρ = 1 nothing is left."""

    id: str = "G2"
    claim: str = (
        "Label noise costs the halves more of their meeting than the wrong labels themselves do."
    )
    controls: tuple[str, ...] = ("the ceiling 1 − ρ of a perfect predictor",)
    smallest_effect: str = "M_θ/(1 − ρ) falling by .14 from each noise rate to the next"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training at every noise rate, for each architecture."""
        return [
            Request(LEARNING, (condition(config, name, noise_rate=float(rate)),))
            for name in config.architectures
            for rate in config.noise_rates
        ]

    def decide(self, records: Records) -> Outcome:
        """Returns the adjacent differences, the leakage check and the gate of each architecture."""
        reader, config = Reader(records), records.config
        rates = _below_one(config)
        parts, gates, headlines = [], [], []
        for name in config.architectures:
            keys = {
                float(rate): condition(config, name, noise_rate=float(rate)).key
                for rate in config.noise_rates
            }
            terms = {rate: reader.terms(key) for rate, key in keys.items()}
            for low, high in itertools.pairwise(rates):
                scaled = [
                    (terms[r].numerators / (1 - r), terms[r].denominators) for r in (high, low)
                ]
                decision = stats.ratio_difference(
                    *scaled[0], *scaled[1], threshold=0.0, alternative="less", paired=True
                )
                statistic = f"M_θ/(1 − ρ) in error at ρ = {high:g} minus the same at {low:g}"
                parts.append(
                    rules.part(
                        decision,
                        _name(name, low, high),
                        statistic,
                        "less",
                        0.0,
                        control="the ceiling",
                    )
                )
            leakage = stats.ratio_equivalence(*terms[1.0], -MARGIN, MARGIN)
            parts.append(
                rules.part(
                    leakage, f"{name}, ρ = 1", "M_θ in error at ρ = 1", "within", -MARGIN, MARGIN
                )
            )
            for rate, key in keys.items():
                accuracy = reader.training_accuracy(key)
                gates.append(
                    rules.gate(
                        accuracy, f"{name}, trained at ρ = {rate:g}", "mean training accuracy", GATE
                    )
                )
            last = rates[-1]
            share = stats.fieller(terms[last].numerators / (1 - last), terms[last].denominators)
            first = stats.fieller(*terms[rates[0]])
            headlines.append(
                rules.headline(
                    f"M_θ/(1 − ρ) at ρ = {last:g} ({name})", share, f"at ρ = {rates[0]:g}", first
                )
            )
        first = tuple(_name(name, rates[0], rates[1]) for name in config.architectures)
        return Outcome(tuple(parts + gates), first, tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns M_θ against the noise rate, under the ceiling, with training accuracy."""
        reader, config = Reader(records), records.config
        rates = np.array([float(rate) for rate in config.noise_rates])
        intervals, accuracies = [], []
        for name in config.architectures:
            keys = [condition(config, name, noise_rate=float(rate)).key for rate in rates]
            intervals.append([rules.triple(stats.fieller(*reader.terms(key))) for key in keys])
            accuracies.append([np.nanmean(reader.training_accuracy(key)) for key in keys])
        estimate, low, high = np.moveaxis(np.array(intervals), -1, 0)
        axes = plots.dose_response(
            rates,
            estimate,
            low,
            high,
            names=config.architectures,
            ceiling=1 - rates,
            training_accuracy=np.array(accuracies),
        )
        seen = {
            "supported": "The lines fall below it more with every step of noise",
            "refuted": "The lines do not keep falling away from it",
            "inconclusive": "Whether every step falls away from it is not settled",
        }[verdict.verdict]
        caption = (
            "The dashed line is the ceiling: what a perfect predictor of the clean labels reaches. "
            f"{seen}. Bands are 95 % intervals over pairs; at ρ = 1 labels are noise alone, and "
            "nothing can be shared."
        )
        return [Figure("g2_dose_response", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "When a share ρ of the labels is replaced at random, even a perfect model can only be "
            "right on the other 1 − ρ: that is the ceiling, and it costs nothing to understand. "
            "We ask for the share of the ceiling that is reached, and whether it falls with ρ. "
            f"{numbers}."
        )
        ending = {
            "supported": (
                "It falls at every step: fitting the wrong labels crowds out what the halves "
                "share, beyond what those labels themselves cost."
            ),
            "refuted": (
                "At some step it does not fall, so on this data noise costs what the wrong labels "
                "cost and no more. Every step would have to fall for the claim to hold. "
                f"In detail: {verdict.reason}."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. Each step would have to be clear "
                "of 0, with every model fitted to its own labels."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns each difference and each leakage check."""
        config = plants.CONFIG
        rates = _below_one(config)
        return [
            name
            for arch in config.architectures
            for name in (
                *(_name(arch, a, b) for a, b in itertools.pairwise(rates)),
                f"{arch}, ρ = 1",
            )
        ]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose M_θ/(1 − ρ) falls by .14 times `effect` at each step."""
        config = plants.CONFIG
        rates = _below_one(config)
        parts = {}
        for arch in config.architectures:
            share = 0.99
            for low, high in zip([None, *rates], rates, strict=False):
                if low is not None and _name(arch, low, high) != boundary:
                    share -= 0.14 * effect
                one = condition(config, arch, noise_rate=high)
                parts[one] = plants.learning(rng, config, share * (1 - high), NOISE[high])
            at_boundary = boundary == f"{arch}, ρ = 1"
            one = condition(config, arch, noise_rate=1.0)
            parts[one] = plants.learning(rng, config, MARGIN if at_boundary else 0.0, NOISE[1.0])
        return plants.records(config, parts)


STUDY = G2()
