"""Draw the landscapes of a trained population, or of anybody's own model, with error bars.

What it takes is in `halfway.lab.flags.landscape`.
"""

import dataclasses
import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import files, sharding, storage
from halfway.keys import named_key
from halfway.lab.ahead import programs, slices
from halfway.lab.config import user
from halfway.lab.config.config_file import ConfigFile
from halfway.lab.config.settings import LandscapeSizes
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch
from halfway.lab.flags.landscape import (
    ARCHITECTURE,
    CHECKPOINT_EVERY,
    CONDITION,
    CONFIG,
    DATA_DIR,
    LOSS,
    MAX_READ,
    PARAMS,
    PLACE,
    TOPOLOGY,
    WORKDIR,
)
from halfway.lab.measurements import weight_space
from halfway.lab.measurements.weight_space import Arrays
from halfway.lab.report import landscape_page, model_landscape_page
from halfway.lab.report.page import Page, write
from halfway.lab.runtime import datasets, devices, environment, pipeline, processes, progress, runs
from halfway.lab.runtime.runs import Run
from halfway.lab.study import conditions
from halfway.lab.user_models import landscapes as user_landscapes
from halfway.populations import Condition
from halfway.types import Params

SEED = 0
"""Of the directions around a model of one's own."""


def main() -> None:
    """Draws one page of landscapes."""
    started = time.monotonic()
    devices.start(PLACE.value)  # the first of several processes reads the folder
    hardware = slices.choose(TOPOLOGY.value)
    if PARAMS.value and LOSS.value:
        _draw_user_model(PARAMS.value, LOSS.value, hardware)
        return
    file = processes.shared(_stored) or CONFIG.load()
    condition, subfolder = _choose(file)
    dataset = datasets.load_for(file.config, DATA_DIR.value, max_gb=MAX_READ.value)
    pool = datasets.pool_for(file.config, dataset)
    pipeline.check_conditions([condition], pool)
    layout = devices.lay_out(PLACE.value, [condition], pool, hardware)
    with sharding.use(layout):
        if hardware is not None:
            print(programs.said_of_landscapes(hardware, condition, pool, file.config.landscape))
            return
        folder = Path(WORKDIR.value or runs.default_folder(file))
        run = Run.create(folder, runs.identity(file, dataset), layout.mesh.size)
        run.checkpoint_every = CHECKPOINT_EVERY.value
        with run.locked():
            described = environment.describe(dataset, launch.command_line())
            run.describe(lambda: described)
            population = run.load_population(condition)
            if population is None:
                words = f"training {condition.num_pairs} pairs of {condition.architecture}"
                with progress.doing(words, aloud=True):
                    population = run.train(condition, pool)
            pipeline.stop_if_asked()
            key = named_key(jax.random.key(file.config.seed), "landscape page")
            with progress.doing("drawing landscapes", aloud=True):
                arrays = weight_space.measure(population, pool, key, file.config.landscape)
            seconds = {"landscapes": time.monotonic() - started}
            # The command of this page, not of the run that trained.
            info = dataclasses.replace(
                pipeline.run_info(run, seconds, [], 1), command=described["command"]
            )
            page = landscape_page.page(
                arrays,
                weight_space.summary(arrays),
                lead=_lead(condition, arrays["slice_own"].shape[0]),
                command=info.command,
                run=info,
            )
            processes.shared(lambda: _write(folder / subfolder, arrays, page))


def _stored() -> ConfigFile | None:
    """Returns the settings of the run in --workdir, where no config is given.

    Raises:
      UserError: if there is none: a name that was mistyped would train another run.
    """
    if not WORKDIR.value or CONFIG.given:
        return None
    folder = Path(WORKDIR.value)
    if not (folder / "config.json").is_file():
        runs_beside = [str(path.parent) for path in folder.parent.glob("*/config.json")]
        close = difflib.get_close_matches(str(folder), runs_beside, n=1)
        hint = f": did you mean {close[0]}?" if close else "."
        raise UserError(
            f"--workdir={folder} holds no run (no config.json){hint} To train one there, give "
            "--config"
        )
    run = Run.open(folder)
    return ConfigFile(run.config, run.name, {})


def _lead(condition: Condition, num_drawn: int) -> str:
    """Returns one sentence about the population that is drawn."""
    labels = "permuted labels, " if condition.permuted else ""
    if condition.noise_rate:
        labels = f"labels replaced at rate ρ = {condition.noise_rate:g}, "
    return (
        f"{condition.dataset}, {condition.architecture}, {labels}n = {condition.num_examples} in "
        f"each half, {num_drawn} of {condition.num_pairs} pairs, {condition.probe_steps[-1]} steps "
        f"of {condition.optimizer}."
    )


