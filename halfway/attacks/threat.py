"""Threat models: which perturbations of an input are allowed, and its steepest step.

A threat model is a budget and bounds, which are data, and a norm, which is a tuple of functions and
static: passing another budget to a jitted attack compiles nothing, and budgets can be vmapped. A
new norm is a new `Norm` and a constructor beside `linf`, `l2` and `l1`; a mask restricts any of
them to some features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from halfway.types import Array, Key, is_traced

Bounds = tuple[Any, Any]
"""The smallest and the largest value of a feature, scalars."""


class Norm(NamedTuple):
    """What one norm ‖·‖_p contributes to a threat model; functions that are kept, so hashable.

    In all of them `radius` broadcasts against `x`: a scalar or `[B, 1, ..., 1]`.

    Attributes:
      name: of the norm, for people.
      project: `(adversarial, x, radius, bounds) -> [B, ...]`, onto ball ∩ box.
      random_start: `(key, x, radius, bounds) -> [B, ...]`.
      steepest: `(gradient) -> [B, ...]`, s(h) = argmax_{‖s‖_p ≤ 1} ⟨h, s⟩.
      dual: `(gradient) -> [B]`, ‖h‖_q with 1/p + 1/q = 1.
      length: `(move) -> [B]`, ‖·‖_p itself.
    """

    name: str
    project: Callable[[Array, Array, Array, Bounds], Array]
    random_start: Callable[[Key, Array, Array, Bounds], Array]
    steepest: Callable[[Array], Array]
    dual: Callable[[Array], Array]
    length: Callable[[Array], Array]


@flax.struct.dataclass
class Threat:
    """A threat model ‖x' − x‖_p ≤ ε within bounds; a pytree of its budget, bounds and mask.

    Made by `linf`, `l2`, `l1` or `patch`. Clean inputs are taken to lie within the bounds.

    Attributes:
      epsilon: the budget ε in units of the input, a scalar or one per example `[B]`.
      bounds: smallest and largest value of a feature, scalars.
      norm: static.
      mask: bool, of the shape of one example or broadcast against it: the features that may move.
        None: all.
    """

    epsilon: Any
    bounds: Bounds
    norm: Norm = flax.struct.field(pytree_node=False)
    mask: Any = None

    def within(self, mask: Any) -> "Threat":
        """Returns the threat model in which only some features move: a patch, a region, a channel.

        Args:
          mask: bool, of the shape of one example or broadcast against it; the same for all.

        Raises:
          ValueError: for a mask that is not bool, or in which nothing may move.

        Examples:
          >>> threat = attacks.l2(0.5).within(jnp.array([True, False]))
          >>> print(threat.project(jnp.array([[0.9, 0.9]]), jnp.array([[0.1, 0.1]])).round(3))
          [[0.6 0.1]]
        """
        dtype = getattr(mask, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.bool_):
            raise ValueError(f"mask must be an array of bool, got {dtype or type(mask).__name__}")
        if not is_traced(mask) and not np.any(mask):
            raise ValueError("mask must be True somewhere: no feature could move")
        return dataclasses.replace(self, mask=jnp.asarray(mask))

    def limits(self, x: Array) -> Bounds:
        """Returns the smallest and the largest value of each feature: x itself off the mask.

        Args:
          x: `[B, ...]`, clean inputs.
        """
        if self.mask is None:
            return self.bounds
        lower, upper = (jnp.asarray(bound, x.dtype) for bound in self.bounds)
        mask = jnp.broadcast_to(self.mask, x.shape[1:])
        return jnp.where(mask, lower, x), jnp.where(mask, upper, x)

    def _masked(self, gradient: Array) -> Array:
        return gradient if self.mask is None else jnp.where(self.mask, gradient, 0)

    def project(self, adversarial: Array, x: Array) -> Array:
        """Returns the nearest feasible points `[B, ...]` in Euclidean distance.

        Bounds hold exactly, the budget to 1 ulp of the result. With ε = 0 it returns x.

        Args:
          adversarial: `[B, ...]`, anywhere.
          x: `[B, ...]`, centres of the balls.
        """
        chex.assert_equal_shape([adversarial, x])
        return self.norm.project(adversarial, x, self.radius(x), self.limits(x))

    def random_start(self, key: Key, x: Array) -> Array:
        """Returns points `[B, ...]` drawn uniformly from the balls, then moved into the bounds.

        The move is `project`, so the faces of the bounds carry mass. The noise belongs to an
        example's position in the batch: a batch cut short draws the same, a permuted one does not.

        Args:
          key: consumed.
          x: `[B, ...]`, centres of the balls.
        """
        return self.norm.random_start(key, x, self.radius(x), self.limits(x))

    def steepest(self, gradient: Array) -> Array:
        """Returns s(h) `[B, ...]`, the direction of norm at most 1 that gains most; 0 where h is 0.

        Args:
          gradient: h, `[B, ...]`.
        """
        return self.norm.steepest(self._masked(gradient))

    def dual_norm(self, gradient: Array) -> Array:
        """Returns ‖h‖_q `[B]` = ⟨h, s(h)⟩: what a step of length 1 gains to first order.

        Args:
          gradient: h, `[B, ...]`.
        """
        return self.norm.dual(self._masked(gradient))

    def radius(self, x: Array) -> Array:
        """Returns ε in x's precision, as a scalar or as `[B, 1, ..., 1]` of x's rank.

        Args:
          x: `[B, ...]`.
        """
        epsilon = jnp.asarray(self.epsilon, x.dtype)
        chex.assert_rank(epsilon, {0, 1})
        if epsilon.ndim == 0:
            return epsilon
        chex.assert_shape(epsilon, x.shape[:1])
        return per_example(epsilon, x)


def linf(epsilon: Any, bounds: Bounds = (0.0, 1.0)) -> Threat:
    """Returns the threat model |x'_i − x_i| ≤ ε for every feature i, within bounds.

    Args:
      epsilon: ε ≥ 0, finite, in units of the input: a scalar, traced or not, or one per example
        `[B]`.
      bounds: smallest and largest value of a feature; infinite where there is none.

    Raises:
      ValueError: for a negative, infinite or NaN epsilon, or bounds that are not increasing. Traced
        values are not checked.

    Examples:
      >>> threat = attacks.linf(0.125)
      >>> x = jnp.array([[0.5, 0.95]])
      >>> print(threat.project(x + 0.3, x))  # the budget, and the bounds [0, 1]
      [[0.625 1.   ]]
      >>> print(threat.steepest(jnp.array([[-2.0, 0.0]])))
      [[-1.  0.]]
    """
    return _make(epsilon, bounds, LINF)


def l2(epsilon: Any, bounds: Bounds = (0.0, 1.0)) -> Threat:
    """Returns the threat model ‖x' − x‖_2 ≤ ε over all features of an example, within bounds.

    Args:
      epsilon: ε ≥ 0, finite, in units of the input: a scalar, traced or not, or one per example
        `[B]`.
      bounds: smallest and largest value of a feature; infinite where there is none.

    Raises:
      ValueError: as `linf`.

    Examples:
      >>> threat = attacks.l2(0.5, bounds=(-1.0, 1.0))
      >>> x = jnp.zeros((1, 2))
      >>> print(threat.project(jnp.array([[0.6, 0.8]]), x).round(3))
      [[0.3 0.4]]
      >>> print(threat.steepest(jnp.array([[3.0, -4.0]])))
      [[ 0.6 -0.8]]
    """
    return _make(epsilon, bounds, L2)


def l1(epsilon: Any, bounds: Bounds = (0.0, 1.0), *, fraction: float = 0.0) -> Threat:
    """Returns the threat model Σ_i |x'_i − x_i| ≤ ε within bounds.

    The steepest step moves the coordinate of the largest |h|, and splits among ties. In a box that
    is a step of little use, since a coordinate is soon at its bound: with `fraction` it is shared
    equally by that part of the coordinates, the largest |h| first.

    Args:
      epsilon: ε ≥ 0, as of `linf`.
      bounds: smallest and largest value of a feature.
      fraction: of the coordinates that a step moves, in [0, 1]; static. 0: the largest alone.

    Raises:
      ValueError: as `linf`, and for a fraction outside [0, 1].

    Source: Tramèr and Boneh, arXiv 1904.13000, for steps that are shared.

    Examples:
      >>> print(attacks.l1(1.0).steepest(jnp.array([[1.0, -2.0]])))
      [[ 0. -1.]]
      >>> print(attacks.l1(1.0, fraction=1.0).steepest(jnp.array([[1.0, -2.0]])))
      [[ 0.5 -0.5]]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    return _make(epsilon, bounds, _l1_norm(float(fraction)))


