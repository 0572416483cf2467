"""How alike two classes are, to a network and as images, and which are confused; NumPy.

Everything is a vector over the `L = C (C − 1)/2` pairs of classes, which Spearman's correlation
compares with each other.
"""

import numpy as np
import scipy.stats

from halfway import stats


def class_pairs(matrices: np.ndarray) -> np.ndarray:
    """Returns the mean of the entries (c, c′) and (c′, c) of class matrices, `[..., L]`.

    Args:
      matrices: `[..., C, C]`.
    """
    rows, columns = np.triu_indices(matrices.shape[-1], 1)
    return (matrices[..., rows, columns] + matrices[..., columns, rows]) / 2


def relatedness(matrices: np.ndarray) -> np.ndarray:
    """Returns `K_cc′/√(K_cc K_c′c′)` of meeting matrices, `[..., L]`.

    Args:
      matrices: `[..., C, C]`, residual-free; both orders of two classes are averaged.

    Returns:
      NaN where a class does not occur, or its examples do not move each other the same way.
    """
    diagonal = np.diagonal(matrices, axis1=-2, axis2=-1)
    rows, columns = np.triu_indices(matrices.shape[-1], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.where(diagonal > 0, diagonal, np.nan))
        return class_pairs(matrices) / (scale[..., rows] * scale[..., columns])


def distances(products: np.ndarray) -> np.ndarray:
    """Returns the distances `[L]` of mean images of two classes from their scalar products.

    Args:
      products: `[C, C]`.
    """
    rows, columns = np.triu_indices(len(products), 1)
    squares = np.diagonal(products)[rows] + np.diagonal(products)[columns]
    return np.sqrt(np.maximum(squares - 2 * products[rows, columns], 0))


def mean_of_others(values: np.ndarray) -> np.ndarray:
    """Returns for each pair of models the mean over all others, `[P, L]`.

    Args:
      values: `[P, L]`; entries that are NaN, such as those of pairs that diverged, do not count.

    Returns:
      NaN where no other pair has a value.
    """
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    numbers = there.sum(0) - there
    totals = filled.sum(0) - filled
    return np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan)


def rank_correlations(predictors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation over pairs of classes for each pair of models, `[P]`.

    Args:
      predictors: `[P, L]`; pairs of classes that are NaN are left out.
      counts: `[P, L]`, how often two classes were confused; NaN for pairs that diverged.

    Returns:
      NaN where a side is constant, such as where nothing was confused.
    """
    values = np.full(len(counts), np.nan)
    for pair, (x, y) in enumerate(zip(predictors, counts, strict=True)):
        there = np.isfinite(x) & np.isfinite(y)
        values[pair] = stats.spearman(x[there], y[there]).estimate
    return values


def relabelled(
    predictors: np.ndarray, counts: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns correlations after the classes of the predictor were given other names, `[R, P]`.

    A relabelling is the same for all pairs of models. It keeps which pairs of classes share a
    class, which a permutation of pairs would not.

    Args:
      predictors: `[P, L]`.
      counts: `[P, L]`.
      number: R, of relabellings.
      rng: which is advanced.

    Returns:
      NaN for a pair of models in which an entry is, or a side is constant.
    """
    num_classes = round((1 + np.sqrt(1 + 8 * predictors.shape[1])) / 2)
    rows, columns = np.triu_indices(num_classes, 1)
    place = np.zeros((num_classes, num_classes), int)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    names = rng.permuted(np.tile(np.arange(num_classes), (number, 1)), axis=1)
    moved = place[names[:, rows], names[:, columns]]
    first, second = _standardized(predictors), _standardized(counts)
    return np.stack([x[moved] @ y for x, y in zip(first, second, strict=True)], 1)


def _standardized(values: np.ndarray) -> np.ndarray:
    """Returns centred ranks of length 1 in each row; NaN where an entry is, or all are tied."""
    ranks = scipy.stats.rankdata(values, axis=-1, nan_policy="propagate")
    ranks = ranks - ranks.mean(-1, keepdims=True)
    length = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return ranks / np.where(length > 0, length, np.nan)
