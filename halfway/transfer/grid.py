"""Transfer of many models, architectures, attacks and budgets, in bounded memory."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import losses, sharding
from halfway.attacks import Threat, linf
from halfway.transfer.matrix import (
    CONTROLS,
    KINDS,
    Attack,
    Evaluation,
    TransferMatrix,
    evaluate,
    perturb,
)
from halfway.types import ApplyFn, Array, Key, LogitsFn, LossFn, Params

Model = LogitsFn | tuple[ApplyFn, Params]
"""One model, or a function and the stacked parameters `[M, ...]` of several."""


class TransferGrid(NamedTuple):
    """Surrogates against targets under every attack at every budget; arrays of NumPy.

    Attributes:
      surrogates: names of the K surrogates.
      targets: names of the M targets.
      attacks: names of the attacks.
      budgets: the E budgets ε, in units of the input.
      cells: (attack, budget) to the `TransferMatrix` from which all rates are taken.
    """

    surrogates: tuple[str, ...]
    targets: tuple[str, ...]
    attacks: tuple[str, ...]
    budgets: tuple[float, ...]
    cells: dict[tuple[str, float], TransferMatrix]


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A model without parameters; equal for equal functions, so that nothing compiles twice."""

    logits_fn: LogitsFn

    def __call__(self, params: Params, x: Array) -> Array:
        del params
        return self.logits_fn(x)


class _Group(NamedTuple):
    """Models of one architecture, at places from `start` on."""

    names: tuple[str, ...]
    apply_fn: ApplyFn
    params: Params
    start: int

    @property
    def slice(self) -> slice:
        """Places of the models among all."""
        return slice(self.start, self.start + len(self.names))


class _Work(NamedTuple):
    """Places of one block: `[I]` surrogates, `[I, chunk]` examples, and how many of these count."""

    member: np.ndarray
    rows: np.ndarray
    counts: list[int]
    chunks: list[int]


