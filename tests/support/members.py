"""Single models and examples of a population, for what tests count again one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def models(population, pair, surrogate):
    """Returns the surrogate and the target of a pair, jitted functions of inputs.

    Args:
      population: trained.
      pair: its number.
      surrogate: 0 for A, 1 for B.
    """
    members = [
        jax.tree.map(lambda leaf, at=(pair, model): leaf[at], population.params)
        for model in (surrogate, 1 - surrogate)
    ]
    return [jax.jit(functools.partial(population.apply_fn, params)) for params in members]


def holdout(population, pool, pair):
    """Returns images and labels of S of a pair, as NumPy arrays."""
    rows = np.asarray(population.halves.s.indices[pair])
    return np.asarray(pool.images)[rows], np.asarray(pool.labels)[rows]


def twins(population):
    """Returns pairs of one model twice, on the same halves, of which the last pair diverged."""
    params = jax.tree.map(lambda leaf: jnp.stack([leaf[:, 0]] * 2, 1), population.params)
    return population.replace(params=jax.tree.map(lambda leaf: leaf.at[-1, 1].set(jnp.nan), params))
