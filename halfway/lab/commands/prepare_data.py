"""Prepare MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 from its original files, once.

Example: halfway prepare_data --dataset=mnist --source=FOLDER
"""

import functools

from absl import flags
from tqdm import tqdm

from halfway import data
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared
from halfway.lab.runtime import datasets, progress

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_string(
    "dataset", None, f"what to prepare: {', '.join(data.preparable())}", flag_values=FLAGS
)
SOURCE = flags.DEFINE_string("source", None, "folder of its original files", flag_values=FLAGS)
DATA_DIR = shared.data_dir(FLAGS)


def main() -> None:
    """Prepares a data set in the data folder from its original files."""
    if not DATASET.value or not SOURCE.value:
        raise UserError(
            f"--dataset and --source are needed: one of {', '.join(data.preparable())}, and the "
            "folder of its original files"
        )
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


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
