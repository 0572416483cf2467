"""Times of ours and of peers, taken in turns; the machine's own ceiling in the same run."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Row:
    """One piece of work. None where a field has no meaning.

    Attributes:
      work: what was done, in a word.
      ours_seconds, peer_seconds: the least or the median of all repetitions, as the suite says,
        compiled before; None where the row could not run.
      peer: name and version.
      ratio: ours over the peer's, or over `limit` seconds where that is asked.
      target: an upper bound on `ratio`.
      ceiling_share: operations over what a matrix product reaches in the same time.
      peak_memory_bytes: of our compiled program: arguments, result and temporaries.
      note: what a reader has to know.
      skipped: why the row could not run; None where it did.
    """

    work: str
    ours_seconds: float | None
    peer: str | None = None
    peer_seconds: float | None = None
    ratio: float | None = None
    target: float | None = None
    ceiling_share: float | None = None
    peak_memory_bytes: int | None = None
    note: str = ""
    skipped: str | None = None


def least(*calls: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Returns the least time of each call, all called once before, then in turns.

    In turns, so that a busy minute of a shared machine falls on all of them.

    Args:
      *calls: without arguments; arrays they return are waited for.
      repeats: of each.
    """
    return [min(seconds) for seconds in _in_turns(calls, repeats)]


def median(*calls: Callable[[], Any], repeats: int = 5, warm: bool = True) -> list[float]:
    """Returns the median time of each call, taken as `least` takes them.

    Two of each do where one takes over a minute.

    Args:
      *calls: without arguments; arrays they return are waited for.
      repeats: of each.
      warm: whether each is called once before.
    """
    return [statistics.median(seconds) for seconds in _in_turns(calls, repeats, warm)]


def _in_turns(
    calls: tuple[Callable[[], Any], ...], repeats: int, warm: bool = True
) -> list[list[float]]:
    for call in calls if warm else ():
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in calls]
    for done in range(repeats):
        if done >= 2 and max(max(each) for each in seconds) > _LONG:
            break
        for index, call in enumerate(calls):
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[index].append(time.perf_counter() - started)
    return seconds


_LONG = 60.0
"""Seconds of a run, beyond which two of them are enough."""


def ceiling(size: int = 2048) -> float:
    """Returns floating-point operations a second of a float32 matrix product of `size`²."""
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    (seconds,) = least(lambda: product(matrix, matrix), repeats=5)
    return 2 * size**3 / seconds


def memory(compiled: Any) -> int | None:
    """Returns the bytes that a compiled program holds at most, None where the backend is silent."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
