"""Slices of a landscape along random directions, normalized filter by filter.

Li et al. (arXiv 1712.09913) scale each filter of a random direction to the norm of the filter it
is added to, so that networks of different weight scales can be compared. Here output features are
last, as flax lays them out.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import losses, trees
from halfway.types import ApplyFn, Array, Key, LossFn, Params

OutputAxes = Callable[[str, Array], int]
VECTORS = ("zero", "whole")
_VECTOR_NAMES = ("bias", "scale")
_OUTPUTS_FIRST = "weight"
"""Of PyTorch and Equinox, whose tensors have output features first; flax says kernel."""


def output_axes(path: str, leaf: Array) -> int:
    """Returns how many trailing axes of a flax tensor are its output features, by its name alone.

    It is 2 for the query, key and value kernels of attention `[D, heads, features]`, 1 for other
    kernels, and 0 for biases and scales, which have no filters. `filter_direction` looks at the
    bias beside a kernel first, whose shape is that of the output features.

    Args:
      path: the path of the tensor, e.g. "block0_attention/query/kernel".
      leaf: the tensor.
    """
    parts = path.split("/")
    # The scales of NNX's WeightNorm are named after the tensors that they scale.
    if parts[-1] in _VECTOR_NAMES or parts[-2:-1] == ["scales"] or leaf.ndim < 2:
        return 0
    return 2 if leaf.ndim == 3 and parts[-2:-1] and parts[-2] in ("query", "key", "value") else 1


def _filter_axes(path: str, leaf: Array, bias: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the axes of a tensor whose places count filters; none for what has no filters.

    Args:
      path: the path of the tensor, without the `value` of a variable of NNX.
      leaf: the tensor.
      bias: the shape of the bias beside it, or None. Its axes are those of the output features;
        leading ones may be axes of a batch, or layers that were stacked by `vmap` or `scan`.
    """
    number, shape = output_axes(path, leaf), leaf.shape
    if number == 0 or bias == shape:
        return ()
    if re.split("[/.]", path)[-1] == _OUTPUTS_FIRST:
        return (0,)
    if bias is None:
        return tuple(range(leaf.ndim - number, leaf.ndim))
    for leading in range(len(bias)):
        trailing = len(bias) - leading
        if shape[:leading] + shape[-trailing:] == bias and len(bias) < leaf.ndim:
            return (*range(leading), *range(leaf.ndim - trailing, leaf.ndim))
    # The kernel of a convolution transposed, [h, w, out, in].
    is_transposed = len(bias) == 1 and shape[-2] == bias[0]
    return (leaf.ndim - 2,) if is_transposed else tuple(range(leaf.ndim - number, leaf.ndim))


def filter_direction(
    params: Params,
    key: Key,
    *,
    vectors: str = "zero",
    output_axes_fn: OutputAxes | None = None,
) -> Params:
    """Returns a random direction whose every filter has the norm of the filter in `params`.

    The direction is Gaussian, so that each filter points uniformly on its sphere, and
    `E[dᵀHd] = Σ_f ‖w_f‖² tr(H_ff)/n_f`. A filter is all weights that lead to one output feature.
    The features are told by the bias beside a tensor, else by its name: the last axis, the last two
    of the query, key and value of attention, the first axis of a `weight` of PyTorch or Equinox.

    Args:
      params: θ, a pytree, of flax's linen or NNX, PyTorch or Equinox. Integers do not move.
      key: a PRNG key, consumed.
      vectors: what biases and scales get. With "zero" they do not move (as in Li et al.); with
        "whole" each is one filter, normalized once. (Normalized feature by feature, each entry
        would be ± the entry of `params` itself.)
      output_axes_fn: a function of path and tensor that returns the number of trailing output axes;
        0 for a tensor that `vectors` decides about. None: as above. A layer without bias needs it
        where its kernel has several output axes and it is no attention.

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
    params: Params,
    key: Key,
    *,
    vectors: str = "zero",
    output_axes_fn: OutputAxes | None = None,
) -> Params:
    """Returns two random directions, normalized by filters and orthogonal, `[2, ...]` in each leaf.

    Orthogonality holds within every filter, so that normalizing again does not undo it; each
    direction alone is distributed as by `filter_direction`. No direction is orthogonal to a filter
    of a single weight: the second direction is 0 there.

    Args:
      params: θ, a pytree as for `filter_direction`.
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
        scaled = u / trees.power_of_two(jnp.abs(u).max(0, keepdims=True, initial=0))
        power = (scaled * scaled).sum(0)
        for _ in range(2):  # the second pass takes away what rounding left
            v = v - scaled * ((scaled * v).sum(0) / jnp.where(power > 0, power, 1))[None]
        return jnp.stack([u, _rescale(v, w, moves and w.shape[0] > 1)])

    both = _by_shape(draw, keys, filters)
    return jax.vmap(restore)(both)


