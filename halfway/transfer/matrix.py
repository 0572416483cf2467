"""Surrogates against targets on the same examples: attacks, controls and what they do."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from halfway import losses
from halfway.attacks import AttackResult
from halfway.transfer.controls import matched_noise, other_example
from halfway.types import ApplyFn, Array, Key, LogitsFn, LossFn, Params

Attack = Callable[[LogitsFn, Key, Array, Array], AttackResult]
"""`(logits_fn, key, x, labels)` to a result: an attack with its options bound."""
CONTROLS = ("noise", "other_example")
KINDS = ("attack", *CONTROLS)
"""The kinds of points that are made from one attack, each of equal norm."""


class Evaluation(NamedTuple):
    """One model on one set of points.

    Attributes:
      loss: `[..., B]` attack loss.
      correct: `[..., B]` bool, whether the prediction is the label.
      predicted: `[..., B]` int16, the class of the largest logit; -1 where a logit is NaN.
    """

    loss: Array
    correct: Array
    predicted: Array


class Points(NamedTuple):
    """What one attack and its controls made of B examples.

    Attributes:
      points: by kind of `KINDS`, `[B, ...]`.
      matched: by control, `[B]` bool, whether its norms could be matched.
      norm: `[B]`, l2 norm of the attack's perturbations.
    """

    points: dict[str, Array]
    matched: dict[str, Array]
    norm: Array


class TransferMatrix(NamedTuple):
    """K surrogates against M targets on the same B examples, outcomes kept for each example.

    Attributes:
      surrogate: "clean" and by kind of `KINDS`: `[K, B]`, each surrogate on its own points.
      target: "clean" `[M, B]`; by kind of `KINDS` `[K, M, B]`.
      matched: by control, `[K, B]` bool.
      norm: `[K, B]`, l2 norm of the attack's perturbations.
    """

    surrogate: dict[str, Evaluation]
    target: dict[str, Evaluation]
    matched: dict[str, Array]
    norm: Array


def evaluate(
    logits_fn: LogitsFn, x: Array, labels: Array, *, loss_fn: LossFn = losses.margin
) -> Evaluation:
    """Returns attack loss, correctness and predictions of a model at points.

    Args:
      logits_fn: the model, of at most 32,767 classes.
      x: `[B, ...]`.
      labels: `[B]`, clean.
      loss_fn: attack loss per example.
    """
    logits = logits_fn(x)
    valid = ~jnp.isnan(logits).any(-1)
    predicted = jnp.where(valid, logits.argmax(-1), -1)
    return Evaluation(loss_fn(logits, labels), predicted == labels, predicted.astype(jnp.int16))


def perturb(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    attack: Attack,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Points:
    """Returns the points that an attack on one surrogate finds, and its controls.

    Args:
      logits_fn: the surrogate.
      key: consumed.
      x: `[B, ...]`, clean, B at least 2.
      labels: `[B]`, clean.
      attack: with its options bound.
      bounds: of the box, for the controls.
    """
    key_attack, key_noise, key_other = jax.random.split(key, 3)
    adversarial = attack(logits_fn, key_attack, x, labels).adversarial
    controls = {
        "noise": matched_noise(key_noise, x, adversarial, bounds=bounds),
        "other_example": other_example(key_other, x, adversarial, bounds=bounds),
    }
    points = {"attack": adversarial} | {name: made.points for name, made in controls.items()}
    norm = jnp.linalg.norm((adversarial - x).reshape(x.shape[0], -1), axis=-1)
    return Points(points, {name: made.matched for name, made in controls.items()}, norm)


def transfer_matrix(
    surrogate_fn: ApplyFn,
    surrogates: Params,
    target_fn: ApplyFn,
    targets: Params,
    key: Key,
    x: Array,
    labels: Array,
    *,
    attack: Attack,
    bounds: tuple[float, float] = (0.0, 1.0),
    loss_fn: LossFn = losses.margin,
) -> TransferMatrix:
    """Returns what attacks on each surrogate do to each target, beside controls of equal norm.

    All at once, to be called under `jit`, and under `vmap` over pairs: memory grows with
    K M B times the model's widest layer. `transfer_grid` is for large matrices, for models of
    several architectures, attacks and budgets, and bounds its memory.

    Args:
      surrogate_fn: applies one surrogate's parameters.
      surrogates: leaves `[K, ...]`.
      target_fn: applies one target's parameters.
      targets: leaves `[M, ...]`.
      key: consumed; each surrogate gets its own.
      x: `[B, ...]`, clean.
      labels: `[B]`, clean.
      attack: with its options bound; sees the surrogate only.
      bounds: of the box, for the controls.
      loss_fn: attack loss that increases are measured in.
    """

    def at_targets(points):
        def one(params):
            return evaluate(lambda z: target_fn(params, z), points, labels, loss_fn=loss_fn)

        return jax.vmap(one)(targets)

    def row(key, params):
        def logits_fn(z):
            return surrogate_fn(params, z)

        made = perturb(logits_fn, key, x, labels, attack=attack, bounds=bounds)
        own = {
            name: evaluate(logits_fn, z, labels, loss_fn=loss_fn)
            for name, z in ({"clean": x} | made.points).items()
        }
        outcomes = {name: at_targets(z) for name, z in made.points.items()}
        return own, outcomes, made.matched, made.norm

    num_surrogates = jax.tree.leaves(surrogates)[0].shape[0]
    keys = jax.random.split(key, num_surrogates)
    own, outcomes, matched, norm = jax.vmap(row)(keys, surrogates)
    return TransferMatrix(own, {"clean": at_targets(x)} | outcomes, matched, norm)
