"""How directions of attack of two models come to agree in the first steps of training."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import losses, populations
from halfway.lab.measurements.context import Context, Program
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

LAST_STEP = 100
"""The step whose values are the final ones."""
NUM_EXAMPLES = 200
"""Of S that are looked at, at most: the same for both models of a pair and at every step."""
DIRECTIONS = ("gradient", "perturbation")
"""Input gradients of the margin loss, and the finished perturbations of the config's attack."""
ACCURACY = "accuracy"


def steps_of(condition: Condition) -> tuple[int, ...]:
    """Returns every step from 0 to `LAST_STEP`, or to the end of training where that is before."""
    return tuple(range(min(LAST_STEP, condition.probe_steps[-1]) + 1))


def exchange(value: Array) -> Array:
    """Returns what the other model of a pair has in the place of `value`.

    What belongs to both is combined while both are there: directions kept for all steps would take
    gigabytes on larger images.
    """
    return jax.lax.ppermute(value, populations.MODEL, [(0, 1), (1, 0)])


@functools.lru_cache(maxsize=16)
def probe_of(program: Program, epsilon: float) -> populations.Probe:
    """Returns the probe of an attack; the same function for the same attack, compiled once.

    Args:
      program: has the attack.
      epsilon: its budget.
    """

    def probe(
        condition: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
    ) -> dict[str, Array]:
        sample = samples["holdout"]
        rows, labels = sample.indices[:NUM_EXAMPLES], sample.labels[:NUM_EXAMPLES]
        x = images[rows]
        logits_fn = functools.partial(condition.apply_fn, params)

        def total_margin(x: Array) -> Array:
            return losses.margin(logits_fn(x), labels).sum()

        adversarial = program.attack(epsilon)(logits_fn, key, x, labels).adversarial
        values = {ACCURACY: 1 - losses.error(logits_fn(x), labels).mean()}
        directions = jax.grad(total_margin)(x), adversarial - x
        for name, direction in zip(DIRECTIONS, directions, strict=True):
            values[f"{name}_inner"] = jnp.vdot(direction, exchange(direction))
            values[f"{name}_square"] = jnp.vdot(direction, direction)
        return values

    return probe


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
    """Returns curves over the first steps: two alignments between the models of a pair.

    `gradient`, `perturbation` and the mean `accuracy` of both models (pair, step), all on the same
    examples of S. The condition has no label noise, so that the labels of S are clean.
    """
    steps = steps_of(context.condition)
    probe = probe_of(context.program(), context.config.attack.epsilon)
    probed = context.along_training(probe, steps)
    curves = {
        name: alignment(probed[f"{name}_inner"], probed[f"{name}_square"]) for name in DIRECTIONS
    }
    curves[ACCURACY] = np.asarray(probed[ACCURACY], np.float64).mean(1)
    numbers = {name: (("pair", "step"), curve) for name, curve in curves.items()}
    return context.dataset(numbers, step=steps)


EARLY_DIRECTIONS = Measurement("early_directions", _measure)
