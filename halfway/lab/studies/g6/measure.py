"""Barriers on the straight line between the models of pairs, as trained and matched."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from halfway import landscapes
from halfway.data import Split
from halfway.lab.config.settings import LandscapeSizes, RunConfig
from halfway.lab.measurements import weight_space
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Population
from halfway.types import Key


def _barriers(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns barriers on S, labels clean, between θ_A and θ_B, and the curves they come from.

    The first population's pairs as trained ("raw") and with θ_B permuted to match θ_A ("matched"),
    then those of the other populations, from a shared start and from a shared trunk, as trained.
    """
    del config
    first, *others = population
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    sizes = LandscapeSizes(
        num_pairs=first.condition.num_pairs, chunk_size=first.condition.num_holdout
    )
    ends = {"raw": weight_space.ends(first.params)}
    ends["matched"] = weight_space.matched_ends(first, key)
    for one in others:
        trunk = one.condition.trunk_steps
        name = f"shared trunk of {trunk} steps" if trunk else "shared start"
        ends[name] = weight_space.ends(one.params)
    curves = {
        name: weight_space.segment(first, *pair, images, labels, sizes)
        for name, pair in ends.items()
    }
    parts, arrays = [], {}
    each = {"pair": range(first.condition.num_pairs)}
    for name, by_loss in curves.items():
        for loss, values in by_loss.items():
            arrays[f"{loss}.{name}"] = values
            for baseline in landscapes.BASELINES:
                heights = np.asarray(landscapes.barrier(jnp.asarray(values), baseline=baseline))
                parts.append(
                    tables.rows(
                        heights,
                        each,
                        condition=first.condition.key,
                        subset=name,
                        quantity=f"barrier_{loss}_{baseline}",
                    )
                )
    return Measured(tables.concat(parts), arrays)


BARRIERS = Measurement("barriers", 6, _barriers)
