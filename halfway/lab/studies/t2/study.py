"""T2: alignment predicts which attacks transfer, beyond how close to the boundary an example is."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t2 import figures as drawing
from halfway.lab.studies.t2.concordance import equal_bins, example_counts, nested_bins
from halfway.lab.studies.t2.measure import FIRST_ORDER
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
NUM_BINS = 5
"""Of B's margin loss, and of ‖h_B‖_1 within each: by equal counts within a pair and direction."""
GUESSING = 0.5
"""The AUC of a score that says nothing."""
WITHIN, BEYOND = "alignment within bins", "with alignment against without"
SCORES = {
    "aligned": "ℓ_B + ε⟨h_B, s(h_A)⟩",
    "distance": "ℓ_B/‖h_B‖₁",
    "margin": "ℓ_B alone",
}
"""What the outcome is predicted from: B's loss after A's step, to first order; to first order how
far B's boundary is; and B's loss."""


class Outcomes(NamedTuple):
    """What happens to each example of S in the directions A→B and B→A, `[P, 2, B]` each.

    Attributes:
      eligible: both models are right on the clean image, and τ is defined.
      fooled: the attack on the surrogate fools the target.
      target_loss: margin loss of the target on the clean image, ℓ_B.
      score: ⟨h_B, s(h_A)⟩.
      tau: the score over ‖h_B‖_1.
      target_norm: ‖h_B‖_1.
      rows: `[P, B]`, of the pool.
      finite: `[P]`, pairs whose models stayed finite.
    """

    eligible: np.ndarray
    fooled: np.ndarray
    target_loss: np.ndarray
    score: np.ndarray
    tau: np.ndarray
    target_norm: np.ndarray
    rows: np.ndarray
    finite: np.ndarray


