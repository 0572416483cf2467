"""V2, a verification: the second law (P4), how k surrogates align with a further model."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import ensembles
from halfway.lab.measurements.ensembles import ALIGNMENT, Constant
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.v2 import figures as drawing
from halfway.lab.study import rules, text, wording
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Outcome, PartResult, Verdict
from halfway.stats import Decision

TEXT = text.load(__file__, "verification")
MARGIN, SHARE = 0.03, 0.15
"""Between alignment and law; the share counts where the law is below .2."""


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


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns twice the config's pairs, and how far surrogates among them align with targets."""
    compared = ensembles.compared_on(config)
    return [Request(LEARNING, (compared,)), Request(ALIGNMENT, (compared,))]


def decide(records: Records) -> Outcome:
    """Returns the equivalence with the law at each k; its constant comes from other models.

    Alignment is pooled over examples, given the surrogates; its error is that over targets, that
    of the constant over the models it comes from.
    """
    config = records.config
    aligned = records.get(ALIGNMENT, ensembles.compared_on(config))
    alignment = ensembles.alignments_by_size(aligned, config.num_pairs)
    constant = ensembles.constant_of(aligned)
    parts = tuple(_part(values, k, constant, aligned.finite) for k, values in alignment.items())
    headlines = []
    for k in (min(alignment), max(alignment)):
        predicted = wording.format_estimate(ensembles.law(k, constant.estimate))
        label = f"alignment at k = {k} (by the law {predicted})"
        mean = stats.mean_test(alignment[k], alternative="greater")
        headlines.append(rules.headline(label, mean))
    k_half = stats.mean_test(constant.estimate + constant.influence, alternative="greater")
    headlines.append(rules.headline("k_half, of other models", k_half))
    return Outcome(parts, tuple(part.name for part in parts), tuple(headlines))


def _part(values: np.ndarray, k: int, constant: Constant, finite: np.ndarray) -> PartResult:
    """Returns the equivalence of alignment at k with the law; all pairs are counted.

    Surrogates, targets and partners are in each pair.
    """
    half = constant.estimate
    predicted = ensembles.law(k, half)
    margin = min(MARGIN, SHARE * predicted) if predicted > 0 else MARGIN
    # The law's slope in k_half carries its error over.
    slope = -0.5 * predicted * (1 / (k + half) + 1 / (1 + half))
    decision = agreement(values, predicted + slope * constant.influence, margin)
    counts = {"num_pairs": int(finite.sum()), "num_excluded": int((~finite).sum())}
    statistic = f"alignment of {k} surrogate{'s' if k > 1 else ''} with a target minus the law"
    return rules.part(
        decision._replace(**counts),
        f"k = {k}",
        statistic,
        "within",
        -margin,
        margin,
        control="the second law",
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns alignment against k, with the law.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    aligned = records.get(ALIGNMENT, ensembles.compared_on(config))
    values = ensembles.alignments_by_size(aligned, config.num_pairs)
    half = ensembles.constant_of(aligned).estimate
    sizes = list(values)
    grid = np.geomspace(sizes[0], sizes[-1], 100)
    axes = drawing.alignment(
        sizes,
        [rules.triple(stats.mean_test(v, alternative="greater")) for v in values.values()],
        law=(grid, [ensembles.law(k, half) for k in grid]),
        limit=1 / math.sqrt(1 + half),
        margin=MARGIN,
    )
    caption = TEXT.caption("v2_alignment", verdict, **words(verdict))
    return [Figure("v2_alignment", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns how far alignment is from the law where it is farthest."""
    worst = min(verdict.parts, key=lambda part: part.clearance)
    return {
        "off": wording.format_estimate(worst.estimate, worst.low, worst.high),
        "off_name": worst.name,
        "margin": f"{MARGIN:g}",
    }


STUDY = Study("V2", TEXT, needs, decide, figures, words, kind="verification")
