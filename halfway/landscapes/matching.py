"""Permutation matching: units of one network in the order that brings it close to another.

Linear assignments are solved on the host, with SciPy. `halfway.landscapes.permutations` says what
permutations are and applies them; its names can be imported from here too.
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

from halfway import losses, models, sharding, trees
from halfway.landscapes.permutations import (
    Axes,
    Permutations,
    Specification,
    apply_permutations,
    check_tensors,
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
      permutations: the permutations to apply to the model that was matched.
      similarity: ⟨target, permuted⟩ over all tensors that have a group.
      num_sweeps: the number of sweeps over all groups that the best start took.
      num_found: the number of starts that ended at this similarity.
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
    The result is a local optimum. It is computed on the host.

    Args:
      specification: the specification of both models.
      target: the parameters of the model that stays.
      params: the parameters of the model that is permuted.
      key: a PRNG key, consumed. It draws the order of groups, and the permutations from which every
        start but the first begins; the first begins from the parameters as they are.
      num_restarts: the number of starts; the best result is returned.
      max_sweeps: the largest number of sweeps of one start.

    Raises:
      ValueError: if `num_restarts` is below 1, the two models differ from the specification or from
        each other in tensors or sizes, or a weight is not finite.
    """
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}")
    if sharding.is_taken():  # weights are stand-ins: any permutation will do
        max_sweeps = min(max_sweeps, 1)
    rng = np.random.default_rng(_seed(key))
    specification, wanted, given = _comparable(specification, target, params)
    matches = []
    for start in range(num_restarts):
        orders = {
            name: rng.permutation(size) if start else np.arange(size)
            for name, size in specification.sizes.items()
        }
        matches.append(_ascend(specification, wanted, given, orders, rng, max_sweeps))
    best = max(matches, key=lambda match: match[1])
    close = 1e-6 * abs(best[1]) + 1e-12
    permutations = {name: jnp.asarray(order) for name, order in best[0].items()}
    return Match(
        permutations, best[1], best[2], sum(match[1] >= best[1] - close for match in matches)
    )


