"""G5: halves meet class by class."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.g5.measure import CLASSES, MATRICES
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

DECIDES = "residual-free, at initialization"
NOISE = 0.02
"""Planted standard deviation over pairs of a contrast."""
PLANTED = 0.05
"""Contrast above that of shuffled labels at effect 1."""


def on_holdout(config: RunConfig) -> Condition:
    """Returns the condition that is looked at: trained on S, so that θ depends on neither half."""
    own = condition(config, config.architectures[0])
    return dataclasses.replace(own, on_holdout=True)


def terms(
    reader: Reader, key: str, matrix: str, labels: str, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` numerators and denominators of a contrast, both directions summed."""
    finite = reader.finite(key)
    both = (
        reader.cube(
            key, f"class_{what}", ("pair", "surrogate"), subset=f"{matrix}.{labels}", step=step
        ).sum(-1)
        for what in ("contrast", "size")
    )
    num, den = (np.where(finite, values, np.nan) for values in both)
    return num, den


@dataclasses.dataclass(frozen=True)
class G5:
    """The diagonal of the residual-free matrix at initialization leads, more than by chance."""

    id: str = "G5"
    claim: str = "Examples of one class meet across the halves more than examples of two."
    controls: tuple[str, ...] = ("labels shuffled within each half",)
    smallest_effect: str = "a contrast .05 above that of shuffled labels"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training on S and the class matrices before and after it."""
        one = on_holdout(config)
        return [Request(LEARNING, (one,)), Request(CLASSES, (one,))]

    def decide(self, records: Records) -> Outcome:
        """Returns the contrast minus that of shuffled labels, at initialization."""
        reader, one = Reader(records), on_holdout(records.config)
        own, control = (
            terms(reader, one.key, MATRICES[0], labels, 0) for labels in ("true", "shuffled")
        )
        part = rules.part(
            stats.ratio_difference(
                *own, *control, threshold=0.0, alternative="greater", paired=True
            ),
            DECIDES,
            "(mean diagonal − mean off-diagonal)/mean|entry| minus the same for shuffled labels",
            "greater",
            0.0,
            control="shuffled labels",
        )
        headlines = [
            rules.headline(
                f"contrast, {DECIDES}",
                stats.fieller(*own),
                "shuffled labels",
                stats.fieller(*control),
            )
        ]
        last = one.probe_steps[-1]
        for matrix, step, words in (
            (MATRICES[0], last, "residual-free, trained on S"),
            (MATRICES[1], 0, "with residuals, at initialization"),
            (MATRICES[1], last, "with residuals, trained on S"),
        ):
            try:
                found = [
                    stats.fieller(*terms(reader, one.key, matrix, labels, step))
                    for labels in ("true", "shuffled")
                ]
            except LookupError:  # planted records hold what decides
                continue
            headlines.append(
                rules.headline(f"contrast, {words}", found[0], "shuffled labels", found[1])
            )
        return Outcome((part,), (DECIDES,), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's contrast beside its control, and the mean matrix where stored."""
        reader, one = Reader(records), on_holdout(records.config)
        own, control = (
            terms(reader, one.key, MATRICES[0], labels, 0) for labels in ("true", "shuffled")
        )
        axes = plots.pair_comparison(
            rules.ratios(*own)[None],
            rules.ratios(*control)[None, None],
            names=records.config.architectures[:1],
            treatment="true labels",
            control_names=["shuffled labels"],
            xlabel="(mean diagonal − mean off-diagonal) / mean |entry|, at initialization",
        )
        seen = {
            "supported": "The diagonal leads beyond what shuffled labels give",
            "refuted": "The diagonal falls behind",
            "inconclusive": "No lead of the diagonal can be told",
        }[verdict.verdict]
        caption = (
            "Each dot is a pair: how much more examples of one class move each other's logits than "
            f"examples of two classes do, before any training. {seen}."
        )
        figures = [Figure("g5_contrast", caption, rules.figure_of(axes))]
        stored = records.arrays.get((CLASSES.name, one.key), {})
        finite = reader.finite(one.key)
        for step, (when, words) in enumerate(
            (("start", "at initialization"), ("end", "after training on S"))
        ):
            if "residual-free.true" in stored and finite.any():
                mean = np.nanmean(stored["residual-free.true"][finite][:, :, step], (0, 1))
                axes = plots.meeting_matrix(mean, label="tr K(x, x′)/C, mean over A and B")
                caption = (
                    f"The residual-free meeting matrix {words}, mean over pairs: how far a step on "
                    "an example of a class in one half moves the logits of one in the other."
                )
                figures.append(Figure(f"g5_matrix_{when}", caption, rules.figure_of(axes)))
        return figures

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "A small step on one example moves the network's outputs on every other: the tangent "
            "kernel says how far. We take one example from each half and ask whether two of one "
            "class move each other more than two of different classes, before any training, so "
            f"that no model has looked at either half. {numbers}."
        )
        ending = {
            "supported": (
                "They do: the network's architecture and the images alone already sort the classes "
                "a little, and that is what a step on one half brings to the other."
            ),
            "refuted": (
                "They move each other less than examples of different classes do, so that the "
                "classes do not meet by themselves. Their images would have to be more alike "
                "within a class than between."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The lead of the diagonal would "
                "have to be clear of that under shuffled labels."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [DECIDES]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose contrast exceeds that of shuffled labels by .05 times `effect`."""
        config = plants.CONFIG
        lead = 0.0 if boundary else PLANTED * effect
        shape = (config.num_pairs, 2)
        values = {"finite": np.ones(config.num_pairs)}
        for labels, mean in (("true", lead), ("shuffled", 0.0)):
            size = rng.normal(5.0, 0.2, shape)
            noise = rng.normal(0, NOISE, (config.num_pairs, 1))
            name = f"{MATRICES[0]}.{labels}"
            values[plants.named("class_contrast", name, 0)] = size * (mean + noise)
            values[plants.named("class_size", name, 0)] = size
        return plants.records(config, {on_holdout(config): values})


STUDY = G5()
