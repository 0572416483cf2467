"""The working directory of a run: what identifies it, what is stored, resumed and merged.

Of several processes all call every method together; the first reads and writes.


config.json            what identifies the run, and num_devices
run.json               hypotheses run so far, run time by stage, environment
populations/KEY/       one trained population, an Orbax checkpoint with its condition
checkpoints/KEY/STEP/  the last of a training that is under way, see `checkpoints`
measurements/REQUEST   .parquet, and .npz with outcomes for each example
records.parquet        all measurements below each other; conditions.parquet beside it
verdicts.json  figures/  report.html
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

import halfway
from halfway import populations, storage
from halfway.data import Dataset, Split
from halfway.lab.config import settings
from halfway.lab.config.config_file import ConfigFile
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import checkpoints, processes
from halfway.lab.study import conditions, tables
from halfway.lab.study.protocol import COLUMNS, Measured, Records, Request
from halfway.populations import Condition, Population

_HAS_ARRAYS = "has_arrays"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What two runs must share to be the same run."""

    name: str
    config: Mapping[str, Any]
    data_checksum: str
    version: str = halfway.__version__

    def to_json(self) -> dict[str, Any]:
        """Returns plain data as a JSON file gives it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def identity(file: ConfigFile, dataset: Dataset) -> Identity:
    """Returns what identifies a run.

    Args:
      file: its settings.
      dataset: that it reads.
    """
    return Identity(file.name, file.config.to_dict(), dataset.checksum)


def default_folder(file: ConfigFile) -> str:
    """Returns runs/CONFIG[-VARIANT][-a hash of the fields that flags changed].

    Args:
      file: settings and what flags changed of them.
    """
    digest = "-" + storage.json_digest(file.overrides)[:6] if file.overrides else ""
    return f"runs/{file.name}{digest}"


def _unwritable(path: Path, error: OSError) -> UserError:
    advice = "choose another"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space, and the same command goes on from what is there"
    return UserError(f"--workdir={path} cannot be written ({error.strerror}): {advice}")


def _writing(method: Callable[..., None]) -> Callable[..., None]:
    """Returns a method of a run whose failure to write is a user's error."""

    @functools.wraps(method)
    def call(self: "Run", *args: Any, **kwargs: Any) -> None:
        with self.writing():
            method(self, *args, **kwargs)

    return call


