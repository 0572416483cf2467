"""FAB: to the nearest linearized boundary, never far from where the input was (Croce and Hein)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult, Objective
from halfway.attacks.minimum_norm import nearest
from halfway.attacks.minimum_norm.nearest import MAKE, Linearize, Nearest, distance
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn


@door.checked
@nearest.in_unit_box
def fab(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    num_steps: int = 100,
    num_restarts: int = 1,
    overshoot: float = 1.05,
    backward: float = 0.9,
    bias: float = 0.1,
) -> AttackResult:
    """Returns the nearest success of the fast adaptive boundary attack (Croce and Hein, 2020).

    A step goes beyond the linearized boundary, to the mean of its nearest point in the box from
    here and that from x; a success is kept if it is the nearest, and the walk steps back towards x.
    At the end three secant steps look between x and the nearest success. Without targets all logits
    are differentiated at every step.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters with restarts only.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      norm: "linf", "l2" or "l1".
      bounds: smallest and largest value of a feature.
      targets: `[B]` integers that the attack steers to, or None.
      num_steps: of each walk, static.
      num_restarts: walks; the first begins at x, others within half of the distance found.
      overshoot: η ≥ 1, by which a step goes beyond the boundary.
      backward: β in (0, 1), what remains of the perturbation after a success.
      bias: α_max in [0, 1], the largest weight of x's own nearest point.

    Raises:
      ValueError: for another norm and counts below 1.

    Source: arXiv 1907.02044.
    """
    nearest.check(norm, tuple(MAKE), num_steps)
    base.check_count("num_restarts", num_restarts)
    goal = nearest.firm(logits_fn, labels, losses.margin, targets)
    linearize = (
        nearest.nearest_class(logits_fn, labels, norm)
        if targets is None
        else class_ahead(logits_fn, None, targets)
    )
    num_classes = jax.eval_shape(logits_fn, x).shape[1]
    # One forward evaluation, with its gradients, to linearize; one to look where the step ends.
    each = num_classes + 1 if targets is None else 2
    kept, queries = search(
        goal,
        linearize,
        x,
        norm,
        bounds,
        num_steps=num_steps,
        queries_of_step=each,
        restarts=jax.random.split(key, num_restarts)[1:],
        overshoot=overshoot,
        backward=backward,
        bias=bias,
    )
    return nearest.result(goal, kept.point, queries + 1)


def search(
    goal: Objective,
    linearize: Linearize,
    x: Array,
    norm: str,
    bounds: Bounds,
    *,
    num_steps: int,
    queries_of_step: int,
    restarts: Key | None = None,
    overshoot: float = 1.05,
    backward: float = 0.9,
    bias: float = 0.1,
) -> tuple[Nearest, int]:
    """Returns the nearest success of all walks and of the secant steps after them, and queries.

    Args:
      goal: says what a success is.
      linearize: at each point, the boundary to go to.
      x: `[B, ...]`, clean inputs.
      norm, bounds: of the inputs.
      num_steps: of each walk.
      queries_of_step: that are counted.
      restarts: `[R]` keys of the walks after the first; None: there is but that.
      overshoot, backward, bias: as of `fab`.
    """
    options = {"num_steps": num_steps, "overshoot": overshoot, "backward": backward, "bias": bias}
    kept, end = walk(goal, linearize, x, x, nearest.nothing(x), norm, bounds, **options)

    def again(carry: tuple[Nearest, Array], key: Key) -> tuple[tuple[Nearest, Array], None]:
        kept, end = carry
        succeeded = jnp.isfinite(kept.distance)
        reach = 0.5 * jnp.where(succeeded, kept.distance, distance(end, x, norm))
        start = MAKE[norm](reach, bounds).random_start(key, x)
        return walk(goal, linearize, x, start, kept, norm, bounds, **options), None

    number = 1
    if restarts is not None:
        (kept, _), _ = jax.lax.scan(again, (kept, end), restarts)
        number += restarts.shape[0]
    queries = number * (num_steps * queries_of_step + 1) + _SECANTS + 2
    return _between(goal, x, kept, norm), queries


def class_ahead(logits_fn: LogitsFn, labels: Array | None, targets: Array) -> Linearize:
    """Returns f_t − f_y and its gradient at a point, for one class t of each example.

    It is less `nearest.firm_lead`, so that it is 0 where t is firmly ahead.

    Args:
      logits_fn: of the model.
      labels: `[B]`, y; None: the largest logit of another class, at each point.
      targets: `[B]`, t.
    """

    def ahead(x: Array) -> Array:
        raw = logits_fn(x)
        logits = base.precise(raw)
        is_target = jax.nn.one_hot(targets, logits.shape[1], dtype=bool)
        others = jax.lax.stop_gradient(jnp.where(is_target, -jnp.inf, logits)).argmax(1)
        is_label = jax.nn.one_hot(others if labels is None else labels, logits.shape[1], dtype=bool)
        first, second = (jnp.where(chosen, logits, 0).sum(1) for chosen in (is_target, is_label))
        lead = nearest.firm_lead(first, second, raw.dtype)
        return first - second - jax.lax.stop_gradient(lead)

    return first_order(ahead)


def first_order(ahead: Callable[[Array], Array]) -> Linearize:
    """Returns values `[B]` of a function of examples, and its gradients, at a point.

    Args:
      ahead: inputs `[B, ...]` to how far a class is ahead of the label.
    """

    def linearize(x: Array) -> tuple[Array, Array]:
        values, pullback = jax.vjp(ahead, x)
        return values, pullback(jnp.ones_like(values))[0]

    return linearize


def walk(
    goal: Objective,
    linearize: Linearize,
    x: Array,
    start: Array,
    kept: Nearest,
    norm: str,
    bounds: Bounds,
    *,
    num_steps: int,
    overshoot: float,
    backward: float,
    bias: float,
) -> tuple[Nearest, Array]:
    """Returns the nearest success after one walk, and where it ends, `[B, ...]`.

    Args:
      goal: says what a success is.
      linearize: at each point, the boundary to go to.
      x: `[B, ...]`, clean inputs.
      start: `[B, ...]`, where the walk begins.
      kept: the nearest success before.
      norm, bounds: of the inputs.
      num_steps, overshoot, backward, bias: as of `fab`.
    """
    kept = nearest.keep(kept, x, x, goal.success(goal.value(x)[1]), norm)

    def step(_: int, carry: tuple[Nearest, Array]) -> tuple[Nearest, Array]:
        kept, point = carry
        ahead, normal = linearize(point)
        normal = base.finite(normal)
        here = to_plane(point, normal, -ahead, norm, bounds)
        # The same plane as seen from x.
        inner = (normal * (x - point)).reshape(x.shape[0], -1).sum(1)
        there = to_plane(x, normal, -(ahead + inner), norm, bounds)
        length = MAKE[norm](0.0).norm.length
        near, far = length(here), length(there)
        both = near + far
        share = jnp.minimum(jnp.where(both > 0, near / jnp.where(both > 0, both, 1), 0), bias)
        share = base.per_example(share, x)
        moved = (1 - share) * (point + overshoot * here) + share * (x + overshoot * there)
        moved = threat.clip_to_box(moved, bounds)
        success = goal.success(goal.value(moved)[1])
        kept = nearest.keep(kept, moved, x, success, norm)
        back = (1 - backward) * x + backward * moved
        return kept, jnp.where(base.per_example(success, x), back, moved)

    return jax.lax.fori_loop(0, num_steps, step, (kept, start))


def to_plane(x: Array, normal: Array, amount: Array, norm: str, bounds: Bounds) -> Array:
    """Returns the move δ `[B, ...]` of least norm within bounds with ⟨normal, δ⟩ = amount.

    Where no point of the box lies there, the move to the corner that comes nearest.

    Args:
      x: `[B, ...]`, within the bounds.
      normal: `[B, ...]`.
      amount: `[B]`.
      norm: "linf", "l2" or "l1".
      bounds: smallest and largest value of a feature.

    Source: Croce and Hein, arXiv 1907.02044, section 2.1, for the projections; here the Lagrange
    multiplier is found by Newton's steps, which rise to it, or by bisection (l1).
    """
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)
    slope = normal * base.per_example(jnp.sign(amount), x)
    room = jnp.maximum(jnp.where(slope > 0, upper - x, x - lower), 0)
    slope, room = (values.reshape(x.shape[0], -1) for values in (slope, room))
    size, total = jnp.abs(slope), jnp.abs(amount)[:, None]
    length = _sparse(size, room, total) if norm == "l1" else _shared(size, room, total, norm)
    return (jnp.sign(slope) * length).reshape(x.shape)


def _shared(size: Array, room: Array, total: Array, norm: str) -> Array:
    """Returns min(s, room) for l∞ or min(s · size, room) for l2, with Σ size · that = total."""
    weight = jnp.ones_like(size) if norm == "linf" else size

    def rise(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, scale, _ = carry
        free = scale * weight < room
        taken = jnp.where(free, 0, size * room).sum(1, keepdims=True)
        rest = jnp.where(free, size * weight, 0).sum(1, keepdims=True)
        needed = jnp.maximum(total - taken, 0)
        # Where nothing is left free the corner is all there is.
        root = jnp.where(rest > 0, needed / jnp.where(rest > 0, rest, 1), jnp.inf)
        higher = jnp.where(needed > 0, jnp.maximum(root, scale), scale)
        return index + 1, higher, higher > scale

    def rises(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < _NEWTON_STEPS) & carry[2].any()

    begin = (jnp.int32(0), jnp.zeros_like(total), jnp.ones_like(total, bool))
    _, scale, _ = jax.lax.while_loop(rises, rise, begin)
    return jnp.where(size > 0, jnp.minimum(scale * weight, room), 0)


def _sparse(size: Array, room: Array, total: Array) -> Array:
    """Returns moves that take the largest sizes first, each its whole room, until the total."""
    # One feature never has to move farther than if it moved alone.
    room = jnp.where(size > 0, jnp.minimum(room, total / jnp.where(size > 0, size, 1)), 0)
    gain = size * room

    def narrow(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        beyond = jnp.where(size > middle, gain, 0).sum(1, keepdims=True) > total
        return jnp.where(beyond, middle, low), jnp.where(beyond, high, middle)

    largest = size.max(1, keepdims=True)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, narrow, (jnp.zeros_like(largest), largest))
    whole = size > high
    ties = (size > low) & ~whole
    left = total - jnp.where(whole, gain, 0).sum(1, keepdims=True)
    among = jnp.where(ties, gain, 0).sum(1, keepdims=True)
    share = jnp.clip(left / jnp.where(among > 0, among, 1), 0, 1)
    return jnp.where(whole, room, jnp.where(ties, share * room, 0))


def _between(goal: Objective, x: Array, kept: Nearest, norm: str) -> Nearest:
    """Returns the nearest success after secant steps on the segment from x to the nearest one."""
    at_x, at_kept = goal.value(x)[0], goal.value(kept.point)[0]

    def step(_: int, carry: tuple[Nearest, Array, Array, Array, Array]):
        kept, low, high, below, above = carry
        gap = above - below
        share = jnp.clip(jnp.where(gap > 0, -below / jnp.where(gap > 0, gap, 1), 1), 0, 1)
        # A little beyond, since exactly on the boundary is no success.
        middle = low + (high - low) * jnp.minimum(1.01 * share + 1e-3, 1)
        point = x + base.per_example(middle, x) * (end - x)
        loss, logits = goal.value(point)
        success = goal.success(logits)
        kept = nearest.keep(kept, point, x, success, norm)
        low, high = jnp.where(success, low, middle), jnp.where(success, middle, high)
        return kept, low, high, jnp.where(success, below, loss), jnp.where(success, loss, above)

    end, zero = kept.point, jnp.zeros_like(at_x)
    carry = (kept, zero, zero + 1, at_x, at_kept)
    return jax.lax.fori_loop(0, _SECANTS, step, carry)[0]


_NEWTON_STEPS, _BISECTIONS, _SECANTS = 50, 32, 3
