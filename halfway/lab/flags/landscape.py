"""Draw the landscapes of a trained population, or of anybody's own model, with error bars.

A workdir that holds a run needs no --config; what is not trained yet is trained. The page goes to
`landscape/` in it, that of a named architecture to `landscape_ARCHITECTURE/`, that of one of the
run's populations (noise rates, controls) to `landscape_ID/`.

Example: halfway landscape --workdir=runs/digits --architecture=cnn
Example: halfway landscape --params=a.npz,b.npz --loss=pkg.module:fn --workdir=DIR
"""

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
CONFIG = shared.config(FLAGS)
WORKDIR = shared.folder(FLAGS, "workdir", None, "a run, or where results go")
ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "which of the config's to draw; its first by default", flag_values=FLAGS
)
CONDITION = flags.DEFINE_string(
    "condition",
    None,
    "id (conditions.parquet) of a stored population of the run",
    flag_values=FLAGS,
)
PARAMS = flags.DEFINE_list(
    "params",
    None,
    "one to three .npz files of parameters, an array for each tensor",
    flag_values=FLAGS,
)
LOSS = flags.DEFINE_string(
    "loss", None, "pkg.module:fn, a function from those parameters to a scalar", flag_values=FLAGS
)
DATA_DIR = shared.data_dir(FLAGS)
MAX_READ = shared.max_gb(FLAGS)
CHECKPOINT_EVERY = shared.checkpoint_every(FLAGS)
PLACE = shared.place(FLAGS)
TOPOLOGY = shared.topology(FLAGS)


def resumes() -> bool:
    """Returns whether the same command goes on where it ended; of a user's model it cannot."""
    return not PARAMS.value


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if parameters are named without a loss, or a loss without parameters.
    """
    if bool(PARAMS.value) != bool(LOSS.value):
        raise UserError("--params and --loss belong together: parameters, and a loss_fn of them")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("landscape", FLAGS, resumes=resumes, check=check)
