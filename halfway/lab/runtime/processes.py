"""Several processes of one run: how they start, agree, and end together."""

import contextlib
import functools
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from halfway.lab.config.user import LOG, UserError

T = TypeVar("T")


class _State:
    """What this process is doing.

    Attributes:
      alone: whether it is in what the first process does by itself.
      asked: whether it was asked to end.
      at_once: whether it may end at any moment.
      moment: how often it asked whether the run is to end.
    """

    alone = False
    asked = False
    at_once = True
    moment = 0


_state = _State()


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects the processes of a run through JAX's coordination service.

    Args:
      coordinator: HOST:PORT of process 0; None: from the cluster's environment (TPU pod, Slurm, or
        Open MPI), which then says all three.
      num_processes: of the run.
      process_id: of this one, from 0.

    Raises:
      UserError: if some but not all are given, a number is none, or they do not find each other.
    """
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError(
            "--coordinator=HOST:PORT, --num_processes and --process_id belong together; without "
            "them --distributed asks the cluster"
        )
    options: dict[str, Any] = {}
    if coordinator is not None and num_processes is not None and process_id is not None:
        if process_id >= num_processes:
            raise UserError(f"--process_id must lie in [0, {num_processes - 1}], got {process_id}")
        options = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    try:
        jax.distributed.initialize(**options, initialization_timeout=START_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:200]
        hint = "" if coordinator else " (no cluster found? name --coordinator=HOST:PORT)"
        raise UserError(f"--distributed: the processes do not connect{hint}: {words}") from error
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"the {jax.process_count()} processes have {jax.device_count()} devices, this one "
            f"{jax.local_device_count()}: give each equally many, on CPUs by --mesh or XLA_FLAGS"
        )


START_TIMEOUT = 120
"""Seconds that processes wait for each other at the start."""


def is_first() -> bool:
    """Returns whether this process is the one that writes and talks."""
    return count() == 1 or jax.process_index() == 0


def shared(fn: Callable[[], T]) -> T:
    """Returns on every process what a function returns on the first, which alone calls it.

    All processes must come here in the same order. What it raises, all raise.

    Args:
      fn: to be called; its result must be picklable, arrays on the host.
    """
    if count() == 1 or _state.alone:
        return fn()
    failure: BaseException | None = None
    payload = b""
    if is_first():
        _state.alone = True
        try:
            on_host = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, fn())
            payload = pickle.dumps((True, on_host))
        except Exception as error:
            failure = error
            payload = pickle.dumps((False, str(error)))
        finally:
            _state.alone = False
    found = _broadcast(payload)
    if failure is not None:
        raise failure
    done, value = pickle.loads(found)  # of this run's own first process
    if not done:
        raise UserError(value)
    return value


def _broadcast(payload: bytes) -> bytes:
    """Returns on every process the bytes of the first, sent in parts of few different lengths."""
    numbers = np.asarray(divmod(len(payload), _PART), np.int32)
    whole, rest = (int(n) for n in multihost_utils.broadcast_one_to_all(numbers))
    parts = []
    for index in range(whole + (rest > 0)):
        size = _PART if index < whole else rest
        # A program for each length: powers of two are few.
        data = np.zeros(min(_PART, max(64, 1 << (size - 1).bit_length())), np.uint8)
        if is_first():
            data[:size] = np.frombuffer(payload, np.uint8, size, index * _PART)
        found = np.asarray(multihost_utils.broadcast_one_to_all(data)).astype(np.uint8)
        parts.append(found[:size].tobytes())
    return b"".join(parts)


_PART = 1 << 26
"""Bytes that are sent at once."""


def collective(method: Callable[..., T]) -> Callable[..., T]:
    """Returns a method that only the first process carries out, and all get the result of."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> T:
        return shared(lambda: method(*args, **kwargs))

    return call


class Terminated(BaseException):
    """The process was asked to end (SIGTERM), and what it had is kept: no fault, no Exception."""


def listen() -> None:
    """Has SIGTERM raise `Terminated`: at once, or after the piece in a block of `in_pieces`.

    With several processes JAX's preemption service listens instead, see `is_ending`.
    """
    if count() > 1:
        return

    def heard(number: int, frame: Any) -> None:
        del number, frame
        _state.asked = True
        if _state.at_once:
            raise Terminated

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, heard)


@contextlib.contextmanager
def in_pieces() -> Iterator[None]:
    """Holds SIGTERM back; the block asks `is_ending` after each piece of its work."""
    _state.at_once = False
    try:
        yield
    finally:
        _state.at_once = True


def is_ending() -> bool:
    """Returns whether the run is to end here; all processes ask together and hear the same."""
    if count() == 1:
        return _state.asked
    _state.moment += 1
    return bool(multihost_utils.reached_preemption_sync_point(_state.moment))


_LOST = (
    "Gloo",
    "Connection reset",
    "Connection closed",
    "coordination service",
    "heartbeat",
    "NCCL",
    "distributed service",
)


def lost(error: BaseException) -> bool:
    """Returns whether an error says that another process of the run is gone."""
    return count() > 1 and any(word in str(error) for word in _LOST)


def leave() -> None:
    """Ends this process at once, since the others that JAX would wait for are gone."""
    LOG.error(
        "error: another process of this run ended: see its output; start the same command again on "
        "all of them (their number may be another), and it goes on from what is kept"
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_LOST)


def abandon(code: int) -> None:
    """Ends one of several processes at once, so that the others need not wait for it.

    A moment later, since what all of them found wrong each of them says.

    Args:
      code: of the exit; where there is one process nothing is done.
    """
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(1.0)
        os._exit(code)


def count() -> int:
    """Returns the number of processes without setting up devices, which may be what went wrong."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


EXIT_LOST, EXIT_TERMINATED = 3, 143
"""Exit codes where another process is gone, and after SIGTERM."""
