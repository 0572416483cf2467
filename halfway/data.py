"""Named data sets as arrays in memory; the only module of the library that reads data files.

`digits` are the 1,797 images of 8×8 pixels that scikit-learn ships (the test set of Alpaydin and
Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998), in scikit-learn's order: the first
1,437 are `train`, the last 360 `test`. They are kept as a TensorFlow Datasets (TFDS) data set that
is prepared on first use, as ArrayRecord and without TensorFlow. TFDS is imported by `load`, never
with this module.

A data set is one function `data folder -> Dataset` in `_LOADERS`.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

DIGITS_CHECKSUM = "2e4e5fbc06151516ddd3dfcceef556fbad03bc289d14a52991fa5e8532862aa2"
"""`Dataset.checksum` of `digits`, version 1.0.0."""

_DIGITS_VERSION = "1.0.0"
_DIGITS_LEVELS = 16  # grey values are the integers 0 to 16
_DIGITS_TRAIN = 1437


class DataWarning(UserWarning):
    """Data came from another place than asked for; the arrays are what they should be."""


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
      name: as given to `load`.
      train: `Split` of N images.
      test: `Split` of other images of the same shape.
      num_classes: C.
      version: changes when the arrays do.
      checksum: hexadecimal SHA-256 of train images, train labels, test images, test labels, see
        `checksum`.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    version: str
    checksum: str

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


def names() -> tuple[str, ...]:
    """Returns the names that `load` knows, sorted."""
    return tuple(sorted(_LOADERS))


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Returns a data set by its name, with all arrays in memory.

    The first `load` of a data set of ours prepares it under the data folder. Where that folder
    cannot be written or what is in it cannot be read, `digits` come from scikit-learn's own copy
    with a `DataWarning`: the same arrays with the same checksum. There is no network access.

    Args:
      name: one of `names()`.
      data_dir: data folder, made if it is missing; None for TFDS's default (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in _LOADERS:
        close = difflib.get_close_matches(str(name).lower(), names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown data set {name!r}, known: {', '.join(names())}{hint}")
    return _LOADERS[name](data_dir)


def checksum(splits: Sequence[Split]) -> str:
    """Returns the hexadecimal SHA-256 of arrays: of their bytes, shapes and dtypes.

    For each array of each split in turn, the digest takes `<dtype> <shape>\\n` in ASCII, such as
    `<f4 (1437, 8, 8, 1)`, then the little-endian bytes in C order.
    """
    digest = hashlib.sha256()
    for array in (array for split in splits for array in split):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str} {array.shape}\n".encode("ascii"))
        digest.update(array.data)
    return digest.hexdigest()


def _dataset(name: str, train: Split, test: Split, num_classes: int, version: str) -> Dataset:
    for array in (*train, *test):
        array.flags.writeable = False
    return Dataset(name, train, test, num_classes, version, checksum((train, test)))


def _split(images: np.ndarray, labels: np.ndarray, levels: int) -> Split:
    """Returns integer images `[N, H, W, D]` divided by their largest value, `levels`."""
    return Split(images.astype(np.float32) / np.float32(levels), labels.astype(np.int32))


# Digits


def _load_digits(data_dir: str | os.PathLike[str] | None) -> Dataset:
    # TFDS, ArrayRecord and the file system fail with exceptions of every kind, and none of them
    # may stop a run whose data ship with a dependency.
    try:
        with _quiet():
            return _prepared_digits(data_dir)
    except Exception as error:
        folder = "TFDS's default data folder" if data_dir is None else f"data folder {data_dir}"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"the same digits come from scikit-learn, because {folder} cannot be used: {reason}. "
            f"Name one that can be written, or delete digits/{_DIGITS_VERSION} in it if damaged",
            DataWarning,
            stacklevel=3,
        )
        return _digits(*(_split(*arrays, _DIGITS_LEVELS) for arrays in _sklearn_digits().values()))


def _prepared_digits(data_dir: str | os.PathLike[str] | None) -> Dataset:
    root = _root(data_dir)
    builder = _digits_builder()(data_dir=root)
    if (Path(builder.data_dir) / "dataset_info.json").exists():
        return _read_digits(builder)
    _prepare(_digits_builder(), root, _read_digits)
    return _read_digits(_digits_builder()(data_dir=root))


def _read_digits(builder: Any) -> Dataset:
    dataset = _digits(*(_read(builder, part, _DIGITS_LEVELS) for part in ("train", "test")))
    if dataset.checksum != DIGITS_CHECKSUM:
        raise ValueError(f"{builder.data_dir} does not hold the digits of scikit-learn")
    return dataset


def _digits(train: Split, test: Split) -> Dataset:
    return _dataset("digits", train, test, num_classes=10, version=_DIGITS_VERSION)


def _sklearn_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns images `[N, 8, 8, 1]` uint8 in 0..16 and labels `[N]` of train and test."""
    from sklearn.datasets import load_digits  # takes a second, and only the first load needs it

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    first = _DIGITS_TRAIN
    return {"train": (images[:first], labels[:first]), "test": (images[first:], labels[first:])}


