"""What size, alignment and variability each say of transfer: partial rank correlations of T12.

Cells are surrogate conditions by target conditions. Everything is ranked within blocks of one
surrogate and one target architecture. Predictors come from one set of pairs, the outcome from the
other, both ways, and the mean of the two is what counts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from halfway.lab.studies.t12.measure import partners, sets

PREDICTORS = ("size", "alignment", "variability")
CROSSED = ("num_examples", "num_fooled", "num_by_noise", "tau")
"""What is measured of a surrogate and a target together."""
NUM_PERMUTATIONS = NUM_RESAMPLES = 10_000
_SEED = 12
_BLOCK = 500


class Quantities(NamedTuple):
    """Outcome and predictors of C surrogate and C target conditions, on each of two sets of pairs.

    Attributes:
      outcome: `[2, C, C]`, share fooled of what both had right, minus that by matched noise.
      size: `[2, C]`, of targets.
      alignment: `[2, C, C]`, mean τ.
      variability: `[2, C]`, of surrogates.
    """

    outcome: np.ndarray
    size: np.ndarray
    alignment: np.ndarray
    variability: np.ndarray


def summarize_sets(arrays: Mapping[str, np.ndarray], finite: np.ndarray) -> Quantities:
    """Returns what was measured as quantities of conditions, without pairs that diverged.

    NaN in `size` or `variability` where a set has fewer than two pairs left, or nothing is defined.

    Args:
      arrays: `[C, ...]` by name: `CROSSED` `[C, P, C, Q]`, `size` `[C, P]` and `margin`
        `[C, P, B]`, see `TRANSFER_FACTORS`.
      finite: `[C, P]`.
    """
    num_pairs = finite.shape[1]
    # Of surrogate p of one condition at target partners[p, q] of another.
    used = finite[:, :, None, None] & finite.T[partners(num_pairs)].swapaxes(1, 2)[None]
    defined = used & np.isfinite(arrays["tau"])
    counted = {name: np.where(used, arrays[name], 0) for name in CROSSED[:-1]}
    counted |= {"tau": np.where(defined, arrays["tau"], 0), "defined": defined}
    kept = finite[:, :, None]
    margin, size = np.where(kept, arrays["margin"], 0).astype(float), arrays["size"].astype(float)
    quantities: list[tuple[np.ndarray, ...]] = []
    for rows in sets(num_pairs):
        sums = {name: values[:, rows].sum((1, 3)) for name, values in counted.items()}
        fooled = sums["num_fooled"] - sums["num_by_noise"]
        means, spreads = np.full((2, len(finite)), np.nan)
        for c in np.flatnonzero(finite[:, rows].sum(1) > 1):
            pairs = rows[finite[c, rows]]
            means[c], spreads[c] = size[c, pairs].mean(), margin[c, pairs].var(0, ddof=1).mean()
        quantities.append(
            (
                fooled / np.maximum(sums["num_examples"], 1),
                means,
                sums["tau"] / np.maximum(sums["defined"], 1),
                spreads,
            )
        )
    return Quantities(*(np.stack(values) for values in zip(*quantities, strict=True)))


class PartialCorrelations(NamedTuple):
    """Rank correlations of `PREDICTORS` with the outcome.

    Attributes:
      estimate: `[3]` partial, given the other two; NaN where undefined.
      low, high: `[3]`, 1.96 bootstrap standard errors to either side, within [-1, 1].
      alone: `[3, 3]`, estimate, low and high where nothing is partialled out.
      null: `[3, R]` of `estimate`, conditions permuted within architectures.
      num_conditions: that were compared.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    alone: np.ndarray
    null: np.ndarray
    num_conditions: int


def correlate(quantities: Quantities, architecture: np.ndarray) -> PartialCorrelations:
    """Returns what each predictor says that the other two do not.

    A permutation gives a condition the predictor of another one of its architecture: size as a
    target, variability as a surrogate, alignment as both at once. Resamples draw surrogates and
    targets within architectures, each for itself, and one of the two ways.

    Args:
      quantities: see `summarize_sets`.
      architecture: `[C]` of each condition.
    """
    kept = np.isfinite(quantities.size + quantities.variability).all(0)
    kept &= np.bincount(architecture[kept], minlength=architecture.max() + 1)[architecture] > 1
    number = int(kept.sum())
    empty = np.full(3, np.nan)
    if not number:
        wide = -np.ones(3), np.ones(3)
        null = np.full((3, NUM_PERMUTATIONS), np.nan)
        return PartialCorrelations(empty, *wide, np.array([empty, *wide]).T, null, 0)
    _, owner = np.unique(architecture[kept], return_inverse=True)
    ways = [_ranks(_way(quantities, kept, way), owner) for way in (0, 1)]
    plain = np.array([_correlations(ranked) for ranked in ways])
    rng = np.random.default_rng(_SEED)
    estimate, alone = _partials(plain).mean(0), plain[:, 0, 1:].mean(0)
    null = np.concatenate(
        [_permuted(ways, plain, owner, size, rng) for size in _blocks(NUM_PERMUTATIONS)], -1
    )
    drawn = np.concatenate(
        [_resampled(np.stack(ways), owner, size, rng) for size in _blocks(NUM_RESAMPLES)], -1
    )
    half = 1.96 * np.nanstd(drawn, axis=-1, ddof=1)
    low, high = (np.clip([estimate + s * half[0], alone + s * half[1]], -1, 1) for s in (-1, 1))
    alone = np.array([alone, low[1], high[1]]).T
    return PartialCorrelations(estimate, low[0], high[0], alone, null, number)


