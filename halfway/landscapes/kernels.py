"""The empirical neural tangent kernel, in blocks, and how far two kernels agree."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from halfway import trees
from halfway.types import ApplyFn, Array, Params


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    first: Array,
    second: Array,
    *,
    block_size: int = 32,
) -> Array:
    """Returns K(x_i, x_j) = J(x_i) J(x_j)ᵀ, J the derivative of the logits by the parameters.

    Jacobians are made for `block_size` examples of each side at a time and never kept, so memory is
    `2 block_size C D` beside the result, D the number of parameters.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: θ, a pytree; the point of parameter space.
      first: `[N, ...]` inputs of the rows; integers are as good, e.g. tokens.
      second: `[M, ...]` inputs of the columns.
      block_size: the number of examples of a block.

    Returns:
      The kernel `[N, M, C, C]`.

    Raises:
      ValueError: if `block_size` is below 1, or a side has no examples.

    Source: Jacot et al., arXiv 1806.07572.
    """
    return _blocks(
        lambda left, right: jnp.einsum("icd,jed->ijce", left, right),
        apply_fn,
        params,
        first,
        second,
        block_size,
    )


def trace_ntk(
    apply_fn: ApplyFn,
    params: Params,
    first: Array,
    second: Array,
    *,
    block_size: int = 32,
) -> Array:
    """Returns tr K(x_i, x_j)/C `[N, M]`, the residual-free kernel of two samples (P6).

    Classes are taken one after another, so that neither `[N, M, C, C]` nor a Jacobian of all
    classes exists: memory is `2 block_size D` beside the result. Gradients of a block of `second`
    are made anew for each block of `first`, so the largest block that the memory allows is the
    fastest.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: θ, a pytree; the point of parameter space.
      first: `[N, ...]` inputs of the rows; integers are as good, e.g. tokens.
      second: `[M, ...]` inputs of the columns.
      block_size: the number of examples of a block.

    Raises:
      ValueError: if `block_size` is below 1, or a side has no examples.
    """
    _check_sides(first, second)
    num_classes = jax.eval_shape(apply_fn, params, first[:1]).shape[1]

    def add(total, label):
        one_logit = lambda params, x: apply_fn(params, x)[:, label, None]  # noqa: E731
        product = lambda left, right: left[:, 0] @ right[:, 0].T  # noqa: E731
        return total + _blocks(product, one_logit, params, first, second, block_size), None

    zeros = jnp.zeros((first.shape[0], second.shape[0]), trees.flatten(params)[0].dtype)
    return lax.scan(add, zeros, jnp.arange(num_classes))[0] / num_classes


def grouped_ntk(
    apply_fn: ApplyFn,
    params: Params,
    first: Array,
    second: Array,
    left: Array,
    right: Array,
    *,
    block_size: int = 32,
) -> Array:
    """Returns Σ_{i,j} w_i K(x_i, x_j) v_jᵀ `[G, G']`, the kernel weighted and summed over examples.

    With w_i = onehot(y_i) r_iᵀ it is the meeting matrix of P6 times the number of pairs. Blocks are
    summed where they are made, so that neither `[N, M, C, C]` nor `[N, M]` exists.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: θ, a pytree; the point of parameter space.
      first: `[N, ...]` inputs of the rows; integers are as good, e.g. tokens.
      second: `[M, ...]` inputs of the columns.
      left: `[N, G, C]`, the weights w of the rows.
      right: `[M, G', C]`, the weights v of the columns.
      block_size: the number of examples of a block; memory is `2 block_size C D`.

    Raises:
      ValueError: if `block_size` is below 1, or a side has no examples.
    """

    def product(left, right, w, v):
        kernel = jnp.einsum("icd,jed->ijce", left, right)
        return jnp.einsum("igc,ijce,jhe->gh", w, kernel, v)

    sums = _block_products(product, apply_fn, params, (first, left), (second, right), block_size)
    return sums.sum((0, 1))


def _blocks(
    product_fn: Callable[[Array, Array], Array],
    apply_fn: ApplyFn,
    params: Params,
    first: Array,
    second: Array,
    block_size: int,
) -> Array:
    parts = _block_products(product_fn, apply_fn, params, (first,), (second,), block_size)
    parts = jnp.swapaxes(parts, 1, 2)  # [blocks, rows, blocks, columns, ...]
    kernel = parts.reshape(parts.shape[0] * parts.shape[1], -1, *parts.shape[4:])
    return kernel[: first.shape[0], : second.shape[0]]


def _block_products(
    product_fn: Callable[..., Array],
    apply_fn: ApplyFn,
    params: Params,
    first: tuple[Array, ...],
    second: tuple[Array, ...],
    block_size: int,
) -> Array:
    """Returns what `product_fn` makes of each pair of blocks, `[blocks, blocks, ...]`.

    A side is inputs, which reach it as Jacobians `[block, C, D]`, and weights, which follow as they
    are, 0 for padding.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    _check_sides(first[0], second[0])
    for name, side in (("left", first), ("right", second)):
        if any(weight.shape[0] != side[0].shape[0] for weight in side[1:]):
            raise ValueError(
                f"{name} has weights of {side[1].shape[0]} examples for {side[0].shape[0]} inputs"
            )
    flat, unravel = trees.flatten(params)

    def jacobian(x):
        return jax.vmap(
            jax.jacrev(lambda v, example: apply_fn(unravel(v), example[None])[0]), (None, 0)
        )(flat, x)

    def blocks(side):
        size = min(block_size, side[0].shape[0])
        pad = -side[0].shape[0] % size
        x, *weights = side
        padded = [trees.pad_by_first(x, pad)]
        padded += [
            jnp.concatenate([weight, jnp.zeros((pad, *weight.shape[1:]), weight.dtype)])
            for weight in weights
        ]
        return [array.reshape(-1, size, *array.shape[1:]) for array in padded]

    rows, columns = blocks(first), blocks(second)

    def row(row):
        left = jacobian(row[0])
        return lax.map(
            lambda column: product_fn(left, jacobian(column[0]), *row[1:], *column[1:]), columns
        )

    return lax.map(row, rows)


def _check_sides(first: Array, second: Array) -> None:
    for name, side in (("first", first), ("second", second)):
        if not jnp.ndim(side) or not side.shape[0]:
            raise ValueError(
                f"{name} must hold at least one example, [N, ...], got shape {jnp.shape(side)}"
            )


def kernel_alignment(first: Array, second: Array, *, centered: bool = True) -> Array:
    """Returns the alignment of two kernels on the same examples, ⟨K, K'⟩_F / (‖K‖_F ‖K'‖_F).

    Centred alignment (Cortes et al. 2012) first takes away the mean of each row and column, which
    any two kernels share; without it, the alignment of kernels of positive entries is always near
    1. Between the models of two halves it tells whether θ_A and θ_B find the same examples similar.

    Args:
      first: `[N, N]`, a kernel, e.g. `trace_ntk` at θ_A.
      second: `[N, N]`, another kernel, e.g. at θ_B.
      centered: whether to centre both.

    Returns:
      A scalar in [-1, 1]; NaN where a kernel is 0.

    Examples:
      >>> kernel = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> print(landscapes.kernel_alignment(kernel, 3 * kernel))
      1.0
    """

    def prepare(kernel):
        kernel = trees.real(kernel)
        if centered:
            kernel = kernel - kernel.mean(0, keepdims=True)
            kernel = kernel - kernel.mean(1, keepdims=True)
        return kernel / trees.norm(kernel)

    return (prepare(first) * prepare(second)).sum()
