"""Reads files that somebody else may have made: regular ones alone, and no more than a limit.

A FIFO, a socket or a device in the place of a file is never opened, since that may wait for ever.
What a file says of its own size is compared with a limit before memory is taken for it.
"""

import io
import math
import os
import stat
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reading a text needs no NumPy
    import numpy as np

MAX_GB = 4.0
"""Gigabytes (10⁹ bytes) that what is read from files of a user may take in memory, by default."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Refused(ValueError):
    """A file that is not read, since it is no regular file or too large; the message says why."""


def kind_of(mode: int) -> str:
    """Returns what a file is, in words; "a file" for a regular one.

    Args:
      mode: `st_mode` of the file.
    """
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Returns a regular file opened for reading bytes.

    Args:
      path: the path of the file, or of a link to it.

    Raises:
      Refused: if it is something else: a folder, FIFO, socket or device.
      OSError: if there is no such file, or it cannot be opened.
    """
    _check_regular(path, os.stat(path).st_mode)  # noqa: PTH116 (before it is opened)
    # Should it have been exchanged since, O_NONBLOCK opens a FIFO without waiting for its writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    file = os.fdopen(handle, "rb")
    try:
        _check_regular(path, os.fstat(handle).st_mode)
    except Refused:
        file.close()
        raise
    return file


def _check_regular(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise Refused(f"{path} is {kind_of(mode)}: a regular file is needed")


def read(path: str | os.PathLike[str], *, max_gb: float = MAX_GB) -> bytes:
    """Returns the bytes of a regular file.

    Args:
      path: the path of the file.
      max_gb: the largest size, in gigabytes.

    Raises:
      Refused: if it is no regular file, or larger.
      OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, max_gb)
        return file.read(size)


def check_size(where: object, num_bytes: int, max_gb: float) -> None:
    """Checks how much memory something would take before it is read.

    Args:
      where: what it is, for the message.
      num_bytes: the number of bytes that it would take.
      max_gb: the largest number of gigabytes.

    Raises:
      Refused: if it is more; the message says how to raise the limit.
    """
    if num_bytes > max_gb * 1e9:
        needed = math.ceil(num_bytes / 1e9)
        raise Refused(
            f"{where} would take {num_bytes / 1e9:,.1f} GB of memory, the limit is {max_gb:g} GB: "
            f"if that is right, allow it by --max_gb={needed} (max_gb={needed} of a function)"
        )


def read_npz(path: str | os.PathLike[str], *, max_gb: float = MAX_GB) -> "dict[str, np.ndarray]":
    """Returns the arrays of a NumPy archive; nothing is unpickled.

    Types and shapes of all arrays are read before the numbers of any: they must fill the members
    of the archive exactly, and all together keep within the limit.

    Args:
      path: the path of an `.npz` file.
      max_gb: the largest sum of the sizes of the arrays, in gigabytes.

    Raises:
      Refused: if it is no regular file, or holds more.
      ValueError: if it is no such archive, or damaged.
      OSError: if it cannot be read.
      zipfile.BadZipFile: if it is no archive, or damaged.
    """
    from numpy.lib import format as npy

    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        check_size(path, sum(info.file_size for info in members), max_gb)
        names = [info.filename.removesuffix(".npy") for info in members]
        if len(set(names)) < len(names):
            raise ValueError("two of its arrays have one name")
        for info in members:
            _check_array(archive, info)
        arrays = {}
        for name, info in zip(names, members, strict=True):
            with archive.open(info) as entry:
                arrays[name] = npy.read_array(entry, allow_pickle=False)
                entry.read()  # nothing, but the checksum is compared at the end
        return arrays


def _check_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Checks that a member is as large as the array that it declares."""
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{info.filename} is encrypted, or packed in a way that NumPy never writes"
        )
    with archive.open(info) as entry:
        try:
            shape, dtype = _header(entry)
        except (OSError, zipfile.BadZipFile):
            raise
        except Exception as error:  # of text that is read as Python's: of every kind
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{info.filename} is no array: {reason}") from error
        declared, held = math.prod(shape) * dtype.itemsize, info.file_size - entry.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are never unpickled")
    if declared != held or min(shape, default=0) < 0:
        raise ValueError(
            f"{info.filename} declares {dtype} of shape {shape}, {declared:,} bytes, and holds "
            f"{held:,}"
        )


def _header(entry: Any) -> "tuple[tuple[int, ...], np.dtype]":
    """Returns shape and type that the header of an array declares."""
    from numpy.lib import format as npy

    version = npy.read_magic(entry)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(entry)
    else:  # raises for versions that there are not
        shape, _, dtype = npy.read_array_header_2_0(entry)
    return shape, dtype


def read_text(path: str | os.PathLike[str], *, max_bytes: int = 10_000_000) -> str:
    """Returns the text of a regular file in UTF-8.

    Args:
      path: the path of the file.
      max_bytes: the largest size.

    Raises:
      Refused: if it is no regular file, or larger.
      ValueError: if it is not UTF-8.
      OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Refused(f"{path} is larger than {max_bytes / 1e6:g} MB: a text file is needed")
    return content.decode("utf-8")
