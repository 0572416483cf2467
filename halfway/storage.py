"""Trees of arrays, tables and JSON on disk: written whole or not at all; damage is noticed."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS, _DIGEST, _FACTS = "arrays", "digest.json", "facts.json"
PARTIAL = ".partial"
"""Ending of the name of a file or folder that is still being written."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""Errors that reading a damaged file raises, be it JSON, Parquet or a NumPy archive."""


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


def save_tree(path: str | Path, tree: Any, facts: Mapping[str, Any], *, name: str) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, with a JSON file of facts and a digest.

    Where there are several processes, only one of them calls it.

    Args:
      path: a folder, replaced where it exists.
      tree: nested dicts of arrays.
      facts: plain data about the arrays, which JSON can hold.
      name: name of the file of facts within the folder.

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
        (partial / _DIGEST).write_text(json.dumps({"sha256": _seal_tree(tree, facts)}))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error
    sys.unraisablehook = hook
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def _without_late_answers(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a hook that leaves out what threads of a failed Orbax say until the process ends.

    Args:
      hook: as `sys.unraisablehook`, which shows all other exceptions.
    """

    def call(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return call


def _free(folder: Path) -> int:
    """Returns the bytes that are free where a folder is."""
    return shutil.disk_usage(folder).free


def load_tree(path: str | Path, *, name: str) -> tuple[dict[str, Any], Any]:
    """Returns the arrays, of NumPy, and the facts that `save_tree` wrote.

    Args:
      path: the folder.
      name: name of the file of facts within the folder.

    Raises:
      FileNotFoundError: if nothing is stored there.
      Exception: of one kind or another, if the folder is damaged.
    """
    path = Path(path).absolute()
    if not (path / name).exists():
        raise FileNotFoundError(f"nothing is stored at {path}")
    facts = json.loads((path / name).read_text())
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path / _ARRAYS)
    tree = jax.tree.map(np.asarray, tree)
    if json.loads((path / _DIGEST).read_text()) != {"sha256": _seal_tree(tree, facts)}:
        raise ValueError(f"what is at {path} is not what was written")
    return tree, facts


def _seal_tree(tree: Any, facts: Mapping[str, Any]) -> str:
    """Returns a digest of arrays and facts together, so that neither can be exchanged alone."""
    return json_digest([tree_digest(tree), json.loads(json.dumps(facts))])


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
    """Returns the value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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
      arrays: arrays by name; a name may hold any characters but those that separate paths.
      facts: plain data, kept with a digest of arrays and facts, which `read_facts` checks.

    Raises:
      OSError: if the file cannot be written.
    """
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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a NumPy archive; nothing is unpickled."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name != _FACTS}


def read_facts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and facts that `write_arrays` wrote.

    Args:
      path: the file.

    Raises:
      Exception: one of `UNREADABLE`, if there are no facts or the digest is that of other content.
    """
    arrays = read_arrays(path)
    with zipfile.ZipFile(path) as archive:
        sealed = json.loads(archive.read(_FACTS))
    if sealed["sha256"] != _seal(arrays, sealed["facts"]):
        raise ValueError(f"{path.name} does not hold what was written")
    return arrays, sealed["facts"]


def _seal(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    """Returns a digest of arrays and facts, whatever the order of the arrays."""
    return _seal_tree(dict(sorted(arrays.items())), facts)
