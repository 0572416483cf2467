"""Rebuild verdicts, figures and report of a finished run from its records, without training.

Example: halfway decide --workdir=runs/digits
"""

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
WORKDIR = shared.folder(FLAGS, "workdir", None, "the folder of a run")


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if no run is named.
    """
    if not WORKDIR.value:
        raise UserError("--workdir is needed: the folder of a run, e.g. --workdir=runs/digits")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("decide", FLAGS, check=check)
