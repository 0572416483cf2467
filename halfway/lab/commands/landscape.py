"""Draws the landscapes of a trained population, or of anybody's own model, with error bars.

python -m experiments.landscape [--config=configs/digits.py[:VARIANT]] [--workdir=RUN] \
    [--architecture=cnn | --condition=KEY]
python -m experiments.landscape --params=a.npz[,b.npz[,c.npz]] --loss=pkg.module:fn --workdir=DIR

A workdir that holds a run needs no --config; what is not trained yet is trained. The page goes to
`landscape/` in it, that of a named architecture to `landscape_<architecture>/`, that of one of the
run's populations (noise rates, controls) to `landscape_<its key>/`.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import sharding, storage
from halfway.lab.commands import cli
from halfway.lab.config import user
from halfway.lab.config.user import LOG, UserError
from halfway.lab.measurements import weight_space
from halfway.lab.report import landscape_page, page, report
from halfway.lab.runtime import environment, pipeline, processes
from halfway.lab.runtime.runs import Run
from halfway.lab.study import conditions
from halfway.lab.study.conditions import Condition
from halfway.types import Params

SALT = 10
"""Folded into a run's key, so that landscapes share no draw with any measurement."""
DISTRUST = (
    "Lines, planes and slices are sections of a space of thousands of dimensions: a barrier on the "
    "straight line says nothing about other paths, and a plane through three points shows those "
    "points, not what lies between in other directions.",
    "The pair in the plane shares its start, which the population's pairs do not: without that, "
    "there is no one θ_0 to walk from. All else is the population's.",
    "Weight matching finds a local optimum: the barrier after the best permutation can be lower.",
    "Filter normalization makes slices comparable between networks of different weight scales; it "
    "does not make a wide slice a flat minimum.",
    page.FINITE_DATA,
)


def main(options: cli.Options) -> None:
    """One page of landscapes."""
    started = time.monotonic()
    if bool(options.params) != bool(options.loss):
        raise UserError("--params and --loss belong together: parameters, and a loss_fn of them")
    if options.params and options.loss:
        _own(options, options.params, options.loss)
        return
    cli.start(options)  # the first of several processes reads the folder
    found = processes.shared(lambda: _stored(options))
    if found is not None:
        options = options._replace(config=found.config, name=found.name)
    try:
        sizes = weight_space.sizes_of(options.config)
    except ValueError as error:
        raise UserError(str(error)) from error
    condition, subfolder = _choose(options, sizes)
    settings = cli.prepare(options, needs=lambda config: [condition], started=True)
    with sharding.use(settings.layout):
        _page(settings, condition, settings.workdir / subfolder, sizes, started)


def _stored(options: cli.Options) -> Run | None:
    """Returns the run that is named and holds the config, where no config is given."""
    folder = Path(options.workdir or "")
    if options.workdir and not options.config_given and (folder / "config.json").is_file():
        return Run.open(folder)
    return None


def _page(
    settings: cli.Settings,
    condition: Condition,
    folder: Path,
    sizes: weight_space.Sizes,
    started: float,
) -> None:
    config, pool = settings.config, settings.dataset.pool(settings.config.subset)
    run = Run.create(settings.workdir, cli.identity(settings), settings.layout.mesh.size)
    run.checkpoint_every = settings.checkpoint_every
    with run.locked():
        if not run.notes()["environment"]:
            run.note(environment=environment.describe(settings.dataset))
        population = run.load_population(condition)
        if population is None:
            LOG.info("training %d pairs of %s", condition.num_pairs, condition.architecture)
            population = run.train(condition, pool)
        pipeline.stop_if_asked()
        LOG.info("drawing landscapes")
        key = jax.random.fold_in(jax.random.key(config.seed), SALT)
        arrays = weight_space.measure(population, pool, key, sizes)
        seconds = {"landscapes": time.monotonic() - started}
        info = pipeline.run_info(run, seconds, [], 1)
        # The command of this page, not of the run that trained.
        command = environment.describe(settings.dataset)["command"]
        info = dataclasses.replace(info, command=command)
        labels = "permuted labels, " if condition.permuted else ""
        if condition.noise_rate:
            labels = f"labels replaced at rate ρ = {condition.noise_rate:g}, "
        lead = (
            f"{config.dataset}, {condition.architecture}, {labels}n = {condition.num_examples} in "
            f"each half, {arrays['slice_own'].shape[0]} of {condition.num_pairs} pairs, "
            f"{condition.probe_steps[-1]} steps of {condition.optimizer}."
        )
        processes.shared(
            lambda: _write(folder, arrays, "What the two parties see", lead, page.repeat(info))
        )


