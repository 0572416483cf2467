"""Surrogates against targets on the same examples: attacks, controls and their outcomes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses, sharding
from halfway.attacks import AttackResult
from halfway.attacks.threat import Bounds
from halfway.transfer.controls import matched_noise, other_example
from halfway.types import ApplyFn, Array, Key, LogitsFn, LossFn, Params, is_traced

Attack = Callable[..., AttackResult]
"""`(logits_fn, key, x, labels)` to a result: an attack with its options bound. Where budgets are
given beside it, its threat model is left open and comes as `threat`."""
CONTROLS = ("noise", "other_example")
KINDS = ("attack", *CONTROLS)
"""The kinds of points that are made from one attack, each of equal norm."""


class Evaluation(NamedTuple):
    """Outcomes of a model at a set of points.

    Attributes:
      loss: `[..., B]`, the attack loss.
      correct: `[..., B]` bool, whether the prediction is the label.
      predicted: `[..., B]` int16, the class of the largest logit; -1 where a logit is NaN.
    """

    loss: Array
    correct: Array
    predicted: Array


class Points(NamedTuple):
    """The points that an attack and its controls made from B examples.

    Attributes:
      points: points `[B, ...]` by kind, see `KINDS`.
      matched: by control, `[B]` bool, whether its norms could be matched.
      norm: `[B]`, l2 norm of the attack's perturbations.
    """

    points: dict[str, Array]
    matched: dict[str, Array]
    norm: Array


class TransferMatrix(NamedTuple):
    """Outcomes of K surrogates against M targets on the same B examples, for each example.

    Attributes:
      surrogate: outcomes `[K, B]` of each surrogate on its own points, by "clean" and `KINDS`.
      target: outcomes of each target: `[M, B]` by "clean", `[K, M, B]` by `KINDS`.
      matched: by control, `[K, B]` bool, whether its norms could be matched.
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
      logits_fn: inputs to logits of the model, of at most 32,767 classes.
      x: points `[B, ...]`.
      labels: `[B]` clean labels.
      loss_fn: logits and labels to an attack loss per example.
    """
    logits = logits_fn(x)
    valid = ~jnp.isnan(logits).any(-1)
    predicted = jnp.where(valid, logits.argmax(-1), -1)
    return Evaluation(loss_fn(logits, labels), predicted == labels, predicted.astype(jnp.int16))


def bounds_of(attack: Attack, bounds: Bounds | None = None) -> Bounds:
    """Returns the lowest and the highest value of a pixel for the controls of an attack.

    Those of the threat model, or the bounds, that `functools.partial` gave the attack; for an
    attack that does not show them those that are given, else (0, 1).

    Args:
      attack: the attack, with its options bound.
      bounds: that are given.

    Raises:
      ValueError: if both are known and differ.
    """
    options = attack.keywords if isinstance(attack, functools.partial) else {}
    attack_bounds = options["threat"].bounds if "threat" in options else options.get("bounds")
    if attack_bounds is None:
        return (0.0, 1.0) if bounds is None else bounds
    known = not any(map(is_traced, (*attack_bounds, *(bounds or ()))))
    if bounds is not None and known and not all(map(np.array_equal, attack_bounds, bounds)):
        shown = tuple(float(np.min(edge)) for edge in attack_bounds)
        raise ValueError(f"the attack keeps the bounds {shown}, and bounds are {bounds}: give one")
    return attack_bounds


def perturb(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    attack: Attack,
    bounds: Bounds | None = None,
) -> Points:
    """Returns the points that an attack on a surrogate finds, and its controls.

    Args:
      logits_fn: inputs to logits of the surrogate.
      key: a PRNG key, which is consumed.
      x: clean inputs `[B, ...]`, B at least 2.
      labels: `[B]` clean labels.
      attack: the attack, with its options bound.
      bounds: see `bounds_of`.

    Raises:
      ValueError: as `bounds_of`.
    """
    key_attack, key_noise, key_other = jax.random.split(key, 3)
    adversarial = attack(logits_fn, key_attack, x, labels).adversarial
    bounds = bounds_of(attack, bounds)
    controls = {
        "noise": matched_noise(key_noise, x, adversarial, bounds=bounds),
        "other_example": other_example(key_other, x, adversarial, bounds=bounds),
    }
    points = {"attack": adversarial} | {name: control.points for name, control in controls.items()}
    norm = jnp.linalg.norm((adversarial - x).reshape(x.shape[0], -1), axis=-1)
    return Points(points, {name: control.matched for name, control in controls.items()}, norm)


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
    bounds: Bounds | None = None,
    loss_fn: LossFn = losses.margin,
) -> TransferMatrix:
    """Returns what attacks on each surrogate do to each target, beside controls of equal norm.

    Everything is computed at once, but on a CPU one model after the other (`sharding.lift`). Call
    it under `jit`, and under `vmap` over pairs: memory grows with K M B times the model's widest
    layer, with B times it on a CPU. `transfer_grid` is for large matrices, for models of
    several architectures, attacks and budgets, and bounds its memory.

    Args:
      surrogate_fn: parameters of a surrogate and inputs to logits.
      surrogates: parameters of K surrogates, leaves `[K, ...]`.
      target_fn: parameters of a target and inputs to logits.
      targets: parameters of M targets, leaves `[M, ...]`.
      key: a PRNG key, which is consumed; each surrogate gets a key of its own.
      x: clean inputs `[B, ...]`.
      labels: `[B]` clean labels.
      attack: the attack, with its options bound; it queries the surrogate only.
      bounds: of a pixel, which the controls keep; None: those of the attack, see `bounds_of`.
      loss_fn: logits and labels to the attack loss in which increases are measured.

    Raises:
      ValueError: if the attack was given other bounds.
    """

    def at_targets(points):
        def evaluate_target(params):
            return evaluate(lambda z: target_fn(params, z), points, labels, loss_fn=loss_fn)

        return sharding.lift(evaluate_target)(targets)

    def row(key, params):
        def logits_fn(z):
            return surrogate_fn(params, z)

        perturbed = perturb(logits_fn, key, x, labels, attack=attack, bounds=bounds)
        own_evaluations = {
            name: evaluate(logits_fn, z, labels, loss_fn=loss_fn)
            for name, z in ({"clean": x} | perturbed.points).items()
        }
        outcomes = {name: at_targets(z) for name, z in perturbed.points.items()}
        return own_evaluations, outcomes, perturbed.matched, perturbed.norm

    num_surrogates = jax.tree.leaves(surrogates)[0].shape[0]
    keys = jax.random.split(key, num_surrogates)
    own_evaluations, outcomes, matched, norm = sharding.lift(row)(keys, surrogates)
    return TransferMatrix(own_evaluations, {"clean": at_targets(x)} | outcomes, matched, norm)
