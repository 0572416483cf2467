"""One perturbation for all inputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from halfway import losses
from halfway.attacks import base, door
from halfway.attacks.threat import Threat, clip_to_box
from halfway.types import Array, Key, LogitsFn, LossFn


class UniversalResult(NamedTuple):
    """One perturbation and, as in `AttackResult`, what becomes of each example.

    Attributes:
      perturbation: `[...]`, of norm at most ε; within no bounds of its own.
      adversarial: `[B, ...]`, inputs plus perturbation, clipped to the bounds.
      success: `[B]` bool, at these points.
      loss: `[B]` attack loss there, not capped.
      queries: `[B]` int32, forward evaluations of the model.
    """

    perturbation: Array
    adversarial: Array
    success: Array
    loss: Array
    queries: Array


@door.checked
def universal(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    num_epochs: int = 10,
    batch_size: int = 100,
    relative_step: Any = 0.1,
    cap: Any = None,
) -> UniversalResult:
    """Returns one perturbation that is to fool the model at every input (Shafahi et al., 2020).

    δ ← project(δ + relative_step · ε · s(mean_i ∇loss(clip(x_i + δ)))) over minibatches, from 0, on
    the ball about 0. What a bound of an input stops of its gradient does not count. The examples
    are coupled by design: another batch has another perturbation. An input x' that was not seen is
    attacked by `threat.project(x' + δ, x')`.

    Every epoch shuffles the examples and goes through all of them; where `batch_size` does not
    divide them, the last minibatch is what remains. It spends `num_epochs + 1` queries.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; it shuffles.
      x: `[B, ...]` clean inputs within the bounds, at least one.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`; ε is a scalar.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example, of any number of examples.
      num_epochs: ≥ 0, static.
      batch_size: examples that the model sees at once, ≥ 1, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      cap: examples whose attack loss has reached it push no further, so that a few already fooled
        do not decide; None: no cap.

    Raises:
      ValueError: for a count or step outside these ranges, and for one ε per example.

    Source: Shafahi et al., arXiv 1811.11304; the problem: Moosavi-Dezfooli et al., arXiv
    1610.08401.

    Examples:
      >>> def logits_fn(x):
      ...     return (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5], [0.75, 0.625]]), jnp.array([0, 0])
      >>> result = attacks.universal(
      ...     logits_fn, jax.random.key(0), x, labels, threat=attacks.linf(0.125))
      >>> print(result.perturbation, result.success)
      [-0.125 -0.125] [ True False]
    """
    _check(threat, num_epochs, batch_size, relative_step)
    num_examples = x.shape[0]
    batch_size = min(batch_size, num_examples)
    pad = -num_examples % batch_size
    radius, zero = threat.radius(x), jnp.zeros_like(x[:1])
    lower, upper = threat.bounds

    def batches(order: Array) -> Array:
        return jnp.pad(order, (0, pad)).reshape(-1, batch_size)

    def goal_of(rows: Array) -> base.Objective:
        aims = None if targets is None else targets[rows]
        return base.objective(logits_fn, labels[rows], loss_fn, aims)

    def step(delta: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        rows, counts = inputs
        moved = x[rows] + delta
        point = clip_to_box(moved, threat.bounds)
        estimate = base.exact_gradient(goal_of(rows)).estimate(None, (), point)
        slope = base.finite(estimate.gradient)
        # Only outwards: the way back from beyond a bound stays open.
        stopped = ((moved >= upper) & (slope > 0)) | ((moved <= lower) & (slope < 0))
        pushes = counts if cap is None else counts & (estimate.loss < cap)
        # The sum has the direction of the mean.
        total = jnp.where(base.per_example(pushes, x) & ~stopped, slope, 0).sum(0, keepdims=True)
        delta = delta + relative_step * radius * threat.steepest(total)
        return threat.norm.project(delta, zero, radius, (-jnp.inf, jnp.inf)), None

    everyone = jnp.arange(num_examples)
    counts = batches(jnp.ones(num_examples, bool))

    def epoch(delta: Array, key: Key) -> tuple[Array, None]:
        rows = batches(jax.random.permutation(key, everyone))
        return lax.scan(step, delta, (rows, counts))[0], None

    delta, _ = lax.scan(epoch, zero, jax.random.split(key, num_epochs))
    adversarial = clip_to_box(x + delta, threat.bounds)

    def look(rows: Array) -> tuple[Array, Array]:
        goal = goal_of(rows)
        loss, logits = goal.value(adversarial[rows])
        return goal.success(logits), loss

    looked_at = lax.map(look, batches(everyone))
    success, loss = (values.reshape(-1)[:num_examples] for values in looked_at)
    queries = jnp.full(labels.shape, num_epochs + 1, jnp.int32)
    return UniversalResult(delta[0], adversarial, success, loss, queries)


def _check(threat: Threat, num_epochs: int, batch_size: int, relative_step: Any) -> None:
    if jnp.ndim(threat.epsilon) != 0:
        raise ValueError(
            "one perturbation has one budget: epsilon must be a scalar, got shape "
            f"{jnp.shape(threat.epsilon)}"
        )
    base.check_count("num_epochs", num_epochs, least=0)
    base.check_count("batch_size", batch_size)
    base.check_length("relative_step", relative_step)