def patch(mask: Any, bounds: Bounds = (0.0, 1.0)) -> Threat:
    """Returns the threat model of a patch: some features may be anything, the others stay.

    Args:
      mask: bool, of the shape of one example or broadcast against it: where the patch lies.
      bounds: smallest and largest value of a feature, finite.

    Raises:
      ValueError: for bounds that are not finite or not increasing, and as `Threat.within`.

    Source: Brown et al., arXiv 1712.09665, for patches; here at a place that is given.

    Examples:
      >>> threat = attacks.patch(jnp.array([True, False, False]))
      >>> print(threat.project(jnp.array([[1.7, 0.9, 0.0]]), jnp.array([[0.2, 0.4, 0.6]])))
      [[1.  0.4 0.6]]
    """
    lower, upper = bounds
    if not are_finite(bounds):
        raise ValueError(f"a patch needs finite bounds, got {bounds}")
    return linf(jnp.max(jnp.asarray(upper) - jnp.asarray(lower)), bounds).within(mask)


def _make(epsilon: Any, bounds: Bounds, norm: Norm) -> Threat:
    if not is_traced(epsilon):
        values = np.asarray(epsilon)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}")
    lower, upper = bounds
    if not (is_traced(lower) or is_traced(upper)) and not np.all(
        np.asarray(lower) < np.asarray(upper)
    ):
        raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {bounds}")
    # Arrays of one type, whatever the caller wrote: 0.1 and jnp.float32(0.1) share a program.
    dtype = jnp.result_type(float)
    return Threat(
        epsilon=jnp.asarray(epsilon, dtype),
        bounds=(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)),
        norm=norm,
    )