def transfer_grid(
    surrogates: Mapping[str, Model],
    targets: Mapping[str, Model],
    key: Key,
    x: Array | np.ndarray,
    labels: Array | np.ndarray,
    *,
    attack_fns: Mapping[str, Attack],
    budgets: Sequence[float],
    threat_fn: Callable[[float], Threat] = linf,
    loss_fn: LossFn = losses.margin,
    chunk_size: int = 128,
    num_at_once: int = 8,
    vectorized: bool = True,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> TransferGrid:
    """Returns what each attack at each budget on each surrogate does to each target.

    Work is cut into pieces of one surrogate and `chunk_size` examples; `num_at_once` pieces are on
    the devices at once and spread over them. Programs are compiled for each architecture and
    attack, not for pairs of architectures.

    Memory on the devices, for all K and B: the parameters and the examples, `num_at_once` pieces of
    `3 chunk_size` points (the attack and two controls), and on each device the activations of
    one piece, `3 chunk_size M` times the widest layer of a target (without M where not
    `vectorized`). Outcomes go to the host: 7 bytes for each surrogate, target, example and kind of
    point, attack and budget.

    Args:
      surrogates: by name, a logits_fn, or (apply_fn, params `[K, ...]`) of several models, which
        are then called NAME/0, NAME/1 and so on.
      targets: by name, in the same form.
      key: a PRNG key, which is consumed. Each surrogate and chunk gets a key of its own, the same
        for all attacks and budgets, so that draws depend on `chunk_size`.
      x: clean inputs `[B, ...]`, B at least 2.
      labels: `[B]` clean labels.
      attack_fns: attacks by name, with all options bound but the threat model. Use the same
        function objects again: another `functools.partial` compiles again.
      budgets: E budgets ε, in units of the input.
      threat_fn: a budget to the threat model, whose bounds the controls keep too.
      loss_fn: logits and labels to the attack loss in which increases are measured.
      chunk_size: number of examples of a piece, at least 2.
      num_at_once: number of pieces on the devices at once.
      vectorized: whether the targets of one architecture run at once, as one matrix product a
        layer, or one after another, which is faster for convolutions.
      progress: wraps the blocks of work, e.g. `tqdm.tqdm`.

    Raises:
      ValueError: if there are no models, attacks or budgets, or fewer than two examples, or if
        `chunk_size` or `num_at_once` is too small.

    Examples:
      >>> fall = lambda x: (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> rise = lambda x: -fall(x)  # what moves `fall` to its boundary moves `rise` away from it
      >>> x, labels = jnp.array([[0.6, 0.55], [0.7, 0.5]]), jnp.zeros(2, jnp.int32)
      >>> grid = transfer.transfer_grid(
      ...     {"fall": fall}, {"fall": fall, "rise": rise}, jax.random.key(0), x, labels,
      ...     attack_fns={"fgsm": attacks.fgsm}, budgets=[0.1])
      >>> print(transfer.coefficient(grid.cells["fgsm", 0.1]))
      [[ 1. -1.]]
    """
    if chunk_size < 2 or num_at_once < 1 or len(labels) < 2:
        raise ValueError(
            "at least 2 examples, chunk_size of 2 and num_at_once of 1 are needed, got "
            f"{len(labels)}, {chunk_size} and {num_at_once}"
        )
    sources, sinks = _groups(surrogates), _groups(targets)
    if not (sources and sinks and attack_fns and budgets):
        raise ValueError("a grid needs surrogates, targets, attacks and budgets")
    x, labels = jnp.asarray(x), jnp.asarray(labels, jnp.int32)
    num_chunks = -(-len(labels) // chunk_size)
    rows = _rows(len(labels), num_chunks)
    counts = len(_names(sources)), len(_names(sinks))
    shared = {"loss_fn": loss_fn}
    clean = _clean(sinks, x, labels, rows, num_at_once, counts[1], shared | {"at_once": vectorized})
    cells = {
        (name, float(budget)): _empty(*counts, len(labels), clean)
        for name in attack_fns
        for budget in budgets
    }
    blocks = [
        (cell, group, work)
        for cell in cells
        for group in sources
        for work in _blocks(len(group.names), rows, len(labels), num_at_once)
    ]
    for cell, group, work in progress(blocks):
        into, places = cells[cell], list(_places(group, work))
        numbered = zip(places, work.chunks, strict=True)
        keys = [_piece_key(key, surrogate, chunk) for (_, surrogate, _), chunk in numbered]
        keys += keys[:1] * (len(work.member) - len(keys))
        points, *outcomes = _perturb_program(
            (jnp.stack(keys), work.member, work.rows),
            group.params,
            x,
            labels,
            threat_fn(cell[1]),
            apply_fn=group.apply_fn,
            attack_fn=attack_fns[cell[0]],
            **shared,
        )
        _scatter((into.surrogate, into.matched, into.norm), tuple(outcomes), places)
        for sink in sinks:
            evaluations = _evaluate_program(
                (points, work.rows),
                sink.params,
                labels,
                apply_fn=sink.apply_fn,
                at_once=vectorized,
                **shared,
            )
            for kind, name in enumerate(KINDS):
                evaluation = jax.tree.map(lambda leaf, kind=kind: leaf[:, :, kind], evaluations)
                _scatter(into.target[name], evaluation, places, sink.slice)
    return TransferGrid(
        _names(sources), _names(sinks), tuple(attack_fns), tuple(map(float, budgets)), cells
    )


@functools.partial(sharding.jit, static_argnames=("apply_fn", "attack_fn", "loss_fn"), hot=True)
def _perturb_program(
    items, params, x, labels, threat, *, apply_fn: ApplyFn, attack_fn: Attack, loss_fn: LossFn
):
    """Returns points `[I, 3, chunk, ...]`, the surrogates' own outcomes, matched and norm."""

    def piece(item, params, x, labels, threat):
        key, member, rows = item
        member_params = jax.tree.map(lambda leaf: leaf[member], params)
        logits_fn = functools.partial(apply_fn, member_params)
        z, y = x[rows], labels[rows]
        attack = functools.partial(attack_fn, threat=threat)
        perturbed = perturb(logits_fn, key, z, y, attack=attack)
        evaluations = {
            name: evaluate(logits_fn, points, y, loss_fn=loss_fn)
            for name, points in ({"clean": z} | perturbed.points).items()
        }
        return (
            jnp.stack([perturbed.points[kind] for kind in KINDS]),
            evaluations,
            perturbed.matched,
            perturbed.norm,
        )

    run = sharding.spread(piece, at_once=1)
    return run(items, params, x, labels, threat)


@functools.partial(sharding.jit, static_argnames=("apply_fn", "at_once", "loss_fn"))
def _evaluate_program(items, params, labels, *, apply_fn: ApplyFn, at_once: bool, loss_fn: LossFn):
    """Returns outcomes `[I, M, kinds, chunk]` of all targets of one architecture."""

    def piece(item, params, labels):
        points, rows = item
        flat = points.reshape(-1, *points.shape[2:])
        y = jnp.tile(labels[rows], points.shape[0])

        def evaluate_target(params):
            return evaluate(functools.partial(apply_fn, params), flat, y, loss_fn=loss_fn)

        evaluations = (
            jax.vmap(evaluate_target)(params) if at_once else lax.map(evaluate_target, params)
        )
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *points.shape[:2]), evaluations)

    return sharding.spread(piece, at_once=1)(items, params, labels)


