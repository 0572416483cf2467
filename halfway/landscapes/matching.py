"""Permutation matching: two networks that compute alike, with their units in another order.

A specification says which axes of which tensors a group of units lies on; permuting all of them at
once leaves the function as it is. Permutations are `{group: [n]}` integers, applied as `take`: unit
i of the result is unit `permutation[i]` of what it is applied to.

Applying, composing and inverting are pure and work under `jit` and `vmap`; matching solves linear
assignments on the host, with SciPy.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from halfway import models
from halfway.types import Array, Key, Params

Permutations = dict[str, Any]
"""`{group: [n]}` integers."""
Axes = Mapping[str, tuple[Any, ...]]
"""`{tensor: an entry for each axis}`: None, the name of a group, or (name, repeats)."""


@dataclasses.dataclass(frozen=True)
class Specification:
    """Which axes every group of units lies on.

    Attributes:
      axes: path of each tensor, e.g. "Dense_0/kernel", to an entry for each axis: None; a group's
        name; or (name, repeats) where the axis is `repeats` blocks of the group, as a dense layer
        reads flattened features.
      sizes: group to its number of units.
    """

    axes: dict[str, tuple[Any, ...]]
    sizes: dict[str, int]

    def places(self) -> dict[str, list[tuple[str, int, int]]]:
        """Returns the (tensor, axis, repeats) of every group."""
        found: dict[str, list[tuple[str, int, int]]] = {name: [] for name in self.sizes}
        for tensor, entries in self.axes.items():
            for axis, entry in enumerate(entries):
                if entry is not None:
                    name, repeats = _entry(entry)
                    found[name].append((tensor, axis, repeats))
        return found


def _entry(entry: Any) -> tuple[str, int]:
    return (entry, 1) if isinstance(entry, str) else (entry[0], int(entry[1]))


def declare(axes: Axes, params: Params) -> Specification:
    """Returns the specification that `axes` declares, checked against parameters.

    Args:
      axes: see `Specification`; every tensor of `params` is named.
      params: of one model.

    Raises:
      ValueError: naming the tensor, and the axis where there is one: if a tensor is missing or does
        not exist, has another number of axes, or an axis another size than its group elsewhere.
    """
    tensors = _to_dict(params)
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


def derive(module: nn.Module, params: Params) -> Specification:
    """Returns the specification of a module of `halfway.models`.

    Hidden units of dense layers, channels of convolutions, the residual stream of each stage or of
    the transformer, hidden units within each block, and attention heads as wholes. Within a head
    more than permutations leaves the function as it is; they are not searched.

    Args:
      module: as of `models.build`.
      params: of one model of it.

    Raises:
      ValueError: for another module.
    """
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
            "matching.declare"
        )
    return declare(rules[type(module)](module, _to_dict(params)), params)


def _plain(module: Any, tensors: dict[str, Any]) -> Axes:
    """Layers one after another: convolutions, then dense ones; the last is not permuted."""
    convolutions = [f"Conv_{i}" for i in range(len(getattr(module, "features", ())))]
    layers = [*convolutions, *(f"Dense_{i}" for i in range(len(module.widths) + 1))]
    axes: dict[str, tuple[Any, ...]] = {}
    before: Any = None
    for layer in layers:
        kernel = tensors[f"{layer}/kernel"]
        own = None if layer == layers[-1] else layer
        reads = before
        if before in convolutions and layer.startswith("Dense"):
            # Flattened [H, W, D]: channels vary fastest.
            channels = tensors[f"{before}/kernel"].shape[-1]
            reads = (before, kernel.shape[0] // channels)
        axes[f"{layer}/kernel"] = (*(None,) * (kernel.ndim - 2), reads, own)
        axes[f"{layer}/bias"] = (own,)
        before = own
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


def identity(specification: Specification) -> Permutations:
    """Returns the permutations that change nothing."""
    return {name: jnp.arange(size) for name, size in specification.sizes.items()}


def random_permutations(key: Key, specification: Specification) -> Permutations:
    """Returns a uniform permutation of every group.

    Args:
      key: consumed.
      specification: of the groups.
    """
    keys = jax.random.split(key, max(len(specification.sizes), 1))
    return {
        name: jax.random.permutation(k, size)
        for k, (name, size) in zip(keys, specification.sizes.items(), strict=False)
    }


def apply(specification: Specification, permutations: Permutations, params: Params) -> Params:
    """Returns the parameters with their units permuted; the function stays as it is.

    Args:
      specification: of the parameters.
      permutations: `{group: [n]}`; a group that is not named stays.
      params: of one model.
    """
    tensors = _to_dict(params)
    moved = {
        tensor: _permute(value, specification.axes[tensor], permutations, jnp)
        for tensor, value in tensors.items()
    }
    return jax.tree.unflatten(jax.tree.structure(params), list(moved.values()))


def _permute(value: Any, entries: tuple[Any, ...], permutations: Permutations, np_: Any) -> Any:
    for axis, entry in enumerate(entries):
        if entry is None:
            continue
        name, repeats = _entry(entry)
        if name not in permutations:
            continue
        order = permutations[name]
        if repeats > 1:
            size = order.shape[0]
            order = (np_.arange(repeats)[:, None] * size + order[None]).reshape(-1)
        value = np_.take(value, order, axis=axis)
    return value


def invert(permutations: Permutations) -> Permutations:
    """Returns what undoes the permutations."""
    return {name: jnp.argsort(order) for name, order in permutations.items()}


def compose(first: Permutations, second: Permutations) -> Permutations:
    """Returns the permutations that do `first`, then `second`; both name the same groups."""
    return {name: jnp.take(first[name], second[name]) for name in first}


def similarity(a: Params, b: Params) -> Array:
    """Returns the inner product ⟨a, b⟩ over all tensors, which weight matching makes large."""
    return jnp.asarray(optax.tree.vdot(a, b))


class Match(NamedTuple):
    """A match of one model to another.

    Attributes:
      permutations: to apply to the model that was matched.
      similarity: ⟨target, permuted⟩ over all tensors that have a group.
      num_sweeps: over all groups, of the best start.
      num_found: starts that ended at this similarity, of all of them.
    """

    permutations: Permutations
    similarity: float
    num_sweeps: int
    num_found: int


def weight_match(
    specification: Specification,
    target: Params,
    params: Params,
    key: Key,
    *,
    num_restarts: int = 1,
    max_sweeps: int = 100,
) -> Match:
    """Returns the permutations of `params` that bring it close to `target` in its weights.

    Coordinate ascent (Ainsworth et al., arXiv 2209.04836, algorithm 1): each group in turn gets the
    best permutation given all others, a linear assignment, until none improves ⟨target, permuted⟩.
    That is a local optimum. Runs on the host.

    Args:
      specification: of both.
      target: of one model.
      params: of the other.
      key: consumed; the order of groups, and the permutations that every start but the first
        begins from: the first begins from the parameters as they are.
      num_restarts: starts; the best is returned.
      max_sweeps: of one start.

    Raises:
      ValueError: if `num_restarts` is below 1.
    """
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    wanted, given = (
        {name: np.asarray(value, np.float32) for name, value in _to_dict(tree).items()}
        for tree in (target, params)
    )
    found = []
    for start in range(num_restarts):
        orders = {
            name: rng.permutation(size) if start else np.arange(size)
            for name, size in specification.sizes.items()
        }
        found.append(_ascend(specification, wanted, given, orders, rng, max_sweeps))
    best = max(found, key=lambda one: one[1])
    close = 1e-6 * abs(best[1]) + 1e-12
    permutations = {name: jnp.asarray(order) for name, order in best[0].items()}
    return Match(permutations, best[1], best[2], sum(one[1] >= best[1] - close for one in found))


def _ascend(
    specification: Specification,
    target: dict[str, np.ndarray],
    params: dict[str, np.ndarray],
    orders: dict[str, np.ndarray],
    rng: np.random.Generator,
    max_sweeps: int,
) -> tuple[dict[str, np.ndarray], float, int]:
    """Returns a local optimum from a start: permutations, similarity, sweeps."""
    places, orders, sweeps = specification.places(), dict(orders), 0
    improved = True
    while improved and sweeps < max_sweeps:
        improved, sweeps = False, sweeps + 1
        for name in rng.permutation(sorted(specification.sizes)):
            score = _scores(specification, target, params, orders, name, places[name])
            before = score[np.arange(len(score)), orders[name]].sum()
            _, order = linear_sum_assignment(score, maximize=True)
            after = score[np.arange(len(score)), order].sum()
            if after > before + 1e-6 * np.abs(score).max():
                orders[name], improved = order, True
    value = sum(
        float(np.vdot(target[t], _permute(params[t], entries, orders, np)))
        for t, entries in specification.axes.items()
        if any(entry is not None for entry in entries)
    )
    return orders, value, sweeps


def _scores(
    specification: Specification,
    target: dict[str, np.ndarray],
    params: dict[str, np.ndarray],
    orders: dict[str, np.ndarray],
    name: str,
    places: list[tuple[str, int, int]],
) -> np.ndarray:
    """Returns `[n, n]`: what unit j of `params` in the place of unit i adds to the similarity."""
    size = specification.sizes[name]
    total = np.zeros((size, size), np.float64)
    others = {other: order for other, order in orders.items() if other != name}
    for tensor, axis, repeats in places:
        moved = _permute(params[tensor], specification.axes[tensor], others, np)
        total += _rows(target[tensor], axis, size, repeats) @ (_rows(moved, axis, size, repeats).T)
    return total


def _rows(value: np.ndarray, axis: int, size: int, repeats: int) -> np.ndarray:
    """Returns `[n, rest]`, a row for each unit of a group on one axis."""
    value = np.moveaxis(value, axis, -1)
    value = value.reshape(*value.shape[:-1], repeats, size)
    return value.reshape(-1, size).T


def _to_dict(params: Params) -> dict[str, Any]:
    """Returns tensors by path, in the order of the tree's leaves."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
