"""Rebuilds verdicts, figures and report of a finished run from its records, without training.

python -m experiments.decide --workdir=runs/digits
"""

from pathlib import Path

from experiments import cli
from experiments.errors import UserError
from experiments.runs import Run


def main(options: cli.Options) -> None:
    """A working directory to verdicts."""
    if not options.workdir:
        raise UserError("--workdir is needed: the folder of a run, e.g. --workdir=runs/digits")
    run = Run.open(Path(options.workdir))
    with run.locked():
        cli.finish(run)


if __name__ == "__main__":
    cli.launch(main, takes=("workdir",))
