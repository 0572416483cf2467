"""The progress of a command: a bar on a terminal, elsewhere log lines, and never a long silence."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm

from halfway.lab.config.user import LOG

LINE_SECONDS = 10.0
"""The fewest seconds between two log lines."""
BEAT_SECONDS = 60.0
"""The most seconds between two log lines: a stage that has no steps is seen to be alive."""
COMPILING = "compiling"
_COMPILE_BEGINS = "/jax/compilation_cache/compile_requests_use_cache"
_COMPILE_ENDS = "/jax/core/compile/backend_compile_duration"
"""What JAX tells to whoever listens, at the beginning and the end of compiling a program."""


def duration(seconds: float) -> str:
    """Returns a time in words, by its two largest units.

    Args:
      seconds: the time in seconds, 0 or more.

    Examples:
      >>> progress.duration(90.4), progress.duration(7500)
      ('1 min 30 s', '2 h 5 min')
    """
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        parts.append((number, unit))
    first = next((index for index, (number, _) in enumerate(parts) if number), 0)
    shown = [f"{number} {unit}" for number, unit in parts[first : first + 2] if number]
    return " ".join(shown) or "0 s"


class _Doing(NamedTuple):
    """What a command does: words, or a function that returns them, and since when."""

    words: str | Callable[[], str]
    begun: float


class Watchdog(logging.Handler):
    """Writes what a command does where no line was written for nearly `BEAT_SECONDS`.

    Args:
      clock: a function that returns the time in seconds.
    """

    LOOK_SECONDS = 1.0
    """Seconds between two looks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._last = self._begun = clock()
        self._doing: list[_Doing] = []
        self._is_compiling = False
        self._speakers = 0  # progress bars that write lines of their own

    def emit(self, record: logging.LogRecord) -> None:
        """Notes that a line is written.

        Args:
          record: the line.
        """
        del record
        self._last = self._clock()

    def start(self) -> None:
        """Looks every `LOOK_SECONDS`, in a thread, until the process ends; silence begins here."""
        import jax  # which a command has imported by now, where it needs it

        self._last = self._begun = self._clock()
        LOG.addHandler(self)
        jax.monitoring.register_event_listener(lambda event, **facts: self._hear(event))
        jax.monitoring.register_event_duration_secs_listener(self._hear)

        def look() -> None:
            while True:
                time.sleep(self.LOOK_SECONDS)
                self.look()

        threading.Thread(target=look, daemon=True).start()

    def _hear(self, event: str, duration_secs: float = 0.0, **facts: str | int) -> None:
        del duration_secs, facts
        if event in (_COMPILE_BEGINS, _COMPILE_ENDS):
            self._is_compiling = event == _COMPILE_BEGINS

    def look(self) -> None:
        """Writes a line if the silence would last `BEAT_SECONDS` by the second look from now."""
        silence = self._clock() - self._last
        if self._speakers or silence < BEAT_SECONDS - 2 * self.LOOK_SECONDS:
            return
        words, begun = self._doing[-1] if self._doing else _Doing("at work", self._begun)
        parts = [words if isinstance(words, str) else words()]
        parts += [COMPILING] if self._is_compiling else []
        LOG.info("%s, %s", ", ".join(parts), duration(self._clock() - begun))

    @contextlib.contextmanager
    def doing(self, words: str | Callable[[], str], *, aloud: bool = False) -> Iterator[None]:
        """Says in the lines of a block what is done in it.

        Args:
          words: what is done, or a function that returns it.
          aloud: whether it is said at the beginning too.
        """
        entry = _Doing(words, self._clock())
        self._doing.append(entry)
        if aloud:
            LOG.info("%s", words if isinstance(words, str) else words())
        try:
            yield
        finally:
            self._doing.remove(entry)

    @contextlib.contextmanager
    def silenced(self, by: bool) -> Iterator[None]:
        """Leaves the lines of a block to somebody else.

        Args:
          by: whether there is somebody else.
        """
        self._speakers += by
        try:
            yield
        finally:
            self._speakers -= by


WATCHDOG = Watchdog()
"""The watchdog of this process, which `launch.run` starts."""
doing = WATCHDOG.doing


