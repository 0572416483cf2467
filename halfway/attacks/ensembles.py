"""Several models attacked at once: ensembles, leaving one out, and weights to attack.

An ensemble is parameters stacked along a leading axis M, or, of models that differ in architecture,
a sequence of functions with a sequence of as many parameters. It reaches an attack as a `logits_fn`
and the `loss_fn` that belongs to it; a query of it is one of each of its models.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from halfway import losses
from halfway.attacks import base
from halfway.attacks.base import AttackResult
from halfway.types import ApplyFn, Array, Key, LogitsFn, LossFn, Params

HOW = ("logits", "probabilities", "loss", "worst")
"""The ways in which models are attacked together."""


class Ensemble(NamedTuple):
    """What an attack takes of several models.

    Attributes:
      logits_fn: `[B, ...]` to logits `[B, C]` of the mean model, or `[B, M, C]` of every model.
      loss_fn: these logits and labels `[B]` to the loss `[B]`, or `[B, M]`: `base.objective` takes
        the least.
    """

    logits_fn: LogitsFn
    loss_fn: LossFn


class Members(NamedTuple):
    """The models of an ensemble, whatever their architectures are.

    Attributes:
      number: M.
      of_each: a function of one model's `logits_fn` to what it returns of every model, `[M, ...]`.
      of_one: number of a model, which may be traced, and such a function, to what it returns of
        that model.
    """

    number: int
    of_each: Callable[[Callable[[LogitsFn], Any]], Any]
    of_one: Callable[[Any, Callable[[LogitsFn], Any]], Any]


def members_of(
    apply_fn: ApplyFn | Sequence[ApplyFn], params: Params, *, vectorized: bool = True
) -> Members:
    """Returns the models of an ensemble.

    Args:
      apply_fn: as of `ensemble`.
      params: as of `ensemble`.
      vectorized: as of `ensemble`.

    Raises:
      ValueError: as `ensemble`.
    """
    if not callable(apply_fn):
        return _different(apply_fn, params)

    def look(fn: Callable[[LogitsFn], Any], member: Params) -> Any:
        return fn(functools.partial(apply_fn, member))

    def of_each(fn: Callable[[LogitsFn], Any]) -> Any:
        of_member = functools.partial(look, fn)
        return jax.vmap(of_member)(params) if vectorized else lax.map(of_member, params)

    def of_one(index: Any, fn: Callable[[LogitsFn], Any]) -> Any:
        return look(fn, jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], params))

    return Members(num_models_of(params), of_each, of_one)


def _different(apply_fns: Sequence[ApplyFn], params: Params) -> Members:
    """Returns models that have a function each."""
    number = len(apply_fns)
    if number == 0:
        raise ValueError("apply_fn must be a function, or a sequence of at least 1, got none")
    if not isinstance(params, Sequence) or len(params) != number:
        got = len(params) if isinstance(params, Sequence) else type(params).__name__
        raise ValueError(
            f"params must be a sequence of {number} parameters, one for each apply_fn, got {got}"
        )
    logits_fns = [
        functools.partial(apply, member) for apply, member in zip(apply_fns, params, strict=True)
    ]

    def of_each(fn: Callable[[LogitsFn], Any]) -> Any:
        return jax.tree.map(_stack_models, *map(fn, logits_fns))

    def of_one(index: Any, fn: Callable[[LogitsFn], Any]) -> Any:
        if isinstance(index, int):
            return fn(logits_fns[index])
        return lax.switch(index, [functools.partial(fn, logits_fn) for logits_fn in logits_fns])

    return Members(number, of_each, of_one)


def _stack_models(*values: Array) -> Array:
    """Returns what several models return, stacked."""
    shapes = list(dict.fromkeys(value.shape for value in values))
    if len(shapes) > 1:
        said = " and ".join(map(str, shapes))
        raise ValueError(f"models must have logits of one shape [B, C], got {said}")
    return jnp.stack(values)


def ensemble(
    apply_fn: ApplyFn | Sequence[ApplyFn],
    params: Params,
    how: str = "logits",
    loss_fn: LossFn = losses.cross_entropy,
    *,
    vectorized: bool = True,
) -> Ensemble:
    """Returns several models as one, for any attack with a `loss_fn`, targeted or not.

    - "logits": the mean of the logits. Success is that of the mean model, here and in the next.
    - "probabilities": the logarithm of the mean softmax.
    - "loss": the mean of the losses. Success is to fool every model, here and in the next.
    - "worst": the least attack loss, that of the model hardest to fool, towards targets too.

    Args:
      apply_fn: one model's parameters and inputs to logits `[B, C]`. Of models of different
        architectures, a sequence of such functions, one for each.
      params: leaves `[M, ...]`. Of models of different architectures, a sequence of M parameters,
        in the order of the functions.
      how: one of these.
      loss_fn: logits `[B, C]` and labels to a loss per example.
      vectorized: whether models are evaluated at once rather than one after another, which takes
        less memory, and less time where `vmap` over the weights of a convolution is slow. Models
        of different architectures are evaluated one after another in either case.

    Raises:
      ValueError: for another `how`, for leaves without one leading axis of a model or more, and for
        functions and parameters of different numbers; by `logits_fn`, for models whose logits
        differ in shape.

    Source: Dong et al., arXiv 1710.06081 (logits, loss); Liu et al., arXiv 1611.02770
    (probabilities); Wang et al., arXiv 1906.03563 (worst).

    Examples:
      >>> x, labels = jnp.array([[0.6, 0.55]]), jnp.array([0])
      >>> params = jnp.array([[[1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, -1.0]]])
      >>> apply_fn = lambda weights, x: (x - 0.5) @ weights
      >>> logits_fn, loss_fn = attacks.ensemble(apply_fn, params, "worst")
      >>> attack = functools.partial(attacks.pgd, logits_fn, loss_fn=loss_fn)
      >>> for epsilon in (0.08, 0.12):  # the first gives way at 0.1, the second at 0.05
      ...     print(attack(jax.random.key(0), x, labels, threat=attacks.linf(epsilon)).success)
      [False]
      [ True]
    """
    if how not in HOW:
        raise ValueError(f"how must be one of {', '.join(HOW)}, got {how!r}")
    members = members_of(apply_fn, params, vectorized=vectorized)

    def each(x: Array) -> Array:
        return jnp.moveaxis(members.of_each(lambda logits_fn: logits_fn(x)), 0, 1)

    def mean_probability(x: Array) -> Array:
        # Of logarithms, so that no probability is 0.
        return jax.nn.logsumexp(jax.nn.log_softmax(each(x)), 1) - math.log(members.number)

    def of_each(logits: Array, labels: Array) -> Array:
        return jax.vmap(loss_fn, (1, None), 1)(logits, labels)

    if how == "logits":
        return Ensemble(lambda x: each(x).mean(1), loss_fn)
    if how == "probabilities":
        return Ensemble(mean_probability, loss_fn)
    if how == "loss":
        return Ensemble(each, lambda logits, labels: of_each(logits, labels).mean(1))
    return Ensemble(each, of_each)


def leave_one_out(
    attack: Callable[..., AttackResult],
    apply_fn: ApplyFn | Sequence[ApplyFn],
    params: Params,
    key: Key,
    x: Array,
    labels: Array,
    *,
    how: str = "logits",
    loss_fn: LossFn = losses.cross_entropy,
    vectorized: bool = True,
    **options: Any,
) -> AttackResult:
    """Returns results `[M, B, ...]`, of which the k-th is made against all models but k.

    Loss, success and queries are those of the ensemble that was attacked; whether model k is fooled
    is a question of transfer. The M attacks run one after another; where architectures differ, the
    program holds each of them.

    Args:
      attack: any with a `loss_fn`, such as `attacks.pgd`.
      apply_fn: one model's parameters and inputs to logits `[B, C]`, or a sequence: see `ensemble`.
      params: leaves `[M, ...]`, or a sequence of M parameters; M at least 2.
      key: consumed; split, one for each attack.
      x: `[B, ...]` clean inputs.
      labels: `[B]` integers.
      how: see `ensemble`.
      loss_fn: logits `[B, C]` and labels to a loss per example.
      vectorized: see `ensemble`.
      **options: of the attack.

    Raises:
      ValueError: for fewer than two models; as of `ensemble`.

    Source: Liu et al., arXiv 1611.02770.
    """
    num_models = members_of(apply_fn, params).number
    if num_models < 2:
        raise ValueError(f"leave_one_out needs at least 2 models, got {num_models}")
    others = np.array([np.delete(np.arange(num_models), k) for k in range(num_models)])
    keys = jax.random.split(key, num_models)

    def attack_joint(key: Key, apply_fn: Any, members: Params) -> AttackResult:
        logits_fn, joint_fn = ensemble(apply_fn, members, how, loss_fn, vectorized=vectorized)
        return attack(logits_fn, key, x, labels, loss_fn=joint_fn, **options)

    if not callable(apply_fn):
        results = [
            attack_joint(key, [apply_fn[k] for k in rest], [params[k] for k in rest])
            for key, rest in zip(keys, others, strict=True)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    def attack_others(inputs: tuple[Key, Array]) -> AttackResult:
        key, rest = inputs
        return attack_joint(key, apply_fn, jax.tree.map(lambda leaf: leaf[rest], params))

    return lax.map(attack_others, (keys, jnp.asarray(others)))


def collect_weights(
    key: Key,
    params: Params,
    loss_fn: Callable[[Key, Params], Array],
    *,
    num_models: int,
    steps_between: int,
    learning_rate: Any,
    momentum: Any = 0.9,
) -> Params:
    """Returns weights `[M, ...]` that SGD visits from trained ones on: an ensemble to attack (LGV).

    The learning rate is constant, and high, to keep them apart. A copy is kept after each
    `steps_between` steps, and memory is that of the copies.

    Args:
      key: consumed; split for the copies, and each of these for its steps.
      params: of one trained model.
      loss_fn: key and parameters to the loss of a minibatch that the key draws, a scalar.
      num_models: M, at least 1, static.
      steps_between: at least 1, static.
      learning_rate: finite and at least 0.
      momentum: of SGD; 0: none.

    Raises:
      ValueError: for values outside these ranges.

    Source: Gubri et al., arXiv 2207.13129.
    """
    base.check_count("num_models", num_models)
    base.check_count("steps_between", steps_between)
    base.check_length("learning_rate", learning_rate)
    optimizer = optax.sgd(learning_rate, momentum)

    def step(carry: tuple[Params, Any], key: Key) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn, 1)(key, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def walk(carry: tuple[Params, Any], key: Key) -> tuple[Any, Params]:
        carry, _ = lax.scan(step, carry, jax.random.split(key, steps_between))
        return carry, carry[0]

    start = (params, optimizer.init(params))
    return lax.scan(walk, start, jax.random.split(key, num_models))[1]


def num_models_of(params: Params) -> int:
    """Returns M, the length of the one leading axis of all leaves.

    Raises:
      ValueError: where leaves have no leading axis, an empty one or different ones.
    """
    axes = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)})
    if len(axes) != 1 or axes[0] in ((), (0,)):
        said = ", ".join(str(*axis) or "none" for axis in axes) or "no leaves"
        raise ValueError(
            f"params must share one leading axis over at least 1 model, got leading axes: {said}"
        )
    return axes[0][0]
