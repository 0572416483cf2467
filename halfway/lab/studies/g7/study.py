"""G7: what A's training learns first of B is what B itself learns first."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.g7.measure import LEARNING_TIMES
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

WITHIN, PERMUTED, ALL = "within class", "permuted within class", "all classes"
NOISE = 0.036
"""Planted standard deviation over pairs."""
PLANTED = 0.05
"""Rank correlation at effect 1."""


def correlation(reader: Reader, key: str, subset: str) -> np.ndarray:
    """Returns `[P]` rank correlations, mean of both directions, NaN for pairs that diverged."""
    both = reader.cube(key, "rank_correlation", ("pair", "surrogate"), subset=subset)
    return np.where(reader.finite(key)[:, None], both, np.nan).mean(-1)


@dataclasses.dataclass(frozen=True)
class G7:
    """Spearman's correlation of learning times within class, ρ = 0, is above 0."""

    id: str = "G7"
    claim: str = "What training on one half learns first of the other, the other learns first too."
    controls: tuple[str, ...] = ("learning times permuted within class",)
    smallest_effect: str = "a rank correlation of .05 within class"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns learning times of the first architecture; ρ = 0 decides."""
        name = config.architectures[0]
        every = [condition(config, name, noise_rate=float(r)) for r in config.noise_rates if r < 1]
        return [Request(what, (one,)) for one in every for what in (LEARNING, LEARNING_TIMES)]

    def decide(self, records: Records) -> Outcome:
        """Returns one test at ρ = 0."""
        reader, config = Reader(records), records.config
        key = condition(config, config.architectures[0]).key
        within, permuted = (correlation(reader, key, name) for name in (WITHIN, PERMUTED))
        part = rules.part(
            stats.mean_test(within, 0.0, alternative="greater"),
            WITHIN,
            "mean within-class Spearman correlation of learning times",
            "greater",
            0.0,
            control=PERMUTED,
        )
        level = stats.mean_test(permuted, 0.0, alternative="greater")
        headlines = [
            rules.headline(
                "rank correlation within class",
                stats.mean_test(within, alternative="greater"),
                PERMUTED,
                level,
            )
        ]
        headlines += [
            rules.headline(
                f"at ρ = {rate:g}, within class and corrupted",
                stats.mean_test(correlation(reader, one.key, WITHIN), alternative="greater"),
            )
            for rate, one in self._noisy(config)
            if reader.has(one.key, "rank_correlation")
        ]
        warnings = ()
        if reader.has(key, "num_undefined_strata"):
            undefined = reader.cube(key, "num_undefined_strata", ("pair", "surrogate"))
            if undefined.sum() > 0:
                warnings = (
                    f"G7: {int(undefined.sum())} of {undefined.size * config.num_classes} classes "
                    "had no order of learning (all examples at once) and were left out.",
                )
        return Outcome((part,), (WITHIN,), tuple(headlines), warnings)

    @staticmethod
    def _noisy(config: RunConfig) -> list[tuple[float, Condition]]:
        name = config.architectures[0]
        return [
            (float(rate), condition(config, name, noise_rate=float(rate)))
            for rate in config.noise_rates
            if 0 < rate < 1
        ]

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's correlation beside its control."""
        reader, config = Reader(records), records.config
        key = condition(config, config.architectures[0]).key
        axes = plots.pair_comparison(
            correlation(reader, key, WITHIN)[None],
            correlation(reader, key, PERMUTED)[None, None],
            names=config.architectures[:1],
            treatment="within class",
            control_names=["permuted within class"],
            xlabel="Spearman correlation of when both models learn an example",
        )
        seen = {
            "supported": "The order is shared beyond the difficulty of the class",
            "refuted": "The order is reversed within a class",
            "inconclusive": "Within a class no shared order can be told",
        }[verdict.verdict]
        caption = (
            "Each dot is a pair: examples of one half, in the order in which the model trained on "
            "it learns them, against the order in which the other half's model does, which never "
            f"sees them. {seen}. In grey: mean over permutations within class."
        )
        return [Figure("g7_order", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "For every example we note when it is learned for good: by the model that trains on "
            "it, and by the other model, which never sees it. Examples that are never learned come "
            "last. Within a class, so that easy classes do not count, we ask whether the two "
            f"orders agree. {numbers}."
        )
        ending = {
            "supported": (
                "They agree: what is easy is easy for both halves, and is learned first by both."
            ),
            "refuted": (
                "They disagree: what one half learns first the other learns last. To change this, "
                "examples would have to be easy or hard for both."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The correlation would have to be "
                "clear of 0 over pairs."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [WITHIN]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose correlation within class is .05 times `effect`."""
        config = plants.CONFIG
        size = 0.0 if boundary else PLANTED * effect
        shape = (config.num_pairs, 1)
        within = size + rng.normal(0, NOISE, shape) * np.ones(2)
        permuted = rng.normal(0, NOISE / 10, shape) * np.ones(2)
        parts = {
            condition(config, config.architectures[0]): {
                "finite": np.ones(config.num_pairs),
                plants.named("rank_correlation", WITHIN): within,
                plants.named("rank_correlation", PERMUTED): permuted,
            }
        }
        return plants.records(config, parts)


STUDY = G7()
