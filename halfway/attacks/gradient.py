"""Attacks that follow the gradient of a loss within a threat model."""

from typing import Any

from halfway import losses
from halfway.attacks import base, door, estimators
from halfway.attacks.base import AttackResult, EstimatorOf
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn, LossFn


@door.checked
def pgd(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 20,
    relative_step: Any = 0.15,
    num_restarts: int = 1,
    random_start: bool = False,
    best: bool = True,
    early_stop: bool = False,
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
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: steps a restart, ≥ 0; static.
      relative_step: length of a step as a fraction of ε, a scalar ≥ 0; may be traced.
      num_restarts: independent walks, one after the other, of which each example's best end is
        kept; ≥ 1, static.
      random_start: whether walks begin at a uniform draw from the ball rather than at x.
      best: whether a walk ends at its best iterate (success first, then attack loss) rather than at
        its last.
      early_stop: whether an example rests where it first succeeds: the nearest of the successes,
        not the strongest. It saves no time, since shapes are static, and queries count the same.

    Raises:
      ValueError: for counts or a step outside these ranges, and for several restarts without a
        random start, which would all be the same walk.

    Examples:
      >>> def logits_fn(x):
      ...     return (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5], [0.875, 0.875]]), jnp.array([0, 0])
      >>> threat = attacks.linf(0.125)
      >>> result = attacks.pgd(logits_fn, jax.random.key(0), x, labels, threat=threat)
      >>> result.success.tolist(), result.queries.tolist()
      ([True, False], [21, 21])
      >>> print(result.adversarial[1])
      [0.75 0.75]
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    return base.ascend(
        goal,
        estimator(goal),
        base.steps(threat, relative_step),
        key,
        x,
        threat=threat,
        num_steps=num_steps,
        num_restarts=num_restarts,
        random_start=random_start,
        best=best,
        early_stop=early_stop,
    )


@door.checked
def fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
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
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient, rule = estimator(goal), base.steps(threat, 1.0)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=1, best=False)


@door.checked
def bim(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
) -> AttackResult:
    """Returns the last point of steepest steps of ε/num_steps from x (Kurakin et al., 2017).

    It is `pgd` without random start or choice of the best.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`.
      targets: `[B]` integers, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 1, static.

    Raises:
      ValueError: for fewer steps.
    """
    base.check_count("num_steps", num_steps)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient, rule = estimator(goal), base.steps(threat, 1.0 / num_steps)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=False)


@door.checked
def mi_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 1.0,
    best: bool = False,
) -> AttackResult:
    """Returns the end of a walk with momentum, made to transfer (MI-FGSM).

    x_{t+1} = project(x_t + relative_step · ε · s(g_t)), g_t = decay · g_{t−1} + h_t/mean|h_t|, with
    the gradient h_t of the attack loss at x_t. The attacks below replace h_t; `attacks.ascend`
    shows how to combine what they do.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum; 0: none.
      best: whether the best iterate is returned rather than the last, which transfers better.

    Raises:
      ValueError: for counts or steps outside these ranges.

    Source: Dong et al., arXiv 1710.06081.
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient = estimator(goal)
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=best)


@door.checked
def ni_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 1.0,
) -> AttackResult:
    """Returns the end of a walk whose gradients look ahead along the momentum (NI-FGSM).

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum; 0: none.

    Raises:
      ValueError: for counts or steps outside these ranges.

    Source: Lin et al., arXiv 1908.06281.
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient = estimators.look_ahead(
        estimator(goal), step=relative_step * threat.radius(x), decay=decay
    )
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=False)


@door.checked
def di_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 0.0,
    probability: float = 0.5,
    smallest: float = 0.9,
) -> AttackResult:
    """Returns the end of a walk on images shrunk and moved at random (DI-FGSM).

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters.
      x: `[B, ...]` clean inputs within the bounds, images `[B, H, W, D]`.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum; 0: none.
      probability: that an image is shrunk and moved before a gradient is taken.
      smallest: share of its side that it is shrunk to at least, in (0, 1].

    Raises:
      ValueError: for counts or steps outside these ranges.

    Source: Xie et al., arXiv 1803.06978.
    """
    base.check_channels_last(x)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient = estimators.diverse_inputs(
        estimator(goal), probability=probability, smallest=smallest
    )
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=False)


@door.checked
def ti_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 0.0,
    kernel_size: int = 15,
    deviation: float = 3.0,
) -> AttackResult:
    """Returns the end of a walk along gradients smoothed by a Gaussian (TI-FGSM).

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds, images `[B, H, W, D]`.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum; 0: none.
      kernel_size: of the Gaussian, odd; 1: none.
      deviation: of the Gaussian, in pixels.

    Raises:
      ValueError: for counts or steps outside these ranges.

    Source: Dong et al., arXiv 1904.02884.
    """
    base.check_channels_last(x)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient = estimators.smoothed(estimator(goal), kernel_size=kernel_size, deviation=deviation)
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=False)


@door.checked
def si_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 1.0,
    num_scales: int = 5,
) -> AttackResult:
    """Returns the end of a walk along means over scales that look ahead (SI-NI-FGSM).

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value does not matter.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum; 0: none.
      num_scales: copies of the input at scales 1, 1/2, ..., whose gradients are averaged.

    Raises:
      ValueError: for counts or steps outside these ranges.

    Source: Lin et al., arXiv 1908.06281.
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient = estimators.scaled_copies(estimator(goal), num_scales=num_scales)
    step = relative_step * threat.radius(x)
    gradient = estimators.look_ahead(gradient, step=step, decay=decay)
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=False)


@door.checked
def vmi_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 1.0,
    num_neighbours: int = 20,
    neighbourhood: float = 1.5,
) -> AttackResult:
    """Returns the end of a walk along variance-tuned gradients (VMI-FGSM).

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient, such as `attacks.eot(draw_fn)` or `attacks.bpda(stand_in_fn)`.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum; 0: none.
      num_neighbours: whose gradients tune the next one, at least 1.
      neighbourhood: half of the side of their cube, in units of ε.

    Raises:
      ValueError: for counts or steps outside these ranges.

    Source: Wang and He, arXiv 2103.15571.
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    gradient = estimators.variance_tuned(
        estimator(goal),
        num_neighbours=num_neighbours,
        radius=neighbourhood * threat.radius(x),
    )
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(goal, gradient, rule, key, x, threat=threat, num_steps=num_steps, best=False)
