"""Rebuilds verdicts, figures and report of a finished run from its records, without training.

python -m experiments.decide --workdir=runs/digits
"""

from pathlib import Path

from halfway.lab.commands import cli
from halfway.lab.config.user import UserError
from halfway.lab.runtime.runs import Run


def main(options: cli.Options) -> None:
    """A working directory to verdicts."""
    if not options.workdir:
        raise UserError("--workdir is needed: the folder of a run, e.g. --workdir=runs/digits")
    run = Run.open(Path(options.workdir))
    with run.locked():
        cli.finish(run)


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(main, takes=("workdir",))
