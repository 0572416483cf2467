"""Success of many surrogates, predicted from one and two by the second law, and its errors.

Surrogates, targets, examples and the models of the law's constant could all have been others. Each
side adds the variance of deleting its members in turn; a surrogate is deleted with its neighbour,
from all blocks that it is in.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from halfway.lab.measurements.ensembles import SMALL_SIZES, block_sizes
from halfway.lab.studies.t7.measure import ATTACKED
from halfway.lab.study.records import Measured
from halfway.stats import Crossed


class Rates(NamedTuple):
    """What the prediction is made of, `[R]` each: as it is, or with members deleted in turn.

    Attributes:
      single, double, together: success rates of one surrogate, of two, and of all of them.
      first, second: alignment of one surrogate and of two.
      k_half: of the law.
    """

    single: np.ndarray
    double: np.ndarray
    together: np.ndarray
    first: np.ndarray
    second: np.ndarray
    k_half: np.ndarray


class Sides(NamedTuple):
    """`Rates` as they are `[1]`, and with each member of each side deleted."""

    whole: Rates
    deleted: tuple[Rates, ...]


def predicted(rates: Rates, k: int) -> np.ndarray:
    """Returns `[R]` success rates of k surrogates.

    The logit of success is a line in alignment through those of one and of two surrogates;
    alignment at k is the law's.

    Args:
      rates: what it is made of.
      k: number of surrogates.
    """
    with np.errstate(all="ignore"):
        aligned = np.sqrt(k / (k + rates.k_half) / (1 + rates.k_half))
        return success_at(rates, aligned)


def success_at(rates: Rates, alignment: np.ndarray) -> np.ndarray:
    """Returns success rates on the line through those of one and of two surrogates.

    Args:
      rates: what it is made of.
      alignment: where it is read.
    """
    with np.errstate(all="ignore"):
        start, end = (special.logit(rate) for rate in (rates.single, rates.double))
        slope = (end - start) / (rates.second - rates.first)
        return special.expit(start + slope * (alignment - rates.first))


def sides(aligned: Measured, attacked: Measured, num_surrogates: int) -> Sides | None:
    """Returns what predictions are made of; None where a number that it takes is missing.

    Args:
      aligned: of `ensembles.ALIGNMENT`.
      attacked: of `ENSEMBLES`, of the same condition.
      num_surrogates: of the config.
    """
    last = block_sizes(num_surrogates)[-1]
    fooled = np.stack(
        [attacked.read("fooled", "pair", "example", num_surrogates=k) for k in (*SMALL_SIZES, last)]
    )
    target = aligned.read("target_square", "pair", "example")
    product = np.stack(
        [aligned.read("ensemble_product", "pair", "example", num_surrogates=k) for k in SMALL_SIZES]
    )
    square = np.stack(
        [aligned.read("ensemble_square", "example", num_surrogates=k) for k in SMALL_SIZES]
    )
    without = np.stack(
        [attacked.read("fooled_without", "pair", "group", attacked=k) for k in ATTACKED]
    )
    group_product = aligned.read("group_product", "pair", "group")
    group_square = np.stack(
        [aligned.read("group_square", "group", small_size=k) for k in SMALL_SIZES]
    )
    partner = np.stack(
        [aligned.read(f"partner_{name}", "pair", "example") for name in ("square", "product")]
    )
    targets = np.isfinite(fooled).all((0, 2)) & np.isfinite(target).all(-1)
    partners = np.isfinite(partner).all((0, 2))
    fooled, target, product = fooled[:, targets], target[targets], product[:, targets]
    without, group_product, partner = (
        without[:, targets],
        group_product[targets],
        partner[:, partners],
    )
    used = fooled, target, product, square, without, group_product, group_square, partner
    if not all(v.size and np.isfinite(v).all() for v in used):
        return None

    def rates(fooled, product, target, square, partner) -> Rates:
        """Rates from means: `[3, R]`, `[2, R]`, `[R]`, `[2, R]` and `[2, R]`."""
        with np.errstate(all="ignore"):
            alignment = product / np.sqrt(square * target)
            return Rates(*np.broadcast_arrays(*fooled, *alignment, partner[0] / partner[1] - 1))

    def mean(values: np.ndarray) -> np.ndarray:
        """Mean over all but the first axis, as one replicate."""
        return values.mean(tuple(range(1, values.ndim)))[:, None]

    of_examples = target.mean(0), partner.mean(1)
    means = {
        "fooled": mean(fooled),
        "product": mean(product),
        "target": target.mean(keepdims=True)[0],
        "square": mean(square),
        "partner": mean(partner),
    }
    by_surrogate = {
        "fooled": without.mean(1),
        "product": np.broadcast_to(_deleted(group_product.mean(0)), group_square.shape)
        / fooled.shape[-1],
        "square": _deleted(group_square) / fooled.shape[-1],
    }
    by_target = {
        "fooled": _deleted(fooled.mean(-1)),
        "product": _deleted(product.mean(-1)),
        "target": _deleted(target.mean(-1)),
    }
    by_example = {
        "fooled": _deleted(fooled.mean(1)),
        "product": _deleted(product.mean(1)),
        "target": _deleted(of_examples[0]),
        "square": _deleted(square),
        "partner": _deleted(of_examples[1]),
    }
    by_partner = {"partner": _partner_deleted(partner.mean(-1))}
    deleted = (by_surrogate, by_target, by_example, by_partner)
    return Sides(rates(**means), tuple(rates(**means | part) for part in deleted))


def _deleted(values: np.ndarray) -> np.ndarray:
    """Returns means over the last axis with each entry of it left out."""
    number = values.shape[-1]
    return (values.sum(-1, keepdims=True) - values) / max(1, number - 1)


def _partner_deleted(partner: np.ndarray) -> np.ndarray:
    """Returns mean squares and mean products `[2, K]` with each model left out.

    A product is the mean over all other models: a model leaves as either factor.
    """
    square, product = partner
    number = len(product)
    left = (product.sum() - 2 * product) * (number - 1)
    return np.stack([_deleted(square), left / max(1, (number - 1) * (number - 2))])


def estimate(statistic_fn: Callable[[Rates], np.ndarray], sides: Sides | None) -> Crossed:
    """Returns a statistic of rates with its error over draws of all sides.

    Args:
      statistic_fn: rates `[R]` to values `[R]`.
      sides: of `sides`; where they are None the estimate is 0 and nothing is decided.

    Formula: V_s = (n − 1)/n Σ_i (θ_(−i) − mean)² of each side with n members, V their sum, degrees
    of freedom `V²/Σ_s V_s²/(n_s − 1)`; as `stats.crossed_ratio`, what two sides add together is
    counted for both.
    Source: Efron and Stein (1981); Cameron, Gelbach and Miller (2011); Satterthwaite (1946).
    """
    undecided = Crossed(0.0, -math.inf, math.inf, math.inf, 1.0, 0, 0, 0, 0)
    if sides is None:
        return undecided
    with np.errstate(all="ignore"):
        value = float(statistic_fn(sides.whole)[0])
        replicates = [statistic_fn(rates) for rates in sides.deleted]
    if not math.isfinite(value):
        return undecided
    counts = [len(values) for values in replicates]
    left = undecided._replace(
        estimate=value,
        num_surrogates=counts[0],
        num_targets=counts[1],
        num_examples=counts[2],
    )
    if min(counts) < 2 or not all(np.isfinite(values).all() for values in replicates):
        return left
    variances = np.array(
        [(n - 1) * np.var(values) for n, values in zip(counts, replicates, strict=True)]
    )
    variance = float(variances.sum())
    if not variance > 0:
        return left._replace(low=value, high=value, standard_error=0.0)
    degrees = variance**2 / float((variances**2 / (np.array(counts) - 1)).sum())
    half = float(special.stdtrit(degrees, 0.975)) * math.sqrt(variance)
    return left._replace(
        low=value - half, high=value + half, standard_error=math.sqrt(variance), degrees=degrees
    )
