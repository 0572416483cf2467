"""T7: more surrogates meet the target better, by the second law."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t7 import figures as drawing
from halfway.lab.studies.t7.measure import ENSEMBLES, MIDPOINTS, TAIL, block_sizes, compared_on
from halfway.lab.study import rules, text, wording
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, PartResult, Verdict
from halfway.stats import Decision

TEXT = text.load(__file__)
MARGIN, SHARE = 0.03, 0.15
"""Between alignment and law; the share counts where the law is below .2."""
SUCCESS = "success"
SINGLE = "one surrogate"
WAYS = {
    "probabilities": "mean probabilities",
    "loss": "mean loss",
    "worst": "hardest of all",
    TAIL: "SGD tail of one",
    MIDPOINTS[0]: "weight midpoint of two, raw",
    MIDPOINTS[1]: "weight midpoint of two, matched",
}
"""Ways to attack beside the mean logits, in words."""


class Constant(NamedTuple):
    """k_half, and what each model of known role adds to its error, `[P]` with mean 0."""

    estimate: float
    influence: np.ndarray


def law(k: float, k_half: float) -> float:
    """Returns √(k/(k + k_half)) / √(1 + k_half); NaN where k_half is not positive.

    Args:
      k: number of surrogates.
      k_half: noise over signal of the input gradients of one model.
    """
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


def alignments(product: np.ndarray, ensemble: float, target: np.ndarray) -> np.ndarray:
    """Returns `[P]` values whose mean is the pooled alignment: its linearization over targets.

    Args:
      product: `[P]`, ⟨h̄, h_m⟩ summed over examples.
      ensemble: ‖h̄‖², the same for all targets; NaN where it was not measured.
      target: `[P]`, ‖h_m‖².
    """
    valid = np.isfinite(product) & np.isfinite(target)
    if not (valid.any() and math.isfinite(ensemble)):
        return np.full(product.shape, math.nan)
    inner, norm = product[valid].mean(), target[valid].mean()
    pooled = inner / math.sqrt(ensemble * norm)
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


class EnsembleReadings(NamedTuple):
    """What is read: `[2P]` each, NaN where a pair has no target or a model diverged.

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


def ensemble_readings(ensembles: Measured, sizes: Sequence[int]) -> EnsembleReadings:
    """Returns what the rule looks at.

    Args:
      ensembles: of `ENSEMBLES`.
      sizes: the numbers k of surrogates.
    """
    target = ensembles.read("target_square")

    def alignment(k: int) -> np.ndarray:
        square = ensembles.read("ensemble_square", num_surrogates=k).item()
        product = ensembles.read("ensemble_product", num_surrogates=k)
        return alignments(product, square, target)

    return EnsembleReadings(
        ensembles.finite,
        constant(ensembles.read("partner_square"), ensembles.read("partner_product")),
        {k: alignment(k) for k in sizes},
        {k: ensembles.read("num_fooled", num_surrogates=k) for k in sizes},
        ensembles.read("num_examples"),
    )


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns twice the config's pairs, and what surrogates among them do to targets."""
    compared = compared_on(config)
    return [Request(LEARNING, (compared,)), Request(ENSEMBLES, (compared,))]


def decide(records: Records) -> Outcome:
    """Returns the equivalence with the law at each k, and the test of success."""
    config = records.config
    sizes, epsilon = block_sizes(config.num_pairs), config.attack.epsilon
    read = ensemble_readings(records.get(ENSEMBLES, compared_on(config)), sizes)
    parts = [_law_part(read, k) for k in sizes]
    first, last = sizes[0], sizes[-1]
    rise = stats.bounded(
        stats.ratio_test(
            read.fooled[last] - read.fooled[first], read.examples, 0.0, alternative="greater"
        ),
        -1.0,
    )
    statistic = f"success rate at ε = {epsilon:g} of {last} surrogates minus that of one"
    parts.append(
        rules.part(_counted(rise, read), SUCCESS, statistic, "greater", 0.0, control="k = 1")
    )
    headlines = [
        rules.headline(
            f"success rate of {last} surrogates at ε = {epsilon:g}",
            stats.bounded(stats.fieller(read.fooled[last], read.examples)),
            "of one",
            stats.bounded(stats.fieller(read.fooled[first], read.examples)),
        )
    ]
    for k in (first, last):
        predicted = wording.format_estimate(law(k, read.k_half.estimate))
        label = f"alignment at k = {k} (by the law {predicted})"
        mean = stats.mean_test(read.alignment[k], alternative="greater")
        headlines.append(rules.headline(label, mean))
    k_half = stats.mean_test(read.k_half.estimate + read.k_half.influence, alternative="greater")
    headlines.append(rules.headline("k_half, of other models", k_half))
    return Outcome(tuple(parts), tuple(f"k = {k}" for k in sizes), tuple(headlines))


