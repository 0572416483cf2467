"""MNIST-1D: 5,000 signals of 40 points, ten classes (Greydanus and Kobak, arXiv 2011.14439).

They are made by the package `mnist1d` with its default settings, which are the published ones. Each
is a digit's shape, padded, shifted, scaled, sheared and covered with noise: hard where `digits` is
easy, and small.
"""

import functools
import importlib.metadata
import random
from collections.abc import Sequence

import numpy as np

from halfway.data.arrays import DataError, Dataset, Split, make_dataset

VALUE_RANGE = (-6.0, 6.0)
"""Values of signals that become 0 and 1: six standard deviations of all their points."""


def load(value_range: Sequence[float] = ()) -> Dataset:
    """Returns the 4,000 train and 1,000 test signals as images of one row, `[N, 1, 40, 1]`.

    Args:
      value_range: the values that become 0 and 1; empty for `VALUE_RANGE`.

    Raises:
      DataError: if the package is not installed, or a value lies outside of the range.
    """
    low, high = value_range or VALUE_RANGE
    splits = []
    for signals, labels in _signals():
        images = ((signals - low) / (high - low)).astype(np.float32)[:, None, :, None]
        if images.min() < 0 or images.max() > 1:
            raise DataError(
                f"signals of mnist1d go from {signals.min():.3g} to {signals.max():.3g}, beyond "
                f"{low:g} and {high:g}: choose a wider value_range"
            )
        splits.append(Split(images, labels.astype(np.int32)))
    version = importlib.metadata.version("mnist1d")
    train, test = splits
    return make_dataset("mnist1d", train, test, tuple("0123456789"), version)


@functools.cache  # making them takes seconds
def _signals() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Returns signals `[N, 40]` and labels `[N]` of train and test."""
    try:
        from mnist1d.data import get_dataset_args
        from mnist1d.data import make_dataset as make
    except ImportError as error:
        raise DataError(
            "data set 'mnist1d' is made by a package of that name: pip install mnist1d"
        ) from error
    # The package seeds the global generators, which are nobody's to change.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = make(get_dataset_args())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    return (made["x"], made["y"]), (made["x_test"], made["y_test"])
