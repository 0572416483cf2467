"""Attack models through each other: any JAX classifiers, with controls and intervals.

A function of yours returns the models: {"mlp": lambda images: logits, ...}, of linen, NNX, Equinox
or plain JAX. Models called NAME/0, NAME/1, ... are replicates of one kind, and (apply_fn, params)
with stacked parameters stands for several of them. run:FOLDER are the models of a run.

Example: halfway transfer --surrogates=mine:load_models --data=cifar10 --attacks=pgd,mi_fgsm
"""

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared
from halfway.norms import NORMS

FLAGS = flags.FlagValues()
SURROGATES = flags.DEFINE_string(
    "surrogates",
    "",
    "pkg.module:fn, a function without arguments that returns the models to "
    "attack by name: images [B, H, W, D] to logits [B, C], or (apply_fn, stacked parameters); or "
    "run:FOLDER, the models of one half of a run, run:FOLDER:B those of the other",
    flag_values=FLAGS,
)
TARGETS = flags.DEFINE_string(
    "targets",
    None,
    "the same, for the models that are looked at; the surrogates by default",
    flag_values=FLAGS,
)
DATA = flags.DEFINE_string(
    "data",
    "",
    "a data set, whose test split is used, or FILE.npz with images [N, ...] in "
    "[0, 1] and labels [N]",
    flag_values=FLAGS,
)
ATTACKS = flags.DEFINE_list("attacks", ["pgd"], "names from halfway.attacks", flag_values=FLAGS)
EPSILON = shared.budgets(FLAGS, "epsilon", [0.1], "budgets, e.g. 8/255 or 0.05,0.1")
NORM = flags.DEFINE_enum("norm", "linf", NORMS, "of the budget", flag_values=FLAGS)
NUM_STEPS = flags.DEFINE_integer(
    "num_steps",
    None,
    "of the attacks that take steps; each one's own by default",
    1,
    flag_values=FLAGS,
)
NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 1000, "so many images, drawn evenly from the classes", 1, flag_values=FLAGS
)
SEED = flags.DEFINE_integer("seed", 0, "of that draw and of the attacks", 0, flag_values=FLAGS)
OUT_DIR = shared.folder(
    FLAGS, "out_dir", "runs/transfer", "folder for the page, its figures, tables and outcomes"
)
DATA_DIR = shared.data_dir(FLAGS)
MAX_READ = shared.max_gb(FLAGS)
PLACE = shared.place(FLAGS)
TOPOLOGY = shared.topology(FLAGS)


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if no models or no data are named.
    """
    if not SURROGATES.value:
        raise UserError("--surrogates is needed: pkg.module:fn, a function that returns the models")
    if not DATA.value:
        raise UserError("--data is needed: the name of a data set, or FILE.npz")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("transfer", FLAGS, check=check)
