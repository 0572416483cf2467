"""Slices of a landscape along random directions, normalized filter by filter.

Li et al. (arXiv 1712.09913) scale each filter of a random direction to the norm of the filter it
is added to, so that networks of different weight scales can be compared. Here output features are
last, as flax lays them out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import losses
from halfway.types import ApplyFn, Array, Key, LossFn, Params

OutputAxes = Callable[[str, Array], int]
VECTORS = ("zero", "whole")


def output_axes(path: str, leaf: Array) -> int:
    """Returns how many trailing axes of a flax tensor are its output features.

    It is 2 for the query, key and value kernels of attention `[D, heads, features]`, 1 for other
    kernels, and 0 for biases and scales, which have no filters.

    Args:
      path: the path of the tensor, e.g. "block0_attention/query/kernel".
      leaf: the tensor.
    """
    parts = path.split("/")
    if parts[-1] in ("bias", "scale") or leaf.ndim < 2:
        return 0
    return 2 if leaf.ndim == 3 and parts[-2:-1] and parts[-2] in ("query", "key", "value") else 1


def filter_direction(
    params: Params, key: Key, *, vectors: str = "zero", output_axes_fn: OutputAxes = output_axes
) -> Params:
    """Returns a random direction whose every filter has the norm of the filter in `params`.

    The direction is Gaussian, so that each filter points uniformly on its sphere, and
    `E[dᵀHd] = Σ_f ‖w_f‖² tr(H_ff)/n_f`.

    Args:
      params: θ, a pytree whose tensors have output features last.
      key: a PRNG key, consumed.
      vectors: what biases and scales get. With "zero" they do not move (as in Li et al.); with
        "whole" each is one filter, normalized once. (Normalized feature by feature, each entry
        would be ± the entry of `params` itself.)
      output_axes_fn: a function of path and tensor that returns the number of trailing output axes;
        0 for a tensor that `vectors` decides about.

    Raises:
      ValueError: for another `vectors`.
    """
    _check_vectors(vectors)
    filters, restore = _to_filters(params, output_axes_fn)
    keys = jax.random.split(key, len(filters))

    def draw(key, w, moves):
        return _rescale(jax.random.normal(key, w.shape, w.dtype), w, moves or vectors == "whole")

    return restore(_by_shape(draw, keys, filters))


def filter_directions(
    params: Params, key: Key, *, vectors: str = "zero", output_axes_fn: OutputAxes = output_axes
) -> Params:
    """Returns two random directions, normalized by filters and orthogonal, `[2, ...]` in each leaf.

    Orthogonality holds within every filter, so that normalizing again does not undo it; each
    direction alone is distributed as by `filter_direction`. No direction is orthogonal to a filter
    of a single weight: the second direction is 0 there.

    Args:
      params: θ, a pytree whose tensors have output features last.
      key: a PRNG key, consumed.
      vectors: what biases and scales get, as in `filter_direction`.
      output_axes_fn: the number of trailing output axes, as in `filter_direction`.

    Raises:
      ValueError: for another `vectors`.
    """
    _check_vectors(vectors)
    filters, restore = _to_filters(params, output_axes_fn)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(filters)))

    def draw(key, w, moves):
        key_first, key_second = jax.random.split(key)
        moves = moves or vectors == "whole"
        u = _rescale(jax.random.normal(key_first, w.shape, w.dtype), w, moves)
        v = jax.random.normal(key_second, w.shape, w.dtype)
        for _ in range(2):  # the second pass takes away what rounding left
            power = (u * u).sum(0)
            v = v - u * ((u * v).sum(0) / jnp.where(power > 0, power, 1))[None]
        return jnp.stack([u, _rescale(v, w, moves and w.shape[0] > 1)])

    both = _by_shape(draw, keys, filters)
    first, second = (restore([leaf[i] for leaf in both]) for i in (0, 1))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)


def _check_vectors(vectors: str) -> None:
    if vectors not in VECTORS:
        raise ValueError(f"unknown vectors {vectors!r}: choose zero or whole")


def _to_filters(
    params: Params, output_axes_fn: OutputAxes
) -> tuple[list[tuple[Array, bool]], Callable[[list[Array]], Params]]:
    """Returns every tensor as `[weights, filters]` with whether it has filters, and the way back.

    A tensor without output axes is one column.
    """
    leaves, structure = jax.tree.flatten_with_path(params)
    filters, shapes = [], []
    for path, leaf in leaves:
        outputs = output_axes_fn(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        columns = int(np.prod(leaf.shape[leaf.ndim - outputs :]))
        filters.append((leaf.reshape(-1, columns), outputs > 0))
        shapes.append(leaf.shape)

    def restore(arrays):
        back = [a.reshape(shape) for a, shape in zip(arrays, shapes, strict=True)]
        return jax.tree.unflatten(structure, back)

    return filters, restore


def _by_shape(
    fn: Callable[[Key, Array, bool], Array], keys: Key, filters: Sequence[tuple[Array, bool]]
) -> list[Array]:
    """Returns a function of each key and tensor, mapped over those of one shape at once.

    Random draws take long to compile, and a deep network has many tensors of few shapes.
    """
    groups: dict[Any, list[int]] = {}
    for index, (w, moves) in enumerate(filters):
        groups.setdefault((w.shape, w.dtype, moves), []).append(index)
    results: list[Any] = [None] * len(filters)
    for (_, _, moves), indices in groups.items():
        tensors = jnp.stack([filters[index][0] for index in indices])
        mapped_fn = jax.vmap(lambda key, w, moves=moves: fn(key, w, moves))
        mapped = mapped_fn(keys[jnp.asarray(indices)], tensors)
        for place, index in enumerate(indices):
            results[index] = mapped[place]
    return results


def _rescale(direction: Array, weights: Array, moves: bool) -> Array:
    if not moves:
        return jnp.zeros_like(direction)
    norms = jnp.linalg.norm(direction, axis=0, keepdims=True)
    scale = jnp.linalg.norm(weights, axis=0, keepdims=True) / jnp.where(norms > 0, norms, 1)
    return direction * scale


def slice_grid(
    loss_fn: Callable[[Params], Any],
    params: Params,
    directions: Params,
    coordinates: Sequence[Array],
    *,
    chunk_size: int | None = None,
) -> Any:
    """Returns the landscape on a grid around `params`, `[G_1, ..., G_K, ...]` in each leaf.

    The value at `[i, j]` is that of `params + coordinates[0][i] d_1 + coordinates[1][j] d_2`. One
    program computes it, whatever the number of points.

    Args:
      loss_fn: a function of parameters that returns a pytree of arrays.
      params: the centre of the grid, a pytree.
      directions: K directions, leaves `[K, ...]`, e.g. of `filter_directions`.
      coordinates: K arrays `[G_k]`, the coordinates along each direction.
      chunk_size: the number of points evaluated at once; None: one after another.

    Raises:
      ValueError: if there are not as many directions as arrays of coordinates.

    Examples:
      >>> directions = jnp.eye(2)
      >>> values = landscapes.slice_grid(
      ...     lambda z: z[0] + 10 * z[1], jnp.zeros(2), directions,
      ...     [jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 1.0])])
      >>> print(values.T)
      [[ 0.  1.  2.]
       [10. 11. 12.]]
    """
    num_directions = jax.tree.leaves(directions)[0].shape[0]
    if num_directions != len(coordinates):
        raise ValueError(
            f"{num_directions} directions and {len(coordinates)} arrays of coordinates: one for "
            "each direction is needed"
        )
    points = jnp.stack(jnp.meshgrid(*coordinates, indexing="ij"), -1)
    shape = points.shape[:-1]

    def value(point):
        moved = jax.tree.map(lambda w, d: w + jnp.tensordot(point, d, 1), params, directions)
        return loss_fn(moved)

    values = lax.map(value, points.reshape(-1, num_directions), batch_size=chunk_size)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), values)


def slice_curves(
    loss_fn: Callable[[Params], Any],
    params: Params,
    directions: Params,
    coordinates: Array,
    *,
    chunk_size: int | None = None,
) -> Any:
    """Returns the landscape along each of many directions, `[K, G, ...]` in each leaf.

    Args:
      loss_fn: a function of parameters that returns a pytree of arrays.
      params: the point that every direction starts from, a pytree.
      directions: K directions, leaves `[K, ...]`.
      coordinates: `[G]`, the coordinates, the same along each direction.
      chunk_size: the number of directions evaluated at once; None: one after another.
    """

    def curve(direction):
        lone = jax.tree.map(lambda leaf: leaf[None], direction)
        return slice_grid(loss_fn, params, lone, [coordinates])

    return lax.map(curve, directions, batch_size=chunk_size)


def mean_landscape(
    apply_fn: ApplyFn,
    x: Array,
    labels: Array,
    *,
    loss_fns: dict[str, LossFn],
    chunk_size: int | None = None,
) -> Callable[[Params], dict[str, Array]]:
    """Returns a function of parameters: the mean of each loss over a sample, taken in chunks.

    Args:
      apply_fn: parameters and inputs to logits.
      x: `[B, ...]` inputs.
      labels: `[B]` integer labels.
      loss_fns: losses per example by name, e.g. `populations.LOSSES`.
      chunk_size: the number of examples taken at once, which bounds the memory of activations;
        None: all.

    Returns:
      A function of parameters that returns a scalar for each name.

    Examples:
      >>> x, labels = jnp.array([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([1, 1, 1])
      >>> landscape = landscapes.mean_landscape(
      ...     lambda scale, x: scale * x, x, labels, loss_fns={"error": losses.error}, chunk_size=2)
      >>> print(f"{landscape(1.0)['error']:.2f}")
      0.33
    """
    all_examples = jnp.ones(x.shape[0], bool)

    def landscape(params):
        def sums(images, labels, mask):
            logits = apply_fn(params, images)
            values = {name: loss_fn(logits, labels) for name, loss_fn in loss_fns.items()}
            return {name: jnp.where(mask, value, 0).sum() for name, value in values.items()}

        totals = losses.chunked_sum(sums, (x, labels), all_examples, chunk_size=chunk_size)
        return {name: total / x.shape[0] for name, total in totals.items()}

    return landscape
