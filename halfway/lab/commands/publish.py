"""Publish a finished run: results/NAME.json, and the documents that are made from all results.

What it takes is in `halfway.lab.flags.publish`.
"""

from pathlib import Path

from halfway.lab.config import config_file
from halfway.lab.config.user import UserError
from halfway.lab.flags.publish import EXPLORATORY, WORKDIR
from halfway.lab.publication import documents, result
from halfway.lab.runtime.runs import Run


def main() -> None:
    """Writes the result of a run, and the blocks and figures of the documents."""
    if config_file.CHECKOUT is None:
        raise UserError("results are committed to the repository: run it from a clone")
    if WORKDIR.value:
        run = Run.open(Path(WORKDIR.value))
        with run.locked():
            published = result.of_run(run, exploratory=EXPLORATORY.value)
        print(result.write(published, config_file.CHECKOUT / result.RESULTS_FOLDER))
    for path in documents.update(config_file.CHECKOUT):
        print(path)
