"""Auto-PGD, a walk that halves its step where it stops gaining (Croce and Hein, 2020)."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import base, door
from halfway.attacks.base import AttackResult, Candidate, EstimatorOf
from halfway.attacks.threat import Threat, shared_step
from halfway.types import Array, Key, LogitsFn, LossFn

MOMENTUM, PROGRESS, FIRST_STEP = 0.75, 0.75, 2.0
"""Weight of a step against the last one; share of steps that must gain; first step over ε."""
FIRST_SHARE, PERIOD, SHRINK, LEAST_STEP, FEWER = 0.2, 0.04, 1.5, 0.1, 0.95
"""In l1: share of features at first, of steps between looks; by how much both shrink; the least
step over ε; what the number of features must fall to."""
SHRINKING = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radii of AutoAttack in l1: multiples of ε, and the share of the steps in each."""
Look = Callable[[Key, Any, Array], tuple[Array, Candidate, Any]]
"""Key, what the estimator carries and a point `[B, ...]` to the gradient there, what the point is
worth and what the estimator carries on."""


class _State(NamedTuple):
    """A walk between two steps; `[B]` each unless said otherwise.

    Attributes:
      point, before: `[B, ...]`, x_t and x_{t−1}.
      gradient: `[B, ...]`, at x_t.
      memory: what the estimator of gradients carries.
      loss: at x_t.
      kept: what the attack returns: success first, then loss.
      best, best_gradient, best_loss: `[B, ...]`, `[B, ...]` and `[B]`: the point of largest loss,
        with the gradient that was taken there: from here walks start again.
      step: length over ε.
      gains: steps since the last checkpoint that raised the loss.
      last_best, halved: the largest loss, and whether the step was halved, at the last checkpoint.
    """

    point: Array
    before: Array
    gradient: Array
    memory: Any
    loss: Array
    kept: Candidate
    best: Array
    best_gradient: Array
    best_loss: Array
    step: Array
    gains: Array
    last_best: Array
    halved: Array


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Returns the numbers of steps after which the length of a step is looked at.

    Shares of the steps .22, then larger by max(last gap − .03, .06), rounded up.

    Args:
      num_steps: N.

    Examples:
      >>> from halfway.attacks.auto.auto_pgd import checkpoints
      >>> checkpoints(100)
      (22, 41, 57, 70, 80, 87, 93, 99)
    """
    # In hundredths, so that nothing rounds.
    places, gap, place = [], 22, 22
    while place <= 100:
        places.append(-(-place * num_steps // 100))
        gap = max(gap - 3, 6)
        place += gap
    return tuple(dict.fromkeys(p for p in places if 0 < p < num_steps))


@door.checked
def apgd(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    estimator: EstimatorOf = base.exact_gradient,
    num_steps: int = 100,
    num_restarts: int = 1,
    random_start: bool = True,
    radii: tuple[tuple[float, float], ...] = ((1.0, 1.0),),
) -> AttackResult:
    """Returns the result of Auto-PGD, which needs no step size.

    Steps begin at 2 ε, along s of the threat model's norm with a momentum of .75 after the first.
    At checkpoints, for each example, the step is halved and the walk goes back to its best point,
    with the gradient stored there, where three quarters of the steps since the last one gained or
    fewer, or where neither the step nor the best loss has changed since then (not asked at the
    first one). `losses.dlr`, and `losses.targeted_dlr(labels)` with targets, are its other losses.

    In l1 there is no momentum: a step of length ε is shared by the largest components of the
    gradient, at first a fifth of them. After every .04 num_steps these are 1/1.5 of the features
    that differ at the best point so far; the step is ε again, from that point, where they have
    become fewer by a twentieth, and else 1/1.5 as long, down to ε/10.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters with a random start.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      estimator: of the gradient; where it is not the exact one, the walk looks at the point itself
        for its loss and logits, at one more query a step.
      num_steps: N, at least 1; static. Each restart spends N queries, and one for each radius.
      num_restarts: walks, of which each example's best is kept; at least 1, static.
      random_start: whether walks begin at a uniform draw from the ball.
      radii: the multiples of ε in which a walk goes on from its best point so far, moved into the
        ball, and the share of N that is spent in each; the last multiple is 1. `SHRINKING` is that
        of AutoAttack in l1. Static.

    Raises:
      ValueError: for counts below 1, for several restarts without a random start, and for radii
        that do not end with 1.

    Source: arXiv 2003.01690; for l1, Croce and Hein, arXiv 2103.01208.
    """
    base.check_count("num_steps", num_steps)
    if num_restarts < 1 or (num_restarts > 1 and not random_start):
        raise ValueError(
            f"num_restarts must be at least 1, and 1 without random_start, got {num_restarts}"
        )
    if not radii or radii[-1][0] != 1 or min(itertools.chain(*radii)) <= 0:
        raise ValueError(f"radii must be positive and end with that of 1, got {radii}")
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    look, memory, num_queries = _look(goal, estimator, x)
    walk_of = _sparse_walk if threat.norm.name == "l1" else _walk
    counts = [max(round(share * num_steps), 1) for _, share in radii]

    def walk(key: Key) -> Candidate:
        key_start, key = jax.random.split(key)
        start = _scaled(threat, radii[0][0]).random_start(key_start, x) if random_start else x
        end = Candidate(start, *base.no_candidate(goal, x)[1:])
        for index, ((multiple, _), count) in enumerate(zip(radii, counts, strict=True)):
            ball = _scaled(threat, multiple)
            key_walk = jax.random.fold_in(key, index)
            end = walk_of(look, memory, key_walk, x, ball.project(end.point, x), ball, count)
        return end

    end = base.best_walk(walk, jax.random.split(key, num_restarts), goal, x)
    queries = num_restarts * num_queries * sum(count + 1 for count in counts)
    return AttackResult(
        end.point, end.success, end.loss, jnp.full(labels.shape, queries, jnp.int32)
    )


def _scaled(threat: Threat, multiple: float) -> Threat:
    return dataclasses.replace(threat, epsilon=multiple * threat.epsilon)


def _look(goal: base.Objective, estimator_of: EstimatorOf, x: Array) -> tuple[Look, Any, int]:
    """Returns how a walk looks at a point, what it carries at first, and the queries of a look."""
    estimator = estimator_of(goal)
    exact = estimator_of is base.exact_gradient

    def look(key: Key, memory: Any, point: Array) -> tuple[Array, Candidate, Any]:
        estimate = estimator.estimate(key, memory, point)
        loss, logits = (estimate.loss, estimate.logits) if exact else goal.value(point)
        chex.assert_shape(loss, x.shape[:1])
        here = Candidate(point, goal.success(logits), loss)
        return base.finite(estimate.gradient), here, estimate.state

    return look, estimator.init(x), estimator.num_queries + (0 if exact else goal.num_queries)


def _walk(
    look: Look, memory: Any, key: Key, x: Array, begin: Array, threat: Threat, num_steps: int
) -> Candidate:
    """Returns the best point of one walk."""
    radius, each = threat.radius(x), functools.partial(base.per_example, like=x)
    gradient, first, memory = look(jax.random.fold_in(key, 0), memory, begin)
    ones = jnp.ones_like(first.loss)
    state = _State(
        point=begin,
        before=begin,
        gradient=gradient,
        memory=memory,
        loss=first.loss,
        kept=first,
        best=begin,
        best_gradient=gradient,
        best_loss=first.loss,
        step=FIRST_STEP * ones,
        gains=jnp.zeros(ones.shape, jnp.int32),
        last_best=first.loss,
        halved=jnp.ones(ones.shape, bool),  # so that the first checkpoint asks for gains alone
    )

    def move(state: _State, weight: Array, key: Key) -> _State:
        along = each(state.step) * radius * threat.steepest(state.gradient)
        ahead = threat.project(state.point + along, x)
        mixed = state.point + weight * (ahead - state.point)
        mixed = mixed + (1 - weight) * (state.point - state.before)
        point = threat.project(mixed, x)
        gradient, moved, memory = look(key, state.memory, point)
        better = moved.loss > state.best_loss
        return state._replace(
            point=point,
            before=state.point,
            gradient=gradient,
            memory=memory,
            loss=moved.loss,
            kept=base.better_of(moved, state.kept),
            best=jnp.where(each(better), point, state.best),
            best_gradient=jnp.where(each(better), gradient, state.best_gradient),
            best_loss=jnp.where(better, moved.loss, state.best_loss),
            gains=state.gains + (moved.loss > state.loss),
        )

    def check(state: _State, gap: Array) -> _State:
        stalled = state.gains <= PROGRESS * gap
        stuck = ~state.halved & (state.last_best >= state.best_loss)
        halve = stalled | stuck
        return state._replace(
            step=jnp.where(halve, 0.5 * state.step, state.step),
            point=jnp.where(each(halve), state.best, state.point),
            gradient=jnp.where(each(halve), state.best_gradient, state.gradient),
            gains=jnp.zeros_like(state.gains),
            last_best=state.best_loss,
            halved=halve,
        )

    places = checkpoints(num_steps)
    gaps = {place: place - last for place, last in zip(places, (0, *places), strict=False)}
    gap = jnp.array([gaps.get(step, 0) for step in range(1, num_steps + 1)], jnp.float32)
    weight = jnp.full(num_steps, MOMENTUM, x.dtype).at[0].set(1.0)

    def step(state: _State, inputs: tuple[Array, Array, Array]) -> tuple[_State, None]:
        index, weight, gap = inputs
        state = move(state, weight, jax.random.fold_in(key, index))
        return jax.lax.cond(gap > 0, lambda s: check(s, gap), lambda s: s, state), None

    state, _ = jax.lax.scan(step, state, (jnp.arange(1, num_steps + 1), weight, gap))
    return state.kept


class _SparseState(NamedTuple):
    """A walk in l1 between two steps; as `_State`, and `[B]` each:

    Attributes:
      number: features that a step moves.
      last: features that differed at the best point when this was last looked at.
    """

    point: Array
    gradient: Array
    memory: Any
    kept: Candidate
    best: Array
    best_gradient: Array
    best_loss: Array
    step: Array
    number: Array
    last: Array


def _sparse_walk(
    look: Look, memory: Any, key: Key, x: Array, begin: Array, threat: Threat, num_steps: int
) -> Candidate:
    """Returns the best point of one walk in l1."""
    radius, each = threat.radius(x), functools.partial(base.per_example, like=x)
    size = x[0].size
    period = max(int(PERIOD * num_steps), 1)
    gradient, first, memory = look(jax.random.fold_in(key, 0), memory, begin)
    ones = jnp.ones_like(first.loss)
    state = _SparseState(
        begin,
        gradient,
        memory,
        first,
        begin,
        gradient,
        first.loss,
        ones,
        FIRST_SHARE * size * ones,
        size * ones,
    )

    def adapt(state: _SparseState) -> _SparseState:
        moved = (state.best != x).reshape(x.shape[0], -1).sum(1).astype(x.dtype)
        fewer = moved < FEWER * state.last
        return state._replace(
            step=jnp.where(fewer, 1, jnp.maximum(state.step / SHRINK, LEAST_STEP)),
            point=jnp.where(each(fewer), state.best, state.point),
            gradient=jnp.where(each(fewer), state.best_gradient, state.gradient),
            number=moved / SHRINK,
            last=moved,
        )

    def step(state: _SparseState, index: Array) -> tuple[_SparseState, None]:
        along = largest_components(state.gradient, state.number)
        point = threat.project(state.point + each(state.step) * radius * along, x)
        key_look = jax.random.fold_in(key, index + 1)
        gradient, moved, memory = look(key_look, state.memory, point)
        better = moved.loss > state.best_loss
        state = state._replace(
            point=point,
            gradient=gradient,
            memory=memory,
            kept=base.better_of(moved, state.kept),
            best=jnp.where(each(better), point, state.best),
            best_gradient=jnp.where(each(better), gradient, state.best_gradient),
            best_loss=jnp.where(better, moved.loss, state.best_loss),
        )
        return jax.lax.cond((index + 1) % period == 0, adapt, lambda s: s, state), None

    state, _ = jax.lax.scan(step, state, jnp.arange(num_steps))
    return state.kept


def largest_components(gradient: Array, number: Array) -> Array:
    """Returns steps `[B, ...]` of l1 norm 1, shared equally by the largest components.

    Args:
      gradient: `[B, ...]`.
      number: `[B]` of components, rounded down, at least 1; more where they are tied.
    """
    flat = jnp.abs(gradient).reshape(gradient.shape[0], -1)
    place = jnp.clip(number.astype(jnp.int32), 1, flat.shape[1]) - 1
    least = jnp.take_along_axis(-jnp.sort(-flat, axis=1), place[:, None], 1)
    return shared_step(gradient, least)
