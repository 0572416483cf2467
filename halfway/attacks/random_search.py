"""Random search, which needs losses and no gradients, and Square Attack: windows of an image."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult, Objective
from halfway.attacks.threat import Bounds, Threat
from halfway.types import Array, Key, LogitsFn, LossFn

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which windows have half the area."""


class _Search(NamedTuple):
    """What is kept of each example: point `[B, ...]`, and `[B]` loss, success and queries.

    The memory, a pytree of `[B, ...]`, is what proposals need to know of the point beside itself.
    """

    point: Array
    memory: Any
    loss: Array
    success: Array
    queries: Array


def search(
    goal: Objective,
    x: Array,
    start: tuple[Array, Any],
    propose: Callable[[Array, Array, Any], tuple[Array, Any]],
    num_queries: int,
) -> AttackResult:
    """Returns the result of a random search, which keeps what raises the loss or succeeds.

    The first query looks at x, the second at the start, which is kept in any case. An example rests
    once it succeeds; the search ends when all do.

    Args:
      goal: what to ascend.
      x: `[B, ...]`, clean inputs.
      start: point `[B, ...]` and memory, a pytree of `[B, ...]`.
      propose: `(index, point, memory) -> (point, memory)`, what a query tries; indices are from 1.
      num_queries: at most, at least 2; static.
    """

    def look(point: Array) -> tuple[Array, Array]:
        loss, logits = goal.value(point)
        return loss, goal.success(logits)

    def consider(state: _Search, point: Array, memory: Any, always: bool = False) -> _Search:
        loss, success = look(point)
        better = always | (loss > state.loss) | success | jnp.isnan(state.loss)
        kept = better & ~state.success

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(base.per_example(kept, new), new, old)

        return _Search(
            choose(point, state.point),
            jax.tree.map(choose, memory, state.memory),
            jnp.where(kept, loss, state.loss),
            jnp.where(kept, success, state.success),
            state.queries + ~state.success,
        )

    def searching(carry: tuple[Array, _Search]) -> Array:
        index, state = carry
        return (index < num_queries - 1) & ~state.success.all()

    def query(carry: tuple[Array, _Search]) -> tuple[Array, _Search]:
        index, state = carry
        return index + 1, consider(state, *propose(index, state.point, state.memory))

    loss, success = look(x)
    state = _Search(x, start[1], loss, success, jnp.ones(success.shape, jnp.int32))
    state = consider(state, *start, always=True)
    _, state = jax.lax.while_loop(searching, query, (jnp.array(1), state))
    return AttackResult(state.point, state.success, state.loss, state.queries)


@door.checked
def square(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.margin,
    num_queries: int = 5000,
    first_share: float = 0.8,
) -> AttackResult:
    """Returns the result of Square Attack (Andriushchenko et al., 2020), a random search.

    It begins with stripes (l∞) or a grid of bumps (l2, l1). Each query then changes one window of
    the image, whose area shrinks with the number of queries, and what results is kept where the
    loss grows or the attack succeeds. An example rests once it has; the search ends when all do.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; every example draws by its place in the batch.
      x: `[B, ...]` clean inputs within the bounds: images `[B, H, W, D]`, or anything that can be
        seen as such; windows of `[B, n]` are pieces of a line.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      num_queries: at most, the clean input and the start included; at least 2, static.
      first_share: of the area of an image that windows have at first, in (0, 1]; static.

    Raises:
      ValueError: for images with channels first, fewer than two queries and a share outside (0, 1].

    Source: arXiv 1912.00049; for l1, Croce and Hein, arXiv 2103.01208.
    """
    base.check_channels_last(x)
    base.check_count("num_queries", num_queries, least=2)
    if not 0 < first_share <= 1:
        raise ValueError(f"first_share must lie in (0, 1], got {first_share}")
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    height, width, *rest = (*x.shape[1:], 1, 1)
    shape = (height, width, int(np.prod(rest)))
    least = 1 if threat.norm.name == "linf" else 3
    sizes = jnp.array(window_sizes(height, width, num_queries, first_share, least))
    order = {"linf": np.inf, "l2": 2, "l1": 1}[threat.norm.name]
    begin, propose = (_stripes, _window) if order == np.inf else (_grid, _bump)
    keys = base.example_keys(key, x.shape[0])
    radius = jnp.broadcast_to(threat.radius(x).reshape(-1), labels.shape)

    def images(values: Array) -> Array:
        return values.reshape(-1, *shape)

    def place(moves: Array) -> tuple[Array, Any]:
        return threat.project(x + moves.reshape(x.shape), x), ()

    def change(index: Array, point: Array, _: Any) -> tuple[Array, Any]:
        size = sizes[index - 1]

        def move(key: Key, point: Array, x: Array, radius: Array) -> Array:
            key = jax.random.fold_in(key, index)
            return propose(key, point, x, radius, size, threat.bounds, order)

        return place(jax.vmap(move)(keys, images(point), images(x), radius))

    first = jax.vmap(lambda k, r: begin(jax.random.fold_in(k, 0), shape, r, order))(keys, radius)
    return search(goal, x, place(first), change, num_queries)


