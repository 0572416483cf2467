"""The first moments of a command, before anything large is imported: its streams, signals, limits.

Nothing of this package or of another library is imported here: to import them takes seconds, in
which a command can be interrupted, and which a limit on its memory may not leave room for.
"""

import contextlib
import ctypes
import importlib
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name)
)
"""What asks a command to end: a terminal that closes, Ctrl-C, and a machine that stops it."""
BROKEN_PIPE = 141
"""Exit code where nobody reads what is printed, that of programs which SIGPIPE ends."""
MISTAKE = 2
"""Exit code of what the user can mend, with one line that says what."""
LEAST_BYTES = {"RLIMIT_AS": 2_800_000_000, "RLIMIT_DATA": 1_400_000_000}
"""Limits that a command needs, besides those for each core. On 2 cores it runs at 3 GB of addresses
and 1.6 GB of data; at 2.3 GB and at 1.2 GB XLA crashes, or waits for ever and hears no signal."""
LEAST_BYTES_OF_CORE = 100_000_000
"""What the threads of one core need: stacks, and buffers of linear algebra."""
ENDS_WITH = "HALFWAY_ENDS_WITH"
"""Variable of the environment: the process with which this one ends, if that is its parent."""
_FLAGS = {"RLIMIT_AS": "ulimit -v", "RLIMIT_DATA": "ulimit -d"}


class OutputLost(BaseException):
    """What is printed cannot be written; no `OSError`, which would be taken for one of a file.

    Attributes:
      reason: the error of the system.
    """

    def __init__(self, reason: OSError):
        super().__init__(str(reason))
        self.reason = reason

    @property
    def code(self) -> int:
        """The exit code of a command that ends by it."""
        return BROKEN_PIPE if isinstance(self.reason, BrokenPipeError) else MISTAKE


class _Stream(io.FileIO):
    """A stream of the process: what cannot be written is lost, and said where it is a result.

    Args:
      number: 1 for what is printed, 2 for messages.
    """

    def __init__(self, number: int):
        super().__init__(number, "w", closefd=False)
        self._number, self._is_lost = number, False

    def write(self, data: Any) -> int:
        """Writes bytes and returns their number, also where nobody can read them.

        Args:
          data: the bytes.

        Raises:
          OutputLost: at the first failure of standard output. After it nothing is written, so that
            the end of the process does not fail too.
        """
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:  # the terminal is busy
                select.select([], [self], [])
        except OSError as error:
            if self._number == 1:
                self._is_lost = True
                raise OutputLost(error) from None
            return memoryview(data).nbytes
        return written


def begin() -> None:
    """Prepares the streams, the signals and the limits of a process that becomes a command."""
    open_streams()
    if os.environ.pop(ENDS_WITH, "") == str(os.getppid()):
        _end_with_parent()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _end)
    _check_limits()


def _end_with_parent() -> None:
    """Has this process end when its parent is killed, so that it does not hold a run for it.

    What is stored is stored whole, so that it may end at any time. Only Linux knows of it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def open_streams() -> None:
    """Opens what the parent closed, lest a file of the run gets its number, and what XLA writes."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        try:
            if before is not None and before.fileno() != number:
                continue  # somebody else's
        except (OSError, AttributeError):
            continue
        buffered = io.BufferedWriter(_Stream(number))
        encoding = "utf-8" if before is None else before.encoding
        by_line = number == 2 or (before is not None and before.line_buffering)
        # A terminal that lacks ρ or ● shows "?".
        stream = io.TextIOWrapper(buffered, encoding, errors="replace", line_buffering=by_line)
        setattr(sys, name, stream)


def _end(number: int, frame: Any) -> NoReturn:
    """Ends the process at once: it has begun nothing, and imports may swallow an exception."""
    del frame
    how = "interrupted" if number == signal.SIGINT else "terminated"
    with contextlib.suppress(OSError):
        os.write(2, f"{how} before it began\n".encode())
    os._exit(128 + number)


def _check_limits() -> None:
    """Ends the process where a limit leaves too little address space for it to run."""
    try:
        import resource
    except ImportError:  # not on every system
        return
    for name, least in LEAST_BYTES.items():
        limit, _ = resource.getrlimit(getattr(resource, name))
        needed = least + LEAST_BYTES_OF_CORE * (os.cpu_count() or 1)
        if limit != resource.RLIM_INFINITY and limit < needed:
            print(
                f"error: `{_FLAGS[name]}` leaves {limit / 1e9:.2f} GB of memory, and a command "
                f"needs {needed / 1e9:.2f} GB on this machine: raise the limit, or take it away",
                file=sys.stderr,
            )
            sys.exit(MISTAKE)


def call(name: str) -> None:
    """Runs a command with the arguments of the process.

    Args:
      name: a module of `halfway.lab.flags`.
    """
    begin()
    finish(lambda: importlib.import_module(f"halfway.lab.flags.{name}").run())


def finish(main: Callable[[], None]) -> None:
    """Calls a function that prints, and ends the process where that could not be written.

    Args:
      main: the function.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except OutputLost as lost:
        if lost.code != BROKEN_PIPE:
            print(
                f"error: what is printed cannot be written ({lost.reason.strerror}): print it to "
                "another place; what is in files is whole",
                file=sys.stderr,
            )
        sys.exit(lost.code)
