"""How the parts of an attack's perturbation on and off the data's subspace move both models."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import input_space, losses, populations, sharding, transfer
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key

NUM_COMPONENTS = 16
"""Principal directions that span the subspace."""
PARTS = ("on", "off", "whole")
"""Of the perturbation; all of one l2 norm on each example."""
KINDS = ("attack", "noise")
"""What has an energy share: the perturbation, and noise matched to it in l∞ and l2."""


@functools.partial(sharding.jit, static_argnames=("program", "settings"))
def _program(members, images, labels, epsilon, *, program: Condition, settings: tuple[int, float]):
    apply_fn = program.apply_fn

    def pair(member, images, labels, epsilon):
        key, params, rows, bases = member
        x, y = images[rows], labels[rows]
        attack = attack_of(settings, epsilon)
        swapped = jax.tree.map(lambda leaf: leaf[::-1], params)

        def direction(key, surrogate, target, basis):
            surrogate_fn = functools.partial(apply_fn, surrogate)
            key_attack, key_noise = jax.random.split(key)
            adversarial = attack(surrogate_fn, key_attack, x, y).adversarial
            found, points = _moved(key_noise, x, adversarial, basis)
            right, num = True, x.shape[0]
            # Clean points and those of all parts at once, so that a model is compiled once.
            every, y_every = jnp.concatenate([x, *points]), jnp.tile(y, 1 + len(PARTS))
            target_fn = functools.partial(apply_fn, target)
            for who, fn in (("own", surrogate_fn), ("other", target_fn)):
                seen = transfer.evaluate(fn, every, y_every, loss_fn=losses.margin)
                loss, correct = (
                    leaf.reshape(1 + len(PARTS), num) for leaf in (seen.loss, seen.correct)
                )
                right = right & correct[0]
                for name, after, kept in zip(PARTS, loss[1:], correct[1:], strict=True):
                    found[f"{name}.increase.{who}"] = (after - loss[0]).sum()
                    found[f"{name}.wrong.{who}"] = ~kept
            for name in [name for name in found if ".wrong." in name]:
                fooled = (found.pop(name) & right).sum()
                found[name.replace("wrong", "fooled")] = fooled
            found["num_right"] = jnp.asarray(right).sum()
            return found

        return jax.vmap(direction)(jax.random.split(key), params, swapped, bases)

    # One pair after another: points are four times as many as examples, for two models.
    run = sharding.spread(pair, at_once=1)
    return run(members, images, labels, epsilon)


def _moved(
    key: Key, x: Array, adversarial: Array, basis: Array
) -> tuple[dict[str, Array], list[Array]]:
    """Returns sums about the parts of a perturbation, and the points of `PARTS` at equal norm.

    The norm is that of the whole perturbation, or on examples where the box does not let a part
    become that long, the longest that all of them can be.

    Args:
      key: consumed.
      x: `[B, ...]`, clean.
      adversarial: `[B, ...]`.
      basis: `[k, d]`, orthonormal.
    """
    flat = x.reshape(x.shape[0], -1)
    delta = adversarial.reshape(flat.shape) - flat
    norm = jnp.linalg.norm(delta, axis=-1)
    directions = jnp.stack([*input_space.split_on_subspace(delta, basis), delta])
    along = jax.vmap(input_space.rescale_parts, (None, 0, None))
    common = along(flat, directions, norm).length.min(0)
    moved = along(flat, directions, common)
    noise = transfer.matched_noise(key, flat, adversarial.reshape(flat.shape)).points - flat
    found = {"num_examples": jnp.asarray(x.shape[0]), "num_shortened": (common < 0.99 * norm).sum()}
    for name, move in zip(KINDS, (delta, noise), strict=True):
        on, all_of_it = input_space.subspace_energy(move, basis)
        found |= {f"{name}.energy.on": on.sum(), f"{name}.energy.all": all_of_it.sum()}
    for name, points, length in zip(PARTS, *moved, strict=True):
        on, all_of_it = input_space.subspace_energy(points - flat, basis)
        found |= {f"{name}.energy.on": on.sum(), f"{name}.energy.all": all_of_it.sum()}
        found[f"{name}.unequal"] = (jnp.abs(length - common) > 0.01 * common).sum()
    return found, [points.reshape(x.shape) for points in moved.points]


def bases(population: Population, images: np.ndarray, num_components: int) -> np.ndarray:
    """Returns `[P, 2, k, d]` the principal directions of the half that each model trained on.

    Args:
      population: whose halves are taken.
      images: `[N, ...]` of the pool.
      num_components: k, lowered to what the data have.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    number = min(num_components, flat.shape[1] - 1, population.condition.num_examples - 1)
    own, _ = population.samples()
    rows, mask = np.asarray(own.indices), np.asarray(own.mask)
    found = [
        [
            input_space.principal_subspace(flat[rows[p, s][mask[p, s]]], number).basis
            for s in range(2)
        ]
        for p in range(len(rows))
    ]
    return np.asarray(found, np.float32)


def _manifold(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns sums over S, labels clean, about the parts of each attack's perturbation.

    The subspace is spanned by 16 principal directions of the images that the surrogate trained on:
    neither S nor the target's half is looked at. `part_increase` of the margin loss, of the own and
    the other model, at the part "on", "off" and the "whole", all of equal norm on each example;
    `part_fooled` of `part_right`, which both models have right; `part_energy`, "on" the subspace
    and "all", of the attack, matched noise, and the parts as they are after clipping;
    `part_examples` "all", "shortened" (the box kept a part below the norm of the perturbation) and
    "unequal" in norm by more than 1 %.
    """
    (one,) = population
    condition = one.condition
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(jnp.arange(condition.num_pairs))
    basis = bases(one, np.asarray(pool.images), NUM_COMPONENTS)
    found = _program(
        (keys, one.params, one.halves.s.indices, jnp.asarray(basis)),
        jnp.asarray(pool.images, jnp.float32),
        jnp.asarray(pool.labels),
        jnp.float32(config.attack.epsilon),
        program=populations.program_of(condition),
        settings=settings_of(config),
    )
    sums = {name: np.asarray(value, np.float64) for name, value in found.items()}
    sums = {name: np.where(one.finite[:, None], value, np.nan) for name, value in sums.items()}
    axes = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    named = {"condition": condition.key, "budget": float(config.attack.epsilon)}
    expected = np.full((condition.num_pairs, 2), basis.shape[-2] / basis.shape[-1])
    columns: dict[tuple[str, str], np.ndarray] = {
        ("part_examples", "all"): sums["num_examples"],
        ("part_examples", "shortened"): sums["num_shortened"],
        ("part_right", "both_correct"): sums["num_right"],
        ("part_energy", "expected"): expected,
    }
    for name in PARTS:
        columns["part_examples", f"unequal.{name}"] = sums[f"{name}.unequal"]
        for who in ("own", "other"):
            columns["part_increase", f"{name}.{who}"] = sums[f"{name}.increase.{who}"]
            columns["part_fooled", f"{name}.{who}"] = sums[f"{name}.fooled.{who}"]
    for name in (*KINDS, *PARTS):
        for what in ("on", "all"):
            columns["part_energy", f"{name}.{what}"] = sums[f"{name}.energy.{what}"]
    parts = [
        tables.rows(values, axes, quantity=quantity, subset=subset, **named)
        for (quantity, subset), values in columns.items()
    ]
    return Measured(tables.concat(parts))


MANIFOLD_PARTS = Measurement("manifold_parts", 22, _manifold)
