"""How far a run is: a bar on a terminal, elsewhere a log line now and then."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from tqdm import tqdm

from halfway.lab.config.user import LOG

EVERY = 10.0
"""Seconds between two log lines, at least."""


def duration(seconds: float) -> str:
    """Returns a time in words, its two largest units.

    Args:
      seconds: 0 or more.

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


class Progress:
    """Stages of which one runs after another; nothing is shown but on the first process.

    On a terminal a bar names the stage and the time left. Elsewhere the first line comes at once,
    later ones `EVERY` seconds apart or more: what is held back until then is the newest, and comes
    as soon as it may.

    Args:
      total: number of stages; 0 shows nothing.
      clock: to seconds.

    Examples:
      >>> seconds = {}
      >>> with progress.Progress(1) as shown, shown.stage("train mlp", "training", seconds):
      ...     shown.within(100, 200)
      >>> list(seconds)
      ['training']
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic):
        self._total, self._clock = total, clock
        shown = total > 0 and jax.process_index() == 0
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="step", leave=False, disable=not (shown and terminal))
        self._logs = shown and not terminal
        self._number, self._name, self._share = 0, "", ""
        self._last: float | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> "Progress":
        self._begun = self._clock()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._bar.close()
        with self._lock:
            logs, self._logs = self._logs, False
            self._forget_timer()
        if logs and kind is None:
            taken = duration(self._clock() - self._begun)
            LOG.info("%d/%d done in %s", self._number, self._total, taken)

    @contextlib.contextmanager
    def stage(self, name: str, group: str, seconds: dict[str, float]) -> Iterator[None]:
        """Counts one stage and adds its time to a group.

        Args:
          name: that is shown.
          group: a key of `seconds`.
          seconds: by group, changed.
        """
        started = self._clock()
        with self._lock:
            self._number, self._name, self._share = self._number + 1, name, ""
        self._bar.set_postfix_str("", refresh=False)
        self._bar.set_description(name)
        self._log()
        try:
            yield
        finally:
            seconds[group] = seconds.get(group, 0.0) + self._clock() - started
            self._bar.update()

    def within(self, done: int, of: int) -> None:
        """Shows how far the stage itself is.

        Args:
          done: steps that were taken.
          of: all steps.
        """
        with self._lock:
            self._share = f"step {done} of {of}"
        self._bar.set_postfix_str(self._share)
        self._log()

    def _log(self) -> None:
        """Writes a line where it is time for one, else sees to it that one comes then."""
        with self._lock:
            if not self._logs:
                return
            wait = 0.0 if self._last is None else self._last + EVERY - self._clock()
            if wait <= 0:
                self._write()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self._catch_up)
                self._timer.daemon = True
                self._timer.start()

    def _catch_up(self) -> None:
        """Writes what was held back, unless a line has come in the meantime."""
        with self._lock:
            if self._logs and self._timer is threading.current_thread():
                self._write()

    def _write(self) -> None:
        self._forget_timer()
        self._last = self._clock()
        parts = (self._name, self._share, duration(self._last - self._begun))
        line = ", ".join(part for part in parts if part)
        LOG.info("%d/%d %s", self._number, self._total, line)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