class ProgressBar:
    """Shows the stages of a run, on the first process alone.

    On a terminal a bar names the stage and the time left. Elsewhere the first line is written at
    once, and later lines at least `LINE_SECONDS` apart; of the lines in between, the newest is
    written as soon as that time is over. Where nothing happens, the last line comes again every
    `BEAT_SECONDS`, with the time that has passed.

    Args:
      total: the number of stages; 0 shows nothing.
      groups: the group of each stage in its order, from which the time left is told once a stage is
        done: the mean of its group so far, or of all.
      clock: a function that returns the time in seconds.

    Examples:
      >>> seconds = {}
      >>> with progress.ProgressBar(1) as shown, shown.stage("train mlp", "training", seconds):
      ...     shown.within(100, 200)
      >>> list(seconds)
      ['training']
    """

    def __init__(
        self,
        total: int,
        *,
        groups: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._groups, self._clock = total, tuple(groups), clock
        self._taken: dict[str, list[float]] = {}
        import jax

        shown = total > 0 and jax.process_index() == 0
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="step", leave=False, disable=not (shown and terminal))
        self._logs = shown and not terminal
        self._number, self._name, self._share = 0, "", ""
        self._last: float | None = None
        self._timer: threading.Timer | None = None
        self._is_held = False  # whether the timer is that of a line which was held back
        self._lock = threading.RLock()

    def __enter__(self) -> "ProgressBar":
        self._begun = self._clock()
        self._held = contextlib.ExitStack()
        self._held.enter_context(WATCHDOG.silenced(self._logs))
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._bar.close()
        self._held.close()
        with self._lock:
            logs, self._logs = self._logs, False
            self._forget_timer()
        if logs and kind is None:
            taken = duration(self._clock() - self._begun)
            LOG.info("%d/%d done in %s", self._number, self._total, taken)

    @contextlib.contextmanager
    def stage(
        self, name: str, group: str, seconds: dict[str, float], *, compiles: bool = False
    ) -> Iterator[None]:
        """Counts one stage and adds its time to a group.

        Args:
          name: the name that is shown.
          group: the group of the stage.
          seconds: the seconds of each group, which are changed.
          compiles: whether its programs are new, which is said until its first step is done.
        """
        started = self._clock()
        share = COMPILING if compiles else ""
        with self._lock:
            self._number, self._name, self._share = self._number + 1, name, share
        self._bar.set_postfix_str(share, refresh=False)
        self._bar.set_description(name)
        self._log()
        try:
            yield
        finally:
            taken = self._clock() - started
            seconds[group] = seconds.get(group, 0.0) + taken
            with self._lock:
                self._taken.setdefault(group, []).append(taken)
            self._bar.update()

    def within(self, done: int, of: int, loss: float | None = None) -> None:
        """Shows the progress within a stage.

        Args:
          done: the number of steps that were taken.
          of: the number of all steps.
          loss: of training, where it was looked at.
        """
        known = "" if loss is None else f", loss {loss:.3g}"
        with self._lock:
            self._share = f"step {done} of {of}{known}"
        self._bar.set_postfix_str(self._share)
        self._log()

    def _log(self) -> None:
        """Writes a line if it is time for one, else sets a timer that writes it."""
        with self._lock:
            if not self._logs:
                return
            wait = 0.0 if self._last is None else self._last + LINE_SECONDS - self._clock()
            if wait <= 0:
                self._write()
            elif not self._is_held:
                self._forget_timer()
                self._wait(wait)
                self._is_held = True

    def _wait(self, seconds: float) -> None:
        """Sets the timer that writes the next line."""
        self._timer = threading.Timer(seconds, self._catch_up)
        self._timer.daemon = True
        self._timer.start()

    def _catch_up(self) -> None:
        """Writes the line that was held back, unless a line was written in the meantime."""
        with self._lock:
            if self._logs and self._timer is threading.current_thread():
                self._write()

    def _write(self) -> None:
        self._forget_timer()
        self._last = self._clock()
        parts = (self._name, self._share, duration(self._last - self._begun), self._left())
        line = ", ".join(part for part in parts if part)
        LOG.info("%d/%d %s", self._number, self._total, line)
        self._wait(BEAT_SECONDS)

    def _left(self) -> str:
        """Returns the time left in words, nothing where no stage is done yet."""
        done = [taken for each in self._taken.values() for taken in each]
        to_come = self._groups[len(done) :]
        if not done or not to_come:
            return ""
        means = {group: sum(taken) / len(taken) for group, taken in self._taken.items()}
        mean = sum(done) / len(done)
        left = sum(means.get(group, mean) for group in to_come)
        left -= self._last - self._begun - sum(done) if self._last is not None else 0.0
        return f"about {duration(max(left, 0.0))} left"

    def _forget_timer(self) -> None:
        self._is_held = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
