"""Named data sets as arrays in memory; the only room of the library that reads data files.

`digits` are the 1,797 images of 8×8 pixels that scikit-learn ships (the test set of Alpaydin and
Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998), in scikit-learn's order: the first
1,437 are `train`, the last 360 `test`. They are prepared on first use.

`mixture` are 6,000 and 1,000 images of 8×8 pixels drawn from ten Gaussian classes, whose Bayes
classifier is known (`halfway.data.synthetic.mixture`). `mnist1d` are 4,000 and 1,000 signals of 40
points (`halfway.data.mnist1d`), images of one row. Both are made in memory, without a file.

`mnist`, `fashion_mnist`, `cifar10` and `cifar100` are read where TensorFlow Datasets (TFDS) or
`prepare` has prepared them, in the same order from both; `cifar10_jpeg`, a re-encoded copy, where
`prepare` has. `folder:PATH` is a tree of images, or a tar of such a tree. Any other name is a data
set that a user has prepared with TFDS. Prepared data sets are ArrayRecord files, which need no
TensorFlow. There is no network access.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfway import files
from halfway.data import digits, folder, mnist1d, original, prepared, raw, reencoded
from halfway.data.arrays import DataError, Dataset, DataWarning, Split, checksum
from halfway.data.prepared import default_root

if TYPE_CHECKING:
    from halfway.data.noise import add_label_noise
    from halfway.data.synthetic import (
        GaussianMixture,
        LinearRegression,
        Teacher,
        gaussian_mixture,
        linear_regression,
        mixture,
        teacher,
    )

__all__ = [
    "DIGITS_CHECKSUM",
    "DataError",
    "DataWarning",
    "Dataset",
    "GaussianMixture",
    "LinearRegression",
    "Split",
    "Teacher",
    "add_label_noise",
    "checksum",
    "default_root",
    "gaussian_mixture",
    "linear_regression",
    "load",
    "mixture",
    "names",
    "preparable",
    "prepare",
    "teacher",
]

DIGITS_CHECKSUM = digits.CHECKSUM
_FOLDER = "folder:"


_WITH_JAX = {
    "GaussianMixture": "synthetic",
    "LinearRegression": "synthetic",
    "Teacher": "synthetic",
    "add_label_noise": "noise",
    "gaussian_mixture": "synthetic",
    "linear_regression": "synthetic",
    "mixture": "synthetic",
    "teacher": "synthetic",
}


def __getattr__(name: str) -> Any:
    """Imports what needs JAX when it is first used, since reading images does not need JAX."""
    if name not in _WITH_JAX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WITH_JAX[name]}"), name)


def _mixture(data_dir: str | os.PathLike[str] | None) -> Dataset:
    del data_dir  # it needs no file
    from halfway.data import synthetic

    return synthetic.load_mixture()


def _mnist1d(data_dir: str | os.PathLike[str] | None, value_range: Sequence[float] = ()) -> Dataset:
    del data_dir  # it needs no file
    return mnist1d.load(value_range)


_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
    "mixture": _mixture,
    "mnist1d": _mnist1d,
}
"""Data sets that need no files of a user: each a function of the data folder."""
_SIGNALS = ("mnist1d",)
"""Data sets whose values are no pixels: their functions take a range of values too."""


def names(data_dir: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Returns the names that `load` finds in a data folder, sorted.

    `load` also takes `folder:PATH`, which is not listed.

    Args:
      data_dir: data folder; None for TFDS's default.
    """
    return tuple(sorted({*_LOADERS, *prepared.available(prepared.root(data_dir))}))


def preparable() -> tuple[str, ...]:
    """Returns the names that `prepare` knows, sorted."""
    return tuple(sorted({*raw.IDX, *raw.CIFAR, reencoded.CIFAR10_JPEG}))


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    value_range: Sequence[float] = (),
    max_gb: float = files.MAX_GB,
) -> Dataset:
    """Returns a data set by its name, with all arrays in memory.

    The first `load` of `digits` prepares them under the data folder. Where the folder cannot be
    written, or its content cannot be read, the digits come from scikit-learn's copy with a
    `DataWarning`: the same arrays with the same checksum.

    Args:
      name: "digits", "mixture", "mnist1d", "folder:PATH", or `NAME[/CONFIG][:VERSION]` of what is
        prepared in the data folder; the newest version by default.
      data_dir: data folder; None for TFDS's default (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).
      value_range: for signals, the two values that become 0 and 1; empty for the data set's own.
        Pixels are scaled by the largest that they can be.
      max_gb: gigabytes that may be read into memory from files: sizes are compared before.

    Raises:
      DataError: if there is no such data set, or it cannot be read; the message says what to do.
    """
    try:
        return _load(str(name), data_dir, value_range, max_gb)
    except files.Refused as error:
        raise DataError(str(error)) from error


def _load(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    value_range: Sequence[float],
    max_gb: float,
) -> Dataset:
    """Returns a data set by its name."""
    if name in _SIGNALS:
        return _LOADERS[name](data_dir, value_range)
    if len(value_range):
        raise DataError(f"value_range is for signals ({', '.join(_SIGNALS)}), {name!r} has pixels")
    if name in _LOADERS:
        return _LOADERS[name](data_dir)
    if name.startswith(_FOLDER):
        return folder.load(name, Path(name.removeprefix(_FOLDER)).expanduser(), max_gb=max_gb)
    root = prepared.root(data_dir)
    place = prepared.find(name, root)
    if place is None:
        raise prepared.missing(name, root, tuple(_LOADERS), preparable())
    return prepared.load(name, place, max_gb=max_gb)


def prepare(
    name: str,
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Dataset:
    """Returns a data set after preparing it in the data folder from its original files.

    It is written as TFDS's builder of that name writes it, but without TensorFlow, and appears
    whole or not at all. A data set that is prepared already is left as it is.

    Args:
      name: a name that `preparable()` returns.
      source: folder of the original files: for MNIST the four idx files, bare, `.gz` or `.xz`; for
        Fashion-MNIST the four `.gz` files; for CIFAR the binary archive, or the path of the
        archive itself; for `cifar10_jpeg` the folder or tar of its images.
      data_dir: data folder, made if it is missing; None for TFDS's default.
      progress: a function that wraps the examples of each split as they are written, e.g.
        `tqdm.tqdm`.

    Raises:
      DataError: if the name is unknown, or a file is missing, damaged or not the original.
    """
    if name not in preparable():
        raise DataError(
            f"{name!r} cannot be prepared from files, only {', '.join(preparable())}: folder:PATH "
            "is read in place, other data sets are prepared with TFDS"
        )
    root = prepared.root(data_dir)
    place = prepared.find(name, root)
    if place is not None:
        return load(name, data_dir)
    path = Path(source).expanduser()
    try:
        content = reencoded.read(path) if name == reencoded.CIFAR10_JPEG else raw.read(name, path)
    except (DataError, files.Refused) as error:
        raise DataError(f"{error} ({prepared.at_home(name)})") from error
    return original.write(name, content, root, progress)
