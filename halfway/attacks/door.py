"""What every attack does before it begins: inputs that are wrong end in one line with the remedy.

Where values are traced they cannot be looked at. Then an input that is wrong is never a success:
one outside of the bounds, or with a label that the model has no logit for.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from halfway.attacks.ensembles import Members, members_of
from halfway.attacks.threat import Bounds, Threat, linf
from halfway.types import Array, LogitsFn, is_traced

TOLERANCE = 1e-6
"""How far beyond its bounds an input may lie, as a share of their width: rounding."""
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def checked(attack: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Returns an attack that checks its inputs first, and takes arrays of NumPy too.

    Of a batch without examples it returns results without examples. Inputs of 16 bits are attacked
    in float32, and the points that are returned are of their type.

    Args:
      attack: takes a model, a key, inputs `x` and `labels`, and either a `threat` or `bounds`; its
        result has a field `success`.

    Raises:
      ValueError: by the attack that is returned, if inputs, labels, targets, bounds, threat model
        or logits are not what an attack takes.
    """
    signature = inspect.signature(attack)
    first = next(iter(signature.parameters))

    @functools.wraps(attack)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        x, labels, targets = given["x"], given["labels"], given.get("targets")
        if "threat" in given:
            bounds = _bounds_of(given["threat"])
        else:
            bounds = given["bounds"]
            linf(0.0, bounds)  # which checks them
        model = given[first]
        if "params" in given:  # of several models
            model = _first(members_of(model, given["params"]))
        logits = _check_all(model, x, labels, targets, bounds)
        _check_loss(logits, given.get("loss_fn"))
        if len(x) == 0:
            return _empty(attack, bound)
        is_known = not any(map(is_traced, (x, labels, *bounds)))
        names = ["x", "labels", *([] if targets is None else ["targets"])]
        given |= {name: jnp.asarray(given[name]) for name in names}
        dtype = given["x"].dtype
        if jnp.finfo(dtype).bits < 32:
            model = given[first]
            given[first] = (
                tuple(rounded(each, dtype) for each in model)
                if isinstance(model, Sequence)
                else rounded(model, dtype)
            )
            for name in ("x", "start"):
                if given.get(name) is not None:
                    given[name] = jnp.asarray(given[name], jnp.float32)
        result: Any = attack(*bound.args, **bound.kwargs)
        result = result._replace(adversarial=result.adversarial.astype(dtype))
        if is_known:
            return result
        usable = _usable(given["x"], given["labels"], bounds, logits.shape[-1])
        return result._replace(success=result.success & usable)

    return run


def rounded(model: Callable[..., Array], dtype: Any) -> Callable[..., Array]:
    """Returns a model that sees its inputs in a type of 16 bits, though walks are in float32.

    A walk in 16 bits would lose its steps; so the model sees every point as it will be returned.

    Args:
      model: takes inputs as its last argument.
      dtype: of the inputs.
    """
    return lambda *args: model(*args[:-1], args[-1].astype(dtype))


def _check_inputs(x: Any) -> None:
    """Checks that inputs are floats with a leading axis of examples."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        raise ValueError(f"x must be an array [B, ...], got {type(x).__name__}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"x must be floats, got {dtype}: for images in 0 to 255, x.astype(float) / 255"
        )
    if x.ndim < 1:
        raise ValueError("x must have a leading axis of examples, [B, ...]: x[None] for one input")


def _check_classes(name: str, values: Any, number: int) -> None:
    """Checks that labels or targets are integers, one for each example."""
    dtype, shape = getattr(values, "dtype", None), jnp.shape(values)
    if dtype is None:
        raise ValueError(
            f"{name} must be an array [B] of integers, got {type(values).__name__}: for one class "
            "for all, jnp.full(len(x), number)"
        )
    if len(shape) == 2:
        raise ValueError(
            f"{name} must be [B] class numbers, got shape {shape}: of one-hot rows, "
            f"{name}.argmax(-1)"
        )
    if len(shape) != 1:
        raise ValueError(f"{name} must be [B] class numbers, got shape {shape}")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got {dtype}: {name}.astype(int)")
    if shape[0] != number:
        raise ValueError(f"x has {number} examples, {name} has {shape[0]}")


def check(logits_fn: Callable[[Array], Array], x: Any, labels: Any, threat: Any) -> None:
    """Checks what an attack is given, for those that do not come through `checked`.

    Args:
      logits_fn: the model.
      x: inputs.
      labels: of these.
      threat: the threat model.

    Raises:
      ValueError: as the attacks that `checked` returns.
    """
    _check_all(logits_fn, x, labels, None, _bounds_of(threat))


def _check_all(
    model: Callable[[Array], Array], x: Any, labels: Any, targets: Any, bounds: Bounds
) -> jax.ShapeDtypeStruct:
    """Checks inputs, labels, targets and model, and returns the shape of the model's logits."""
    _check_inputs(x)
    classes = {"labels": labels} | ({} if targets is None else {"targets": targets})
    for name, values in classes.items():
        _check_classes(name, values, len(x))
    logits = _logits(model, x)
    if len(x) == 0:
        return logits
    # Before they become arrays of JAX, which have no values while a program is traced.
    for name, values in classes.items():
        _check_range(name, values, logits.shape[-1])
    if not any(map(is_traced, (x, *bounds))):
        _check_within(x, bounds)
    return logits


