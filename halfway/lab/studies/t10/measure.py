"""How the parts of an attack's perturbation on and off the data's subspace move both models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from halfway import input_space, losses, transfer
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.populations import Population
from halfway.types import Array, Key

NUM_COMPONENTS = 16
"""Principal directions that span the subspace."""
PARTS = ("on", "off", "whole")
"""Of the perturbation; all of one l2 norm on each example."""
KINDS = ("attack", "noise")
"""The perturbation as the attack made it, and noise matched to it in l∞ and l2."""
MOVES = (*KINDS, *PARTS)
"""What has an energy on the subspace; the parts as they are after clipping."""


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns sums over S for the attack on each model, `[2, ...]` by surrogate.

    `pair.extra` are the bases `[2, k, d]` of both surrogates.
    """
    rows = pair.halves.s.indices
    x, labels = shared.images[rows], shared.labels[rows]
    attack = program.attack(shared.epsilon)

    def direction(key, surrogate, basis):
        surrogate_fn = functools.partial(program.apply_fn, surrogate)
        key_attack, key_noise = jax.random.split(key)
        adversarial = attack(surrogate_fn, key_attack, x, labels).adversarial
        sums, points = move_along_parts(key_noise, x, adversarial, basis)
        # Clean points and those of all parts at once, so that a model is compiled once.
        places, place_labels = jnp.concatenate([x, *points]), jnp.tile(labels, 1 + len(PARTS))

        def outcomes(target):
            target_fn = functools.partial(program.apply_fn, target)
            evaluated = transfer.evaluate(target_fn, places, place_labels, loss_fn=losses.margin)
            shape = 1 + len(PARTS), x.shape[0]
            return evaluated.loss.reshape(shape), evaluated.correct.reshape(shape)

        # One model after the other: half the memory of both at once.
        loss, correct = jax.lax.map(outcomes, pair.params)
        right = correct[:, 0].all(0)
        return sums | {
            "increase": (loss[:, 1:] - loss[:, :1]).sum(-1),
            "num_fooled": (~correct[:, 1:] & right[None, None]).sum(-1),
            "num_right": right.sum(),
        }

    return jax.vmap(direction)(jax.random.split(pair.key), pair.params, pair.extra)


def move_along_parts(
    key: Key, x: Array, adversarial: Array, basis: Array
) -> tuple[dict[str, Array], Array]:
    """Returns sums about the parts of a perturbation, and points `[3, B, ...]` at equal norm.

    The norm is that of the whole perturbation, or on examples where the box does not let a part
    become that long, the longest that all of them can be.

    Args:
      key: consumed.
      x: `[B, ...]`, clean.
      adversarial: `[B, ...]`.
      basis: `[k, d]`, orthonormal.

    Returns:
      sums over examples: `num_examples`, `num_shortened`, `num_unequal` `[3]` by part, `energy_on`
      the subspace and all `energy` `[5]` by move; and the points of `PARTS`.
    """
    flat = x.reshape(x.shape[0], -1)
    delta = adversarial.reshape(flat.shape) - flat
    norm = jnp.linalg.norm(delta, axis=-1)
    directions = jnp.stack([*input_space.split_on_subspace(delta, basis), delta])
    along = jax.vmap(input_space.rescale_parts, (None, 0, None))
    common = along(flat, directions, norm).length.min(0)
    moved = along(flat, directions, common)
    noise = transfer.matched_noise(key, flat, adversarial.reshape(flat.shape)).points - flat
    moves = jnp.stack([delta, noise, *(moved.points - flat[None])])
    energy_on, energy = input_space.subspace_energy(moves, basis)
    sums = {
        "num_examples": jnp.int32(x.shape[0]),
        "num_shortened": (common < 0.99 * norm).sum(),
        "num_unequal": (jnp.abs(moved.length - common[None]) > 0.01 * common[None]).sum(-1),
        "energy_on": energy_on.sum(-1),
        "energy": energy.sum(-1),
    }
    return sums, moved.points.reshape(len(PARTS), *x.shape)


def bases_of(population: Population, images: ArrayLike, num_components: int) -> np.ndarray:
    """Returns `[P, 2, k, d]` the principal directions of the half that each model trained on.

    Args:
      population: whose halves are taken.
      images: `[N, ...]` of the pool.
      num_components: k, lowered to what the data have.
    """
    flat = np.asarray(images, np.float64)
    flat = flat.reshape(len(flat), -1)
    number = min(num_components, flat.shape[1] - 1, population.condition.num_examples - 1)
    trained_on, _ = population.samples()
    rows, mask = np.asarray(trained_on.indices), np.asarray(trained_on.mask)
    bases = [
        input_space.principal_subspace(flat[rows[model][mask[model]]], number).basis
        for model in np.ndindex(rows.shape[:2])
    ]
    return np.asarray(bases, np.float32).reshape(*rows.shape[:2], number, -1)


def _measure(context: Context) -> xr.Dataset:
    """Returns sums over S, labels clean, about the parts of each attack's perturbation.

    The subspace is spanned by 16 principal directions of the images that the surrogate trained on:
    neither S nor the target's half is looked at. At the part "on", "off" and the "whole", all of
    equal norm on each example: the `increase` of the margin loss and `num_fooled` (pair, surrogate,
    target, part), of `num_right` (pair, surrogate) that both models have right. `energy_on` the
    subspace and all `energy` (pair, surrogate, move) of the attack, matched noise, and the parts as
    they are after clipping; `expected_share` is that of a random direction, k/d. Of `num_examples`,
    `num_shortened` (pair, surrogate), where the box kept a part below the norm of the perturbation,
    and `num_unequal` (pair, surrogate, part) in norm by more than 1 %.
    """
    bases = bases_of(context.population, context.pool.images, NUM_COMPONENTS)
    # Points are four times as many as examples, for two models: one pair after another.
    arrays = context.over_pairs(_pair, extra=jnp.asarray(bases), at_once=1)
    dims = "pair", "surrogate"
    further = {
        "increase": ("target", "part"),
        "num_fooled": ("target", "part"),
        "num_unequal": ("part",),
        "energy_on": ("move",),
        "energy": ("move",),
    }
    sums = {name: ((*dims, *further.get(name, ())), array) for name, array in arrays.items()}
    share = {"expected_share": ((), bases.shape[-2] / bases.shape[-1])}
    return context.dataset(sums | share, part=PARTS, move=MOVES)


MANIFOLD_PARTS = Measurement("manifold_parts", _measure)
