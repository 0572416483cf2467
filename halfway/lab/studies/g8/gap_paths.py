"""How the gap between two halves opens along training, and the sum of what each step adds to it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import meeting, populations, sharding
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key, Params, Sample

NUM_STEPS, LEARNING_RATE = 600, 0.05
"""Of full-batch gradient descent; small enough that a step is close to first order."""
ADAM_STEPS, ADAM_PAIRS = 200, 2
"""Of the walk that P1 is summed along, which is kept whole in memory."""
EVERY = 10
"""Steps between two rows of the table."""


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
    """Returns L_B − L_A in cross-entropy."""
    own, other = (
        populations.landscape_losses(program.apply_fn, params, images, samples[name])[
            "cross_entropy"
        ]
        for name in ("own", "other")
    )
    return other - own


def _widening(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns the gap, and ‖g_A‖² − ⟨g_A, g_B⟩: by κ's definition (1 − κ) tr Cov(g)/n."""
    del key
    products = populations.gradient_products(
        program.apply_fn, params, images, samples["own"], samples["other"]
    )
    return {
        "gap": gap(program, params, samples, images),
        "widening": products["own_own"] - products["own_other"],
    }


@functools.partial(sharding.jit, static_argnames=("program",))
def _identity_program(members, images, *, program: Condition):
    """Gaps along recorded walks `[P, 2, T]`, and what each step adds by P1, `[P, 2, T - 1]`."""

    def model(walk, samples):
        def landscape(name):
            return lambda params: populations.landscape_losses(
                program.apply_fn, params, images, samples[name]
            )["cross_entropy"]

        descents = {
            name: meeting.path_identity(landscape(name), walk).descents for name in ("own", "other")
        }
        gaps = jax.lax.map(lambda params: gap(program, params, samples, images), walk)
        return gaps, descents["own"] - descents["other"]

    return sharding.spread(lambda member: jax.vmap(model)(*member))(members)


def _gap_path(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns the gap along training and the sum that it should be, by two optimizers.

    By full-batch gradient descent, each step adding η (1 − κ) tr Cov(g)/n to first order; and by
    the second condition's own optimizer, each step adding what P1 says.
    """
    del key, config
    descent, own = population
    images = jnp.asarray(pool.images, jnp.float32)
    condition = descent.condition
    steps = tuple(range(condition.probe_steps[-1] + 1))
    seen = populations.observe(condition, pool, _widening, steps=steps)
    gaps = np.asarray(seen["gap"], np.float64)
    widening = condition.learning_rate * np.asarray(seen["widening"], np.float64)[..., :-1]
    parts = [_rows(condition, gaps, widening)]

    number = min(ADAM_PAIRS, own.condition.num_pairs)
    last = min(ADAM_STEPS, own.condition.probe_steps[-1])
    walks = populations.retrace(own.condition, pool, steps=tuple(range(last + 1)), num_pairs=number)
    samples = dict(zip(("own", "other"), own.samples(), strict=True))
    members = (walks, jax.tree.map(lambda leaf: leaf[:number], samples))
    found = _identity_program(members, images, program=populations.program_of(own.condition))
    parts.append(_rows(own.condition, *(np.asarray(v, np.float64) for v in found)))
    return Measured(tables.concat(parts))


def _rows(condition: Condition, gaps: np.ndarray, widening: np.ndarray) -> Any:
    """Returns the gap `[P, 2, T]` and the sums of `[P, 2, T - 1]` at every `EVERY`-th step."""
    summed = gaps[..., :1] + np.concatenate(
        [np.zeros((*widening.shape[:2], 1)), np.cumsum(widening, -1)], -1
    )
    axes = {
        "quantity": ("path_gap", "path_sum"),
        "pair": range(gaps.shape[0]),
        "surrogate": tables.HALVES,
        "step": range(0, gaps.shape[-1], EVERY),
    }
    values = np.stack([gaps, summed])[..., ::EVERY]
    return tables.rows(values, axes, condition=condition.key)


GAP_PATH = Measurement("gap_path", 13, _gap_path)
