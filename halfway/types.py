"""Aliases and dimension letters that the whole library shares.

Shapes in docstrings use these letters, always in this order from the left:

- `M`: members of an ensemble
- `P`: pairs of a population; `[P, 2]` is (θ_A, θ_B) of each
- `T`: points on a walk or a path
- `K`: surrogates
- `E`: budgets
- `B`: examples of a batch
- `N`: examples of a data set, a half or a sample
- `C`: classes
- `H W D`: height, width and depth (channels) of an image
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

Array = jax.Array
Key = jax.Array
"""A PRNG key; every function that takes one consumes it."""
Params = Any
"""A pytree of arrays: the parameters of one model, or of many along leading axes."""
LogitsFn = Callable[[Array], Array]
"""Inputs `[B, ...]` to logits `[B, C]`, the form in which a model reaches attacks; several models
at once have logits `[B, M, C]`."""
ApplyFn = Callable[[Params, Array], Array]
"""Parameters and inputs `[B, ...]` to logits `[B, C]`."""
ScalarFn = Callable[[Params], Array]
"""Parameters to a scalar: a landscape."""
LossFn = Callable[[Array, Array], Array]
"""Logits `[B, C]` and labels `[B]` to a loss per example `[B]`."""


class Sample(NamedTuple):
    """Examples of a pool, the valid ones first.

    Attributes:
      indices: `[N]` int32, rows of the pool.
      labels: `[N]` int32, as labelled, noise included.
      mask: `[N]` bool, false for padding.
    """

    indices: Array
    labels: Array
    mask: Array


def is_traced(value: Any) -> bool:
    """Returns whether the value is a tracer, which has no number to check."""
    return isinstance(value, Tracer)
