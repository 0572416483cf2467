"""Attacks that look for the nearest adversarial point by decisions: Boundary, HopSkipJump.

All they ask of a model is whether a point is adversarial: not for logits, and not for gradients.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult
from halfway.attacks.minimum_norm import nearest
from halfway.attacks.minimum_norm.nearest import MAKE, Nearest, distance
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn, is_traced

Decide = Callable[[Array], Array]
"""Points `[B, ...]` to whether they are adversarial, `[B]` bool; costs one query."""

SPHERE_RATE, INWARD_RATE = 0.5, 0.25
"""Shares of the draws on the sphere, and of the whole steps, that shall be adversarial."""
OVERSHOOT = 1e-4
"""Share of its distance by which a result lies beyond the boundary: rounding undoes less."""
FACTOR, LOOK_EVERY, SHORTEST = 1.2, 10, 1e-5
"""By how much lengths adapt; steps between looks at draws on the sphere; length above rounding."""


@door.checked
@nearest.in_unit_box
def boundary(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    start: Array | None = None,
    num_steps: int = 5000,
    num_start_draws: int = 100,
    orthogonal_step: Any = 0.1,
    inward_step: Any = 0.1,
) -> AttackResult:
    """Returns the end of a random walk along the boundary, ever nearer (Brendel et al., 2018).

    l2. The walk begins where the segment from x to an adversarial start crosses the boundary. A
    step goes in a drawn direction along the sphere around x, then towards x, and is taken where it
    ends adversarial. Both lengths adapt, for each example its own: the first so that half of the
    draws on the sphere, looked at every tenth step, are adversarial, the second so that a quarter
    of the steps is taken. The result lies 1e-4 of its distance farther out. Queries are those spent
    on an example while it walks.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; the noise belongs to an example's position in the batch.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      bounds: smallest and largest value of a feature.
      targets: `[B]` integers that the attack steers to, or None.
      start: `[B, ...]` adversarial points, such as inputs of another class, moved into the bounds.
        None: uniform draws, in which a model often sees but one class; where none is adversarial,
        the other examples of the batch, then halves of them and of draws. Where no start is
        adversarial the example stays x, and its loss is NaN: it is not known to be robust.
      num_steps: static.
      num_start_draws: at most, where no start is given; static.
      orthogonal_step: first length along the sphere, over the distance to x; in (0, 1].
      inward_step: first length towards x, likewise.

    Raises:
      ValueError: for counts or steps out of range, and infinite bounds without a start.

    Source: arXiv 1712.04248.
    """
    nearest.check("l2", ("l2",), num_steps)
    first = {"orthogonal_step": orthogonal_step, "inward_step": inward_step}
    for name, length in first.items():
        chex.assert_rank(length, 0)
        if not is_traced(length) and not 0 < length <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {length}")
    goal, ball = base.objective(logits_fn, labels, losses.margin, targets), threat.l2(0.0, bounds)
    each = functools.partial(base.per_example, like=x)

    def decide(point: Array) -> Array:
        return goal.success(logits_fn(point))

    def step(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        point, along, inward, queries = carry
        away, length = point - x, distance(point, x)
        outward, noise = ball.steepest(away), _draw(jax.random.normal, keys, index, x)
        radial = jnp.sum(noise * outward, tuple(range(1, x.ndim)))
        turned = away + each(along * length) * ball.steepest(noise - each(radial) * outward)
        drawn = threat.clip_to_box(x + each(length) * ball.steepest(turned), bounds)
        tried = threat.clip_to_box(x + each(1 - inward) * (drawn - x), bounds)
        won, looks = decide(tried), index % LOOK_EVERY == 0
        adapted = functools.partial(_adapt, along, rate=SPHERE_RATE)
        along = jax.lax.cond(looks, lambda: adapted(decide(drawn)), lambda: along)
        # Without a walk the point is x, and so is what is tried.
        point, inward = jnp.where(each(won), tried, point), _adapt(inward, won, INWARD_RATE)
        return point, along, inward, queries + walks * (1 + looks)

    keys, point, walks, queries = _begin(decide, key, x, "l2", bounds, start, num_start_draws)
    lengths = (jnp.full(labels.shape, length, x.dtype) for length in first.values())
    point, *_, queries = jax.lax.fori_loop(0, num_steps, step, (point, *lengths, queries))
    point = _beyond(decide, point, x, bounds)
    return _told_apart(nearest.result(goal, point, queries + 1 + walks), walks)


@door.checked
@nearest.in_unit_box
def hop_skip_jump(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    norm: str = "l2",
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    start: Array | None = None,
    num_steps: int = 16,
    num_start_draws: int = 100,
    first_evaluations: int = 100,
    most_evaluations: int = 10_000,
) -> AttackResult:
    """Returns the nearest success of steps along estimated normals (Chen et al., 2020).

    Begins as `boundary`. Step t estimates the normal of the boundary by first_evaluations · √t
    decisions on a small sphere around the point, goes distance/√t along it, halved until the end is
    adversarial, and from there towards x by bisection. The result lies as far out as that of
    `boundary`. The radius of the sphere is the l2 distance over the number d of features, for both
    norms (counting at least 100 and at most 4096).

    Args:
      logits_fn, key, x, labels, bounds, targets, start, num_start_draws: as of `boundary`.
      norm: "l2" or "linf".
      num_steps: static.
      first_evaluations, most_evaluations: of the first step, and of any step at most; static.

    Raises:
      ValueError: for another norm, counts out of range, and infinite bounds without a start.

    Source: arXiv 1904.02144.
    """
    nearest.check(norm, ("l2", "linf"), num_steps)
    if not 1 <= first_evaluations <= most_evaluations:
        raise ValueError(
            f"first_evaluations must lie in [1, most_evaluations = {most_evaluations}], got "
            f"{first_evaluations}"
        )
    goal, ball = base.objective(logits_fn, labels, losses.margin, targets), MAKE[norm](0.0, bounds)

    def decide(point: Array) -> Array:
        return goal.success(logits_fn(point))

    def step(carry: tuple[Array, Nearest, Array], now: tuple[Array, Array]) -> tuple[Any, None]:
        (point, kept, queries), (index, number) = carry, now
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        radius = distance(point, x) / _resolved(x)
        direction = ball.steepest(estimate_normal(decide, step_keys, point, radius, number, bounds))
        length = distance(point, x, norm) / jnp.sqrt(index.astype(x.dtype))

        def ahead(halvings: Array) -> Array:
            move = base.per_example(length * 0.5 ** halvings.astype(x.dtype), x) * direction
            return threat.clip_to_box(point + move, bounds)

        # Where bisection would not resolve the length any more, the point stays.
        moved, _, spent = _first(decide, ahead, point, walks, num_halvings(x))
        point = _bisect(decide, moved, x, norm, bounds)
        kept = nearest.keep(kept, point, x, walks, norm)
        return (point, kept, queries + spent + walks * (number + num_halvings(x))), None

    keys, point, walks, queries = _begin(decide, key, x, norm, bounds, start, num_start_draws)
    kept = nearest.keep(nearest.nothing(x), point, x, walks, norm)
    indices = np.arange(1, num_steps + 1)
    numbers = np.minimum(first_evaluations * np.sqrt(indices), most_evaluations)
    plan = jnp.asarray(indices), jnp.asarray(numbers, jnp.int32)
    (_, kept, queries), _ = jax.lax.scan(step, (point, kept, queries), plan)
    point = _beyond(decide, kept.point, x, bounds)
    return _told_apart(nearest.result(goal, point, queries + 1 + walks), walks)


def _beyond(decide: Decide, point: Array, x: Array, bounds: Bounds) -> Array:
    """Returns points a little farther from x, so that they are adversarial in any program.

    A point that is adversarial no farther out stays.
    """
    tried = threat.clip_to_box(x + (1 + OVERSHOOT) * (point - x), bounds)
    return jnp.where(base.per_example(decide(tried), x), tried, point)


def _told_apart(result: AttackResult, walks: Array) -> AttackResult:
    """Returns the result, its loss NaN where x is right and no walk was tried."""
    tried = walks | result.success
    return result._replace(loss=jnp.where(tried, result.loss, jnp.nan))


def estimate_normal(
    decide: Decide, keys: Key, point: Array, radius: Array, number: Array | int, bounds: Bounds
) -> Array:
    """Returns estimates `[B, ...]` of the boundary's normal, towards adversarial; of any length.

    Σ_b (φ_b − φ̄) u_b: φ_b = ±1 says whether point + u_b is adversarial, u_b is uniform on a sphere
    and then moved into the bounds, and the mean φ̄ counts as 0 where all φ_b are the same.

    Args:
      decide: points to decisions.
      keys: `[B]`, consumed.
      point, radius: `[B, ...]`, at the boundary, and `[B]`, of the spheres.
      number: of evaluations; may be traced.
      bounds: smallest and largest value of a feature.
    """
    unit = threat.l2(0.0).steepest

    def draw(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        signed, plain, total = carry
        noise = unit(_draw(jax.random.normal, keys, index, point))
        tried = threat.clip_to_box(point + base.per_example(radius, point) * noise, bounds)
        sign, move = jnp.where(decide(tried), 1, -1), tried - point
        return signed + base.per_example(sign, point) * move, plain + move, total + sign

    zero = jnp.zeros_like(point), jnp.zeros_like(point), jnp.zeros(radius.shape, jnp.int32)
    signed, plain, total = jax.lax.fori_loop(0, number, draw, zero)
    mean = jnp.where(jnp.abs(total) < number, total / number, 0).astype(point.dtype)
    return signed - base.per_example(mean, point) * plain


def num_halvings(x: Array) -> int:
    """Returns how many halvings leave d^(−3/2) of a length, d as of `hop_skip_jump`."""
    return math.ceil(1.5 * math.log2(_resolved(x)))


def _resolved(x: Array) -> int:
    # Few features would be looked at too coarsely, and more are below the precision of float32.
    return min(max(math.prod(x.shape[1:]), 100), 4096)


def _begin(
    decide: Decide, key: Key, x: Array, norm: str, bounds: Bounds, start: Array | None, number: int
) -> tuple[Key, Array, Array, Array]:
    """Returns keys of walks `[B]`, where they begin, whether there is one, and queries so far.

    There is none, and the point is x, where x itself is adversarial or no start is.
    """
    if start is not None:
        chex.assert_trees_all_equal_shapes_and_dtypes(x, start)
    base.check_count("num_start_draws", number)
    if start is None and not threat.are_finite(bounds):
        raise ValueError(f"bounds must be finite to draw a start, got {bounds}: pass start")
    # Folded in before it is split: keys do not depend on the size of the batch.
    keys = base.example_keys(key, x.shape[0])
    keys_start, keys_walk = jax.vmap(jax.random.split, out_axes=1)(keys)
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)

    def propose(index: Array) -> Array:
        drawn = lower + (upper - lower) * _draw(jax.random.uniform, keys_start, index, x)
        return threat.clip_to_box(drawn if start is None else start, bounds)

    def borrow(index: Array) -> Array:
        return jnp.roll(x, index + 1, axis=0)

    def blend(index: Array) -> Array:
        return 0.5 * (borrow(index) + propose(index))

    clean = ~decide(x)
    point, failed, spent = _first(decide, propose, x, clean, number if start is None else 1)
    if start is None:
        # What no draw is taken for, another example may be, or half of one.
        for proposals in (borrow, blend):
            again, failed, more = _first(decide, proposals, point, failed, x.shape[0] - 1)
            point, spent = again, spent + more
    # Traced bounds may be infinite, and then so are draws.
    walks = clean & ~failed & jnp.isfinite(distance(point, x, norm))
    point = _bisect(decide, jnp.where(base.per_example(walks, x), point, x), x, norm, bounds)
    return keys_walk, point, walks, 1 + spent + walks * num_halvings(x)


def _first(
    decide: Decide, propose: Callable[[Array], Array], x: Array, wanted: Array, number: int
) -> tuple[Array, Array, Array]:
    """Returns the first adversarial of up to `number` proposals, or x, where one is wanted.

    Also where it is still wanted `[B]`, and what each has spent `[B]`: nothing after its first.
    """

    def more(carry: tuple[Array, ...]) -> Array:
        index, _, missing, _ = carry
        return (index < number) & jnp.any(missing)

    def look(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        index, point, missing, spent = carry
        tried = propose(index)
        won = missing & decide(tried)
        point = jnp.where(base.per_example(won, x), tried, point)
        return index + 1, point, missing & ~won, spent + missing

    carry = (jnp.int32(0), x, wanted, jnp.zeros_like(wanted, jnp.int32))
    _, point, missing, spent = jax.lax.while_loop(more, look, carry)
    return point, missing, spent


def _bisect(decide: Decide, point: Array, x: Array, norm: str, bounds: Bounds) -> Array:
    """Returns adversarial points at the boundary between x and adversarial points `[B, ...]`.

    Between the two lie the projections of the point onto balls around x.
    """

    def halve(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, closest = carry
        middle = 0.5 * (low + high)
        tried = MAKE[norm](middle, bounds).project(point, x)
        won = decide(tried)
        closest = jnp.where(base.per_example(won, x), tried, closest)
        return jnp.where(won, low, middle), jnp.where(won, middle, high), closest

    high = distance(point, x, norm)
    return jax.lax.fori_loop(0, num_halvings(x), halve, (jnp.zeros_like(high), high, point))[2]


def _draw(sample: Callable[..., Array], keys: Key, index: Array, x: Array) -> Array:
    """Returns a draw like x, each example's from its own key and the index."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    return jax.vmap(lambda key: sample(key, x.shape[1:], x.dtype))(keys)


def _adapt(length: Array, success: Array, rate: float) -> Array:
    """Returns lengths that grow or shrink, and neither on average at this rate of success."""
    return jnp.clip(length * FACTOR ** (success - jnp.asarray(rate, length.dtype)), SHORTEST, 1)
