"""The embedded data set: digits of scikit-learn, kept as a data set of TensorFlow Datasets."""

import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from halfway import files
from halfway.data import prepared
from halfway.data.arrays import Dataset, DataWarning, Split, make_dataset, make_split

CHECKSUM = "2e4e5fbc06151516ddd3dfcceef556fbad03bc289d14a52991fa5e8532862aa2"
"""`Dataset.checksum` of `digits`, version 1.0.0."""
VERSION = "1.0.0"

_LEVELS = 16  # grey values are the integers 0 to 16
_NUM_TRAIN = 1437


def load(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Returns the digits, which are prepared in the data folder if that is possible.

    Args:
      data_dir: data folder; None for TFDS's default.
    """
    # TFDS, ArrayRecord and the file system raise exceptions of every kind, and none of them may
    # stop a run whose data ship with a dependency.
    try:
        with prepared.quiet():
            return _load_prepared(data_dir)
    except Exception as error:
        folder = "TFDS's default data folder" if data_dir is None else f"data folder {data_dir}"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"the same digits come from scikit-learn, because {folder} cannot be used: {reason}. "
            f"Name one that can be written, or delete digits/{VERSION} in it if damaged",
            DataWarning,
            stacklevel=4,
        )
        return _digits(*(make_split(*arrays, _LEVELS) for arrays in _sklearn_digits().values()))


def _load_prepared(data_dir: str | os.PathLike[str] | None) -> Dataset:
    root = prepared.root(data_dir)
    if (place := prepared.find("digits", root)) is not None:
        prepared.check_files(place, files.MAX_GB)
    builder = _builder()(data_dir=root)
    if not (Path(builder.data_dir) / "dataset_info.json").exists():
        prepared.write(_builder(), root, _read)
        builder = _builder()(data_dir=root)
    return _read(builder)


def _read(builder: Any) -> Dataset:
    splits = (make_split(*prepared.arrays_of(builder, part), _LEVELS) for part in ("train", "test"))
    dataset = _digits(*splits)
    if dataset.checksum != CHECKSUM:
        raise ValueError(f"{builder.data_dir} does not hold the digits of scikit-learn")
    return dataset


def _digits(train: Split, test: Split) -> Dataset:
    return make_dataset("digits", train, test, tuple("0123456789"), VERSION)


def _sklearn_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns images `[N, 8, 8, 1]` uint8 in 0..16 and labels `[N]` of train and test."""
    from sklearn.datasets import load_digits  # slow to import, and only the first load needs it

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    first = _NUM_TRAIN
    return {"train": (images[:first], labels[:first]), "test": (images[first:], labels[first:])}


@functools.cache
def _builder() -> Any:
    """Returns the class of the TFDS builder, which cannot be defined before TFDS is imported."""
    import tensorflow_datasets as tfds

    class Digits(prepared.Silent, tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Digits of scikit-learn, grey values 0 to 16 as they are."""

        VERSION = tfds.core.Version(VERSION)

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
            return prepared.local(
                tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            parts = _sklearn_digits()
            return {part: self._generate_examples(*arrays) for part, arrays in parts.items()}

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": image, "label": int(label)}

    return Digits
