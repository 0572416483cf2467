"""G8: at equal numbers of steps, more passes memorize more."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import fresh
from halfway.lab.measurements.fresh import FRESH, PRODUCTS
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.g8 import figures as drawing
from halfway.lab.studies.g8.gap_paths import DESCENT_GAP, WALK_GAP, by_gradient_descent
from halfway.lab.studies.g8.measure import MEMORIZATION, PASSES
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
PART = "more passes"
LEAD = 0.0
"""By which κ after many passes over few examples exceeds that after few passes over many."""
SHARE = 4
"""n over the smaller number of examples, and the passes at one step of the one over the other's."""
MANY, FEW = PASSES[-1], PASSES[-1] // SHARE
"""Passes over the smaller and the larger half at the step that decides."""
RATES = (0.0, 0.4, 0.8)
"""ρ, over which κ is pooled."""
MORE_PAIRS = 2
"""Pairs over those of the config: 32 where it has 16."""


def sizes(config: RunConfig) -> tuple[int, int]:
    """Returns n ÷ 4 and n, the config's."""
    return max(1, config.num_examples // SHARE), config.num_examples


def cells(config: RunConfig) -> dict[str, Condition]:
    """Returns the cells by name; n as data of the program of the larger one."""
    architecture = config.architectures[0]
    conditions = {}
    for size, rate in itertools.product(sizes(config), RATES):
        trained = condition(config, architecture, noise_rate=rate)
        last = round(PASSES[-1] * config.num_examples / trained.batch_size)
        last = max(last, trained.probe_steps[-1])
        probes = tuple(step for step in trained.probe_steps if step < last)
        conditions[cell_name(size, rate)] = dataclasses.replace(
            trained,
            num_pairs=MORE_PAIRS * config.num_pairs,
            num_examples=size,
            capacity=config.num_examples,
            probe_steps=(*probes, last),
        )
    return conditions


def cell_name(size: int, rate: float) -> str:
    """Returns the name of a cell, by n and ρ.

    Args:
      size: n, the number of examples of a half.
      rate: ρ, the label-noise rate.
    """
    return f"n = {size}, ρ = {rate:g}"


def paths(config: RunConfig) -> tuple[Condition, Condition]:
    """Returns what the gap is followed along: gradient descent, and the config's optimizer."""
    trained = cells(config)[cell_name(sizes(config)[0], RATES[1])]
    fewer = dataclasses.replace(trained, num_pairs=config.num_pairs)
    return by_gradient_descent(fewer), trained


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns memorization in every cell, fresh data beside it, and the gap along two walks."""
    descent, walk = paths(config)
    return [
        *(
            Request(measurement, (trained,))
            for trained in cells(config).values()
            for measurement in (LEARNING, MEMORIZATION)
        ),
        Request(FRESH, (fresh.fresh_condition(config),)),
        Request(DESCENT_GAP, (descent,)),
        Request(WALK_GAP, (walk,)),
    ]


def kappa_terms(memorized: Measured, num_examples: int, passes: int) -> RatioTerms:
    """Returns numerators and denominators of κ after a number of passes, both directions summed.

    Args:
      memorized: of `MEMORIZATION`.
      num_examples: n of the half.
      passes: of `PASSES`.
    """
    made_of = (memorized.read(name, "pair", "model", passes=passes) for name in PRODUCTS)
    return fresh.kappa_terms(num_examples, *(values.sum(-1) for values in made_of))


def pooled_terms(records: Records, size: int, passes: int) -> RatioTerms:
    """Returns numerators and denominators `[P]` of κ after some passes, summed over ρ.

    Args:
      records: with `MEMORIZATION` of every cell.
      size: n of the half.
      passes: of `PASSES`.
    """
    conditions = cells(records.config)
    terms = [
        kappa_terms(records.get(MEMORIZATION, conditions[cell_name(size, rate)]), size, passes)
        for rate in RATES
    ]
    return RatioTerms(*(np.sum(part, 0) for part in zip(*terms, strict=True)))


def decide(records: Records) -> Outcome:
    """Returns κ after 32 passes over n ÷ 4 minus κ after 8 passes over n, which are as many steps.

    Each κ is a ratio of sums over pairs, both models and all ρ; pairs share their index in all
    cells (the smaller half is a part of the larger), so that one that diverged in any cell leaves
    all, and the difference is tested on linearized values of pairs.
    """
    small, large = sizes(records.config)
    many, few = pooled_terms(records, small, MANY), pooled_terms(records, large, FEW)
    decision = stats.ratio_difference(
        *many, *few, threshold=LEAD, alternative="greater", paired=True
    )
    part = rules.part(
        decision,
        PART,
        f"κ after {MANY} passes over n = {small} minus κ after {FEW} passes over n = {large}",
        "greater",
        LEAD,
        control=f"{FEW} passes over n = {large}",
    )
    conditions = cells(records.config)
    headlines = [
        rules.headline(
            f"κ after {MANY} passes over n = {small}",
            stats.fieller(*many),
            f"{FEW} passes over n = {large}, as many steps",
            stats.fieller(*few),
        )
    ]
    for rate in RATES:
        estimates = [
            stats.fieller(
                *kappa_terms(
                    records.get(MEMORIZATION, conditions[cell_name(size, rate)]), size, passes
                )
            )
            for size, passes in ((small, MANY), (large, FEW))
        ]
        label = f"κ after {MANY} passes over n = {small}, ρ = {rate:g}"
        headlines.append(
            rules.headline(label, estimates[0], f"{FEW} over n = {large}", estimates[1])
        )
    return Outcome((part,), (PART,), tuple(headlines))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns κ against the number of passes in every cell, and the gap as a sum over steps.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    conditions = cells(config)

    def curve(size: int, rate: float) -> np.ndarray:
        """Returns κ with its interval `[3, T]` after each number of passes."""
        memorized = records.get(MEMORIZATION, conditions[cell_name(size, rate)])
        estimates = [stats.fieller(*kappa_terms(memorized, size, passes)) for passes in PASSES]
        return np.transpose([rules.triple(estimate) for estimate in estimates])

    curves = {size: [curve(size, rate) for rate in RATES] for size in sizes(config)}
    trained = fresh.fresh_condition(config)
    unused = None
    if records.has(FRESH, trained):
        terms = fresh.fresh_terms(records.get(FRESH, trained), trained.batch_size)
        unused = rules.triple(stats.fieller(*terms))
    axes = drawing.memorization(
        PASSES,
        *({size: [c[i] for c in of_size] for size, of_size in curves.items()} for i in range(3)),
        rates=RATES,
        marked=dict(zip(sizes(config), (MANY, FEW), strict=True)),
        fresh=unused,
    )
    caption = TEXT.caption("g8_memorization", verdict)
    drawn = [Figure("g8_memorization", caption, rules.figure_of(axes))]
    followed = list(zip((DESCENT_GAP, WALK_GAP), paths(config), strict=True))
    if all(records.has(*place) for place in followed):
        drawn += _gap_figures(config, verdict, [records.get(*place) for place in followed])
    return drawn


def _gap_figures(config: RunConfig, verdict: Verdict, measured: Sequence[Measured]) -> list[Figure]:
    """Returns the gap along training beside the sum of what each step adds.

    None where no pair is finite all along both walks.
    """
    titles = "gradient descent", f"{config.training.optimizer}, by the path identity"
    lines, ends = {}, []
    for title, walk in zip(titles, measured, strict=True):
        gap, summed = (
            walk.read(name, "pair", "model", "step").mean(1) for name in ("gap", "summed")
        )
        if not np.isfinite(gap + summed).all(-1).any():
            return []
        lines[title] = walk.dataset["step"].values, gap, summed
        ends.append(f"{np.nanmean(gap[:, -1]):.2f} and {np.nanmean(summed[:, -1]):.2f}")
    caption = TEXT.caption(
        "g8_gap", verdict, size=sizes(config)[0], descent=ends[0], optimizer=ends[1]
    )
    return [Figure("g8_gap", caption, rules.figure_of(drawing.gap_path(lines)))]


STUDY = Study("G8", TEXT, needs, decide, figures, stands_on=("G1", "V3"))
