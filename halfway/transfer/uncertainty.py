"""Intervals for a transfer matrix: surrogates, targets and examples are resampled together.

Rows of a matrix share a surrogate, columns a target, and all cells the examples: neither K M cells
nor K M B outcomes are independent. Each resample draws surrogates, targets and examples anew, all
three at once. NumPy and SciPy.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

_BATCH = 4_000_000
"""How many numbers a batch of resamples may hold."""
_ROUNDING = 64 * np.finfo(np.float64).eps


class Resampled(NamedTuple):
    """A ratio of sums, or a difference of two, with its interval.

    Attributes:
      estimate: the point estimate; NaN where there is nothing to divide by.
      low: lower end of the interval; -inf where it is not defined.
      high: upper end of the interval; inf where it is not defined.
      standard_error: standard deviation of the resamples.
      degrees: degrees of freedom of the t quantile.
      shares: shares of the variance, by "surrogates", "targets" (or "models", where both are the
        same) and "examples"; they sum to 1, or are all 0.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees: float
    shares: dict[str, float]


def crossed_bootstrap(
    numerators: ArrayLike,
    denominators: ArrayLike,
    rng: np.random.Generator,
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    shared_models: bool = False,
) -> Resampled:
    """Returns a ratio of sums over all cells and examples, with its interval over draws of all.

    Args:
      numerators: `[K, M, B]`, such as `fooled` of `outcomes`, or `increase`.
      denominators: `[K, M, B]`, such as `counted`, or the surrogates' own increase; broadcast
        against the numerators. An entry counts where both are finite.
      rng: a NumPy generator, which is advanced.
      num_resamples: number of resamples of the bootstrap.
      confidence: level of the interval, in (0, 1).
      shared_models: whether target i is surrogate i, with K = M. Then each model is drawn once for
        both sides, and cells (i, i), a model attacked through itself, are left out.

    Raises:
      ValueError: if these are no arrays of three axes, for shared models if K is not M, or if the
        confidence is outside (0, 1).

    Formula: a factor of n > 1 entries is drawn n − 1 times with replacement and weighted by
    n/(n − 1), so that the variance over few models is not underestimated. A factor of a single
    entry (or of two shared models, which make one pair) is taken as given, not drawn. The error of
    a resample is Σ w_k u_m v_b r_kmb, r = (num − R den)/Σ den, to first order in the errors of the
    denominators. The interval is estimate ± t · standard error, with Satterthwaite's degrees of
    freedom; a percentile interval over eight models would be too short. The noise of single cells
    is counted with each factor, which makes the interval a little too wide.
    Source: Rao and Wu (1988); Cameron, Gelbach and Miller (2011); Satterthwaite (1946).

    Examples:
      >>> fooled = np.ones((2, 2, 3)) * np.array([0, 1, 1])  # all models alike: only examples vary
      >>> rate = transfer.crossed_bootstrap(fooled, np.ones(3), np.random.default_rng(0))
      >>> print(f"{rate.estimate:.3f}, {rate.shares['examples']:.0%} from examples")
      0.667, 100% from examples
    """
    return _resample([(numerators, denominators)], rng, num_resamples, confidence, shared_models)


def paired_bootstrap(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    rng: np.random.Generator,
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    shared_models: bool = False,
) -> Resampled:
    """Returns the difference of two ratios on the same surrogates, targets and examples.

    Both ratios are taken on the same draws, so that what they share cancels. They may be those of
    two attacks, of an attack and its noise, or of two budgets.

    Args:
      first: numerators and denominators `[K, M, B]`, see `crossed_bootstrap`.
      second: numerators and denominators of the same models and examples, to be subtracted.
      rng: a NumPy generator, which is advanced.
      num_resamples: number of resamples of the bootstrap.
      confidence: level of the interval, in (0, 1).
      shared_models: whether target i is surrogate i, with K = M; see `crossed_bootstrap`.

    Raises:
      ValueError: if these are no arrays of three axes and one shape, for shared models if K is not
        M, or if the confidence is outside (0, 1).
    """
    return _resample([first, second], rng, num_resamples, confidence, shared_models)