def _choose(file: ConfigFile) -> tuple[Condition, str]:
    """Returns the condition to draw, and the folder of the page within the run."""
    config, name, condition_id = file.config, ARCHITECTURE.value, CONDITION.value
    if condition_id:
        if name or CONFIG.given or not WORKDIR.value:
            raise UserError(
                "--condition names a population of a finished run: give its --workdir, and neither "
                "--config nor --architecture"
            )
        folder = Path(WORKDIR.value)
        stored = processes.shared(lambda: Run.open(folder).conditions())
        if condition_id not in stored:
            known = "; ".join(f"{k} ({pipeline.label(saved)})" for k, saved in stored.items())
            raise UserError(
                f"--condition={condition_id} is not stored in {WORKDIR.value}: there are "
                f"{known or 'none'}"
            )
        return stored[condition_id], f"landscape_{condition_id}"
    if name and name not in config.architectures:
        among = ", ".join(config.architectures)
        raise UserError(f"--architecture must be one of {among}, got {name!r}")
    condition = conditions.condition(config, name or config.architectures[0])
    folder = f"landscape_{name}" if name else "landscape"
    return dataclasses.replace(condition, overlap=config.landscape.overlap), folder


def _draw_user_model(names: list[str], loss: str, hardware: devices.Hardware | None) -> None:
    members = [load_params(Path(name), max_gb=MAX_READ.value) for name in names]
    if len(members) > 3:
        raise UserError(f"--params takes one to three files, got {len(members)}")
    shapes = [jax.tree.map(jnp.shape, member) for member in members]
    if any(shape != shapes[0] for shape in shapes):
        raise UserError("the files of --params hold tensors of different names or shapes")
    loss_fn = user.load_function("loss", loss)
    with user.running(f"--loss={loss} fails on the parameters given"):
        value = jax.eval_shape(loss_fn, members[0])
    if getattr(value, "shape", None) != ():
        raise UserError(f"--loss={loss} must return a scalar, got {value}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(
            f"--loss={loss} must return a floating-point number, got {value.dtype}: integers "
            "have no slope"
        )
    with user.running(f"--loss={loss} fails on the parameters given"):
        number = loss_fn(members[0])
    if not np.isfinite(number):
        raise UserError(f"--loss={loss} is not finite at the parameters given")
    folder = Path(WORKDIR.value or "runs/landscape") / "landscape"
    layout = devices.lay_out(PLACE.value, hardware=hardware)
    if hardware is not None:
        with sharding.use(layout):
            print(programs.said_of_user_landscapes(hardware, loss_fn, members, LandscapeSizes()))
        return
    with sharding.use(layout), progress.doing("drawing landscapes"):
        arrays = user_landscapes.measure(loss_fn, members, jax.random.key(SEED), LandscapeSizes())
    page = model_landscape_page.page(
        arrays,
        user_landscapes.barriers(arrays),
        _names([Path(name) for name in names]),
        command=launch.command_line(),
        facts={"Parameters": names, "Loss": loss, "Seed": SEED} | environment.versions(),
    )
    processes.shared(lambda: _write(folder, arrays, page))


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the names of files without their endings, whole where those are not different."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else list(map(str, paths))


def _write(folder: Path, arrays: Arrays, page: Page) -> None:
    path = write(folder, page, {"arrays.npz": lambda path: storage.write_arrays(path, arrays)})
    for table in page.content["tabled"].values():
        if table:
            print(f"{table}\n")
    print(path)


def load_params(path: Path, *, max_gb: float = files.MAX_GB) -> Params:
    """Returns the parameters of a .npz file: a tree whose keys are the parts of each name.

    Args:
      path: the path of an archive with an array for each tensor, named as in "Dense_0/kernel".
      max_gb: gigabytes that the arrays may take in memory.

    Raises:
      UserError: if the file cannot be read, holds no arrays, holds an array that is empty or not of
        floats, or names from which no tree can be made.
    """
    try:
        arrays = storage.read_arrays(path, max_gb=max_gb)
    except files.Refused as error:
        raise UserError(f"--params: {error}") from error
    except storage.UNREADABLE as error:
        raise UserError(f"--params={path} cannot be read as .npz ({error})") from error
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise UserError(f"--params={path}: {name} has type {value.dtype}, floats are needed")
        if not value.size:
            raise UserError(
                f"--params={path}: {name} has the shape {value.shape}, without a number"
            )
        *parents, last = name.split("/")
        if not all((*parents, last)):
            raise UserError(f"--params={path}: {name!r} has an empty part between its slashes")
        place = tree
        for number, parent in enumerate(parents, 1):
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                both = "/".join(parents[:number])
                raise UserError(f"--params={path}: {both} is both a tensor and a part of {name}")
        if last in place:
            raise UserError(f"--params={path}: {name} is both a tensor and a part of others")
        place[last] = jnp.asarray(value, jnp.float32)
    if not tree:
        raise UserError(f"--params={path} holds no arrays")
    return tree
