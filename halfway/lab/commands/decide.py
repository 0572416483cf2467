"""Rebuild verdicts, figures and report of a finished run from its records, without training.

Example: halfway decide --workdir=runs/digits
"""

from pathlib import Path

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Run

FLAGS = flags.FlagValues()
WORKDIR = shared.folder(FLAGS, "workdir", None, "the folder of a run")


def main() -> None:
    """Decides the hypotheses of a working directory and writes the report."""
    if not WORKDIR.value:
        raise UserError("--workdir is needed: the folder of a run, e.g. --workdir=runs/digits")
    run = Run.open(Path(WORKDIR.value))
    with run.locked():
        pipeline.finish(run)


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
