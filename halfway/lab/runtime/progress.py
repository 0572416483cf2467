"""The progress of a run: a bar on a terminal, elsewhere log lines."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from tqdm import tqdm

from halfway.lab.config.user import LOG

LINE_SECONDS = 10.0
"""The fewest seconds between two log lines."""
BEAT_SECONDS = 60.0
"""The most seconds between two log lines: a stage that has no steps is seen to be alive."""
COMPILING = "compiling"


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
