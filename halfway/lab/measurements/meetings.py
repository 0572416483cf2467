"""How far an attack on each model of a pair moves the other one: M_x, without controls."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, losses, populations, sharding, transfer
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key, LossFn

SUBSET: transfer.Denominator = "both_correct"
"""Of the success rates that stand beside M_x."""


def attack_of(
    settings: tuple[int, float], epsilon: float | Array, loss_fn: LossFn = losses.margin
) -> transfer.Attack:
    """Returns the config's attack: PGD from the clean image, in l∞.

    Args:
      settings: see `settings_of`.
      epsilon: the budget.
      loss_fn: attack loss; that of an ensemble is its own.
    """
    num_steps, relative_step = settings
    return functools.partial(
        attacks.pgd,
        threat=attacks.linf(epsilon),
        loss_fn=loss_fn,
        num_steps=num_steps,
        relative_step=relative_step,
    )


def settings_of(config: RunConfig) -> tuple[int, float]:
    """Returns what of the config's attack is part of a program: steps, and their relative size."""
    return config.attack.num_steps, config.attack.relative_step


@functools.partial(sharding.jit, static_argnames=("program", "settings"))
def _program(members, images, labels, epsilon, *, program: Condition, settings: tuple[int, float]):
    apply_fn = program.apply_fn

    def pair(member, images, labels, epsilon):
        key, params, rows = member
        x, y = images[rows], labels[rows]
        attack = attack_of(settings, epsilon)
        # Its controls are not read and so not computed.
        matrix = transfer.transfer_matrix(
            apply_fn, params, apply_fn, params, key, x, y, attack=attack
        )

        def size(params):
            slope = jax.grad(lambda z: losses.margin(apply_fn(params, z), y).sum())(x)
            return jnp.abs(slope).sum()

        return {
            "increase": transfer.increase(matrix).sum(-1),
            "attack": transfer.success(matrix, SUBSET),
            "gradient": jax.vmap(size)(params),
        }

    return sharding.spread(pair)(members, images, labels, epsilon)


def _meeting(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns sums over S, labels clean, of what the attack on each model does to both of a pair.

    `increase` of the margin loss, `num_fooled` of `num_examples` that both had right, all at the
    budget that decides, and `gradient_norm`, Σ_x ‖∇_x margin‖₁ of the surrogate: the dual norm of
    the attack's, so that ε times it is the increase to first order.
    """
    (one,) = population
    condition = one.condition
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels)
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(jnp.arange(condition.num_pairs))
    found = _program(
        (keys, one.params, one.halves.s.indices),
        images,
        labels,
        jnp.float32(config.attack.epsilon),
        program=populations.program_of(condition),
        settings=settings_of(config),
    )
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    cells = both | {"target": tables.HALVES}
    named = {"condition": condition.key, "budget": float(config.attack.epsilon)}
    # A model that diverged misclassifies everything: that is no success.
    alive = np.where(one.finite, 1.0, np.nan)[:, None, None]
    attacked = named | {"attack": "attack"}
    rate = found["attack"]
    parts = [
        tables.rows(
            alive * np.asarray(values, np.float64), cells, quantity=name, subset=subset, **attacked
        )
        for name, values, subset in (
            ("increase", found["increase"], "all"),
            ("num_fooled", rate.num_fooled, SUBSET),
            ("num_examples", rate.num_examples, SUBSET),
        )
    ]
    gradient = alive[..., 0] * np.asarray(found["gradient"], np.float64)
    parts.append(tables.rows(gradient, both, quantity="gradient_norm", subset="all", **named))
    return Measured(tables.concat(parts))


MEETING = Measurement("meeting", 14, _meeting)
