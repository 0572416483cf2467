"""T2: input-gradient alignment predicts transfer example by example."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from scipy import optimize

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import FIRST_ORDER
from halfway.lab.studies import t1
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader

MARGIN = (0.8, 1.25)
"""Calibration slopes that count as calibrated."""
NUM_BINS = 5
"""Bins of the target's margin, of equal counts within a direction; times class: the strata."""
POOLED, STRATIFIED, CALIBRATION = "pooled", "stratified", "calibration"


class Terms(NamedTuple):
    """Sums for each pair `[P]`: of the two AUCs and of the calibration slope."""

    pooled: tuple[np.ndarray, np.ndarray]
    stratified: tuple[np.ndarray, np.ndarray]
    calibration: tuple[np.ndarray, np.ndarray]


def margin_bins(loss: np.ndarray) -> np.ndarray:
    """Returns `[B]` the bin of each margin loss, `NUM_BINS` bins of equal counts by rank."""
    ranks = np.empty(len(loss), int)
    ranks[np.argsort(loss, kind="stable")] = np.arange(len(loss))
    return NUM_BINS * ranks // max(1, len(loss))


def terms(arrays: Mapping[str, np.ndarray], finite: np.ndarray) -> Terms:
    """Returns the sums of both AUCs and of the slope, each over both directions of a pair.

    The AUCs are over examples that fool A (A was right before) and that B classifies correctly when
    clean; A→B and B→A are compared within themselves. The slope is over all of S.

    Args:
      arrays: `[P, 2, B]` outcomes and first-order predictions, `labels` `[P, B]`.
      finite: `[P]`; the others become NaN.
    """
    num_pairs = len(finite)
    sums = np.zeros((3, 2, num_pairs))
    for p in np.flatnonzero(finite):
        for d in range(2):
            eligible = (
                arrays["surrogate_correct"][p, d]
                & arrays["surrogate_fooled"][p, d]
                & arrays["target_correct"][p, d]
            )
            score = arrays["score"][p, d][eligible]
            fooled = arrays["target_fooled"][p, d][eligible]
            bins = margin_bins(arrays["target_loss"][p, d][eligible])
            strata = NUM_BINS * arrays["labels"][p][eligible].astype(int) + bins
            sums[0, :, p] += stats.auc(score, fooled)
            sums[1, :, p] += stats.auc(score, fooled, strata)
            sums[2, :, p] += stats.slope(arrays["predicted"][p, d], arrays["actual"][p, d])
    sums[:, :, ~finite] = np.nan
    return Terms(*((one[0], one[1]) for one in sums))


