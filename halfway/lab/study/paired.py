"""Studies that compare M_θ of each pair under two conditions, for each architecture."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

PLANTED = 0.05
"""Difference in M_θ that `plant` makes at effect 1: the smallest worth reporting."""


@dataclasses.dataclass(frozen=True, eq=False)
class Paired:
    """A `Study`: M_θ in error of a condition minus that of its control > 0, paired t.

    Attributes:
      id, claim, controls, smallest_effect: see `Study`.
      conditions: config and architecture to the condition and its control, of equal seeds.
      treatment, control: what distinguishes the two, in two words each.
      opening: what is asked, in plain words; the numbers follow.
      supported, refuted: what each of these verdicts means.
    """

    id: str
    claim: str
    controls: tuple[str, ...]
    smallest_effect: str
    conditions: Callable[[RunConfig, str], tuple[Condition, Condition]]
    treatment: str
    control: str
    opening: str
    supported: str
    refuted: str

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training under both conditions, for each architecture."""
        return [
            Request(LEARNING, (one,))
            for name in config.architectures
            for one in self.conditions(config, name)
        ]

    def decide(self, records: Records) -> Outcome:
        """Returns one paired test for each architecture."""
        reader, config = Reader(records), records.config
        parts, headlines = [], []
        for name in config.architectures:
            own, control = (reader.terms(one.key) for one in self.conditions(config, name))
            decision = stats.ratio_difference(
                *own, *control, threshold=0.0, alternative="greater", paired=True
            )
            statistic = f"M_θ in error minus M_θ with {self.control}"
            parts.append(
                rules.part(decision, name, statistic, "greater", 0.0, control=self.control)
            )
            headlines.append(
                rules.headline(
                    f"M_θ in error ({name})",
                    stats.fieller(*own),
                    self.control,
                    stats.fieller(*control),
                )
            )
        return Outcome(tuple(parts), tuple(config.architectures), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's M_θ beside its control."""
        reader, config = Reader(records), records.config
        terms = [
            [reader.terms(one.key) for one in self.conditions(config, name)]
            for name in config.architectures
        ]
        ratios = np.array([[rules.ratios(*one) for one in both] for both in terms])
        intervals = [[rules.triple(stats.fieller(*one)) for one in both] for both in terms]
        axes = plots.pair_comparison(
            ratios[:, 0],
            ratios[:, 1:],
            names=config.architectures,
            treatment=self.treatment,
            control_names=[self.control],
            xlabel="M_θ in error, share of own progress that the other half makes",
            intervals=np.array(intervals),
        )
        seen = {
            "supported": "The two clouds are apart",
            "refuted": f"The order is reversed: {self.control} carry further",
            "inconclusive": "The two clouds cannot be told apart",
        }[verdict.verdict]
        caption = (
            f"Each dot is a pair. {seen}. 1 would be all the way, 0 not at all; the control, in "
            f"grey: {self.controls[0]}."
        )
        return [Figure(f"{self.id.lower()}_meeting", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        ending = {
            "supported": self.supported,
            "refuted": self.refuted,
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. More pairs, or training that "
                f"stays finite, would have to separate {self.treatment} from {self.control}."
            ),
        }[verdict.verdict]
        return f"{self.opening} {numbers}. {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the architectures: each is a test."""
        return plants.CONFIG.architectures

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose M_θ exceeds its control by `PLANTED` times `effect`."""
        config = plants.CONFIG
        parts = {}
        for name in config.architectures:
            size = 0.0 if name == boundary else PLANTED * effect
            own, control = self.conditions(config, name)
            parts[own] = plants.learning(rng, config, 0.5 + size)
            parts[control] = plants.learning(rng, config, 0.5)
        return plants.records(config, parts)
