"""Functions of whole pytrees, and lengths that neither overflow nor underflow.

The parameters of a landscape are the floating-point tensors of a pytree. Integers, booleans and
PRNG keys, which a state may hold beside them, are no coordinates: they stay as they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from halfway.types import Array


def is_finite(tree: Any) -> Array:
    """Returns whether every number of a pytree is finite, a scalar bool; of none, it is true."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def num_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a pytree; shapes of `jax.eval_shape` stand for arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def pad_by_first(array: Array, number: int) -> Array:
    """Returns an array with copies of its first entry at the end.

    What pads goes through models like the rest, and not every model can take zeros.

    Args:
      array: `[N, ...]`.
      number: of copies, at least 0.

    Raises:
      ValueError: if there is no entry to copy.

    Examples:
      >>> print(trees.pad_by_first(jnp.array([5, 6]), 2))
      [5 6 5 5]
    """
    if not number:
        return array
    if not array.shape[0]:
        raise ValueError(f"an array of shape {array.shape} has no first entry to pad with")
    return jnp.concatenate([array, jnp.repeat(array[:1], number, 0)])


# Lengths


def power_of_two(size: Any) -> Array:
    """Returns the largest power of two up to `size`, by which to scale without rounding.

    Args:
      size: `[...]`, floating-point numbers of at least 0; 1/2 is returned for 0, inf and NaN.
    """
    _, exponent = jnp.frexp(lax.stop_gradient(size))
    lowest = int(jnp.finfo(size.dtype).minexp)
    return jnp.ldexp(jnp.ones_like(size), jnp.maximum(exponent - 1, lowest))