@dataclasses.dataclass(frozen=True)
class T2:
    """AUC of ⟨h_B, s(h_A)⟩ for fooling B, pooled and stratified, and calibration of one step."""

    id: str = "T2"
    claim: str = "Input-gradient alignment predicts, example by example, which attacks transfer."
    controls: tuple[str, ...] = ("the target's margin and class (strata)",)
    smallest_effect: str = "AUCs of .55 (pooled) and .55 (stratified)"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns transfer and first-order predictions of the first architecture at ρ = 0."""
        name = config.architectures[0]
        own = Request(FIRST_ORDER, (condition(config, name),))
        return [*t1.requests(config, name), own]

    def _arrays(self, records: Records) -> tuple[dict[str, np.ndarray], np.ndarray]:
        key = condition(records.config, records.config.architectures[0]).key
        arrays = dict(records.arrays["transfer", key]) | dict(records.arrays["first_order", key])
        return arrays, Reader(records).finite(key)

    def decide(self, records: Records) -> Outcome:
        """Returns two AUCs above ½ and the calibration slope within its margins."""
        sums = terms(*self._arrays(records))
        name = records.config.architectures[0]
        epsilon = records.config.attack.epsilon
        parts = [
            rules.part(
                stats.ratio_test(*values, 0.5, alternative="greater"),
                label,
                f"AUC of ⟨h_B, s(h_A)⟩ for fooling B at ε = {epsilon:g}, {how}",
                "greater",
                0.5,
                control=control,
            )
            for label, values, how, control in (
                (POOLED, sums.pooled, "all examples together", ""),
                (STRATIFIED, sums.stratified, "within margin bin and class", "margin and class"),
            )
        ]
        slope = stats.ratio_equivalence(*sums.calibration, *MARGIN)
        parts.append(
            rules.part(
                slope,
                CALIBRATION,
                "slope of measured against predicted change, one clipped step, "
                f"ε = {records.config.attack.epsilon_calibration:g}",
                "within",
                *MARGIN,
            )
        )
        headline = rules.headline(
            f"AUC ({name})",
            stats.fieller(*sums.pooled),
            "within margin bin and class",
            stats.fieller(*sums.stratified),
        )
        return Outcome(tuple(parts), (POOLED,), (headline,))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns the transfer rate by predicted change, and the calibration of one step."""
        arrays, finite = self._arrays(records)
        arrays = {name: values[finite] for name, values in arrays.items()}
        eligible = (
            arrays["surrogate_correct"] & arrays["surrogate_fooled"] & arrays["target_correct"]
        )
        pair = np.broadcast_to(np.arange(finite.sum())[:, None, None], eligible.shape)
        epsilon = records.config.attack.epsilon
        rates = plots.binned_rates(
            arrays["score"][eligible],
            arrays["target_fooled"][eligible],
            pair[eligible],
            ylabel=f"share that fools B at ε = {epsilon:g}",
        )
        slope = stats.fieller(*terms(arrays, np.ones(int(finite.sum()), bool)).calibration)
        center = [
            arrays[name] - arrays[name].mean(-1, keepdims=True) for name in ("predicted", "actual")
        ]
        step = plots.calibration(
            center[0].ravel(),
            center[1].ravel(),
            pair.ravel(),
            slope=rules.triple(slope),
            margin=MARGIN,
            label="slope",
            xlabel="predicted change of B's margin loss, from its mean",
            ylabel="measured change, from its mean",
        )
        seen = {
            "supported": "The rate rises with the score",
            "refuted": "The score does not sort examples as claimed",
            "inconclusive": "Not every part of the claim is settled",
        }[verdict.verdict]
        return [
            Figure(
                "t2_rates",
                "Examples that fool A and that B had right, in ten bins of the first-order score. "
                f"{seen}; the dashed line is the "
                "rate over all, where every bin would be if the score told nothing.",
                rules.figure_of(rates),
            ),
            Figure(
                "t2_calibration",
                "One small step on A: what first order predicts for B against what is measured, "
                f"each from its mean within a direction. A slope in the grey band, {MARGIN[0]:g} "
                f"to {MARGIN[1]:g}, counts as calibrated.",
                rules.figure_of(step),
            ),
        ]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        parts = {part.name: part for part in verdict.parts}
        calibrated = parts[CALIBRATION]
        slope = wording.format_estimate(calibrated.estimate, calibrated.low, calibrated.high)
        number = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "Some attacks on A also fool B, others do not. From the two input gradients alone we "
            "predict which, before any attack is run: how much A's steepest direction raises B's "
            "loss to first order. The AUC is how often an example that fools B has a higher score "
            f"than one that does not; ½ is guessing. {number}: the second is among examples of one "
            "class that B was about equally sure of. For one small step the measured change "
            f"follows the predicted one with slope {slope}."
        )
        ending = {
            "supported": "So alignment says something about transfer that margin and class do not.",
            "refuted": (
                f"That refutes the claim: {verdict.reason}. Both AUCs would have to exceed ½ and "
                f"the slope to lie between {MARGIN[0]:g} and {MARGIN[1]:g}."
            ),
            "inconclusive": (
                f"The run does not settle the whole claim: {verdict.reason}. Both AUCs would have "
                f"to be clear of ½ and the slope clear of {MARGIN[0]:g} and {MARGIN[1]:g}."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the two AUCs and both ends of the calibration's margin."""
        return POOLED, STRATIFIED, f"{CALIBRATION}, low", f"{CALIBRATION}, high"

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns outcomes of examples with known AUCs and slope.

        B is fooled with a probability that depends on its margin bin alone; the score is normal,
        shifted within a bin for the fooled and between bins by what gives the pooled AUC.
        """
        config = plants.CONFIG
        goal = {name: 0.5 + 0.05 * effect for name in (POOLED, STRATIFIED)}
        if boundary in goal:
            goal[boundary] = 0.5
        within = np.sqrt(2) * float(scipy.stats.norm.ppf(goal[STRATIFIED]))
        between = _between(within, goal[POOLED])
        center = {f"{CALIBRATION}, low": MARGIN[0], f"{CALIBRATION}, high": MARGIN[1]}
        size = (config.num_pairs, 2, config.num_holdout)
        labels = rng.integers(0, config.num_classes, (size[0], size[2]))
        eligible = rng.random(size) < 0.45
        loss = rng.normal(size=size)
        bins = np.zeros(size, int)
        for p, d in np.ndindex(size[:2]):
            bins[p, d, eligible[p, d]] = margin_bins(loss[p, d, eligible[p, d]])
        fooled = rng.random(size) < _RATES[bins]
        score = rng.normal(size=size) + within * fooled + between * bins
        predicted = rng.gamma(2.0, 0.1, size)
        slope = center.get(str(boundary), 1.0) + rng.normal(0, 0.05, (size[0], 1, 1))
        first_order = {
            "score": score,
            "predicted": predicted,
            "actual": slope * predicted + rng.normal(0, 0.1, size),
        }
        outcomes = {
            "labels": labels,
            "surrogate_correct": np.ones(size, bool),
            "surrogate_fooled": eligible,
            "target_correct": np.ones(size, bool),
            "target_fooled": fooled,
            "target_loss": loss,
        }
        one = condition(config, config.architectures[0])
        arrays = {("transfer", one.key): outcomes, ("first_order", one.key): first_order}
        return plants.records(config, {one: {"finite": np.ones(config.num_pairs)}}, arrays)


_RATES = np.array([0.1, 0.15, 0.25, 0.4, 0.6])
"""Planted share of fooled examples in each margin bin."""


@functools.lru_cache(maxsize=64)
def _between(within: float, goal: float) -> float:
    """Returns the shift between neighbouring bins that gives a pooled AUC of `goal`.

    AUC = Σ_kl w⁺_k w⁻_l Φ((within + between (k − l)) / √2) for normal scores in bins k and l.
    """
    fooled, rest = _RATES / _RATES.sum(), (1 - _RATES) / (1 - _RATES).sum()
    bins = np.arange(NUM_BINS)

    def excess(between: float) -> float:
        distance = within + between * (bins[:, None] - bins[None, :])
        return float(fooled @ scipy.stats.norm.cdf(distance / np.sqrt(2)) @ rest) - goal

    return optimize.root_scalar(excess, bracket=(-2.0, 2.0)).root


STUDY = T2()
