"""Functions of whole pytrees."""

from typing import Any

import jax
import jax.numpy as jnp

from halfway.types import Array


def is_finite(tree: Any) -> Array:
    """Returns whether every number of a pytree is finite, a scalar bool."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()