def _law_part(read: EnsembleReadings, k: int) -> PartResult:
    """Returns the equivalence of alignment at k with the law."""
    half = read.k_half.estimate
    predicted = law(k, half)
    margin = min(MARGIN, SHARE * predicted) if predicted > 0 else MARGIN
    # The law's slope in k_half carries its error over.
    slope = -0.5 * predicted * (1 / (k + half) + 1 / (1 + half))
    expected = predicted + slope * read.k_half.influence
    decision = agreement(read.alignment[k], expected, margin)
    statistic = f"alignment of {k} surrogate{'s' if k > 1 else ''} with a target minus the law"
    return rules.part(
        _counted(decision, read),
        f"k = {k}",
        statistic,
        "within",
        -margin,
        margin,
        control="the second law",
    )


def _counted(decision: Decision, read: EnsembleReadings) -> Decision:
    """Returns a decision that counts all pairs: surrogates, targets and partners are in each."""
    return decision._replace(
        num_pairs=int(read.finite.sum()), num_excluded=int((~read.finite).sum())
    )


def _rate(fooled: np.ndarray, read: EnsembleReadings) -> tuple[float, float, float]:
    """Returns a success rate with its interval; NaN where it was not measured."""
    if not np.isfinite(fooled).any():
        return math.nan, math.nan, math.nan
    return rules.triple(stats.bounded(stats.fieller(fooled, read.examples)))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns alignment and success against k, and success by way of attack.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    sizes, epsilon = block_sizes(config.num_pairs), config.attack.epsilon
    ensembles = records.get(ENSEMBLES, compared_on(config))
    read = ensemble_readings(ensembles, sizes)
    alignment = [
        rules.triple(stats.mean_test(read.alignment[k], alternative="greater")) for k in sizes
    ]
    rates = {k: _rate(read.fooled[k], read) for k in sizes}
    grid = np.geomspace(sizes[0], sizes[-1], 100)
    half = read.k_half.estimate
    axes = drawing.curves(
        sizes,
        alignment,
        [*rates.values()],
        law=(grid, [law(k, half) for k in grid]),
        limit=1 / math.sqrt(1 + half),
        epsilon=epsilon,
    )
    caption = TEXT.caption("t7_surrogates", verdict)
    drawn = [Figure("t7_surrogates", caption, rules.figure_of(axes))]
    last = sizes[-1]
    rows = {SINGLE: rates[sizes[0]], f"mean logits ({last})": rates[last]}
    for way, words in WAYS.items():
        name = words if way in (TAIL, *MIDPOINTS) else f"{words} ({last})"
        rows[name] = _rate(ensembles.read("num_fooled_by", way=way), read)
    rows = {name: rate for name, rate in rows.items() if math.isfinite(rate[0])}
    if len(rows) < 3:
        return drawn
    axes = drawing.ways(
        rows,
        reference=[SINGLE],
        xlabel=f"share fooled at ε = {epsilon:g}, of the examples that the target had right",
    )
    caption = TEXT.caption("t7_ways", verdict, last=last)
    return [*drawn, Figure("t7_ways", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns how far alignment is from the law where it is farthest, and how success rises."""
    rise = next(part for part in verdict.parts if part.name == SUCCESS)
    laws = [part for part in verdict.parts if part.name != SUCCESS]
    worst = min(laws, key=lambda part: part.clearance)
    return {
        "off": wording.format_estimate(worst.estimate, worst.low, worst.high),
        "off_name": worst.name,
        "gain": wording.format_estimate(rise.estimate, rise.low, rise.high),
        "margin": f"{MARGIN:g}",
    }


STUDY = Study("T7", TEXT, needs, decide, figures, words, stands_on=("T1",))