class Run:
    """A run on disk. Every file in it is written whole."""

    def __init__(self, path: Path, stored: Mapping[str, Any]):
        self.path = path
        self.config = settings.parse(stored["config"])
        self.name = stored["name"]
        self.data_checksum = stored["data_checksum"]
        self.num_devices = stored["num_devices"]
        self.resumed = True
        """Whether the run was begun before this process opened it."""
        self.checkpoint_every = checkpoints.EVERY
        """Seconds between two checkpoints of a training."""

    @classmethod
    @processes.collective
    def create(cls, path: Path, identity: Identity, num_devices: int) -> "Run":
        """Returns the run in a folder, made if it is missing.

        Raises:
          UserError: if the folder cannot be written, holds something else, or holds another run.
        """
        marker = path / "config.json"
        resumed = marker.is_file()
        if path.exists() and not path.is_dir():
            raise UserError(f"--workdir={path} is not a folder: choose another")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not resumed:
                # A run that was killed before this file appeared leaves only hidden temporaries.
                if any(not entry.name.startswith(".") for entry in path.iterdir()):
                    raise UserError(
                        f"--workdir={path} is not empty and holds no run: choose another folder"
                    )
                storage.write_json(marker, identity.to_json() | {"num_devices": num_devices})
        except OSError as error:
            raise _unwritable(path, error) from error
        run = cls.open(path)
        run.resumed = resumed
        run._check(identity)
        if run.num_devices != num_devices:
            LOG.warning(
                "this run was begun on %d devices and goes on on %d: last bits may differ",
                run.num_devices,
                num_devices,
            )
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Returns the run that a folder holds.

        Raises:
          UserError: if there is none, or its config.json cannot be read.
        """
        marker = path / "config.json"
        if not marker.is_file():
            raise UserError(f"--workdir={path} holds no run (no config.json)")
        try:
            return cls(path, storage.read_json(marker))
        except (*storage.UNREADABLE, AttributeError, UserError) as error:
            raise UserError(f"{marker} cannot be read ({error}): choose another folder") from error

    def _check(self, identity: Identity) -> None:
        stored = storage.read_json(self.path / "config.json")
        for name, value in identity.to_json().items():
            if stored.get(name) != value:
                where, mine, theirs = _difference(name, stored.get(name), value)
                raise UserError(
                    f"--workdir={self.path} holds another run: {where} is {mine!r} there and "
                    f"{theirs!r} here; choose another folder"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process, or for all processes of it.

        Raises:
          UserError: if another one does, or the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            processes.shared(lambda: self._lock(held))
            yield

    def _lock(self, held: contextlib.ExitStack) -> None:
        try:
            handle = held.enter_context((self.path / ".lock").open("w"))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--workdir={self.path} is in use by another process: wait for it, or choose "
                "another folder"
            ) from error
        storage.sweep(self.path)
        # Of populations that were stored when a process was killed before it removed these.
        for kept in (self.path / "checkpoints").glob("*"):
            if (self.path / "populations" / kept.name / "condition.json").is_file():
                shutil.rmtree(kept, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Makes a user's error of what goes wrong while the block writes.

        Raises:
          UserError: for every `OSError`.
        """
        try:
            yield
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _population_path(self, condition: Condition) -> Path:
        return self.path / "populations" / condition.key

    @processes.collective
    def has_population(self, condition: Condition) -> bool:
        """Returns whether a population is stored; whether it can be read is seen on loading."""
        return (self._population_path(condition) / "condition.json").is_file()

    @processes.collective
    def conditions(self) -> dict[str, Condition]:
        """Returns the conditions of all stored populations by their keys.

        Raises:
          UserError: if a file of them cannot be read.
        """
        found = {}
        for path in sorted(self.path.glob("populations/*/condition.json")):
            try:
                one = Condition(**storage.read_json(path))
            except (*storage.UNREADABLE, TypeError) as error:
                raise UserError(f"{path} cannot be read ({error}): delete its folder") from error
            found[one.key] = one
        return found

    @processes.collective
    @_writing
    def save_population(self, population: Population) -> None:
        """Stores a population."""
        populations.save(self._population_path(population.condition), population)

    def train(
        self,
        condition: Condition,
        pool: Split,
        within: Callable[[int, int], None] = lambda done, of: None,
    ) -> Population:
        """Returns a population, trained from where a checkpoint has it, and stores it.

        Args:
          condition: of the population.
          pool: the examples that halves are drawn from.
          within: called after each piece of training with the steps done and all steps.

        Raises:
          processes.Terminated: if the run is asked to end; how far training is, is kept.
          UserError: if the folder cannot be written.
        """
        self._forget(condition)
        last = condition.probe_steps[-1]
        keeper = checkpoints.Keeper(
            self.path / "checkpoints",
            condition,
            every=self.checkpoint_every,
            then=lambda progress: within(progress.num_steps, last),
        )
        with self.writing():
            population = checkpoints.train(condition, pool, keeper)
        self.save_population(population)
        keeper.clear()
        # As a stored one comes back: what measures the one was compiled for the other.
        return jax.tree.map(jnp.asarray, jax.device_get(population))

    @processes.collective
    @_writing
    def _forget(self, condition: Condition) -> None:
        """Marks a population that cannot be read as not there, so that its checkpoints stay."""
        (self._population_path(condition) / "condition.json").unlink(missing_ok=True)

    def load_population(self, condition: Condition) -> Population | None:
        """Returns a stored population; None if there is none that can be read."""
        found = self._load_population(condition)
        return None if found is None else jax.tree.map(jnp.asarray, found)

    @processes.collective
    def _load_population(self, condition: Condition) -> Population | None:
        path = self._population_path(condition)
        if not (path / "condition.json").is_file():
            return None
        try:
            population = populations.load(path)
            if population.condition == condition:
                return population
            reason = "it is of another condition"
        except Exception as error:  # Orbax's are of every kind
            reason = type(error).__name__
        LOG.warning("%s cannot be read (%s): it is trained again", path, reason)
        return None

    def _measurement_path(self, request: Request) -> Path:
        return self.path / "measurements" / f"{request.key}.parquet"

    @processes.collective
    def load_measurement(self, request: Request) -> Measured | None:
        """Returns a stored measurement; None if there is none that can be read."""
        path = self._measurement_path(request)
        if not path.is_file():
            return None
        try:
            return _read_measurement(path)
        except storage.UNREADABLE as error:
            LOG.warning("%s cannot be read (%s): it is measured again", path, type(error).__name__)
            return None

    @processes.collective
    def has_measurement(self, request: Request) -> bool:
        """Returns whether a measurement is stored that can be read."""
        return self.load_measurement(request) is not None

    @processes.collective
    @_writing
    def save_measurement(self, request: Request, measured: Measured) -> None:
        """Stores a measurement: the arrays first, then the table, which says that they exist."""
        path = self._measurement_path(request)
        path.parent.mkdir(exist_ok=True)
        if measured.arrays:
            storage.write_arrays(path.with_suffix(".npz"), measured.arrays)
        table = measured.table.copy(deep=False)
        table.attrs = {_HAS_ARRAYS: bool(measured.arrays)}
        storage.write_table(path, table)

    @processes.collective
    @_writing
    def merge(self, requests: Sequence[Request]) -> None:
        """Writes records.parquet and conditions.parquet from stored measurements.

        Args:
          requests: of all hypotheses of the run; whatever else is in the folder is left out.
        """
        ordered = sorted(requests, key=lambda request: request.key)
        parts = [_read_measurement(self._measurement_path(request)).table for request in ordered]
        storage.write_table(self.path / "records.parquet", tables.concat(parts))
        known = {one for request in requests for one in request.conditions}
        rows = sorted(known, key=lambda one: conditions.order(self.config, one))
        storage.write_table(self.path / "conditions.parquet", tables.conditions_table(rows))

    @processes.collective
    def records(self, requests: Sequence[Request]) -> Records:
        """Returns all records of the run.

        Args:
          requests: of all hypotheses of the run.

        Raises:
          UserError: if there are none, or they cannot be read.
        """
        path = self.path / "records.parquet"
        if not path.is_file():
            raise UserError(f"{path} does not exist: run `halfway reproduce` first")
        try:
            table = tables.normalize(pd.read_parquet(path))
            conditions_table = pd.read_parquet(self.path / "conditions.parquet")
            arrays = {}
            for request in requests:
                archive = self._measurement_path(request).with_suffix(".npz")
                if archive.is_file():
                    name, key = request.measurement.name, request.conditions[0].key
                    arrays[name, key] = storage.read_arrays(archive)
        except storage.UNREADABLE as error:
            raise UserError(
                f"the records of {self.path} cannot be read ({error}): run reproduce again"
            ) from error
        return Records(table, conditions_table, self.config, arrays)

    @processes.collective
    def notes(self) -> dict[str, Any]:
        """Returns what run.json holds: hypotheses, seconds by stage, environment.

        Raises:
          UserError: if it cannot be read.
        """
        path = self.path / "run.json"
        empty = {"hypotheses": [], "seconds": {}, "environment": {}}
        try:
            return empty | storage.read_json(path) if path.is_file() else empty
        except storage.UNREADABLE as error:
            raise UserError(
                f"{path} cannot be read ({error}): delete it and run reproduce again"
            ) from error

    def describe(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Notes what the run stands on, where nothing is noted yet.

        Args:
          describe: see `environment.describe`; called on every process.
        """
        if not self.notes()["environment"]:
            self.note(environment=describe())

    @processes.collective
    @_writing
    def note(self, **changes: Any) -> None:
        """Writes changed fields of run.json."""
        storage.write_json(self.path / "run.json", self.notes() | changes)


def _read_measurement(path: Path) -> Measured:
    table = pd.read_parquet(path)
    has_arrays = table.attrs.pop(_HAS_ARRAYS, False)
    if not {*COLUMNS} <= {*table.columns}:
        raise ValueError(f"{path} lacks columns")
    return Measured(table, storage.read_arrays(path.with_suffix(".npz")) if has_arrays else {})


def _difference(name: str, mine: Any, theirs: Any) -> tuple[str, Any, Any]:
    """Returns the first field in which two identities differ, with both values."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                return _difference(f"{name}.{key}", mine.get(key), theirs.get(key))
    return name, mine, theirs
