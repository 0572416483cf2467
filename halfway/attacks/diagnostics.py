"""Signs that a model only looks robust, or an attack only looks strong: measured, then in words."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses
from halfway.attacks import base
from halfway.attacks.base import AttackResult
from halfway.attacks.random_search import square
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn, LossFn

LEVELS = 255
"""Steps of an image of 8 bits between its bounds."""
ZERO_GRADIENT, BLACK_BOX_ONLY, FALL, LOST, COUPLING = 0.05, 0.02, 0.01, 0.05, 1e-3
"""Shares, and for the last one a relative size, above which `in_words` warns."""
PROBABILITIES, ROUNDING = 0.95, 1e-3
"""Share of the inputs whose outputs must be probabilities, and how far from 1 these may sum."""


class Diagnosis(NamedTuple):
    """What `diagnose` measures; shares are of the inputs that are classified rightly.

    Attributes:
      num_inputs: classified rightly, a scalar.
      zero_gradient: share at which the gradient of the cross-entropy is 0, or not finite.
      saturated: share at which it is, and that of the margin is not.
      probabilities: share of all inputs whose outputs lie in [0, 1] and sum to 1.
      budgets: `[E]`, ε of each success rate, the largest where there is one per example.
      success_rates: `[E]`, share that the attack fools.
      black_box_only: share that Square fools and the attack does not, at ε.
      lost_by_rounding: share of the successes at ε that rounding to 8 bits undoes; NaN where there
        are none or a bound is infinite.
      coupling: largest difference of a logit between an input alone and the same in its batch, over
        the standard deviation of the logits.
      randomness: likewise, between an input at two places of a batch of the same inputs.
    """

    num_inputs: Array
    zero_gradient: Array
    saturated: Array
    probabilities: Array
    budgets: Array
    success_rates: Array
    black_box_only: Array
    lost_by_rounding: Array
    coupling: Array
    randomness: Array


def diagnose(
    attack: Callable[..., AttackResult],
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0),
    num_queries: int = 500,
) -> Diagnosis:
    """Returns measurements of an attack on a model that tell masked gradients from robustness.

    The attack runs at several multiples of the budget, Square once. Pure: jit it; `in_words` says
    what is suspicious about what comes back.

    Args:
      attack: with a `threat`, such as `attacks.pgd`, untargeted.
      logits_fn: `[B, ...]` to logits `[B, C]`.
      key: consumed; split among the attacks.
      x: `[B, ...]` clean inputs within the bounds.
      labels: `[B]` integers.
      threat: from `attacks.linf`, `attacks.l2` or `attacks.l1`.
      scales: increasing multiples of ε, 1 among them; static.
      num_queries: of Square, static.

    Raises:
      ValueError: for scales that do not increase from above 0, or lack 1.

    Source: Athalye et al., arXiv 1802.00420, and Carlini et al., arXiv 1902.06705, for the signs.

    Examples:
      >>> def logits_fn(x):  # a quantized model: no gradient anywhere
      ...     return jnp.stack([jnp.round(4 * x[:, 0]), jnp.full(x.shape[0], 1.5)], axis=-1)
      >>> x, labels = jnp.linspace(0.5, 1.0, 8)[:, None], jnp.zeros(8, int)
      >>> diagnosis = attacks.diagnose(
      ...     attacks.pgd, logits_fn, jax.random.key(0), x, labels, threat=attacks.linf(0.3))
      >>> for line in attacks.in_words(diagnosis):
      ...     print(line.split(":")[0])
      the loss has no gradient at 100.0% of the inputs
      Square fools 37.5% of the inputs that the attack leaves
    """
    if any(a >= b for a, b in zip((0.0, *scales), scales, strict=False)) or 1.0 not in scales:
        raise ValueError(f"scales must increase from above 0 and have 1 among them, got {scales}")
    key_attack, key_square = jax.random.split(key)
    logits = logits_fn(x)
    right = losses.error(logits, labels) == 0

    def share(chosen: Array) -> Array:
        return losses.masked_mean(chosen.astype(x.dtype), right)

    def is_flat(loss_fn: LossFn) -> Array:
        goal = base.objective(logits_fn, labels, loss_fn)
        gradient = base.finite(base.exact_gradient(goal).estimate(None, (), x).gradient)
        return (gradient == 0).reshape(x.shape[0], -1).all(1)

    flat = is_flat(losses.cross_entropy)

    def at(scale: Array) -> AttackResult:
        scaled = dataclasses.replace(threat, epsilon=scale * threat.epsilon)
        return attack(logits_fn, key_attack, x, labels, threat=scaled)

    # One program for all budgets, with the same draws.
    results = jax.lax.map(at, jnp.asarray(scales, x.dtype))
    rates = jax.vmap(share)(results.success)
    result = jax.tree.map(lambda leaf: leaf[scales.index(1.0)], results)
    other = square(logits_fn, key_square, x, labels, threat=threat, num_queries=num_queries).success
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in threat.bounds)
    rounded = lower + jnp.round(
        (result.adversarial - lower) / (upper - lower) * LEVELS
    ) / LEVELS * (upper - lower)
    undone = losses.error(logits_fn(rounded), labels) == 0
    lost = losses.masked_mean(undone.astype(x.dtype), right & result.success)
    alone = jax.lax.map(lambda image: logits_fn(image[None])[0], x)
    elsewhere = jnp.roll(logits_fn(jnp.roll(x, 1, 0)), -1, 0)
    spread = jnp.where(jnp.std(logits) > 0, jnp.std(logits), 1)
    in_range = ((logits >= 0) & (logits <= 1)).all(1)
    return Diagnosis(
        num_inputs=right.sum(),
        zero_gradient=share(flat),
        saturated=share(flat & ~is_flat(losses.margin)),
        probabilities=(in_range & (jnp.abs(logits.sum(1) - 1) < ROUNDING)).mean(),
        budgets=jnp.asarray(scales, x.dtype) * jnp.max(threat.epsilon),
        success_rates=rates,
        black_box_only=share(other & ~result.success),
        lost_by_rounding=jnp.where(jnp.isfinite(upper - lower), lost, jnp.nan),
        coupling=jnp.abs(alone - logits).max() / spread,
        randomness=jnp.abs(elsewhere - logits).max() / spread,
    )


def in_words(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Returns what is suspicious about a diagnosis, a line each; nothing where nothing is.

    Args:
      diagnosis: concrete, of one model.
    """
    said: list[str] = []
    if int(diagnosis.num_inputs) == 0:
        return ("no input is classified rightly: there is nothing to attack",)
    if diagnosis.probabilities > PROBABILITIES:
        said.append(
            "the outputs are probabilities, not logits: attacks take them for logits and find the "
            "loss flat; return the values before the softmax, or jnp.log of these"
        )
    if diagnosis.saturated > ZERO_GRADIENT:
        said.append(
            f"cross-entropy saturates at {float(diagnosis.saturated):.1%} of the inputs, where its "
            "gradient is 0 and that of the margin is not: use losses.margin or losses.dlr"
        )
    without = diagnosis.zero_gradient - diagnosis.saturated
    if without > ZERO_GRADIENT:
        said.append(
            f"the loss has no gradient at {float(without):.1%} of the inputs: "
            "a walk cannot begin there; try a random start, attacks.bpda, or square"
        )
    if diagnosis.black_box_only > BLACK_BOX_ONLY:
        said.append(
            f"Square fools {float(diagnosis.black_box_only):.1%} of the inputs that the attack "
            "leaves: gradients mislead it; what it leaves is not robust"
        )
    rates, budgets = (
        np.asarray(diagnosis.success_rates, float),
        np.asarray(diagnosis.budgets, float),
    )
    worst = int(np.argmin(np.diff(rates))) if len(rates) > 1 else 0
    if len(rates) > 1 and rates[worst] - rates[worst + 1] > FALL:
        said.append(
            f"success falls from {rates[worst]:.1%} to {rates[worst + 1]:.1%} as the budget grows "
            f"from {budgets[worst]:.3g} to {budgets[worst + 1]:.3g}: the attack is not at its "
            "optimum; give it more steps, smaller steps or restarts"
        )
    if diagnosis.lost_by_rounding > LOST:
        said.append(
            f"rounding to 8 bits undoes {float(diagnosis.lost_by_rounding):.1%} of the successes: "
            "they do not survive being stored as images"
        )
    if diagnosis.randomness > COUPLING:
        said.append(
            "the model is randomized: the same input at another place of its batch has logits "
            f"{float(diagnosis.randomness):.2g} standard deviations away; attack it with "
            "estimator=attacks.eot(draw_fn), or auto_attack(version='rand')"
        )
    elif diagnosis.coupling > COUPLING:
        said.append(
            f"logits of an input change by {float(diagnosis.coupling):.2g} standard deviations "
            "with its batch: the model couples examples, so results depend on which are attacked "
            "together; evaluate it with fixed statistics"
        )
    return tuple(said)
