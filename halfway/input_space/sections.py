"""Sections of input space: decisions on segments and in planes, and how far boundaries lie.

A model is a `logits_fn`, `[B, ...]` to `[B, C]`. An ensemble is one that gives `[B, M, C]`, as
`attacks.ensemble(apply_fn, params, "loss").logits_fn` does; what is returned then has M in front.
Everything lifts with `vmap`, over the parameters of models too:

    jax.vmap(lambda one: input_space.crossing(functools.partial(apply_fn, one), x, other))(params)

Lengths are in l2, in units of the input.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import landscapes, losses
from halfway.landscapes import Plane
from halfway.types import Array, Key, LogitsFn, LossFn, is_traced


class Section(NamedTuple):
    """What models say at points: the class decided, int32, and the loss, arrays of one shape."""

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
      logits_fn: one model or several.
      start: `[B, ...]`.
      end: `[B, ...]`.
      labels: `[B]`, of the loss all along.
      num_points: T ≥ 2, equally spaced, ends included.
      loss_fn: per example.
      chunk_size: positions at which all B points are evaluated at once; None: one after another.

    Raises:
      ValueError: if `num_points` is below 2.

    Examples:
      >>> logits_fn = lambda x: jnp.concatenate([x, jnp.full_like(x, 0.6)], -1)
      >>> start, end, labels = jnp.array([[1.0]]), jnp.array([[0.0]]), jnp.array([0])
      >>> found = input_space.segment(logits_fn, start, end, labels, num_points=5)
      >>> print(found.decision)  # at 1, .75, .5, .25 and 0
      [[0 0 1 1 1]]
    """
    chex.assert_equal_shape([start, end])

    def read(points):
        return _read(logits_fn(points), labels, loss_fn)

    found = landscapes.interpolate(read, start, end, num_points, chunk_size=chunk_size)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), found)


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
      logits_fn: one model or several.
      plane: `landscapes.plane` of three examples, or `random_plane` of two.
      x: `[X]` coordinates along the first axis.
      y: `[Y]` along the second.
      label: of the loss at every point, a scalar.
      loss_fn: per example.
      chunk_size: points evaluated at once; None: one after another.
    """

    def read(point):
        return _read(logits_fn(point[None]), jnp.asarray(label)[None], loss_fn)

    found = landscapes.surface(read, plane, x, y, chunk_size=chunk_size)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf[..., 0], (0, 1), (-2, -1)), found)


def random_plane(key: Key, origin: Array, first: Array) -> Plane:
    """Returns a plane through two examples: `first` on the x-axis, the y-axis a random direction.

    Args:
      key: consumed.
      origin: one example, `[...]`, at (0, 0).
      first: another.

    Raises:
      ValueError: if they are equal (under `jit` the axes are NaN instead).
    """
    return landscapes.plane(
        origin, first, origin + jax.random.normal(key, origin.shape, origin.dtype)
    )


def window(coordinates: Array, *, num_points: int, margin: float = 0.25) -> tuple[Array, Array]:
    """Returns coordinates `[T]` and `[T]` of a grid that holds points of a plane and room around.

    Args:
      coordinates: `[K, 2]`, as `landscapes.project_onto_plane` gives for each point.
      num_points: T, along each axis.
      margin: room on each side, as a share of the larger of the two extents.
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

    The first point of a grid at which the decision is not that at `start`, and bisection between
    it and the point before: a region thinner than 1/num_steps can be missed, and where the
    decision changes, t errs by at most 2^−num_halvings / (2 num_steps). Its gradient is that of
    the crossing of this boundary, by the implicit function theorem.

    Args:
      logits_fn: one model or several; of M, bisection queries all for each. With many, `vmap` over
        their parameters instead.
      start: `[B, ...]`.
      end: `[B, ...]`.
      num_steps: points of the grid beyond `start`; the last is `end`.
      num_halvings: of bisection.
      chunk_size: positions at which all B points are evaluated at once; None: one after another.

    Returns:
      `[B]` or `[M, B]`; inf where the decision is the same all along.

    Raises:
      ValueError: if `num_steps` is below 1, or `num_halvings` below 0.

    Examples:
      >>> logits_fn = lambda x: jnp.concatenate([x, jnp.full_like(x, 0.6)], -1)
      >>> print(input_space.crossing(logits_fn, jnp.array([[1.0]]), jnp.array([[0.0]])).round(3))
      [0.4]
    """
    chex.assert_equal_shape([start, end])
    if num_steps < 1 or num_halvings < 0:
        raise ValueError(
            f"num_steps must be at least 1 and num_halvings at least 0, got {num_steps} and "
            f"{num_halvings}"
        )

    def at(share):  # [B], each its own, or one for all
        share = share.reshape(share.shape + (1,) * (start.ndim - 1)) if share.ndim else share
        return landscapes.linear_path(start, end, share)

    def own(shares):
        """Logits `[(M,) B, C]` of each model at its own points."""
        if shares.ndim == 1:
            return logits_fn(at(shares))
        members = jnp.arange(shares.shape[0])
        return lax.map(lambda one: logits_fn(at(one[1]))[:, one[0]], (members, shares))

    before = _decision(logits_fn(start))
    grid = jnp.arange(1, num_steps + 1) / num_steps
    changed = lax.map(
        lambda share: _decision(logits_fn(at(share))) != before, grid, batch_size=chunk_size
    )
    found, first = changed.any(0), changed.argmax(0)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        same = own(middle).argmax(-1) == before
        return jnp.where(same, middle, low), jnp.where(same, high, middle)

    ends = first / num_steps, (first + 1) / num_steps
    share = lax.stop_gradient(sum(lax.fori_loop(0, num_halvings, halve, ends)) / 2)

    def beyond(share):  # 0 on the boundary
        logits = own(share)
        flat = losses.margin(logits.reshape(-1, logits.shape[-1]), before.reshape(-1))
        return flat.reshape(before.shape)

    # dt = −dF / F'(t) where F(t) = 0; the value stays that of bisection.
    slope = lax.stop_gradient(jax.grad(lambda share: beyond(share).sum())(share))
    flat = slope == 0
    step = jnp.where(flat, 0.0, -beyond(share) / jnp.where(flat, 1.0, slope))
    return jnp.where(found, share + (step - lax.stop_gradient(step)), jnp.inf)


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
    is the model's own decision. See `crossing` for how it is found, and to what precision.

    Args:
      logits_fn: one model or several, as for `crossing`.
      x: `[B, ...]`.
      directions: `[B, ...]`, of any length; along 0 there is no boundary.
      max_distance: up to which it is looked for, a scalar or `[B]`, positive and finite.
      bounds: of the box that the search ends at; None: it goes on beyond.
      num_steps: points of the grid up to the end of the search.
      num_halvings: of bisection.
      chunk_size: positions at which all B points are evaluated at once; None: one after another.

    Returns:
      `[B]` or `[M, B]`; inf where no boundary is found.

    Raises:
      ValueError: if `max_distance` is not positive and finite (where it is not traced).

    Examples:
      >>> logits_fn = lambda x: jnp.concatenate([x, jnp.full_like(x, 0.6)], -1)
      >>> x, directions = jnp.array([[1.0], [1.0]]), jnp.array([[-3.0], [1.0]])
      >>> print(input_space.boundary_distance(logits_fn, x, directions, max_distance=2.0).round(3))
      [0.4 inf]
    """
    chex.assert_equal_shape([x, directions])
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
    found = jnp.isfinite(share)
    length = length if share.ndim == 1 else length[None]
    return jnp.where(found, jnp.where(found, share, 0.0) * length, jnp.inf)


