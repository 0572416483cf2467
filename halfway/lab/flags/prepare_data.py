"""Prepare MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 from its original files, once.

Example: halfway prepare_data --dataset=mnist --source=FOLDER
"""

from absl import flags

from halfway import data
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_string(
    "dataset", "", f"what to prepare: {', '.join(data.preparable())}", flag_values=FLAGS
)
SOURCE = flags.DEFINE_string("source", "", "folder of its original files", flag_values=FLAGS)
DATA_DIR = shared.data_dir(FLAGS)


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if no data set or no folder of its files is named.
    """
    if not DATASET.value or not SOURCE.value:
        raise UserError(
            f"--dataset and --source are needed: one of {', '.join(data.preparable())}, and the "
            "folder of its original files"
        )


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("prepare_data", FLAGS, check=check)
