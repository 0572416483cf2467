"""Rebuild verdicts, figures and report of a finished run from its records, without training.

What it takes is in `halfway.lab.flags.decide`.
"""

from pathlib import Path

from halfway.lab.flags.decide import WORKDIR
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Run


def main() -> None:
    """Decides the hypotheses of a working directory and writes the report."""
    run = Run.open(Path(WORKDIR.value))
    with run.locked():
        pipeline.finish(run)
