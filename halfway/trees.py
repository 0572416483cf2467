"""Functions of whole pytrees."""

from typing import Any

import jax
import jax.numpy as jnp

from halfway.types import Array


def is_finite(tree: Any) -> Array:
    """Returns whether every number of a pytree is finite, a scalar bool."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()


def pad_by_first(array: Array, number: int) -> Array:
    """Returns an array with copies of its first entry at the end.

    What pads goes through models like the rest, and not every model can take zeros.

    Args:
      array: `[N, ...]`.
      number: of copies, at least 0.

    Examples:
      >>> print(trees.pad_by_first(jnp.array([5, 6]), 2))
      [5 6 5 5]
    """
    return jnp.concatenate([array, jnp.repeat(array[:1], number, 0)]) if number else array
