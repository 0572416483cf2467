"""Replicates of a simulation, in chunks of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from halfway.types import Key


def map_replicates(fn: Callable[[Key], Any], keys: Key, *, at_once: int) -> Any:
    """Returns a function of each key, leaves `[R, ...]`, in chunks of at most so many.

    All chunks have one size: the keys are padded, and the padding is cut off again. `lax.map` with
    a `batch_size` that does not divide R has a second, independent program for the rest. On a CPU
    both may run at once, and where both factor matrices, each waits inside a thread of XLA's pool
    for threads of the same pool: with two threads they wait for ever (jax 0.10, two cores).

    Args:
      fn: of one key.
      keys: `[R]`, R at least 1.
      at_once: the largest size of a chunk, at least 1; static.
    """
    number = keys.shape[0]
    num_chunks = -(-number // at_once)
    size = -(-number // num_chunks)
    padded = keys[jnp.arange(num_chunks * size) % number].reshape(num_chunks, size)
    tree = lax.map(jax.vmap(fn), padded)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:number], tree)
