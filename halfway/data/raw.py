"""Original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, parsed from bytes.

Nothing is unpacked and nothing is unpickled. The idx files: LeCun, Cortes and Burges, *The MNIST
database of handwritten digits*; Xiao, Rasul and Vollgraf, arXiv 1708.07747. The binary archives:
Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
"""

import gzip
import hashlib
import io
import lzma
import math
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from halfway import files
from halfway.data.arrays import DataError, check_split, damaged

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
"""Exceptions that reading a truncated or damaged archive raises."""
_DECOMPRESS: dict[str, Callable[[Any], Any]] = {
    "": lambda file: file,
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lzma.LZMAFile,
}
_MOST_BYTES = 1 << 28
"""More than any original file has, unpacked."""
_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Idx(NamedTuple):
    """A data set of four idx files.

    Attributes:
      md5: the published md5 of each file.
      packed: whether the md5 is that of the `.gz` file, so that no other file can be checked.
    """

    md5: Mapping[str, str]
    packed: bool


IDX = {
    "mnist": Idx(
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        packed=False,
    ),
    "fashion_mnist": Idx(
        {
            "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        packed=True,
    ),
}


class Cifar(NamedTuple):
    """A CIFAR data set in its binary archive.

    Attributes:
      archive: the file name of the archive.
      md5: the md5 of the archive that its authors publish.
      members: the names of the files of each split.
      labels: the feature of each label byte in front of an image, to the file of the class names.
    """

    archive: str
    md5: str
    members: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]


CIFAR = {
    "cifar10": Cifar(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        {"label": "batches.meta.txt"},
    ),
    "cifar100": Cifar(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}


class Raw(NamedTuple):
    """A data set as its original files hold it.

    Attributes:
      splits: for each split, images `[N, H, W, D]` uint8, and labels `[N]` of each label feature.
      class_names: the class names of each label feature that has names.
      builder: the TFDS builder whose features it has; empty where that has the name of the data
        set.
    """

    splits: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]
    class_names: Mapping[str, tuple[str, ...]] = {}
    builder: str = ""


def read(name: str, source: Path) -> Raw:
    """Returns a data set from its original files.

    Args:
      name: "mnist", "fashion_mnist", "cifar10" or "cifar100".
      source: the folder of the files; for CIFAR it may be the archive itself.

    Raises:
      DataError: if a file is missing, damaged, or not the original.
    """
    if not source.exists():
        raise DataError(f"--source={source} does not exist: name the folder of the original files")
    if name in CIFAR:
        return _read_cifar(CIFAR[name], source)
    return _read_idx_pairs(IDX[name], source)


def _read_idx_pairs(kind: Idx, source: Path) -> Raw:
    places = {stem: _find_idx(kind, source, stem) for pair in _PARTS.values() for stem in pair}
    splits = {}
    for part, (image_stem, label_stem) in _PARTS.items():
        images = _read_idx(kind, places[image_stem], image_stem, 3)[..., None]
        labels = _read_idx(kind, places[label_stem], label_stem, 1)
        check_split(images, labels, 10, places[label_stem])
        splits[part] = images, {"label": labels}
    return Raw(splits)


def _find_idx(kind: Idx, source: Path, stem: str) -> Path:
    endings = (".gz",) if kind.packed else tuple(_DECOMPRESS)
    stems = (stem, stem.replace("-idx", ".idx"))  # some mirrors write a dot
    for path in (source / f"{name}{ending}" for name in stems for ending in endings):
        if path.is_file():
            return path
    if kind.packed and any(path.name.startswith(stem) for path in source.glob("*")):
        raise DataError(
            f"{source} holds {stem} without .gz: only the checksum of {stem}.gz is published, so "
            "name the folder of the .gz files"
        )
    kinds = " or ".join(ending or "bare" for ending in endings)
    raise DataError(f"{source} lacks {stem} ({kinds}): name the folder of the original files")


