"""Evaluate how robust a model of yours is: any JAX classifier, at several budgets, with intervals.

A function of yours without arguments returns the model: images [B, H, W, D] to logits [B, C].

Example: halfway evaluate --model=mine:load --data=cifar10 --threat=linf:8/255,l2:0.5
"""

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
MODEL_FN = flags.DEFINE_string(
    "model", "", "pkg.module:fn, which returns the model: images to logits", flag_values=FLAGS
)
DATA = flags.DEFINE_string(
    "data",
    "",
    "a data set, whose test split is used, or FILE.npz with images [N, ...] in [0, 1] and labels",
    flag_values=FLAGS,
)
THREAT = shared.threats(
    FLAGS, "threat", "linf:8/255", "norms with budgets, e.g. linf:4/255,8/255,l2:0.5"
)
ATTACKS = flags.DEFINE_list(
    "attacks", ["auto_attack"], "names from halfway.attacks", flag_values=FLAGS
)
AUTO_VERSION = flags.DEFINE_enum(
    "version", "standard", ["standard", "plus"], "of auto_attack", flag_values=FLAGS
)
NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples",
    None,
    "so many images, drawn evenly from the classes; all by default",
    2,
    flag_values=FLAGS,
)
SEED = flags.DEFINE_integer("seed", 0, "of that draw and of the attacks", 0, flag_values=FLAGS)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "images that are attacked at once", 1, flag_values=FLAGS
)
CURVES = flags.DEFINE_bool(
    "curves", True, "look for the smallest change of each image too", flag_values=FLAGS
)
ADVERSARIAL = flags.DEFINE_bool(
    "adversarial", False, "write the images that fool the model: adversarial.npz", flag_values=FLAGS
)
OUT_DIR = shared.folder(FLAGS, "out_dir", "runs/evaluate", "folder for the page and what was found")
DATA_DIR = shared.data_dir(FLAGS)
MAX_READ = shared.max_gb(FLAGS)
COMPILATION_CACHE = shared.compilation_cache(FLAGS)
TOPOLOGY = shared.topology(FLAGS)


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if no model or no data are named.
    """
    if not MODEL_FN.value:
        raise UserError("--model is needed: pkg.module:fn, a function that returns the model")
    if not DATA.value:
        raise UserError("--data is needed: the name of a data set, or FILE.npz")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("evaluate", FLAGS, check=check)
