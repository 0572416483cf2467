"""What attacks that look for the nearest adversarial point share, and bisection over budgets.

They have no budget: `norm` says how far is measured, `bounds` what an input may be. The result is
the nearest success that was seen, or x itself where there was none; `distance` measures it.

Their points lie at the boundary, where rounding decides. A success of those that follow gradients
is one that leads by more than rounding (`firm`), so that it is one in another batch and in another
program too; those that see decisions alone end a little beyond it. Lengths that they are given are
in units of the box (`in_unit_box`).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses
from halfway.attacks import base, threat
from halfway.attacks.base import AttackResult, Objective
from halfway.attacks.threat import Threat
from halfway.norms import NORMS
from halfway.types import Array, Key, LogitsFn, LossFn, is_traced

_Args = ParamSpec("_Args")
MAKE: dict[str, Callable[..., Threat]] = dict(
    zip(NORMS, (threat.linf, threat.l2, threat.l1), strict=True)
)
"""Threat models by the name of their norm."""
Linearize = Callable[[Array], tuple[Array, Array]]
"""Points `[B, ...]` to how far a class is ahead of the label, `[B]`, and its gradient."""


def distance(adversarial: Array, x: Array, norm: str = "l2") -> Array:
    """Returns ‖x' − x‖ of each example `[B]`; in l0 the number of features that differ, a float.

    Args:
      adversarial: `[B, ...]`.
      x: `[B, ...]`.
      norm: "linf", "l2", "l1" or "l0".

    Raises:
      ValueError: for another norm.

    Examples:
      >>> x = jnp.zeros((1, 3))
      >>> moved = jnp.array([[3.0, -4.0, 0.0]])
      >>> [float(attacks.distance(moved, x, norm)[0]) for norm in ("linf", "l2", "l1", "l0")]
      [4.0, 5.0, 7.0, 2.0]
    """
    check_norm(norm, (*MAKE, "l0"))
    if norm == "l0":
        # Types of 16 bits do not hold all numbers of features.
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.sum(adversarial != x, axis=tuple(range(1, x.ndim)), dtype=dtype)
    return MAKE[norm](0.0).norm.length(adversarial - x)


def firm(
    logits_fn: LogitsFn, labels: Array, loss_fn: LossFn, targets: Array | None = None
) -> Objective:
    """Returns the objective of `base.objective`, where a success leads by more than rounding.

    The class that wins is ahead by more than `firm_lead`. A sum in another order, as in another
    batch or another program, moves logits by less.

    Args:
      logits_fn: the model.
      labels: `[B]` integers.
      loss_fn: logits and labels to a loss per example.
      targets: `[B]` integers, or None.
    """
    goal = base.objective(logits_fn, labels, loss_fn, targets)

    def success(logits: Array) -> Array:
        aim = labels if targets is None else targets
        precise = base.precise(logits)
        lead, aimed = losses.margin(precise, aim), precise[rows, aim]
        ahead = lead if targets is None else -lead
        return goal.success(logits) & (ahead > firm_lead(aimed, aimed + lead, logits.dtype))

    rows = jnp.arange(labels.shape[0])
    return goal._replace(success=success)


def firm_lead(first: Array, second: Array, dtype: Any) -> Array:
    """Returns by how much one logit has to be ahead of another to be ahead in any program.

    A share of the larger one: 64 times the precision of float32 and float64, 4 times that of types
    of 16 bits.

    Args:
      first, second: logits of one shape.
      dtype: in which they were computed.
    """
    precision = jnp.finfo(dtype)
    share = (64 if precision.bits >= 32 else 4) * float(precision.eps)
    return share * jnp.maximum(jnp.abs(first), jnp.abs(second))


def ahead_of(first: Array, second: Array, dtype: Any) -> Array:
    """Returns by how much one logit is firmly ahead of another: 0 or more where it is.

    Args:
      first, second: logits, in float32 at least.
      dtype: in which they were computed.
    """
    return first - second - firm_lead(first, second, dtype)


def in_unit_box(attack: Callable[_Args, AttackResult]) -> Callable[_Args, AttackResult]:
    """Returns an attack whose lengths are in units of the box, whatever the bounds are.

    Inputs are shifted and divided by the width of the bounds, that of the widest feature where they
    differ, and the result is taken back; infinite bounds are left as they are. So an attack on
    images of 0 to 255 moves 255 times as far as on the same images of 0 to 1.

    Args:
      attack: takes a model, a key, `x`, `labels` and `bounds`, and a `start` where it has one.
    """
    signature = inspect.signature(attack)

    @functools.wraps(attack)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> AttackResult:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        logits_fn, x, bounds = given["logits_fn"], given["x"], given["bounds"]
        known = not any(map(is_traced, bounds))
        numpy: Any = np if known else jnp  # bounds that are known stay so
        lower, upper = (numpy.asarray(edge, x.dtype) for edge in bounds)
        finite = numpy.isfinite(lower).all() & numpy.isfinite(upper).all()
        if known and (not finite or ((lower == 0).all() and (upper == 1).all())):
            return attack(*bound.args, **bound.kwargs)
        origin = numpy.where(finite, lower, 0)
        width = numpy.where(finite, (upper - lower).max(), 1)

        def place(unit: Array) -> Array:
            point = origin + width * unit
            # Only rounding is clipped, which is no reason to have half a slope at the bounds.
            return point + jax.lax.stop_gradient(threat.clip_to_box(point, bounds) - point)

        unit = (x - origin) / width
        given |= {"logits_fn": lambda unit: logits_fn(place(unit)), "x": unit}
        given["bounds"] = tuple((edge - origin) / width for edge in (lower, upper))
        if given.get("start") is not None:
            given["start"] = (given["start"] - origin) / width
        result = attack(*bound.args, **bound.kwargs)
        # What was not moved is x to the last bit.
        moved = jnp.where(result.adversarial == unit, x, place(result.adversarial))
        return result._replace(adversarial=moved)

    return run


class Nearest(NamedTuple):
    """The nearest success of each example so far: point `[B, ...]` and distance `[B]`."""

    point: Array
    distance: Array


def keep(kept: Nearest, point: Array, x: Array, success: Array, norm: str) -> Nearest:
    """Returns the nearer of what is kept and a point, where the point is a success.

    In l0 the nearer one in l2 is kept of points of which as many features differ.

    Args:
      kept: so far.
      point: `[B, ...]`.
      x: `[B, ...]`, clean inputs, from which distances are measured.
      success: `[B]` bool, of the point.
      norm: "linf", "l2", "l1" or "l0".
    """
    away = distance(point, x, norm)
    nearer = away < kept.distance
    if norm == "l0":
        nearer |= (away == kept.distance) & (distance(point, x) < distance(kept.point, x))
    nearer &= success
    return Nearest(
        jnp.where(base.per_example(nearer, x), point, kept.point),
        jnp.where(nearer, away, kept.distance),
    )


def result(goal: Objective, point: Array, num_queries: Array | int) -> AttackResult:
    """Returns the result; success is looked at again on the point that is returned.

    Args:
      goal: says what success is.
      point: `[B, ...]`, that is returned.
      num_queries: spent, a number or `[B]`.
    """
    loss, logits = goal.value(point)
    queries = jnp.broadcast_to(jnp.asarray(num_queries, jnp.int32), loss.shape)
    return AttackResult(point, goal.success(logits), loss, queries)


def end(
    goal: Objective, kept: Nearest, point: Array, x: Array, norm: str, num_steps: int
) -> AttackResult:
    """Returns the result of a walk that ends at a point which was not looked at yet.

    Args:
      goal: says what success is.
      kept: nearest success of the walk.
      point: `[B, ...]`, where it ends.
      x: `[B, ...]`, clean inputs.
      norm: "linf", "l2", "l1" or "l0".
      num_steps: of the walk, a query each.
    """
    _, logits = goal.value(point)
    kept = keep(kept, point, x, goal.success(logits), norm)
    return result(goal, kept.point, num_steps + 2)


def boundaries(
    logits_fn: LogitsFn, x: Array, labels: Array, norm: str
) -> tuple[Array, Array, Array]:
    """Returns f_k − f_y `[B, C]`, its gradients `[C, B, ...]` and their dual norms `[B, C]`.

    Of the difference `firm_lead` is taken off: it is 0 where class k is firmly ahead.

    Args:
      logits_fn: of the model.
      x: `[B, ...]`.
      labels: `[B]`, y; its own row is 0.
      norm: "linf", "l2" or "l1".
    """
    logits, pullback = jax.vjp(lambda x: base.precise(logits_fn(x)), x)
    rows = jnp.arange(labels.shape[0])

    def slope(direction: Array) -> Array:
        return pullback(jnp.broadcast_to(direction[None], logits.shape))[0]

    slopes = jax.lax.map(slope, jnp.eye(logits.shape[1], dtype=logits.dtype))
    normals = base.finite(slopes - slopes[labels, rows][None])
    lengths = jax.vmap(MAKE[norm](0.0).dual_norm)(normals).T
    dtype = jax.eval_shape(logits_fn, x).dtype
    return ahead_of(logits, logits[rows, labels][:, None], dtype), normals, lengths


def nearest_class(logits_fn: LogitsFn, labels: Array, norm: str) -> Linearize:
    """Returns f_k − f_y and its gradient at a point, for the class k of the nearest boundary.

    Nearest is the least |f_k − f_y|/‖∇(f_k − f_y)‖_q, with q dual to the norm.

    Args:
      logits_fn: of the model.
      labels: `[B]`, y.
      norm: "linf", "l2" or "l1".
    """
    rows = jnp.arange(labels.shape[0])

    def linearize(x: Array) -> tuple[Array, Array]:
        ahead, normals, lengths = boundaries(logits_fn, x, labels, norm)
        flat = lengths <= 0
        ratios = jnp.where(flat, jnp.inf, jnp.abs(ahead) / jnp.where(flat, 1, lengths))
        chosen = jnp.argmin(ratios.at[rows, labels].set(jnp.inf), 1)
        return ahead[rows, chosen], normals[chosen, rows]

    return linearize


def minimum_budget(
    attack: Callable[..., AttackResult],
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat_fn: Callable[[Array], Threat],
    largest: float,
    num_halvings: int = 10,
    **options: Any,
) -> AttackResult:
    """Returns the success of the smallest budget that bisection finds, for each example its own.

    The attack is run at `largest` and then `num_halvings` times at budgets per example, and the
    result leaves largest/2^num_halvings of doubt, as far as success is monotone in the budget.

    Args:
      attack: any with a `threat`, such as `attacks.pgd`.
      logits_fn: `[B, ...]` to logits `[B, C]`.
      key: consumed; split for the runs.
      x: `[B, ...]`.
      labels: `[B]`.
      threat_fn: budgets `[B]` to a threat model, such as `attacks.linf`.
      largest: budget that is tried first.
      num_halvings: static.
      **options: of the attack.

    Examples:
      >>> def logits_fn(x):
      ...     return (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5]]), jnp.array([0])
      >>> result = attacks.minimum_budget(
      ...     attacks.fgsm, logits_fn, jax.random.key(0), x, labels,
      ...     threat_fn=attacks.linf, largest=0.5)
      >>> print(f"{attacks.distance(result.adversarial, x, 'linf')[0]:.3f}")  # 1/16 is the boundary
      0.063
    """
    keys = jax.random.split(key, num_halvings + 1)
    run = functools.partial(attack, logits_fn, **options)
    whole = jnp.full(labels.shape, largest, x.dtype)
    first = run(keys[0], x, labels, threat=threat_fn(whole))

    def halve(carry: tuple[Array, Array, AttackResult], key: Key) -> tuple[Any, None]:
        low, high, kept = carry
        middle = 0.5 * (low + high)
        result = run(key, x, labels, threat=threat_fn(middle))
        won = result.success
        kept = AttackResult(
            jnp.where(base.per_example(won, x), result.adversarial, kept.adversarial),
            won | kept.success,
            jnp.where(won, result.loss, kept.loss),
            kept.queries + result.queries,
        )
        return (jnp.where(won, low, middle), jnp.where(won, middle, high), kept), None

    # Where the largest budget does not do, it is all that is tried again.
    carry = (jnp.where(first.success, 0, whole), whole, first)
    (_, _, kept), _ = jax.lax.scan(halve, carry, keys[1:])
    return kept


def nothing(x: Array, norm: str = "l2") -> Nearest:
    """Returns that no success was seen yet, in the type of a distance in this norm.

    Args:
      x: `[B, ...]`, clean inputs.
      norm: as of `distance`.
    """
    return Nearest(x, jnp.full_like(distance(x, x, norm), jnp.inf))


def cosine(index: Array, number: int, first: float, last: float) -> Array:
    """Returns a number that falls from first to last along half a cosine.

    Args:
      index: of the step.
      number: of steps.
      first: value at index 0.
      last: value at index `number`.
    """
    return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * index / number))


def soft_margin(logits: Array, labels: Array, *, temperature: Array | float) -> Array:
    """Returns T log Σ_{c ≠ y} exp(z_c/T) − z_y `[B]`; T = 1 gives the log-odds of an error.

    For T → 0 it is the margin loss. Its gradient is a mean over the other classes, with the weights
    of a softmax at temperature T.

    Args:
      logits: `[B, C]`, C ≥ 2.
      labels: `[B]` integers.
      temperature: T > 0, a number or `[B]`.
    """
    temperature = jnp.asarray(temperature, logits.dtype)
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    ahead = logits - jnp.sum(jnp.where(is_label, logits, 0), 1, keepdims=True)
    scaled = jnp.where(
        is_label, -jnp.inf, ahead / jnp.broadcast_to(temperature, labels.shape)[:, None]
    )
    return temperature * jax.nn.logsumexp(scaled, axis=1)


def check_norm(norm: str, known: tuple[str, ...]) -> None:
    """Checks the name of a norm.

    Args:
      norm: that was given.
      known: names that are allowed.

    Raises:
      ValueError: where it is not known.
    """
    if norm not in known:
        raise ValueError(f"norm must be one of {', '.join(known)}, got {norm!r}")


def check(norm: str, known: tuple[str, ...], num_steps: int) -> None:
    """Checks what attacks that look for the nearest point take beside inputs and labels.

    Args:
      norm: that was given.
      known: names that are allowed.
      num_steps: at least 1.

    Raises:
      ValueError: for another norm and fewer steps.
    """
    base.check_count("num_steps", num_steps)
    check_norm(norm, known)
