"""Surrogates, targets and further models of one law: how far their input gradients align (P4).

Of twice the config's pairs θ_A of the first half are surrogates and θ_B of the second half targets.
The partner of each, an independent draw of the same law, is neither: those give k_half.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr

from halfway import losses
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import crossed
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.measurements.crossed import SURROGATE, TARGET
from halfway.lab.study.records import Measured, Measurement
from halfway.populations import Condition
from halfway.types import Array, Params

NUM_SURROGATES = 16
"""Attacked together, at most."""
SMALL_SIZES = (1, 2)
"""Numbers k of surrogates of which each group of two is told."""


class Constant(NamedTuple):
    """k_half, and what each model of known role adds to its error, `[P]` with mean 0."""

    estimate: float
    influence: np.ndarray


def compared_on(config: RunConfig) -> Condition:
    """Returns twice the config's pairs, of which no model has seen S."""
    return crossed.common_condition(config, 2 * config.num_pairs)


def block_sizes(num_surrogates: int) -> tuple[int, ...]:
    """Returns the numbers k taken together: powers of two up to the number of surrogates, 16."""
    return tuple(2**i for i in range(min(num_surrogates, NUM_SURROGATES).bit_length()))


def chosen_surrogates(finite: np.ndarray) -> np.ndarray:
    """Returns the pairs whose θ_A are the surrogates: 16 at most, none that diverged.

    Args:
      finite: `[2P]`, whether pairs stayed so.
    """
    return np.flatnonzero(finite[: len(finite) // 2])[:NUM_SURROGATES]


def law(k: float, k_half: float) -> float:
    """Returns √(k/(k + k_half)) / √(1 + k_half); NaN where k_half is not positive.

    Args:
      k: number of surrogates.
      k_half: noise over signal of the input gradients of one model.
    """
    return math.sqrt(k / (k + k_half) / (1 + k_half)) if k_half > 0 else math.nan


def constant(square: np.ndarray, product: np.ndarray) -> Constant:
    """Returns k_half = Σ ‖h‖² / Σ ⟨h, h'⟩ − 1 with the models' influences, linearized.

    A product is the mean over all other models, so that each model enters twice as much.

    Args:
      square: `[P]`.
      product: `[P]`; NaN where a model diverged.
    """
    valid = np.isfinite(square) & np.isfinite(product)
    signal = product[valid].mean() if valid.any() else math.nan
    if not signal > 0:
        return Constant(math.nan, np.full(square.shape, math.nan))
    ratio = square[valid].mean() / signal
    influence = (square - ratio * signal - 2 * ratio * (product - signal)) / signal
    return Constant(ratio - 1, influence)


def constant_terms(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ‖h_i‖² and the mean of ⟨h_i, h_j⟩ over j ≠ i at each example, `[K, B]` both.

    k_half is Σ_i ‖h_i‖² / Σ_i mean_j ⟨h_i, h_j⟩ − 1, sums over examples too, as of
    `meeting.ensemble_noise`.

    Args:
      gradients: h of each model, `[K, B, ...]`.
    """
    vectors = gradients.reshape(*gradients.shape[:2], math.prod(gradients.shape[2:]))
    squares = np.einsum("kbd,kbd->kb", vectors, vectors, dtype=np.float64)
    total = vectors.sum(0, dtype=np.float64)
    products = np.einsum("kbd,bd->kb", vectors, total, dtype=np.float64)
    return squares, (products - squares) / max(1, len(vectors) - 1)


def surrogate_means(gradients: np.ndarray, size: int) -> np.ndarray:
    """Returns mean gradients `[R, B, d]` of disjoint blocks of surrogates.

    Args:
      gradients: `[K, B, ...]`; the last K mod k are left out.
      size: k.
    """
    number = len(gradients) // size
    shape = number, size, gradients.shape[1], math.prod(gradients.shape[2:])
    return gradients[: number * size].reshape(shape).mean(1)


def _gradients(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns input gradients of the margin loss `[2, B, ...]` of both models."""
    rows = pair.halves.s.indices[: crossed.NUM_CROSSED]
    x, labels = shared.images[rows], shared.labels[rows]

    def of_model(params: Params) -> Array:
        total = lambda x: losses.margin(program.apply_fn(params, x), labels).sum()  # noqa: E731
        return jax.grad(total)(x)

    return {"gradient": jax.lax.map(of_model, pair.params)}


def _measure(context: Context) -> xr.Dataset:
    """Returns inner products of input gradients at each example of S, labels clean.

    Of each target (pair, example), `target_square` ‖h_m‖² and `ensemble_product` ⟨h̄, h_m⟩
    (num_surrogates, pair, example), with `ensemble_square` ‖h̄‖² (num_surrogates, example), means
    over disjoint blocks of k surrogates. Of the partner of each model (pair, example),
    `partner_square` and `partner_product`, see `constant_terms`. Of each group of two surrogates,
    summed over examples, `group_product` (group, pair) with targets, of either of `SMALL_SIZES`,
    and `group_square` (small_size, group).

    Surrogates that diverged are left out; NaN where too few are left, and for pairs without a
    target.
    """
    population, num_pairs = context.population, context.condition.num_pairs
    half, finite = num_pairs // 2, population.finite
    gradients = context.over_pairs(_gradients)["gradient"]
    num_examples = gradients.shape[2]
    # The partner of a surrogate is θ_B of its pair, that of a target θ_A.
    places = np.where(np.arange(num_pairs) < half, TARGET, SURROGATE)
    constants = np.full((2, num_pairs, num_examples), np.nan)
    constants[:, finite] = constant_terms(gradients[np.arange(num_pairs), places][finite])

    chosen = chosen_surrogates(finite)
    surrogates = gradients[chosen, SURROGATE]
    targets = gradients[half:, TARGET].reshape(half, num_examples, -1)
    sizes, num_groups = block_sizes(half), min(half, NUM_SURROGATES) // 2
    product = np.full((len(sizes), half, num_examples), np.nan)
    square = np.full((len(sizes), num_examples), np.nan)
    for place, k in enumerate(sizes):
        if k <= len(surrogates):
            means = surrogate_means(surrogates, k)
            product[place] = _products(targets, means.mean(0, dtype=np.float64))
            square[place] = _squares(means).mean(0)
    group_product = np.full((num_groups, half), np.nan)
    group_square = np.full((len(SMALL_SIZES), num_groups), np.nan)
    if len(surrogates) >= 2 * num_groups:
        twos = surrogate_means(surrogates, 2)
        for group, mean in enumerate(twos):
            group_product[group] = _products(targets, mean).sum(-1)
        singles = _squares(surrogate_means(surrogates[: 2 * num_groups], 1)).sum(-1)
        group_square[0] = singles.reshape(-1, 2).mean(1)
        group_square[1] = _squares(twos).sum(-1)
    of_pair = "pair", "example"
    return context.dataset(
        {
            "partner_square": (of_pair, constants[0]),
            "partner_product": (of_pair, constants[1]),
            "target_square": (of_pair, with_targets(_squares(targets), 0)),
            "ensemble_product": (("num_surrogates", *of_pair), with_targets(product, 1)),
            "ensemble_square": (("num_surrogates", "example"), square),
            "group_product": (("group", "pair"), with_targets(group_product, 1)),
            "group_square": (("small_size", "group"), group_square),
        },
        num_surrogates=sizes,
        small_size=SMALL_SIZES,
    )


def _products(targets: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns inner products `[M, B]` of targets `[M, B, d]` with one vector an example."""
    return np.stack([np.einsum("bd,bd->b", target, mean, dtype=np.float64) for target in targets])


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("kbd,kbd->kb", vectors, vectors, dtype=np.float64)


def with_targets(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns values of targets, M along an axis, by pair, 2M: NaN for the pairs without one.

    Args:
      values: with M targets along the axis.
      axis: of the targets.
    """
    return np.concatenate([np.full(values.shape, np.nan), values], axis)


ALIGNMENT = Measurement("surrogate_alignment", _measure)


def alignments(product: np.ndarray, ensemble: float, target: np.ndarray) -> np.ndarray:
    """Returns `[P]` values whose mean is the pooled alignment: its linearization over targets.

    Args:
      product: `[P]`, ⟨h̄, h_m⟩ summed over examples.
      ensemble: ‖h̄‖², the same for all targets; NaN where it was not measured.
      target: `[P]`, ‖h_m‖².
    """
    valid = np.isfinite(product) & np.isfinite(target)
    if not (valid.any() and math.isfinite(ensemble)):
        return np.full(product.shape, math.nan)
    inner, norm = product[valid].mean(), target[valid].mean()
    pooled = inner / math.sqrt(ensemble * norm)
    values = pooled * (1 + (product - inner) / inner - 0.5 * (target - norm) / norm)
    return np.where(valid, values, math.nan)


def alignments_by_size(aligned: Measured, num_surrogates: int) -> Mapping[int, np.ndarray]:
    """Returns `alignments` `[2P]` for each number k of surrogates.

    Args:
      aligned: of `ALIGNMENT`.
      num_surrogates: of the config.
    """
    target = aligned.read("target_square", "pair", "example").sum(-1)
    values = {}
    for k in block_sizes(num_surrogates):
        square = aligned.read("ensemble_square", "example", num_surrogates=k).sum()
        product = aligned.read("ensemble_product", "pair", "example", num_surrogates=k).sum(-1)
        values[k] = alignments(product, float(square), target)
    return values


def constant_of(aligned: Measured) -> Constant:
    """Returns k_half of the partners.

    Args:
      aligned: of `ALIGNMENT`.
    """
    square, product = (
        aligned.read(name, "pair", "example").sum(-1)
        for name in ("partner_square", "partner_product")
    )
    return constant(square, product)