def _blocks(total: int) -> list[int]:
    return [min(_BLOCK, total - start) for start in range(0, total, _BLOCK)]


def _way(quantities: Quantities, kept: np.ndarray, way: int) -> np.ndarray:
    """Returns `[4, C, C]` outcome of one set of pairs and the predictors of the other."""
    square = np.ix_(kept, kept)
    outcome = quantities.outcome[way][square]
    shape = outcome.shape
    size = np.broadcast_to(quantities.size[1 - way][kept][None, :], shape)
    variability = np.broadcast_to(quantities.variability[1 - way][kept][:, None], shape)
    alignment = quantities.alignment[1 - way][square]
    return np.array([outcome, size, alignment, variability])


def _ranks(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Returns ranks of `[4, C, C]` within blocks of architectures, centred, over a block's size."""
    ranks = np.empty(values.shape)
    for a in np.unique(owner):
        for b in np.unique(owner):
            place = np.ix_(range(len(values)), owner == a, owner == b)
            block = values[place].reshape(len(values), -1)
            ranked = stats.rankdata(block, axis=-1)
            ranked = (ranked - ranked.mean(-1, keepdims=True)) / block.shape[1]
            ranks[place] = ranked.reshape(values[place].shape)
    return ranks


def _correlations(ranked: np.ndarray) -> np.ndarray:
    """Returns `[..., 4, 4]` correlations of centred ranks `[..., 4, C, C]`."""
    flat = ranked.reshape(*ranked.shape[:-2], -1)
    products = flat @ flat.swapaxes(-1, -2)
    length = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return products / (length[..., :, None] * length[..., None, :])


def _partials(correlations: np.ndarray) -> np.ndarray:
    """Returns `[..., 3]` correlations of the first with each of the others, given the rest.

    −P_0i/√(P_00 P_ii), P the inverse of the `[..., 4, 4]` correlations; NaN where that has none.
    """
    known = np.asarray(np.isfinite(correlations).all((-1, -2)))
    safe = np.where(known[..., None, None], correlations, np.eye(4))
    known &= np.abs(np.linalg.det(safe)) > 1e-9
    precision = np.linalg.inv(np.where(known[..., None, None], safe, np.eye(4)))
    diagonal = np.diagonal(precision, axis1=-2, axis2=-1)
    partials = -precision[..., 0, 1:] / np.sqrt(diagonal[..., :1] * diagonal[..., 1:])
    return np.where(known[..., None], partials, np.nan)


def _permuted(
    ways: Sequence[np.ndarray],
    plain: np.ndarray,
    owner: np.ndarray,
    number: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns `[3, R]` partial correlations, one predictor permuted at a time."""
    null = np.empty((3, number))
    for index, name in enumerate(PREDICTORS):
        drawn = np.empty((number, len(owner)), int)
        for rows in (np.flatnonzero(owner == a) for a in np.unique(owner)):
            drawn[:, rows] = rng.permuted(np.tile(rows, (number, 1)), axis=1)
        terms = []
        for ranked, correlations in zip(ways, plain, strict=True):
            length = np.linalg.norm(ranked, axis=(1, 2))
            with np.errstate(divide="ignore", invalid="ignore"):
                with_others = _products(ranked, name, drawn) / (length * length[1 + index])
            with_others[:, 1 + index] = 1
            changed = np.tile(correlations, (number, 1, 1))
            changed[:, 1 + index], changed[:, :, 1 + index] = with_others, with_others
            terms.append(_partials(changed)[:, index])
        null[index] = np.mean(terms, 0)
    return null


def _products(ranked: np.ndarray, name: str, drawn: np.ndarray) -> np.ndarray:
    """Returns `[R, 4]` sums over cells of a permuted predictor times each of `[4, C, C]`."""
    predictor = ranked[1 + PREDICTORS.index(name)]
    if name == "size":  # the same for every surrogate
        return predictor[0][drawn] @ ranked.sum(1).T
    if name == "variability":  # the same for every target
        return predictor[:, 0][drawn] @ ranked.sum(2).T
    cells = drawn[:, :, None] * len(predictor) + drawn[:, None, :]
    moved = predictor.astype(np.float32).ravel().take(cells.reshape(len(drawn), -1))
    return moved @ ranked.astype(np.float32).reshape(4, -1).T


def _resampled(
    ways: np.ndarray, owner: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns `[2, 3, R]` partial and plain correlations of resampled surrogates and targets."""
    groups = [np.flatnonzero(owner == a) for a in np.unique(owner)]
    rows, columns = (
        np.concatenate([g[rng.integers(len(g), size=(number, len(g)))] for g in groups], 1)
        for _ in range(2)
    )
    way = rng.integers(2, size=number)
    taken = ways[way[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    taken = np.moveaxis(taken, -1, 1)
    # What was centred in its block is not any more.
    belongs = np.concatenate([np.full(len(g), a) for a, g in enumerate(groups)])
    member = (belongs[:, None] == np.arange(len(groups))).astype(float)
    means = (member / member.sum(0)).T @ taken @ (member / member.sum(0))
    correlations = _correlations(taken - member @ means @ member.T)
    return np.array([_partials(correlations).T, correlations[:, 0, 1:].T])
