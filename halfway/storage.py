"""Trees of arrays, tables and JSON on disk: written whole or not at all; damage is noticed."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from halfway import files

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS, _DIGEST, _FACTS = "arrays", "digest.json", "facts.json"
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
"""What Orbax says of an error of the system."""
_SEAL = "sha256"
"""Field of a JSON file that holds the digest of its other fields."""
PARTIAL = ".partial"
"""Ending of the name of a file or folder that is still being written."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""Errors that reading a damaged file raises, or using the content of one without a digest."""


class UnsealedError(ValueError):
    """A file carries no digest: an older version wrote it, or the digest was taken out."""


def json_digest(plain: Any) -> str:
    """Returns the hexadecimal SHA-256 of plain data, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def tree_digest(tree: Any) -> str:
    """Returns the hexadecimal SHA-256 of arrays: their places in the tree, types, shapes and bytes.

    Args:
      tree: a pytree of NumPy arrays.

    Examples:
      >>> digest = storage.tree_digest({"a": np.zeros(2)})
      >>> digest == storage.tree_digest({"a": np.zeros(2)})
      True
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes.

    Args:
      path: the file.

    Raises:
      OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tree(
    path: str | Path,
    tree: Any,
    facts: Mapping[str, Any],
    *,
    name: str,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, with a JSON file of facts and a digest.

    Where there are several processes, only one of them calls it.

    Args:
      path: a folder, replaced where it exists.
      tree: nested dicts of arrays.
      facts: plain data about the arrays, which JSON can hold.
      name: name of the file of facts within the folder.
      origin: plain data that says what the tree was made from, which `load_tree` compares.

    Raises:
      OSError: if the folder cannot be written.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Arrays of the host: a file that says nothing about devices loads on any number of them.
    tree = jax.device_get(tree)
    # Where Orbax itself runs out of space, its threads write tracebacks until the process ends.
    if sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)) > _free(path.parent):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    hook = sys.unraisablehook
    sys.unraisablehook = _without_late_answers(hook)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(partial / _ARRAYS, tree)
        (partial / name).write_text(json.dumps(facts, indent=2))
        (partial / _DIGEST).write_text(json.dumps(_sealed(tree, facts, origin)))
    except Exception as error:
        _remove(partial)
        logging.getLogger("asyncio").addFilter(_is_no_late_answer)
        code = _SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error
    sys.unraisablehook = hook
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def _remove(folder: Path) -> None:
    """Removes a folder, for 5 s at most until it stays away: threads of Orbax may write late."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _without_late_answers(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a hook that leaves out what threads of a failed Orbax say until the process ends.

    Args:
      hook: as `sys.unraisablehook`, which shows all other exceptions.
    """

    def call(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return call


def _is_no_late_answer(record: logging.LogRecord) -> bool:
    """Returns whether a record of asyncio's is of anything but a failed write of Orbax's.

    Of one that nobody waited for asyncio says so when it is collected, at any later time.
    """
    error = record.exc_info[1] if record.exc_info else None
    return _SYSTEM_ERROR.search(str(error)) is None


def _free(folder: Path) -> int:
    """Returns the bytes that are free where a folder is."""
    return shutil.disk_usage(folder).free


def load_tree(
    path: str | Path, *, name: str, origin: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Any]:
    """Returns the arrays, of NumPy, and the facts that `save_tree` wrote.

    Args:
      path: the folder.
      name: name of the file of facts within the folder.
      origin: what the tree must have been made from; None: anything. A tree that was stored without
        an origin, as older versions did, is taken for any.

    Raises:
      FileNotFoundError: if nothing is stored there.
      Exception: of one kind or another, if the folder is damaged or of another origin.
    """
    path = Path(path).absolute()
    if not (path / name).exists():
        raise FileNotFoundError(f"nothing is stored at {path}")
    facts = json.loads((path / name).read_text())
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path / _ARRAYS)
    tree = jax.tree.map(np.asarray, tree)
    sealed = json.loads((path / _DIGEST).read_text())
    stored = sealed.get("origin")
    if sealed != _sealed(tree, facts, stored):
        raise ValueError(f"what is at {path} is not what was written")
    if None not in (origin, stored) and stored != json.loads(json.dumps(origin)):
        raise ValueError(f"what is at {path} was made from {stored}, not from {origin}")
    return tree, facts