def norm(vector: Array, *, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Any:
    """Returns the l2 norm, right wherever it is a number of the dtype.

    `jnp.linalg.norm` squares first: it gives inf for 1e25 and 0 for 1e-25 in single precision. Here
    the largest entry is scaled to lie in [1, 2), by a power of two, so that no bit changes else.

    Args:
      vector: `[...]`, real.
      axis: the axes of a vector; all by default.
      keepdims: whether these axes stay, with size 1.

    Returns:
      The norm, of the shape of `vector` without the axes. Numbers below the smallest normal one
      count as 0.

    Examples:
      >>> print(trees.norm(jnp.array([3e-25, 4e-25])))
      5e-25
    """
    scale = power_of_two(jnp.abs(vector).max(axis, keepdims=True, initial=0))
    length = jnp.sqrt(((vector / scale) ** 2).sum(axis, keepdims=True)) * scale
    return length if keepdims else length.squeeze(axis)


def unit(vector: Array, *, axis: int | Sequence[int] | None = None) -> Array:
    """Returns a vector scaled to length 1; 0 stays 0, with a finite gradient.

    Args:
      vector: `[...]`, real, of any length.
      axis: the axes of a vector; all by default.
    """
    scaled = vector / power_of_two(jnp.abs(vector).max(axis, keepdims=True, initial=0))
    square = (scaled**2).sum(axis, keepdims=True)
    zero = square == 0
    return scaled / jnp.where(zero, 1, jnp.sqrt(jnp.where(zero, 1, square)))


# Floating-point leaves


def paths(tree: Any) -> list[str]:
    """Returns the path of every leaf, as "Dense_0/kernel", in the order of the leaves."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def is_floating(leaf: Any) -> bool:
    """Returns whether a leaf holds real floating-point numbers."""
    return jnp.issubdtype(_dtype(leaf), jnp.floating)


def real(values: Any) -> Array:
    """Returns real numbers in single precision, or in double where they are double.

    Args:
      values: `[...]`, floating-point numbers, integers or booleans.

    Raises:
      ValueError: for complex numbers.
    """
    array = jnp.asarray(values)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"real numbers are needed, got {array.dtype}")
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(_working_dtype([array.dtype]) if floating else float)


def check_real(tree: Any) -> None:
    """Checks that no leaf of a pytree is complex.

    Args:
      tree: a pytree of arrays and numbers.

    Raises:
      ValueError: with the path of the first complex leaf.
    """
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        if jnp.issubdtype(_dtype(leaf), jnp.complexfloating):
            raise ValueError(
                f"tensor {paths(tree)[index]!r} is {_dtype(leaf)}: parameters must be real; give "
                "the real and the imaginary part as two tensors"
            )


def split(tree: Any) -> tuple[list[Array], Callable[..., Any]]:
    """Returns the floating-point leaves of a pytree, and the way back.

    Args:
      tree: a pytree of arrays and numbers.

    Returns:
      The leaves; and `join`, which puts leaves of any shape into their places. By `join(leaves)`
      all others are those of the tree; by `join(leaves, direction=True)` they are 0 (a key, which
      has no 0, stays), as in a direction that moves nothing but parameters.

    Raises:
      ValueError: if a leaf is complex, or none is a floating-point number.

    Examples:
      >>> leaves, join = trees.split({"kernel": 2.0, "step": 7})
      >>> join([3.0]), join([3.0], direction=True)
      ({'kernel': 3.0, 'step': 7}, {'kernel': 3.0, 'step': 0})
    """
    check_real(tree)
    leaves, structure = jax.tree.flatten(tree)
    places = [index for index, leaf in enumerate(leaves) if is_floating(leaf)]
    if not places:
        dtypes = sorted({str(_dtype(leaf)) for leaf in leaves})
        raise ValueError(
            f"no tensor holds floating-point numbers, so there is nothing to move: {len(leaves)} "
            f"tensors of {', '.join(dtypes) or 'no dtype'}"
        )

    def join(floating: Sequence[Any], *, direction: bool = False) -> Any:
        joined = [_nothing(leaf) if direction else leaf for leaf in leaves]
        for index, leaf in zip(places, floating, strict=True):
            joined[index] = leaf
        return jax.tree.unflatten(structure, joined)

    return [jnp.asarray(leaves[index]) for index in places], join


def select(template: Any, tree: Any) -> list[Any]:
    """Returns the leaves of a pytree at the places of the floating-point leaves of a template.

    Args:
      template: a pytree.
      tree: a pytree like it.

    Raises:
      ValueError: if the two have other structures.
    """
    leaves, structure = jax.tree.flatten(template)
    try:
        others = structure.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the two pytrees differ in structure: {error}") from error
    return [other for leaf, other in zip(leaves, others, strict=True) if is_floating(leaf)]


def map_floating(fn: Callable[..., Any], tree: Any, *others: Any, direction: bool = False) -> Any:
    """Returns a function of the floating-point leaves of one or several pytrees.

    Half precision is computed in single and rounded once, at the end.

    Args:
      fn: a function of one leaf of each pytree.
      tree: a pytree, whose other leaves stay.
      *others: pytrees like it.
      direction: whether the other leaves become 0, as in `split`.
    """
    leaves, join = split(tree)
    columns = [leaves, *(list(map(jnp.asarray, select(tree, other))) for other in others)]

    def apply(*row: Array) -> Any:
        dtype = jnp.result_type(*row)
        return jnp.asarray(fn(*(leaf.astype(_working_dtype([dtype])) for leaf in row))).astype(
            dtype
        )

    return join([apply(*row) for row in zip(*columns, strict=True)], direction=direction)


def flatten(tree: Any) -> tuple[Array, Callable[..., Any]]:
    """Returns the floating-point leaves of a pytree as one vector, and the way back.

    Args:
      tree: a pytree.

    Returns:
      The vector `[D]`, at least in single precision; and a function from such a vector to a pytree
      of the dtypes of the leaves, with `direction` as in `split`.

    Raises:
      ValueError: as `split`.
    """
    leaves, join = split(tree)
    dtype = _working_dtype([leaf.dtype for leaf in leaves])
    flat, unravel = ravel_pytree([leaf.astype(dtype) for leaf in leaves])

    def unflatten(vector: Array, *, direction: bool = False) -> Any:
        parts = unravel(vector)
        moved = [part.astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        return join(moved, direction=direction)

    return flat, unflatten


def flatten_like(template: Any, tree: Any) -> Array:
    """Returns the leaves of a pytree at the places where a template is floating, as one vector.

    Args:
      template: a pytree.
      tree: a pytree like it.

    Raises:
      ValueError: as `split` and `select`.
    """
    check_real(tree)
    return jnp.concatenate([real(leaf).ravel() for leaf in select(template, tree)])


def only_floating(tree: Any) -> Any:
    """Returns a pytree with None, which is no leaf, in the places of all but its parameters."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_floating(leaf) else None, tree)


def length(tree: Any) -> Array:
    """Returns the l2 norm of all floating-point leaves together, a scalar.

    Args:
      tree: a pytree.

    Raises:
      ValueError: as `split`.
    """
    leaves = [real(leaf) for leaf in split(tree)[0]]
    largest = jnp.stack([jnp.abs(leaf).max(initial=0) for leaf in leaves]).max()
    scale = power_of_two(largest)
    return jnp.asarray(optax.tree.norm([leaf / scale for leaf in leaves])) * scale


def difference(first: Any, second: Any) -> list[Array]:
    """Returns first minus second, their floating-point leaves alone, at least in single precision.

    Args:
      first: a pytree.
      second: a pytree like it.

    Raises:
      ValueError: as `split` and `select`.
    """
    others = select(first, second)
    return [real(leaf) - real(other) for leaf, other in zip(split(first)[0], others, strict=True)]


def inner(first: Any, second: Any) -> Array:
    """Returns the inner product of the floating-point leaves of two pytrees, a scalar.

    Args:
      first: a pytree.
      second: a pytree like it.

    Raises:
      ValueError: as `split` and `select`.
    """
    check_real(second)
    pairs = [list(map(real, leaves)) for leaves in (split(first)[0], select(first, second))]
    return jnp.asarray(optax.tree.vdot(*pairs))


def on_floating(fn: Callable[[Any], Any], tree: Any) -> tuple[Callable[[list[Array]], Any], list]:
    """Returns a function of a pytree as one of its floating-point leaves alone, and these.

    Args:
      fn: a function of the pytree.
      tree: the pytree, which gives the other leaves.
    """
    leaves, join = split(tree)
    return lambda floating: fn(join(floating)), leaves


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(_dtype(leaf), jax.dtypes.prng_key)


def _nothing(leaf: Any) -> Any:
    if _is_key(leaf):
        return leaf
    return jnp.zeros_like(leaf) if hasattr(leaf, "dtype") else type(leaf)(0)


def _working_dtype(dtypes: Sequence[Any]) -> Any:
    """Returns double precision where a dtype is, and single else."""
    is_double = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.float64 if is_double else jnp.float32
