"""Transfer and gap over the conditions of G3: how they go together at equal label noise."""

from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.g3.study import Grid, gaps
from halfway.lab.study.tables import Reader


class Correlations(NamedTuple):
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


def read(reader: Reader, config: RunConfig) -> Grid:
    """Returns M_x, both directions summed, the surrogates' input-gradient norm, and the gaps."""
    cells = grid.cells(config)
    keys = [cell.condition.key for cell in cells]
    both = ("pair", "surrogate")
    moved = reader.stack(
        keys,
        ["increase"],
        (*both, "target"),
        attack="attack",
        subset="all",
        budget=float(config.attack.epsilon),
    )[0]
    gradient = reader.stack(keys, ["gradient_norm"], both, subset="all")[0].sum(-1)
    last = reader.stack(keys, ["cross_entropy"], both, subset="own", step=grid.MAX_STEPS)[0]
    other, own = moved[..., 0, 1] + moved[..., 1, 0], moved[..., 0, 0] + moved[..., 1, 1]
    terms = np.array([other, own, gradient])
    finite = reader.stack(keys, ["finite"])[0] > 0.5
    finite = finite & np.isfinite(terms).all(0) & np.isfinite(last).all(-1)
    # As the loop that stops sees it, in single precision.
    reached = (last <= np.float32(grid.STOP_LOSS)).all(-1)
    used = np.where(finite & reached, 1.0, np.nan)
    other, own, gradient = np.where(np.isnan(used), np.nan, terms)
    return Grid(
        numerators=np.array([other, gradient]),
        denominators=np.array([own, np.ones_like(own)]),
        gap=gaps(reader, keys, used),
        finite=finite,
        reached=reached,
        levels=np.array([cell.levels for cell in cells]),
    )


def correlate(found: Grid) -> Correlations:
    """Returns how M_x and the gap go together, from disjoint pairs."""
    splits, resamples = contest.halved(*found[:3], found.strata)
    taus = _taus(splits, found.strata)
    average = contest.mean(taus)
    drawn = [_taus(one, np.sort(found.strata)) for one in resamples]
    ends = contest.interval(average, np.concatenate(drawn, -1))
    triples = [(float(t), float(a), float(b)) for t, a, b in zip(average, *ends, strict=True)]
    p_value = p_reverse = 1.0
    if np.isfinite(average[0]):
        null = contest.permuted(splits.measures[0], splits.outcome, found.strata)
        # As far as rounding tells them apart: equal counts as reached.
        p_value, p_reverse = (
            float(1 + np.sum(sign * null >= sign * average[0] - 1e-12)) / (1 + len(null))
            for sign in (-1, 1)
        )
    within, partial, pooled, gradient, *strata = triples
    return Correlations(within, partial, tuple(strata), pooled, gradient, p_value, p_reverse)


def _taus(of: contest.Apart, strata: np.ndarray) -> np.ndarray:
    """Returns `[Q, R]`: within ρ, partial, pooled, of the gradient norm, and at each ρ."""
    transfer, gradient = of.measures
    xy, zy = stats.kendall(of.measures, of.outcome, strata)
    xz = stats.kendall(transfer, gradient, strata)
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = (xy - xz * zy) / np.sqrt((1 - xz**2) * (1 - zy**2))
    alone = [
        stats.kendall(transfer[:, strata == s], of.outcome[:, strata == s])
        for s in np.unique(strata)
    ]
    return np.array([xy, partial, stats.kendall(transfer, of.outcome), zy, *alone])
