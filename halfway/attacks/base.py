"""What attacks are composed of: objective, gradient estimator, update rule and loop.

An attack *ascends* its attack loss. The objective says what that is, a gradient estimator is a
closure over it, the update rule is an `optax.GradientTransformation` on the input whose updates are
added, and `ascend` is the loop within a threat model (`threat.py`). A named attack is a short
composition of these, to be copied and changed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from halfway import losses
from halfway.attacks.threat import Threat, per_example
from halfway.types import Array, Key, LogitsFn, LossFn, is_traced


class GradientEstimate(NamedTuple):
    """What a gradient estimator says of a point.

    Attributes:
      gradient: `[B, ...]`, an estimate of the gradient of the attack loss.
      loss: `[B]` attack loss at this very point; NaN where the estimator does not look there.
      logits: `[B, C]` at this very point, `[B, M, C]` of M models; NaN likewise.
      state: what the estimator carries to its next call.
    """

    gradient: Array
    loss: Array
    logits: Array
    state: Any


class Estimator(NamedTuple):
    """How an attack comes by a gradient: small functions that wrap each other.

    Attributes:
      init: inputs `[B, ...]` to the state of the first call.
      estimate: `(key, state, x) -> GradientEstimate`; the key is consumed, None where nothing is
        random.
      num_queries: of a call, per example.
    """

    init: Callable[[Array], Any]
    estimate: Callable[[Key | None, Any, Array], GradientEstimate]
    num_queries: int


class AttackResult(NamedTuple):
    """What an attack returns, per example; every field belongs to the same, feasible point.

    Attributes:
      adversarial: `[B, ...]`, within the threat model.
      success: `[B]` bool: misclassified, or classified as the target where there is one. Inputs
        misclassified from the start count; never where a logit is NaN.
      loss: `[B]` attack loss, larger is better for the attacker.
      queries: `[B]` int32, forward evaluations of the model. A gradient counts as one: the
        evaluation that it starts with; its backward pass is not counted.
    """

    adversarial: Array
    success: Array
    loss: Array
    queries: Array


class Objective(NamedTuple):
    """What an attack wants of a model.

    Attributes:
      value: inputs `[B, ...]` to attack loss `[B]` and logits `[B, C]`, of M models `[B, M, C]`.
      success: these logits to whether the attack has reached its aim, `[B]` bool.
      loss: these logits to the attack loss `[B]`, for estimators that look at other models.
      num_queries: of a value, per example.
    """

    value: Callable[[Array], tuple[Array, Array]]
    success: Callable[[Array], Array]
    loss: Callable[[Array], Array]
    num_queries: int = 1


EstimatorOf = Callable[[Objective], Estimator]
"""What an attack takes as `estimator`: of its own objective, how it comes by a gradient."""


def objective(
    logits_fn: LogitsFn, labels: Array, loss_fn: LossFn, targets: Array | None = None
) -> Objective:
    """Returns the objective: away from the labels, or towards the targets where given.

    The attack loss is loss_fn(logits, labels), or −loss_fn(logits, targets). Of M models at once
    (`attacks.ensemble`) the logits are `[B, M, C]`: then success is that of all of them, and a loss
    `[B, M]` stands for its least after that sign, that of the model hardest to fool. Of logits of
    16 bits the loss is taken in float32.

    Args:
      logits_fn: the model, `[B, ...]` to `[B, C]` or `[B, M, C]`; it must not couple examples.
      labels: `[B]` integers.
      loss_fn: these logits and labels to a loss per example.
      targets: `[B]` integers, or None.
    """
    chex.assert_type(labels, int)
    chex.assert_rank(labels, 1)
    if targets is not None:
        chex.assert_equal_shape([labels, targets])
    aim, sign = (labels, 1) if targets is None else (targets, -1)

    def attack_loss(logits: Array) -> Array:
        loss = sign * loss_fn(precise(logits), aim)
        return loss.min(1) if (logits.ndim, loss.ndim) == (3, 2) else loss

    def value(x: Array) -> tuple[Array, Array]:
        logits = logits_fn(x)
        return attack_loss(logits), logits

    def success(logits: Array) -> Array:
        # NaN, the error of NaN logits, equals neither.
        wanted = 1 if targets is None else 0
        if logits.ndim == 3:
            return (jax.vmap(losses.error, (1, None), 1)(logits, aim) == wanted).all(1)
        return losses.error(logits, aim) == wanted

    return Objective(value, success, attack_loss)


def precise(logits: Array) -> Array:
    """Returns logits in float32 where their type is shorter: differences of them are small.

    Args:
      logits: of any shape.
    """
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def exact_gradient(goal: Objective) -> Estimator:
    """Returns the gradient estimator that differentiates the attack loss itself.

    Args:
      goal: what to ascend.
    """

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        del key
        loss, pullback, logits = jax.vjp(goal.value, x, has_aux=True)
        (gradient,) = pullback(jnp.ones_like(loss))
        return GradientEstimate(gradient, loss, logits, state)

    return Estimator(lambda x: (), estimate, goal.num_queries)


def steepest(threat: Threat) -> optax.GradientTransformation:
    """Returns the update rule that replaces a gradient h by s(h) of the threat model's norm.

    Args:
      threat: the norm is used, the budget is not.
    """

    def update(gradient: Any, _: Any) -> Array:
        return threat.steepest(gradient)

    return optax.stateless(update)


def scale_by_epsilon(threat: Threat) -> optax.GradientTransformation:
    """Returns the update rule that multiplies each example's update by its budget.

    Args:
      threat: the budget is used.
    """

    def update(direction: Any, _: Any) -> Array:
        return threat.radius(direction) * direction

    return optax.stateless(update)


def finite(gradient: Array) -> Array:
    """Returns a gradient whose components that are not finite are 0: they take no step."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