def _choose(options: cli.Options, sizes: weight_space.Sizes) -> tuple[Condition, str]:
    """Returns what to draw, and the folder within the run that it goes to."""
    config, name, key = options.config, options.architecture, options.condition
    if key:
        if name or options.config_given or not options.workdir:
            raise UserError(
                "--condition names a population of a finished run: give its --workdir, and neither "
                "--config nor --architecture"
            )
        folder = Path(options.workdir)
        stored = processes.shared(lambda: Run.open(folder).conditions())
        if key not in stored:
            known = "; ".join(f"{k} ({pipeline.label(one)})" for k, one in stored.items())
            raise UserError(
                f"--condition={key} is not stored in {options.workdir}: there are {known or 'none'}"
            )
        return stored[key], f"landscape_{key}"
    if name and name not in config.architectures:
        among = ", ".join(config.architectures)
        raise UserError(f"--architecture must be one of {among}, got {name!r}")
    condition = conditions.condition(config, name or config.architectures[0])
    folder = f"landscape_{name}" if name else "landscape"
    return dataclasses.replace(condition, overlap=sizes.overlap), folder


def _own(options: cli.Options, names: str, loss: str) -> None:
    cli.start(options)
    members = [load_params(Path(name)) for name in names.split(",")]
    if len(members) > 3:
        raise UserError(f"--params takes one to three files, got {len(members)}")
    shapes = [jax.tree.map(jnp.shape, member) for member in members]
    if any(shape != shapes[0] for shape in shapes):
        raise UserError("the files of --params hold tensors of different names or shapes")
    loss_fn = user.load_function("loss", loss)
    try:
        value = jax.eval_shape(loss_fn, members[0])
    except Exception as error:  # somebody else's code
        raise UserError(f"--loss={loss} fails on the parameters given: {error}") from error
    if getattr(value, "shape", None) != ():
        raise UserError(f"--loss={loss} must return a scalar, got {value}")
    if not np.isfinite(loss_fn(members[0])):
        raise UserError(f"--loss={loss} is not finite at the parameters given")
    folder = Path(options.workdir or "runs/landscape") / "landscape"
    with sharding.use(cli.place(options)):
        arrays = weight_space.measure_own(loss_fn, members, jax.random.key(0), weight_space.Sizes())
    repeat = landscape_page.repeat_own(
        " ".join(["python -m experiments.landscape", *sys.argv[1:]]),
        {"Parameters": names, "Loss": loss, "JAX": jax.__version__},
    )
    lead = f"{names} under {loss}."
    processes.shared(lambda: _write(folder, arrays, "The landscape of a model", lead, repeat))


def _write(folder: Path, arrays: Any, heading: str, lead: str, repeat: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_arrays(folder / "arrays.npz", arrays)
        drawn = landscape_page.figures(arrays)
        tabled = landscape_page.tables(arrays, weight_space.summary(arrays))
        report.save_figures(folder / "figures", [one for many in drawn.values() for one in many])
        landscape_page.write(
            folder / "landscape.html",
            heading=heading,
            lead=lead,
            drawn=drawn,
            tabled=tabled,
            distrust=DISTRUST,
            repeat=repeat,
        )
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another") from error
    for table in tabled.values():
        print(f"{table.title}\n{landscape_page.as_text(table)}\n")
    print(folder / "landscape.html")


def load_params(path: Path) -> Params:
    """Returns the parameters of a .npz file: a tree whose keys are the parts of each name.

    Args:
      path: of an archive with an array for each tensor, named as in "Dense_0/kernel".

    Raises:
      UserError: if it cannot be read, or holds what is no array of numbers.
    """
    try:
        arrays = storage.read_arrays(path)
    except storage.UNREADABLE as error:
        raise UserError(f"--params={path} cannot be read as .npz ({error})") from error
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise UserError(f"--params={path}: {name} has type {value.dtype}, floats are needed")
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = jnp.asarray(value, jnp.float32)
    if not tree:
        raise UserError(f"--params={path} holds no arrays")
    return tree


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(
        main,
        takes=(
            *(flag for flag in cli.RUN_FLAGS if flag != "only"),
            *("architecture", "condition", "params", "loss"),
        ),
    )
