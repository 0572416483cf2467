"""How the parts of an attack's perturbation on and off the data move both models."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from halfway import input_space, losses
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array

NUM_COMPONENTS = 16
"""Principal components of S that are on the data."""
VARIANCE = 0.99
"""The share of the variance of S that these and those off the data hold together."""
LENGTH = 0.5
"""Of each part, as a share of the perturbation's l2 norm on the example."""
PARTS = ("on", "off", "rest", "whole")
"""Of the perturbation; all of one l2 norm on each example. The rest are components with next to no
variance, from which nothing can be learned."""


class Bases(NamedTuple):
    """Orthonormal directions; rows of 0 fill up where a pair has fewer.

    Attributes:
      on: `[..., k, d]`, the first principal components.
      off: `[..., m, d]`, the next ones, up to a share of the variance.
    """

    on: Array
    off: Array


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns sums over S for the attack on each model, `[2, ...]` by surrogate.

    `pair.extra` are the `Bases` of the pair.
    """
    rows = pair.halves.s.indices
    x, labels = shared.images[rows], shared.labels[rows]
    attack = program.attack(shared.epsilon)

    def direction(key, surrogate):
        surrogate_fn = functools.partial(program.apply_fn, surrogate)
        adversarial = attack(surrogate_fn, key, x, labels).adversarial
        points, energy = move_along_parts(x, adversarial, pair.extra)
        # Clean points and those of all parts at once, so that a model is compiled once.
        places, place_labels = jnp.concatenate([x, *points]), jnp.tile(labels, 1 + len(PARTS))

        def outcomes(target):
            target_fn = functools.partial(program.apply_fn, target)
            loss = losses.margin(target_fn(places), place_labels)
            return loss.reshape(1 + len(PARTS), x.shape[0])

        # One model after the other: half the memory of both at once.
        loss = jax.lax.map(outcomes, pair.params)
        return {"increase": (loss[:, 1:] - loss[:, :1]).sum(-1), "energy": energy.sum(-1)}

    return jax.vmap(direction)(jax.random.split(pair.key), pair.params)


def move_along_parts(x: Array, adversarial: Array, bases: Bases) -> tuple[Array, Array]:
    """Returns points `[4, B, ...]` along the parts of perturbations, and energies `[4, B]`.

    Every point lies half as far from its example as the perturbed one, in l2; no box cuts it off. A
    part that is not there does not move.

    Args:
      x: `[B, ...]`, clean.
      adversarial: `[B, ...]`.
      bases: of the subspaces.

    Returns:
      points along `PARTS`, and ‖·‖² of the parts as they are within the perturbation.
    """
    flat = x.reshape(x.shape[0], -1)
    delta = adversarial.reshape(flat.shape) - flat
    on, beyond = input_space.split_on_subspace(delta, bases.on)
    off, rest = input_space.split_on_subspace(beyond, bases.off)
    length = LENGTH * jnp.linalg.norm(delta, axis=-1, keepdims=True)

    def move(part):
        norm = jnp.linalg.norm(part, axis=-1, keepdims=True)
        # Next to nothing is what rounding has left of a part.
        present = norm > 1e-4 * length
        scale = jnp.where(present, length / jnp.where(present, norm, 1.0), 0.0)
        return (flat + scale * part).reshape(x.shape), (part**2).sum(-1)

    return jax.vmap(move)(jnp.stack([on, off, rest, delta]))


def bases_of(rows: ArrayLike, images: ArrayLike) -> tuple[Bases, np.ndarray]:
    """Returns the bases of each sample and `[P]` the number of components that hold the variance.

    Args:
      rows: `[P, B]`, the examples of each sample.
      images: `[N, ...]` of the pool.
    """
    flat = np.asarray(images, np.float64)
    flat = flat.reshape(len(flat), -1)
    on, beyond, counts = [], [], []
    for sample in np.asarray(rows):
        number = min(len(sample) - 1, flat.shape[1])
        subspace = input_space.principal_subspace(flat[sample], number)
        held = np.cumsum(subspace.variance) / max(subspace.variance.sum(), 1e-300)
        # Without rounding the last share is 1.
        counts.append(min(int(np.searchsorted(held, VARIANCE - 1e-9)) + 1, number))
        on.append(subspace.basis[:NUM_COMPONENTS])
        beyond.append(subspace.basis[NUM_COMPONENTS : counts[-1]])
    off = np.zeros((len(on), max(1, *map(len, beyond)), flat.shape[1]), np.float32)
    for place, basis in enumerate(beyond):
        off[place, : len(basis)] = basis
    return Bases(jnp.asarray(np.stack(on), jnp.float32), jnp.asarray(off)), np.array(counts)


def _measure(context: Context) -> xr.Dataset:
    """Returns sums over S, labels clean, about the parts of each attack's perturbation.

    The subspaces are spanned by principal components of the images of S, the same for both models.
    Along the part "on" the data, "off" them, the "rest" and the "whole", all of half the
    perturbation's norm on each example: the `increase` of the margin loss (pair, surrogate, target,
    part). `energy` (pair, surrogate, part), Σ‖·‖² of the parts as they are within the perturbation;
    `num_components` (pair), how many hold 99 % of the variance.
    """
    bases, number = bases_of(context.population.halves.s.indices, context.pool.images)
    # Points are five times as many as examples, for two models: one pair after another.
    arrays = context.over_pairs(_pair, extra=bases, at_once=1)
    numbers = {
        "increase": (("pair", "surrogate", "target", "part"), arrays["increase"]),
        "energy": (("pair", "surrogate", "part"), arrays["energy"]),
        "num_components": (("pair",), number),
    }
    return context.dataset(numbers, part=PARTS)


MANIFOLD_PARTS = Measurement("manifold_parts", _measure)
