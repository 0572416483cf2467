"""When each example of a half is learned, by the model that trains on it and by the other."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import stats
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

NUM_LOOKS = 61
"""At the models along training, the start included."""
NUM_PERMUTATIONS = 100
"""Of learning times within a class, whose mean is shown beside G7's correlations."""
WITHIN, PERMUTED = "within class", "permuted within class"
"""Which learning times are compared."""


def _correct(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns whether a model is right, as labelled, on each example of both halves: a probe."""
    del key
    return {
        name: jnp.argmax(program.apply_fn(params, images[samples[name].indices]), -1)
        == samples[name].labels
        for name in ("own", "other")
    }


def learning_steps(last: int, number: int = NUM_LOOKS) -> tuple[int, ...]:
    """Returns the steps at which learning is looked at, from 0 to the last, ever wider apart.

    There are exactly `number`, or all steps where training has fewer. Each is as far from the one
    before as it takes to come to the last by equal ratios, at least one step.

    Args:
      last: of training.
      number: of looks, at least 2.
    """
    steps = [0, 1]
    for left in range(min(number, last + 1) - 2, 0, -1):
        ratio = (last / steps[-1]) ** (1 / left)
        # No step is left out before there is room for all that follow.
        steps.append(min(max(steps[-1] + 1, round(steps[-1] * ratio)), last - left + 1))
    return tuple(steps)


def learned_at(correct: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Returns the first step from which an example is right for good; beyond the last if never.

    Args:
      correct: `[..., T, N]` bool at the steps.
      steps: T, increasing.

    Returns:
      `[..., N]`.
    """
    # Right from t on is right at t and at all that follow.
    stays = np.flip(np.logical_and.accumulate(np.flip(correct, -2), -2), -2)
    first = np.where(stays.any(-2), stays.argmax(-2), len(steps))
    return np.array([*steps, steps[-1] + 1])[first]


def _measure(context: Context) -> xr.Dataset:
    """Returns rank correlations of when both models of a pair learn the examples of a half.

    For the half of B: θ_A, the surrogate A, and θ_B, which trains on it; and the reverse. In a
    population of overlap 1 both train on it. `rank_correlation` (pair, surrogate, times) within
    class, the mean over classes weighted by their examples; and the mean over permutations of one
    of the two within class. `num_undefined_strata` (pair, surrogate): classes without an order. Of
    each example of the half, padding included, `learned_by_other`, `learned_by_own` and `label`
    (pair, surrogate, example).
    """
    condition, halves = context.condition, context.population.halves
    steps = learning_steps(condition.probe_steps[-1])
    correct = context.along_training(_correct, steps)
    own_times, other_times = (
        learned_at(np.asarray(correct[name]), steps) for name in ("own", "other")
    )
    # θ_A on B beside θ_B on B, and θ_B on A beside θ_A on A.
    times = {"other": other_times, "own": own_times[:, ::-1]}
    labels, mask = (
        np.stack([np.asarray(getattr(half, name)) for half in (halves.b, halves.a)], 1)
        for name in ("labels", "mask")
    )
    rng = context.rng()
    correlation = np.zeros((condition.num_pairs, 2, 2))
    undefined = np.zeros((condition.num_pairs, 2))
    for place in np.ndindex(undefined.shape):
        valid = mask[place]
        x, y, classes = (values[place][valid] for values in (*times.values(), labels))
        within = stats.spearman(x, y, classes, rng=rng, num_permutations=NUM_PERMUTATIONS)
        undefined[place] = within.num_undefined
        correlation[place] = within.estimate, within.permuted.mean()
    examples = "pair", "surrogate", "example"
    return context.dataset(
        {
            "rank_correlation": (("pair", "surrogate", "times"), correlation),
            "num_undefined_strata": (("pair", "surrogate"), undefined),
        },
        {
            "learned_by_other": (examples, times["other"].astype(np.int32)),
            "learned_by_own": (examples, times["own"].astype(np.int32)),
            "label": (examples, labels.astype(np.int16)),
        },
        times=(WITHIN, PERMUTED),
    )


LEARNING_TIMES = Measurement("learning_times", _measure)
