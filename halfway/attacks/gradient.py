"""Attacks that follow the gradient of a loss within a threat model."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from halfway import losses
from halfway.attacks import base, estimators
from halfway.attacks.base import AttackResult
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn, LossFn


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
      >>> found = attacks.pgd(logits_fn, jax.random.key(0), x, labels, threat=threat)
      >>> found.success.tolist(), found.queries.tolist()
      ([True, False], [21, 21])
      >>> print(found.adversarial[1])
      [0.75 0.75]
    """
    _check(x, labels, num_steps, relative_step, num_restarts, random_start)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    estimator = base.exact_gradient(goal)
    update_rule = base.steps(threat, relative_step)

    def walk(key: Key) -> base.Candidate:
        start = threat.random_start(key, x) if random_start else x
        return base.iterate(
            goal,
            estimator,
            update_rule,
            x,
            start,
            threat=threat,
            num_steps=num_steps,
            best=best,
            early_stop=early_stop,
        )

    if num_restarts == 1:
        found = walk(key)
    else:
        found = base.best_walk(walk, jax.random.split(key, num_restarts), goal, x)
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


def bim(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    num_steps: int = 10,
) -> AttackResult:
    """Returns the last point of steepest steps of ε/num_steps from x (Kurakin et al., 2017).

    It is `pgd` without random start or choice of the best.

    Args, errors: as of `pgd`; `num_steps` at least 1.
    """
    base.check(x, labels, num_steps, least=1)
    return pgd(
        logits_fn,
        key,
        x,
        labels,
        threat=threat,
        targets=targets,
        loss_fn=loss_fn,
        num_steps=num_steps,
        relative_step=1.0 / num_steps,
        best=False,
    )


def mi_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 1.0,
    lookahead: bool = False,
    diversity: float = 0.0,
    smallest: float = 0.9,
    num_scales: int = 1,
    kernel_size: int = 1,
    deviation: float = 3.0,
    num_neighbours: int = 0,
    neighbourhood: float = 1.5,
    best: bool = False,
) -> AttackResult:
    """Returns the end of a walk with momentum, made to transfer (Dong et al., arXiv 1710.06081).

    x_{t+1} = project(x_t + relative_step · ε · s(g_t)), g_t = decay · g_{t−1} + h_t/mean|h_t|. The
    options compose, in this order, what h_t is; each by itself has a name of its own (`ni_fgsm`,
    `di_fgsm`, `ti_fgsm`, `si_fgsm`, `vmi_fgsm`), and DI-TI-SI-MI, say, is
    `mi_fgsm(..., diversity=0.5, kernel_size=15, num_scales=5)`.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters with `diversity` or `num_neighbours` only.
      x: `[B, ...]` clean inputs within the bounds; images `[B, H, W, D]` for `diversity` and
        `kernel_size`.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε.
      decay: μ of the momentum; 0: none.
      lookahead: whether gradients are taken where momentum alone would go.
      diversity: probability that an image is shrunk and moved before a gradient is taken.
      smallest: share of its side that it is shrunk to at least.
      num_scales: copies of the input at scales 1, 1/2, ..., whose gradients are averaged.
      kernel_size: of the Gaussian that smooths gradients, odd; 1: none.
      deviation: of that Gaussian, in pixels.
      num_neighbours: whose gradients tune the next one (variance tuning); 0: none.
      neighbourhood: half of the side of their cube, in units of ε.
      best: whether the best iterate is returned rather than the last, which transfers better; with
        `lookahead` or `diversity` only the last is ever looked at.

    Raises:
      ValueError: for counts, steps or probabilities out of their ranges.
    """
    _check(x, labels, num_steps, relative_step, 1, False)
    _check_options(diversity, smallest, num_scales, num_neighbours)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    estimator = base.exact_gradient(goal)
    if diversity > 0:
        estimator = estimators.diverse_inputs(goal, probability=diversity, smallest=smallest)
    if num_scales > 1:
        estimator = estimators.scaled_copies(estimator, number=num_scales)
    if num_neighbours > 0:
        radius = neighbourhood * threat.radius(x)
        estimator = estimators.variance_tuned(estimator, number=num_neighbours, radius=radius)
    if kernel_size > 1:
        estimator = estimators.smoothed(estimator, size=kernel_size, deviation=deviation)
    if lookahead:
        step = relative_step * threat.radius(x)
        estimator = estimators.look_ahead(estimator, step=step, decay=decay)
    update_rule = optax.chain(estimators.accumulate(decay), base.steps(threat, relative_step))
    found = base.iterate(
        goal, estimator, update_rule, x, x, threat=threat, num_steps=num_steps, key=key, best=best
    )
    queries = jnp.full(labels.shape, num_steps * estimator.num_queries + 1, jnp.int32)
    return AttackResult(found.point, found.success, found.loss, queries)


