"""What is kept of a training that is under way, so that nothing is lost but the last minute."""

import shutil
import time
from collections.abc import Callable
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

EVERY = 60.0
"""Seconds between two checkpoints, unless a flag says otherwise."""
KEPT = 2
"""Checkpoints of one training that are kept: the last, and one before in case that is damaged."""
_FACTS = "checkpoint.json"
VERSION = f"{halfway.__version__} with jax {jax.__version__} and optax {optax.__version__}"
"""Of what shapes a checkpoint."""


class Keeper:
    """Keeps the progress of one training in a folder and finds it again.

    Every process of a run calls it; the first one writes.

    Args:
      folder: of all trainings of a run.
      condition: of the population.
      every: seconds from one checkpoint to the next; 0: after every piece.
      clock: seconds.
      then: called with each piece of progress too.
    """

    def __init__(
        self,
        folder: Path,
        condition: Condition,
        *,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
        then: Callable[[Progress], None] = lambda progress: None,
    ):
        self._folder = folder / condition.key
        self._condition, self._every, self._clock, self._then = condition, every, clock, then
        self._last = clock()
        self._rejected: dict[Path, bool] = {}  # whether it is whole, but of something else

    def __call__(self, progress: Progress) -> None:
        """Keeps progress where it is time to, or the run is asked to end.

        Raises:
          processes.Terminated: in the latter case, when it is kept.
          OSError: if the folder cannot be written; older checkpoints stay.
        """
        self._then(progress)
        ending = processes.is_ending()
        due = processes.shared(lambda: self._clock() - self._last >= self._every)
        if ending or due:
            tree = progress.to_tree()
            processes.shared(lambda: self._write(tree))
            self._last = self._clock()
        if ending:
            raise processes.Terminated

    def _write(self, tree: dict[str, Any]) -> None:
        facts = {"condition": self._condition.to_json(), "version": VERSION}
        path = self._folder / f"{int(tree['num_steps']):09d}"
        if self._rejected.get(path, False):
            return  # another version's is not overwritten: the next is of another step
        self._rejected.pop(path, None)
        storage.save_tree(path, tree, facts, name=_FACTS)
        # What could not be used takes no place, and stays until training is over.
        usable = [other for other in self._stored() if other not in self._rejected]
        for old in [other for other in usable if other.name <= path.name][KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _stored(self) -> list[Path]:
        """Returns the folders of checkpoints, the newest first."""
        found = self._folder.glob("*") if self._folder.is_dir() else ()
        return sorted((path for path in found if path.name.isdecimal()), reverse=True)

    @property
    def exists(self) -> bool:
        """Whether anything is kept; on the process that writes."""
        return bool(self._stored())

    def find(self) -> dict[str, Any] | None:
        """Returns the newest progress that can be read, `Progress.to_tree`; None without any."""
        return processes.shared(self._find)

    def _find(self) -> dict[str, Any] | None:
        for path in self._stored():
            whole = False
            try:
                tree, facts = storage.load_tree(path, name=_FACTS)
                whole = True
                if facts["version"] != VERSION:
                    reason = f"it is of version {facts['version']}"
                elif Condition(**facts["condition"]) != self._condition:
                    reason = "it is of another condition"
                else:
                    return tree
            except Exception as error:  # Orbax's are of every kind
                reason = type(error).__name__
            self._rejected[path] = whole
            LOG.warning(
                "%s cannot be used (%s): an older one is, or training begins anew", path, reason
            )
        return None

    def clear(self) -> None:
        """Removes what is kept, once the population itself is stored."""
        processes.shared(lambda: shutil.rmtree(self._folder, ignore_errors=True))


def train(condition: Condition, pool: Split, keeper: Keeper) -> Population:
    """Returns the population of a condition, trained from where the keeper has it.

    Args:
      condition: of the population.
      pool: the examples that halves are drawn from.
      keeper: of this condition.

    Raises:
      processes.Terminated: if the run is asked to end; its progress is kept.
    """
    stored = keeper.find()
    if stored is not None and processes.is_first():
        LOG.info("goes on from step %d of %d", stored["num_steps"], condition.probe_steps[-1])
    with processes.in_pieces():
        return populations.train(condition, pool, resume=stored, on_piece=keeper)
