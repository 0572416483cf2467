"""T7: more surrogates meet the target better, by the second law."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.t7.measure import ENSEMBLES, MIDPOINTS, TAIL, numbers, setting
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.protocol import Figure, Outcome, PartResult, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.stats import Decision

MARGIN, SHARE = 0.03, 0.15
"""Between alignment and law; the share counts where the law is below .2."""
SUCCESS = "success"
PLANTED = 0.05
"""Success rate of all surrogates above that of one, at effect 1."""
REMAINS = 0.1
"""Share of the margin that alignment is off by at effect 1."""
WAYS = {
    "logits": "mean logits",
    "probabilities": "mean probabilities",
    "loss": "mean loss",
    "worst": "hardest of all",
    TAIL: "SGD tail of one",
    MIDPOINTS[0]: "weight midpoint of two, raw",
    MIDPOINTS[1]: "weight midpoint of two, matched",
}


class Constant(NamedTuple):
    """k_half, and what each model of known role adds to its error, `[P]` with mean 0."""

    estimate: float
    influence: np.ndarray


def law(k: float, k_half: float) -> float:
    """Returns √(k/(k + k_half)) / √(1 + k_half); NaN where k_half is not positive."""
    return math.sqrt(k / (k + k_half) / (1 + k_half)) if k_half > 0 else math.nan


def constant(square: np.ndarray, product: np.ndarray) -> Constant:
    """Returns k_half = Σ ‖h‖² / Σ ⟨h, h'⟩ − 1 with the models' influences, linearized.

    A product is the mean over all other models, so that each model enters twice as much.

    Args:
      square: `[P]`.
      product: `[P]`; NaN where a model diverged.
    """
    valid = np.isfinite(square) & np.isfinite(product)
    signal = product[valid].mean() if valid.any() else math.nan
    if not signal > 0:
        return Constant(math.nan, np.full(square.shape, math.nan))
    ratio = square[valid].mean() / signal
    influence = (square - ratio * signal - 2 * ratio * (product - signal)) / signal
    return Constant(ratio - 1, influence)


def alignments(product: np.ndarray, ensemble: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns `[P]` values whose mean is the pooled alignment: its linearization over targets.

    Args:
      product: `[P]`, ⟨h̄, h_m⟩ summed over examples.
      ensemble: `[P]`, ‖h̄‖², the same for all targets.
      target: `[P]`, ‖h_m‖².
    """
    valid = np.isfinite(product) & np.isfinite(ensemble) & np.isfinite(target)
    if not valid.any():
        return np.full(product.shape, math.nan)
    inner, norm = product[valid].mean(), target[valid].mean()
    pooled = inner / math.sqrt(ensemble[valid].mean() * norm)
    values = pooled * (1 + (product - inner) / inner - 0.5 * (target - norm) / norm)
    return np.where(valid, values, math.nan)


def agreement(values: np.ndarray, expected: np.ndarray, margin: float) -> Decision:
    """Returns the difference of two means within a margin of 0: two one-sided tests by Welch.

    Args:
      values: `[P]`.
      expected: `[P]`, of other models.
      margin: above 0.
    """
    weights = np.ones(values.shape), np.ones(expected.shape)
    sides: list[tuple[float, stats.Alternative]] = [(-margin, "greater"), (margin, "less")]
    above, below = (
        stats.ratio_difference(
            values,
            weights[0],
            expected,
            weights[1],
            threshold=threshold,
            alternative=side,
            paired=False,
        )
        for threshold, side in sides
    )
    return above._replace(
        p_value=max(above.p_value, below.p_value),
        p_reverse=min(1.0, 2 * min(above.p_reverse, below.p_reverse)),
    )


class Terms(NamedTuple):
    """What is read: `[2P]` each, NaN where a row belongs to no target or a model diverged.

    Attributes:
      finite: whether both models of a pair stayed finite.
      k_half: of the partners.
      alignment: by k.
      fooled: by k, examples under attack on the mean logits.
      examples: that the target has right.
    """

    finite: np.ndarray
    k_half: Constant
    alignment: dict[int, np.ndarray]
    fooled: dict[int, np.ndarray]
    examples: np.ndarray


def terms(reader: Reader, config: RunConfig) -> Terms:
    """Returns what the rule looks at, from the records."""
    key = setting(config).key
    finite, every = reader.finite(key), numbers(config)

    def read(quantity: str, subset: str = "holdout", **columns: Any) -> np.ndarray:
        return np.where(finite, reader.cube(key, quantity, subset=subset, **columns), np.nan)

    def aligned(k: int) -> np.ndarray:
        product, square = (read(f"ensemble_{name}", step=k) for name in ("product", "square"))
        return alignments(product, square, target)

    target = read("target_square")
    return Terms(
        finite,
        constant(read("partner_square"), read("partner_product")),
        {k: aligned(k) for k in every},
        {k: read("ensemble_fooled", "logits", step=k) for k in (every[0], every[-1])},
        read("ensemble_examples"),
    )


