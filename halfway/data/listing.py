"""What lies in a folder or tar by name, and which images are reached within it, links followed.

Links are followed where they lead to something in the same folder or tar, and refused elsewhere:
then an image or a class would be missing, or come from outside. The same rules hold for both.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from halfway import files
from halfway.data.arrays import DataError, damaged
from halfway.data.images import ENDINGS

_FILE, _FOLDER, _LINK = "a file", "a folder", "a link"
_ROOT = PurePosixPath()
_OUTSIDE, _CIRCLE = "a link out of it or to nowhere", "a link in a circle"
_MOST_NAMES, _MOST_HOPS = 5_000_000, 40
_BLOCK, _PIECE, _AFTER = 512, 1 << 20, 1 << 26
"""Bytes of a block of a tar, that are read at once, and that may follow its end, at most."""
_UNPACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZ": bz2.BZ2File,
    b"\xfd7": lzma.LZMAFile,
    b"]\x00": lzma.LZMAFile,
}
"""What unpacks a file, by its first bytes."""


class Entry(NamedTuple):
    """What a name in a folder or tar stands for.

    Attributes:
      kind: "a file", "a folder", "a link", or what else it is, in words.
      size: of a file, in bytes.
      target: of a link, where it leads from the folder `base`; None if that is outside.
      base: the folder that `target` begins at.
    """

    kind: str
    size: int = 0
    target: PurePosixPath | None = None
    base: PurePosixPath = _ROOT


class Reached(NamedTuple):
    """The images that are reached in a folder or tar.

    Attributes:
      images: the name of each image to the name of the file that holds it, another through a link.
      folders: the names of the folders.
      skipped: the names of files that are neither images nor hidden.
    """

    images: dict[PurePosixPath, PurePosixPath]
    folders: set[PurePosixPath]
    skipped: list[PurePosixPath]


def is_hidden(name: PurePosixPath) -> bool:
    """Returns whether a name, or a folder that it lies in, is hidden.

    Args:
      name: relative to the folder or tar.
    """
    return any(part.startswith((".", "__MACOSX")) for part in name.parts)


def has_image_name(name: PurePosixPath) -> bool:
    """Returns whether a name has the ending of a PNG or JPEG.

    Args:
      name: the name of a file.
    """
    return name.suffix.lower() in ENDINGS


def read_folder(path: Path, max_gb: float) -> tuple[Reached, dict[PurePosixPath, bytes]]:
    """Returns the images in a folder and below, and the content of each.

    Args:
      path: the folder.
      max_gb: gigabytes that all their files may have.

    Raises:
      DataError: if a link leads outside, or what has the name of an image is no regular file.
      files.Refused: if the files are larger.
      OSError: if a folder or file cannot be read.
    """
    entries: dict[PurePosixPath, Entry] = {}
    root, waiting = path.resolve(), [_ROOT]
    while waiting:
        folder = waiting.pop()
        with os.scandir(path / folder) as places:
            for place in places:
                name = folder / place.name
                entries[name] = entry = _entry(place, root)
                _check_number(path, len(entries))
                if entry.kind == _FOLDER:
                    waiting.append(name)
    reached = reach(path, entries)
    sizes = {real: entries[real].size for real in reached.images.values()}
    files.check_size(path, sum(sizes.values()), max_gb)
    contents = {real: files.read(path / real, max_gb=max_gb) for real in sizes}
    return reached, contents


def _entry(place: os.DirEntry, root: Path) -> Entry:
    status = place.stat(follow_symlinks=False)
    if not place.is_symlink():
        return Entry(files.kind_of(status.st_mode), status.st_size)
    try:
        real = Path(place.path).resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return Entry(_LINK)
    inside = real.is_relative_to(root)
    return Entry(_LINK, 0, PurePosixPath(real.relative_to(root)) if inside else None)


def read_tar(path: Path, max_gb: float) -> tuple[Reached, dict[PurePosixPath, bytes]]:
    """Returns the images in a tar, compressed or not, and the content of each.

    Args:
      path: the tar.
      max_gb: gigabytes that it may have, unpacked.

    Raises:
      DataError: if it is damaged, a link leads outside, or what has the name of an image is no
        regular file.
      files.Refused: if it is no regular file, or larger.
    """
    entries, contents = _members(
        path, max_gb, lambda name: has_image_name(name) and not is_hidden(name)
    )
    reached = reach(path, entries)
    wanted = set(reached.images.values())
    if more := wanted - set(contents):  # links lead to names that no image has
        contents |= _members(path, max_gb, more.__contains__)[1]
    return reached, {name: contents[name] for name in wanted}


def _members(
    path: Path, max_gb: float, is_wanted: Callable[[PurePosixPath], bool]
) -> tuple[dict[PurePosixPath, Entry], dict[PurePosixPath, bytes]]:
    """Returns what the names in a tar stand for, and the contents of those that are wanted."""
    entries: dict[PurePosixPath, Entry] = {}
    contents: dict[PurePosixPath, bytes] = {}
    try:
        with files.open_regular(path) as file:
            unpack = _UNPACKED.get(file.peek(2)[:2])
            stream = _Forward(unpack(file) if unpack else file, path, max_gb)
            archive = tarfile.TarFile(fileobj=stream, mode="r")  # pyright: ignore
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore (it would keep them all)
                name = _name(path, member)
                entry = _member(path, name, member)
                if name in entries and (entry.kind, entries[name].kind) != (_FOLDER, _FOLDER):
                    raise DataError(f"{path} holds {name} twice: pack it anew")
                entries[name] = entry
                _check_number(path, len(entries))
                if entry.kind == _FILE and is_wanted(name):
                    files.check_size(f"{path}/{name}", stream.tell() + member.size, max_gb)
                    stream.seek(member.offset_data)
                    contents[name] = stream.content(member.size)
            stream.check_end()
    except (DataError, files.Refused, MemoryError):
        raise
    except Exception as error:  # tarfile's are of every kind
        raise damaged(path, error) from error
    return entries, contents


def _name(path: Path, member: tarfile.TarInfo) -> PurePosixPath:
    parts = PurePosixPath(member.name.lstrip("/")).parts
    if ".." in parts:
        raise DataError(f"{path} holds {member.name!r}, which leads outside: nothing is read")
    return PurePosixPath(*parts)


def _member(path: Path, name: PurePosixPath, member: tarfile.TarInfo) -> Entry:
    if member.issym():
        target = PurePosixPath(member.linkname)
        return Entry(_LINK, 0, None if target.is_absolute() else target, name.parent)
    if member.islnk():
        return Entry(_LINK, 0, PurePosixPath(member.linkname.lstrip("/")))
    if member.issparse() or member.size < 0:
        raise DataError(f"{path}/{name} is stored with holes, or damaged: pack it without --sparse")
    if member.isfile():
        return Entry(_FILE, member.size)
    if member.isdir():
        return Entry(_FOLDER)
    return Entry("a FIFO" if member.isfifo() else "a device" if member.isdev() else "no file")


class _Forward:
    """A file that is read from its beginning to its end, in pieces, and within a limit.

    Going back, which hostile headers ask for, would never end.
    """

    def __init__(self, file: Any, path: Path, max_gb: float):
        self._file, self._path, self._max_gb = file, path, max_gb
        self._is_packed = not isinstance(file, io.BufferedReader)
        self._last = b""

    def tell(self) -> int:
        """Returns how far it was read."""
        return self._file.tell()

    def seek(self, position: int) -> int:
        """Goes on to a position."""
        if position < self.tell():
            raise DataError(f"{self._path} leads back to its own beginning: it is damaged")
        if self._is_packed:  # it has to be unpacked up to there
            files.check_size(self._path, position, self._max_gb)
        return self._file.seek(position)

    def read(self, size: int) -> bytes:
        """Returns a header, or a part of one."""
        if not 0 <= size <= _PIECE:
            raise DataError(f"{self._path} has a header of {size:,} bytes: it is damaged")
        self._last = self._file.read(size)
        return self._last

    def content(self, size: int) -> bytes:
        """Returns the content of a member."""
        pieces = []
        while size > 0:
            pieces.append(self._file.read(min(size, _PIECE)))
            if not pieces[-1]:
                raise EOFError("it ends within a file")
            size -= len(pieces[-1])
        return b"".join(pieces)

    def check_end(self) -> None:
        """Raises where what was read last is no end mark: `tarfile` takes a cut for the end."""
        if len(self._last) < _BLOCK or any(self._last):
            raise DataError(f"{self._path} has no end mark: it is truncated, get it again")
        most = self.tell() + _AFTER
        while self._is_packed and self._file.read(_PIECE):  # its checksum comes last
            if self.tell() > most:
                raise DataError(f"{self._path} goes on for long after its end mark: it is damaged")


def _check_number(path: Path, number: int) -> None:
    if number > _MOST_NAMES:
        raise DataError(f"{path} holds more than {_MOST_NAMES:,} names: name a smaller folder")


def reach(path: Path, entries: Mapping[PurePosixPath, Entry]) -> Reached:
    """Returns the images that are reached from the root, through links too.

    Args:
      path: of the folder or tar, for messages.
      entries: what lies in it by name; folders around a name may be left out.

    Raises:
      DataError: for a link that leads outside, nowhere or in a circle, a name that is a folder and
        something else, and what has the name of an image and is no file; the message has their
        number and one of them.
    """
    below = _children(path, entries)
    reached, faults = Reached({}, set(), []), dict[str, list[str]]()
    waiting: list[tuple[PurePosixPath, PurePosixPath, tuple[PurePosixPath, ...]]]
    waiting = [(_ROOT, _ROOT, (_ROOT,))]
    number, most = 0, 10 * len(entries) + 10_000
    while waiting:
        folder, shown, around = waiting.pop()
        for name in sorted(below[folder]):
            place = shown / name.name
            if is_hidden(PurePosixPath(name.name)):
                continue
            number += 1
            if number > most:  # folders that link to each other have no end of paths
                raise DataError(f"{path} holds links that lead to the same again and again")
            real, fault = _follow(entries, below, name)
            kind = _FOLDER if real in below else entries[real].kind if not fault else ""
            if not fault and kind == _FOLDER and real in around:
                fault = _CIRCLE
            if not fault and kind != _FILE and kind != _FOLDER and has_image_name(name):
                fault = f"{kind} in the place of an image"
            if fault:
                faults.setdefault(fault, []).append(str(place))
            elif kind == _FOLDER:
                reached.folders.add(place)
                waiting.append((real, place, (*around, real)))
            elif has_image_name(name):
                reached.images[place] = real
            else:
                reached.skipped.append(place)
    if faults:
        listed = "; ".join(
            f"{fault}: {len(names):,}, e.g. {min(names)}" for fault, names in faults.items()
        )
        raise DataError(
            f"{path} holds what is not followed or opened ({listed}): remove it, or put the files "
            "themselves in its place"
        )
    return reached


def _children(
    path: Path, entries: Mapping[PurePosixPath, Entry]
) -> dict[PurePosixPath, set[PurePosixPath]]:
    """Returns the names in each folder."""
    below: dict[PurePosixPath, set[PurePosixPath]] = {_ROOT: set()}
    for name, entry in entries.items():
        if entry.kind == _FOLDER and name != _ROOT:
            below.setdefault(name, set())
        while name != _ROOT:
            parent = name.parent
            kind = entries[parent].kind if parent in entries else _FOLDER
            if kind != _FOLDER:
                raise DataError(f"{path}/{parent} is {kind}, and yet {name} lies in it")
            known = parent in below and name in below[parent]
            below.setdefault(parent, set()).add(name)
            if known:
                break
            name = parent
    return below


def _follow(
    entries: Mapping[PurePosixPath, Entry], below: Mapping[PurePosixPath, Any], name: PurePosixPath
) -> tuple[PurePosixPath, str]:
    """Returns the name that a name stands for once all links are followed, or what is wrong."""
    place, parts, hops = _ROOT, list(reversed(name.parts)), 0
    while parts:
        part = parts.pop()
        if part == "..":
            if place == _ROOT:
                return name, _OUTSIDE
            place = place.parent
            continue
        place = place / part
        entry = entries.get(place)
        if entry is not None and entry.kind == _LINK:
            hops += 1
            if entry.target is None:
                return name, _OUTSIDE
            if hops > _MOST_HOPS:
                return name, _CIRCLE
            parts += reversed(entry.target.parts)
            place = entry.base
        elif entry is None and place not in below:
            return name, _OUTSIDE
    return place, ""
