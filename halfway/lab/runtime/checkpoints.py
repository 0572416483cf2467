"""Checkpoints of a training that is under way, so that at most the last minute is lost."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax

import halfway
from halfway import populations, storage
from halfway.data import Split
from halfway.lab.config.user import LOG
from halfway.lab.runtime import processes
from halfway.populations import Condition, Population, Progress

CHECKPOINT_SECONDS = 60.0
"""Seconds between two checkpoints, unless a flag says otherwise."""
KEPT = 2
"""Checkpoints of a training that are kept: the last, and another in case the last is damaged."""
_FACTS = "checkpoint.json"
SOFTWARE_VERSIONS = (
    f"{halfway.__version__} with jax {jax.__version__} and optax {optax.__version__}"
)
"""The versions that determine the content of a checkpoint."""


class Keeper:
    """Keeps the progress of one training in a folder and finds it again.

    Every process of a run calls it; the first process writes.

    Args:
      folder: the folder of the checkpoints of all trainings of a run.
      condition: the condition of the population.
      origin: plain data that says what it is made from besides; see `storage.save_tree`.
      seconds_between: seconds from one checkpoint to the next; 0: a checkpoint after every piece.
      clock: a function that returns the time in seconds.
      then: a function that is called with each piece of progress too.
    """

    def __init__(
        self,
        folder: Path,
        condition: Condition,
        *,
        origin: Mapping[str, Any] | None = None,
        seconds_between: float = CHECKPOINT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        then: Callable[[Progress], None] = lambda progress: None,
    ):
        self._folder = folder / condition.id
        self._condition, self._origin = condition, origin
        self._seconds_between, self._clock, self._then = seconds_between, clock, then
        self._last = clock()
        # Checkpoints that cannot be used, and whether they are whole but of something else.
        self._rejected: dict[Path, bool] = {}

    def __call__(self, progress: Progress) -> None:
        """Keeps progress where it is time for a checkpoint, or the run is asked to end.

        Args:
          progress: how far training is.

        Raises:
          processes.Terminated: if the run is asked to end; the progress is kept before.
          OSError: if the folder cannot be written; older checkpoints stay.
        """
        self._then(progress)
        ending = processes.is_ending()
        due = processes.shared(lambda: self._clock() - self._last >= self._seconds_between)
        if ending or due:
            tree = progress.to_tree()
            processes.shared(lambda: self._write(tree))
            self._last = self._clock()
        if ending:
            raise processes.Terminated

    def _write(self, tree: dict[str, Any]) -> None:
        facts = {"condition": self._condition.to_json(), "version": SOFTWARE_VERSIONS}
        path = self._folder / f"{int(tree['num_steps']):09d}"
        if self._rejected.get(path, False):
            return  # a checkpoint of another version is not overwritten
        self._rejected.pop(path, None)
        storage.save_tree(path, tree, facts, name=_FACTS, origin=self._origin)
        # Checkpoints that cannot be used do not count, and stay until training is over.
        usable = [other for other in self._stored() if other not in self._rejected]
        for old in [other for other in usable if other.name <= path.name][KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _stored(self) -> list[Path]:
        """Returns the folders of checkpoints, the newest first."""
        paths = self._folder.glob("*") if self._folder.is_dir() else ()
        return sorted((path for path in paths if path.name.isdecimal()), reverse=True)

    @property
    def exists(self) -> bool:
        """Whether a checkpoint is stored; to be read on the process that writes."""
        return bool(self._stored())

    def find(self) -> dict[str, Any] | None:
        """Returns the newest progress that can be read as `Progress.to_tree`; None without any."""
        return processes.shared(self._find)

    def _find(self) -> dict[str, Any] | None:
        for path in self._stored():
            whole = False
            try:
                tree, facts = storage.load_tree(path, name=_FACTS, origin=self._origin)
                whole = True
                if facts["version"] != SOFTWARE_VERSIONS:
                    reason = f"it is of version {facts['version']}"
                elif Condition(**facts["condition"]) != self._condition:
                    reason = "it is of another condition"
                else:
                    return tree
            except Exception as error:  # Orbax raises exceptions of every kind
                reason = type(error).__name__
            self._rejected[path] = whole
            LOG.warning(
                "%s cannot be used (%s): an older one is, or training begins anew", path, reason
            )
        return None

    def clear(self) -> None:
        """Removes all checkpoints, after the population itself is stored."""
        processes.shared(lambda: shutil.rmtree(self._folder, ignore_errors=True))


def train(condition: Condition, pool: Split, keeper: Keeper) -> Population:
    """Returns the population of a condition, trained from its newest checkpoint on.

    Args:
      condition: the condition of the population.
      pool: the examples that halves are drawn from.
      keeper: the keeper of the checkpoints of this condition.

    Raises:
      processes.Terminated: if the run is asked to end; its progress is kept.
    """
    stored = keeper.find()
    if stored is not None and processes.is_first():
        LOG.info("goes on from step %d of %d", stored["num_steps"], condition.probe_steps[-1])
    with processes.in_pieces():
        return populations.train(condition, pool, resume=stored, on_piece=keeper)
