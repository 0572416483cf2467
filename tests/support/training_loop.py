"""The training of one pair, written as one loop: the reference of `populations.train`."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from halfway import populations
from halfway.types import Array, Key


def train_pair(
    key: Key,
    images: Array,
    labels: Array,
    settings: Mapping[str, Array],
    *,
    program: populations.Condition,
    probe_steps: Sequence[int],
) -> dict[str, Any]:
    """Returns one trained pair: the fields of `populations.Population` without the leading axis.

    Args:
      key: the PRNG key of the pair, which is consumed.
      images: images `[N, H, W, D]` of the pool.
      labels: `[N]` clean labels of the pool.
      settings: data of the condition, from `hyperparameters`.
      program: what shapes the compiled program, from `program_of`.
      probe_steps: T numbers of steps, the last of which ends the program's training.
    """
    steps = populations.check_steps(probe_steps, stops=program.stop_loss > 0)
    drawn = populations.sample_pair(key, labels, settings, program=program)
    params = populations.init_pair(key, images, settings, program=program)
    walk, batches = populations.begin_pair(key, params, drawn, settings, program=program)
    see = functools.partial(
        populations.look_at_pair, key, drawn=drawn, images=images, program=program
    )

    def segment(walk, limits):
        walk = populations.advance_pair(
            walk, batches, drawn, images, settings, *limits, program=program
        )
        return walk, see(walk.state.params, probe_fn=populations.probe_landscapes)

    walk, observations = jax.lax.scan(segment, walk, jnp.asarray([(0, *steps[:-1]), steps]).T)
    return drawn._asdict() | {
        "params": walk.state.params,
        "num_steps": walk.state.step,
        "constant": see(walk.state.params, probe_fn=populations.probe_constants),
        **jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), observations),
    }
