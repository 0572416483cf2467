"""SVRE: gradients of an ensemble by one model at a time, with their variance reduced."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from halfway import losses
from halfway.attacks import base, door, estimators
from halfway.attacks.base import AttackResult, Estimator, GradientEstimate, Objective
from halfway.attacks.ensembles import Members, ensemble, members_of
from halfway.attacks.threat import Threat
from halfway.types import ApplyFn, Array, Key, LogitsFn, LossFn, Params


def variance_reduced(
    goal_fn: Callable[[LogitsFn], Objective],
    members: Members,
    x: Array,
    *,
    threat: Threat,
    num_inner: int,
    step: Array | float,
    decay: Array | float,
) -> Estimator:
    """Returns the momentum that a walk of its own gathers, one model at a time (SVRE).

    From z = x_t and G = 0, `num_inner` times: a model k is drawn, the same for all examples;
    G ← decay · G + ∇J_k(z) − (∇J_k(x_t) − mean_m ∇J_m(x_t)); z ← project(z + step · s(G)). Over k,
    what is added has the mean gradient at z as its mean.

    The loss is the mean over models, the logits `[B, M, C]` are those of each. ∇J_k(x_t) is kept,
    not taken again; a query is one of a single model.

    Args:
      goal_fn: one model's `logits_fn` to what is ascended.
      members: the models, from `ensembles.members_of`.
      x: `[B, ...]`, clean inputs.
      threat: its steepest step and projection are used.
      num_inner: static.
      step: a scalar or one per example with trailing axes of 1.
      decay: of the momentum.

    Source: Xiong et al., arXiv 2111.10752.
    """

    def look(point: Array, logits_fn: LogitsFn) -> GradientEstimate:
        estimate = base.exact_gradient(goal_fn(logits_fn)).estimate(None, (), point)
        return estimate._replace(gradient=base.finite(estimate.gradient))

    def estimate(key: Key | None, state: Any, point: Array) -> GradientEstimate:
        assert key is not None, "models are drawn at random: the walk needs a key"
        estimates = members.of_each(functools.partial(look, point))
        mean = estimates.gradient.mean(0)

        def move(carry: tuple[Array, Array], key: Key) -> tuple[Any, None]:
            moved, momentum = carry
            index = jax.random.randint(key, (), 0, members.number)
            drawn = members.of_one(index, functools.partial(look, moved)).gradient
            momentum = decay * momentum + drawn - (estimates.gradient[index] - mean)
            moved = threat.project(moved + step * threat.steepest(momentum), x)
            return (moved, momentum), None

        start = (point, jnp.zeros_like(point))
        (_, momentum), _ = lax.scan(move, start, jax.random.split(key, num_inner))
        logits = jnp.moveaxis(estimates.logits, 0, 1)
        return GradientEstimate(momentum, estimates.loss.mean(0), logits, state)

    return Estimator(lambda x: (), estimate, members.number + num_inner)


@door.checked
def svre(
    apply_fn: ApplyFn | Sequence[ApplyFn],
    key: Key,
    x: Array,
    labels: Array,
    *,
    params: Params,
    threat: Threat,
    targets: Array | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    num_steps: int = 10,
    relative_step: Any = 0.1,
    decay: Any = 1.0,
    num_inner: int | None = None,
    inner_decay: Any = 1.0,
    inner_step: Any = 0.1,
) -> AttackResult:
    """Returns the last point of `mi_fgsm` along `variance_reduced` gradients of M models (SVRE).

    The objective is that of the "loss" `ensemble`: success is to fool every model, the loss is the
    mean. Models are evaluated one after another. Queries count single models:
    num_steps · (M + num_inner) + M.

    Args:
      apply_fn: one model's parameters and inputs to logits `[B, C]`; it must not couple examples.
        Of models of different architectures a sequence of such functions, as of `ensemble`.
      key: consumed; models are drawn.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      params: leaves `[M, ...]`, or a sequence of M parameters where there are M functions.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      num_steps: ≥ 0, static.
      relative_step: length of a step as a fraction of ε, ≥ 0.
      decay: μ of the momentum of the outer walk; 0: none.
      num_inner: steps of each inner walk, at least 1, static; None: 4 M.
      inner_decay: μ of the momentum of an inner walk.
      inner_step: length of its steps as a fraction of ε.

    Raises:
      ValueError: for counts or steps outside these ranges; for models as of `ensemble`.

    Source: Xiong et al., arXiv 2111.10752.
    """
    members = members_of(apply_fn, params, vectorized=False)
    num_models = members.number
    num_inner = 4 * num_models if num_inner is None else num_inner
    base.check_count("num_inner", num_inner)
    base.check_length("inner_step", inner_step)
    logits_fn, joint_fn = ensemble(apply_fn, params, "loss", loss_fn, vectorized=False)
    goal = base.objective(logits_fn, labels, joint_fn, targets)._replace(num_queries=num_models)

    def goal_fn(logits_fn: LogitsFn) -> Objective:
        return base.objective(logits_fn, labels, loss_fn, targets)

    estimator = variance_reduced(
        goal_fn,
        members,
        x,
        threat=threat,
        num_inner=num_inner,
        step=inner_step * threat.radius(x),
        decay=inner_decay,
    )
    rule = estimators.momentum(threat, relative_step, decay=decay)
    return base.ascend(
        goal, estimator, rule, key, x, threat=threat, num_steps=num_steps, best=False
    )
