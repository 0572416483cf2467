"""Publish a finished run: results/NAME.json, and the documents that are made from all results.

Example: halfway publish --workdir=runs/mnist1d

Without a run the documents are made anew. A run whose rules or config are not those of the lock is
refused; one that decides nothing too, unless --exploratory marks it so.
"""

from pathlib import Path

from absl import flags

from halfway.lab.config import config_file
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared
from halfway.lab.publication import documents, result
from halfway.lab.runtime.runs import Run

FLAGS = flags.FlagValues()
WORKDIR = shared.folder(FLAGS, "workdir", None, "the folder of a run")
EXPLORATORY = flags.DEFINE_bool(
    "exploratory", False, "publish a run that decides nothing, marked as such", flag_values=FLAGS
)


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


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
