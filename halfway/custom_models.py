"""Models of a user's own in the form that populations train: parameters, and logits of them.

A function `pkg.module:build` is called with `num_classes` and the fields of the model's config. It
returns one of

- a linen module whose only collection is `params`;
- `(init, apply)`: init(key, x) gives parameters, apply(params, x) logits;
- a function of a key that gives an NNX module, an Equinox module, or any other pytree that is
  called with images, of which the floating-point arrays are the parameters.

Beside it, as a second or third entry of the tuple, may stand the axes of each tensor as
`landscapes.declare_permutations` takes them, for what permutes hidden units.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from halfway import user_code
from halfway.types import Array, Key, Params

DIGEST_FIELD = "source"
"""The field of a config that holds the digest of the file which defines the function."""


class CustomModel(NamedTuple):
    """A model of a user's own, with the two methods of a linen module that populations call.

    Attributes:
      start: a key and images `[B, H, W, D]` to parameters, nested dicts of arrays.
      forward: parameters and images to logits `[B, C]`.
      permutations: the axes of each tensor by name, or None where they are not declared.
      kind: its name, `pkg.module:build`, for messages.
    """

    start: Callable[[Key, Array], Params]
    forward: Callable[[Params, Array], Array]
    permutations: Mapping[str, Any] | None = None
    kind: str = "the model"

    def init(self, key: Key, x: Any) -> dict[str, Params]:
        """Returns `{"params": ...}`, as the method of a linen module does.

        Args:
          key: consumed.
          x: `[B, H, W, D]`, of which the shape is used.
        """
        with user_code.running(f"{self.kind} fails to begin"):
            return {"params": self.start(key, x)}

    def apply(self, variables: Mapping[str, Params], x: Any) -> Array:
        """Returns logits `[B, C]`, as the method of a linen module does.

        Args:
          variables: `{"params": ...}`.
          x: `[B, H, W, D]`.
        """
        with user_code.running(f"{self.kind} fails on images of shape {jnp.shape(x)}"):
            return jnp.asarray(self.forward(variables["params"], x))


def is_custom(kind: str) -> bool:
    """Returns whether a kind of model is the name of a user's function, `pkg.module:build`."""
    return ":" in kind


def fields_of(kind: str) -> dict[str, Any]:
    """Returns the arguments of a user's function and their types, `num_classes` left out.

    Args:
      kind: `pkg.module:build`.

    Raises:
      ValueError: if there is no such function.
    """
    function = user_code.find_function(kind)
    # flax adds `parent` and `name` to the fields of a module.
    added = ("num_classes", *(("parent", "name") if isinstance(function, type) else ()))
    fields: dict[str, Any] = {DIGEST_FIELD: str}
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.name not in added:
            known = parameter.annotation in (int, float, bool, str)
            fields[parameter.name] = parameter.annotation if known else Any
    return fields


def source_digest(kind: str) -> str:
    """Returns twelve digits of the hash of the file that defines a user's function.

    What that file imports is not looked at.

    Args:
      kind: `pkg.module:build`.

    Raises:
      ValueError: if there is no such function, or no file of it.
    """
    try:
        path = inspect.getsourcefile(inspect.unwrap(user_code.find_function(kind)))
        return hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()[:12]
    except (OSError, TypeError) as error:
        raise ValueError(f"{kind} is not defined in a file: {error}") from error


def build(kind: str, fields: Mapping[str, Any], *, num_classes: int) -> CustomModel:
    """Returns the model that a user's function builds.

    Args:
      kind: `pkg.module:build`.
      fields: its arguments; `source`, where it is there, is the digest that its file must have.
      num_classes: C.

    Raises:
      ValueError: if there is no such function, its file has changed since the digest was taken, it
        fails, or it returns something else.
    """
    return _build(kind, tuple(sorted(fields.items())), num_classes)


@functools.lru_cache(maxsize=64)
def _build(kind: str, fields: tuple[tuple[str, Any], ...], num_classes: int) -> CustomModel:
    arguments = dict(fields)
    digest = arguments.pop(DIGEST_FIELD, None)
    if digest is not None and digest != source_digest(kind):
        raise ValueError(
            f"the file of {kind} has changed since this run began: its digest was {digest}, now it "
            f"is {source_digest(kind)}; restore it, or choose another folder"
        )
    function = user_code.find_function(kind)
    with user_code.running(f"{kind} fails"):
        built = function(num_classes=num_classes, **arguments)
    axes = None
    if isinstance(built, tuple) and not isinstance(built, nn.Module):
        *rest, last = built
        if isinstance(last, Mapping):
            built, axes = rest[0] if len(rest) == 1 else tuple(rest), last
    if isinstance(built, nn.Module):
        start, forward = _of_linen(built, kind)
    elif isinstance(built, tuple) and len(built) == 2 and all(map(callable, built)):
        start, forward = built
    elif callable(built) and not isinstance(built, nnx.Module):
        start, forward = _of_a_function(built, kind)
    else:
        raise ValueError(
            f"{kind} must return a linen module, (init, apply), or a function of a key that makes "
            f"a model, got {type(built).__name__}"
        )
    return CustomModel(start, forward, axes, kind)


