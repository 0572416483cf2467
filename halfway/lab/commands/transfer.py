"""Attacks models through each other: any JAX classifiers, with controls and intervals.

python -m experiments.transfer --surrogates=pkg.module:load_models [--targets=pkg.module:others] \
    [--data=digits] [--attacks=pgd,mi_fgsm] [--epsilon=0.05,0.1] [--out_dir=DIR]

A function of yours returns the models: {"mlp": lambda images: logits, ...}, of linen, NNX, Equinox
or plain JAX. Models called NAME/0, NAME/1, ... are replicates of one kind, and (apply_fn, params)
with stacked parameters stands for several of them.
"""

import functools
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import tqdm

from halfway import sharding, storage, transfer
from halfway.lab.commands import cli, transfer_models
from halfway.lab.config.user import LOG, UserError
from halfway.lab.report import landscape_page, report, transfer_page, transfer_summary
from halfway.lab.runtime import pipeline, processes

NUM_EXAMPLES, CHUNK_SIZE = 1000, 128


def main(options: cli.Options) -> None:
    """One page of transfer, its figures, tables and outcomes."""
    started = time.monotonic()
    if not options.surrogates:
        raise UserError("--surrogates is needed: pkg.module:fn, a function that returns the models")
    num_steps = _integer("num_steps", options.num_steps)
    num_examples = _integer("num_examples", options.num_examples) or NUM_EXAMPLES
    budgets = _budgets(options.epsilon or "0.1")
    threat_fn = transfer_models.choose_threat(options.norm or "linf")
    attack_fns = transfer_models.choose_attacks(options.attacks or "pgd", num_steps)
    cli.start(options)
    folder = Path(options.out_dir or "runs/transfer")
    processes.shared(lambda: _check_empty(folder))
    examples = transfer_models.load_examples(
        options.data or "digits", options.data_dir, num_examples
    )
    surrogates = transfer_models.load_models("surrogates", options.surrogates)
    same = options.targets in (None, options.surrogates)
    targets = surrogates if same else transfer_models.load_models("targets", options.targets or "")
    transfer_models.check_models({"surrogates": surrogates, "targets": targets}, examples)
    (_, first), *_ = transfer_models.members(surrogates)
    transfer_models.check_attacks(attack_fns, threat_fn(budgets[0]), first, examples)
    LOG.info("%d images of %s", len(examples.labels), examples.source)
    layout = cli.place(options)
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
            chunk_size=CHUNK_SIZE,
            progress=_progress,
        )
    whole, cells = transfer_page.summarize(grid)
    drawn = transfer_page.figures(grid, whole, cells)
    tabled = transfer_page.tables(whole, cells)
    distrusted = transfer_page.distrust(whole, examples.source)
    settings = {
        "surrogates": list(grid.surrogates),
        "targets": list(grid.targets),
        "attacks": {name: _options(fn) for name, fn in attack_fns.items()},
        "norm": options.norm or "linf",
        "budgets": budgets,
        "data": examples.source,
        "num_examples": len(examples.labels),
    }
    lead = (
        f"{len(grid.surrogates)} surrogates, {len(grid.targets)} targets, "
        f"{len(examples.labels)} images of {examples.source}; {', '.join(grid.attacks)} in "
        f"{settings['norm']}; {time.monotonic() - started:.0f} s on {layout.mesh.size} devices."
    )
    command = " ".join(["python -m experiments.transfer", *sys.argv[1:]])
    facts = settings | {"JAX": jax.__version__}

    def write() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            storage.write_json(folder / "settings.json", settings)
            storage.write_table(folder / "transfer.parquet", transfer_summary.long_table(grid))
            arrays = transfer_summary.arrays(grid, examples.labels)
            storage.write_arrays(folder / "outcomes.npz", arrays)
            report.save_figures(folder / "figures", drawn)
            transfer_page.write(
                folder / "transfer.html",
                lead=lead,
                drawn=drawn,
                tabled=tabled,
                distrusted=distrusted,
                repeat=landscape_page.repeat_own(command, facts),
            )
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): choose another"
            ) from error
        for one in tabled:
            print(f"{one.title}\n{landscape_page.as_text(one)}\n")
        print(folder / "transfer.html")

    processes.shared(write)


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


def _integer(flag: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--{flag} must be a whole number from 1 on, got {value!r}")
    return int(value)


def _budgets(words: str) -> list[float]:
    try:
        found = [float(word) for word in words.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(value) and value > 0 for value in found):
        raise UserError(f"--epsilon must be positive numbers, e.g. 0.05,0.1, got {words!r}")
    return sorted(dict.fromkeys(found))


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(
        main,
        takes=(
            *("surrogates", "targets", "data", "attacks", "epsilon", "norm", "num_steps"),
            *("num_examples", "out_dir", "data_dir", "compilation_cache"),
            *cli.PLACE_FLAGS,
        ),
    )
