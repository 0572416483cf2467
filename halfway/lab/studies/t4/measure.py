"""How directions of attack of two models come to agree in the first steps of training."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses, populations
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
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


def _of_the_other(value: Array) -> Array:
    """Returns what the other model of a pair has in the place of `value`.

    What belongs to both is combined while it is there: kept for all steps it would take gigabytes
    on larger images.
    """
    return jax.lax.ppermute(value, populations.MODEL, [(0, 1), (1, 0)])


@functools.lru_cache(maxsize=16)
def _probe(settings: tuple[int, float], epsilon: float) -> populations.Probe:
    """Returns the probe of one attack; the same function for the same attack, compiled once."""

    def probe(
        program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
    ) -> dict[str, Array]:
        rows = samples["holdout"].indices[:NUM_EXAMPLES]
        x, labels = images[rows], samples["holdout"].labels[:NUM_EXAMPLES]

        def logits_fn(z):
            return program.apply_fn(params, z)

        def loss(z):
            return losses.margin(logits_fn(z), labels).sum()

        adversarial = attack_of(settings, epsilon)(logits_fn, key, x, labels).adversarial
        found = {ACCURACY: 1 - losses.error(logits_fn(x), labels).mean()}
        for name, own in zip(DIRECTIONS, (jax.grad(loss)(x), adversarial - x), strict=True):
            found[f"{name}.inner"] = jnp.vdot(own, _of_the_other(own))
            found[f"{name}.square"] = jnp.vdot(own, own)
        return found

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


def _early_directions(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns curves `[P, T]` over the first steps: two alignments between the models of a pair.

    And their mean accuracy, all on the same examples of S; `step` `[T]`. The condition has no label
    noise, so that the labels of S are clean. In the table, the first and the last value of each.
    """
    del key  # PGD without a random start draws nothing
    (one,) = population
    steps = steps_of(one.condition)
    probe = _probe(settings_of(config), float(config.attack.epsilon))
    seen = populations.observe(one.condition, pool, probe, steps=steps)
    arrays = {name: alignment(seen[f"{name}.inner"], seen[f"{name}.square"]) for name in DIRECTIONS}
    arrays[ACCURACY] = np.asarray(seen[ACCURACY], np.float64).mean(1)
    axes = {"pair": range(one.condition.num_pairs), "step": (steps[0], steps[-1])}
    parts = [
        tables.rows(curve[:, [0, -1]], axes, condition=one.condition.key, quantity=f"early_{name}")
        for name, curve in arrays.items()
    ]
    return Measured(tables.concat(parts), arrays | {"step": np.array(steps)})


EARLY_DIRECTIONS = Measurement("early_directions", 16, _early_directions)