def _comparable(
    specification: Specification, target: Params, params: Params
) -> tuple[Specification, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the floating-point tensors of two models, checked, and their specification.

    Integers may lie on a group's axes, as a mask of units does, but they are no weights to match.
    """
    trees.check_real(target)
    trees.check_real(params)
    wanted, given = to_dict(target), to_dict(params)
    for what, tensors in (("target", wanted), ("params", given)):
        check_tensors(specification, tensors, what)
    names = [name for name, value in given.items() if trees.is_floating(value)]
    for name in names:
        shapes = np.shape(wanted[name]), np.shape(given[name])
        if shapes[0] != shapes[1]:
            axis = next(i for i, pair in enumerate(zip(*shapes, strict=True)) if len({*pair}) > 1)
            raise ValueError(
                f"axis {axis} of {name!r} has {shapes[0][axis]} entries in target and "
                f"{shapes[1][axis]} in params"
            )
    weights = [
        {name: np.asarray(tensors[name], np.float32) for name in names}
        for tensors in (wanted, given)
    ]
    for what, tensors in zip(("target", "params"), weights, strict=True):
        for name, value in tensors.items():
            bad = int((~np.isfinite(value)).sum())
            if bad:
                raise ValueError(
                    f"{bad} of {value.size} entries of {name!r} of {what} are not finite: a model "
                    "that diverged cannot be matched"
                )
    axes = {name: specification.axes[name] for name in names}
    return dataclasses.replace(specification, axes=axes), weights[0], weights[1]


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

    Hidden units are read before their nonlinearity, a residual stream as the next normalization
    returns it, and a head by the length of its values, which does not depend on the basis within
    the head.

    Args:
      module: a module that `models.build` returns.
      params: the parameters of one model.
      x: `[B, H, W, D]` images.

    Returns:
      `[N, n]` for each group; N is the number of examples times positions.

    Raises:
      ValueError: for a module that is not of `halfway.models`.
    """
    specification = derive_permutations(module, params)
    _, captured = module.apply(
        {"params": params}, x, capture_intermediates=True, mutable=["intermediates"]
    )
    captured_values = to_dict(captured["intermediates"])
    outputs = {name.rpartition("/__call__")[0]: value for name, value in captured_values.items()}
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

    Each group is one linear assignment by itself, so that there is no local optimum. A constant
    unit correlates with none. The result is computed on the host.

    Args:
      target: `{group: [N, n]}`, activations of the model that stays, e.g. from
        `hidden_activations`.
      activations: the same of the model that is permuted, on the same examples.

    Raises:
      ValueError: if the two differ in groups or shapes, or an activation is not finite.
    """
    result = {}
    if target.keys() != activations.keys():
        raise ValueError(f"groups differ: {sorted(target)} and {sorted(activations)}")
    for group, values in target.items():
        first, second = np.asarray(values, np.float64), np.asarray(activations[group], np.float64)
        if first.shape != second.shape:
            raise ValueError(f"group {group!r} has shapes {first.shape} and {second.shape}")
        if first.ndim != 2 or not first.size:
            raise ValueError(f"activations of group {group!r} must be [N, n], got {first.shape}")
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise ValueError(f"activations of group {group!r} must be finite")
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
      permutations: the permutations of the step with the smallest loss.
      loss: scalar, the loss in the middle of target and permuted model at those permutations.
      history: `[num_steps + 1]`, the loss in the middle at the permutations of each step.
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

    Latent weights, which start at the target, are projected to the nearest permutation of `params`
    by weight matching. The loss in the middle of target and projection is differentiated straight
    through the projection, and Adam moves the latent weights. The result is never worse than weight
    matching with the same key, from which it begins.

    Args:
      specification: the specification of both models.
      loss_fn: a function of parameters that returns a scalar.
      target: the parameters of the model that stays.
      params: the parameters of the model that is permuted.
      key: a PRNG key, consumed.
      num_steps: the number of steps of Adam; each costs a weight match.
      learning_rate: the learning rate of Adam.
    """
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def descend(latent, opt_state, projected):
        def middle(latent):
            straight = lambda w, p: w + jax.lax.stop_gradient(p - w)  # noqa: E731
            through = trees.map_floating(straight, join(jax.tree.leaves(latent)), projected)
            half_way = trees.map_floating(lambda a, b: (a + b) / 2, target, through)
            return losses.smooth_scalar(loss_fn(half_way))

        value, gradient = jax.value_and_grad(middle)(latent)
        updates, opt_state = optimizer.update(gradient, opt_state, latent)
        return value, optax.apply_updates(latent, updates), opt_state

    _, join = trees.split(target)
    latent = trees.only_floating(target)
    opt_state, history = optimizer.init(latent), []
    for step in range(num_steps + 1):
        whole = join(jax.tree.leaves(latent))
        match = weight_match(specification, whole, params, jax.random.fold_in(key, step))
        projected = apply_permutations(specification, match.permutations, params)
        value, latent, opt_state = descend(latent, opt_state, projected)
        history.append((float(value), match.permutations))
    best = min(history, key=lambda step_result: step_result[0])
    return StraightThrough(best[1], best[0], np.array([value for value, _ in history]))


def match_many(
    specification: Specification, members: Params, key: Key, *, max_iterations: int = 100
) -> tuple[Permutations, int]:
    """Returns permutations that bring many models together, and the number of passes.

    Each member in turn is matched to the mean of all others as they are permuted by then, until a
    pass changes nothing (Ainsworth et al., MergeMany). The result is unique up to one permutation
    that all members share.

    Args:
      specification: the specification of every member.
      members: the parameters of all members, leaves `[M, ...]`, M ≥ 2.
      key: a PRNG key, consumed.
      max_iterations: the largest number of passes over all members.

    Returns:
      Permutations `[M, n]` of each group, and the number of passes.

    Raises:
      ValueError: if there are fewer than two members.
    """
    number = trees.split(members)[0][0].shape[0]
    if number < 2:
        raise ValueError(f"many models are two or more, got {number}")
    originals = [
        jax.tree.map(lambda leaf, m=m: np.asarray(leaf[m]), members) for m in range(number)
    ]
    orders = [identity_permutations(specification) for _ in originals]
    moved, passes, changed = list(originals), 0, True
    while changed and passes < max_iterations:
        key_pass = jax.random.fold_in(key, passes)
        passes, changed = passes + 1, False
        for m in np.random.default_rng(_seed(key_pass)).permutation(number):
            others = [moved[k] for k in range(number) if k != m]
            mean = trees.map_floating(lambda *leaves: np.mean(leaves, 0), *others)
            match = weight_match(specification, mean, moved[m], key_pass)
            still = all(np.array_equal(o, np.arange(len(o))) for o in match.permutations.values())
            if not still:
                orders[m] = compose_permutations(orders[m], match.permutations)
                moved[m] = apply_permutations(specification, orders[m], originals[m])
                changed = True
    stacked = {name: jnp.stack([order[name] for order in orders]) for name in orders[0]}
    return stacked, passes


def _seed(key: Key) -> list[int]:
    return np.asarray(jax.random.key_data(key)).ravel().tolist()
