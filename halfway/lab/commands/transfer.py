"""Attack models through each other: any JAX classifiers, with controls and intervals.

A function of yours returns the models: {"mlp": lambda images: logits, ...}, of linen, NNX, Equinox
or plain JAX. Models called NAME/0, NAME/1, ... are replicates of one kind, and (apply_fn, params)
with stacked parameters stands for several of them. run:FOLDER are the models of a run.

Example: halfway transfer --surrogates=pkg.module:load_models --attacks=pgd,mi_fgsm --epsilon=8/255
"""

import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import tqdm
from absl import flags

from halfway import sharding, storage, transfer
from halfway.lab.config.user import LOG, UserError
from halfway.lab.entry import launch, shared
from halfway.lab.report import transfer_page, transfer_summary
from halfway.lab.report.page import write
from halfway.lab.runtime import devices, pipeline, processes
from halfway.lab.user_models import loading

FLAGS = flags.FlagValues()
SURROGATES = flags.DEFINE_string(
    "surrogates",
    None,
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
    "digits",
    "a data set, whose test split is used, or FILE.npz with images [N, ...] in "
    "[0, 1] and labels [N]",
    flag_values=FLAGS,
)
ATTACKS = flags.DEFINE_list("attacks", ["pgd"], "names from halfway.attacks", flag_values=FLAGS)
EPSILON = shared.budgets(FLAGS, "epsilon", [0.1], "budgets, e.g. 8/255 or 0.05,0.1")
NORM = flags.DEFINE_enum("norm", "linf", list(loading.NORMS), "of the budget", flag_values=FLAGS)
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
OUT_DIR = flags.DEFINE_string(
    "out_dir",
    "runs/transfer",
    "folder for the page, its figures, tables and outcomes",
    flag_values=FLAGS,
)
DATA_DIR = shared.data_dir(FLAGS)
PLACE = shared.place(FLAGS)
IMAGES_AT_ONCE = 128


def main() -> None:
    """Writes one page of transfer, its figures, tables and outcomes."""
    started = time.monotonic()
    if not SURROGATES.value:
        raise UserError("--surrogates is needed: pkg.module:fn, a function that returns the models")
    budgets, threat_fn = EPSILON.value, loading.NORMS[NORM.value]
    attack_fns = loading.choose_attacks(ATTACKS.value, NUM_STEPS.value)
    devices.start(PLACE.value)
    folder = Path(OUT_DIR.value)
    processes.shared(lambda: _check_empty(folder))
    examples = loading.load_examples(DATA.value, DATA_DIR.value, NUM_EXAMPLES.value)
    surrogates, targets = _load_models()
    loading.check_models({"surrogates": surrogates, "targets": targets}, examples)
    (_, first), *_ = loading.members(surrogates)
    loading.check_attacks(attack_fns, threat_fn(budgets[0]), first, examples)
    LOG.info("%d images of %s", len(examples.labels), examples.source)
    layout = devices.lay_out(PLACE.value)
    with sharding.use(layout):
        grid = transfer.transfer_grid(
            surrogates,
            targets,
            jax.random.key(0),
            examples.images,
            examples.labels,
            attack_fns=attack_fns,
            budgets=budgets,
            threat_fn=threat_fn,
            chunk_size=IMAGES_AT_ONCE,
            progress=_progress,
        )
    settings = {
        "surrogates": list(grid.surrogates),
        "targets": list(grid.targets),
        "attacks": {name: _options(fn) for name, fn in attack_fns.items()},
        "norm": NORM.value,
        "budgets": budgets,
        "data": examples.source,
        "num_examples": len(examples.labels),
    }
    lead = (
        f"{len(grid.surrogates)} surrogates, {len(grid.targets)} targets, "
        f"{len(examples.labels)} images of {examples.source}; {', '.join(grid.attacks)} in "
        f"{NORM.value}; {time.monotonic() - started:.0f} s on {layout.mesh.size} devices."
    )
    processes.shared(lambda: _write(folder, grid, examples, settings, lead))


def _load_models() -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns surrogates and targets, which are the same if only one function is named."""
    surrogates = loading.load_models("surrogates", str(SURROGATES.value))
    if not TARGETS.value or TARGETS.value == SURROGATES.value:
        return surrogates, surrogates
    return surrogates, loading.load_models("targets", TARGETS.value)


def _write(
    folder: Path,
    grid: transfer.TransferGrid,
    examples: loading.Examples,
    settings: dict[str, Any],
    lead: str,
) -> None:
    page, tables = transfer_page.page(
        grid,
        lead=lead,
        source=examples.source,
        command=launch.command_line(),
        settings=settings | {"JAX": jax.__version__},
    )
    table = transfer_summary.long_table(grid)
    outcomes = transfer_summary.arrays(grid, examples.labels)
    path = write(
        folder,
        page,
        {
            "settings.json": lambda path: storage.write_json(path, settings),
            "transfer.parquet": lambda path: storage.write_table(path, table),
            "outcomes.npz": lambda path: storage.write_arrays(path, outcomes),
        },
    )
    for shown in tables:
        print(f"{shown}\n")
    print(path)


def _options(fn: functools.partial) -> dict[str, Any]:
    """Returns the options that an attack was given, functions by their names."""
    return {name: getattr(value, "__name__", value) for name, value in fn.keywords.items()}


def _progress(blocks: Iterable[Any]) -> Iterable[Any]:
    disable = None if processes.is_first() else True
    for block in tqdm.tqdm(blocks, desc="transfer", disable=disable, leave=False):
        pipeline.stop_if_asked()
        yield block


def _check_empty(folder: Path) -> None:
    """Checks that a folder does not exist yet or is empty."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out_dir={folder} is not a folder: choose another")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out_dir={folder} is not empty: choose another folder")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