@functools.cache
def _digits_builder() -> Any:
    """Returns the class of the TFDS builder, which cannot be defined before TFDS is imported."""
    import tensorflow_datasets as tfds

    class LocalInfo(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Does nothing: TFDS would look for a data set of this name on the network."""

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Digits of scikit-learn, grey values 0 to 16 as they are."""

        VERSION = tfds.core.Version(_DIGITS_VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(8, 8, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                    ),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            )
            # Without `disable_shuffling` the order is that of the hashed keys.
            return LocalInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            parts = _sklearn_digits()
            return {part: self._generate_examples(*arrays) for part, arrays in parts.items()}

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": image, "label": int(label)}

        # TFDS prints these two lines to stdout.
        def _log_download_bytes(self) -> None: ...
        def _log_download_done(self) -> None: ...

    return Digits


# TFDS


def _root(data_dir: str | os.PathLike[str] | None) -> str:
    """Returns the data folder with `~` expanded."""
    from tensorflow_datasets.core import constants

    given = constants.DATA_DIR if data_dir is None else os.fspath(data_dir)
    root = os.path.expanduser(given)  # noqa: PTH111 (`Path` would mangle "gs://")
    if not root or root.startswith("~"):  # would be the current folder, or "~" in it
        raise ValueError(f"the data folder {given!r} does not name a folder")
    return root


def _prepare(builder_class: Callable[..., Any], root: str, check: Callable[[Any], object]) -> None:
    """Prepares a data set in a folder of its own, reads it, and moves it to its place in one step.

    Several processes may do so at once: the first to end wins, the others find its files.

    Args:
      builder_class: a TFDS builder.
      root: data folder.
      check: called with the prepared builder; what it raises keeps the files from their place.
    """
    import tensorflow_datasets as tfds

    Path(root).mkdir(parents=True, exist_ok=True)
    target = Path(builder_class(data_dir=root).data_dir)
    with tempfile.TemporaryDirectory(
        prefix="incomplete.", dir=root, ignore_cleanup_errors=True
    ) as scratch:
        builder = builder_class(data_dir=scratch)
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
        check(builder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            Path(builder.data_dir).rename(target)
        except OSError:
            if not (target / "dataset_info.json").exists():
                raise


def _read(builder: Any, part: str, levels: int) -> Split:
    """Returns one split of a prepared data set with the features `image` and `label`."""
    source = builder.as_data_source(split=part)
    examples = source.__getitems__(range(len(source)))  # in bulk: one by one is slower
    images = np.stack([example["image"] for example in examples])
    return _split(images, np.asarray([example["label"] for example in examples]), levels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS alone: its log lines and its progress bars."""
    from tensorflow_datasets.core.utils import tqdm_utils

    def keep(record: logging.LogRecord) -> bool:
        return "tensorflow_datasets" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    active = getattr(tqdm_utils, "_active", True)
    logger.addFilter(keep)
    tqdm_utils.display_progress_bar(False)
    try:
        yield
    finally:
        tqdm_utils.display_progress_bar(active)
        logger.removeFilter(keep)


_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], Dataset]] = {
    "digits": _load_digits,
}
