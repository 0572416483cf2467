"""Trees of arrays on disk, whole or not at all, and never taken for whole where they are not."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS, _DIGEST = "arrays", "digest.json"
PARTIAL = ".partial"
"""Ending of what is being written."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises: JSON, Parquet or NumPy archive."""


def json_digest(plain: Any) -> str:
    """Returns the hexadecimal SHA-256 of plain data, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def tree_digest(tree: Any) -> str:
    """Returns the hexadecimal SHA-256 of arrays: their places in the tree, types, shapes and bytes.

    Args:
      tree: of arrays of the host.

    Examples:
      >>> one = storage.tree_digest({"a": np.zeros(2)})
      >>> one == storage.tree_digest({"a": np.zeros(2)})
      True
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)}\n".encode())
        found.update(array.data)
    return found.hexdigest()


def save_tree(path: str | Path, tree: Any, facts: Mapping[str, Any], *, name: str) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, with a JSON file of facts and a digest.

    Of several processes one calls it.

    Args:
      path: a folder, replaced where it exists.
      tree: nested dicts of arrays.
      facts: plain data.
      name: of their file.

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
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(partial / _ARRAYS, tree)
        (partial / name).write_text(json.dumps(facts, indent=2))
        (partial / _DIGEST).write_text(json.dumps({"sha256": tree_digest(tree)}))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def _free(folder: Path) -> int:
    """Returns the bytes that are free where a folder is."""
    return shutil.disk_usage(folder).free


def load_tree(path: str | Path, *, name: str) -> tuple[dict[str, Any], Any]:
    """Returns the arrays, of NumPy, and the facts that `save` wrote.

    Args:
      path: the folder.
      name: of the file of facts.

    Raises:
      FileNotFoundError: if there is none.
      Exception: of many kinds, if it is damaged.
    """
    path = Path(path).absolute()
    if not (path / name).exists():
        raise FileNotFoundError(f"nothing is stored at {path}")
    facts = json.loads((path / name).read_text())
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path / _ARRAYS)
    tree = jax.tree.map(np.asarray, tree)
    if json.loads((path / _DIGEST).read_text()) != {"sha256": tree_digest(tree)}:
        raise ValueError(f"the arrays at {path} are not those that were written")
    return tree, facts


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Yields Orbax's checkpointer for this process alone, and silences it beside what it raises."""
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
    """Writes a file through a temporary one beside it, so that nobody ever reads half of it."""
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
    """Removes what was left in a folder and below when a process was killed while it wrote."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
    for name in ("populations", "checkpoints"):
        for path in [*(folder / name).rglob(f"*{PARTIAL}")]:
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, without NaN."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Writes a table as Parquet, its index included where it has a name."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=table.index.name is not None)
    write_whole(path, buffer.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a compressed NumPy archive."""
    buffer = io.BytesIO()
    # `np.savez_compressed` takes names as keyword arguments; an array may have any name.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    write_whole(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a NumPy archive; nothing is unpickled."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