def _bounds_of(threat: Any) -> Bounds:
    """Returns the bounds of a threat model, if it is one."""
    if not isinstance(threat, Threat):
        raise ValueError(
            f"threat must be a threat model, got {threat!r}: attacks.linf({threat!r}), or l2 or l1"
        )
    return threat.bounds


def _empty(attack: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
    """Returns the result of a batch without examples: that of one, without its example."""
    given = bound.arguments
    for name in ("x", "labels", "targets", "start"):
        if given.get(name) is not None:
            array = jnp.asarray(given[name])
            given[name] = jnp.zeros((1, *array.shape[1:]), array.dtype)
    if "threat" in given:
        threat: Any = given["threat"]
        if jnp.ndim(threat.epsilon):
            given["threat"] = dataclasses.replace(threat, epsilon=jnp.zeros(1))
    shapes = jax.eval_shape(lambda: attack(*bound.args, **bound.kwargs))
    if hasattr(shapes, "perturbation"):
        raise ValueError("x has no examples: one perturbation for all needs at least one")
    return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), shapes)


def _first(members: Members) -> LogitsFn:
    """Returns the first of several models, which stands for all of them."""
    return lambda x: members.of_one(0, lambda logits_fn: logits_fn(x))


def _logits(model: Callable[[Array], Array], x: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of a model's logits, `[B, C]`, or `[B, M, C]` of several models."""
    number = max(len(x), 1)  # models need not take a batch of none
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    logits = jax.eval_shape(model, jax.ShapeDtypeStruct((number, *x.shape[1:]), dtype))
    shape = getattr(logits, "shape", None)
    if shape is None:
        raise ValueError(f"the model must return an array of logits, got {type(logits).__name__}")
    if shape == (number,) or shape[1:] == (1,):
        raise ValueError(
            f"the model returns one logit an example, {shape}: two are needed; of a logit z of "
            "class 1, jnp.stack([jnp.zeros_like(z), z], -1)"
        )
    if len(shape) not in (2, 3) or shape[0] != number:
        raise ValueError(f"the model must return logits [{number}, C], got {shape}")
    return logits


def _check_loss(logits: jax.ShapeDtypeStruct, loss_fn: Any) -> None:
    """Checks that logits `[B, M, C]` of several models come with a loss that takes them."""
    if logits.ndim == 2:
        _check_slope(logits, loss_fn)
        return
    said = f"the model returns logits of {logits.shape[1]} models at once, {logits.shape}"
    if loss_fn is None:
        raise ValueError(
            f"{said}, and this attack takes those of one: attacks.ensemble(apply_fn, params, "
            "'logits')"
        )
    try:
        jax.eval_shape(loss_fn, logits, jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{said}, which loss_fn does not take: give the loss_fn that attacks.ensemble returns "
            "with them"
        ) from error


def _check_slope(logits: jax.ShapeDtypeStruct, loss_fn: Any) -> None:
    """Checks that a loss of logits `[B, C]` returns floats `[B]`: integers have no slope."""
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"the model must return floating-point logits, got {logits.dtype}")
    if loss_fn is None:
        return
    labels = jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32)
    loss = jax.eval_shape(loss_fn, logits, labels)
    if loss.shape != labels.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn must return a floating-point loss per example, {labels.shape}, got "
            f"{loss.dtype} of shape {loss.shape}"
        )


def _check_range(name: str, values: Any, num_classes: int) -> None:
    """Checks that labels or targets are classes of the model, where they can be looked at."""
    if is_traced(values):
        return
    array = np.asarray(values)
    least, most = int(array.min()), int(array.max())
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"{name} must lie in 0 to {num_classes - 1}, as the model has {num_classes} logits, "
            f"got {least if least < 0 else most}"
        )


def _check_within(x: Any, bounds: Bounds) -> None:
    """Checks that inputs, which can be looked at, lie within the bounds."""
    array = np.asarray(x)
    array = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    lower, upper = (np.asarray(bound, np.float32) for bound in bounds)
    if bool(_within(array, lower, upper).all()):
        return
    low, high = float(array.min()), float(array.max())
    if np.isnan(low):
        raise ValueError("x holds NaN: an attack needs finite inputs")
    raise ValueError(
        f"x goes from {low:.4g} to {high:.4g}, outside of the bounds {lower.min():g} to "
        f"{upper.max():g}: scale x, or give bounds=(smallest, largest value of an input)"
    )


def _within(x: Any, lower: Any, upper: Any) -> Any:
    """Returns `[B]`, whether all of an input lies in the bounds, up to rounding."""
    numpy: Any = jnp if isinstance(x, jax.Array) else np
    width = upper - lower
    room = numpy.where(numpy.isfinite(width), TOLERANCE * width, 0)
    inside = (x >= lower - room) & (x <= upper + room)
    return inside.reshape(len(x), -1).all(1)


def _usable(x: Array, labels: Array, bounds: Bounds, num_classes: int) -> Array:
    """Returns `[B]`, whether an input may be a success: it and its label are what they must be."""
    lower, upper = (jnp.asarray(bound, jnp.float32) for bound in bounds)
    return _within(x, lower, upper) & (labels >= 0) & (labels < num_classes)
