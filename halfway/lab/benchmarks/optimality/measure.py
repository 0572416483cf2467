"""AttackBench's measure of attacks that look for the nearest adversarial point, from distances.

A distance is that of the point which an attack returns for an input: 0 for an input that is
misclassified as it is, infinite where the attack finds no adversarial point.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def robust_accuracy(distances: ArrayLike, radii: ArrayLike) -> np.ndarray:
    """Returns the curve of robust accuracy, `[T]`: the share of inputs beyond each distance.

    Args:
      distances: `[N]`, of one attack.
      radii: `[T]`, the distances ρ at which the curve is read.
    """
    beyond = np.asarray(distances, float) > np.asarray(radii, float)[:, None]
    return beyond.mean(1)


def best_of(distances: ArrayLike) -> np.ndarray:
    """Returns the best distance of each input `[N]`: the least over all attacks.

    Args:
      distances: `[A, N]`, of A attacks.
    """
    return np.asarray(distances, float).min(0)


def local_optimality(distances: ArrayLike, best: ArrayLike) -> float:
    """Returns ξ of an attack on one network, in [0, 1]: 1 is the best curve, 0 finds nothing.

    With r(ρ) the robust accuracy of the attack and r*(ρ) that of the best distances, ρ0 the least
    distance at which r* is 0, and r*(0) the accuracy without an attack:

        ξ = 1 − ∫ (r − r*) dρ / (r*(0) · ρ0 − ∫ r* dρ), both integrals over 0 ≤ ρ ≤ ρ0.

    That is (r*(0) · ρ0 − ∫ r) / (r*(0) · ρ0 − ∫ r*), equation 5 of the paper. Curves are steps, and
    the integral of such a curve is the mean over inputs of min(distance, ρ0): it is exact. Where no
    attack finds a point for an input, r* stays above 0, and ρ0 is the largest finite best distance.

    Args:
      distances: `[N]`, of the attack.
      best: `[N]`, the best distances over all attacks, this one among them.

    Returns:
      ξ; NaN where it has no meaning, since no attack finds anything or all that were found are
      equally far.

    Source: arXiv 2404.19460, equations 4 and 5.
    """
    distances, best = np.asarray(distances, float), np.asarray(best, float)
    reached = best[np.isfinite(best)]
    if not reached.size:
        return float("nan")
    farthest = reached.max()
    area, least = (np.minimum(values, farthest).mean() for values in (distances, best))
    room = (best > 0).mean() * farthest - least
    # Less than rounding is nothing.
    if room <= 1e-9 * farthest or farthest == 0:
        return float("nan")
    return float(1 - (area - least) / room)


def global_optimality(values: Iterable[float]) -> float:
    """Returns the mean of local optimality over networks; NaN where no network has one.

    Args:
      values: ξ of an attack on each network; NaN is left out.
    """
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
