"""Sections of input space: decisions on segments and in planes, and how far boundaries lie.

A model is a `logits_fn`, `[B, ...]` to `[B, C]`. An ensemble is a `logits_fn` that returns
`[B, M, C]`, as `attacks.ensemble(apply_fn, params, "loss").logits_fn` does; results then have M in
front. Everything lifts with `vmap`, over the parameters of models too:

    jax.vmap(lambda p: input_space.crossing(functools.partial(apply_fn, p), x, other))(params)

Lengths are in l2, in units of the input.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import landscapes, losses, trees
from halfway.landscapes import Plane
from halfway.types import Array, Key, LogitsFn, LossFn, is_traced

_NO_CLASS = -1


class Section(NamedTuple):
    """The outputs of models at points.

    Attributes:
      decision: `[...]` int32, the class that a model decides on; −1 where a logit is NaN.
      loss: `[...]`, the loss, of the same shape.
    """

    decision: Array
    loss: Array


def segment(
    logits_fn: LogitsFn,
    start: Array,
    end: Array,
    labels: Array,
    *,
    num_points: int,
    loss_fn: LossFn = losses.margin,
    chunk_size: int | None = None,
) -> Section:
    """Returns decisions and losses along segments between examples, `[B, T]` or `[M, B, T]`.

    Args:
      logits_fn: one model, or M models at once.
      start: `[B, ...]`, the examples where segments start.
      end: `[B, ...]`, the examples where segments end.
      labels: `[B]`, the labels of the loss along each whole segment.
      num_points: T ≥ 2, the number of equally spaced points, ends included.
      loss_fn: a loss per example.
      chunk_size: the number of positions at which all B points are evaluated at once; None: one
        after another.

    Raises:
      ValueError: if `num_points` is below 2.

    Examples:
      >>> logits_fn = lambda x: jnp.concatenate([x, jnp.full_like(x, 0.6)], -1)
      >>> start, end, labels = jnp.array([[1.0]]), jnp.array([[0.0]]), jnp.array([0])
      >>> section = input_space.segment(logits_fn, start, end, labels, num_points=5)
      >>> print(section.decision)  # at 1, .75, .5, .25 and 0
      [[0 0 1 1 1]]
    """
    chex.assert_equal_shape([start, end])
    start, end = trees.real(start), trees.real(end)

    def read(points):
        return _read(logits_fn(points), labels, loss_fn)

    sections = landscapes.interpolate(read, start, end, num_points, chunk_size=chunk_size)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), sections)


def plane_section(
    logits_fn: LogitsFn,
    plane: Plane,
    x: Array,
    y: Array,
    label: Array | int,
    *,
    loss_fn: LossFn = losses.margin,
    chunk_size: int | None = None,
) -> Section:
    """Returns decisions and losses on a grid of a plane, `[Y, X]` or `[M, Y, X]`.

    Args:
      logits_fn: one model, or M models at once.
      plane: `landscapes.plane` of three examples, or `random_plane` of two.
      x: `[X]`, coordinates along the first axis.
      y: `[Y]`, coordinates along the second axis.
      label: the label of the loss at every point, a scalar.
      loss_fn: a loss per example.
      chunk_size: the number of points evaluated at once; None: one after another.
    """

    def read(point):
        return _read(logits_fn(point[None]), jnp.asarray(label)[None], loss_fn)

    sections = landscapes.surface(read, plane, x, y, chunk_size=chunk_size)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf[..., 0], (0, 1), (-2, -1)), sections)


def random_plane(key: Key, origin: Array, first: Array) -> Plane:
    """Returns a plane through two examples: `first` on the x-axis, the y-axis a random direction.

    Args:
      key: a PRNG key, consumed.
      origin: `[...]`, the example at (0, 0).
      first: `[...]`, another example.

    Raises:
      ValueError: if both are equal (under `jit` the axes are NaN instead).
    """
    origin = trees.real(origin)
    return landscapes.plane(
        origin, trees.real(first), origin + jax.random.normal(key, origin.shape, origin.dtype)
    )


def window(coordinates: Array, *, num_points: int, margin: float = 0.25) -> tuple[Array, Array]:
    """Returns the coordinates of a grid that holds points of a plane with room around them.

    Args:
      coordinates: `[K, 2]`, the coordinates of K points, as `landscapes.project_onto_plane` gives.
      num_points: T, the number of coordinates along each axis.
      margin: the room on each side, as a share of the larger of the two extents.

    Returns:
      The coordinates `[T]` along the first and along the second axis.
    """
    low, high = coordinates.min(0), coordinates.max(0)
    room = margin * (high - low).max()
    shares = jnp.linspace(0.0, 1.0, num_points)
    x, y = (lo - room + shares * (hi - lo + 2 * room) for lo, hi in zip(low, high, strict=True))
    return x, y


def crossing(
    logits_fn: LogitsFn,
    start: Array,
    end: Array,
    *,
    num_steps: int = 100,
    num_halvings: int = 12,
    chunk_size: int | None = None,
) -> Array:
    """Returns the share t in [0, 1] of each segment at which the first boundary is crossed.

    A grid gives the first point at which the decision is not the decision at `start`; bisection
    between this point and the point before it follows. A region thinner than 1/num_steps can be
    missed; where the decision changes, the error of t is at most 2^−num_halvings / (2 num_steps).
    The gradient of t is that of the crossing of this boundary, by the implicit function theorem.

    Args:
      logits_fn: one model, or M models at once. With M models, bisection queries all of them for
        each; where M is large, `vmap` over their parameters instead.
      start: `[B, ...]`, the examples where segments start.
      end: `[B, ...]`, the examples where segments end.
      num_steps: the number of points of the grid beyond `start`; the last is `end`.
      num_halvings: the number of halvings of the interval.
      chunk_size: the number of positions at which all B points are evaluated at once; None: one
        after another.

    Returns:
      The shares `[B]` or `[M, B]`; inf where the decision is the same along the whole segment; NaN
      where a logit is NaN at the start, or at a later point before a boundary is found.

    Raises:
      ValueError: if `num_steps` is below 1, or `num_halvings` below 0.

    Examples:
      >>> logits_fn = lambda x: jnp.concatenate([x, jnp.full_like(x, 0.6)], -1)
      >>> print(input_space.crossing(logits_fn, jnp.array([[1.0]]), jnp.array([[0.0]])).round(3))
      [0.4]
    """
    chex.assert_equal_shape([start, end])
    start, end = trees.real(start), trees.real(end)
    if num_steps < 1 or num_halvings < 0:
        raise ValueError(
            f"num_steps must be at least 1 and num_halvings at least 0, got {num_steps} and "
            f"{num_halvings}"
        )

    def at(share):  # `[B]`, or a scalar for all examples
        share = share.reshape(share.shape + (1,) * (start.ndim - 1)) if share.ndim else share
        return landscapes.linear_path(start, end, share)

    def logits_at(shares):
        """Returns the logits `[(M,) B, C]` of each model at the points of that model."""
        if shares.ndim == 1:
            return logits_fn(at(shares))
        members = jnp.arange(shares.shape[0])
        return lax.map(lambda member: logits_fn(at(member[1]))[:, member[0]], (members, shares))

    before = _decision(logits_fn(start))
    grid = jnp.arange(1, num_steps + 1) / num_steps
    decisions = lax.map(lambda share: _decision(logits_fn(at(share))), grid, batch_size=chunk_size)
    changed = decisions != before[None]
    is_crossed, first = changed.any(0), changed.argmax(0)
    reached = jnp.take_along_axis(decisions, first[None], 0)[0]

    def halve(_, carry):
        low, high, is_lost = carry
        middle = (low + high) / 2
        decision = _classes(logits_at(middle))
        same = decision == before
        ends = jnp.where(same, middle, low), jnp.where(same, high, middle)
        return *ends, is_lost | (decision == _NO_CLASS)

    is_lost = (before == _NO_CLASS) | (is_crossed & (reached == _NO_CLASS))
    ends = first / num_steps, (first + 1) / num_steps
    low, high, is_lost_within = lax.fori_loop(0, num_halvings, halve, (*ends, is_lost))
    is_lost = is_lost | (is_crossed & is_lost_within)
    share = lax.stop_gradient((low + high) / 2)

    def beyond(share):
        """Returns the margin `[(M,) B]`, which is 0 on the boundary."""
        logits = logits_at(share)
        flat = losses.margin(logits.reshape(-1, logits.shape[-1]), before.reshape(-1))
        return flat.reshape(before.shape)

    # dt = −dF / F'(t) where F(t) = 0; the value remains the result of bisection.
    slope = lax.stop_gradient(jax.grad(lambda share: beyond(share).sum())(share))
    flat = slope == 0
    step = jnp.where(flat, 0.0, -beyond(share) / jnp.where(flat, 1.0, slope))
    step = jnp.where(jnp.isfinite(step), step, 0.0)  # between infinite logits
    share = jnp.where(is_crossed, share + (step - lax.stop_gradient(step)), jnp.inf)
    return jnp.where(is_lost, jnp.nan, share)


def boundary_distance(
    logits_fn: LogitsFn,
    x: Array,
    directions: Array,
    *,
    max_distance: Array | float,
    bounds: tuple[float, float] | None = None,
    num_steps: int = 100,
    num_halvings: int = 12,
    chunk_size: int | None = None,
) -> Array:
    """Returns how far from each example the first boundary lies along a direction, in l2.

    MinDist_d(f, x) = argmin_{ε > 0} f(x + ε d) ≠ f(x) (Tramèr et al., arXiv 1704.03453), where f(x)
    is the decision of the model at x. It is found as in `crossing`, with the same precision.

    Args:
      logits_fn: one model, or M models at once, as for `crossing`.
      x: `[B, ...]`, the examples.
      directions: `[B, ...]`, of any length, also 1e-25; along 0 there is no boundary.
      max_distance: the length of the search in l2, a scalar or `[B]`, positive and finite.
      bounds: the lowest and the highest value of a feature, where the search ends; None: no bounds.
      num_steps: the number of points of the grid up to the end of the search.
      num_halvings: the number of halvings of the interval.
      chunk_size: the number of positions at which all B points are evaluated at once; None: one
        after another.

    Returns:
      The distances `[B]` or `[M, B]`; inf where no boundary is found; NaN where logits are NaN
      before one is, as in `crossing`, or the direction is not finite.

    Raises:
      ValueError: if `max_distance` is not positive and finite (where it is not traced).

    Examples:
      >>> logits_fn = lambda x: jnp.concatenate([x, jnp.full_like(x, 0.6)], -1)
      >>> x, directions = jnp.array([[1.0], [1.0]]), jnp.array([[-3.0], [1.0]])
      >>> print(input_space.boundary_distance(logits_fn, x, directions, max_distance=2.0).round(3))
      [0.4 inf]
    """
    chex.assert_equal_shape([x, directions])
    x, directions = trees.real(x), trees.real(directions)
    farthest = jnp.asarray(max_distance, x.dtype)
    if not is_traced(farthest) and not bool(jnp.all((farthest > 0) & jnp.isfinite(farthest))):
        raise ValueError(f"max_distance must be positive and finite, got {max_distance}")
    direction = _unit(directions)
    length = jnp.broadcast_to(farthest, x.shape[:1])
    if bounds is not None:
        length = jnp.minimum(length, _room(x, direction, bounds))
    end = x + length.reshape(-1, *[1] * (x.ndim - 1)) * direction
    share = crossing(
        logits_fn, x, end, num_steps=num_steps, num_halvings=num_halvings, chunk_size=chunk_size
    )
    is_crossed = jnp.isfinite(share)
    is_known = jnp.isfinite(directions.reshape(x.shape[0], -1)).all(-1)
    if share.ndim == 2:
        length, is_known = length[None], is_known[None]
    is_lost = jnp.isnan(share) | ~is_known
    distance = jnp.where(is_crossed, jnp.where(is_crossed, share, 0.0) * length, jnp.inf)
    return jnp.where(is_lost, jnp.nan, distance)


def inter_boundary_distance(distances: Array) -> Array:
    """Returns how far apart the boundaries of each two models lie along a direction, |d_m − d_m'|.

    It is infinite where only one of the two models has a boundary, and NaN where neither has.

    Args:
      distances: `[M, B]`, from `boundary_distance`, of M models along the same directions.

    Returns:
      The distances `[M, M, B]` between boundaries.

    Source: Tramèr et al., arXiv 1704.03453, InterDist.
    """
    return jnp.abs(distances[:, None] - distances[None])


def directions_toward(x: Array, points: Array) -> Array:
    """Returns unit directions `[B, ...]` from examples to points; 0 where they are equal.

    Where the points are `attacks.pgd(...).adversarial`, they are the directions of an attack.

    Args:
      x: `[B, ...]`, the examples.
      points: `[B, ...]`, the points.
    """
    return _unit(trees.real(points) - trees.real(x))


def legitimate_directions(
    x: Array, labels: Array, examples: Array, example_labels: Array, *, chunk_size: int = 64
) -> Array:
    """Returns unit directions `[B, ...]` towards the nearest example of another class, in l2.

    Args:
      x: `[B, ...]`, the points that directions start from.
      labels: `[B]`, their labels.
      examples: `[N, ...]`, the examples that are searched; x may be among them.
      example_labels: `[N]`, their labels.
      chunk_size: the number of rows of x that are compared with all N examples at once.

    Returns:
      `[B, ...]`; 0 where no example has another class, or the nearest one equals x; NaN where an
      example of another class, or x, is not finite.
    """
    x, examples = trees.real(x), trees.real(examples)
    scale = trees.power_of_two(jnp.abs(examples).max(initial=0))  # its entries are squared
    x, examples = x / scale, examples / scale
    flat = examples.reshape(examples.shape[0], -1)
    squares = (flat**2).sum(-1)

    def nearest(example):
        point, label = example
        # The squared distance less the square of the point, which is the same for all examples.
        gaps = jnp.where(example_labels != label, squares - 2 * flat @ point.reshape(-1), jnp.inf)
        other = gaps.argmin()
        direction = _unit((examples[other] - point)[None])[0]
        direction = jnp.where(jnp.isnan(gaps[other]), jnp.nan, direction)
        return jnp.where(gaps[other] == jnp.inf, 0.0, direction)

    return lax.map(nearest, (x, labels), batch_size=chunk_size)


def adversarial_directions(
    logits_fn: LogitsFn, x: Array, labels: Array, *, loss_fn: LossFn = losses.margin
) -> Array:
    """Returns unit directions `[B, ...]` of the input gradient of a model's attack loss.

    Args:
      logits_fn: the model.
      x: `[B, ...]`, the examples.
      labels: `[B]`, their labels.
      loss_fn: the loss per example that an attack raises.

    Returns:
      `[B, ...]`; 0 where the gradient is 0.
    """
    return _unit(jax.grad(lambda z: loss_fn(logits_fn(z), labels).sum())(trees.real(x)))


def random_directions(key: Key, x: Array) -> Array:
    """Returns unit directions `[B, ...]`, uniform on the sphere.

    Args:
      key: a PRNG key, consumed.
      x: `[B, ...]`; its shape is that of the result, which is at least in single precision.
    """
    x = trees.real(x)
    return _unit(jax.random.normal(key, x.shape, x.dtype))


def _classes(logits: Array) -> Array:
    """Returns the classes of logits `[..., C]`; −1 where one is NaN, which argmax would choose."""
    return jnp.where(jnp.isnan(logits).any(-1), _NO_CLASS, logits.argmax(-1)).astype(jnp.int32)


def _decision(logits: Array) -> Array:
    """Returns classes `[B]`, or `[M, B]` of several models."""
    return jnp.moveaxis(_classes(logits), 0, -1)


def _read(logits: Array, labels: Array, loss_fn: LossFn) -> Section:
    if logits.ndim == 3:
        return jax.vmap(lambda member_logits: _read(member_logits, labels, loss_fn), 1)(logits)
    return Section(_classes(logits), loss_fn(logits, labels))


def _unit(vectors: Array) -> Array:
    """Returns `[B, ...]` scaled to length 1, example by example; 0 stays 0."""
    return trees.unit(vectors, axis=tuple(range(1, vectors.ndim)))


def _room(x: Array, direction: Array, bounds: tuple[float, float]) -> Array:
    """Returns how far `[B]` a point can move before a feature leaves the bounds; inf along 0."""
    low, high = bounds
    still = direction == 0
    bound = jnp.where(direction > 0, high, low)
    room = jnp.where(still, np.inf, (bound - x) / jnp.where(still, 1.0, direction))
    return jnp.maximum(room.reshape(x.shape[0], -1).min(-1), 0.0)
