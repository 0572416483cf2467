"""σ-zero: the adversarial point of which the fewest features differ, by gradients."""

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

LAST_STEP = 0.1
"""Length of the last step, as a share of the first."""


@door.checked
@nearest.in_unit_box
def sigma_zero(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    num_steps: int = 1000,
    sigma: float = 1e-3,
    first_threshold: float = 0.3,
    gamma: float = 0.01,
) -> AttackResult:
    """Returns the sparsest success of σ-zero (Cinà et al., 2025), the nearest point in l0.

    It minimizes m + (1/d) Σ_i δ_i²/(δ_i² + σ) over the perturbation δ of d features, where m is the
    margin that is still to be overcome, 0 for a success, and the sum is a smooth count of features
    that differ. Each step divides the gradient by its largest component, goes along it by Adam, as
    the authors' program does, with η from 1 to .1 (cosine), is clipped to the box, and sets to 0
    all components below a threshold τ. τ grows by γη where the last point was a success, and
    shrinks by as much where it was none. δ is in units of the width of each feature's bounds. Of
    successes with as few features the nearest in l2 is kept.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      bounds: smallest and largest value of a feature.
      targets: `[B]` integers that the attack steers to, or None.
      num_steps: static.
      sigma: σ > 0; smaller values count more sharply.
      first_threshold: τ at the beginning, in [0, 1].
      gamma: γ, by which τ moves in a step of length 1.

    Raises:
      ValueError: for fewer than one step.

    Source: arXiv 2402.01879.
    """
    del key
    base.check_count("num_steps", num_steps)
    goal = nearest.firm(logits_fn, labels, losses.margin, targets)
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)
    width = jnp.where(jnp.isfinite(upper - lower), upper - lower, 1)
    axes = tuple(range(1, x.ndim))
    optimizer = optax.scale_by_adam()

    def cost(point: Array) -> tuple[Array, Array]:
        loss, logits = goal.value(point)
        success = goal.success(logits)
        # As 1 − σ/(δ² + σ), whose slope does not cancel where δ² is large.
        count = (1 - sigma / (((point - x) / width) ** 2 + sigma)).mean(axes)
        # Examples do not share a parameter: the gradient of the sum is that of each.
        return (jnp.where(success, 0, -loss) + count).sum(), success

    def step(index: Array, carry: tuple[Array, Any, Array, Nearest]) -> tuple[Any, ...]:
        point, state, threshold, kept = carry
        gradient, success = jax.grad(cost, has_aux=True)(point)
        kept = nearest.keep(kept, point, x, success, "l0")
        gradient = base.finite(width * gradient)
        largest = jnp.abs(gradient).max(axes, keepdims=True)
        updates, state = optimizer.update(gradient / jnp.where(largest > 0, largest, 1), state)
        length, following = (
            nearest.cosine(i, num_steps, 1.0, LAST_STEP) for i in (index, index + 1)
        )
        moved = threat.clip_to_box(point - length * width * jnp.asarray(updates), bounds)
        change = (gamma * following * jnp.where(success, 1, -1)).astype(threshold.dtype)
        threshold = jnp.clip(threshold + change, 0, 1)
        small = jnp.abs(moved - x) < base.per_example(threshold, x) * width
        return jnp.where(small, x, moved).astype(x.dtype), state, threshold, kept

    nothing = nearest.nothing(x, "l0")
    threshold = jnp.full_like(nothing.distance, first_threshold)
    carry = (x, optimizer.init(x), threshold, nothing)
    point, _, _, kept = jax.lax.fori_loop(0, num_steps, step, carry)
    return nearest.end(goal, kept, point, x, "l0", num_steps)
