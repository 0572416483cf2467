"""The attack of Carlini and Wagner: the nearest success as an unconstrained problem."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult
from halfway.attacks.minimum_norm import nearest
from halfway.attacks.minimum_norm.nearest import Nearest
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn

INSIDE = 0.999
"""Part of the box that tanh covers: at its very ends tanh would have no slope to leave them by."""


@door.checked
@nearest.in_unit_box
def carlini_wagner(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    num_steps: int = 300,
    num_searches: int = 9,
    first_weight: float = 0.01,
    learning_rate: float = 0.05,
    confidence: float = 0.0,
) -> AttackResult:
    """Returns the nearest success in l2 of the attack of Carlini and Wagner (2017).

    Adam minimizes ‖x' − x‖² + c · max(confidence − margin, 0) over w, where the box is .999 of the
    range of tanh(w), so that features at the bounds have a finite w and can leave them; w stays in
    the box. The weight c of each example is searched for: tenfold until a success, then bisection.
    Without targets the margin is max_k (f_k − f_y)/‖∇(f_k − f_y)‖, gradients at x: it follows the
    class whose boundary is nearest, where the largest logit may be that of another one.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      bounds: smallest and largest value of a feature, finite.
      targets: `[B]` integers that the attack steers to, or None.
      num_steps: of each search, static.
      num_searches: weights c that are tried, static.
      first_weight: c at the beginning.
      learning_rate: of Adam at the beginning; it falls to 0 along a cosine.
      confidence: κ ≥ 0, the margin that successes have at least.

    Raises:
      ValueError: for counts below 1 and bounds that are not finite.

    Source: arXiv 1608.04644.
    """
    del key
    base.check_count("num_steps", num_steps)
    base.check_count("num_searches", num_searches)
    if not threat.are_finite(bounds):
        raise ValueError(f"carlini_wagner needs finite bounds, got {bounds}")
    goal = nearest.firm(logits_fn, labels, losses.margin, targets)
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)
    centre, half = 0.5 * (upper + lower), 0.5 * (upper - lower)
    # Rounding may put what lies on a bound beyond 1.
    origin = INSIDE * jnp.clip((x - centre) / half, -1, 1)
    first = jnp.arctanh(origin)
    farthest = jnp.arctanh(jnp.asarray(INSIDE, x.dtype))
    # Smaller and smaller steps, which end where the two terms balance.
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    axes = tuple(range(1, x.ndim))

    def place(w: Array) -> Array:
        point = x + half * (jnp.tanh(w) - origin) / INSIDE
        # Only rounding is clipped, which is no reason to have no slope.
        return point + jax.lax.stop_gradient(threat.clip_to_box(point, bounds) - point)

    if targets is None:
        lengths = nearest.boundaries(logits_fn, x, labels, "l2")[2]
        lengths = jnp.where(lengths > 0, lengths, 1)

    def shortfall(margin: Array, logits: Array) -> Array:
        if targets is not None:
            return confidence - margin
        is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        logits = base.precise(logits)
        ahead = logits - jnp.where(is_label, logits, 0).sum(1, keepdims=True)
        return jnp.where(is_label, jnp.inf, (confidence - ahead) / lengths).min(1)

    def objective(w: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
        point = place(w)
        margin, logits = goal.value(point)
        short = jnp.maximum(shortfall(margin, logits), 0)
        cost = ((point - x) ** 2).sum(axes) + weight * short
        # Examples do not share a parameter: the gradient of the sum is that of each.
        return cost.sum(), (point, goal.success(logits) & (margin >= confidence))

    def search(carry: tuple[Nearest, Array, Array, Array], _: Any) -> tuple[Any, None]:
        kept, low, high, weight = carry

        def step(index: Array, carry):
            w, state, kept, reached = carry
            gradient, (point, success) = jax.grad(objective, has_aux=True)(w, weight)
            kept = nearest.keep(kept, point, x, success, "l2")
            updates, state = optimizer.update(base.finite(gradient), state, w)
            w = jnp.clip(jnp.asarray(optax.apply_updates(w, updates)), -farthest, farthest)
            # First steps are long and cross the boundary under weights too small to stay there.
            return w, state, kept, reached | (success & (2 * index >= num_steps))

        none = jnp.zeros(labels.shape, bool)
        begin = (first, optimizer.init(first), kept, none)
        w, _, kept, reached = jax.lax.fori_loop(0, num_steps, step, begin)
        _, (point, success) = objective(w, weight)
        kept, reached = nearest.keep(kept, point, x, success, "l2"), reached | success
        low, high = jnp.where(reached, low, weight), jnp.where(reached, weight, high)
        weight = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 10 * weight)
        return (kept, low, high, weight), None

    weight = jnp.full(labels.shape, first_weight, x.dtype)
    kept = nearest.keep(nearest.nothing(x), x, x, goal.success(goal.value(x)[1]), "l2")
    carry = (kept, jnp.zeros_like(weight), jnp.full_like(weight, jnp.inf), weight)
    (kept, *_), _ = jax.lax.scan(search, carry, None, num_searches)
    queries = num_searches * (num_steps + 1) + 2
    if targets is None:
        queries += jax.eval_shape(logits_fn, x).shape[1]
    return nearest.result(goal, kept.point, queries)