def per_example(values: Array, like: Array) -> Array:
    """Returns numbers with trailing axes of 1, so that they broadcast against examples.

    Args:
      values: `[B]`.
      like: `[B, ...]`.
    """
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def are_finite(bounds: Bounds) -> bool:
    """Returns whether all bounds are finite, of which traced ones are not looked at.

    Args:
      bounds: smallest and largest value of a feature.
    """
    return all(np.isfinite(np.asarray(bound)).all() for bound in bounds if not is_traced(bound))


def clip_to_box(x: Array, bounds: Bounds) -> Array:
    """Returns x with every feature moved to the nearest value within the bounds.

    Args:
      x: `[B, ...]`.
      bounds: smallest and largest value, each broadcast against x.
    """
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)
    return jnp.clip(x, lower, upper)


def _linf_project(adversarial: Array, x: Array, radius: Array, bounds: Bounds) -> Array:
    # Ball and box are both products of intervals, and x lies in both: clipping twice is exact.
    return clip_to_box(jnp.clip(adversarial, x - radius, x + radius), bounds)


def _linf_random_start(key: Key, x: Array, radius: Array, bounds: Bounds) -> Array:
    noise = jax.random.uniform(key, x.shape, x.dtype, minval=-1.0, maxval=1.0)
    return _linf_project(x + radius * noise, x, radius, bounds)


def _flat(values: Array) -> Array:
    return values.reshape(values.shape[0], -1)


def _sum(values: Array) -> Array:
    return jnp.sum(jnp.abs(values), axis=tuple(range(1, values.ndim)))


def _euclidean(values: Array) -> Array:
    flat = _flat(values)
    largest = jax.lax.stop_gradient(jnp.abs(flat).max(1))
    # Scaled first: squares of small numbers are 0, of large ones infinite.
    usable = (largest > 0) & jnp.isfinite(largest)
    scale = jnp.where(usable, largest, 1)
    length = scale * _root(((flat / scale[:, None]) ** 2).sum(1))
    return jnp.where(usable, length, largest)


