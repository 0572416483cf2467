"""Attacks that look for the nearest adversarial point by gradients: DeepFool, DDN, FMN."""

import functools

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult
from halfway.attacks.minimum_norm import nearest
from halfway.attacks.minimum_norm.nearest import MAKE, Nearest, distance
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn

SHARPNESS = (6.0, 32.0)
"""Margin of x over the temperature of `fmn`, at its first and its last step."""


@door.checked
@nearest.in_unit_box
def deepfool(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    norm: str = "l2",
    bounds: Bounds = (0.0, 1.0),
    num_steps: int = 50,
    overshoot: float = 0.02,
) -> AttackResult:
    """Returns the end of steps to the nearest linearized boundary (Moosavi-Dezfooli et al., 2016).

    Each step goes to the class k of least |f_k − f_y|/‖∇(f_k − f_y)‖_q; the overshoot scales the
    whole perturbation, not a step. An example rests once it is misclassified. All logits are
    differentiated at every step, which counts as C queries.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      norm: "l2" or "linf".
      bounds: smallest and largest value of a feature.
      num_steps: at most, static.
      overshoot: η.

    Raises:
      ValueError: for another norm or fewer than one step.

    Source: arXiv 1511.04599.
    """
    del key
    nearest.check(norm, ("l2", "linf"), num_steps)
    ball = MAKE[norm](0.0, bounds)
    goal = nearest.firm(logits_fn, labels, losses.margin)
    num_classes = jax.eval_shape(logits_fn, x).shape[1]
    linearize = nearest.nearest_class(logits_fn, labels, norm)

    def place(total: Array) -> Array:
        return threat.clip_to_box(x + (1 + overshoot) * total, bounds)

    def outside(total: Array) -> tuple[Array, Array]:
        point = place(total)
        return point, goal.success(logits_fn(point))

    def step(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, done, taken = carry
        # As the authors do: where the walk is seen to be, overshoot included.
        ahead, normal = linearize(place(total))
        length = ball.dual_norm(normal)
        reach = jnp.abs(ahead) / jnp.where(length > 0, length, 1)
        # A little more, so that a point at the boundary crosses it.
        reach = jnp.where(length > 0, (1 + 1e-4) * reach + 5e-7, 0)
        move = base.per_example(reach, x) * ball.steepest(normal)
        total = jnp.where(base.per_example(done, x), total, total + move)
        return total, done | outside(total)[1], taken + ~done

    begun = goal.success(logits_fn(x))
    zero = jnp.zeros(labels.shape, jnp.int32)
    total, _, taken = jax.lax.fori_loop(0, num_steps, step, (jnp.zeros_like(x), begun, zero))
    point, crossed = outside(total)
    point = jnp.where(base.per_example(crossed, x), point, x)
    return nearest.result(goal, point, taken * (num_classes + 1) + 2)


@door.checked
@nearest.in_unit_box
def ddn(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    num_steps: int = 100,
    first_norm: float = 1.0,
    gamma: float = 0.05,
) -> AttackResult:
    """Returns the nearest success of a walk whose radius shrinks and grows (Rony et al., 2019).

    l2. After each normalized step of length 1 → .01 (cosine) the perturbation is set to a radius
    that is multiplied by 1 − γ where the last point was a success, by 1 + γ where not. Steps follow
    the gradient of the cross-entropy, taken from the log-odds of an error, which have the same
    direction and do not vanish where softmax saturates.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      bounds: smallest and largest value of a feature.
      targets: `[B]` integers that the attack steers to, or None.
      num_steps: static.
      first_norm: radius at the beginning, in units of the box.
      gamma: γ in (0, 1).

    Raises:
      ValueError: for fewer than one step.

    Source: arXiv 1811.09600.
    """
    del key
    nearest.check("l2", ("l2",), num_steps)
    log_odds = functools.partial(nearest.soft_margin, temperature=1.0)
    goal = nearest.firm(logits_fn, labels, log_odds, targets)
    estimator, ball = base.exact_gradient(goal), threat.l2(0.0, bounds)

    def step(index: Array, carry: tuple[Array, Array, Nearest]) -> tuple[Array, Array, Nearest]:
        move, radius, kept = carry
        estimate = estimator.estimate(None, (), x + move)
        success = goal.success(estimate.logits)
        kept = nearest.keep(kept, x + move, x, success, "l2")
        radius = jnp.where(success, radius * (1 - gamma), radius * (1 + gamma))
        move = move + nearest.cosine(index, num_steps, 1.0, 0.01) * ball.steepest(
            base.finite(estimate.gradient)
        )
        length = distance(x + move, x)
        scale = jnp.where(length > 0, radius / jnp.where(length > 0, length, 1), 0)
        return threat.clip_to_box(x + base.per_example(scale, x) * move, bounds) - x, radius, kept

    radius = jnp.full(labels.shape, first_norm, x.dtype)
    carry = (jnp.zeros_like(x), radius, nearest.nothing(x))
    move, _, kept = jax.lax.fori_loop(0, num_steps, step, carry)
    reported = nearest.firm(logits_fn, labels, losses.cross_entropy, targets)
    return nearest.end(reported, kept, x + move, x, "l2", num_steps)


@door.checked
@nearest.in_unit_box
def fmn(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    norm: str = "l2",
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    num_steps: int = 100,
    max_step: float = 1.0,
    gamma: float = 0.05,
) -> AttackResult:
    """Returns the nearest success of the fast minimum-norm attack (Pintor et al., 2021).

    The budget of each example follows its boundary: before the first success it is what a linear
    model would need; then it shrinks by γ from the nearest success, or grows where the last point
    was none, γ from .05 to 10⁻⁴ along a cosine, as the steps, which follow an l2-normalized
    gradient: that of the margin loss in which a soft maximum, T log Σ_{c ≠ y} exp(z_c/T), stands
    for the largest other logit. This is the one departure from the authors, who follow the margin
    itself and so keep the class that it meets first, often not the nearest. T falls from 1/6 to
    1/32 of the margin of x, so that the scale of logits does not matter.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      norm: "linf", "l2" or "l1".
      bounds: smallest and largest value of a feature.
      targets: `[B]` integers that the attack steers to, or None.
      num_steps: static.
      max_step: length of the first step, in l2, in units of the box.
      gamma: γ at the beginning, in (0, 1).

    Raises:
      ValueError: for another norm or fewer than one step.

    Source: arXiv 2102.12827.
    """
    del key
    nearest.check(norm, tuple(MAKE), num_steps)
    goal = nearest.firm(logits_fn, labels, losses.margin, targets)
    ball, unit = MAKE[norm](0.0, bounds), threat.l2(0.0)
    margin = jnp.abs(goal.value(x)[0])
    margin = jnp.where(margin > 0, margin, 1)

    def step(index: Array, carry: tuple[Array, Array, Nearest]) -> tuple[Array, Array, Nearest]:
        point, epsilon, kept = carry
        sharpness = SHARPNESS[0] * (SHARPNESS[1] / SHARPNESS[0]) ** (index / num_steps)
        softened = functools.partial(nearest.soft_margin, temperature=margin / sharpness)
        soft = nearest.firm(logits_fn, labels, softened, targets)
        estimate = base.exact_gradient(soft).estimate(None, (), point)
        gradient, success = base.finite(estimate.gradient), goal.success(estimate.logits)
        before = jnp.isinf(kept.distance)
        kept = nearest.keep(kept, point, x, success, norm)
        shrink = nearest.cosine(index, num_steps, gamma, 1e-4)
        dual = ball.dual_norm(gradient)
        # A little beyond what a linear model needs: steps to the boundary itself would come ever
        # nearer to it and never cross.
        reach = jnp.abs(goal.loss(estimate.logits)) / jnp.where(dual > 0, dual, 1)
        linear = (1 + shrink) * (distance(point, x, norm) + reach)
        outward = jnp.where(before, linear, epsilon * (1 + shrink))
        inward = jnp.minimum(epsilon, kept.distance) * (1 - shrink)
        epsilon = jnp.where(success, inward, outward)
        length = nearest.cosine(index, num_steps, max_step, 0.01 * max_step)
        moved = point + length * unit.steepest(gradient)
        return MAKE[norm](epsilon, bounds).project(moved, x), epsilon, kept

    carry = (x, jnp.zeros(labels.shape, x.dtype), nearest.nothing(x))
    point, _, kept = jax.lax.fori_loop(0, num_steps, step, carry)
    return nearest.end(goal, kept, point, x, norm, num_steps)
