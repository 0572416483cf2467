"""Surrogates crossed with targets, of one population or of several, on what none has trained on.

A crossing is an attack on a block of surrogates that is shown to every target. Attacks are made
once, whatever targets there are; programs are of an architecture, not of two.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from halfway import attacks, losses, transfer
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import Context, MemberFn, Program, Shared
from halfway.lab.study.conditions import condition
from halfway.populations import Condition
from halfway.transfer import Evaluation
from halfway.types import Array, Params

NUM_CROSSED = 1000
"""Of S that are attacked, at most."""
SURROGATE, TARGET = 0, 1
"""Places in a pair: θ_A attacks, θ_B is attacked; of one pair they are not independent."""


def common_condition(config: RunConfig, num_pairs: int, **fields: Any) -> Condition:
    """Returns the config's first condition with one S for all pairs, which no model has seen.

    Models of different pairs, and of different conditions of this kind, can then be compared on S.

    Args:
      config: of the run.
      num_pairs: P.
      **fields: of the condition that differ.
    """
    first = condition(config, config.architectures[0])
    return dataclasses.replace(
        first,
        num_pairs=num_pairs,
        common_holdout=True,
        probe_steps=(0, first.probe_steps[-1]),  # on the way nobody looks
        **fields,
    )


def example_rows(context: Context) -> Array:
    """Returns `[B]` rows of the pool: the examples of S that all models are compared on."""
    return context.population.halves.s.indices[0][:NUM_CROSSED]


def side(params: Params, place: int) -> Params:
    """Returns θ_A or θ_B of every pair, leaves `[P, ...]`, of parameters `[P, 2, ...]`.

    Args:
      params: of a population.
      place: `SURROGATE` or `TARGET`.
    """
    return jax.tree.map(lambda leaf: leaf[:, place], params)


def blocks(params: Params, size: int) -> Params:
    """Returns disjoint blocks `[R, size, ...]` of models `[K, ...]`; what is left over is left out.

    Args:
      params: leaves `[K, ...]`.
      size: of a block, at least 1.
    """

    def cut(leaf: Array) -> Array:
        number = len(leaf) // size
        return leaf[: number * size].reshape(number, size, *leaf.shape[1:])

    return jax.tree.map(cut, params)


@functools.cache  # a new function would be compiled again
def _attack_fn(how: str) -> MemberFn:
    """Returns the attack on one block of surrogates together."""

    def attack_block(block: Params, shared: Shared, program: Program) -> Array:
        x, labels = shared.images[shared.extra], shared.labels[shared.extra]
        logits_fn, loss_fn = attacks.ensemble(program.apply_fn, block, how, losses.margin)
        # PGD from the clean image has nothing random.
        made = program.attack(shared.epsilon, loss_fn)(logits_fn, jax.random.key(0), x, labels)
        return made.adversarial

    return attack_block


def attack(context: Context, surrogates: Params, how: str = "logits") -> Array:
    """Returns the points `[R, B, ...]` that attacks on blocks of surrogates find.

    Args:
      context: whose first population the surrogates have the architecture of.
      surrogates: leaves `[R, k, ...]`, a block of one for single models.
      how: see `attacks.ensemble`.
    """
    points = context.over_members(_attack_fn(how), surrogates, shared_extra=example_rows(context))
    return jnp.asarray(points)


def _evaluate(model: Params, shared: Shared, program: Program) -> Evaluation:
    """Returns what one model makes of sets of points, `[R, B]`."""
    rows, points = shared.extra
    logits_fn = functools.partial(program.apply_fn, model)
    return jax.lax.map(lambda x: transfer.evaluate(logits_fn, x, shared.labels[rows]), points)


def evaluate(
    context: Context, models: Params, points: Array, condition: Condition | None = None
) -> Evaluation:
    """Returns what models make of sets of points, `[M, R, B]`.

    Args:
      context: whose S the points are of.
      models: leaves `[M, ...]`.
      points: `[R, B, ...]`.
      condition: that the models are of; that of the first population by default.
    """
    extra = example_rows(context), points
    return context.over_members(_evaluate, models, condition=condition, shared_extra=extra)
