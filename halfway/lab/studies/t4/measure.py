"""How directions of attack of two models come to agree in the first steps of training."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import losses, populations
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

NUM_EXAMPLES = 1000
"""Of S that are looked at, at most: the same for both models of a pair and at every step. S is in
random order; input gradients of all of a large S would take gigabytes."""
DIRECTIONS = {"margin": losses.margin, "cross_entropy": losses.cross_entropy}
"""The losses whose input gradients are compared."""
ACCURACY = "accuracy"


def exchange(value: Array) -> Array:
    """Returns what the other model of a pair has in the place of `value`.

    What belongs to both is combined while both are there: directions kept for all steps would take
    gigabytes on larger images.
    """
    return jax.lax.ppermute(value, populations.MODEL, [(0, 1), (1, 0)])


def _probe(
    condition: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns accuracy, and the sums that alignments are made of, of one model on S."""
    del key
    sample = samples["holdout"]
    rows, labels = sample.indices[:NUM_EXAMPLES], sample.labels[:NUM_EXAMPLES]
    x = images[rows]
    logits_fn = functools.partial(condition.apply_fn, params)
    values = {ACCURACY: 1 - losses.error(logits_fn(x), labels).mean()}
    for name, loss_fn in DIRECTIONS.items():
        gradient = jax.grad(lambda x, loss_fn=loss_fn: loss_fn(logits_fn(x), labels).sum())(x)
        values[f"{name}_inner"] = jnp.vdot(gradient, exchange(gradient))
        values[f"{name}_square"] = jnp.vdot(gradient, gradient)
    return values


def alignment(inner: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Returns E⟨u, v⟩ / √(E‖u‖² E‖v‖²) `[P, T]` (Definition 2), NaN where a norm is 0.

    Args:
      inner: `[P, 2, T]` sums of ⟨u, v⟩ over examples, as either model of a pair has them.
      square: `[P, 2, T]` sums of ‖u‖² and of ‖v‖².
    """
    inner, square = (np.asarray(values, np.float64) for values in (inner, square))
    norms = np.sqrt(square.prod(1))
    return np.where(norms > 0, inner.mean(1) / np.where(norms > 0, norms, 1.0), np.nan)


def _measure(context: Context) -> xr.Dataset:
    """Returns curves over all steps of a short training: alignments between the models of a pair.

    `margin` and `cross_entropy`, of the input gradients of these losses, and the mean `accuracy` of
    both models (pair, step), all on the same examples of S. The condition has no label noise, so
    that the labels of S are clean.
    """
    steps = tuple(range(context.condition.probe_steps[-1] + 1))
    probed = context.along_training(_probe, steps)
    curves = {
        name: alignment(probed[f"{name}_inner"], probed[f"{name}_square"]) for name in DIRECTIONS
    }
    curves[ACCURACY] = np.asarray(probed[ACCURACY], np.float64).mean(1)
    numbers = {name: (("pair", "step"), curve) for name, curve in curves.items()}
    return context.dataset(numbers, step=steps)


EARLY_DIRECTIONS = Measurement("early_directions", _measure)
