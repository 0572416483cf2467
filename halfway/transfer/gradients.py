"""Transfer to first order: what input gradients of surrogate and target predict of an attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import Threat
from halfway.types import Array, LogitsFn, LossFn


class FirstOrder(NamedTuple):
    """The first-order terms (P5) of each example for a surrogate and a target, all `[B]`.

    Attributes:
      score: ⟨h_B, s(h_A)⟩, loss per unit of budget.
      tau: score / ‖h_B‖_q in [-1, 1]; NaN where h_B = 0.
      predicted: ⟨h_B, Δ⟩ for the displacement Δ of one steepest step on A, clipped to the box.
      actual: what that displacement adds to the target's attack loss.
    """

    score: Array
    tau: Array
    predicted: Array
    actual: Array


def first_order(
    surrogate: LogitsFn,
    target: LogitsFn,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    loss_fn: LossFn = losses.margin,
) -> FirstOrder:
    """Returns the first-order prediction of transfer and what one step does (P5).

    `Δ(attack loss of B) = ε⟨h_B, s(h_A)⟩ + O(ε²)`, h the input gradient of the attack loss and s
    the steepest direction of the threat model. Exact where the loss is affine in x.

    Args:
      surrogate: inputs to logits of the surrogate A.
      target: inputs to logits of the target B.
      x: clean inputs `[B, ...]`.
      labels: `[B]` clean labels.
      threat: the threat model, which gives s, the dual norm and the size of the step.
      loss_fn: logits and labels to an attack loss per example.

    Examples:
      >>> a, b = jnp.array([[1.0, -1.0], [1.0, -1.0]]), jnp.array([[1.0, -1.0], [-1.0, 1.0]])
      >>> x, labels = jnp.full((1, 2), 0.5), jnp.zeros(1, jnp.int32)
      >>> terms = transfer.first_order(
      ...     lambda x: x @ a, lambda x: x @ b, x, labels, threat=attacks.linf(0.1))
      >>> print(terms.tau)  # what B gains in the first pixel it loses in the second
      [0.]
    """

    h_target = input_gradients(target, x, labels, loss_fn=loss_fn)
    direction = threat.steepest(input_gradients(surrogate, x, labels, loss_fn=loss_fn))
    score = _inner(h_target, direction)
    tau = _over(score, threat.dual_norm(h_target))
    stepped = threat.project(x + threat.radius(x) * direction, x)
    before, after = (loss_fn(target(z), labels) for z in (x, stepped))
    return FirstOrder(score, tau, _inner(h_target, stepped - x), after - before)


def input_gradients(
    logits_fn: LogitsFn, x: Array, labels: Array, *, loss_fn: LossFn = losses.margin
) -> Array:
    """Returns h `[B, ...]`, the gradient of each example's attack loss with respect to the example.

    Args:
      logits_fn: inputs to logits of the model; no example may depend on another.
      x: inputs `[B, ...]`.
      labels: `[B]` integers.
      loss_fn: logits and labels to an attack loss per example.
    """
    return jax.grad(lambda z: loss_fn(logits_fn(z), labels).sum())(x)


def alignment(surrogates: Array, targets: Array, *, threat: Threat) -> Array:
    """Returns τ `[K, M, B]`, the share of a target's best step that a surrogate's step gains (P5).

    `τ = ⟨h_B, s(h_A)⟩ / ‖h_B‖_q ∈ [-1, 1]`, NaN where h_B = 0. Under `attacks.l2` it is the cosine
    of the two gradients, the gradient alignment of Demontis et al.; its mean over examples is their
    matrix.

    Args:
      surrogates: input gradients h_A `[K, B, ...]` of surrogates, from `input_gradients`.
      targets: input gradients h_B `[M, B, ...]` of targets.
      threat: the threat model, which gives s and the dual norm; the budget does not matter.

    Source: Demontis et al., arXiv 1809.02861.

    Examples:
      >>> a, b = jnp.array([[[1.0, 0.0]]]), jnp.array([[[3.0, 4.0]], [[0.0, 0.0]]])
      >>> print(transfer.alignment(a, b, threat=attacks.l2(0.1)))
      [[[0.6]
        [nan]]]
    """
    directions = jax.vmap(threat.steepest)(surrogates)
    scores = jnp.einsum(
        "kbd,mbd->kmb", *(h.reshape(*h.shape[:2], -1) for h in (directions, targets))
    )
    return _over(scores, jax.vmap(threat.dual_norm)(targets)[None])


def gradient_size(gradients: Array, *, threat: Threat) -> Array:
    """Returns ‖h‖_q `[M, B]`, what a step of length 1 adds to a model's attack loss to first order.

    It measures the target's vulnerability. It carries the scale of the logits, which a division by
    the mean |margin| of each model removes.

    Args:
      gradients: input gradients h `[M, B, ...]`, from `input_gradients`.
      threat: the threat model, which gives the dual norm.

    Source: Demontis et al., arXiv 1809.02861.
    """
    return jax.vmap(threat.dual_norm)(gradients)


def loss_variability(values: Array) -> Array:
    """Returns the variance `[B]` of an example's loss over models trained on draws of the data.

    It is taken of models of the surrogate's kind: where the loss varies, what is optimal for a
    model is not optimal for the next. The estimate from R models is unbiased. Divide losses of
    different scales, such as margins, by their mean size first.

    Args:
      values: `[R, B]` losses of R ≥ 2 models on the same examples.

    Raises:
      ValueError: if there are fewer than two replicates.

    Source: Demontis et al., arXiv 1809.02861, `E ℓ² − (E ℓ)²` over training sets.

    Examples:
      >>> print(transfer.loss_variability(jnp.array([[1.0, 2.0], [3.0, 2.0]])))
      [2. 0.]
    """
    if values.shape[0] < 2:
        raise ValueError(f"variability needs two replicates, got {values.shape[0]}")
    return values.var(0, ddof=1)


def _inner(u: Array, v: Array) -> Array:
    """Returns the inner product `[B]` of each example."""
    return (u * v).reshape(u.shape[0], -1).sum(-1)


def _over(score: Array, dual: Array) -> Array:
    """Returns scores over dual norms, NaN where a norm is 0."""
    return jnp.where(dual > 0, score / jnp.where(dual > 0, dual, 1.0), jnp.nan)
