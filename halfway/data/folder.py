"""Images in a folder or tar, `<split>/<class>/*.png` or `*.jpg`, which are read in place."""

import collections
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from halfway import files
from halfway.data import images, listing
from halfway.data.arrays import (
    DataError,
    Dataset,
    DataWarning,
    Split,
    damaged,
    make_dataset,
    make_split,
)

SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
"""The split that the name of a folder stands for."""


def load(name: str, path: Path, *, max_gb: float = files.MAX_GB) -> Dataset:
    """Returns the images of a folder or tar, classes numbered in the order of their names.

    The splits are `train` and `test`. The latter may also be called `val`, `valid` or `validation`;
    where it is missing, it has no examples. Splits may lie deeper in the folder. Links are followed
    within the folder or tar. Hidden files are skipped, and so are files that do not end in .png,
    .jpg or .jpeg, of which a `DataWarning` says how many lie in splits. Images are grey if all
    files are grey, else RGB; transparency is dropped.

    Args:
      name: the name of the data set.
      path: the path of a folder, or of a tar, compressed or not.
      max_gb: gigabytes that the images may take in memory as float32, and the files unpacked.

    Raises:
      DataError: if the path does not exist, a file cannot be read or is no PNG or JPEG, a link
        leads elsewhere, what is called an image is no regular file, a split is empty, images differ
        in size, or the test split has a class that the train split lacks.
      files.Refused: if there is more to read than the limit allows.
    """
    if not path.exists():
        raise DataError(
            f"{name}: {path} does not exist; folder:PATH needs <split>/<class>/*.png or *.jpg, or "
            "a tar of that"
        )
    try:
        read = listing.read_folder if path.is_dir() else listing.read_tar
        reached, contents = read(path, max_gb)
    except OSError as error:
        raise damaged(path, error) from error
    parts = _sort_out(path, reached)
    class_names = sorted({label for label, _ in parts["train"]})
    if strange := sorted({label for label, _ in parts["test"]} - set(class_names)):
        raise DataError(f"{path}: the test split has a class {strange[0]!r} that train lacks")
    if len(class_names) < 2:
        raise DataError(f"{path} has one class, {class_names[0]!r}: at least two are needed")
    numbers = {label: number for number, label in enumerate(class_names)}
    files_of = {file: contents[reached.images[file]] for part in parts.values() for _, file in part}
    pixels = images.read(files_of, path, max_gb=max_gb)
    border = len(parts["train"])
    train, test = (
        _split(rows, [numbers[label] for label, _ in part])
        for rows, part in ((pixels[:border], parts["train"]), (pixels[border:], parts["test"]))
    )
    return make_dataset(name, train, test, class_names)


def _sort_out(path: Path, reached: listing.Reached) -> dict[str, list[tuple[str, PurePosixPath]]]:
    """Returns class and name of the images of train and test, sorted."""
    depth = _depth(list(reached.images))
    # What links lead to may lie beside the splits.
    linked = {real for place, real in reached.images.items() if place != real}
    parts: dict[str, list[tuple[str, PurePosixPath]]] = {"train": [], "test": []}
    folders = set()
    for name in sorted(reached.images):
        place = name.parts[depth:]
        if len(place) != 3 or place[0] not in SPLITS:
            if name in linked:
                continue
            raise DataError(
                f"{path}/{name} is not at <split>/<class>/<image>: the splits are train and test "
                "(or val, valid, validation)"
            )
        if not place[1].isprintable():
            raise DataError(f"{path} has a class {place[1]!r}, which cannot be printed: rename it")
        folders.add(place[0])
        parts[SPLITS[place[0]]].append((place[1], name))
    within = [name for name in reached.folders if len(name.parts) > depth]
    named = {name.parts[depth] for name in within} & set(SPLITS)
    for part in ("train", *sorted(named)):
        if part not in folders:
            raise DataError(f"{path}: split {part!r} is empty, it needs images in {part}/<class>/")
    if len(folders - {"train"}) > 1:
        raise DataError(
            f"{path} has several splits to test on ({', '.join(sorted(folders - {'train'}))}): "
            "keep one"
        )
    skipped = [name for name in reached.skipped if set(name.parts[depth : depth + 1]) & set(SPLITS)]
    if skipped:
        kinds = collections.Counter(name.suffix or "without ending" for name in skipped)
        listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(5))
        warnings.warn(
            f"{path}: skipped {listed} in {' and '.join(sorted(folders))}, e.g. {min(skipped)}: an "
            f"image ends in {', '.join(images.ENDINGS)}",
            DataWarning,
            stacklevel=5,
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


def _split(pixels: np.ndarray, labels: Sequence[int]) -> Split:
    return make_split(pixels, np.asarray(labels, np.int32))
