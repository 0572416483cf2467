"""Whether one measure predicts an outcome across conditions better than the best of its rivals.

Measure and outcome are means over disjoint sets of pairs, so that the luck of a pair is in one of
them alone. Conditions are compared within strata; conditions and pairs are both resampled.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from halfway import ranks

NUM_SPLITS = 20
"""Disjoint splits of the pairs that the point estimate is the mean over."""
NUM_RESAMPLES = 10_000
_SEED = 3
_BLOCK = 1000


class Contest(NamedTuple):
    """Rank correlations of M measures with an outcome, the first of which is on trial.

    Next come its rivals, then what is only described.

    Attributes:
      tau: `[M]` stratified Kendall's τ_b, mean over splits.
      low, high: `[M]`, 1.96 bootstrap standard errors to either side, within [-1, 1].
      granulated: `[F]` by factor and `[M]` by measure, `[F, M]`, mean over splits.
      pooled: `[M]` τ_b over all pairs of conditions, whatever their stratum.
      best: the index of the rival of largest |τ|.
      lead: τ of the first, in its predicted sign, minus the largest |τ| of a rival in each split.
      standard_error: of the lead, over resamples in each of which the best rival is chosen anew.
      p_value, p_reverse: of lead > 0 and of lead < 0, by z = lead / standard_error.
    """

    tau: np.ndarray
    low: np.ndarray
    high: np.ndarray
    granulated: np.ndarray
    pooled: np.ndarray
    best: int
    lead: float
    standard_error: float
    p_value: float
    p_reverse: float


def contest(
    numerators: np.ndarray,
    denominators: np.ndarray,
    outcome: np.ndarray,
    strata: np.ndarray,
    levels: np.ndarray,
    *,
    num_rivals: int,
    sign: float = 1.0,
) -> Contest:
    """Returns how well each of M measures ranks C conditions by their outcome.

    A measure of a condition is the ratio of sums over pairs of `numerators` and `denominators`
    (1 for a plain mean), and infinite where the latter do not sum to more than 0. Pairs are the
    same draw in every condition and are resampled together. The standard error is that of a single
    split, which is somewhat larger than that of the mean over splits: on the careful side.

    Args:
      numerators: `[M, C, P]`; NaN where a pair does not count.
      denominators: `[M, C, P]`, or broadcast to it.
      outcome: `[C, P]`.
      strata: `[C]`; only conditions of one stratum are compared.
      levels: `[C, F]` of each factor; of granulated τ, where two conditions are compared if they
        differ in that factor alone.
      num_rivals: measures after the first that it is compared with; what follows is described.
      sign: the predicted sign of the first measure's τ.

    Raises:
      ValueError: if there are fewer than two pairs.
    """
    numerators, outcome = np.asarray(numerators, float), np.asarray(outcome, float)
    num_pairs = outcome.shape[-1]
    if num_pairs < 2:
        raise ValueError("measure and outcome are of disjoint pairs: at least two are needed")
    counts = np.isfinite(outcome) & np.isfinite(numerators).all(0)
    tops = np.where(counts, numerators, 0)
    bottoms = np.where(counts, np.broadcast_to(denominators, numerators.shape), 0)
    outcomes = np.where(counts, outcome, 0)
    rng = np.random.default_rng(_SEED)
    half = num_pairs // 2
    orders = np.array([rng.permutation(num_pairs) for _ in range(NUM_SPLITS)])
    sides = orders[:, :half], orders[:, half:]

    def means(of: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns measures `[M, R, C]` of pairs weighted `[R, P]`, and outcomes `[R, C]`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            above, below = (np.moveaxis(v @ of.T, -1, 1) for v in (tops, bottoms))
            known = (counts @ of.T).T > 0
            measures = np.where(below > 0, above / below, np.inf)
            values = (outcomes @ told.T).T / (counts @ told.T).T
        return np.where(known, measures, np.nan), values

    splits = means(*(_weights(side, num_pairs) for side in sides))
    tau = ranks.kendall(*splits, strata)
    point = _lead(tau[: 1 + num_rivals], sign)
    drawn = np.empty((tau.shape[0], NUM_RESAMPLES))
    for start in range(0, NUM_RESAMPLES, _BLOCK):
        size = min(_BLOCK, NUM_RESAMPLES - start)
        which = rng.integers(NUM_SPLITS, size=size)
        weights = (
            _weights(side[which[:, None], rng.integers(side.shape[1], size=(size, side.shape[1]))],
                     num_pairs)
            for side in sides
        )  # fmt: skip
        measures, values = means(*weights)
        # A condition that is drawn twice is tied with itself, and so not compared.
        rows = _resampled(strata, size, rng)
        measures = np.take_along_axis(measures, rows[None], -1)
        values = np.take_along_axis(values, rows, -1)
        drawn[:, start : start + size] = ranks.kendall(measures, values, np.sort(strata))
    leads = _lead(drawn[: 1 + num_rivals], sign)
    lead, error = _mean(point), float(np.nanstd(leads, ddof=1)) if _some(leads) else np.nan
    known = np.isfinite(lead) and error > 0
    average = mean(tau)
    half_width = 1.96 * np.nanstd(np.where(np.isfinite(drawn), drawn, 0), axis=-1, ddof=1)
    return Contest(
        tau=average,
        low=np.maximum(average - half_width, -1.0),
        high=np.minimum(average + half_width, 1.0),
        granulated=_granulated(*splits, strata, levels),
        pooled=mean(ranks.kendall(*splits)),
        best=1 + int(np.argmax(np.nan_to_num(np.abs(average[1 : 1 + num_rivals])))),
        lead=lead if np.isfinite(lead) else 0.0,
        standard_error=error if known else np.inf,
        p_value=float(stats.norm.sf(lead / error)) if known else 1.0,
        p_reverse=float(stats.norm.cdf(lead / error)) if known else 1.0,
    )


def _weights(chosen: np.ndarray, num_pairs: int) -> np.ndarray:
    """Returns `[R, P]` how often each pair is among the chosen `[R, K]`."""
    found = np.zeros((len(chosen), num_pairs))
    np.add.at(found, (np.arange(len(chosen))[:, None], chosen), 1)
    return found


def _resampled(strata: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `[R, C]` conditions drawn with replacement within each stratum, strata in order."""
    parts = []
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        parts.append(rows[rng.integers(len(rows), size=(size, len(rows)))])
    return np.concatenate(parts, 1)


def _lead(tau: np.ndarray, sign: float) -> np.ndarray:
    """Returns `[R]` of `[M, R]`; a rival without any τ does not count."""
    return sign * tau[0] - np.nan_to_num(np.abs(tau[1:])).max(0)


def _granulated(
    measures: np.ndarray, values: np.ndarray, strata: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Returns `[F, M]`: τ over conditions that agree in all factors but one, and in stratum."""
    found: list[np.ndarray] = []
    for factor in range(levels.shape[1]):
        rest = np.column_stack([strata, np.delete(levels, factor, 1)])
        _, group = np.unique(rest, axis=0, return_inverse=True)
        found.append(mean(ranks.kendall(measures, values, group.ravel())))
    return np.array(found)


def mean(tau: np.ndarray) -> np.ndarray:
    """Returns means over the last axis of what is defined, NaN where nothing is."""
    valid = np.isfinite(tau)
    number = valid.sum(-1)
    return np.where(number > 0, np.where(valid, tau, 0).sum(-1) / np.maximum(number, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(mean(values[None])[0])


def _some(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())