def _of_linen(module: nn.Module, kind: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def start(key: Key, x: Array) -> Params:
        variables = module.init(key, x)
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"{kind} keeps {', '.join(others)} beside its parameters: statistics of a batch "
                "couple examples; take LayerNorm or GroupNorm"
            )
        return variables["params"]

    return start, lambda params, x: module.apply({"params": params}, x)


class _Held(NamedTuple):
    """What is known of models that hold their own parameters, from one of them.

    Attributes:
      names: of each parameter, as a path in nested dicts.
      take: a model to its parameters in this order.
      fill: parameters in this order to a function of images.
    """

    names: list[tuple[str, ...]]
    take: Callable[[Any], list[Array]]
    fill: Callable[[list[Array]], Callable[[Array], Array]]


def _of_a_function(
    make: Callable[[Key], Any], kind: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns init and apply of models that hold their own parameters."""

    @functools.cache
    def held() -> _Held:
        with (
            user_code.running(f"{kind} fails with a key"),
            jax.ensure_compile_time_eval(),  # one is made, whoever traces
        ):
            template = make(jax.random.key(0))
        if not callable(template):
            raise ValueError(f"{kind}: what it makes of a key cannot be called with images")
        known = _of_nnx(template, kind) if isinstance(template, nnx.Module) else _of_tree(template)
        if not known.names:
            raise ValueError(f"{kind}: what it makes of a key has no floating-point arrays")
        return known

    def start(key: Key, x: Array) -> Params:
        del x
        return _nested(dict(zip(held().names, held().take(make(key)), strict=True)))

    def forward(params: Params, x: Array) -> Array:
        return held().fill([_inside(params, name) for name in held().names])(x)

    return start, forward


def _of_tree(template: Any) -> _Held:
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    leaves = [leaf for _, leaf in paths]
    trained = [index for index, leaf in enumerate(leaves) if _is_parameter(leaf)]

    def take(made: Any) -> list[Array]:
        made_leaves = jax.tree.leaves(made)
        return [made_leaves[index] for index in trained]

    def fill(values: list[Array]) -> Callable[[Array], Array]:
        filled = list(leaves)
        for index, value in zip(trained, values, strict=True):
            filled[index] = value
        model = jax.tree.unflatten(structure, filled)
        return jax.vmap(model) if _is_of_equinox(model) else model

    return _Held([tuple(map(_part, paths[index][0])) for index in trained], take, fill)


def _of_nnx(template: nnx.Module, kind: str) -> _Held:
    template.eval()
    definition, params, rest = nnx.split(template, nnx.Param, ...)
    kept = [path for path, value in nnx.to_flat_state(rest) if not isinstance(value, nnx.RngState)]
    if kept:
        raise ValueError(
            f"{kind} keeps {'/'.join(map(str, kept[0]))} beside its parameters: statistics of a "
            "batch couple examples; take LayerNorm or GroupNorm"
        )
    paths = [path for path, _ in nnx.to_flat_state(params)]

    def take(made: Any) -> list[Array]:
        made_params = dict(nnx.to_flat_state(nnx.state(made, nnx.Param)))
        return [made_params[path].get_value() for path in paths]

    def fill(values: list[Array]) -> Callable[[Array], Array]:
        flat = [(path, nnx.Param(value)) for path, value in zip(paths, values, strict=True)]
        return nnx.merge(definition, nnx.from_flat_state(flat), rest)

    return _Held([tuple(map(str, path)) for path in paths], take, fill)


def _is_parameter(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_of_equinox(model: Any) -> bool:
    """Returns whether a model is of Equinox, whose modules take one image."""
    return any(parent.__module__.startswith("equinox") for parent in type(model).__mro__)


def _part(part: Any) -> str:
    """Returns one step of a path in a tree as text."""
    for field in ("name", "key", "idx"):
        if hasattr(part, field):
            return str(getattr(part, field))
    return str(part)


def _nested(flat: Mapping[tuple[str, ...], Array]) -> Params:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path or ("value",)
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def _inside(tree: Any, path: tuple[str, ...]) -> Array:
    return functools.reduce(lambda place, name: place[name], path or ("value",), tree)