def _root(values: Array) -> Array:
    """Returns square roots whose derivative is 0 where they are 0, not infinite."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def _largest(values: Array) -> Array:
    return jnp.abs(_flat(values)).max(1)


def _moved(adversarial: Array, x: Array, bounds: Bounds) -> tuple[Array, Array, Array]:
    """Returns the sign, the length and the room within bounds of each feature's move, `[B, n]`."""
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)
    move = adversarial - x
    room = jnp.where(move > 0, upper - x, x - lower)
    return jnp.sign(_flat(move)), _flat(jnp.abs(move)), _flat(jnp.maximum(room, 0))


def _finish(sign: Array, length: Array, norm: Array, radius: Array, x: Array, bounds: Bounds):
    """Returns x moved by `sign · length`, a little shorter where rounding left the ball."""
    # Each sum rounds: two parts in a million are more than it can be off by.
    safe = jnp.asarray(1 - 2e-6, x.dtype)
    scale = jnp.where(norm > radius * safe, radius * safe / jnp.where(norm > 0, norm, 1), 1)
    move = (sign * length * scale).reshape(x.shape)
    return clip_to_box(x + move, bounds)


def _l2_project(adversarial: Array, x: Array, radius: Array, bounds: Bounds) -> Array:
    # The nearest point has moves min(s |d_i|, c_i), c the room within bounds, with the s in [0, 1]
    # of which the norm is the radius. The root of a free and a clipped part, taken again until no
    # further feature is clipped: s only grows, and stays at or below the true one.
    sign, length, room = _moved(adversarial, x, bounds)
    limit = jnp.broadcast_to(jnp.reshape(radius, (-1, 1)), (x.shape[0], 1))
    tiny = jnp.finfo(x.dtype).tiny

    def grow(_: int, scale: Array) -> Array:
        free = scale * length < room
        taken = jnp.where(free, 0, room**2).sum(1, keepdims=True)
        rest = jnp.where(free, length**2, 0).sum(1, keepdims=True)
        root = _root(jnp.maximum(limit**2 - taken, 0) / jnp.maximum(rest, tiny))
        return jnp.clip(jnp.maximum(root, scale), 0, 1)

    norm = _root((length**2).sum(1, keepdims=True))
    first = jnp.minimum(limit / jnp.maximum(norm, tiny), 1)
    scale = jax.lax.fori_loop(0, _NEWTON_STEPS, grow, first)
    length = jnp.minimum(scale * length, room)
    return _finish(sign, length, _root((length**2).sum(1, keepdims=True)), limit, x, bounds)


def _l2_random_start(key: Key, x: Array, radius: Array, bounds: Bounds) -> Array:
    # The radius of a uniform draw is ε u^(1/n): nearly all of the volume is at the surface.
    key_direction, key_radius = jax.random.split(key)
    flat = _flat(x)
    direction = _unit(jax.random.normal(key_direction, flat.shape, x.dtype))
    length = jax.random.uniform(key_radius, (x.shape[0], 1), x.dtype) ** (1 / flat.shape[1])
    noise = (direction * length).reshape(x.shape)
    return _l2_project(x + radius * noise, x, radius, bounds)


def _unit(flat: Array) -> Array:
    largest = jax.lax.stop_gradient(jnp.abs(flat).max(1, keepdims=True))
    # Scaled first, as in `_euclidean`; the scale has no part in the result.
    scaled = flat / jnp.where(largest > 0, largest, 1)
    norm = _root((scaled**2).sum(1, keepdims=True))
    return scaled / jnp.where(norm > 0, norm, 1)


def _l2_steepest(gradient: Array) -> Array:
    return _unit(_flat(gradient)).reshape(gradient.shape)


