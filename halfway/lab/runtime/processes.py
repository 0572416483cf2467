"""Several processes of one run: how they start, agree, and end together.

JAX is imported where there are several, or may be: until then a process hears signals without it.
"""

import contextlib
import functools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import progress
from halfway.lab.runtime import start as beginning

T = TypeVar("T")


class _State:
    """The state of this process.

    Attributes:
      alone: whether it runs code that only the first process runs.
      asked: whether it was asked to end.
      number: the signal that asked.
      immediately: whether it may end at any moment.
      moment: how often it has asked whether the run is to end.
    """

    alone = False
    asked = False
    number: int = signal.SIGTERM
    immediately = True
    moment = 0


_state = _State()


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects the processes of a run through JAX's coordination service.

    Args:
      coordinator: HOST:PORT of process 0; None: all three come from the environment of the cluster
        (TPU pod, Slurm, or Open MPI).
      num_processes: the number of processes of the run.
      process_id: the number of this process, from 0.

    Raises:
      UserError: if some but not all are given, the coordinator is not HOST:PORT, the number of the
        process is too large, the processes do not connect, or they have different numbers of
        devices.
    """
    import jax

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
        with progress.doing("waiting for the other processes to start"):
            jax.distributed.initialize(
                **options,
                initialization_timeout=START_TIMEOUT,
                heartbeat_timeout_seconds=LOST_SECONDS,
            )
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
"""Seconds for which processes wait for each other at the start."""
LOST_SECONDS = 40
"""Seconds without a sign of life after which a process is taken for gone, where no connection broke
before: a machine that is down, or a process that was stopped."""


def is_first() -> bool:
    """Returns whether this process is the first, which writes files and messages."""
    if count() == 1:
        return True
    import jax

    return jax.process_index() == 0


def shared(fn: Callable[[], T]) -> T:
    """Returns on all processes the result of a function that only the first process calls.

    All processes must make these calls in the same order. Where the function raises, all processes
    raise.

    Args:
      fn: the function; its result must be picklable. Arrays come back on the host.

    Raises:
      UserError: on the other processes, with the message of what the first process raised.
    """
    if count() == 1 or _state.alone:
        return fn()
    import jax
    import numpy as np

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
    with progress.doing("waiting for the other processes"):
        received = _broadcast(payload)
    if failure is not None:
        raise failure
    done, value = pickle.loads(received)  # safe, since the first process of this run wrote it
    if not done:
        raise UserError(value)
    return value


def _broadcast(payload: bytes) -> bytes:
    """Returns on every process the bytes of the first, sent in parts of few different lengths."""
    import numpy as np
    from jax.experimental import multihost_utils

    numbers = np.asarray(divmod(len(payload), _PART), np.int32)
    whole, rest = (int(n) for n in multihost_utils.broadcast_one_to_all(numbers))
    parts = []
    for index in range(whole + (rest > 0)):
        size = _PART if index < whole else rest
        # Each length is a program of its own, so lengths are powers of two.
        data = np.zeros(min(_PART, max(64, 1 << (size - 1).bit_length())), np.uint8)
        if is_first():
            data[:size] = np.frombuffer(payload, np.uint8, size, index * _PART)
        received = np.asarray(multihost_utils.broadcast_one_to_all(data)).astype(np.uint8)
        parts.append(received[:size].tobytes())
    return b"".join(parts)


_PART = 1 << 26
"""Number of bytes that are sent at once."""


def collective(method: Callable[..., T]) -> Callable[..., T]:
    """Returns a method that only the first process runs and whose result all processes get.

    Args:
      method: the method, which all processes call.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> T:
        return shared(lambda: method(*args, **kwargs))

    return call


class Terminated(BaseException):
    """The process was asked to end; progress is kept, so that it is no `Exception`."""

    @property
    def number(self) -> int:
        """The signal, SIGTERM or SIGHUP."""
        return _state.number


def listen() -> None:
    """Makes SIGTERM and SIGHUP raise `Terminated`: at once, or after a piece in `in_pieces`.

    SIGINT raises `KeyboardInterrupt`. A signal that the process was started to ignore stays so.
    With several processes, JAX's preemption service listens to SIGTERM, and `is_ending` asks it;
    SIGHUP is handed on as SIGTERM.
    """

    def heard(number: int, frame: Any) -> None:
        del frame
        if count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        _state.asked, _state.number = True, number
        if _state.immediately:
            raise Terminated

    answers: dict[int, Any] = {number: heard for number in CODES}
    answers[signal.SIGINT] = signal.default_int_handler
    if count() > 1:
        del answers[signal.SIGTERM]
    with contextlib.suppress(ValueError):  # not in the main thread
        for number, answer in answers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, answer)


def watch(say: Callable[[int], None]) -> None:
    """Ends this process `GRACE_SECONDS` after a signal of `CODES`, where it does not react itself.

    Python looks at signals between its own steps: a compiled program, or a call of another library
    in it, may take minutes. What is stored is stored whole, so that a process may end at any time;
    one that has reacted has `STORE_SECONDS` more, to store its progress.

    Args:
      say: the number of the signal to a message, called before the end.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        number = 0
        while number not in CODES:
            (number,) = os.read(reading, 1)
        time.sleep(GRACE_SECONDS)
        if _state.asked:
            time.sleep(STORE_SECONDS)
        # Where nobody reads a full pipe, to write to it takes for ever.
        last_words = threading.Thread(target=say, args=(number,), daemon=True)
        last_words.start()
        last_words.join(WORDS_SECONDS)
        os._exit(CODES[number])

    threading.Thread(target=wait, daemon=True).start()


GRACE_SECONDS, STORE_SECONDS, WORDS_SECONDS = 4.0, 60.0, 2.0
"""Seconds in which a process that was asked to end may react, may store its progress, and may write
its last line."""


@contextlib.contextmanager
def in_pieces() -> Iterator[None]:
    """Holds SIGTERM back in a block, which asks `is_ending` after each piece of its work."""
    _state.immediately = False
    try:
        yield
    finally:
        _state.immediately = True


def is_ending() -> bool:
    """Returns whether the run is to end here; all processes call it together and agree."""
    if count() == 1:
        return _state.asked
    from jax.experimental import multihost_utils

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
    """Returns whether an error says that another process of the run is gone.

    Args:
      error: the exception.
    """
    return count() > 1 and any(word in str(error) for word in _LOST)


def leave() -> None:
    """Ends this process at once, since JAX would wait for processes that are gone."""
    LOG.error(
        "error: another process of this run ended: see its output; start the same command again on "
        "all of them (their number may be another), and it goes on from what is kept"
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_LOST)


def abandon(code: int) -> None:
    """Ends one of several processes at once, so that the others need not wait for it.

    It waits a second before, so that each process can write its message. Where there is one process
    only, nothing is done.

    Args:
      code: the exit code.
    """
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(1.0)
        os._exit(code)


def count() -> int:
    """Returns the number of processes without setting up devices, which may have failed."""
    if "jax" not in sys.modules:
        return 1
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


def reacts(code: int) -> None:
    """Notes that this process ends by itself; where it is asked again, it ends at once.

    Args:
      code: its exit code.
    """
    _state.asked = True
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(code))


EXIT_LOST = 3
"""Exit code after the loss of another process."""
CODES: dict[int, int] = {number: 128 + number for number in beginning.SIGNALS}
"""Exit codes after signals, as shells have them: SIGHUP 129, SIGINT 130, SIGTERM 143."""
