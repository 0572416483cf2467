"""G7: what A's training learns first of B is what B itself learns first."""

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


def conditions(config: RunConfig) -> dict[float, Condition]:
    """Returns the conditions of the first architecture by noise rate, all below 1; 0 decides."""
    architecture = config.architectures[0]
    return {
        rate: condition(config, architecture, noise_rate=rate)
        for rate in config.noise_rates
        if rate < 1
    }


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns learning times of the first architecture at every noise rate below 1."""
    return [
        Request(measurement, (trained,))
        for trained in conditions(config).values()
        for measurement in (LEARNING, LEARNING_TIMES)
    ]


def correlation(times: Measured, order: str) -> np.ndarray:
    """Returns `[P]` rank correlations, mean of both directions.

    Args:
      times: of `LEARNING_TIMES`.
      order: `WITHIN`, `PERMUTED` or `ALL`.
    """
    return times.read("rank_correlation", "pair", "surrogate", order=order).mean(-1)


def decide(records: Records) -> Outcome:
    """Returns one test at ρ = 0."""
    decides, *noisy = conditions(records.config).items()
    times = records.get(LEARNING_TIMES, decides[1])
    within, permuted = (correlation(times, order) for order in (WITHIN, PERMUTED))
    part = rules.part(
        stats.mean_test(within, 0.0, alternative="greater"),
        WITHIN,
        "mean within-class Spearman correlation of learning times",
        "greater",
        0.0,
        control=PERMUTED,
    )
    headlines = [
        rules.headline(
            "rank correlation within class",
            stats.mean_test(within, alternative="greater"),
            PERMUTED,
            stats.mean_test(permuted, alternative="greater"),
        )
    ]
    headlines += [
        rules.headline(
            f"at ρ = {rate:g}, within class and corrupted",
            stats.mean_test(
                correlation(records.get(LEARNING_TIMES, trained), WITHIN), alternative="greater"
            ),
        )
        for rate, trained in noisy
        if records.has(LEARNING_TIMES, trained)
    ]
    return Outcome((part,), (WITHIN,), tuple(headlines), _without_order(records, times))


def _without_order(records: Records, times: Measured) -> tuple[str, ...]:
    """Returns a warning, if any class of a finite pair had no order of learning."""
    undefined = times.read("num_undefined_strata", "pair", "surrogate")[times.finite]
    if not undefined.sum() > 0:
        return ()
    return (
        f"G7: {int(undefined.sum())} of {undefined.size * records.config.num_classes} classes "
        "had no order of learning (all examples at once) and were left out.",
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's correlation beside its control.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    times = records.get(LEARNING_TIMES, conditions(config)[0.0])
    axes = plots.pair_comparison(
        correlation(times, WITHIN)[None],
        correlation(times, PERMUTED)[None, None],
        names=config.architectures[:1],
        treatment=WITHIN,
        control_names=[PERMUTED],
        xlabel="Spearman correlation of when both models learn an example",
    )
    caption = TEXT.caption("g7_order", verdict)
    return [Figure("g7_order", caption, rules.figure_of(axes))]


STUDY = Study("G7", TEXT, needs, decide, figures, stands_on=("G1",))
