"""A tabu search over sets of features: the point of which the fewest differ, by gradients."""

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult
from halfway.attacks.minimum_norm import nearest
from halfway.attacks.minimum_norm.nearest import Nearest
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn

TEMPERATURE = 0.1
"""Temperature of the smooth margin, as a share of the range of an example's logits."""


@door.checked
@nearest.in_unit_box
def sparse_tabu(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    num_steps: int = 1000,
    tenure: int = 128,
) -> AttackResult:
    """Returns the sparsest success of a tabu search, the nearest point in l0.

    A point is a set of features, each at one of its two bounds. To first order, a feature i that
    takes the better bound gains max(g_i (u_i − x_i), g_i (l_i − x_i)), with g the gradient of a
    smooth margin at the point, and one that takes its clean value back loses g_i (δ_i). Of k
    features in the sparsest success so far, the search wants k − 1. A step adds the feature of the
    greatest gain where the point has fewer, drops that of the least loss where it has more, and
    exchanges the two where it has as many and is no success. A feature that was dropped may not
    come back for `tenure` steps, one that was added may not be dropped for half of them: so the
    search leaves sets that no exchange improves. Each step takes one gradient.

    The margin is T log Σ_c exp(z_c / T) − z_y over the other classes c, with T a tenth of the range
    of the logits: it sees all classes, where the largest alone leads into the corner of one. This
    attack is a composition of this library; of successes with as few features the nearest in l2 is
    kept.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      bounds: smallest and largest value of a feature, finite.
      targets: `[B]` integers that the attack steers to, or None.
      num_steps: static.
      tenure: steps for which a feature that was dropped stays away, at least 1; no more than a
        quarter of the number of features are taken.

    Raises:
      ValueError: for fewer than one step, a shorter tenure, and bounds that are not finite.

    Source: tabu search is Glover's (ORSA Journal on Computing 1, 1989).
    """
    del key
    base.check_count("num_steps", num_steps)
    base.check_count("tenure", tenure)
    if not threat.are_finite(bounds):
        raise ValueError(f"sparse_tabu needs finite bounds, got {bounds}")
    goal = nearest.firm(logits_fn, labels, losses.margin, targets)
    smooth = nearest.firm(logits_fn, labels, smooth_margin, targets)
    lower, upper = (_flat(jnp.broadcast_to(jnp.asarray(edge, x.dtype), x.shape)) for edge in bounds)
    clean = _flat(x)
    tenure = min(tenure, max(1, clean.shape[1] // 4))  # else no feature may be touched
    features = jnp.arange(clean.shape[1])[None]

    def ascent(point: Array) -> tuple[Array, Array]:
        loss, logits = smooth.value(point.reshape(x.shape))
        # Examples do not share a feature: the gradient of the sum is that of each.
        return loss.sum(), goal.success(logits)

    def step(index: Array, carry: tuple[Array, Array, Nearest]) -> tuple[Array, Array, Nearest]:
        point, free_from, kept = carry
        gradient, success = jax.grad(ascent, has_aux=True)(point)
        gradient = base.finite(gradient)
        kept = nearest.keep(kept, point, clean, success, "l0")
        differs = point != clean
        number, wanted = differs.sum(1), kept.distance - 1
        is_free = free_from <= index
        corner = jnp.where(gradient > 0, upper, lower)
        gains = jnp.where(~differs & is_free, gradient * (corner - point), -jnp.inf)
        costs = jnp.where(differs, gradient * (point - clean), jnp.inf)
        free_costs = jnp.where(is_free, costs, jnp.inf)
        # Where no feature may be dropped, any may.
        costs = jnp.where(jnp.isfinite(free_costs).any(1, keepdims=True), free_costs, costs)
        adds = ~success & (number <= wanted) & jnp.isfinite(gains).any(1)
        drops = (number >= wanted) & (number > 0)
        added = adds[:, None] & (features == gains.argmax(1, keepdims=True))
        dropped = drops[:, None] & (features == costs.argmin(1, keepdims=True))
        point = jnp.where(added, corner, jnp.where(dropped, clean, point))
        free_from = jnp.where(dropped, index + tenure, free_from)
        return point, jnp.where(added, index + tenure // 2, free_from), kept

    free_from = jnp.zeros(clean.shape, jnp.int32)
    carry = (clean, free_from, nearest.nothing(clean, "l0"))
    point, _, kept = jax.lax.fori_loop(0, num_steps, step, carry)
    kept = kept._replace(point=kept.point.reshape(x.shape))
    return nearest.end(goal, kept, point.reshape(x.shape), x, "l0", num_steps)


def smooth_margin(logits: Array, labels: Array) -> Array:
    """Returns the smooth margin loss `[B]`: T log Σ_{c ≠ y} exp(z_c / T) − z_y, over the range.

    The range of an example's logits is taken as a constant; T is `TEMPERATURE` of it. So the loss
    does not depend on the unit of logits.

    Args:
      logits: `[B, C]`, C ≥ 2.
      labels: `[B]` integers in [0, C).
    """
    low, high = (jax.lax.stop_gradient(f(logits, 1, keepdims=True)) for f in (jnp.min, jnp.max))
    scale = jnp.where(high > low, high - low, 1)
    return nearest.soft_margin((logits - high) / scale, labels, temperature=TEMPERATURE)


def _flat(values: Array) -> Array:
    return values.reshape(values.shape[0], -1)