def steps(threat: Threat, relative_step: Any) -> optax.GradientTransformation:
    """Returns the update rule relative_step · ε · s(h), the steps of projected ascent.

    Args:
      threat: of the norm and the budget.
      relative_step: length as a fraction of ε, a scalar ≥ 0; may be traced.

    Raises:
      ValueError: for a step that is negative or not finite.
    """
    check_length("relative_step", relative_step)
    return optax.chain(steepest(threat), scale_by_epsilon(threat), optax.scale(relative_step))


def example_keys(key: Key, number: int) -> Key:
    """Returns a key for each place in a batch, which does not depend on the size of the batch.

    Args:
      key: consumed.
      number: B.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(number))


class Candidate(NamedTuple):
    """A point `[B, ...]` and, at this very point, success `[B]` and attack loss `[B]`."""

    point: Array
    success: Array
    loss: Array


def better_of(challenger: Candidate, incumbent: Candidate) -> Candidate:
    """Returns the better candidate of each example: success first, then the larger attack loss.

    Success counts first because a loss may rank a failure above it (cross-entropy does). A NaN loss
    loses to any other; among equals the incumbent stays.

    Args:
      challenger: looked at now.
      incumbent: kept so far.
    """
    higher = (challenger.loss > incumbent.loss) | jnp.isnan(incumbent.loss)
    won = jnp.where(challenger.success == incumbent.success, higher, challenger.success)
    chosen = per_example(won, challenger.point)
    return Candidate(
        point=jnp.where(chosen, challenger.point, incumbent.point),
        success=jnp.where(won, challenger.success, incumbent.success),
        loss=jnp.where(won, challenger.loss, incumbent.loss),
    )


def no_candidate(goal: Objective, x: Array) -> Candidate:
    """Returns the candidate that any other replaces: x, as a failure with loss NaN.

    Args:
      goal: gives the type of the loss; it is traced, not evaluated.
      x: `[B, ...]`.
    """
    loss, _ = jax.eval_shape(goal.value, x)
    chex.assert_shape(loss, x.shape[:1])
    return Candidate(x, jnp.zeros(loss.shape, bool), jnp.full(loss.shape, jnp.nan, loss.dtype))


def best_walk(walk: Callable[[Key], Candidate], keys: Key, goal: Objective, x: Array) -> Candidate:
    """Returns the best end of walks taken one after the other, for each example its own.

    Args:
      walk: a key to where it ends.
      keys: `[R]`, of each walk.
      goal: of the walks.
      x: `[B, ...]`, clean inputs.
    """

    def again(kept: Candidate, key: Key) -> tuple[Candidate, None]:
        return better_of(walk(key), kept), None

    return jax.lax.scan(again, no_candidate(goal, x), keys)[0]


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Checks a static count.

    Args:
      name: of the argument.
      value: that was given.
      least: smallest that is allowed.

    Raises:
      ValueError: where it is smaller than it may be.
    """
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_length(name: str, value: Any) -> None:
    """Checks the length of a step or a rate, a scalar; traced ones are not looked at.

    Args:
      name: of the argument.
      value: that was given.

    Raises:
      ValueError: where it is negative or not finite.
    """
    chex.assert_rank(value, 0)
    if not is_traced(value) and not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def check_channels_last(x: Array) -> None:
    """Checks that images are `[B, H, W, D]`, not `[B, D, H, W]` as in other libraries.

    Args:
      x: images, or inputs of another rank, which are not looked at.

    Raises:
      ValueError: where the second axis can only be that of channels.
    """
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] > 4:
        raise ValueError(
            f"x has shape {x.shape}, channels first: images must be [B, H, W, D], "
            "x.transpose(0, 2, 3, 1), with a model that takes them so"
        )


