"""Times of our programs and of peers, taken in turns, and the ceiling of the machine."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache


@dataclasses.dataclass(frozen=True)
class Row:
    """A piece of work that was timed. None where a field has no meaning.

    Attributes:
      work: the name of the work.
      ours_seconds: our least or median seconds over all repetitions, compiled before; None where
        the row could not run.
      peer: name and version of the peer.
      peer_seconds: the peer's least or median seconds.
      ratio: our seconds over the peer's, or over a limit in seconds.
      target: an upper bound on `ratio`.
      ceiling_share: operations over those that a matrix product reaches in the same time.
      peak_memory_bytes: bytes of our compiled program: arguments, result and temporaries.
      note: further facts for a reader.
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
    """Returns the least seconds of each call.

    All calls are made once before, then in turns, so that a busy minute of a shared machine falls
    on all of them.

    Args:
      *calls: functions without arguments; arrays that they return are waited for.
      repeats: the number of repetitions of each call.
    """
    return [min(seconds) for seconds in _in_turns(calls, repeats)]


def median(*calls: Callable[[], Any], repeats: int = 5, warm: bool = True) -> list[float]:
    """Returns the median seconds of each call.

    Calls are made in turns as in `least`. There are two repetitions only where a call takes over a
    minute.

    Args:
      *calls: functions without arguments; arrays that they return are waited for.
      repeats: the number of repetitions of each call.
      warm: whether each call is made once before.
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
"""Seconds of a call beyond which two repetitions are enough."""


def ceiling(size: int = 2048) -> float:
    """Returns the floating-point operations a second of a float32 matrix product.

    Args:
      size: the number of rows and columns of the matrices.
    """
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    (seconds,) = least(lambda: product(matrix, matrix), repeats=5)
    return 2 * size**3 / seconds


def memory(compiled: Any) -> int | None:
    """Returns the most bytes that a compiled program holds; None where they are not reported.

    Args:
      compiled: a compiled program of `jax.jit`.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Compiles without the persistent cache in the block."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # the cache reads the setting once only
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
