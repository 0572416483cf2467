"""G7: most of the order in which examples are learned reliably is common to both halves."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g7.measure import LEARNING_TIMES, PERMUTED, WITHIN
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
MOST = 0.5
"""The share of the reliable order that the halves must have in common, to be exceeded."""
HALVES, SEEDS = "two halves", "two seeds on one half"


def conditions(config: RunConfig) -> dict[str, Condition]:
    """Returns pairs of two halves, and of one half with two seeds, without label noise.

    The pairs share seeds: the one half is the first of the two, and its first model is θ_A.

    Args:
      config: of the run.
    """
    trained = condition(config, config.architectures[0])
    return {HALVES: trained, SEEDS: dataclasses.replace(trained, overlap=1.0)}


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns learning times of both conditions."""
    return [
        Request(measurement, (trained,))
        for trained in conditions(config).values()
        for measurement in (LEARNING, LEARNING_TIMES)
    ]


def correlation(times: Measured, kind: str = WITHIN) -> np.ndarray:
    """Returns `[P]` rank correlations, mean of both directions.

    Args:
      times: of `LEARNING_TIMES`.
      kind: `WITHIN` or `PERMUTED`.
    """
    return times.read("rank_correlation", "pair", "surrogate", times=kind).mean(-1)


def _correlations(records: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `[P]` of two halves, of two seeds, and of two halves permuted."""
    halves, seeds = (
        records.get(LEARNING_TIMES, trained) for trained in conditions(records.config).values()
    )
    return correlation(halves), correlation(seeds), correlation(halves, PERMUTED)


def decide(records: Records) -> Outcome:
    """Returns one paired test of r(A→B) minus half of r(B→B′).

    An example is learned at the first of 61 looks from which on it is right at all that follow;
    those that are not right at the last look come after all others, tied. r is Spearman's
    correlation within a class, its mean over classes weighted by their examples; classes in which
    a model learns all examples at the same look are left out of it. r(A→B) is the mean of both
    directions; r(B→B′) has one half, that of A, and the two models that train on it.
    """
    halves, seeds, permuted = _correlations(records)
    part = rules.part(
        stats.mean_test(halves - MOST * seeds, 0.0, alternative="greater"),
        WITHIN,
        "r(A→B) − ½ r(B→B′), Spearman's r of learning times within class",
        "greater",
        0.0,
        control="half of what two seeds on one half have in common",
    )
    headlines = (
        rules.headline(
            f"rank correlation of {HALVES}",
            stats.mean_test(halves, alternative="greater"),
            PERMUTED,
            stats.mean_test(permuted, alternative="greater"),
        ),
        rules.headline(
            f"rank correlation of {SEEDS}", stats.mean_test(seeds, alternative="greater")
        ),
        rules.headline(
            "1 − r(A→B)/r(B→B′), what of the order belongs to a half alone",
            stats.fieller(seeds - halves, seeds),
        ),
    )
    return Outcome((part,), (WITHIN,), headlines, _without_order(records))


def _without_order(records: Records) -> tuple[str, ...]:
    """Returns a warning for each condition in which a class of a finite pair had no order."""
    warnings = []
    for name, trained in conditions(records.config).items():
        times = records.get(LEARNING_TIMES, trained)
        undefined = times.read("num_undefined_strata", "pair", "surrogate")[times.finite]
        if undefined.sum() > 0:
            warnings.append(
                f"G7, {name}: {int(undefined.sum())} of "
                f"{undefined.size * records.config.num_classes} classes had no order of learning "
                "(all examples at once) and were left out."
            )
    return tuple(warnings)


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's correlation beside that of two seeds, its half, and permuted times.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    halves, seeds, permuted = _correlations(records)
    axes = plots.pair_comparison(
        halves[None],
        np.stack([MOST * seeds, seeds, permuted])[None],
        names=records.config.architectures[:1],
        treatment=f"{HALVES}, r(A→B)",
        control_names=["the threshold, ½ r(B→B′)", f"{SEEDS}, r(B→B′)", PERMUTED],
        xlabel="r, Spearman correlation of when two models learn an example",
        threshold=None,
    )
    caption = TEXT.caption("g7_order", verdict)
    return [Figure("g7_order", caption, rules.figure_of(axes))]


STUDY = Study("G7", TEXT, needs, decide, figures, stands_on=("G1",))