def ascend(
    goal: Objective,
    estimator: Estimator,
    update_rule: optax.GradientTransformation,
    key: Key,
    x: Array,
    *,
    threat: Threat,
    num_steps: int,
    num_restarts: int = 1,
    random_start: bool = False,
    best: bool = True,
    early_stop: bool = False,
) -> AttackResult:
    """Returns the best point of projected walks: the loop that attacks are compositions with.

    It spends, on each restart, `num_steps` estimates and one value of the objective.

    Args:
      goal: what is ascended.
      estimator: of its gradient.
      update_rule: gradients to updates, which are *added* to the point; `params` is the point.
      key: consumed; its value matters with a random start or a random estimator only.
      x: `[B, ...]` clean inputs within the bounds of the threat model.
      threat: every step ends with its projection; its budget may be traced.
      num_steps: steps a restart, ≥ 0; static.
      num_restarts: independent walks, one after the other, of which each example's best end is
        kept; ≥ 1, static.
      random_start: whether walks begin at a uniform draw from the ball rather than at x.
      best: whether a walk ends at its best iterate (success first, then attack loss) rather than at
        its last.
      early_stop: whether an example rests where it first succeeds; the estimator has to look at the
        point itself. Shapes are static, so that it saves no time and no queries.

    Raises:
      ValueError: for counts outside these ranges, and for several restarts without a random start.

    Examples:
      An attack on the mean gradient over scales, with momentum, that looks where momentum would go:

      >>> logits_fn = lambda x: (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5], [0.875, 0.875]]), jnp.array([0, 0])
      >>> threat = attacks.linf(0.125)
      >>> goal = attacks.objective(logits_fn, labels, losses.margin)
      >>> gradient = attacks.scaled_copies(attacks.exact_gradient(goal), num_scales=5)
      >>> gradient = attacks.look_ahead(gradient, step=0.1 * threat.radius(x), decay=1.0)
      >>> rule = attacks.momentum(threat, 0.1, decay=1.0)
      >>> result = attacks.ascend(
      ...     goal, gradient, rule, jax.random.key(0), x, threat=threat, num_steps=10)
      >>> result.success.tolist(), result.queries.tolist()
      ([True, False], [51, 51])
    """
    chex.assert_type(x, float)
    check_count("num_steps", num_steps, least=0)
    check_count("num_restarts", num_restarts)
    if num_restarts > 1 and not random_start:
        raise ValueError(f"num_restarts must be 1 without random_start, got {num_restarts}")

    def walk(key: Key) -> Candidate:
        start = x
        if random_start:
            key, key_start = jax.random.split(key)
            start = threat.random_start(key_start, x)
        return iterate(
            goal,
            estimator,
            update_rule,
            x,
            start,
            threat=threat,
            num_steps=num_steps,
            key=key,
            best=best,
            early_stop=early_stop,
        )

    if num_restarts == 1:
        end = walk(key)
    else:
        end = best_walk(walk, jax.random.split(key, num_restarts), goal, x)
    spent = num_restarts * (num_steps * estimator.num_queries + goal.num_queries)
    queries = jnp.full(x.shape[:1], spent, jnp.int32)
    return AttackResult(end.point, end.success, end.loss, queries)


def iterate(
    goal: Objective,
    estimator: Estimator,
    update_rule: optax.GradientTransformation,
    x: Array,
    start: Array,
    *,
    threat: Threat,
    num_steps: int,
    key: Key | None = None,
    best: bool = True,
    early_stop: bool = False,
) -> Candidate:
    """Returns the best point of a projected walk (the start included), or its last.

    Costs `num_steps` estimates and one forward evaluation. Its memory does not depend on
    `num_steps`. A component of the gradient that is not finite counts as 0, and so takes no step by
    itself.

    Args:
      goal: says what is best.
      estimator: the direction to ascend.
      update_rule: gradients to updates, which are *added* to the point; `params` is the point.
      x: `[B, ...]`, clean inputs.
      start: `[B, ...]`, where the walk begins; feasible.
      threat: every step ends with its projection.
      num_steps: static.
      key: consumed; needed where the estimator draws.
      best: whether to keep the best iterate rather than the last.
      early_stop: whether an example rests where it first succeeds; the estimator has to look at the
        point itself. Shapes are static, so the others cost as much as before.
    """

    def step(carry: tuple[Array, Any, Any, Candidate | None], index: Array) -> tuple[Any, None]:
        point, memory, state, kept = carry
        key_step = None if key is None else jax.random.fold_in(key, index)
        estimate, before = estimator.estimate(key_step, memory, point), point
        if kept is not None:
            here = Candidate(point, goal.success(estimate.logits), estimate.loss)
            kept = better_of(here, kept)
        updates, state = update_rule.update(finite(estimate.gradient), state, point)
        point = threat.project(jnp.asarray(optax.apply_updates(point, updates)), x)
        if early_stop:
            rests = per_example(goal.success(estimate.logits), point)
            point = jnp.where(rests, before, point)
        return (point, estimate.state, state, kept), None

    kept = no_candidate(goal, start) if best else None
    carry = (start, estimator.init(start), update_rule.init(start), kept)
    (point, _, _, kept), _ = jax.lax.scan(step, carry, jnp.arange(num_steps))
    loss, logits = goal.value(point)
    last = Candidate(point, goal.success(logits), loss)
    return last if kept is None else better_of(last, kept)
