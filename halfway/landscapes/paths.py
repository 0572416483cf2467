"""Paths between points of parameter space, their barriers, and planes through points.

Points are pytrees, `loss_fn(params)` returns a scalar or a pytree of scalars (loss and error in one
pass). Everything is pure; lift over pairs with `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from halfway import losses, trees
from halfway.types import Array, Key, Params, is_traced

LandscapeFn = Callable[[Params], Any]
BASELINES = ("linear", "endpoints")


def linear_path(start: Params, end: Params, t: Array | float) -> Params:
    """Returns the point (1 − t) start + t end.

    Args:
      start: θ_A, a pytree.
      end: θ_B, a pytree like it.
      t: scalar; 0 is `start`, 1 is `end`, and values outside [0, 1] extrapolate.
    """
    return trees.map_floating(lambda a, b: (1 - t) * a + t * b, start, end)


def spherical_path(start: Params, end: Params, t: Array | float) -> Params:
    """Returns the point at share t of the arc from start to end, lengths interpolated linearly.

    Each pytree is taken as one vector. Where both have the same length, the path stays on their
    sphere, while the straight line cuts through it (Shoemake 1985). Parallel vectors are
    interpolated linearly; opposite vectors have no shortest arc, and the result is NaN.

    Args:
      start: θ_A, a pytree, not 0.
      end: θ_B, a pytree like it, not 0.
      t: the share of the arc, a scalar in [0, 1].

    Examples:
      >>> middle = landscapes.spherical_path(jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]), 0.5)
      >>> print(middle.round(3), f"{trees.norm(middle):.1f}")
      [1.414 1.414] 2.0
    """
    a, unravel = trees.flatten(start)
    b = trees.flatten_like(start, end)
    length_a, length_b = trees.norm(a), trees.norm(b)
    a, b = a / length_a, b / length_b
    # This form is accurate at small angles, where arccos of the cosine is not.
    angle = 2 * jnp.arctan2(trees.norm(a - b), trees.norm(a + b))
    parallel = angle < 10 * jnp.finfo(a.dtype).eps
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    sine = jnp.where(angle > jnp.pi - 1e-3, jnp.nan, sine)
    weight_a = jnp.where(parallel, 1 - t, jnp.sin((1 - t) * angle) / sine)
    weight_b = jnp.where(parallel, t, jnp.sin(t * angle) / sine)
    length = (1 - t) * length_a + t * length_b
    return unravel(length * (weight_a * a + weight_b * b))


def bezier_path(controls: Params, t: Array | float) -> Params:
    """Returns the point at t of the Bézier curve with the given control points.

    Args:
      controls: the control points from start to end, leaves `[K, ...]`, K ≥ 2; the curve passes
        through the first and the last.
      t: the place on the curve, a scalar in [0, 1].

    Examples:
      >>> print(landscapes.bezier_path(jnp.array([0.0, 1.0, 0.0]), 0.5))  # ¼·0 + ½·1 + ¼·0
      0.5
    """
    # De Casteljau: each round interpolates between neighbours until one point is left.
    leaves, _ = trees.split(controls)
    first = jax.tree.map(lambda leaf: leaf[0] if jnp.ndim(leaf) else leaf, controls)
    _, join = trees.split(first)

    def point(leaf):
        while leaf.shape[0] > 1:
            leaf = (1 - t) * leaf[:-1] + t * leaf[1:]
        return leaf[0]

    return join([point(trees.real(leaf)).astype(leaf.dtype) for leaf in leaves])


def along_path(
    loss_fn: LandscapeFn,
    point_fn: Callable[[Array], Params],
    num_points: int,
    *,
    chunk_size: int | None = None,
) -> Any:
    """Returns the landscape at `num_points` equally spaced points of a path, ends included.

    Args:
      loss_fn: a function of parameters that returns a pytree of arrays.
      point_fn: a function of t in [0, 1] that returns parameters, e.g.
        `lambda t: linear_path(start, end, t)`.
      num_points: T ≥ 2, the number of points, static.
      chunk_size: the number of points evaluated at once; None: one after another.

    Returns:
      A pytree with leaves `[T, ...]`.

    Raises:
      ValueError: if `num_points` is below 2.
    """
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, both ends, got {num_points}")
    shares = jnp.linspace(0.0, 1.0, num_points)
    return lax.map(lambda t: loss_fn(point_fn(t)), shares, batch_size=chunk_size)


def interpolate(
    loss_fn: LandscapeFn,
    start: Params,
    end: Params,
    num_points: int,
    *,
    chunk_size: int | None = None,
) -> Any:
    """Returns the landscape along the straight line from start to end, `[T, ...]` in each leaf.

    Args:
      loss_fn: a function of parameters that returns a pytree of arrays.
      start: θ_A, a pytree.
      end: θ_B, a pytree like it.
      num_points: T ≥ 2, the number of equally spaced points, ends included.
      chunk_size: the number of points evaluated at once; None: one after another.

    Raises:
      ValueError: if `num_points` is below 2.

    Examples:
      >>> print(landscapes.interpolate(lambda z: z**2, jnp.array(-1.0), jnp.array(1.0), 5))
      [1.   0.25 0.   0.25 1.  ]
    """
    return along_path(
        loss_fn, lambda t: linear_path(start, end, t), num_points, chunk_size=chunk_size
    )


def barrier(values: Array, *, baseline: str = "linear") -> Array:
    """Returns the height of a path over its ends: max_t (L(t) − baseline(t)).

    The "linear" baseline runs from L(0) to L(1), so that ends of unequal loss make no barrier by
    themselves and the result is at least 0. The baseline "endpoints" is the mean of the ends, as in
    Frankle et al. (arXiv 1912.05671); then the ends alone give ½ |L(0) − L(1)|.

    Args:
      values: `[..., T]`, loss or error at equally spaced points of a path.
      baseline: "linear" or "endpoints".

    Returns:
      `[...]`, the heights in units of the values.

    Raises:
      ValueError: for another baseline.

    Examples:
      >>> values = jnp.array([0.0, 1.0, 1.0])
      >>> print(landscapes.barrier(values), landscapes.barrier(values, baseline="endpoints"))
      0.5 0.5
    """
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}: choose linear or endpoints")
    values = trees.real(values)
    first, last = values[..., :1], values[..., -1:]
    shares = jnp.linspace(0.0, 1.0, values.shape[-1])
    shares = shares.reshape((1,) * (values.ndim - 1) + shares.shape)
    if baseline == "endpoints":
        shares = jnp.full_like(shares, 0.5)
    return (values - ((1 - shares) * first + shares * last)).max(-1)


def fit_bezier(
    loss_fn: Callable[[Params, Key], Array],
    start: Params,
    end: Params,
    key: Key,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    num_bends: int = 1,
) -> tuple[Params, Array]:
    """Returns the control points of a curve trained to stay low, and the loss at each step.

    Each step draws one t uniformly and descends the loss at that point of the curve; the ends do
    not move (Garipov et al., arXiv 1802.10026). The curve begins as the straight line.

    Args:
      loss_fn: a function of parameters and a key, with which it may draw a batch, that returns a
        scalar.
      start: θ_A, a pytree.
      end: θ_B, a pytree like it.
      key: a PRNG key, consumed.
      optimizer: the optimizer that moves the bends.
      num_steps: the number of training steps.
      num_bends: the number of control points between the ends; 1 gives a quadratic curve.

    Returns:
      The control points, leaves `[num_bends + 2, ...]`, for `bezier_path`; and the losses
      `[num_steps]`.

    Raises:
      ValueError: if `num_bends` is below 1.
    """
    if num_bends < 1:
        raise ValueError(f"num_bends must be at least 1, got {num_bends}")
    shares = jnp.arange(1, num_bends + 1) / (num_bends + 1)
    bends = trees.only_floating(jax.vmap(lambda t: linear_path(start, end, t))(shares))
    first, last = trees.split(start)[0], trees.select(start, end)
    _, join = trees.split(jax.tree.map(lambda leaf: jnp.stack([leaf] * (num_bends + 2)), start))

    def controls(bends):
        inner = jax.tree.leaves(bends)
        return join(
            [
                jnp.concatenate([a[None], middle, jnp.asarray(b)[None]])
                for a, middle, b in zip(first, inner, last, strict=True)
            ]
        )

    def step(carry, key):
        bends, opt_state = carry
        key_t, key_batch = jax.random.split(key)
        t = jax.random.uniform(key_t)
        value, gradient = jax.value_and_grad(
            lambda bends: losses.smooth_scalar(loss_fn(bezier_path(controls(bends), t), key_batch))
        )(bends)
        updates, opt_state = optimizer.update(gradient, opt_state, bends)
        return (optax.apply_updates(bends, updates), opt_state), value

    carry = (bends, optimizer.init(bends))
    (bends, _), values = lax.scan(step, carry, jax.random.split(key, num_steps))
    return controls(bends), values


class Plane(NamedTuple):
    """A plane in parameter space.

    Attributes:
      origin: a pytree, the point (0, 0).
      axes: leaves `[2, ...]`, orthonormal over the whole pytree.
    """

    origin: Params
    axes: Params


def plane(origin: Params, first: Params, second: Params) -> Plane:
    """Returns the plane through three points: the origin at (0, 0), `first` on the positive x-axis.

    `second` lies at positive y. Distances in the plane are distances in parameter space.

    Args:
      origin: the point at (0, 0), a pytree.
      first: another point, a pytree like the origin.
      second: a point that is not on the line through the other two, a pytree like the origin.

    Raises:
      ValueError: if the points lie on a line (under `jit` the second axis is NaN instead).
    """
    base, unravel = trees.flatten(origin)
    x = trees.flatten_like(origin, first) - base
    y = trees.flatten_like(origin, second) - base
    length_x, length_y = trees.norm(x), trees.norm(y)
    x = x / length_x
    for _ in range(2):  # the second pass takes away what rounding left
        y = y - (y @ x) * x
    height = trees.norm(y)
    flat = ~(height > 1e-5 * length_y)  # NaN too
    if not is_traced(flat) and bool(flat):
        raise ValueError("the three points lie on a line: they span no plane")
    y = y / jnp.where(flat, jnp.nan, height)
    return Plane(origin, _directions(unravel, jnp.stack([x, y])))


def _directions(unravel: Callable[..., Params], rows: Array) -> Params:
    """Returns rows `[K, D]` as a pytree with leaves `[K, ...]`; what is no parameter is 0."""
    return jax.vmap(lambda row: unravel(row, direction=True))(rows)


class TrajectoryPlane(NamedTuple):
    """The plane in which a trajectory varies most.

    Attributes:
      plane: the plane; its origin is the last point of the trajectory.
      coordinates: `[T, 2]`, the trajectory projected into the plane.
      explained: `[2]`, shares of Σ_t ‖θ_t − θ_T‖² along each axis.
    """

    plane: Plane
    coordinates: Array
    explained: Array


def trajectory_plane(trajectory: Params) -> TrajectoryPlane:
    """Returns the plane through the end of a trajectory that holds most of it.

    Its axes are the first two principal components of θ_t − θ_T without further centring, so that
    the plane passes through the end, whose landscape is shown exactly (Li et al., arXiv
    1712.09913). Signs are set so that the start has coordinates of at least 0.

    Args:
      trajectory: the points of the trajectory, leaves `[T, ...]`, T ≥ 3, not all on a line.

    Returns:
      The plane, the coordinates `[T, 2]` of the points in it, and the share `[2]` of the sum of
      squared distances to the end that lies along each axis.

    Raises:
      ValueError: if there are fewer than 3 points.
    """
    leaves, _ = trees.split(trajectory)
    num_points = leaves[0].shape[0]
    if num_points < 3:
        raise ValueError(f"a plane of a trajectory needs at least 3 points, got {num_points}")
    end = jax.tree.map(lambda leaf: leaf[-1] if jnp.ndim(leaf) else leaf, trajectory)
    _, unravel = trees.flatten(end)
    rows = jnp.concatenate([trees.real(leaf).reshape(num_points, -1) for leaf in leaves], 1)
    rows = rows - rows[-1:]
    # For squares of small and large numbers.
    scale = trees.power_of_two(jnp.abs(rows).max())
    rows = rows / scale
    # The Gram matrix [T, T] is small, since points are few and parameters many.
    powers, vectors = jnp.linalg.eigh(rows @ rows.T)
    vectors = vectors[:, ::-1][:, :2]
    vectors = vectors * jnp.where(vectors[:1] < 0, -1.0, 1.0)
    axes = vectors.T @ rows
    axes = axes / trees.norm(axes, axis=1, keepdims=True)
    explained = powers[::-1][:2] / powers.sum()
    coordinates = (rows @ axes.T) * scale
    return TrajectoryPlane(Plane(end, _directions(unravel, axes)), coordinates, explained)


def plane_point(plane: Plane, coordinates: Array) -> Params:
    """Returns the parameters at a point of a plane.

    Args:
      plane: the plane.
      coordinates: `[2]`, the coordinates of the point in the plane.
    """
    return trees.map_floating(
        lambda origin, axes: origin + jnp.tensordot(coordinates, axes, 1), plane.origin, plane.axes
    )


def project_onto_plane(plane: Plane, params: Params) -> tuple[Array, Array]:
    """Returns the coordinates `[2]` of the point of a plane closest to `params`, and its distance.

    Args:
      plane: a plane with orthonormal axes.
      params: the point to project, a pytree like the origin.
    """
    offset = trees.difference(params, plane.origin)
    axes = list(map(trees.real, trees.select(plane.origin, plane.axes)))
    coordinates = jnp.asarray(jax.vmap(lambda axis: optax.tree.vdot(axis, offset))(axes))
    return coordinates, trees.length(trees.difference(params, plane_point(plane, coordinates)))


def surface(
    loss_fn: LandscapeFn, plane: Plane, x: Array, y: Array, *, chunk_size: int | None = None
) -> Any:
    """Returns the landscape on a grid of a plane, `[Y, X, ...]` in each leaf.

    Args:
      loss_fn: a function of parameters that returns a pytree of arrays.
      plane: the plane.
      x: `[X]`, coordinates along the first axis.
      y: `[Y]`, coordinates along the second axis.
      chunk_size: the number of points evaluated at once; None: one after another.
    """
    points = jnp.stack(jnp.meshgrid(x, y), -1).reshape(-1, 2)
    values = lax.map(lambda xy: loss_fn(plane_point(plane, xy)), points, batch_size=chunk_size)
    shape = (y.shape[0], x.shape[0])
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), values)
