"""Permutation matching: units of one network in the order that brings it close to another.

Linear assignments are solved on the host, with SciPy; what permutations are and how they are
applied is in `halfway.landscapes.permutations`, all of which can be had from here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from halfway import models
from halfway.landscapes.permutations import (
    Axes,
    Permutations,
    Specification,
    apply_permutations,
    compose_permutations,
    declare_permutations,
    derive_permutations,
    identity_permutations,
    invert_permutations,
    permute,
    random_permutations,
    to_dict,
    weight_similarity,
)
from halfway.types import Array, Key, Params

__all__ = [
    "Axes",
    "Match",
    "Permutations",
    "Specification",
    "StraightThrough",
    "activation_match",
    "apply_permutations",
    "compose_permutations",
    "declare_permutations",
    "derive_permutations",
    "hidden_activations",
    "identity_permutations",
    "invert_permutations",
    "match_many",
    "random_permutations",
    "straight_through_match",
    "weight_match",
    "weight_similarity",
]


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
    rng = np.random.default_rng(_seed(key))
    wanted, given = (
        {name: np.asarray(value, np.float32) for name, value in to_dict(tree).items()}
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
        float(np.vdot(target[t], permute(params[t], entries, orders, np)))
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
        moved = permute(params[tensor], specification.axes[tensor], others, np)
        total += _rows(target[tensor], axis, size, repeats) @ (_rows(moved, axis, size, repeats).T)
    return total


def _rows(value: np.ndarray, axis: int, size: int, repeats: int) -> np.ndarray:
    """Returns `[n, rest]`, a row for each unit of a group on one axis."""
    value = np.moveaxis(value, axis, -1)
    value = value.reshape(*value.shape[:-1], repeats, size)
    return value.reshape(-1, size).T


def hidden_activations(module: nn.Module, params: Params, x: Array) -> dict[str, Array]:
    """Returns what every group of units of a module of `halfway.models` computes.

    Hidden units before their nonlinearity; a residual stream as the next normalization hands it on;
    a head by the length of its values, which does not depend on the basis within the head.

    Args:
      module: as of `models.build`.
      params: of one model of it.
      x: `[B, H, W, D]`.

    Returns:
      `[N, n]` for each group, N examples times positions.

    Raises:
      ValueError: for another module.
    """
    specification = derive_permutations(module, params)
    _, captured = module.apply(
        {"params": params}, x, capture_intermediates=True, mutable=["intermediates"]
    )
    seen = to_dict(captured["intermediates"])
    outputs = {name.rpartition("/__call__")[0]: value for name, value in seen.items()}
    result = {}
    for group, size in specification.sizes.items():
        value = outputs[_observed(module, group)]
        if group.endswith("_heads"):
            value = jnp.linalg.norm(value, axis=-1)
        result[group] = value.reshape(-1, size)
    return result


def _observed(module: Any, group: str) -> str:
    """Returns the submodule whose output shows a group."""
    if group.startswith("stream") and isinstance(module, models.Residual):
        stage = int(group.removeprefix("stream"))
        if stage + 1 < len(module.features):
            return f"stage{stage + 1}_block0_norm0"
        return "norm"
    if group == "stream":
        return "norm"
    if group.endswith("_heads"):
        return group.replace("_heads", "_attention/value")
    if group.endswith("_hidden"):
        layer = "_norm1" if isinstance(module, models.Residual) else "_dense0"
        return group.replace("_hidden", layer)
    return group


def activation_match(target: Mapping[str, Array], activations: Mapping[str, Array]) -> Permutations:
    """Returns the permutations that match units by the correlation of what they compute.

    One linear assignment a group, each by itself, so that there is no local optimum; a unit that is
    constant correlates with none. Runs on the host.

    Args:
      target: `{group: [N, n]}` of one model, e.g. by `activations`.
      activations: of the model to be permuted, on the same examples.

    Raises:
      ValueError: if the two differ in groups or shapes.
    """
    result = {}
    if target.keys() != activations.keys():
        raise ValueError(f"groups differ: {sorted(target)} and {sorted(activations)}")
    for group, values in target.items():
        first, second = np.asarray(values, np.float64), np.asarray(activations[group], np.float64)
        if first.shape != second.shape:
            raise ValueError(f"group {group!r} has shapes {first.shape} and {second.shape}")
        first, second = (_standardize(v) for v in (first, second))
        _, order = linear_sum_assignment(first.T @ second, maximize=True)
        result[group] = jnp.asarray(order)
    return result


def _standardize(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(0)
    norms = np.linalg.norm(values, axis=0)
    return values / np.where(norms > 0, norms, 1)


class StraightThrough(NamedTuple):
    """A match found by descending the loss at the middle.

    Attributes:
      permutations: the best that were seen.
      loss: scalar, in the middle of target and permuted, at the best.
      history: `[num_steps + 1]`, the loss in the middle at each step's permutations.
    """

    permutations: Permutations
    loss: float
    history: np.ndarray


def straight_through_match(
    specification: Specification,
    loss_fn: Callable[[Params], Array],
    target: Params,
    params: Params,
    key: Key,
    *,
    num_steps: int,
    learning_rate: float = 1e-2,
) -> StraightThrough:
    """Returns permutations that make the loss in the middle small (Ainsworth et al., algorithm 3).

    Latent weights, from the target's on, are projected to the nearest permutation of `params` by
    weight matching; the loss in the middle of target and projection is differentiated straight
    through the projection, and Adam moves the latent weights. Never worse than weight matching from
    the same key, where it begins.

    Args:
      specification: of both.
      loss_fn: parameters to a scalar.
      target: of one model.
      params: of the other.
      key: consumed.
      num_steps: of Adam; each costs a weight match.
      learning_rate: of Adam.
    """
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def descend(latent, opt_state, projected):
        def middle(latent):
            through = jax.tree.map(lambda w, p: w + jax.lax.stop_gradient(p - w), latent, projected)
            return loss_fn(jax.tree.map(lambda a, b: (a + b) / 2, target, through))

        value, gradient = jax.value_and_grad(middle)(latent)
        updates, opt_state = optimizer.update(gradient, opt_state, latent)
        return value, optax.apply_updates(latent, updates), opt_state

    latent, opt_state, seen = target, optimizer.init(target), []
    for step in range(num_steps + 1):
        found = weight_match(specification, latent, params, jax.random.fold_in(key, step))
        projected = apply_permutations(specification, found.permutations, params)
        value, latent, opt_state = descend(latent, opt_state, projected)
        seen.append((float(value), found.permutations))
    best = min(seen, key=lambda one: one[0])
    return StraightThrough(best[1], best[0], np.array([value for value, _ in seen]))


def match_many(
    specification: Specification, members: Params, key: Key, *, max_iterations: int = 100
) -> tuple[Permutations, int]:
    """Returns permutations that bring many models together, `[M, n]` a group, and the passes.

    Each member in turn is matched to the mean of all others as they are permuted by then, until a
    pass changes nothing (Ainsworth et al., MergeMany). The result is up to one permutation of all.

    Args:
      specification: of every member.
      members: leaves `[M, ...]`, M ≥ 2.
      key: consumed.
      max_iterations: passes over all members.

    Raises:
      ValueError: if there are fewer than two members.
    """
    number = jax.tree.leaves(members)[0].shape[0]
    if number < 2:
        raise ValueError(f"many models are two or more, got {number}")
    own = [jax.tree.map(lambda leaf, m=m: np.asarray(leaf[m]), members) for m in range(number)]
    orders = [identity_permutations(specification) for _ in own]
    moved, passes, changed = list(own), 0, True
    while changed and passes < max_iterations:
        key_pass = jax.random.fold_in(key, passes)
        passes, changed = passes + 1, False
        for m in np.random.default_rng(_seed(key_pass)).permutation(number):
            others = [moved[k] for k in range(number) if k != m]
            mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *others)
            found = weight_match(specification, mean, moved[m], key_pass)
            still = all(np.array_equal(o, np.arange(len(o))) for o in found.permutations.values())
            if not still:
                orders[m] = compose_permutations(orders[m], found.permutations)
                moved[m] = apply_permutations(specification, orders[m], own[m])
                changed = True
    stacked = {name: jnp.stack([order[name] for order in orders]) for name in orders[0]}
    return stacked, passes


def _seed(key: Key) -> list[int]:
    return np.asarray(jax.random.key_data(key)).ravel().tolist()
