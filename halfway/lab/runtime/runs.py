"""The working directory of a run: its identity, and all that it stores.

Where a run has several processes, all of them call each method together, and the first process
reads and writes.

config.json            the identity of the run, and num_devices, with a digest
run.json               hypotheses run so far, run time by stage, environment, digests of the files
                       below that lie beside it; with a digest of its own and of the identity
populations/ID/        a trained population, an Orbax checkpoint with its condition and a digest
checkpoints/ID/STEP/   the last checkpoints of a training that is under way, each with a digest
measurements/REQUEST   .npz, labelled arrays with a digest and their identity
records.parquet        an export with a row for each number; conditions.parquet beside it
verdicts.json  figures/  report.html

All that is read again is compared with its digest, and with what it must belong to: `reproduce`
makes anew what differs, whatever else reads it refuses it. Figures and report are not read again.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import xarray as xr

import halfway
from halfway import populations, storage
from halfway.data import Dataset, Split
from halfway.lab.config import settings, user
from halfway.lab.config.config_file import ConfigFile
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import checkpoints, processes
from halfway.lab.study import conditions, records
from halfway.lab.study.records import Records, Request
from halfway.populations import Condition, Population


@dataclasses.dataclass(frozen=True)
class Identity:
    """What two runs must share to be the same run.

    Attributes:
      name: the name of config file and variant.
      config: the settings as nested plain dicts.
      data_checksum: the checksum of the data set.
      version: the version of this library.
    """

    name: str
    config: Mapping[str, Any]
    data_checksum: str
    version: str = halfway.__version__

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain data that equal what a JSON file gives back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def identity(file: ConfigFile, dataset: Dataset) -> Identity:
    """Returns the identity of a run.

    Args:
      file: the settings of the run.
      dataset: the data set of the run.
    """
    return Identity(file.name, file.config.to_dict(), dataset.checksum)


class _Marker(pydantic.BaseModel, strict=True, extra="forbid"):
    """The fields of config.json."""

    name: str
    config: dict[str, Any]
    data_checksum: str
    version: str
    num_devices: pydantic.PositiveInt


class _Notes(pydantic.BaseModel, strict=True, extra="forbid"):
    """The fields of run.json."""

    hypotheses: list[str] = []
    seconds: dict[str, float] = {}
    environment: dict[str, Any] = {}
    unsuitable: dict[str, str] = {}
    written: dict[str, str] = {}


def _typed(kind: type[pydantic.BaseModel], fields: Any) -> dict[str, Any]:
    """Returns fields after checking their names and types; ValueError with the first that fails."""
    try:
        return kind.model_validate(fields).model_dump()
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise ValueError(f"{place}: {first['msg']}") from error


def default_folder(file: ConfigFile) -> str:
    """Returns runs/CONFIG[-VARIANT][-a hash of the fields that flags changed].

    Args:
      file: the settings, and the fields that flags changed.
    """
    digest = "-" + storage.json_digest(file.overrides)[:6] if file.overrides else ""
    return f"runs/{file.name}{digest}"


_VERDICTS, _EXPORTS = "verdicts.json", ("records.parquet", "conditions.parquet")


def _writing(path: Path) -> AbstractContextManager[None]:
    return user.writing(f"--workdir={path}", resumes=True)


def _writes(method: Callable[..., None]) -> Callable[..., None]:
    """Returns a method of a run whose failure to write is a user's error."""

    @functools.wraps(method)
    def call(self: "Run", *args: Any, **kwargs: Any) -> None:
        with self.writing():
            method(self, *args, **kwargs)

    return call


