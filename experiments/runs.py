"""The working directory of a run: what identifies it, what is stored, resumed and merged.

config.json            what identifies the run, and num_devices
run.json               hypotheses run so far, run time by stage, environment
populations/KEY/       one trained population, an Orbax checkpoint with its condition
measurements/REQUEST   .parquet, and .npz with outcomes for each example
records.parquet        all measurements below each other; conditions.parquet beside it
verdicts.json  figures/  report.html
"""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

import halfway
from experiments import conditions, files, tables
from experiments.conditions import Config
from experiments.errors import LOG, UserError
from experiments.study import Measured, Records, Request
from halfway import populations
from halfway.populations import Condition, Population


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


def to_config(plain: Mapping[str, Any]) -> Config:
    """Returns a locked config from plain data, lists made tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    config = ConfigDict(restore(plain))
    config.lock()
    return config


class Run:
    """A run on disk. Every file in it is written whole."""

    def __init__(self, path: Path, stored: Mapping[str, Any]):
        self.path = path
        self.config = to_config(stored["config"])
        self.name = stored["name"]
        self.data_checksum = stored["data_checksum"]
        self.num_devices = stored["num_devices"]

    @classmethod
    def create(cls, path: Path, identity: Identity, num_devices: int) -> "Run":
        """Returns the run in a folder, made if it is missing.

        Raises:
          UserError: if the folder cannot be written, holds something else, or holds another run.
        """
        marker = path / "config.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                # A run that was killed before this file appeared leaves only hidden temporaries.
                if any(not entry.name.startswith(".") for entry in path.iterdir()):
                    raise UserError(
                        f"--workdir={path} is not empty and holds no run: choose another folder"
                    )
                files.write_json(marker, identity.to_json() | {"num_devices": num_devices})
            else:
                files.write_whole(path / ".writable", b"")
        except OSError as error:
            raise UserError(
                f"--workdir={path} cannot be written ({error.strerror}): choose another folder"
            ) from error
        run = cls.open(path)
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
            return cls(path, files.read_json(marker))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{marker} cannot be read ({error}): choose another folder") from error

    def _check(self, identity: Identity) -> None:
        stored = files.read_json(self.path / "config.json")
        for name, value in identity.to_json().items():
            if stored.get(name) != value:
                where, mine, theirs = _difference(name, stored.get(name), value)
                raise UserError(
                    f"--workdir={self.path} holds another run: {where} is {mine!r} there and "
                    f"{theirs!r} here; choose another folder"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process.

        Raises:
          UserError: if another process does.
        """
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"--workdir={self.path} is in use by another process: wait for it, or choose "
                    "another folder"
                ) from error
            yield

    # What is stored.

    def _population_path(self, condition: Condition) -> Path:
        return self.path / "populations" / condition.key

    def has_population(self, condition: Condition) -> bool:
        """Returns whether a condition has been trained and stored."""
        return (self._population_path(condition) / "condition.json").is_file()

    def save_population(self, population: Population) -> None:
        """Stores a population."""
        populations.save(self._population_path(population.condition), population)

    def load_population(self, condition: Condition) -> Population:
        """Returns a stored population."""
        return populations.load(self._population_path(condition))

    def _measurement_path(self, request: Request) -> Path:
        return self.path / "measurements" / f"{request.key}.parquet"

    def has_measurement(self, request: Request) -> bool:
        """Returns whether a measurement is stored; its table is written last."""
        return self._measurement_path(request).is_file()

    def save_measurement(self, request: Request, measured: Measured) -> None:
        """Stores a measurement: the arrays first, the table last."""
        path = self._measurement_path(request)
        path.parent.mkdir(exist_ok=True)
        if measured.arrays:
            files.write_arrays(path.with_suffix(".npz"), measured.arrays)
        files.write_table(path, measured.table)

    def merge(self, requests: Sequence[Request]) -> None:
        """Writes records.parquet and conditions.parquet from all measurements on disk.

        Args:
          requests: of the hypotheses of this invocation; what others measured before is kept.
        """
        folder = self.path / "measurements"
        parts = [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
        files.write_table(self.path / "records.parquet", tables.concat(parts))
        stored = {
            path.parent.name: Condition.from_json(files.read_json(path))
            for path in (self.path / "populations").glob("*/condition.json")
        }
        known = stored | {c.key: c for request in requests for c in request.conditions}
        ordered = sorted(known.values(), key=lambda c: conditions.order(self.config, c))
        files.write_table(self.path / "conditions.parquet", tables.conditions_table(ordered))

    def records(self) -> Records:
        """Returns all records of the run.

        Raises:
          UserError: if there are none, or they cannot be read.
        """
        path = self.path / "records.parquet"
        if not path.is_file():
            raise UserError(f"{path} does not exist: run experiments.reproduce first")
        try:
            table = tables.normalize(pd.read_parquet(path))
            conditions_table = pd.read_parquet(self.path / "conditions.parquet")
            arrays = {}
            for archive in sorted((self.path / "measurements").glob("*.npz")):
                name, key, *_ = archive.stem.split("-")
                arrays[name, key] = files.read_arrays(archive)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"the records of {self.path} cannot be read: {error}") from error
        return Records(table, conditions_table, self.config, arrays)

    def notes(self) -> dict[str, Any]:
        """Returns what run.json holds: hypotheses, seconds by stage, environment."""
        path = self.path / "run.json"
        empty = {"hypotheses": [], "seconds": {}, "environment": {}}
        return empty | files.read_json(path) if path.is_file() else empty

    def note(self, **changes: Any) -> None:
        """Writes changed fields of run.json."""
        files.write_json(self.path / "run.json", self.notes() | changes)


def _difference(name: str, mine: Any, theirs: Any) -> tuple[str, Any, Any]:
    """Returns the first field in which two identities differ, with both values."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                return _difference(f"{name}.{key}", mine.get(key), theirs.get(key))
    return name, mine, theirs
