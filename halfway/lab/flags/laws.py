"""Check the laws of the framework and draw them: predicted on one set, measured on another.

The first law (P3) at initialization and after 100 steps, the second (P4) on trained models, the
linear-Gaussian model (P7), with the equivalence tests of the first two. Identities and laws get no
verdict.

Example: halfway laws --config=digits --workdir=runs/laws
"""

from absl import flags

from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
CONFIG = shared.config(FLAGS)
WORKDIR = shared.folder(FLAGS, "workdir", "runs/laws", "where the page goes")
DATA_DIR = shared.data_dir(FLAGS)
MAX_READ = shared.max_gb(FLAGS)
PLACE = shared.place(FLAGS)


def resumes() -> bool:
    """Returns whether the same command goes on where it ended: it keeps nothing."""
    return False


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("laws", FLAGS, resumes=resumes)
