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

NUM_PERMUTATIONS = 100
"""Of learning times within a stratum, whose mean is the control of G7."""
WITHIN, PERMUTED, ALL = "within class", "permuted within class", "all classes"
"""Which examples are put in order together."""


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


def learning_steps(last: int, number: int = 60) -> tuple[int, ...]:
    """Returns the steps at which learning is looked at: 0, then at most `number`, ever wider.

    Args:
      last: of training.
      number: of steps, at most.
    """
    return (0, *np.unique(np.round(np.geomspace(1, last, number)).astype(int)).tolist())


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
    """Returns rank correlations of when the other model and the own one learn a half's examples.

    For the half of B: θ_A never sees it, θ_B trains on it (surrogate A); and the reverse.
    `rank_correlation` (pair, surrogate, order): within class, and where labels are noisy within
    class and corrupted or not; permuted within the same, which is the control; and over all
    examples together. `num_undefined_strata` (pair, surrogate): classes without an order. Of each
    example of the half, padding included, `learned_by_other`, `learned_by_own` and `label` (pair,
    surrogate, example).
    """
    condition, halves = context.condition, context.population.halves
    steps = learning_steps(condition.probe_steps[-1])
    correct = context.along_training(_correct, steps)
    own_times, other_times = (
        learned_at(np.asarray(correct[name]), steps) for name in ("own", "other")
    )
    # θ_A on B beside θ_B on B, and θ_B on A beside θ_A on A.
    times = {"other": other_times, "own": own_times[:, ::-1]}
    indices, labels, mask = (
        np.stack([np.asarray(leaf) for leaf in leaves], 1)
        for leaves in zip(halves.b, halves.a, strict=True)
    )
    corrupted = labels != np.asarray(context.pool.labels)[indices]
    rng = context.rng()
    correlation = np.zeros((condition.num_pairs, 2, 3))
    undefined = np.zeros((condition.num_pairs, 2))
    for place in np.ndindex(undefined.shape):
        valid = mask[place]
        x, y = (times[name][place][valid] for name in ("other", "own"))
        strata = (2 * labels + corrupted)[place][valid]
        within = stats.spearman(x, y, strata, rng=rng, num_permutations=NUM_PERMUTATIONS)
        undefined[place] = within.num_undefined
        together = stats.spearman(x, y).estimate
        correlation[place] = within.estimate, within.permuted.mean(), together
    examples = "pair", "surrogate", "example"
    return context.dataset(
        {
            "rank_correlation": (("pair", "surrogate", "order"), correlation),
            "num_undefined_strata": (("pair", "surrogate"), undefined),
        },
        {
            "learned_by_other": (examples, times["other"].astype(np.int32)),
            "learned_by_own": (examples, times["own"].astype(np.int32)),
            "label": (examples, labels.astype(np.int16)),
        },
        order=(WITHIN, PERMUTED, ALL),
    )


LEARNING_TIMES = Measurement("learning_times", _measure)