def _groups(models: Mapping[str, Model]) -> list[_Group]:
    """Returns models by architecture, numbered in order."""
    groups, start = [], 0
    for name, model in models.items():
        if isinstance(model, tuple):
            apply_fn, params = model
            number = jax.tree.leaves(params)[0].shape[0]
            names = tuple(f"{name}/{index}" for index in range(number))
        else:
            apply_fn, params, names = _Fixed(model), jnp.zeros(1), (name,)
        groups.append(_Group(names, apply_fn, params, start))
        start += len(names)
    return groups


def _names(groups: list[_Group]) -> tuple[str, ...]:
    """Returns the names of all models in order."""
    return tuple(name for group in groups for name in group.names)


def _rows(number: int, num_chunks: int) -> np.ndarray:
    """Returns the examples of each chunk `[chunks, chunk]`, filled up with the first ones."""
    size = max(2, -(-number // num_chunks))
    return (np.arange(num_chunks * size) % number).reshape(num_chunks, size)


def _blocks(num_models: int, rows: np.ndarray, number: int, most: int) -> Iterable[_Work]:
    """Yields blocks of equal size, of (model, chunk) in order; the last is filled up."""
    num_chunks, size = rows.shape
    total = num_models * num_chunks
    length = min(most, total)
    for first in range(0, total, length):
        places = np.arange(first, min(first + length, total))
        member, chunk = np.divmod(places, num_chunks)
        counts = [min(size, number - int(c) * size) for c in chunk]
        pad = length - len(places)
        member = np.concatenate([member, np.repeat(member[:1], pad)])
        padded = np.concatenate([chunk, np.repeat(chunk[:1], pad)])
        yield _Work(member, rows[padded], counts, chunk.tolist())


def _piece_key(key: Key, surrogate: int, chunk: int) -> Key:
    """Returns the key of a surrogate and a chunk."""
    return jax.random.fold_in(jax.random.fold_in(key, surrogate), chunk)


def _places(group: _Group, work: _Work) -> Iterable[tuple[int, int, np.ndarray]]:
    """Yields (place in the block, surrogate, examples that count)."""
    for index, count in enumerate(work.counts):
        yield index, group.start + int(work.member[index]), work.rows[index, :count]


def _scatter(
    into: Any, values: Any, places: Iterable[tuple[int, int, np.ndarray]], targets: Any = ...
) -> None:
    """Writes the results of a block, leaves `[I, ..., chunk]`, into arrays `[K, ..., B]`."""
    arrays, blocks = jax.tree.leaves(into), jax.device_get(jax.tree.leaves(values))
    for array, block in zip(arrays, blocks, strict=True):
        for index, surrogate, rows in places:
            array[surrogate][targets][..., rows] = block[index][..., : len(rows)]


def _clean(
    sinks: list[_Group],
    x: Array,
    labels: Array,
    rows: np.ndarray,
    most: int,
    num_targets: int,
    options: dict[str, Any],
) -> Evaluation:
    """Returns all targets on clean examples, `[M, B]`."""
    clean = _evaluation((num_targets, len(labels)))
    whole = jax.tree.map(lambda array: array[None], clean)
    for sink in sinks:
        for work in _blocks(1, rows, len(labels), most):
            points = x[jnp.asarray(work.rows)][:, None]
            evaluations = _evaluate_program(
                (points, work.rows), sink.params, labels, apply_fn=sink.apply_fn, **options
            )
            evaluations = jax.tree.map(lambda leaf: leaf[:, :, 0], evaluations)
            _scatter(whole, evaluations, list(_places(sink._replace(start=0), work)), sink.slice)
    return clean


def _evaluation(shape: tuple[int, ...]) -> Evaluation:
    """Returns arrays to be filled."""
    return Evaluation(np.empty(shape, np.float32), np.empty(shape, bool), np.empty(shape, np.int16))  # pyright: ignore


def _empty(num_surrogates: int, num_targets: int, number: int, clean: Evaluation) -> TransferMatrix:
    """Returns a matrix to be filled, with the outcomes on clean examples."""
    row, cube = (num_surrogates, number), (num_surrogates, num_targets, number)
    return TransferMatrix(
        {name: _evaluation(row) for name in ("clean", *KINDS)},
        {"clean": clean} | {name: _evaluation(cube) for name in KINDS},
        {name: np.empty(row, bool) for name in CONTROLS},  # pyright: ignore
        np.empty(row, np.float32),  # pyright: ignore
    )
