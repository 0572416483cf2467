"""Prepares MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 from its original files, once.

python -m experiments.prepare_data --dataset=mnist --source=FOLDER [--data_dir=FOLDER]
"""

import functools

from tqdm import tqdm

from halfway import data
from halfway.lab.commands import cli
from halfway.lab.config.user import UserError
from halfway.lab.runtime import environment


def main(options: cli.Options) -> None:
    """Original files to a data set in the data folder."""
    if not options.dataset or not options.source:
        raise UserError(
            f"--dataset and --source are needed: one of {', '.join(data.preparable())}, and the "
            "folder of its original files"
        )
    folder = environment.data_dir(options.data_dir)
    bar = functools.partial(
        tqdm, desc=f"writing {options.dataset}", unit="image", leave=False, disable=None
    )
    try:
        dataset = data.prepare(options.dataset, options.source, folder, progress=bar)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(
        f"{dataset.name} {dataset.version}: {len(dataset.train.labels):,} train and "
        f"{len(dataset.test.labels):,} test images in {folder}, checksum {dataset.checksum[:12]}"
    )


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(main, takes=("dataset", "source", "data_dir"))
