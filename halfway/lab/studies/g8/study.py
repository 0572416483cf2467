"""G8: with fresh data nothing is memorized; reuse makes κ."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.studies.g8 import figures as drawing
from halfway.lab.studies.g8.gap_paths import DESCENT_GAP, WALK_GAP, by_gradient_descent
from halfway.lab.studies.g8.measure import FRESH, MEMORIZATION, PASSES, PRODUCTS
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
MARGIN = 0.05
"""Of κ on fresh data."""
SIZES, RATES = (150, 600), (0.0, 0.4, 0.8)
"""n and ρ of the cells."""
FRESH_PART = "fresh data"


def cells(config: RunConfig) -> dict[str, Condition]:
    """Returns the cells by name; n as data of the program of the larger one."""
    architecture = config.architectures[0]
    conditions = {}
    for size, rate in itertools.product(SIZES, RATES):
        trained = condition(config, architecture, noise_rate=rate)
        last = max(round(PASSES[-1] * SIZES[-1] / trained.batch_size), trained.probe_steps[-1])
        probes = tuple(step for step in trained.probe_steps if step < last)
        conditions[cell_name(size, rate)] = dataclasses.replace(
            trained, num_examples=size, capacity=SIZES[-1], probe_steps=(*probes, last)
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
    trained = cells(config)[cell_name(SIZES[0], RATES[1])]
    return by_gradient_descent(trained), trained


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns memorization in every cell, fresh data, and the gap along two walks."""
    conditions = list(cells(config).values())
    descent, walk = paths(config)
    return [
        *(
            Request(measurement, (trained,))
            for trained in conditions
            for measurement in (LEARNING, MEMORIZATION)
        ),
        Request(FRESH, (conditions[0],)),
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
    return _kappa(num_examples, *(values.sum(-1) for values in made_of))


def fresh_terms(fresh: Measured, batch_size: int) -> RatioTerms:
    """Returns numerators and denominators of κ on fresh data, summed over steps.

    Args:
      fresh: of `FRESH`.
      batch_size: of the batches, the n of κ.
    """
    return _kappa(batch_size, *(fresh.read(name, "pair", "step").sum(-1) for name in PRODUCTS))


def _kappa(size: int, own_own: np.ndarray, own_other: np.ndarray, trace: np.ndarray) -> RatioTerms:
    """Returns the terms of κ = 1 − n (‖g_A‖² − ⟨g_A, g_B⟩)/tr Cov(g) (P3)."""
    return RatioTerms(trace - size * (own_own - own_other), trace)


def _fresh(records: Records) -> RatioTerms:
    """Returns the terms of κ on fresh data."""
    trained = next(iter(cells(records.config).values()))
    return fresh_terms(records.get(FRESH, trained), trained.batch_size)


def decide(records: Records) -> Outcome:
    """Returns the equivalence on fresh data, and the rise of κ in every cell."""
    conditions, fresh = cells(records.config), _fresh(records)
    parts = []
    headlines = [rules.headline("κ on fresh data", stats.fieller(*fresh))]
    for name, trained in conditions.items():
        memorized = records.get(MEMORIZATION, trained)
        last, first = (
            kappa_terms(memorized, trained.num_examples, passes)
            for passes in (PASSES[-1], PASSES[0])
        )
        decision = stats.ratio_difference(
            *last, *first, threshold=0.0, alternative="greater", paired=True
        )
        statistic = f"κ after {PASSES[-1]} passes minus κ after one"
        parts.append(rules.part(decision, name, statistic, "greater", 0.0, control="one pass"))
        headlines.append(
            rules.headline(
                f"κ after {PASSES[-1]} passes ({name})",
                stats.fieller(*last),
                "one pass",
                stats.fieller(*first),
            )
        )
    parts.append(
        rules.part(
            stats.ratio_equivalence(*fresh, -MARGIN, MARGIN),
            FRESH_PART,
            "κ on fresh data, pooled over steps",
            "within",
            -MARGIN,
            MARGIN,
        )
    )
    return Outcome(tuple(parts), tuple(conditions), tuple(headlines))


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

    curves = {size: [curve(size, rate) for rate in RATES] for size in SIZES}
    axes = drawing.memorization(
        PASSES,
        *({size: [c[i] for c in of_size] for size, of_size in curves.items()} for i in range(3)),
        rates=RATES,
        fresh=rules.triple(stats.fieller(*_fresh(records))),
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
    caption = TEXT.caption("g8_gap", verdict, size=SIZES[0], descent=ends[0], optimizer=ends[1])
    return [Figure("g8_gap", caption, rules.figure_of(drawing.gap_path(lines)))]


STUDY = Study("G8", TEXT, needs, decide, figures, stands_on=("G1",))
