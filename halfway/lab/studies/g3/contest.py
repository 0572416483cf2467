"""Whether one measure predicts an outcome across conditions better than the best of its rivals.

Measure and outcome are means over disjoint sets of pairs, so that the luck of a pair is in one of
them alone. Conditions are compared within strata; conditions and pairs are both resampled.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.stats

from halfway import stats

NUM_SPLITS = 20
"""Disjoint splits of the pairs that the point estimate is the mean over."""
NUM_RESAMPLES = 10_000
NUM_PERMUTATIONS = 10_000
"""Of conditions within strata."""
_SEED = 3
_BLOCK = 1000


class Splits(NamedTuple):
    """Measures and outcome of C conditions, R times, each time from disjoint sets of pairs.

    Attributes:
      measures: `[M, R, C]`, infinite where their denominators do not sum to more than 0.
      outcome: `[R, C]`. Both are NaN where no pair counts.
    """

    measures: np.ndarray
    outcome: np.ndarray


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

    The standard error is that of a single split, which is somewhat larger than that of the mean
    over splits: on the careful side.

    Args:
      numerators, denominators, outcome, strata: see `halved`.
      levels: `[C, F]` of each factor; of granulated τ, where two conditions are compared if they
        differ in that factor alone.
      num_rivals: measures after the first that it is compared with; what follows is described.
      sign: the predicted sign of the first measure's τ.

    Raises:
      ValueError: if there are fewer than two pairs.
    """
    splits, resamples = halved(numerators, denominators, outcome, strata)
    tau = stats.kendall(*splits, strata)
    point = _lead(tau[: 1 + num_rivals], sign)
    drawn = np.concatenate([stats.kendall(*block, np.sort(strata)) for block in resamples], -1)
    leads = _lead(drawn[: 1 + num_rivals], sign)
    lead = float(mean(point))
    error = float(np.nanstd(leads, ddof=1)) if np.isfinite(leads).any() else np.nan
    known = np.isfinite(lead) and error > 0
    average = mean(tau)
    low, high = interval(average, drawn)
    return Contest(
        tau=average,
        low=low,
        high=high,
        granulated=_granulated(*splits, strata, levels),
        pooled=mean(stats.kendall(*splits)),
        best=1 + int(np.argmax(np.nan_to_num(np.abs(average[1 : 1 + num_rivals])))),
        lead=lead if np.isfinite(lead) else 0.0,
        standard_error=error if known else np.inf,
        p_value=float(scipy.stats.norm.sf(lead / error)) if known else 1.0,
        p_reverse=float(scipy.stats.norm.cdf(lead / error)) if known else 1.0,
    )


def halved(
    numerators: np.ndarray, denominators: np.ndarray, outcome: np.ndarray, strata: np.ndarray
) -> tuple[Splits, Iterator[Splits]]:
    """Returns measures and outcome in `NUM_SPLITS` disjoint splits of the pairs, and in resamples.

    A measure of a condition is the ratio of sums over pairs of `numerators` and `denominators`
    (1 for a plain mean), and infinite where the latter do not sum to more than 0. Pairs are the
    same draw in every condition and are resampled together, each side of a split within itself.

    Args:
      numerators: `[M, C, P]`; NaN where a pair does not count.
      denominators: `[M, C, P]`, or broadcast to it.
      outcome: `[C, P]`.
      strata: `[C]`; conditions are resampled within each.

    Returns:
      Splits, conditions in their order; and blocks of `NUM_RESAMPLES` resamples of a split drawn
      anew each, whose conditions come in the order of `np.sort(strata)`.

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

    def means(first: np.ndarray, second: np.ndarray) -> Splits:
        """Returns measures by the first and outcomes by the second weights of pairs `[R, P]`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            above, below = (np.moveaxis(v @ first.T, -1, 1) for v in (tops, bottoms))
            known = (counts @ first.T).T > 0
            measures = np.where(below > 0, above / below, np.inf)
            values = (outcomes @ second.T).T / (counts @ second.T).T
        return Splits(np.where(known, measures, np.nan), values)

    def resamples() -> Iterator[Splits]:
        for start in range(0, NUM_RESAMPLES, _BLOCK):
            size = min(_BLOCK, NUM_RESAMPLES - start)
            split = rng.integers(NUM_SPLITS, size=size)
            drawn = (
                side[split[:, None], rng.integers(side.shape[1], size=(size, side.shape[1]))]
                for side in sides
            )
            measures, values = means(*(_weights(chosen, num_pairs) for chosen in drawn))
            # A condition that is drawn twice is tied with itself, and so not compared.
            rows = _resampled(strata, size, rng)
            yield Splits(
                np.take_along_axis(measures, rows[None], -1), np.take_along_axis(values, rows, -1)
            )

    return means(*(_weights(side, num_pairs) for side in sides)), resamples()