def ni_fgsm(
    logits_fn: LogitsFn, key: Key, x: Array, labels: Array, *, threat: Threat, **options: Any
) -> AttackResult:
    """Returns the end of a walk whose gradients look ahead (Lin et al., arXiv 1908.06281).

    Args, errors: as of `mi_fgsm`, with `lookahead=True`.
    """
    defaults: dict[str, Any] = {"lookahead": True}
    return mi_fgsm(logits_fn, key, x, labels, threat=threat, **defaults | options)


def di_fgsm(
    logits_fn: LogitsFn, key: Key, x: Array, labels: Array, *, threat: Threat, **options: Any
) -> AttackResult:
    """Returns the end of a walk on images shrunk and moved (Xie et al., arXiv 1803.06978).

    Args, errors: as of `mi_fgsm`, with `diversity=0.5` and no momentum.
    """
    defaults: dict[str, Any] = {"diversity": 0.5, "decay": 0.0}
    return mi_fgsm(logits_fn, key, x, labels, threat=threat, **defaults | options)


def ti_fgsm(
    logits_fn: LogitsFn, key: Key, x: Array, labels: Array, *, threat: Threat, **options: Any
) -> AttackResult:
    """Returns the end of a walk along smoothed gradients (Dong et al., arXiv 1904.02884).

    Args, errors: as of `mi_fgsm`, with `kernel_size=15` and no momentum.
    """
    defaults: dict[str, Any] = {"kernel_size": 15, "decay": 0.0}
    return mi_fgsm(logits_fn, key, x, labels, threat=threat, **defaults | options)


def si_fgsm(
    logits_fn: LogitsFn, key: Key, x: Array, labels: Array, *, threat: Threat, **options: Any
) -> AttackResult:
    """Returns the end of a walk along means over scales (SI-NI-FGSM, arXiv 1908.06281).

    Args, errors: as of `mi_fgsm`, with `num_scales=5` and `lookahead=True`.
    """
    defaults: dict[str, Any] = {"num_scales": 5, "lookahead": True}
    return mi_fgsm(logits_fn, key, x, labels, threat=threat, **defaults | options)


def vmi_fgsm(
    logits_fn: LogitsFn, key: Key, x: Array, labels: Array, *, threat: Threat, **options: Any
) -> AttackResult:
    """Returns the end of a walk along variance-tuned gradients (Wang and He, arXiv 2103.15571).

    Args, errors: as of `mi_fgsm`, with `num_neighbours=20`.
    """
    defaults: dict[str, Any] = {"num_neighbours": 20}
    return mi_fgsm(logits_fn, key, x, labels, threat=threat, **defaults | options)


def _check_options(diversity: float, smallest: float, num_scales: int, num_neighbours: int) -> None:
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must lie in [0, 1], got {diversity}")
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest must lie in (0, 1], got {smallest}")
    base.check_count("num_scales", num_scales)
    base.check_count("num_neighbours", num_neighbours, least=0)


def _check(
    x: Array,
    labels: Array,
    num_steps: int,
    relative_step: Any,
    num_restarts: int,
    random_start: bool,
) -> None:
    base.check(x, labels, num_steps, least=0)
    base.check_count("num_restarts", num_restarts)
    if num_restarts > 1 and not random_start:
        raise ValueError(f"num_restarts must be 1 without random_start, got {num_restarts}")
    base.check_length("relative_step", relative_step)
