"""The gap of every intervention predicted from a measure, with slopes from the other factors.

    logit gap = logit gap(base) + β Δlog(measure)

β is the least-squares slope through the origin over the interventions of all other factors, each
factor of weight 1. A contrast is with the base of the intervention's own architecture, and that of
the factor architecture with the MLP's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import (
    AGREEMENT_ONLY,
    COMPLEXITY,
    NO_CHANGE,
    RIVALS,
    Intervention,
    clipped_logit,
)
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.study.records import Measured, Records
from halfway.populations import Condition

COHERENCE, SIZE = "coherence at step 20", "n^(−½)"
SMALLEST = 1e-3
"""What a measure that is not positive counts as, as a share of the base's."""
OFFSET = 0.01
"""Added to the sum of two errors, so that two tiny ones are about equal."""


class Gaps(NamedTuple):
    """Gaps and contrasts of N interventions.

    Attributes:
      interventions: the grid's but for those that move agreement alone.
      gap: `[N]`, in error on S.
      base: `[N]`, the gap of each one's base.
      contrasts: `[N]` by measure, Δlog from the base.
      num_pairs: pairs that count.
      num_excluded: pairs with a value that is not finite.
    """

    interventions: tuple[Intervention, ...]
    gap: np.ndarray
    base: np.ndarray
    contrasts: Mapping[str, np.ndarray]
    num_pairs: int
    num_excluded: int

    @property
    def factors(self) -> np.ndarray:
        """`[N]`, the factor of each intervention."""
        return np.array([changed.factor for changed in self.interventions])


def interventions(config: RunConfig) -> tuple[Intervention, ...]:
    """Returns the grid's interventions that change more than how far two models agree."""
    changed = grid.design(config).interventions
    return tuple(item for item in changed if item.factor not in AGREEMENT_ONLY)


def conditions(config: RunConfig) -> list[Condition]:
    """Returns the bases and all interventions, each once."""
    bases = grid.design(config).bases.values()
    return list(dict.fromkeys([*bases, *(item.condition for item in interventions(config))]))


def read(records: Records) -> Gaps:
    """Returns gaps and measures of every intervention; the same pairs count in all.

    A measure of a condition is a mean over pairs and models, coherence a ratio of sums,
    `Σ tr Cov(g)/n / Σ ‖g_A‖²`.

    Args:
      records: of a run that measured the grid.
    """
    config = records.config
    everything = conditions(config)
    learned = {c.id: records.get(LEARNING, c) for c in everything}
    complexity = {c.id: records.get(COMPLEXITY, c) for c in everything}
    gaps = {name: _gap(measured) for name, measured in learned.items()}
    terms = {c.id: _terms(complexity[c.id], c) for c in everything}
    valid = stats.valid_pairs(*gaps.values(), *(v for pair in terms.values() for v in pair))
    weights = valid.astype(float)[None]
    gap = {name: stats.weighted_ratio(weights, v, 1.0)[0] for name, v in gaps.items()}
    values = {
        name: stats.weighted_ratio(weights, num, den)[0] for name, (num, den) in terms.items()
    }
    plan = grid.design(config)
    changed = interventions(config)
    bases = [_base(item, plan.bases) for item in changed]
    moved = np.array(
        [
            _contrast(values[item.condition.id], values[base.id])
            for item, base in zip(changed, bases, strict=True)
        ]
    )
    names = (COHERENCE, *RIVALS.values())
    sizes = [
        -0.5 * np.log(item.condition.num_examples / base.num_examples)
        for item, base in zip(changed, bases, strict=True)
    ]
    contrasts = {name: moved[:, place] for place, name in enumerate(names)}
    return Gaps(
        changed,
        np.array([float(gap[item.condition.id]) for item in changed]),
        np.array([float(gap[base.id]) for base in bases]),
        contrasts | {SIZE: np.array(sizes), NO_CHANGE: np.zeros(len(changed))},
        int(valid.sum()),
        int((~valid).sum()),
    )


def _gap(learned: Measured) -> np.ndarray:
    """Returns `[P]` the gap in error on S, as labelled, mean of both models."""
    unseen, trained_on = (
        learned.read("error", "pair", "model", "step", sample=sample)[..., -1]
        for sample in ("holdout", "own")
    )
    return (unseen - trained_on).mean(-1)


def _terms(complexity: Measured, condition: Condition) -> tuple[np.ndarray, np.ndarray]:
    """Returns numerators and denominators `[1 + rivals, P]`, coherence first."""
    noise, square = (
        complexity.read(name, "pair", "model").sum(-1) for name in ("early_noise", "early_square")
    )
    rivals = [complexity.read("rivals", "pair", "model", measure=r).mean(-1) for r in RIVALS]
    numerators = np.array([noise / condition.num_examples, *rivals])
    return numerators, np.array([square, *np.ones_like(rivals)])


def _base(changed: Intervention, bases: Mapping[str, Condition]) -> Condition:
    return bases[grid.MLP if changed.factor == "architecture" else changed.base]


def _contrast(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns Δlog of every measure; of those that are logarithms already the difference."""
    is_log = np.array([False, *(name.startswith("log_") for name in RIVALS)])
    positive = np.where(base > 0, base, np.nan)
    floored = np.where(values > 0, values, SMALLEST * positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_log, values - base, np.log(floored / positive))


def predicted(gaps: Gaps, name: str) -> np.ndarray:
    """Returns `[N]` the gap of every intervention as a measure predicts it from its base.

    The intervention that changes ρ and n together is out of the fit from which n is predicted, and
    as one of ρ's factor out of that of ρ.

    Args:
      gaps: of a run.
      name: of a measure.
    """
    contrast = gaps.contrasts[name]
    moved = clipped_logit(gaps.gap) - clipped_logit(gaps.base)
    is_fitted = np.array([changed.is_fitted for changed in gaps.interventions])
    slopes = np.where(
        np.isin(gaps.factors, ("n", "ρ")),
        stats.out_of_factor_slopes(contrast, moved, gaps.factors, fitted=is_fitted),
        stats.out_of_factor_slopes(contrast, moved, gaps.factors),
    )
    return special.expit(clipped_logit(gaps.base) + slopes * contrast)


def factor_errors(gaps: Gaps, name: str) -> np.ndarray:
    """Returns `[F]` the mean |gap − predicted| over the interventions of each factor.

    Args:
      gaps: of a run.
      name: of a measure.
    """
    errors = np.abs(gaps.gap - predicted(gaps, name))
    return stats.factor_means(errors, gaps.factors).means


def leads(gaps: Gaps, rival: str) -> np.ndarray:
    """Returns `[F]` (e_rival − e)/(e_rival + e + .01), e the error of coherence in a factor.

    Args:
      gaps: of a run.
      rival: a measure.
    """
    error, other = factor_errors(gaps, COHERENCE), factor_errors(gaps, rival)
    return (other - error) / (other + error + OFFSET)
