"""AutoAttack on whole data sets: a chunk at a time, with progress, resumable, compiled once.

`auto_attack` is one program for one size of batch. Here is a program for each stage and chunk of
inputs, whatever their number: the last chunk is filled up, and compiles nothing.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from halfway import sharding
from halfway.attacks import base, door
from halfway.attacks.auto import suite
from halfway.attacks.auto.suite import Chunk, Plan, StagedResult
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, LogitsFn


class Progress(NamedTuple):
    """How far `auto_attack_steps` has come; arrays of NumPy, to be stored and given back.

    Attributes:
      result: so far, of all inputs.
      stage: place in the version of the stage that is running; −1: of the clean inputs.
      rank: of the class that a targeted stage steers to, 0 for the largest wrong logit.
      left: rows that this stage has still to attack with this class.
    """

    result: StagedResult
    stage: int
    rank: int
    left: np.ndarray


def auto_attack_steps(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    chunk_size: int = 64,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[Progress]:
    """Yields what AutoAttack has found after each chunk of inputs; the last is its result.

    The results are those of `auto_attack` with the same key. The survivors of a stage are gathered
    over all inputs, so that no chunk but the last is filled up. Not to be jitted: it compiles a
    program a stage itself.

    Args:
      logits_fn, key, x, labels, threat: as of `auto_attack`; concrete.
      chunk_size: inputs that are attacked at once.
      progress: where to go on from, what an earlier run of the same attack has yielded.
      **options: others of `auto_attack`.

    Raises:
      ValueError: as of `auto_attack`, before the first chunk.

    Examples:
      >>> def logits_fn(x):
      ...     return (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5], [0.875, 0.875]]), jnp.array([0, 0])
      >>> steps = attacks.auto_attack_steps(
      ...     logits_fn, jax.random.key(0), x, labels, threat=attacks.linf(0.125), num_queries=9)
      >>> [(step.stage, int(step.result.success.sum())) for step in steps]
      [(-1, 0), (0, 1), (1, 1), (2, 1), (3, 1)]
    """
    plan = Plan(chunk_size=min(chunk_size, max(len(x), 1)), **options)
    door.check(logits_fn, x, labels, threat)
    if len(x) == 0:
        result = suite.auto_attack(logits_fn, key, x, labels, threat=threat)
        return iter([Progress(jax.tree.map(np.asarray, result), -1, 0, np.zeros(0, int))])
    inputs, targets = np.asarray(x), np.asarray(labels)
    dtype = inputs.dtype
    if dtype.itemsize >= 4:
        return _steps(logits_fn, key, inputs, targets, threat, plan, progress)
    model, inputs = door.rounded(logits_fn, dtype), inputs.astype(np.float32)
    if progress is not None:
        progress = _cast(progress, np.float32)
    steps = _steps(model, key, inputs, targets, threat, plan, progress)
    return (_cast(step, dtype) for step in steps)


def _steps(
    logits_fn: LogitsFn,
    key: Key,
    x: np.ndarray,
    labels: np.ndarray,
    threat: Threat,
    plan: Plan,
    progress: Progress | None,
) -> Iterator[Progress]:
    """Yields as `auto_attack_steps`, of what has been checked."""
    num_inputs, chunk_size = len(x), plan.chunk_size
    look = functools.partial(_clean, logits_fn=hashable(logits_fn), plan=plan)
    parts = []
    for begin in range(0, num_inputs, chunk_size):
        rows = filled(np.arange(begin, min(begin + chunk_size, num_inputs)), chunk_size)
        parts.append(look(x[rows], labels[rows]))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_inputs], *parts)
    untouched, order = joined
    if progress is None:
        progress = Progress(untouched, -1, 0, np.zeros(0, int))
        yield progress
    budgets = np.broadcast_to(np.asarray(threat.epsilon), num_inputs)
    # The results are written over; what was given is not.
    result = jax.tree.map(np.array, progress.result)
    for index in range(max(progress.stage, 0), len(plan.stages)):
        name = plan.stages[index]
        targeted = name.endswith("_t")
        run = functools.partial(
            _attack, name=name, logits_fn=hashable(logits_fn), index=index, plan=plan
        )
        for rank in range(min(plan.num_targets, order.shape[1]) if targeted else 1):
            place = (index, rank)
            if place < (progress.stage, progress.rank):
                continue
            resumes = place == (progress.stage, progress.rank)
            left = progress.left if resumes else np.flatnonzero(~result.success)
            stage_key = jax.random.fold_in(key, index)
            rank_key = jax.random.fold_in(stage_key, rank) if targeted else stage_key
            keys = base.example_keys(rank_key, num_inputs)
            targets = order[:, rank] if targeted else labels
            while len(left):
                rows, left = left[:chunk_size], left[chunk_size:]
                places = filled(rows, chunk_size)
                arrays: Any = [array[places] for array in (keys, x, labels, budgets, targets)]
                chunk = Chunk(*arrays)
                old = jax.tree.map(lambda leaf, rows=places: leaf[rows], result)
                new = run(chunk, old, threat)
                for whole, part in zip(result, new, strict=True):
                    whole[rows] = np.asarray(part)[: len(rows)]
                yield Progress(jax.tree.map(np.array, result), index, rank, left)


def _cast(progress: Progress, dtype: Any) -> Progress:
    """Returns progress with points of another type."""
    adversarial = np.asarray(progress.result.adversarial).astype(dtype)
    return progress._replace(result=progress.result._replace(adversarial=adversarial))


def hashable(logits_fn: LogitsFn) -> LogitsFn:
    """Returns a model that can be a static argument: programs are kept for the same one.

    Args:
      logits_fn: of the model.
    """
    try:
        hash(logits_fn)
    except TypeError:
        return lambda x: logits_fn(x)
    return logits_fn


@functools.partial(sharding.alone, static_argnames=("logits_fn", "plan"))
def _clean(x: Array, labels: Array, *, logits_fn: LogitsFn, plan: Plan) -> tuple[Any, Array]:
    """Returns the result before any attack, and the order of the wrong classes."""
    return suite.clean(logits_fn, x, labels, plan), suite.ranked(logits_fn, x, labels, plan)


@functools.partial(sharding.alone, static_argnames=("name", "logits_fn", "index", "plan"), hot=True)
def _attack(
    chunk: Chunk,
    old: StagedResult,
    threat: Threat,
    *,
    name: str,
    logits_fn: LogitsFn,
    index: int,
    plan: Plan,
) -> StagedResult:
    """Returns the results of a chunk after a stage."""
    single = suite.single_of(name, logits_fn, chunk.x, threat, plan)
    return suite.improve(single, logits_fn, chunk, old, index=index, threat=threat)


def filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns rows `[size]`: these, and the first of them as often as it takes.

    Args:
      rows: at least one, at most `size`.
      size: of the batch.
    """
    return np.concatenate([rows, np.full(size - len(rows), rows[0])])