def window_sizes(
    height: int, width: int, num_queries: int, first_share: float, least: int
) -> list[tuple[int, int]]:
    """Returns height and width of the window of each query after the start.

    Windows are square, or as nearly as the image lets them be: a share of the area that is halved
    at `HALVINGS`, scaled to the number of queries.

    Args:
      height, width: of the image.
      num_queries: of the whole search; the list is two shorter.
      first_share: of the area.
      least: side of the smallest window; where it is above 1, sides are odd.
    """
    sizes = []
    for index in range(num_queries - 2):
        place = index * 10_000 // num_queries
        area = first_share * height * width / 2 ** sum(place > after for after in HALVINGS)
        side = max(round(area**0.5), least)
        rows, columns = min(side, height), min(side, width)
        rows = max(rows, min(round(area / columns), height)) if columns < side else rows
        columns = max(columns, min(round(area / rows), width)) if rows < side else columns
        if least > 1:
            rows, columns = (min(n + 1 - n % 2, of) for n, of in ((rows, height), (columns, width)))
        sizes.append((rows, columns))
    return sizes or [(1, 1)]


def _stripes(key: Key, shape: tuple[int, ...], radius: Array, order: float) -> Array:
    del order
    sign = jax.random.rademacher(key, (1, *shape[1:]), radius.dtype)
    return radius * jnp.broadcast_to(sign, shape)


def _place(key: Key, shape: tuple[int, ...], size: Array) -> tuple[Array, Array]:
    """Returns row `[H]` and column `[W]` of each pixel within a random window; negative before it.

    Every place where the window lies inside is as likely, the last row and column included.
    """
    keys = jax.random.split(key)
    row, column = (jax.random.randint(keys[i], (), 0, shape[i] - size[i] + 1) for i in (0, 1))
    return jnp.arange(shape[0]) - row, jnp.arange(shape[1]) - column