def inter_boundary_distance(distances: Array) -> Array:
    """Returns how far apart the boundaries of each two models lie along a direction, |d_m − d_m'|.

    Infinite where only one of them has a boundary there, NaN where neither has.

    Args:
      distances: `[M, B]` of M models along the same directions, from `boundary_distance`.

    Returns:
      `[M, M, B]`.

    Source: Tramèr et al., arXiv 1704.03453, InterDist.
    """
    return jnp.abs(distances[:, None] - distances[None])


def directions_toward(x: Array, points: Array) -> Array:
    """Returns unit directions `[B, ...]` from examples to points; 0 where they are equal.

    Towards its adversarial examples, `attacks.pgd(...).adversarial`, it is an attack's direction.
    """
    return _unit(points - x)


def legitimate_directions(
    x: Array, labels: Array, examples: Array, example_labels: Array, *, chunk_size: int = 64
) -> Array:
    """Returns unit directions `[B, ...]` towards the nearest example of another class, in l2.

    Args:
      x: `[B, ...]`.
      labels: `[B]`.
      examples: `[N, ...]` that are looked among; x may be some of them.
      example_labels: `[N]`.
      chunk_size: rows of x compared at once with all N.

    Returns:
      0 where there is no example of another class, or it is x itself.
    """
    flat = examples.reshape(examples.shape[0], -1)
    squares = (flat**2).sum(-1)

    def nearest(one):
        point, label = one
        # Less the point's own square, which is the same for all.
        gaps = jnp.where(example_labels != label, squares - 2 * flat @ point.reshape(-1), jnp.inf)
        other = gaps.argmin()
        return jnp.where(jnp.isfinite(gaps[other]), _unit((examples[other] - point)[None])[0], 0.0)

    return lax.map(nearest, (x, labels), batch_size=chunk_size)


def adversarial_directions(
    logits_fn: LogitsFn, x: Array, labels: Array, *, loss_fn: LossFn = losses.margin
) -> Array:
    """Returns unit directions `[B, ...]` of the input gradient of a model's attack loss.

    Args:
      logits_fn: one model.
      x: `[B, ...]`.
      labels: `[B]`.
      loss_fn: attack loss.

    Returns:
      0 where the gradient is.
    """
    return _unit(jax.grad(lambda z: loss_fn(logits_fn(z), labels).sum())(x))


def random_directions(key: Key, x: Array) -> Array:
    """Returns unit directions `[B, ...]`, uniform on the sphere.

    Args:
      key: consumed.
      x: `[B, ...]`, for its shape.
    """
    return _unit(jax.random.normal(key, x.shape, x.dtype))


def _decision(logits: Array) -> Array:
    """Returns classes `[B]`, or `[M, B]` of several models."""
    return jnp.moveaxis(logits.argmax(-1), 0, -1)


def _read(logits: Array, labels: Array, loss_fn: LossFn) -> Section:
    if logits.ndim == 3:
        return jax.vmap(lambda one: _read(one, labels, loss_fn), 1)(logits)
    return Section(logits.argmax(-1).astype(jnp.int32), loss_fn(logits, labels))


def _unit(vectors: Array) -> Array:
    """Returns `[B, ...]` scaled to length 1, example by example; 0 stays 0."""
    square = (vectors**2).reshape(vectors.shape[0], -1).sum(-1)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 1.0)
    return vectors / length.reshape(-1, *[1] * (vectors.ndim - 1))


def _room(x: Array, direction: Array, bounds: tuple[float, float]) -> Array:
    """Returns `[B]`, how far one can go before a feature leaves the bounds; inf along 0."""
    low, high = bounds
    still = direction == 0
    bound = jnp.where(direction > 0, high, low)
    room = jnp.where(still, np.inf, (bound - x) / jnp.where(still, 1.0, direction))
    return jnp.maximum(room.reshape(x.shape[0], -1).min(-1), 0.0)
