"""G1: training on one half descends the other."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments import plants, rules, wording
from experiments.conditions import Config, condition, control
from experiments.measurements import LEARNING
from experiments.study import Figure, Outcome, Records, Request, Verdict
from experiments.tables import Reader
from halfway import plots, statistics


@dataclasses.dataclass(frozen=True)
class G1:
    """M_θ in error without label noise minus its control, labels permuted and seeds the same."""

    id: str = "G1"
    claim: str = "Training on one half of the data descends the other half's landscape."
    controls: tuple[str, ...] = ("A's labels permuted, same halves and seeds",)
    smallest_effect: str = "M_θ minus its control of .05 in error"

    def needs(self, config: Config) -> Sequence[Request]:
        """Returns training with true and with permuted labels, for each architecture."""
        return [
            Request(LEARNING, (one,))
            for name in config.architectures
            for one in (condition(config, name), control(config, name))
        ]

    def decide(self, records: Records) -> Outcome:
        """Returns one paired test for each architecture."""
        reader, config = Reader(records), records.config
        parts, headlines = [], []
        for name in config.architectures:
            own = reader.terms(condition(config, name).key)
            permuted = reader.terms(control(config, name).key)
            decision = statistics.ratio_difference(
                *own, *permuted, threshold=0.0, alternative="greater", paired=True
            )
            parts.append(
                rules.part(
                    decision,
                    name,
                    "M_θ in error minus M_θ with permuted labels",
                    "greater",
                    0.0,
                    control="permuted labels",
                )
            )
            headlines.append(
                rules.headline(
                    f"M_θ in error ({name})",
                    statistics.fieller(*own),
                    "permuted labels",
                    statistics.fieller(*permuted),
                )
            )
        return Outcome(tuple(parts), tuple(config.architectures), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's M_θ beside its control."""
        reader, config = Reader(records), records.config
        values, controls, intervals = [], [], []
        for name in config.architectures:
            own = reader.terms(condition(config, name).key)
            permuted = reader.terms(control(config, name).key)
            values.append(rules.ratios(*own))
            controls.append([rules.ratios(*permuted)])
            intervals.append([rules.triple(statistics.fieller(*t)) for t in (own, permuted)])
        axes = plots.pair_comparison(
            np.array(values),
            np.array(controls),
            names=config.architectures,
            treatment="true labels",
            control_names=["permuted labels"],
            xlabel="M_θ in error, share of own progress that the other half makes",
            intervals=np.array(intervals),
        )
        seen = {
            "supported": "The two clouds are apart: the other half descends too",
            "refuted": "The order is reversed: permuted labels carry further",
            "inconclusive": "The two clouds cannot be told apart",
        }[verdict.verdict]
        caption = (
            f"Each dot is a pair. {seen}. 1 would be all the way, 0 not at all; the control, in "
            "grey, trains on the same images with permuted labels."
        )
        return [Figure("g1_meeting", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "Two models walk downhill, each on its own half of the data. We ask how far the walk "
            f"on one half also lowers the error on the other, which it never saw. {numbers}."
        )
        ending = {
            "supported": (
                "What training gains on its own half it gains, for the most part, on the other "
                "half too, and this is lost when the labels are shuffled: it is the labels' "
                "relation to the images that the halves share."
            ),
            "refuted": (
                "Permuted labels carry at least as far as true ones, so what is gained on one "
                "half is not a relation that both halves share. To change this, the model would "
                "have to gain on the other half more than it does with shuffled labels."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. More pairs, or training that "
                "stays finite, would have to separate true from permuted labels."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the architectures: each is a test."""
        return plants.CONFIG.architectures

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose M_θ exceeds its control by .05 times `effect`."""
        config = plants.CONFIG
        parts = {}
        for name in config.architectures:
            size = 0.0 if name == boundary else 0.05 * effect
            parts[condition(config, name)] = plants.learning(rng, config, 0.5 + size)
            parts[control(config, name)] = plants.learning(rng, config, 0.5)
        return plants.records(config, parts)


STUDY = G1()
