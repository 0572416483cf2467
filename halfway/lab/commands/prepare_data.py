"""Prepare MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 from its original files, once.

What it takes is in `halfway.lab.flags.prepare_data`.
"""

import functools

from tqdm import tqdm

from halfway import data
from halfway.lab.config.user import UserError
from halfway.lab.flags.prepare_data import DATA_DIR, DATASET, SOURCE
from halfway.lab.runtime import datasets, progress


def main() -> None:
    """Prepares a data set in the data folder from its original files."""
    folder = datasets.folder(DATA_DIR.value)
    bar = functools.partial(
        tqdm, desc=f"writing {DATASET.value}", unit="image", leave=False, disable=None
    )
    try:
        with progress.doing(f"reading {SOURCE.value} and writing {DATASET.value}"):
            dataset = data.prepare(DATASET.value, SOURCE.value, folder, progress=bar)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(
        f"{dataset.name} {dataset.version}: {len(dataset.train.labels):,} train and "
        f"{len(dataset.test.labels):,} test images in {folder}, checksum {dataset.checksum[:12]}"
    )