def _resample(
    ratios: list[tuple[ArrayLike, ArrayLike]],
    rng: np.random.Generator,
    num_resamples: int,
    confidence: float,
    shared: bool,
) -> Resampled:
    """Returns a ratio, or the difference of two, with its interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    cubes = [_cubes(num, den, shared) for num, den in ratios]
    shapes = {num.shape for num, _ in cubes}
    if len(shapes) > 1:
        raise ValueError(f"compared matrices must have one shape [K, M, B], got {sorted(shapes)}")
    ((num_surrogates, num_targets, _),) = shapes
    names = ("models", "examples") if shared else ("surrogates", "targets", "examples")
    sizes = [num_surrogates, *([] if shared else [num_targets]), cubes[0][0].shape[2]]
    totals = [float(den.sum()) for _, den in cubes]
    undefined = Resampled(math.nan, -math.inf, math.inf, math.inf, 1.0, dict.fromkeys(names, 0.0))
    if min(totals) <= 0:
        return undefined
    points = [float(num.sum()) / total for (num, _), total in zip(cubes, totals, strict=True)]
    signs = (1, -1)[: len(points)]
    estimate = sum(sign * point for sign, point in zip(signs, points, strict=True))
    residual = sum(
        sign * (num - point * den) / total
        for sign, (num, den), point, total in zip(signs, cubes, points, totals, strict=True)
    )
    residual = np.asarray(residual)
    by_surrogate, by_target = residual.sum((1, 2)), residual.sum((0, 2))
    clusters = [by_surrogate + by_target] if shared else [by_surrogate, by_target]
    clusters.append(residual.sum((0, 1)))
    # Two shared models make one pair, and a single entry is no sample.
    sizes = [1 if shared and n == 2 and i == 0 else n for i, n in enumerate(sizes)]
    variances = [
        n / (n - 1) * float((sums**2).sum()) if n > 1 else 0.0
        for n, sums in zip(sizes, clusters, strict=True)
    ]
    variance = sum(variances)
    scale = max(abs(point) for point in points)
    if not math.sqrt(variance) > _ROUNDING * scale:  # no spread but that of rounding: a point
        return undefined._replace(
            estimate=estimate, low=estimate, high=estimate, standard_error=0.0
        )
    error = float(_draws(residual, sizes, rng, num_resamples, shared).std(ddof=1))
    shares = [v / variance for v in variances]
    degrees = 1 / sum(s**2 / (n - 1) for s, n in zip(shares, sizes, strict=True) if n > 1)
    half = float(special.stdtrit(degrees, (1 + confidence) / 2)) * error
    named: dict[str, float] = dict(zip(names, shares, strict=True))
    return Resampled(estimate, estimate - half, estimate + half, error, degrees, named)


def _draws(
    residual: np.ndarray,
    sizes: list[int],
    rng: np.random.Generator,
    num_resamples: int,
    shared: bool,
) -> np.ndarray:
    """Returns the error of each resample, `[R]`."""
    batch = max(1, _BATCH // (residual[:, :, 0].size + sizes[-1]))
    parts = []
    for first in range(0, num_resamples, batch):
        number = min(batch, num_resamples - first)
        models = [_weights(rng, size, number) for size in sizes[:-1]]
        cells = residual @ _weights(rng, sizes[-1], number).T
        parts.append(np.einsum("kmr,rk,rm->r", cells, models[0], models[-1], optimize=True))
    # Two draws of one model make no cell: the cells that are left weigh less than 1 on average.
    lost = (sizes[0] - 2) / (sizes[0] - 1) if shared and sizes[0] > 2 else 1.0
    return np.concatenate(parts) / lost


def _weights(rng: np.random.Generator, size: int, number: int) -> np.ndarray:
    """Returns how often each entry counts in each resample, `[R, n]`, 1 on average."""
    if size == 1:
        return np.ones((number, 1))
    return rng.multinomial(size - 1, np.full(size, 1 / size), number) * (size / (size - 1))


def _cubes(numerators: ArrayLike, denominators: ArrayLike, shared: bool):
    """Returns numerators and denominators `[K, M, B]`, both 0 where an entry does not count."""
    num, den = np.broadcast_arrays(
        np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    )
    if num.ndim != 3 or (shared and num.shape[0] != num.shape[1]):
        what = "[K, K, B]" if shared else "[K, M, B]"
        raise ValueError(f"outcomes of shape {what} are needed, got {num.shape}")
    valid = np.isfinite(num) & np.isfinite(den)
    if shared:
        valid = valid & ~np.eye(len(num), dtype=bool)[:, :, None]
    return np.where(valid, num, 0.0), np.where(valid, den, 0.0)
