"""Images in a folder or tar, `<split>/<class>/*.png` or `*.jpg`, which are read in place."""

import io
import tarfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from halfway.data.arrays import DataError, Dataset, Split, damaged, make_dataset, make_split
from halfway.data.raw import DAMAGED

ENDINGS = (".png", ".jpg", ".jpeg")
SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
"""The split that the name of a folder stands for."""
_GREY, _COLOURED = ("L", "1"), ("RGB", "P", "RGBA", "LA", "CMYK", "YCbCr")
_BLOCK = 512  # of a tar


class _Tree(NamedTuple):
    """What a folder or tar holds: decoded images by name, and the names of its folders."""

    images: Mapping[PurePosixPath, Any]
    folders: Iterable[PurePosixPath]


def load(name: str, path: Path) -> Dataset:
    """Returns the images of a folder or tar, classes numbered in the order of their names.

    The splits are `train` and `test`. The latter may also be called `val`, `valid` or `validation`;
    where it is missing, it has no examples. Splits may lie deeper in the folder. Hidden files and
    files that are no PNG or JPEG are skipped. Images are grey if all files are grey, else RGB;
    transparency is dropped.

    Args:
      name: the name of the data set.
      path: the path of a folder, or of a tar, compressed or not.

    Raises:
      DataError: if the path does not exist, a file cannot be read, a split is empty, images differ
        in size, or the test split has a class that the train split lacks.
    """
    if not path.exists():
        raise DataError(
            f"{name}: {path} does not exist; folder:PATH needs <split>/<class>/*.png or *.jpg, or "
            "a tar of that"
        )
    tree = _read_folder(path) if path.is_dir() else _read_tar(path)
    parts = _sort_out(path, tree)
    class_names = sorted({label for label, _ in parts["train"]})
    if strange := sorted({label for label, _ in parts["test"]} - set(class_names)):
        raise DataError(f"{path}: the test split has a class {strange[0]!r} that train lacks")
    if len(class_names) < 2:
        raise DataError(f"{path} has one class, {class_names[0]!r}: at least two are needed")
    numbers = {label: number for number, label in enumerate(class_names)}
    _check_sizes(path, tree.images)
    like = next(iter(tree.images.values()))
    grey = all(image.mode in _GREY for image in tree.images.values())
    train, test = (
        _split([(numbers[label], tree.images[file]) for label, file in part], like, grey)
        for part in (parts["train"], parts["test"])
    )
    return make_dataset(name, train, test, class_names)


def _sort_out(path: Path, tree: _Tree) -> dict[str, list[tuple[str, PurePosixPath]]]:
    """Returns class and name of the images of train and test, sorted."""
    depth = _depth(list(tree.images))
    parts: dict[str, list[tuple[str, PurePosixPath]]] = {"train": [], "test": []}
    folders = set()
    for name in sorted(tree.images):
        place = name.parts[depth:]
        if len(place) != 3 or place[0] not in SPLITS:
            raise DataError(
                f"{path}/{name} is not at <split>/<class>/<image>: the splits are train and test "
                "(or val, valid, validation)"
            )
        folders.add(place[0])
        parts[SPLITS[place[0]]].append((place[1], name))
    named = {name.parts[depth] for name in tree.folders if len(name.parts) > depth} & set(SPLITS)
    for part in ("train", *sorted(named)):
        if part not in folders:
            raise DataError(f"{path}: split {part!r} is empty, it needs images in {part}/<class>/")
    if len(folders - {"train"}) > 1:
        raise DataError(
            f"{path} has several splits to test on ({', '.join(sorted(folders - {'train'}))}): "
            "keep one"
        )
    return parts


def _depth(names: Sequence[PurePosixPath]) -> int:
    """Returns how many folders lie around the splits."""
    depth = 0
    while names and len({name.parts[: depth + 1] for name in names}) == 1:
        if names[0].parts[depth] in SPLITS or len(names[0].parts) <= depth + 3:
            break
        depth += 1
    return depth


def _check_sizes(path: Path, images: Mapping[PurePosixPath, Any]) -> None:
    first, *others = sorted(images)
    for name in others:
        if images[name].size != images[first].size:
            sizes = ["×".join(map(str, images[file].size)) for file in (first, name)]
            raise DataError(
                f"{path} has images of several sizes: {first} of {sizes[0]} and {name} of "
                f"{sizes[1]} pixels; make them one size"
            )


def _split(labelled: Sequence[tuple[int, Any]], like: Any, grey: bool) -> Split:
    width, height = like.size
    images = np.zeros((len(labelled), height, width, 1 if grey else 3), np.uint8)
    for row, (_, image) in zip(images, labelled, strict=True):
        row[...] = np.asarray(image.convert("L" if grey else "RGB")).reshape(row.shape)
    return make_split(images, np.asarray([label for label, _ in labelled], np.int32))


def _read_folder(path: Path) -> _Tree:
    images, folders = {}, []
    for place in path.rglob("*"):
        name = PurePosixPath(place.relative_to(path).as_posix())
        if place.is_dir():
            folders.append(name)
        elif _is_image(name):
            try:
                content = place.read_bytes()
            except OSError as error:
                raise damaged(place, error) from error
            images[name] = _decode(content, place)
    return _Tree(images, folders)


def _read_tar(path: Path) -> _Tree:
    images, folders = {}, []
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:  # in order, since a compressed tar cannot go back
                name = PurePosixPath(member.name)
                if member.isdir():
                    folders.append(name)
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and _is_image(name):
                    images[name] = _decode(file.read(), path / name)
            _check_end(archive, path)
    except DAMAGED as error:
        raise damaged(path, error) from error
    return _Tree(images, folders)


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Raises for a tar that was cut between two members, which `tarfile` takes for its end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(_BLOCK)
    while archive.fileobj.read(1 << 20):
        pass  # to the end: a compressed file has its checksum there
    if len(block) < _BLOCK or any(block):
        raise DataError(f"{path} has no end mark: it is truncated, get it again")


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return not hidden and name.suffix.lower() in ENDINGS


def _decode(content: bytes, where: Path) -> Any:
    """Returns a decoded PIL image of 8 bits a channel."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            image.load()
    except Exception as error:  # PIL's are of every kind
        raise damaged(where, error) from error
    if image.mode not in (*_GREY, *_COLOURED):
        raise DataError(f"{where} has pixels of kind {image.mode}: save it with 8 bits a channel")
    return image
