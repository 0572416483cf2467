"""Publish a finished run: results/NAME.json, and the documents that are made from all results.

Example: halfway publish --workdir=runs/mnist1d

Without a run the documents are made anew. A run whose rules or config are not those of the lock is
refused; one that decides nothing too, unless --exploratory marks it so.
"""

from absl import flags

from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
WORKDIR = shared.folder(FLAGS, "workdir", None, "the folder of a run")
EXPLORATORY = flags.DEFINE_bool(
    "exploratory", False, "publish a run that decides nothing, marked as such", flag_values=FLAGS
)


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("publish", FLAGS)