def permuted(measure: np.ndarray, outcome: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Returns `[NUM_PERMUTATIONS]` mean τ_b over splits, conditions permuted within strata.

    A permutation gives a condition the outcome of another one, the same in every split. Where every
    condition has both values signs of differences of ranks are compared, of a byte each; else it is
    `stats.kendall` of permuted outcomes, at eight times the time.

    Args:
      measure: `[S, C]`, in each split.
      outcome: `[S, C]`.
      strata: `[C]`.
    """
    rng = np.random.default_rng(_SEED)
    null = np.empty(NUM_PERMUTATIONS)
    whole = not (np.isnan(measure).any() or np.isnan(outcome).any())
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    if whole:
        untied = _untied(measure, outcome, groups)
        first, second = (_ranked(values, groups) for values in (measure, outcome))
    for start in range(0, NUM_PERMUTATIONS, _PERMUTED):
        size = min(_PERMUTED, NUM_PERMUTATIONS - start)
        orders = [rng.permuted(np.tile(rows, (size, 1)), axis=1) for rows in groups]
        if whole:
            parts = zip(groups, orders, strict=True)
            signs = sum(_agreement(first[:, g], second[:, o]) for g, o in parts)
            with np.errstate(invalid="ignore"):
                tau = signs / untied[:, None]
        else:
            rows = np.empty((size, len(strata)), int)
            rows[:, np.concatenate(groups)] = np.concatenate(orders, 1)
            tau = stats.kendall(measure[:, None], outcome[:, rows], strata)
        null[start : start + size] = mean(tau.T)
    return null


_PERMUTED = 256
"""Permutations at once: what is compared stays in the cache."""


def _untied(measure: np.ndarray, outcome: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Returns `[S]` what τ_b divides by, which no permutation within a group changes."""
    number = np.zeros((2, len(measure)))
    for rows in groups:
        for total, values in zip(number, (measure[:, rows], outcome[:, rows]), strict=True):
            for shift in range(1, len(rows)):
                total += (values[:, shift:] != values[:, :-shift]).sum(-1)
    return np.sqrt(number[0] * number[1])


def _ranked(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Returns `[S, C]` ranks within each group, ties equal, as small as integers are."""
    largest = max(len(rows) for rows in groups)
    ranks = np.empty(values.shape, np.int8 if largest <= np.iinfo(np.int8).max else np.int32)
    for rows in groups:
        ranks[:, rows] = scipy.stats.rankdata(values[:, rows], "dense", axis=-1)
    return ranks


def _agreement(measure: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Returns `[S, R]` concordant minus discordant pairs of ranks `[S, N]` and `[S, R, N]`."""
    first = measure.T[:, :, None]
    second = np.ascontiguousarray(np.moveaxis(outcome, -1, 0))

    def signs(ranked: np.ndarray, shift: int) -> np.ndarray:
        later, former = ranked[shift:], ranked[:-shift]
        return (later > former).view(np.int8) - (later < former).view(np.int8)

    total = np.zeros(second.shape[1:], np.int64)
    for shift in range(1, len(first)):
        products = signs(second, shift)
        np.multiply(products, signs(first, shift), out=products)
        # A sum of as many signs as there are entries fits where their ranks do.
        total += np.add.reduce(products, 0, dtype=second.dtype)
    return total


def _weights(chosen: np.ndarray, num_pairs: int) -> np.ndarray:
    """Returns `[R, P]` how often each pair is among the chosen `[R, K]`."""
    weights = np.zeros((len(chosen), num_pairs))
    np.add.at(weights, (np.arange(len(chosen))[:, None], chosen), 1)
    return weights


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
    taus: list[np.ndarray] = []
    for factor in range(levels.shape[1]):
        rest = np.column_stack([strata, np.delete(levels, factor, 1)])
        _, group = np.unique(rest, axis=0, return_inverse=True)
        taus.append(mean(stats.kendall(measures, values, group.ravel())))
    return np.array(taus)


def mean(tau: np.ndarray) -> np.ndarray:
    """Returns means over the last axis of what is defined, NaN where nothing is."""
    valid = np.isfinite(tau)
    number = valid.sum(-1)
    return np.where(number > 0, np.where(valid, tau, 0).sum(-1) / np.maximum(number, 1), np.nan)


def interval(average: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[M]` lower and upper ends: 1.96 standard deviations of `[M, R]` to either side.

    Args:
      average: `[M]`, τ_K of each measure.
      drawn: `[M, R]`, the same in R resamples.
    """
    half_width = 1.96 * np.nanstd(np.where(np.isfinite(drawn), drawn, 0), axis=-1, ddof=1)
    return np.maximum(average - half_width, -1.0), np.minimum(average + half_width, 1.0)
