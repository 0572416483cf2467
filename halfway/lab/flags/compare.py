"""Compare runs: what differs in their configs, then verdicts and effects side by side.

Example: halfway compare runs/digits runs/mine
"""

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if fewer than two runs are named.
    """
    if len(shared.arguments(FLAGS)) < 2:
        raise UserError("two or more runs are needed: the folders of finished runs")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("compare", FLAGS, positional=True, check=check)
