"""Landscapes of models that a user brings: of one to three points of one loss."""

import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from halfway import landscapes, sharding
from halfway.keys import named_key
from halfway.lab.config.settings import LandscapeSizes
from halfway.lab.config.user import LOG
from halfway.lab.measurements import weight_space
from halfway.lab.measurements.weight_space import Arrays
from halfway.types import Array, Key, Params

_TOLERANCE = 1e-4
"""Of an eigenvalue, relative to the largest: the tolerance of `landscapes.top_eigenvalues`."""


def measure(
    loss_fn: Callable[[Params], Array], members: Sequence[Params], key: Key, sizes: LandscapeSizes
) -> Arrays:
    """Returns the loss around each of M models, between each two, and on the plane of three.

    `slice_loss` `[M, G]` is along one random direction, the same for all but for the lengths of
    each model's filters; `slice_plane` `[M, G, G]` along two. `spectrum_...` `[M, ...]` is of the
    Hessian. `spectrum_converged` `[M, k]` says which of the largest eigenvalues were
    found again, from another start and within the tolerance.

    `segment_loss` `[K, T]` has a row for each two models, in the order of
    `itertools.combinations`. `plane_loss` `[G, G]` is there where M is 3.

    Args:
      loss_fn: parameters to a scalar.
      members: M of one to three pytrees of equal shapes.
      key: consumed.
      sizes: how much.
    """
    LOG.info("drawing landscapes of %d models", len(members))
    first = weight_space.measure_own(loss_fn, members, key, sizes)
    others = [weight_space.measure_own(loss_fn, [member], key, sizes) for member in members[1:]]

    def stacked(name: str) -> np.ndarray:
        return np.concatenate([arrays[name] for arrays in (first, *others)])

    arrays = {
        "slice_t": first["slice_t"],
        "slice_loss": stacked("slice_own"),
        "slice_plane": stacked("slice_plane"),
    }
    for name in ("nodes", "weights", "tops", "trace", "trace_error"):
        arrays[f"spectrum_{name}"] = stacked(f"spectrum_end_{name}")
    arrays["spectrum_converged"] = np.stack(
        [
            _converged(loss_fn, member, key, tops)
            for member, tops in zip(members, arrays["spectrum_tops"], strict=True)
        ]
    )
    if len(members) > 1:
        run = sharding.jit(lambda a, b: landscapes.interpolate(loss_fn, a, b, sizes.num_points))
        later = list(itertools.combinations(members, 2))[1:]  # the first is there
        segments = [first["segment_raw_loss"], *(np.asarray(run(*pair))[None] for pair in later)]
        arrays["segment_loss"] = np.concatenate(segments)
    if "plane_x" in first:
        arrays |= {name: first[name] for name in ("plane_x", "plane_y", "plane_points")}
        arrays["plane_loss"] = first["plane_cross_entropy"][0]
    return arrays


def _converged(
    loss_fn: Callable[[Params], Array], params: Params, key: Key, tops: np.ndarray
) -> np.ndarray:
    """Returns which of the largest eigenvalues `[k]` are found again from a start of its own."""
    key = named_key(key, "largest eigenvalues again")
    run = sharding.jit(
        lambda params: landscapes.top_eigenvalues(
            loss_fn, params, key, num_eigenvalues=len(tops), tolerance=_TOLERANCE
        )
    )
    again = run(params)
    values = np.asarray(again.values)
    close = np.abs(values - tops) <= 2 * _TOLERANCE * np.abs(values).max()
    # A rank is right only below ranks that are.
    return np.logical_and.accumulate(np.asarray(again.converged) & close)


def barriers(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns how far the loss rises above each baseline between each two models, `[K]`.

    Args:
      arrays: of `measure`.
    """
    if "segment_loss" not in arrays:
        return {}
    values = jax.numpy.asarray(arrays["segment_loss"])
    return {
        baseline: np.asarray(landscapes.barrier(values, baseline=baseline))
        for baseline in landscapes.BASELINES
    }
