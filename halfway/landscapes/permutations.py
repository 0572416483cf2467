"""Permutations of units that leave a network's function as it is.

A specification says which axes of which tensors a group of units lies on; permuting all of them at
once changes no output. Permutations are `{group: [n]}` integers, applied as `take`: unit i of the
result is unit `permutation[i]` of the input. Everything works under `jit` and `vmap`, except making
a specification.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from halfway import models, trees
from halfway.custom_models import CustomModel
from halfway.types import Array, Key, Params, is_traced

Permutations = dict[str, Any]
"""`{group: [n]}` integers."""
Axes = Mapping[str, tuple[Any, ...]]
"""`{tensor: an entry for each axis}`: None, the name of a group, or (name, repeats)."""


@dataclasses.dataclass(frozen=True)
class Specification:
    """Which axes every group of units lies on.

    Attributes:
      axes: the path of each tensor, e.g. "Dense_0/kernel", to an entry for each axis: None; the
        name of a group; or (name, repeats) where the axis is `repeats` blocks of the group, as a
        dense layer reads flattened features.
      sizes: the name of each group to its number of units.
    """

    axes: dict[str, tuple[Any, ...]]
    sizes: dict[str, int]

    def places(self) -> dict[str, list[tuple[str, int, int]]]:
        """Returns the (tensor, axis, repeats) of every group."""
        places: dict[str, list[tuple[str, int, int]]] = {name: [] for name in self.sizes}
        for tensor, entries in self.axes.items():
            for axis, entry in enumerate(entries):
                if entry is not None:
                    name, repeats = _entry(entry)
                    places[name].append((tensor, axis, repeats))
        return places


def _entry(entry: Any) -> tuple[str, int]:
    return (entry, 1) if isinstance(entry, str) else (entry[0], int(entry[1]))


def declare_permutations(axes: Axes, params: Params) -> Specification:
    """Returns the specification that `axes` declares, checked against parameters.

    Args:
      axes: the entries of each tensor as in `Specification.axes`; every tensor of `params` is
        named.
      params: the parameters of one model.

    Raises:
      ValueError: if a tensor is missing or does not exist, has another number of axes, or an axis
        has another size than its group elsewhere. The message names the tensor and the axis.
    """
    tensors = to_dict(params)
    for tensor in axes:
        if tensor not in tensors:
            raise ValueError(f"the specification names {tensor!r}, which the parameters lack")
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for tensor, value in tensors.items():
        if tensor not in axes:
            raise ValueError(f"the specification lacks {tensor!r} of shape {tuple(value.shape)}")
        if len(axes[tensor]) != value.ndim:
            raise ValueError(
                f"the specification has {len(axes[tensor])} axes for {tensor!r}, whose shape is "
                f"{tuple(value.shape)}"
            )
        for axis, entry in enumerate(axes[tensor]):
            if entry is None:
                continue
            name, repeats = _entry(entry)
            size, rest = divmod(value.shape[axis], repeats)
            if rest or sizes.setdefault(name, size) != size:
                expected = f"{repeats} x {sizes.get(name, '?')}"
                raise ValueError(
                    f"axis {axis} of {tensor!r} has {value.shape[axis]} entries, but group "
                    f"{name!r} needs {expected}, as in {first.get(name, tensor)!r}"
                )
            first.setdefault(name, tensor)
    return Specification({name: tuple(entries) for name, entries in axes.items()}, sizes)


def derive_permutations(module: nn.Module | CustomModel, params: Params) -> Specification:
    """Returns the specification of a module of `halfway.models`, or that a user's model declares.

    Its groups are hidden units of dense layers, channels of convolutions, the residual stream of
    each stage or of the transformer, hidden units within each block, and attention heads as wholes.
    Within a head more than permutations leaves the function as it is; those maps are not searched.

    Args:
      module: a module that `models.build` returns.
      params: the parameters of one model.

    Raises:
      ValueError: for a module that is not of `halfway.models` and declares no permutations.
    """
    if isinstance(module, CustomModel) and module.permutations is not None:
        return declare_permutations(module.permutations, params)
    rules: dict[type, Callable[[Any, dict[str, Any]], Axes]] = {
        models.Linear: lambda module, tensors: {
            name: (None,) * v.ndim for name, v in tensors.items()
        },
        models.MLP: _plain,
        models.CNN: _plain,
        models.Residual: _residual,
        models.VisionTransformer: _transformer,
    }
    if type(module) not in rules:
        raise ValueError(
            f"no specification can be derived for {type(module).__name__}: declare one by "
            "landscapes.declare_permutations"
        )
    tensors = to_dict(params)
    try:
        axes = rules[type(module)](module, tensors)
    except KeyError as error:
        raise ValueError(
            f"the parameters lack tensor {error.args[0]!r} of {type(module).__name__}; their first "
            f"is {next(iter(tensors), 'none')!r}"
        ) from error
    return declare_permutations(axes, params)


def _plain(module: Any, tensors: dict[str, Any]) -> Axes:
    """Returns the axes of convolutions followed by dense layers; the last is not permuted."""
    convolutions = [f"Conv_{i}" for i in range(len(getattr(module, "features", ())))]
    layers = [*convolutions, *(f"Dense_{i}" for i in range(len(module.widths) + 1))]
    axes: dict[str, tuple[Any, ...]] = {}
    before: Any = None
    for layer in layers:
        kernel = tensors[f"{layer}/kernel"]
        writes = None if layer == layers[-1] else layer
        reads = before
        if before in convolutions and layer.startswith("Dense"):
            # Flattened [H, W, D]: channels vary fastest.
            channels = tensors[f"{before}/kernel"].shape[-1]
            reads = (before, kernel.shape[0] // channels)
        axes[f"{layer}/kernel"] = (*(None,) * (kernel.ndim - 2), reads, writes)
        axes[f"{layer}/bias"] = (writes,)
        before = writes
    return axes


def _residual(module: Any, tensors: dict[str, Any]) -> Axes:
    del tensors
    axes: dict[str, tuple[Any, ...]] = {"stem/kernel": (None, None, None, "stream0")}
    for stage in range(len(module.features)):
        for block in range(module.blocks):
            name = f"stage{stage}_block{block}"
            enters = stage > 0 and block == 0
            reads, writes = f"stream{stage - enters}", f"stream{stage}"
            hidden = f"{name}_hidden"
            axes |= dict.fromkeys((f"{name}_norm0/scale", f"{name}_norm0/bias"), (reads,))
            axes |= dict.fromkeys((f"{name}_norm1/scale", f"{name}_norm1/bias"), (hidden,))
            axes[f"{name}_conv0/kernel"] = (None, None, reads, hidden)
            axes[f"{name}_conv1/kernel"] = (None, None, hidden, writes)
            if enters:
                axes[f"{name}_shortcut/kernel"] = (None, None, reads, writes)
    last = f"stream{len(module.features) - 1}"
    axes |= dict.fromkeys(("norm/scale", "norm/bias"), (last,))
    return axes | {"head/kernel": (last, None), "head/bias": (None,)}


def _transformer(module: Any, tensors: dict[str, Any]) -> Axes:
    del tensors
    axes: dict[str, tuple[Any, ...]] = {
        "embed/kernel": (None, "stream"),
        "embed/bias": ("stream",),
        "positions": (None, "stream"),
    }
    for block in range(module.depth):
        name = f"block{block}"
        heads, hidden = f"{name}_heads", f"{name}_hidden"
        for norm in ("norm0", "norm1"):
            axes |= dict.fromkeys((f"{name}_{norm}/scale", f"{name}_{norm}/bias"), ("stream",))
        for part in ("query", "key", "value"):
            axes[f"{name}_attention/{part}/kernel"] = ("stream", heads, None)
            axes[f"{name}_attention/{part}/bias"] = (heads, None)
        axes[f"{name}_attention/out/kernel"] = (heads, None, "stream")
        axes[f"{name}_attention/out/bias"] = ("stream",)
        axes[f"{name}_dense0/kernel"] = ("stream", hidden)
        axes[f"{name}_dense0/bias"] = (hidden,)
        axes[f"{name}_dense1/kernel"] = (hidden, "stream")
        axes[f"{name}_dense1/bias"] = ("stream",)
    axes |= dict.fromkeys(("norm/scale", "norm/bias"), ("stream",))
    return axes | {"head/kernel": ("stream", None), "head/bias": (None,)}


def identity_permutations(specification: Specification) -> Permutations:
    """Returns the permutations that change nothing."""
    return {name: jnp.arange(size) for name, size in specification.sizes.items()}


def random_permutations(key: Key, specification: Specification) -> Permutations:
    """Returns a uniform permutation of every group.

    Args:
      key: a PRNG key, consumed.
      specification: the groups and their sizes.
    """
    keys = jax.random.split(key, max(len(specification.sizes), 1))
    return {
        name: jax.random.permutation(k, size)
        for k, (name, size) in zip(keys, specification.sizes.items(), strict=False)
    }


def apply_permutations(
    specification: Specification, permutations: Permutations, params: Params
) -> Params:
    """Returns the parameters with their units permuted; the function stays as it is.

    Args:
      specification: the specification of the parameters.
      permutations: `{group: [n]}`; a group that is not named stays.
      params: the parameters of one model.

    Raises:
      ValueError: if tensors or groups are not those of the specification, sizes differ, or an entry
        is no permutation. Where it is traced, tensors that it permutes are NaN instead.
    """
    trees.check_real(params)
    tensors = to_dict(params)
    check_tensors(specification, tensors)
    for name, order in permutations.items():
        if name not in specification.sizes:
            raise ValueError(
                f"no group of units is called {name!r}: there are "
                f"{', '.join(map(repr, specification.sizes)) or 'none'}"
            )
        place = next(iter(specification.places()[name]), None)
        there = "" if place is None else f", axis {place[1]} of {place[0]!r}"
        _check_order(name, order, specification.sizes[name], there)
    moved = {
        tensor: permute(value, specification.axes[tensor], permutations, jnp)
        for tensor, value in tensors.items()
    }
    return jax.tree.unflatten(jax.tree.structure(params), list(moved.values()))


def permute(value: Any, entries: tuple[Any, ...], permutations: Permutations, np_: Any) -> Any:
    """Returns one tensor with its axes permuted.

    Args:
      value: the tensor.
      entries: an entry for each of its axes, as in `Specification.axes`.
      permutations: `{group: [n]}`; a group that is not named stays.
      np_: `jax.numpy` or `numpy`, whichever the tensor belongs to.
    """
    for axis, entry in enumerate(entries):
        if entry is None:
            continue
        name, repeats = _entry(entry)
        if name not in permutations:
            continue
        order = permutations[name]
        traced_order = order if is_traced(order) else None
        if repeats > 1:
            size = order.shape[0]
            order = (np_.arange(repeats)[:, None] * size + order[None]).reshape(-1)
        value = np_.take(value, order, axis=axis)
        if traced_order is not None and jnp.issubdtype(value.dtype, jnp.inexact):
            units = jnp.arange(traced_order.shape[0])
            value = jnp.where((jnp.sort(traced_order) == units).all(), value, jnp.nan)
    return value


def check_tensors(specification: Specification, tensors: dict[str, Any], what: str = "") -> None:
    """Checks that tensors are those that a specification describes.

    Args:
      specification: the groups, their sizes and where they lie.
      tensors: by path, of one model.
      what: whose they are, for the message.

    Raises:
      ValueError: if one is missing, unknown, or of other sizes; with tensor, axis and sizes.
    """
    whose = f" of {what}" if what else ""
    for tensor in tensors:
        if tensor not in specification.axes:
            inner = tensor.partition("/")[2]
            hint = f": give the tree under {tensor.partition('/')[0]!r}"
            raise ValueError(
                f"the specification has no tensor {tensor!r}{whose}"
                f"{hint if inner in specification.axes else ''}"
            )
    for tensor, entries in specification.axes.items():
        if tensor not in tensors:
            raise ValueError(f"the specification has {tensor!r}, which the parameters{whose} lack")
        shape = jnp.shape(tensors[tensor])
        if len(shape) != len(entries):
            raise ValueError(
                f"{tensor!r}{whose} has shape {shape}, the specification {len(entries)} axes"
            )
        for axis, entry in enumerate(entries):
            if entry is None:
                continue
            name, repeats = _entry(entry)
            expected = repeats * specification.sizes[name]
            if shape[axis] != expected:
                raise ValueError(
                    f"axis {axis} of {tensor!r}{whose} has {shape[axis]} entries, group {name!r} "
                    f"of the specification needs {expected}"
                )


def _check_order(name: str, order: Any, size: int, there: str = "") -> None:
    """Checks that an entry of `Permutations` is a permutation of `size` units."""
    shape, dtype = jnp.shape(order), jnp.result_type(order)
    if shape != (size,):
        raise ValueError(
            f"the permutation of group {name!r} has shape {shape}, the group has {size} units"
            f"{there}"
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"the permutation of group {name!r} must hold integers, got {dtype}")
    if is_traced(order):
        return
    entries = np.asarray(order)
    if size and (entries.min() < 0 or entries.max() >= size):
        wrong = int(entries.min() if entries.min() < 0 else entries.max())
        raise ValueError(
            f"the permutation of group {name!r} holds {wrong}, outside of 0 to {size - 1}{there}"
        )
    units, counts = np.unique(entries, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"the permutation of group {name!r} holds {int(units[counts > 1][0])} more than once: "
            f"each of its {size} units must come once{there}"
        )


def invert_permutations(permutations: Permutations) -> Permutations:
    """Returns what undoes the permutations.

    Raises:
      ValueError: if an entry is no permutation (where it is not traced).
    """
    for name, order in permutations.items():
        _check_order(name, order, len(order))
    return {name: jnp.argsort(order) for name, order in permutations.items()}


def compose_permutations(first: Permutations, second: Permutations) -> Permutations:
    """Returns the permutations that do `first`, then `second`.

    Args:
      first: `{group: [n]}`, the permutations that are applied first.
      second: `{group: [n]}` of the same groups, the permutations that are applied then.

    Raises:
      ValueError: if groups or sizes differ, or an entry is no permutation (where it is not traced).
    """
    if first.keys() != second.keys():
        raise ValueError(f"groups differ: {sorted(first)} and {sorted(second)}")
    for name in first:
        for order in (first[name], second[name]):
            _check_order(name, order, len(first[name]))
    return {name: jnp.take(first[name], second[name]) for name in first}


def weight_similarity(a: Params, b: Params) -> Array:
    """Returns the inner product ⟨a, b⟩ over all tensors, which weight matching makes large.

    Args:
      a: the parameters of one model, a pytree.
      b: the parameters of another model, a pytree like it.
    """
    return trees.inner(a, b)


def to_dict(params: Params) -> dict[str, Any]:
    """Returns tensors by path, in the order of the tree's leaves."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
