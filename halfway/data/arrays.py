"""Labelled images as arrays in memory, and their checksum."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np


class DataWarning(UserWarning):
    """The data come from another place than was named, or files beside them are not read."""


class DataError(ValueError):
    """The data are missing, damaged or not as they should be; the message says what to do."""


class Split(NamedTuple):
    """Labelled images in memory.

    Attributes:
      images: `[N, H, W, D]` float32 in [0, 1].
      labels: `[N]` int32 in [0, C).
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set; its arrays are read-only, so that the checksum stays true.

    Attributes:
      name: the name that `load` was given.
      train: N images with their labels.
      test: other images of the same shape; no images where the data set has no such split.
      num_classes: C, the number of classes.
      version: the version, which changes when the arrays do.
      checksum: hexadecimal SHA-256 of train images, train labels, test images and test labels, from
        `checksum`.
      class_names: C names in the order of the labels; numbers where the data set has no names.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    version: str
    checksum: str
    class_names: tuple[str, ...]

    def pool(self, subset: Literal["all", "train"] = "all") -> Split:
        """Returns the examples that halves are drawn from.

        Args:
          subset: "all" for train followed by test, "train" for train only.

        Raises:
          ValueError: if `subset` is something else.
        """
        if subset == "train":
            return self.train
        if subset == "all":
            return Split(*map(np.concatenate, zip(self.train, self.test, strict=True)))
        raise ValueError(f"subset is {subset!r}, must be 'all' or 'train'")


def damaged(where: object, error: Exception) -> DataError:
    """Returns the error of a file that could not be read.

    Args:
      where: the file, for the message.
      error: the exception that reading it raised.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{where} cannot be read ({reason}): it is truncated or damaged, get it again")


def checksum(splits: Sequence[Split]) -> str:
    """Returns the hexadecimal SHA-256 of the bytes, shapes and dtypes of arrays.

    For each array of each split in turn, the digest takes `<dtype> <shape>\\n` in ASCII, such as
    `<f4 (1437, 8, 8, 1)`, then the little-endian bytes in C order.
    """
    digest = hashlib.sha256()
    for array in (array for split in splits for array in split):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str} {array.shape}\n".encode("ascii"))
        digest.update(array.data)
    return digest.hexdigest()


def make_dataset(
    name: str, train: Split, test: Split, class_names: Sequence[str], version: str | None = None
) -> Dataset:
    """Returns a data set of arrays, which become read-only.

    Args:
      name: the name that `load` was given.
      train: the split to train on.
      test: the split to test on, of images of the same shape.
      class_names: C names in the order of the labels.
      version: the version; None for the first digits of the checksum.
    """
    for array in (*train, *test):
        array.flags.writeable = False
    digest = checksum((train, test))
    names = tuple(class_names)
    return Dataset(name, train, test, len(names), version or digest[:12], digest, names)


def make_split(images: np.ndarray, labels: np.ndarray, levels: int = 255) -> Split:
    """Returns a split of images that are scaled to [0, 1].

    Args:
      images: `[N, H, W, D]` integers in [0, `levels`].
      labels: `[N]` integers.
      levels: the largest value that a pixel can have.
    """
    scaled = images.astype(np.float32)
    scaled /= np.float32(levels)
    return Split(scaled, labels.astype(np.int32))


def check_split(images: np.ndarray, labels: np.ndarray, num_classes: int, where: object) -> None:
    """Checks images and labels that were read.

    Args:
      images: `[N, H, W, D]`, which should be uint8 and not empty.
      labels: `[N]`, which should be integers in [0, `num_classes`).
      num_classes: C, the number of classes.
      where: file or folder, for the message.

    Raises:
      DataError: if images or labels are not so; the message names `where`.
    """
    if len(images) == 0:
        raise DataError(f"{where} is an empty split: it needs at least one image")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{where} holds images {images.dtype} of shape {images.shape[1:]}: they must be uint8 "
            "[height, width, channels]"
        )
    if len(labels) != len(images):
        raise DataError(f"{where} holds {len(labels)} labels for {len(images)} images")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{where} has label {labels[wrong[0]]} at example {wrong[0]}, outside of 0 to "
            f"{num_classes - 1}: it is damaged or another data set"
        )