class Run:
    """A run on disk, each file of which is written whole.

    Attributes:
      path: the folder.
      config: the settings.
      name: the name of config file and variant.
      data_checksum: the checksum of the data set.
      num_devices: the number of devices that the run was begun on.
      resumed: whether the run was begun before this process opened it.
      checkpoint_every: seconds between two checkpoints of a training.
    """

    def __init__(self, path: Path, stored: Mapping[str, Any]):
        self.path = path
        self.config = settings.parse(stored["config"])
        self.name = stored["name"]
        self.data_checksum = stored["data_checksum"]
        self.num_devices = stored["num_devices"]
        self._identity = {name: stored[name] for name in stored if name != "num_devices"}
        self._takes_unsealed = False
        self.resumed = True
        self.checkpoint_every = checkpoints.CHECKPOINT_SECONDS

    @classmethod
    @processes.collective
    def create(cls, path: Path, identity: Identity, num_devices: int) -> "Run":
        """Returns the run in a folder, which is made if it is missing.

        Args:
          path: the folder.
          identity: the identity that the run must have.
          num_devices: the number of devices of this process's layout.

        Raises:
          UserError: if the folder cannot be written, holds something else, or holds another run.
        """
        marker = path / "config.json"
        user.check_folder(f"--workdir={path}", path)
        resumed = marker.is_file()
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if not resumed:
                # A run that was killed before this file was written leaves hidden files only.
                if any(not entry.name.startswith(".") for entry in path.iterdir()):
                    raise UserError(
                        f"--workdir={path} is not empty and holds no run: choose another folder"
                    )
                fields = identity.to_json() | {"num_devices": num_devices}
                storage.write_sealed_json(marker, fields)
        run = cls(path, _read_marker(marker, takes_unsealed=True))
        run.resumed, run._takes_unsealed = resumed, True
        run._check(identity)
        if run.num_devices != num_devices:
            LOG.warning(
                "this run was begun on %d devices and goes on on %d: last bits may differ",
                run.num_devices,
                num_devices,
            )
        with _writing(path):
            run._seal()
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Returns the run that a folder holds.

        Args:
          path: the folder.

        Raises:
          UserError: if there is no run in it, or its config.json cannot be read.
        """
        marker = path / "config.json"
        user.check_folder(f"--workdir={path}", path)
        if not marker.is_file():
            raise UserError(f"--workdir={path} holds no run (no config.json)")
        return cls(path, _read_marker(marker, takes_unsealed=False))

    def _check(self, identity: Identity) -> None:
        # The version first: another version may have other fields, which then say little.
        facts = sorted(identity.to_json().items(), key=lambda fact: fact[0] != "version")
        for name, value in facts:
            if self._identity[name] != value:
                where, mine, theirs = _difference(name, self._identity[name], value)
                raise UserError(
                    f"--workdir={self.path} holds another run: {where} is {mine!r} there and "
                    f"{theirs!r} here; choose another folder"
                )

    def _seal(self) -> None:
        """Writes digests into files that an older version wrote, once they were checked."""
        for name, fields, identity in (
            ("config.json", self.identity | {"num_devices": self.num_devices}, None),
            ("run.json", self.notes(), self._identity),
        ):
            path = self.path / name
            try:
                if path.is_file():
                    storage.read_sealed_json(path, identity)
            except storage.UnsealedError:
                storage.write_sealed_json(path, fields, identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of `Identity`, as they are stored."""
        return dict(self._identity)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for this process, or for all processes of this run, while a block lasts.

        Raises:
          UserError: if another process has locked it, or the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            processes.shared(lambda: self._lock(held))
            yield

    def _lock(self, held: contextlib.ExitStack) -> None:
        with self.writing():
            handle = held.enter_context((self.path / ".lock").open("w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--workdir={self.path} is in use by another process: wait for it, or choose "
                "another folder"
            ) from error
        storage.sweep(self.path)
        # A process that is killed after it stored a population leaves the checkpoints behind.
        for kept in (self.path / "checkpoints").glob("*"):
            if (self.path / "populations" / kept.name / "condition.json").is_file():
                shutil.rmtree(kept, ignore_errors=True)

    def writing(self) -> AbstractContextManager[None]:
        """Turns every `OSError` of the block into a user's error, by `user.writing`."""
        return _writing(self.path)

    def _population_path(self, condition: Condition) -> Path:
        return self.path / "populations" / condition.id

    @processes.collective
    def has_population(self, condition: Condition) -> bool:
        """Returns whether a population is stored; only loading tells whether it can be read.

        Args:
          condition: the condition of the population.
        """
        return (self._population_path(condition) / "condition.json").is_file()

    @processes.collective
    def conditions(self) -> dict[str, Condition]:
        """Returns the conditions of all stored populations by their ids.

        Raises:
          UserError: if the file of a condition cannot be read.
        """
        conditions_by_id = {}
        for path in sorted(self.path.glob("populations/*/condition.json")):
            try:
                condition = Condition(**storage.read_json(path))
                if condition.id != path.parent.name:
                    raise ValueError(f"it is of {condition.id}")
            except (*storage.UNREADABLE, AttributeError) as error:
                raise UserError(
                    f"{path} cannot be used ({error}): run reproduce again, or delete its folder"
                ) from error
            conditions_by_id[condition.id] = condition
        return conditions_by_id

    @processes.collective
    @_writes
    def save_population(self, population: Population) -> None:
        """Stores a population.

        Args:
          population: the population.
        """
        path = self._population_path(population.condition)
        populations.save(path, population, origin=self._origin)

    def train(
        self,
        condition: Condition,
        pool: Split,
        within: Callable[[int, int, float | None], None] = lambda done, of, loss: None,
    ) -> Population:
        """Returns a population, trained from its newest checkpoint on, and stores it.

        Args:
          condition: the condition of the population.
          pool: the examples that halves are drawn from.
          within: a function that is called after each piece of training with the number of steps
            done, of all steps, and the loss of the last probe, None before the first.

        Raises:
          processes.Terminated: if the run is asked to end; the progress of training is kept.
          UserError: if the folder cannot be written.
        """
        self._forget(condition)
        last = condition.probe_steps[-1]
        keeper = checkpoints.Keeper(
            self.path / "checkpoints",
            condition,
            origin=self._origin,
            seconds_between=self.checkpoint_every,
            then=lambda progress: within(progress.num_steps, last, _loss(progress)),
        )
        with self.writing():
            population = checkpoints.train(condition, pool, keeper)
        self.save_population(population)
        keeper.clear()
        # Made as a stored population is read, so that measurements need not be compiled again.
        return jax.tree.map(jnp.asarray, jax.device_get(population))

    @processes.collective
    @_writes
    def _forget(self, condition: Condition) -> None:
        """Marks a population that cannot be read as missing, so that its checkpoints stay."""
        (self._population_path(condition) / "condition.json").unlink(missing_ok=True)

    def load_population(self, condition: Condition) -> Population | None:
        """Returns a stored population; None if there is none that can be read.

        Args:
          condition: the condition of the population.
        """
        return self._loaded(condition, refuses=False)

    def read_population(self, condition: Condition) -> Population | None:
        """Returns a stored population; None if there is none.

        Args:
          condition: the condition of the population.

        Raises:
          UserError: if it cannot be read, or is not what was written.
        """
        return self._loaded(condition, refuses=True)

    def _loaded(self, condition: Condition, *, refuses: bool) -> Population | None:
        stored = self._load_population(condition, refuses)
        return None if stored is None else jax.tree.map(jnp.asarray, stored)

    @processes.collective
    def _load_population(self, condition: Condition, refuses: bool) -> Population | None:
        path = self._population_path(condition)
        if not (path / "condition.json").is_file():
            return None
        try:
            population = populations.load(path, origin=self._origin)
            if population.condition == condition:
                return population
            reason = "it is of another condition"
        except Exception as error:  # Orbax raises exceptions of every kind
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            reason = " ".join(reason.split())[:200]
        if refuses:
            raise UserError(f"{path} cannot be read ({reason}): run reproduce again")
        LOG.warning("%s cannot be read (%s): it is trained again", path, reason)
        return None

    @property
    def _origin(self) -> dict[str, str]:
        """What a population is made from besides its condition."""
        return {"data": self.data_checksum, "version": halfway.__version__}

    def _measurement_path(self, request: Request) -> Path:
        return self.path / "measurements" / f"{request.id}.npz"

    def _facts(self, request: Request) -> dict[str, Any]:
        """Returns the identity of a measurement, so that another one is not taken for it."""
        return {
            "measurement": request.measurement.name,
            "conditions": [condition.id for condition in request.conditions],
            "config": storage.json_digest(self.config.to_dict()),
            "data": self.data_checksum,
            "version": halfway.__version__,
        }

    def _read_measurement(self, request: Request) -> xr.Dataset:
        """Returns a stored measurement.

        Raises:
          Exception: one of `storage.UNREADABLE`, if there is none, or it is not what was written.
        """
        arrays, facts = storage.read_facts(self._measurement_path(request))
        if {name: facts.get(name) for name in self._facts(request)} != self._facts(request):
            raise ValueError(f"{self._measurement_path(request).name} is another measurement")
        return records.from_arrays(arrays, facts["structure"])

    @processes.collective
    def has_measurement(self, request: Request) -> bool:
        """Returns whether a measurement is stored, can be read and is what was written.

        Args:
          request: the request for the measurement.
        """
        path = self._measurement_path(request)
        if not path.is_file():
            return False
        try:
            self._read_measurement(request)
        except storage.UNREADABLE as error:
            LOG.warning("%s cannot be used (%s): it is measured again", path, error)
            return False
        return True

    @processes.collective
    @_writes
    def save_measurement(self, request: Request, dataset: xr.Dataset) -> None:
        """Stores a measurement with its identity.

        Args:
          request: the request for the measurement.
          dataset: the result of the measurement.
        """
        path = self._measurement_path(request)
        path.parent.mkdir(exist_ok=True)
        arrays, structure = records.to_arrays(dataset)
        storage.write_arrays(path, arrays, self._facts(request) | {"structure": structure})

    @processes.collective
    @_writes
    def export(self, requests: Sequence[Request]) -> None:
        """Writes records.parquet and conditions.parquet, for use by other programs.

        Args:
          requests: the requests of all hypotheses of the run; other measurements in the folder are
            left out.
        """
        table = records.to_table(self.records(requests).datasets)
        storage.write_table(self.path / _EXPORTS[0], table)
        known = {condition for request in requests for condition in request.conditions}
        rows = sorted(known, key=lambda condition: conditions.order(self.config, condition))
        storage.write_table(self.path / _EXPORTS[1], records.conditions_table(rows))
        self._note_written(*_EXPORTS)

    def check_exports(self, requests: Sequence[Request]) -> None:
        """Writes the exported tables anew where they are not what was written.

        Args:
          requests: the requests of all hypotheses of the run.
        """
        others = [name for name in _EXPORTS if not self._is_as_written(name)]
        if others:
            LOG.warning("%s: not what was written, it is written anew", ", ".join(others))
            self.export(requests)

    @processes.collective
    @_writes
    def save_verdicts(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Writes verdicts.json.

        Args:
          verdicts: of all hypotheses of the run, as plain data.
        """
        storage.write_json(self.path / _VERDICTS, list(verdicts))
        self._note_written(_VERDICTS)

    @processes.collective
    def verdicts(self) -> list[dict[str, Any]]:
        """Returns the verdicts that `save_verdicts` wrote.

        Raises:
          UserError: if there are none, or they are not what was written.
        """
        path, problem = self.path / _VERDICTS, "not what was written"
        try:
            if self._is_as_written(_VERDICTS):
                return storage.read_json(path)
        except storage.UNREADABLE as error:
            problem = str(error)
        what = f"it holds no {_VERDICTS}" if not path.is_file() else f"{_VERDICTS}: {problem}"
        raise UserError(
            f"{self.path} has no verdicts that can be read ({what}): finish it by `halfway "
            f"reproduce`, or rebuild them by `halfway decide --workdir={self.path}`"
        )

    def _note_written(self, *names: str) -> None:
        """Notes the digests of files, so that others are not taken for them."""
        digests = {name: storage.file_digest(self.path / name) for name in names}
        self.note(written=self.notes()["written"] | digests)

    def _is_as_written(self, name: str) -> bool:
        path = self.path / name
        digest = self.notes()["written"].get(name)
        return path.is_file() and storage.file_digest(path) == digest

    def measurements_digest(self, requests: Sequence[Request]) -> str:
        """Returns twelve digits that identify the stored arrays of some measurements.

        Args:
          requests: the requests for the measurements.
        """
        digests = {
            request.id: storage.tree_digest(records.to_arrays(self._read_measurement(request))[0])
            for request in requests
        }
        return storage.json_digest(digests)[:12]

    @processes.collective
    def records(self, requests: Sequence[Request]) -> Records:
        """Returns all records of the run.

        Args:
          requests: the requests of all hypotheses of the run.

        Raises:
          UserError: if there are no records, they cannot be read, or are not what was written.
        """
        if not (self.path / "measurements").is_dir():
            raise UserError(f"{self.path} holds no measurements: run `halfway reproduce` first")
        try:
            datasets = {
                (request.measurement.name, request.conditions[0].id): self._read_measurement(
                    request
                )
                for request in requests
            }
        except storage.UNREADABLE as error:
            raise UserError(
                f"the records of {self.path} cannot be used ({error}): run reproduce again"
            ) from error
        return Records(self.config, datasets)

    @processes.collective
    def notes(self) -> dict[str, Any]:
        """Returns the content of run.json: hypotheses, seconds by stage, environment, and the
        studies that the architectures are unsuitable for, each with the reason.

        Raises:
          UserError: if it cannot be read.
        """
        path = self.path / "run.json"
        if not path.is_file():
            return _typed(_Notes, {})
        try:
            fields, is_sealed = _fields(path, _Notes, self._identity)
        except storage.UNREADABLE as error:
            raise UserError(
                f"{path} cannot be read ({error}): delete it and run reproduce again"
            ) from error
        if not (is_sealed or self._takes_unsealed):
            raise _unsealed(path)
        return fields

    def describe(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Notes the environment of the run, if it is not noted yet.

        Args:
          describe: a function that returns `environment.describe(...)`, called on every process.
        """
        if not self.notes()["environment"]:
            self.note(environment=describe())

    @processes.collective
    @_writes
    def note(self, **changes: Any) -> None:
        """Writes changed fields of run.json.

        Args:
          **changes: the new values of fields.
        """
        notes = self.notes() | changes
        storage.write_sealed_json(self.path / "run.json", notes, self._identity)


def _read_marker(path: Path, *, takes_unsealed: bool) -> dict[str, Any]:
    """Returns the content of config.json.

    Args:
      path: the file.
      takes_unsealed: whether one without a digest is taken; whoever takes it compares its identity.

    Raises:
      UserError: if it cannot be read, is not what was written, or holds settings that are none.
    """
    try:
        fields, is_sealed = _fields(path, _Marker, None)
        settings.parse(fields["config"])
    except (*storage.UNREADABLE, AttributeError, UserError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another folder") from error
    if not (is_sealed or takes_unsealed):
        raise _unsealed(path)
    return fields


def _fields(
    path: Path, kind: type[pydantic.BaseModel], identity: Any
) -> tuple[dict[str, Any], bool]:
    """Returns the checked fields of a JSON file, and whether they carry their digest.

    Args:
      path: the file.
      kind: the names and types of its fields.
      identity: what the digest is of besides them.

    Raises:
      Exception: one of `storage.UNREADABLE`, if it is no such file or not what was written.
    """
    try:
        fields, is_sealed = storage.read_sealed_json(path, identity), True
    except storage.UnsealedError:
        fields, is_sealed = storage.read_json(path), False
    return _typed(kind, fields), is_sealed


def _unsealed(path: Path) -> UserError:
    return UserError(
        f"{path} carries no digest, an older version wrote it: run reproduce again, which checks "
        "and seals it"
    )


def _loss(progress: populations.Progress) -> float | None:
    """Returns the mean cross-entropy of models on their own halves at the last probe so far."""
    if not progress.observations or processes.count() > 1:  # members lie on several processes
        return None
    values = progress.observations[-1]["landscapes"]["own"]["cross_entropy"]
    return float(np.mean(np.asarray(values)))


def _difference(name: str, mine: Any, theirs: Any) -> tuple[str, Any, Any]:
    """Returns the first field in which two identities differ, with both values."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for field in sorted({*mine, *theirs}):
            if mine.get(field) != theirs.get(field):
                return _difference(f"{name}.{field}", mine.get(field), theirs.get(field))
    return name, mine, theirs
