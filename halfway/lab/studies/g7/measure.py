"""When each example of a half is learned, by the model that trains on it and by the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import populations, stats
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key, Params, Sample

NUM_PERMUTATIONS = 100
"""Of learning times within a stratum, whose mean is the control of G7."""


def _correct(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns whether a model is right, as labelled, on each example of the own and other half."""
    del key
    return {
        name: jnp.argmax(program.apply_fn(params, images[samples[name].indices]), -1)
        == samples[name].labels
        for name in ("own", "other")
    }


def learning_steps(last: int, number: int = 60) -> tuple[int, ...]:
    """Returns the steps at which learning is looked at: 0, then at most `number`, ever wider."""
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


def _learning_times(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns rank correlations of when the other model and the own one learn a half's examples.

    For the half of B: θ_A never sees it, θ_B trains on it ("surrogate" A); and the reverse. Within
    class, and where labels are noisy within class and corrupted or not; permuted within the same,
    which is the control; and over all examples together.
    """
    del config
    (one,) = population
    condition = one.condition
    steps = learning_steps(condition.probe_steps[-1])
    seen = populations.observe(condition, pool, _correct, steps=steps)
    own, other = (learned_at(np.asarray(seen[name]), steps) for name in ("own", "other"))
    # θ_A on B beside θ_B on B, and θ_B on A beside θ_A on A.
    times = {"other": other, "own": own[:, ::-1]}
    clean, halves = np.asarray(pool.labels), (one.halves.b, one.halves.a)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    subsets = ("within class", "permuted within class", "all classes")
    values = np.zeros((condition.num_pairs, 2, len(subsets)))
    undefined = np.zeros((condition.num_pairs, 2))
    for p in range(condition.num_pairs):
        for side, half in enumerate(halves):
            valid = np.asarray(half.mask[p])
            labels = np.asarray(half.labels[p])[valid]
            corrupted = labels != clean[np.asarray(half.indices[p])[valid]]
            x, y = (times[name][p, side][valid] for name in ("other", "own"))
            within = stats.spearman(
                x, y, 2 * labels + corrupted, rng=rng, num_permutations=NUM_PERMUTATIONS
            )
            undefined[p, side] = within.num_undefined
            together = stats.spearman(x, y).estimate
            values[p, side] = within.estimate, within.permuted.mean(), together
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    named = {"condition": condition.key}
    table = tables.concat(
        [
            tables.rows(values, both | {"subset": subsets}, quantity="rank_correlation", **named),
            tables.rows(undefined, both, quantity="num_undefined_strata", **named),
        ]
    )
    arrays: dict[str, Any] = {f"learned_by_{name}": value for name, value in times.items()}
    arrays["labels"] = np.stack([np.asarray(half.labels) for half in halves], 1)
    return Measured(table, arrays)


LEARNING_TIMES = Measurement("learning_times", 5, _learning_times)
