"""Meeting matrices: what the gradients of two halves share, class by class (P6).

Rows are classes of the first half, columns classes of the other. A class that does not occur has
zeros in a meeting matrix, which is a sum, and NaN in a residual-free one, which is made of means.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from halfway import landscapes, losses
from halfway.losses import CHUNK_SIZE
from halfway.meeting import signals
from halfway.types import ApplyFn, Array, LossFn, Params, Sample


def meeting_matrix(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    half_a: Sample,
    half_b: Sample,
    *,
    loss_fn: LossFn = losses.cross_entropy,
    chunk_size: int | None = CHUNK_SIZE,
) -> Array:
    """Returns the meeting matrix `[C, C]`: ⟨∇L_A, ∇L_B⟩ by the classes of both examples (P6).

    `(1/(n_A n_B)) Σ_{i∈A, y_i=c} Σ_{j∈B, y_j=c'} ⟨g_i, g_j⟩`, g the gradient of an example's loss;
    its entries sum to ⟨∇L_A, ∇L_B⟩. Compare with shuffled labels, never with 0: for cross-entropy
    the residuals alone make the diagonal positive at initialization. Memory is `2 C D`, D the
    number of parameters, and the activations of C chunks.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      half_a: the half A: rows of the pool with labels, by which they are grouped, and mask.
      half_b: the half B, in the same form.
      loss_fn: logits and labels to a loss per example.
      chunk_size: number of examples at once; None: all.

    Examples:
      >>> images, labels = jnp.eye(2)[jnp.array([0, 1, 0, 1])], jnp.array([0, 1, 0, 1])
      >>> a, b = (types.Sample(jnp.array(rows), labels[jnp.array(rows)], jnp.ones(2, bool))
      ...         for rows in ([0, 1], [2, 3]))
      >>> print(meeting.meeting_matrix(lambda w, x: x @ w, jnp.zeros((2, 2)), images, a, b))
      [[0.125 0.   ]
       [0.    0.125]]
    """
    return _total(
        meeting_matrix_by_layer(
            apply_fn, params, images, half_a, half_b, loss_fn=loss_fn, chunk_size=chunk_size
        )
    )


def meeting_matrix_by_layer(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    half_a: Sample,
    half_b: Sample,
    *,
    loss_fn: LossFn = losses.cross_entropy,
    chunk_size: int | None = CHUNK_SIZE,
) -> dict[str, Array]:
    """Returns the meeting matrix of each layer; their sum is `meeting_matrix` (P6).

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      half_a: the half A: rows of the pool with labels, by which they are grouped, and mask.
      half_b: the half B, in the same form.
      loss_fn: logits and labels to a loss per example.
      chunk_size: number of examples at once; None: all.

    Returns:
      `[C, C]` by layer.
    """

    def value_fn(params, x, labels):
        return loss_fn(apply_fn(params, x), labels)

    products = _products(value_fn, apply_fn, params, images, half_a, half_b, chunk_size)
    numbers = half_a.mask.sum(), half_b.mask.sum()
    return {name: product / numbers[0] / numbers[1] for name, product in products.items()}


def meeting_matrix_by_kernel(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    half_a: Sample,
    half_b: Sample,
    *,
    block_size: int = 32,
) -> Array:
    """Returns the meeting matrix `[C, C]` of cross-entropy, from the tangent kernel (P6).

    `(1/(n_A n_B)) Σ_{i∈A, y_i=c} Σ_{j∈B, y_j=c'} r_iᵀ K(x_i, x_j) r_j`, r = softmax − onehot.
    Equal to `meeting_matrix` up to rounding, and slower: the proposition itself, to be verified.
    An `apply_fn` of a part of the parameters gives that part of the kernel.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      half_a: the half A: rows of the pool with labels, by which they are grouped, and mask.
      half_b: the half B, in the same form.
      block_size: number of examples of a block, see `landscapes.grouped_ntk`.
    """

    def weighted(sample):
        x = images[sample.indices]
        logits = apply_fn(params, x)
        label = jax.nn.one_hot(sample.labels, logits.shape[1], dtype=logits.dtype)
        residuals = jax.nn.softmax(logits) - label
        return x, (label * sample.mask[:, None])[:, :, None] * residuals[:, None]

    (first, left), (second, right) = weighted(half_a), weighted(half_b)
    grouped = landscapes.grouped_ntk(
        apply_fn, params, first, second, left, right, block_size=block_size
    )
    return grouped / half_a.mask.sum() / half_b.mask.sum()


def residual_free_matrix(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    half_a: Sample,
    half_b: Sample,
    *,
    chunk_size: int | None = CHUNK_SIZE,
) -> Array:
    """Returns `[C, C]` the mean of tr K(x_i, x_j)/C over i of class c in A and j of c' in B (P6).

    It is what the classes share whatever the labels are, and serves claims about classes at a
    trained θ, where residuals cancel. tr K is bilinear in the Jacobians, so that the mean over
    pairs of examples is the product of class means of Jacobians, taken one logit at a time. Memory
    is `2 C D`.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      half_a: the half A: rows of the pool with labels, by which they are grouped, and mask.
      half_b: the half B, in the same form.
      chunk_size: number of examples at once; None: all.

    Returns:
      `[C, C]`; NaN in the row or the column of a class that does not occur.
    """
    return _total(
        residual_free_matrix_by_layer(
            apply_fn, params, images, half_a, half_b, chunk_size=chunk_size
        )
    )


def residual_free_matrix_by_layer(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    half_a: Sample,
    half_b: Sample,
    *,
    chunk_size: int | None = CHUNK_SIZE,
) -> dict[str, Array]:
    """Returns the residual-free matrix of each layer; their sum is `residual_free_matrix` (P6).

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      half_a: the half A: rows of the pool with labels, by which they are grouped, and mask.
      half_b: the half B, in the same form.
      chunk_size: number of examples at once; None: all.

    Returns:
      `[C, C]` by layer.
    """
    num_classes = _num_classes(apply_fn, params, images)

    def of_logit(index):
        def value_fn(params, x, labels):
            return apply_fn(params, x)[:, index]

        return _products(value_fn, apply_fn, params, images, half_a, half_b, chunk_size)

    means = jax.tree.map(lambda p: p.mean(0), lax.map(of_logit, jnp.arange(num_classes)))
    own_count, other_count = (
        (jax.nn.one_hot(sample.labels, num_classes) * sample.mask[:, None]).sum(0)
        for sample in (half_a, half_b)
    )
    return {name: m / (own_count[:, None] * other_count[None]) for name, m in means.items()}


def contrast_terms(matrix: Array) -> tuple[Array, Array]:
    """Returns mean diagonal minus mean off-diagonal, and mean |entry|, of class matrices.

    Over a population their ratio is a ratio of sums.

    Args:
      matrix: `[..., C, C]` class matrices; NaN entries are left out of each mean.

    Returns:
      two `[...]`; NaN where a mean has no entry.
    """
    same = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)
    there = ~jnp.isnan(matrix)
    axes = (-2, -1)
    diagonal = losses.masked_mean(matrix, same & there, axes)
    others = losses.masked_mean(matrix, ~same & there, axes)
    return diagonal - others, losses.masked_mean(jnp.abs(matrix), there, axes)


def diagonal_contrast(matrix: Array) -> Array:
    """Returns (mean diagonal − mean off-diagonal) / mean |entry| of class matrices.

    Args:
      matrix: `[..., C, C]` class matrices; NaN entries are left out of each mean.

    Returns:
      `[...]`; NaN where a mean has no entry.

    Examples:
      >>> print(meeting.diagonal_contrast(jnp.array([[3.0, 1.0], [1.0, 3.0]])))
      1.0
    """
    contrast, size = contrast_terms(matrix)
    return contrast / size


def _num_classes(apply_fn: ApplyFn, params: Params, images: Array) -> int:
    """Returns C, the number of logits."""
    return jax.eval_shape(apply_fn, params, images[:1]).shape[1]


def _total(matrices: dict[str, Array]) -> Array:
    """Returns the sum over layers."""
    return jnp.stack(list(matrices.values())).sum(0)


def _products(
    value_fn: Callable[[Params, Array, Array], Array],
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    sample_a: Sample,
    sample_b: Sample,
    chunk_size: int | None,
) -> dict[str, Array]:
    """Returns by layer ⟨Σ_{i∈c} ∇v_i, Σ_{j∈c'} ∇v_j⟩ `[C, C]`, v = `value_fn` of an example."""
    num_classes = _num_classes(apply_fn, params, images)

    def class_sums(sample: Sample) -> Any:
        def sums(rows, labels, mask):
            member = jax.nn.one_hot(labels, num_classes, axis=0) * mask[None]
            values, pull = jax.vjp(lambda p: value_fn(p, images[rows], labels), params)
            return jax.vmap(lambda weights: pull(weights.astype(values.dtype))[0])(member)

        return losses.chunked_sum(
            sums, (sample.indices, sample.labels), sample.mask, chunk_size=chunk_size
        )

    def product(left, right):
        pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
        flat = [[leaf.reshape(num_classes, -1) for leaf in pair] for pair in pairs]
        return jnp.stack([jnp.matmul(a, b.T, precision="highest") for a, b in flat]).sum(0)

    left, right = (signals.leaves_by_layer(class_sums(sample)) for sample in (sample_a, sample_b))
    return {name: product(left[name], right[name]) for name in left}