@dataclasses.dataclass(frozen=True)
class T7:
    """Alignment of k surrogates with a target follows the second law, and success rises."""

    id: str = "T7"
    claim: str = "More surrogates meet the target better, by the second law."
    controls: tuple[str, ...] = ("one surrogate (k = 1)", "the law's constant from other models")
    smallest_effect: str = (
        "alignment .003 off the law, told from .03 off; a success rate of all surrogates .05 above "
        "that of one"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns twice the config's pairs, and what surrogates among them do to targets."""
        one = setting(config)
        return [Request(LEARNING, (one,)), Request(ENSEMBLES, (one,))]

    def decide(self, records: Records) -> Outcome:
        """Returns the equivalence with the law at each k, and the test of success."""
        reader, config = Reader(records), records.config
        found = terms(reader, config)
        parts = [self._part(found, k) for k in found.alignment]
        first, last = min(found.fooled), max(found.fooled)
        rise = stats.ratio_test(
            found.fooled[last] - found.fooled[first], found.examples, 0.0, alternative="greater"
        )
        epsilon = float(config.attack.epsilon)
        words = f"success rate at ε = {epsilon:g} of {last} surrogates minus that of one"
        parts.append(
            rules.part(_counted(rise, found), SUCCESS, words, "greater", 0.0, control="k = 1")
        )
        rates = {k: stats.fieller(values, found.examples) for k, values in found.fooled.items()}
        headlines = [
            rules.headline(
                f"success rate of {last} surrogates at ε = {epsilon:g}",
                rates[last],
                "of one",
                rates[first],
            )
        ]
        for k in (first, last):
            value = stats.mean_test(found.alignment[k], alternative="greater")
            predicted = wording.format_estimate(law(k, found.k_half.estimate))
            headlines.append(
                rules.headline(f"alignment at k = {k} (by the law {predicted})", value)
            )
        k_half = stats.mean_test(
            found.k_half.estimate + found.k_half.influence, alternative="greater"
        )
        headlines.append(rules.headline("k_half, of other models", k_half))
        every = tuple(f"k = {k}" for k in found.alignment)
        return Outcome(tuple(parts), every, tuple(headlines))

    @staticmethod
    def _part(found: Terms, k: int) -> PartResult:
        predicted = law(k, found.k_half.estimate)
        margin = min(MARGIN, SHARE * predicted) if predicted > 0 else MARGIN
        # The law's slope in k_half carries its error over.
        half = found.k_half.estimate
        slope = -0.5 * predicted * (1 / (k + half) + 1 / (1 + half))
        expected = predicted + slope * found.k_half.influence
        decision = agreement(found.alignment[k], expected, margin)
        statistic = f"alignment of {k} surrogate{'s' if k > 1 else ''} with a target minus the law"
        return rules.part(
            _counted(decision, found),
            f"k = {k}",
            statistic,
            "within",
            -margin,
            margin,
            control="the second law",
        )

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns alignment and success against k, and success by way of attack."""
        reader, config = Reader(records), records.config
        found, key = terms(reader, config), setting(config).key
        every, epsilon = numbers(config), float(config.attack.epsilon)

        def rate(way: str, k: int) -> tuple[float, float, float]:
            try:
                fooled = reader.cube(key, "ensemble_fooled", subset=way, step=k)
            except LookupError:  # planted records hold what decides
                return math.nan, math.nan, math.nan
            fooled = np.where(found.finite, fooled, np.nan)
            return rules.triple(stats.fieller(fooled, found.examples))

        alignment = [
            rules.triple(stats.mean_test(found.alignment[k], alternative="greater")) for k in every
        ]
        grid = np.geomspace(every[0], every[-1], 100)
        half = found.k_half.estimate
        axes = plots.surrogate_curves(
            every,
            alignment,
            [rate("logits", k) for k in every],
            law=(grid, [law(k, half) for k in grid]),
            limit=1 / math.sqrt(1 + half),
            epsilon=epsilon,
        )
        seen = {
            "supported": "Alignment follows the law at every k, and success rises with it",
            "refuted": "Alignment leaves the law at some k, or success falls",
            "inconclusive": "Whether alignment follows the law at every k and success rises is not "
            "settled",
        }[verdict.verdict]
        caption = (
            "Left: how well the mean input gradient of k surrogates is aligned with that of a "
            "model which is none of them; the line is the second law, its constant from other "
            "models again. Right: examples that an attack on their mean logits takes from the "
            f"target. {seen}. Intervals of 95 % over targets."
        )
        drawn = [Figure("t7_surrogates", caption, rules.figure_of(axes))]
        drawn += self._ways(reader, config, rate)
        return drawn

    @staticmethod
    def _ways(reader: Reader, config: RunConfig, rate: Any) -> list[Figure]:
        last, single = numbers(config)[-1], "one surrogate"
        size = {TAIL: last, MIDPOINTS[0]: 2, MIDPOINTS[1]: 2}
        rows = {single: rate("logits", 1)} | {
            f"{words} ({last})" if way not in size else words: rate(way, size.get(way, last))
            for way, words in WAYS.items()
        }
        rows = {name: values for name, values in rows.items() if math.isfinite(values[0])}
        if len(rows) < 3:
            return []
        axes = plots.named_rates(
            rows,
            reference=[single],
            xlabel=f"share fooled at ε = {float(config.attack.epsilon):g}, of the examples that "
            "the target had right",
        )
        caption = (
            f"Ways to attack: {last} models by the mean of their logits, of their probabilities or "
            f"of their losses, or always the hardest of them; {last} weights that SGD visits when "
            "it goes on from one model; and a single model halfway between the weights of two, as "
            "they are and after permuting units. Intervals of 95 % over targets; described, not "
            "tested."
        )
        return [Figure("t7_ways", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        rise = next(part for part in verdict.parts if part.name == SUCCESS)
        laws = [part for part in verdict.parts if part.name != SUCCESS]
        worst = min(laws, key=lambda part: part.clearance)
        off = wording.format_estimate(worst.estimate, worst.low, worst.high)
        gain = wording.format_estimate(rise.estimate, rise.low, rise.high)
        numbers_said = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "The input gradients of two models share a signal, and each has noise of its own. "
            "Averaging k models leaves the signal and divides the noise by k, so that their mean "
            "should come closer to any further model as k / (k + k_half) says. "
            f"Measured: {numbers_said}. Farthest from the law: {off} ({worst.name}). The "
            f"success rate rises by {gain}."
        )
        ending = {
            "supported": (
                "The law, whose one constant comes from models that are neither surrogates nor "
                "targets, holds at every k, and what it says of gradients carries over to attacks: "
                "more surrogates fool more. It saturates, since the noise of the target remains."
            ),
            "refuted": (
                f"In detail: {verdict.reason}. Alignment would have to stay within {MARGIN:g} of "
                "the law at every k, and more surrogates to fool more. Noise that models share, as "
                "of one set of training images, does not average out."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. More targets and more models for "
                "the constant would have to place alignment within the margin at every k, and the "
                "rise of success clear of 0."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns both margins at each k, and the rise of success."""
        sides = [f"k = {k}, {side}" for k in numbers(plants.CONFIG) for side in ("below", "above")]
        return [*sides, SUCCESS]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records off the law by .03 at effect 0 and by a tenth of it at effect 1.

        The success rate rises by .05 times `effect`.
        """
        config, half = plants.CONFIG, 0.6
        one, every = setting(config), numbers(plants.CONFIG)
        size = one.num_pairs
        signal = 1000.0
        shared = rng.normal(0, 1, (2, size))
        values = {
            "finite": np.ones(size),
            plants.named("partner_product", "holdout"): signal * (1 + 0.03 * shared[0]),
            plants.named("partner_square", "holdout"): signal
            * ((1 + half) * (1 + 0.05 * shared[0] + 0.035 * rng.normal(0, 1, size))),
            plants.named("target_square", "holdout"): signal
            * ((1 + half) * (1 + 0.05 * shared[1] + 0.035 * rng.normal(0, 1, size))),
        }
        product = signal * (1 + 0.03 * shared[1])
        for k in every:
            off = MARGIN * (1 - (1 - REMAINS) * effect)
            if boundary is not None and boundary.startswith(f"k = {k}, "):
                off = -MARGIN if boundary.endswith("below") else MARGIN
            square = (signal / (law(k, half) + off)) ** 2 / (signal * (1 + half))
            values[plants.named("ensemble_product", "holdout", k)] = product
            values[plants.named("ensemble_square", "holdout", k)] = np.full(size, square)
        counted = np.full(size, 0.95 * config.num_holdout)
        rise = 0.0 if boundary == SUCCESS else PLANTED * effect
        level = 0.21 + rng.normal(0, 0.015, size)
        fooled = {
            every[0]: level,
            every[-1]: level + rise + rng.normal(0, 0.012, size),
        }
        for k, share in fooled.items():
            values[plants.named("ensemble_fooled", "logits", k)] = counted * share
        values[plants.named("ensemble_examples", "holdout")] = counted
        return plants.records(config, {one: values})


def _counted(decision: Decision, found: Terms) -> Decision:
    """Returns a decision that counts all pairs: surrogates, targets and partners are in each."""
    return decision._replace(
        num_pairs=int(found.finite.sum()), num_excluded=int((~found.finite).sum())
    )


STUDY = T7()
