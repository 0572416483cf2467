"""Attacks that follow the gradient of a loss within a threat model."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from halfway import losses
from halfway.attacks import base
from halfway.attacks.base import AttackResult
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn, LossFn, is_traced


def pgd(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    num_steps: int = 20,
    relative_step: Any = 0.15,
    num_restarts: int = 1,
    random_start: bool = False,
    best: bool = True,
) -> AttackResult:
    """Returns the result of projected gradient ascent on the attack loss (Madry et al., 2018).

    x_{t+1} = project(x_t + relative_step · ε · s(∇ loss(x_t))), from x or from a random start. The
    attack loss is loss_fn(logits, labels), or −loss_fn(logits, targets) for a targeted attack. It
    spends `num_steps + 1` queries a restart. Components of a gradient that are not finite take no
    step. Nothing couples examples.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters with a random start only.
      x: `[B, ...]` clean inputs within the bounds of the threat model, of any rank.
      labels: `[B]` integers.
      threat: from `attacks.linf`; its budget may be traced.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      num_steps: steps a restart, ≥ 0; static.
      relative_step: length of a step as a fraction of ε, a scalar ≥ 0; may be traced.
      num_restarts: independent walks, one after the other, of which each example's best end is
        kept; ≥ 1, static.
      random_start: whether walks begin at a uniform draw from the ball rather than at x.
      best: whether a walk ends at its best iterate (success first, then attack loss) rather than at
        its last.

    Raises:
      ValueError: for counts or a step outside these ranges, and for several restarts without a
        random start, which would all be the same walk.

    Examples:
      >>> def logits_fn(x):
      ...     return (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5], [0.875, 0.875]]), jnp.array([0, 0])
      >>> threat = attacks.linf(0.125)
      >>> found = attacks.pgd(logits_fn, jax.random.key(0), x, labels, threat=threat)
      >>> found.success.tolist(), found.queries.tolist()
      ([True, False], [21, 21])
      >>> print(found.adversarial[1])
      [0.75 0.75]
    """
    _check(x, labels, num_steps, relative_step, num_restarts, random_start)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient_fn = base.exact_gradient(goal)
    update_rule = optax.chain(
        base.steepest(threat), base.scale_by_epsilon(threat), optax.scale(relative_step)
    )

    def walk(key: Key) -> base.Candidate:
        start = threat.random_start(key, x) if random_start else x
        return base.iterate(
            goal, gradient_fn, update_rule, x, start, threat=threat, num_steps=num_steps, best=best
        )

    if num_restarts == 1:
        found = walk(key)
    else:
        found, _ = jax.lax.scan(
            lambda kept, key: (base.better_of(walk(key), kept), None),
            base.no_candidate(goal, x),
            jax.random.split(key, num_restarts),
        )
    queries = jnp.full(labels.shape, num_restarts * (num_steps + 1), jnp.int32)
    return AttackResult(found.point, found.success, found.loss, queries)


def fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
) -> AttackResult:
    """Returns the result of one steepest step of length ε from x (Goodfellow et al., 2015).

    It is `pgd` with one whole step and no choice of the best: 2 queries.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`.
      targets: `[B]` integers, or None.
      loss_fn: logits and labels to a loss per example.
    """
    return pgd(
        logits_fn,
        key,
        x,
        labels,
        threat=threat,
        targets=targets,
        loss_fn=loss_fn,
        num_steps=1,
        relative_step=1.0,
        best=False,
    )


def _check(
    x: Array,
    labels: Array,
    num_steps: int,
    relative_step: Any,
    num_restarts: int,
    random_start: bool,
) -> None:
    chex.assert_type([x, labels], [float, int])
    chex.assert_rank([labels, relative_step], [1, 0])
    chex.assert_equal_shape_prefix([x, labels], 1)
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}")
    if num_restarts > 1 and not random_start:
        raise ValueError(f"num_restarts must be 1 without random_start, got {num_restarts}")
    if not is_traced(relative_step) and not (np.isfinite(relative_step) and relative_step >= 0):
        raise ValueError(f"relative_step must be finite and at least 0, got {relative_step}")
