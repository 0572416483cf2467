"""Attack models through each other: any JAX classifiers, with controls and intervals.

What it takes is in `halfway.lab.flags.transfer`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from halfway import sharding, storage, transfer
from halfway.attacks import Threat
from halfway.attacks.minimum_norm.nearest import MAKE
from halfway.lab.ahead import programs, slices
from halfway.lab.config.user import LOG, UserError, writing
from halfway.lab.entry import launch
from halfway.lab.flags.transfer import (
    ATTACKS,
    DATA,
    DATA_DIR,
    EPSILON,
    MAX_READ,
    NORM,
    NUM_EXAMPLES,
    NUM_STEPS,
    OUT_DIR,
    PLACE,
    SEED,
    SURROGATES,
    TARGETS,
    TOPOLOGY,
)
from halfway.lab.report import transfer_page, transfer_summary
from halfway.lab.report.page import write
from halfway.lab.runtime import devices, environment, pipeline, processes, progress
from halfway.lab.user_models import grids, loading, stored

IMAGES_AT_ONCE = 128


def main() -> None:
    """Writes one page of transfer, its figures, tables and outcomes."""
    started = time.monotonic()
    budgets, threat_fn = EPSILON.value, MAKE[NORM.value]
    attack_fns = loading.choose_attacks(ATTACKS.value, NUM_STEPS.value)
    devices.start(PLACE.value)
    hardware = slices.choose(TOPOLOGY.value)
    folder = Path(OUT_DIR.value)
    processes.shared(lambda: grids.check_folder(folder, list(attack_fns), budgets))
    examples = loading.load_examples(
        DATA.value, DATA_DIR.value, NUM_EXAMPLES.value, SEED.value, max_gb=MAX_READ.value
    )
    surrogates, targets = _load_models()
    logits = loading.check_models({"surrogates": surrogates, "targets": targets}, examples)
    if targets is surrogates and len(loading.members(surrogates)) == 1:
        raise UserError(
            "there is one model, and nothing to transfer to: name --targets, or ask how robust it "
            "is by halfway evaluate"
        )
    (_, first), *_ = loading.members(surrogates)
    loading.check_attacks(attack_fns, threat_fn(budgets[0]), first, examples)
    LOG.info("%d images of %s", len(examples.labels), examples.source)
    place = PLACE.value
    if loading.runs_on_host([surrogates, targets]):  # several devices would wait for each other
        place = dataclasses.replace(place, mesh="member:1,data:1")
    layout = devices.lay_out(place, hardware=hardware)
    with sharding.use(layout):
        if hardware is not None:
            models, options = (surrogates, targets), {"threat_fn": threat_fn}
            options |= {"attack_fns": attack_fns, "budgets": budgets[:1]}
            options |= {"chunk_size": IMAGES_AT_ONCE}
            print(programs.said_of_transfer(hardware, models, examples, options))
            return
        grid = _grid(surrogates, targets, examples, attack_fns, budgets, threat_fn, logits)
    settings = {
        "surrogates": list(grid.surrogates),
        "targets": list(grid.targets),
        "attacks": {name: _options(fn) for name, fn in attack_fns.items()},
        "norm": NORM.value,
        "budgets": budgets,
        "data": examples.source,
        "num_examples": len(examples.labels),
        "seed": SEED.value,
        "versions": environment.versions(),
    }
    lead = (
        f"{len(grid.surrogates)} surrogates, {len(grid.targets)} targets, "
        f"{len(examples.labels)} images of {examples.source}; {', '.join(grid.attacks)} in "
        f"{NORM.value}; {time.monotonic() - started:.0f} s on {layout.mesh.size} devices."
    )
    with progress.doing("drawing figures, writing the page"):
        processes.shared(lambda: _write(folder, grid, examples, settings, lead))


def _grid(
    surrogates: dict[str, Any],
    targets: dict[str, Any],
    examples: loading.Examples,
    attack_fns: Mapping[str, functools.partial],
    budgets: Sequence[float],
    threat_fn: Callable[[float], Threat],
    logits: np.ndarray,
) -> transfer.TransferGrid:
    """Returns the grid, each attack at each budget stored once it is done, or taken from disk."""
    folder = Path(OUT_DIR.value)
    sides = [[name for name, _ in loading.members(group)] for group in (surrogates, targets)]
    cells: dict[tuple[str, float], transfer.TransferMatrix] = {}
    for name, attack_fn in attack_fns.items():
        described = {
            "models": sides,
            "options": {option: str(value) for option, value in _options(attack_fn).items()},
            "norm": NORM.value,
        }
        described |= {"attack": name, "seed": SEED.value}
        for budget in budgets:
            facts = stored.identity(described | {"budget": float(budget)}, examples)
            load = functools.partial(grids.load_cell, folder, name, budget, facts, logits)
            cell = processes.shared(load)
            if cell is None:
                with progress.doing(f"{name} at {budget:g}"):
                    made = transfer.transfer_grid(
                        surrogates,
                        targets,
                        jax.random.key(SEED.value),
                        examples.images,
                        examples.labels,
                        attack_fns={name: attack_fn},
                        budgets=[budget],
                        threat_fn=threat_fn,
                        chunk_size=IMAGES_AT_ONCE,
                        progress=_progress,
                    )
                cell = made.cells[name, budget]
                store = functools.partial(
                    grids.save_cell, folder, name, budget, cell, facts, logits
                )
                with writing(f"--out_dir={folder}", resumes=True):
                    processes.shared(store)
            else:
                LOG.info("%s at %g is there already", name, budget)
            cells[name, float(budget)] = cell
    return transfer.TransferGrid(
        tuple(sides[0]), tuple(sides[1]), tuple(attack_fns), tuple(map(float, budgets)), cells
    )


def _load_models() -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns surrogates and targets, which are the same if only one function is named."""
    surrogates = loading.load_models("surrogates", SURROGATES.value)
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
    counts = np.bincount(examples.labels)
    by_class = ", ".join(f"{label}: {count}" for label, count in enumerate(counts) if count)
    shown = {k: value for k, value in settings.items() if k not in ("attacks", "versions")}
    whole, cells = transfer_page.summarize(grid)
    page, tables = transfer_page.page(
        grid,
        examples.labels,
        whole,
        cells,
        lead=lead,
        source=examples.source,
        command=launch.command_line(),
        settings=shown | {"images by class": by_class} | settings["versions"],
    )
    numbers = transfer_summary.long_table(grid)
    summaries = transfer_summary.summary_table(whole, cells)
    outcomes = transfer_summary.arrays(grid, examples.labels)
    path = write(
        folder,
        page,
        {
            "settings.json": lambda path: storage.write_json(path, settings),
            "transfer.parquet": lambda path: storage.write_table(path, numbers),
            "summary.parquet": lambda path: storage.write_table(path, summaries),
            "outcomes.npz": lambda path: storage.write_arrays(path, outcomes),
        },
        resumes=True,
    )
    for sentence in page.content["sentences"]:
        print(sentence)
    for doubt in page.content["doubts"]:
        LOG.warning("warning: %s", doubt)
    for table in tables:
        print(f"\n{table}")
    print(path)


def _options(fn: functools.partial) -> dict[str, Any]:
    """Returns the options that an attack was given, functions by their names."""
    return {name: getattr(value, "__name__", value) for name, value in fn.keywords.items()}


def _progress(blocks: Iterable[Any]) -> Iterable[Any]:
    disable = None if processes.is_first() else True
    for block in tqdm.tqdm(blocks, desc="transfer", disable=disable, leave=False):
        pipeline.stop_if_asked()
        yield block
