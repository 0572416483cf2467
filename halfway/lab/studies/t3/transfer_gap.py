"""Transfer and gap over the conditions of G3: how they go together at equal label noise."""

from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.measurements import grid, transfer
from halfway.lab.measurements.grid import Measures
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.g3 import contest
from halfway.lab.study.records import Records


class GapCorrelations(NamedTuple):
    """Kendall's τ of M_x with the gap, each with its interval: estimate, low, high.

    Attributes:
      within: over conditions of equal ρ, which decides.
      partial: the same with the gradient norm partialled out.
      strata: at each ρ alone.
      pooled: over conditions of every ρ.
      gradient: of the gradient norm with the gap, within ρ.
      p_value, p_reverse: of τ < 0 and of τ > 0, by permutation of conditions within ρ.
    """

    within: tuple[float, float, float]
    partial: tuple[float, float, float]
    strata: tuple[tuple[float, float, float], ...]
    pooled: tuple[float, float, float]
    gradient: tuple[float, float, float]
    p_value: float
    p_reverse: float


def transfer_and_gap(records: Records) -> Measures:
    """Returns M_x, both directions summed, the surrogates' input-gradient norm, and the gaps."""
    attacked = [records.get(TRANSFER, cell.condition) for cell in grid.cells(records.config)]
    terms = [transfer.coefficient_terms(measured) for measured in attacked]
    other_increases, own_increases = np.array(terms).swapaxes(0, 1)
    gradient = np.array(
        [measured.read("gradient_norm", "pair", "surrogate").sum(-1) for measured in attacked]
    )
    return grid.with_gaps(
        records,
        numerators=np.array([other_increases, gradient]),
        denominators=np.array([own_increases, np.ones_like(own_increases)]),
    )


def correlate_with_gap(measures: Measures) -> GapCorrelations:
    """Returns how M_x and the gap go together, from disjoint pairs."""
    strata = measures.strata
    splits, resamples = contest.halved(*measures[:3], strata)
    taus = _taus(splits, strata)
    average = contest.mean(taus)
    drawn = [_taus(block, np.sort(strata)) for block in resamples]
    ends = contest.interval(average, np.concatenate(drawn, -1))
    triples = [(float(t), float(a), float(b)) for t, a, b in zip(average, *ends, strict=True)]
    p_value = p_reverse = 1.0
    if np.isfinite(average[0]):
        null = contest.permuted(splits.measures[0], splits.outcome, strata)
        # As far as rounding tells them apart: equal counts as reached.
        p_value, p_reverse = (
            float(1 + np.sum(sign * null >= sign * average[0] - 1e-12)) / (1 + len(null))
            for sign in (-1, 1)
        )
    within, partial, pooled, gradient, *by_rate = triples
    return GapCorrelations(within, partial, tuple(by_rate), pooled, gradient, p_value, p_reverse)


def _taus(splits: contest.Splits, strata: np.ndarray) -> np.ndarray:
    """Returns `[Q, R]`: within ρ, partial, pooled, of the gradient norm, and at each ρ."""
    coefficient, gradient = splits.measures
    xy, zy = stats.kendall(splits.measures, splits.outcome, strata)
    xz = stats.kendall(coefficient, gradient, strata)
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = (xy - xz * zy) / np.sqrt((1 - xz**2) * (1 - zy**2))
    alone = [
        stats.kendall(coefficient[:, strata == s], splits.outcome[:, strata == s])
        for s in np.unique(strata)
    ]
    return np.array([xy, partial, stats.kendall(coefficient, splits.outcome), zy, *alone])