def _inside(rows: Array, columns: Array, size: Array) -> Array:
    """Returns whether each pixel lies within the window, `[H, W, 1]`."""
    vertical, horizontal = (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
    return (vertical[:, None] & horizontal[None])[..., None]


def _window(
    key: Key, point: Array, x: Array, radius: Array, size: Array, bounds: Bounds, order: float
) -> Array:
    """Returns moves of which those of one window are ±ε, a sign for each channel."""
    del bounds, order
    key_place, key_sign = jax.random.split(key)
    inside = _inside(*_place(key_place, point.shape, size), size)
    sign = jax.random.rademacher(key_sign, (1, 1, point.shape[2]), point.dtype)
    return jnp.where(inside, radius * sign, point - x)


def _grid(key: Key, shape: tuple[int, ...], radius: Array, order: float) -> Array:
    """Returns bumps of random signs on a grid of five by five, of norm ε together."""
    height, width, depth = shape
    sides = [max(length // 5, 1) for length in (height, width)]
    counts = [length // side for length, side in zip((height, width), sides, strict=True)]
    starts = [
        (n - side * c) // 2 for n, side, c in zip((height, width), sides, counts, strict=True)
    ]
    key_turn, key_sign = jax.random.split(key)
    turned = jax.random.bernoulli(key_turn, shape=tuple(counts))
    sign = jax.random.rademacher(key_sign, (*counts, depth), radius.dtype)
    size = jnp.array(sides)
    # One tile of each kind, and where each pixel lies among them.
    tiles = jnp.stack(
        [bump(jnp.arange(sides[0]), jnp.arange(sides[1]), size, turn) for turn in (False, True)]
    )
    whole = (
        jnp.where(turned[..., None, None], tiles[1], tiles[0])[..., None] * sign[:, :, None, None]
    )
    whole = whole.swapaxes(1, 2).reshape(counts[0] * sides[0], counts[1] * sides[1], depth)
    moves = jnp.zeros(shape, radius.dtype)
    moves = jax.lax.dynamic_update_slice(moves, whole, (starts[0], starts[1], 0))
    return radius * moves / _norm(moves, order)


def _bump(
    key: Key, point: Array, x: Array, radius: Array, size: Array, bounds: Bounds, order: float
) -> Array:
    """Returns moves where one window takes a bump and the norm that another one gives up."""
    key_to, key_from, key_turn, key_sign = jax.random.split(key, 4)
    moves = point - x
    to = _place(key_to, point.shape, size)
    taker = _inside(*to, size)
    giver = _inside(*_place(key_from, point.shape, size), size)
    shape = bump(*to, size, jax.random.bernoulli(key_turn))[..., None]
    sign = jax.random.rademacher(key_sign, (1, 1, point.shape[2]), point.dtype)
    taken = jnp.where(taker, moves, 0)
    new = jnp.where(taker, shape * sign + taken / _norm(taken, order, channels=True), 0)
    both = jnp.where(taker | giver, moves, 0)
    # Each channel keeps the norm of its two windows, and all share what the budget has left.
    power = lambda values, axes=None: (jnp.abs(values) ** order).sum(axes, keepdims=True)  # noqa: E731
    spare = jnp.maximum(radius**order - power(moves), 0) / point.shape[2]
    size_of_new = _root(power(both, (0, 1)) + spare, order)
    new = new / _norm(new, order, channels=True) * size_of_new
    moves = jnp.where(taker, new, jnp.where(giver, 0, moves))
    moves = radius * moves / _norm(moves, order)
    # In l1 what leaves the box is given to other features, by the projection that follows.
    return moves if order == 1 else threat.clip_to_box(x + moves, bounds) - x


def bump(rows: Array, columns: Array, size: Array, turned: Array | bool) -> Array:
    """Returns two concentric pyramids of opposite signs side by side, `[H, W]`, each of norm 1.

    A pixel at distance d from the middle of its half has Σ_{k ≥ d} 1/(k + 1)², up to the larger of
    the half's half sides.

    Args:
      rows, columns: `[H]` and `[W]`, of each pixel within the window; 0 outside of it.
      size: height and width of the window.
      turned: whether halves lie beside rather than above each other.

    Source: Andriushchenko et al., arXiv 1912.00049, section 3.4.
    """
    inside = _inside(rows, columns, size)[..., 0]
    down = jnp.broadcast_to(rows[:, None], inside.shape)
    across = jnp.broadcast_to(columns[None], inside.shape)
    along, beside = jnp.where(turned, across, down), jnp.where(turned, down, across)
    length, breadth = jnp.where(turned, size[1], size[0]), jnp.where(turned, size[0], size[1])
    half = length // 2
    steps = np.arange(1, max(inside.shape) + 2, dtype=np.float32)
    tails = jnp.asarray(np.concatenate([[0], np.cumsum(1 / steps**2)]), jnp.float32)

    def pyramid(start: Array | int, stop: Array) -> Array:
        middle = start + (stop - start) // 2
        apart = jnp.maximum(jnp.abs(along - middle), jnp.abs(beside - breadth // 2))
        top = jnp.maximum((stop - start) // 2, breadth // 2)
        value = jnp.maximum(tails[top + 1] - tails[jnp.clip(apart, 0, len(steps))], 0)
        value = jnp.where(inside & (along >= start) & (along < stop), value, 0)
        return value / _norm(value, 2)

    return pyramid(0, half) - pyramid(half, length)


def _norm(values: Array, order: float, channels: bool = False) -> Array:
    axes = (0, 1) if channels else None
    size = _root((jnp.abs(values) ** order).sum(axes, keepdims=channels), order)
    return jnp.where(size > 0, size, 1)


def _root(values: Array, order: float) -> Array:
    return jnp.sqrt(values) if order == 2 else values
