"""Barriers on the straight line between the models of pairs, as trained and matched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import landscapes
from halfway.keys import named_key
from halfway.lab.config.settings import LandscapeSizes
from halfway.lab.measurements import weight_space
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measurement
from halfway.populations import Condition, Population

RAW, MATCHED = "as trained", "permutation matched"
"""Paths between the models of the condition that decides."""
LOSSES = ("error", "cross_entropy")
"""Whose values along a path are kept."""
NUM_POINTS = 25
"""Of a path, both ends among them."""


def path_name(condition: Condition) -> str:
    """Returns the name of the path between models that share their start, and perhaps a trunk."""
    trunk = condition.trunk_steps
    return f"shared trunk of {trunk} steps" if trunk else "shared start"


def _finite(population: Population) -> Population:
    """Returns a population with zeros in place of pairs that diverged, which nothing can match."""
    finite = population.finite

    def keep(leaf):
        return jnp.where(finite.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0.0)

    return dataclasses.replace(population, params=jax.tree.map(keep, population.params))


def _measure(context: Context) -> xr.Dataset:
    """Returns losses on S, labels clean, on straight lines between θ_A and θ_B, and their barriers.

    The paths are those of the first population's pairs as trained and with θ_B permuted to match
    θ_A, then those of the other populations, from a shared start and from a shared trunk, as
    trained. `curve` (pair, path, loss, t), t from 0 at θ_A to 1 at θ_B, and `barrier` (pair, path,
    loss, baseline), the highest point above a baseline of `landscapes.BASELINES`. `chance` (pair)
    is the error on S of whoever always names its largest class.
    """
    first, *others = context.populations
    shared = context.shared
    sizes = LandscapeSizes(
        num_pairs=first.condition.num_pairs,
        num_points=NUM_POINTS,
        chunk_size=first.condition.num_holdout,
    )
    ends = {
        RAW: weight_space.ends(first.params),
        MATCHED: weight_space.matched_ends(_finite(first), named_key(context.key, "matching")),
    }
    ends |= {path_name(other.condition): weight_space.ends(other.params) for other in others}
    by_path = [
        weight_space.segment(first, start, end, shared.images, shared.labels, sizes)
        for start, end in ends.values()
    ]
    curves = np.stack([np.stack([curve[loss] for loss in LOSSES], 1) for curve in by_path], 1)
    heights = [landscapes.barrier(jnp.asarray(curves), baseline=b) for b in landscapes.BASELINES]
    classes = np.asarray(context.pool.labels)[np.asarray(first.halves.s.indices)]
    largest = np.array([np.bincount(labels).max() for labels in classes])
    return context.dataset(
        {
            "chance": (("pair",), 1 - largest / classes.shape[1]),
            "curve": (("pair", "path", "loss", "t"), curves),
            "barrier": (("pair", "path", "loss", "baseline"), np.stack(heights, -1)),
        },
        path=tuple(ends),
        loss=LOSSES,
        t=np.linspace(0, 1, curves.shape[-1]),
        baseline=landscapes.BASELINES,
    )


BARRIERS = Measurement("barriers", _measure)