class Areas(NamedTuple):
    """AUCs of a score: their terms for each pair, and of each example.

    Attributes:
      concordant: `[P]`, both directions summed; NaN for pairs that diverged.
      comparable: `[P]`, likewise.
      of_examples: for each pair and direction, the rows of the pool, their concordant and their
        comparable comparisons.
    """

    concordant: np.ndarray
    comparable: np.ndarray
    of_examples: tuple[tuple[int, np.ndarray, np.ndarray, np.ndarray], ...]


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns transfer and first-order predictions of the first architecture at ρ = 0."""
    trained = (decided_on(config),)
    return [Request(measurement, trained) for measurement in (LEARNING, TRANSFER, FIRST_ORDER)]


def outcomes(attacked: Measured, predicted: Measured) -> Outcomes:
    """Returns the outcomes of every example by direction.

    Args:
      attacked: of `TRANSFER`.
      predicted: of `FIRST_ORDER`.
    """
    correct, loss = (
        attacked.read(name, "pair", "model", "example") for name in ("clean_correct", "clean_loss")
    )
    fooled = attacked.read("fooled", "pair", "surrogate", "target", "example")
    surrogate, target = np.array([0, 1]), np.array([1, 0])
    score, tau, norm = (
        predicted.read(name, "pair", "surrogate", "example").astype(np.float64)
        for name in ("score", "tau", "target_norm")
    )
    return Outcomes(
        eligible=correct.all(1, keepdims=True) & np.isfinite(tau),
        fooled=fooled[:, surrogate, target],
        target_loss=loss[:, target].astype(np.float64),
        score=score,
        tau=tau,
        target_norm=norm,
        rows=predicted.read("row", "pair", "example"),
        finite=attacked.finite & predicted.finite,
    )


def areas(examples: Outcomes, scores: np.ndarray, *, within_bins: bool = False) -> Areas:
    """Returns the terms of the AUC of a score among eligible examples, within each direction.

    Args:
      examples: of `outcomes`.
      scores: `[P, 2, B]`.
      within_bins: whether examples are compared within bins of margin and gradient size alone.
    """
    num_pairs = len(examples.finite)
    concordant, comparable = np.where(examples.finite, 0.0, np.full((2, num_pairs), np.nan))
    of_examples = []
    for p in np.flatnonzero(examples.finite):
        for direction in range(2):
            place = int(p), direction
            eligible = examples.eligible[place]
            loss, norm = examples.target_loss[place], examples.target_norm[place]
            strata = nested_bins(loss[eligible], norm[eligible], NUM_BINS) if within_bins else None
            counts = example_counts(
                scores[place][eligible], examples.fooled[place][eligible], strata
            )
            # Every comparison stands with both of its examples.
            concordant[p] += counts.concordant.sum() / 2
            comparable[p] += counts.comparable.sum() / 2
            of_examples.append((int(p), examples.rows[p][eligible], *counts))
    return Areas(concordant, comparable, tuple(of_examples))


def scores_of(examples: Outcomes, budget: float) -> dict[str, np.ndarray]:
    """Returns `[P, 2, B]` each score of `SCORES`.

    Args:
      examples: of `outcomes`.
      budget: ε.
    """
    loss, norm = examples.target_loss, examples.target_norm
    with np.errstate(invalid="ignore"):  # of pairs that diverged
        return {
            "aligned": loss + budget * examples.score,
            "distance": loss / np.where(norm > 0, norm, np.nan),
            "margin": loss,
        }


def pooled_values(area: Areas) -> tuple[np.ndarray, np.ndarray]:
    """Returns the AUC of all pairs as values `[P]`, and `[N]` what each example adds to its error.

    Args:
      area: of which the AUC is the ratio of sums over pairs.
    """
    linear = stats.linearized(area.concordant, area.comparable)
    total = np.nansum(area.comparable)
    added = _added(
        area,
        lambda pair, concordant, comparable: (
            (concordant - linear.ratio * comparable) / (total or 1.0)
        ),
    )
    return linear.ratio + linear.values, added


def difference_values(first: Areas, second: Areas) -> tuple[np.ndarray, np.ndarray]:
    """Returns the difference of two AUCs `[P]`, and `[N]` what each example adds to its mean.

    Args:
      first: of the score that is claimed to be better.
      second: of the other, on the same examples.
    """
    auc_first, auc_second = (
        rules.ratios(area.concordant, area.comparable) for area in (first, second)
    )
    values = auc_first - auc_second
    number = max(1, int(np.isfinite(values).sum()))

    def of(area: Areas, auc: np.ndarray) -> np.ndarray:
        def residual(pair: int, concordant: np.ndarray, comparable: np.ndarray) -> np.ndarray:
            if not np.isfinite(values[pair]):
                return np.zeros(concordant.shape)
            return (concordant - auc[pair] * comparable) / area.comparable[pair] / number

        return _added(area, residual)

    return values, of(first, auc_first) - of(second, auc_second)


def _added(area: Areas, residual_fn) -> np.ndarray:
    """Returns `[N]` sums over pairs and directions of what examples add; NaN without any."""
    if not area.of_examples:
        return np.full(1, np.nan)
    size = 1 + max(int(rows.max(initial=0)) for _, rows, *_ in area.of_examples)
    added, used = np.zeros(size), np.zeros(size, bool)
    for pair, rows, concordant, comparable in area.of_examples:
        np.add.at(added, rows, residual_fn(pair, concordant, comparable))
        used[rows] = True
    return np.where(used, added, np.nan)


def _examples(records: Records) -> Outcomes:
    trained = decided_on(records.config)
    return outcomes(records.get(TRANSFER, trained), records.get(FIRST_ORDER, trained))


def decide(records: Records) -> Outcome:
    """Returns the AUC of τ within bins, and what alignment adds to how far B's boundary is.

    The outcome is that θ_B errs under PGD on θ_A, on examples of S that both models have right and
    at which τ is defined (h_B ≠ 0). Bins are made of these, in each pair and direction. The first
    AUC is a ratio of sums over pairs, linearized; the second is a mean over pairs of differences of
    AUCs, each of both directions together. Both are tested by a t over pairs *and* examples: the
    squared errors that draws of either make are added, since the samples S of pairs overlap. Bins
    are taken as given.
    """
    config, examples = records.config, _examples(records)
    epsilon = config.attack.epsilon
    within = areas(examples, examples.tau, within_bins=True)
    scored = {
        name: areas(examples, scores) for name, scores in scores_of(examples, epsilon).items()
    }
    # Pairs whose bins hold nothing to compare count: they add nothing to either sum.
    pooled = stats.two_way_test(*pooled_values(within), GUESSING, alternative="greater")._replace(
        num_pairs=int(examples.finite.sum()), num_excluded=int((~examples.finite).sum())
    )
    beyond = stats.two_way_test(
        *difference_values(scored["aligned"], scored["distance"]), alternative="greater"
    )
    parts = (
        rules.part(
            stats.bounded(pooled),
            WITHIN,
            f"AUC of τ for fooling B at ε = {epsilon:g}, within bins of B's margin and gradient",
            "greater",
            GUESSING,
            control=TEXT.controls[0],
        ),
        rules.part(
            stats.bounded(beyond, -1.0),
            BEYOND,
            f"AUC of {SCORES['aligned']} minus that of {SCORES['distance']}",
            "greater",
            0.0,
            control=TEXT.controls[1],
        ),
    )
    auc = {
        name: stats.bounded(stats.fieller(area.concordant, area.comparable))
        for name, area in scored.items()
    }
    headlines = (
        rules.headline("AUC of τ within bins", stats.bounded(pooled)),
        rules.headline(
            f"AUC of {SCORES['aligned']}", auc["aligned"], SCORES["distance"], auc["distance"]
        ),
        rules.headline(f"AUC of {SCORES['margin']}", auc["margin"]),
    )
    return Outcome(parts, (WITHIN,), headlines)


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the transfer rate by τ within bins, and the AUCs with and without alignment.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    examples, config = _examples(records), records.config
    place, fooled, pair = _ranked(examples)
    axes = drawing.rates(
        place,
        fooled,
        pair,
        num_bins=NUM_BINS,
        xlabel="rank of τ, alignment, among examples of equal margin and gradient size",
        ylabel=f"share that fools B at ε = {config.attack.epsilon:g}",
    )
    drawn = [Figure("t2_rates", TEXT.caption("t2_rates", verdict), rules.figure_of(axes))]
    auc = {}
    for name, scores in scores_of(examples, config.attack.epsilon).items():
        area = areas(examples, scores)
        auc[name] = rules.ratios(area.concordant, area.comparable)
    axes = plots.pair_comparison(
        auc["aligned"],
        np.stack([auc["distance"], auc["margin"]]),
        names=[config.architectures[0]],
        treatment=SCORES["aligned"],
        control_names=[SCORES["distance"], SCORES["margin"]],
        xlabel="AUC, how often an example that fools B has the larger score",
        threshold=GUESSING,
    )
    caption = TEXT.caption("t2_scores", verdict)
    return [*drawn, Figure("t2_scores", caption, rules.figure_of(axes))]


def _ranked(examples: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rank of τ within its bin as a share, whether B was fooled, and the pair."""
    columns = []
    for p in np.flatnonzero(examples.finite):
        for direction in range(2):
            place = int(p), direction
            chosen = examples.eligible[place]
            bins = nested_bins(
                examples.target_loss[place][chosen], examples.target_norm[place][chosen], NUM_BINS
            )
            tau, share = examples.tau[place][chosen], np.zeros(chosen.sum())
            for name in np.unique(bins):
                inside = bins == name
                number = int(inside.sum())
                share[inside] = (equal_bins(tau[inside], number) + 0.5) / number
            columns.append((share, examples.fooled[place][chosen], np.full(share.shape, p)))
    ranks, fooled, pair = (np.concatenate(column) for column in zip(*columns, strict=True))
    return ranks, fooled, pair


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns what alignment adds to the distance of B's boundary."""
    part = next(part for part in verdict.parts if part.name == BEYOND)
    return {
        "gain": wording.format_estimate(part.estimate, part.low, part.high),
        "num_bins": str(NUM_BINS),
    }


STUDY = Study("T2", TEXT, needs, decide, figures, words, stands_on=("T1",))