def _l1_project(adversarial: Array, x: Array, radius: Array, bounds: Bounds) -> Array:
    # The nearest point has moves min(max(|d_i| − λ, 0), c_i), with the λ ≥ 0 of which the sum is
    # the radius: Newton's steps on a piecewise linear function, halved where they leave a bracket.
    sign, length, room = _moved(adversarial, x, bounds)
    limit = jnp.broadcast_to(jnp.reshape(radius, (-1, 1)), (x.shape[0], 1))

    # The search has no derivative; a last step of it, which does not move, has the implicit one.
    fixed_length, fixed_room, fixed_limit = map(jax.lax.stop_gradient, (length, room, limit))

    def moves(shift: Array) -> Array:
        return jnp.clip(length - shift, 0, room)

    def narrow(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, shift = carry
        rest = fixed_length - shift
        excess = jnp.clip(rest, 0, fixed_room).sum(1, keepdims=True) - fixed_limit
        slope = ((rest > 0) & (rest < fixed_room)).sum(1, keepdims=True)
        low, high = jnp.where(excess > 0, shift, low), jnp.where(excess > 0, high, shift)
        newton = shift + excess / jnp.maximum(slope, 1)
        inside = (newton > low) & (newton < high) & (slope > 0)
        return low, high, jnp.where(inside, newton, 0.5 * (low + high))

    zero = jnp.zeros_like(limit)
    high = fixed_length.max(1, keepdims=True)
    *_, shift = jax.lax.fori_loop(0, _BRACKET_STEPS, narrow, (zero, high, zero))
    within = jnp.minimum(length, room).sum(1, keepdims=True) <= limit
    rest = fixed_length - shift
    slope = ((rest > 0) & (rest < fixed_room)).sum(1, keepdims=True)
    excess = moves(shift).sum(1, keepdims=True) - jnp.where(within, 0, limit)
    shift = shift + (excess - jax.lax.stop_gradient(excess)) / jnp.maximum(slope, 1)
    length = moves(jnp.where(within, 0, shift))
    return _finish(sign, length, length.sum(1, keepdims=True), limit, x, bounds)


def _l1_random_start(key: Key, x: Array, radius: Array, bounds: Bounds) -> Array:
    # n of n + 1 exponential draws over the sum of all are uniform in the simplex.
    key_length, key_rest, key_sign = jax.random.split(key, 3)
    flat = _flat(x)
    length = jax.random.exponential(key_length, flat.shape, x.dtype)
    rest = jax.random.exponential(key_rest, (x.shape[0], 1), x.dtype)
    sign = jax.random.rademacher(key_sign, flat.shape, x.dtype)
    noise = sign * length / (length.sum(1, keepdims=True) + rest)
    return _l1_project(x + radius * noise.reshape(x.shape), x, radius, bounds)


def _l1_steepest(gradient: Array, *, fraction: float) -> Array:
    size = jnp.abs(_flat(gradient))
    number = max(1, round(fraction * size.shape[1]))
    return shared_step(gradient, jax.lax.top_k(size, number)[0][:, -1:])


def shared_step(gradient: Array, least: Array) -> Array:
    """Returns a step of l1 norm 1, shared equally by the components that are large enough.

    Args:
      gradient: h, `[B, ...]`.
      least: `[B, 1]`, the smallest |h_i| that takes part; 0 never does.
    """
    flat = _flat(gradient)
    size = jnp.abs(flat)
    chosen = (size >= least) & (size > 0)
    share = jnp.sign(flat) * chosen / jnp.maximum(chosen.sum(1, keepdims=True), 1)
    return share.reshape(gradient.shape)


_NEWTON_STEPS, _BRACKET_STEPS = 8, 32
"""Enough for float32 to have no better answer."""
LINF = Norm("linf", _linf_project, _linf_random_start, jnp.sign, _sum, _largest)
L2 = Norm("l2", _l2_project, _l2_random_start, _l2_steepest, _euclidean, _euclidean)


@functools.lru_cache(maxsize=64)
def _l1_norm(fraction: float) -> Norm:
    """Returns one and the same norm for one fraction, so that nothing compiles twice."""
    steepest = functools.partial(_l1_steepest, fraction=fraction)
    return Norm("l1", _l1_project, _l1_random_start, steepest, _largest, _sum)