def _read_idx(kind: Idx, path: Path, stem: str, num_axes: int) -> np.ndarray:
    """Returns the array of an idx file, its checksum verified."""
    ending = path.suffix if path.suffix in _DECOMPRESS else ""  # ".idx3-ubyte" is none
    try:
        stored = files.read(path, max_gb=_MOST_BYTES / 1e9)
        content = _at_most(_DECOMPRESS[ending](io.BytesIO(stored)), path)
    except DAMAGED as error:
        raise damaged(path, error) from error
    array = parse_idx(content, path, num_axes)
    digest = hashlib.md5(stored if kind.packed else content).hexdigest()
    _compare_md5(path, digest, kind.md5[stem])
    return array


def _at_most(file: Any, path: Path) -> bytes:
    """Returns the content of a file that is no larger than any original one."""
    content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} unpacks to more than any original file has: get it again")
    return content


def parse_idx(content: bytes, path: Path, num_axes: int) -> np.ndarray:
    """Returns the uint8 array of `num_axes` axes that the bytes of an idx file hold.

    Args:
      content: two zero bytes, 8 for uint8, the number of axes, the big-endian sizes, the data.
      path: the path of the file, for the message.
      num_axes: the number of axes that is expected.

    Raises:
      DataError: if the bytes are not such a file, or have another length than the header says.
    """
    start = 4 + 4 * num_axes
    if content[:4] != bytes((0, 0, 8, num_axes)) or len(content) < start:
        raise DataError(f"{path} is no idx file of bytes with {num_axes} axes: get it again")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", num_axes, 4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} holds {len(content)} bytes where its header says {expected}: it is truncated "
            "or damaged, get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_cifar(kind: Cifar, source: Path) -> Raw:
    path = source / kind.archive if source.is_dir() else source
    if not path.is_file():
        pickled = kind.archive.replace("binary", "python")
        why = (
            f"; {pickled} beside it holds pickles, which are never opened"
            if (source / pickled).exists()
            else ""
        )
        raise DataError(f"{source} lacks {kind.archive}{why}: get {kind.archive}")
    wanted = {*kind.labels.values(), *(name for names in kind.members.values() for name in names)}
    contents = {}
    try:
        with files.open_regular(path) as file:
            # First: an archive with the digest of the original is no other, and harmless.
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        _compare_md5(path, md5, kind.md5)
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and name in wanted:
                    contents[name] = content.read()
    except DAMAGED as error:
        raise damaged(path, error) from error
    if absent := sorted(wanted - set(contents)):
        raise DataError(f"{path} lacks {absent[0]}: it is another archive than {kind.archive}")
    names = {
        feature: tuple(contents[file].decode().split()) for feature, file in kind.labels.items()
    }
    splits = {}
    for part, members in kind.members.items():
        content = b"".join(contents[name] for name in members)
        images, labels = parse_cifar(content, path, len(kind.labels))
        columns = dict(zip(kind.labels, labels.T, strict=True))
        for feature, column in columns.items():
            check_split(images, column, len(names[feature]), f"{path} ({part})")
        splits[part] = images, columns
    return Raw(splits, names)


def parse_cifar(content: bytes, path: Path, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[N, 32, 32, 3]` and labels `[N, num_labels]` of binary CIFAR files.

    Args:
      content: for each example its label bytes, then 1,024 bytes each of red, green and blue.
      path: the path of the archive, for the message.
      num_labels: the number of label bytes of an example.

    Raises:
      DataError: if the length is no multiple of the length of an example.
    """
    size = num_labels + 3 * 32 * 32
    if len(content) % size:
        raise DataError(
            f"{path} holds {len(content)} bytes in a split, no multiple of {size}: it is truncated "
            "or damaged, get it again"
        )
    examples = np.frombuffer(content, np.uint8).reshape(-1, size)
    images = examples[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, examples[:, :num_labels]


def _compare_md5(path: Path, md5: str, expected: str) -> None:
    if md5 != expected:
        raise DataError(
            f"{path} has md5 {md5} where the original has {expected}: it is damaged or another "
            "file, get it again"
        )
