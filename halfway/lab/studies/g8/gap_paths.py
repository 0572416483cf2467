"""How the gap between two halves opens along training, and the sum of what each step adds to it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr

from halfway import meeting, populations
from halfway.lab.measurements.context import Context, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

NUM_STEPS, LEARNING_RATE = 600, 0.05
"""Of full-batch gradient descent; small enough that a step is close to first order."""
ADAM_STEPS, ADAM_PAIRS = 200, 2
"""Of the walk that P1 is summed along, which is kept whole in memory."""
STRIDE = 10
"""Steps from one stored value to the next."""


def by_gradient_descent(condition: Condition) -> Condition:
    """Returns a condition trained by gradient descent on its whole half, at a constant rate."""
    return dataclasses.replace(
        condition,
        optimizer="sgd",
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        batch_size=condition.num_examples,
        capacity=condition.num_examples,
        probe_steps=(0, NUM_STEPS),
    )


def gap(program: Condition, params: Params, samples: Mapping[str, Sample], images: Array) -> Array:
    """Returns L_B − L_A in cross-entropy, of the other half and the own one.

    Args:
      program: whose `apply_fn` is used.
      params: of one model.
      samples: "own" and "other".
      images: `[N, H, W, D]` of the pool.
    """
    own_loss, other_loss = (
        populations.landscape_losses(program.apply_fn, params, images, samples[name])[
            "cross_entropy"
        ]
        for name in ("own", "other")
    )
    return other_loss - own_loss


def _widening(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns the gap, and ‖g_A‖² − ⟨g_A, g_B⟩, which is (1 − κ) tr Cov(g)/n: a probe."""
    del key
    products = populations.gradient_products(
        program.apply_fn, params, images, samples["own"], samples["other"]
    )
    return {
        "gap": gap(program, params, samples, images),
        "widening": products["own_own"] - products["own_other"],
    }


def _measure_descent(context: Context) -> xr.Dataset:
    """Returns the gap along gradient descent, and the sum that it should be.

    `gap` and `summed` (pair, model, step), every `STRIDE` steps. To first order each step adds
    η (1 − κ) tr Cov(g)/n, where gradients are those of the whole half.
    """
    condition = context.condition
    watched = context.along_training(_widening, range(condition.probe_steps[-1] + 1))
    gaps, widening = (np.asarray(watched[name], np.float64) for name in ("gap", "widening"))
    return _dataset(context, gaps, condition.learning_rate * widening[..., :-1])


DESCENT_GAP = Measurement("descent_gap", _measure_descent)


def _identity(member: Any, shared: Shared, program: Program) -> tuple[Array, Array]:
    """Returns gaps along the walks of a pair `[2, T]`, and what each step adds by P1 `[2, T − 1]`.

    The member is a pair's walks, leaves `[2, T, ...]`, and its samples.
    """

    def model(walk, samples):
        def landscape(name):
            return lambda params: populations.landscape_losses(
                program.apply_fn, params, shared.images, samples[name]
            )["cross_entropy"]

        descents = {
            name: meeting.path_identity(landscape(name), walk).descents for name in ("own", "other")
        }
        gaps = jax.lax.map(
            lambda params: gap(program.condition, params, samples, shared.images), walk
        )
        return gaps, descents["own"] - descents["other"]

    return jax.vmap(model)(*member)


def _measure_walk(context: Context) -> xr.Dataset:
    """Returns the gap along the condition's own training, and the sum that it should be.

    `gap` and `summed` (pair, model, step), every `STRIDE` of the first `ADAM_STEPS` steps, each of
    which adds what P1 says; NaN beyond the first `ADAM_PAIRS` pairs.
    """
    condition = context.condition
    number = min(ADAM_PAIRS, condition.num_pairs)
    steps = range(min(ADAM_STEPS, condition.probe_steps[-1]) + 1)
    walks = populations.retrace(condition, context.pool, steps=steps, num_pairs=number)
    samples = dict(zip(("own", "other"), context.population.samples(), strict=True))
    members = walks, jax.tree.map(lambda leaf: leaf[:number], samples)
    gaps, widening = context.over_members(_identity, members)
    rest = ((0, condition.num_pairs - number), (0, 0), (0, 0))
    padded = (
        np.pad(values.astype(np.float64), rest, constant_values=np.nan)
        for values in (gaps, widening)
    )
    return _dataset(context, *padded)


WALK_GAP = Measurement("walk_gap", _measure_walk)


def _dataset(context: Context, gaps: np.ndarray, widening: np.ndarray) -> xr.Dataset:
    """Returns the gaps `[P, 2, T]` and the sums of what `T − 1` steps add, every `STRIDE` steps."""
    summed = gaps[..., :1] + np.cumsum(np.pad(widening, ((0, 0), (0, 0), (1, 0))), -1)
    dims = "pair", "model", "step"
    return context.dataset(
        {"gap": (dims, gaps[..., ::STRIDE]), "summed": (dims, summed[..., ::STRIDE])},
        step=np.arange(0, gaps.shape[-1], STRIDE),
    )
