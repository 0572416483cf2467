"""Train populations of pairs, measure where they meet, decide hypotheses, write a report.

Example: halfway reproduce --config=digits:smoke --only=G1,T1
"""

from absl import flags

from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
CONFIG = shared.config(FLAGS)
ONLY = flags.DEFINE_list(
    "only", None, "hypotheses, e.g. G1,T1, or 'all'; the config's own by default", flag_values=FLAGS
)
WORKDIR = shared.folder(
    FLAGS, "workdir", None, "where results go; runs/CONFIG[-VARIANT][-OVERRIDES] by default"
)
DATA_DIR = shared.data_dir(FLAGS)
MAX_READ = shared.max_gb(FLAGS)
PLAN_ONLY = flags.DEFINE_bool(
    "dry_run",
    False,
    "say what would be trained and how long it takes, train nothing",
    flag_values=FLAGS,
)
TOPOLOGY = shared.topology(FLAGS)
TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "write event files into WORKDIR/tensorboard", flag_values=FLAGS
)
CHECKPOINT_EVERY = shared.checkpoint_every(FLAGS)
PLACE = shared.place(FLAGS)


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("reproduce", FLAGS)