def _sealed(tree: Any, facts: Mapping[str, Any], origin: Mapping[str, Any] | None) -> dict:
    """Returns a digest of arrays, facts and origin together: none can be exchanged alone."""
    parts = [tree_digest(tree), json.loads(json.dumps(facts))]
    if origin is None:
        return {_SEAL: json_digest(parts)}
    return {_SEAL: json_digest([*parts, json.loads(json.dumps(origin))]), "origin": dict(origin)}


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Yields Orbax's checkpointer for this process alone; it logs and warns nothing."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                yield checkpointer
        finally:
            for logger, was in zip(loggers, before, strict=True):
                logger.disabled = was


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file through a temporary one beside it, so that nobody ever reads half of it.

    Args:
      path: the file, replaced where it exists.
      data: its content.

    Raises:
      OSError: if the file cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Removes the partial files and folders that a killed process left in a folder or below."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
    for name in ("populations", "checkpoints"):
        for path in [*(folder / name).rglob(f"*{PARTIAL}")]:
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON.

    Args:
      path: the file, replaced where it exists.
      value: plain data.

    Raises:
      ValueError: if the value holds NaN or an infinity, which JSON has not.
      OSError: if the file cannot be written.
    """
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Args:
      path: the file.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is no JSON file.
    """
    with _reading(path):
        return json.loads(files.read(path))


def write_sealed_json(path: Path, fields: Mapping[str, Any], identity: Any = None) -> None:
    """Writes fields as JSON, with a digest of them and of what they belong to.

    Args:
      path: the file, replaced where it exists.
      fields: plain data by name.
      identity: plain data that is not stored but sealed, so that the file is of no use elsewhere.

    Raises:
      ValueError: if a field has the name of the digest, or a value has no JSON.
      OSError: if the file cannot be written.
    """
    if _SEAL in fields:
        raise ValueError(f"a field must not be named {_SEAL!r}, which the digest is")
    write_json(path, {**fields, _SEAL: json_digest([fields, identity])})


def read_sealed_json(path: Path, identity: Any = None) -> dict[str, Any]:
    """Returns the fields that `write_sealed_json` wrote.

    Args:
      path: the file.
      identity: what the fields belong to, as it was when they were written.

    Raises:
      OSError: if the file cannot be read.
      UnsealedError: if it holds fields without a digest.
      ValueError: if it is no JSON file, or the digest is that of other content or identity.
    """
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} holds no fields")
    digest = fields.pop(_SEAL, None)
    if digest is None:
        raise UnsealedError(f"{path.name} carries no digest")
    if digest != json_digest([fields, identity]):
        raise ValueError(f"{path.name} does not hold what was written")
    return fields


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns every error of a block that reads a file into an `OSError` or a `ValueError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except (OSError, MemoryError, files.Refused, UnsealedError):
        raise
    except Exception as error:  # zipfile, zlib, NumPy and json raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path.name} is damaged, or of another kind: {reason}") from error


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Writes a table as Parquet.

    Args:
      path: the file, replaced where it exists.
      table: a data frame; its index is written where it has a name.

    Raises:
      OSError: if the file cannot be written.
    """
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=table.index.name is not None)
    write_whole(path, buffer.getvalue())


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any] | None = None
) -> None:
    """Writes named arrays, and facts about them, as a compressed NumPy archive.

    Args:
      path: the file, replaced where it exists.
      arrays: arrays by name, of numbers, booleans or text.
      facts: plain data, kept with a digest of arrays and facts, which `read_facts` checks.

    Raises:
      ValueError: if an array or its name cannot be stored.
      OSError: if the file cannot be written.
    """
    for name, array in arrays.items():
        kind = np.asarray(array).dtype
        if kind.kind not in "biufcSU" or np.dtype(kind.str) != kind:  # bfloat16 comes back as bytes
            raise ValueError(f"array {name!r} has type {kind}, which a NumPy archive cannot hold")
        if "\0" in name:
            raise ValueError(f"array {name!r} must not have a zero byte in its name")
    buffer = io.BytesIO()
    # `np.savez_compressed` takes names as keyword arguments; an array may have any name.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
        if facts is not None:
            sealed = {"facts": facts, "sha256": _seal(arrays, facts)}
            archive.writestr(_FACTS, json.dumps(sealed, sort_keys=True))
    write_whole(path, buffer.getvalue())


def read_arrays(path: Path, *, max_gb: float = files.MAX_GB) -> dict[str, np.ndarray]:
    """Returns the arrays of a NumPy archive; nothing is unpickled.

    Args:
      path: the file.
      max_gb: gigabytes that the arrays may take in memory.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is no NumPy archive, damaged, or larger.
    """
    with _reading(path):
        return files.read_npz(path, max_gb=max_gb)


def read_facts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and facts that `write_arrays` wrote.

    Args:
      path: the file.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if there are no facts, or the digest is that of other content.
    """
    arrays = read_arrays(path, max_gb=math.inf)  # our own, as large as they were measured
    with _reading(path), zipfile.ZipFile(path) as archive:
        if _FACTS not in archive.namelist():
            raise UnsealedError("it carries no digest")
        sealed = json.loads(archive.read(_FACTS))
        facts, digest = sealed["facts"], sealed[_SEAL]
    if digest != _seal(arrays, facts):
        raise ValueError(f"{path.name} does not hold what was written")
    return arrays, facts


def _seal(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    """Returns a digest of arrays and facts, whatever the order of the arrays."""
    return _sealed(dict(sorted(arrays.items())), facts, None)[_SEAL]