def _check_vectors(vectors: str) -> None:
    if vectors not in VECTORS:
        raise ValueError(f"unknown vectors {vectors!r}: choose zero or whole")


def _to_filters(
    params: Params, output_axes_fn: OutputAxes | None
) -> tuple[list[tuple[Array, bool]], Callable[[list[Array]], Params]]:
    """Returns every tensor as `[weights, filters]` with whether it has filters, and the way back.

    A tensor without output axes is one column.
    """
    tensors, join = trees.split(params)
    names = [
        _name(path) for path, leaf in jax.tree.leaves_with_path(params) if trees.is_floating(leaf)
    ]
    biases = {
        name.removesuffix("bias"): tensor.shape
        for name, tensor in zip(names, tensors, strict=True)
        if re.split("[/.]", name)[-1] == "bias"
    }
    filters, orders = [], []
    for name, tensor in zip(names, tensors, strict=True):
        if output_axes_fn is None:
            beside = re.sub(r"[^/.]*$", "", name)
            outputs = _filter_axes(name, tensor, biases.get(beside))
        else:
            number = output_axes_fn(name, tensor)
            outputs = tuple(range(tensor.ndim - number, tensor.ndim))
        inputs = [axis for axis in range(tensor.ndim) if axis not in outputs]
        turned = trees.real(tensor).transpose(*inputs, *outputs)
        columns = int(np.prod([tensor.shape[axis] for axis in outputs], dtype=int))
        filters.append((turned.reshape(-1, columns), len(outputs) > 0))
        orders.append((turned.shape, np.argsort([*inputs, *outputs]), tensor.dtype))

    def restore(arrays):
        return join(
            [
                array.reshape(shape).transpose(*order).astype(dtype)
                for array, (shape, order, dtype) in zip(arrays, orders, strict=True)
            ],
            direction=True,
        )

    return filters, restore


def _name(path: tuple[Any, ...]) -> str:
    """Returns the path of a tensor, without the `value` of the variable that holds it in NNX."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


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
    norms = trees.norm(direction, axis=0, keepdims=True)
    scale = trees.norm(weights, axis=0, keepdims=True) / jnp.where(norms > 0, norms, 1)
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
    num_directions = trees.select(params, directions)[0].shape[0]
    if num_directions != len(coordinates):
        raise ValueError(
            f"{num_directions} directions and {len(coordinates)} arrays of coordinates: one for "
            "each direction is needed"
        )
    points = jnp.stack(jnp.meshgrid(*coordinates, indexing="ij"), -1)
    shape = points.shape[:-1]

    def value(point):
        step = lambda w, d: w + jnp.tensordot(point, d, 1)  # noqa: E731
        return loss_fn(trees.map_floating(step, params, directions))

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

    _, join = trees.split(params)

    def curve(leaves):
        lone = join([leaf[None] for leaf in leaves], direction=True)
        return slice_grid(loss_fn, params, lone, [coordinates])

    return lax.map(curve, trees.select(params, directions), batch_size=chunk_size)


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

    Raises:
      ValueError: if there is no example.

    Examples:
      >>> x, labels = jnp.array([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([1, 1, 1])
      >>> landscape = landscapes.mean_landscape(
      ...     lambda scale, x: scale * x, x, labels, loss_fns={"error": losses.error}, chunk_size=2)
      >>> print(f"{landscape(1.0)['error']:.2f}")
      0.33
    """
    if not x.shape[0]:
        raise ValueError(f"x must hold at least one example, got shape {x.shape}")
    all_examples = jnp.ones(x.shape[0], bool)

    def landscape(params):
        trees.check_real(params)

        def sums(images, labels, mask):
            logits = apply_fn(params, images)
            values = {name: loss_fn(logits, labels) for name, loss_fn in loss_fns.items()}
            return {
                name: jnp.where(mask, trees.real(value), 0).sum() for name, value in values.items()
            }

        totals = losses.chunked_sum(sums, (x, labels), all_examples, chunk_size=chunk_size)
        return {name: total / x.shape[0] for name, total in totals.items()}

    return landscape
