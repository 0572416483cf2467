"""Flags, folders and devices; where a user's mistake becomes one line and exit code 2."""

import difflib
import io
import logging
import math
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from halfway import data, populations, sharding, storage
from halfway.lab import studies
from halfway.lab.config import config_file, settings
from halfway.lab.config.settings import Config
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import checkpoints, costs, environment, pipeline, processes
from halfway.lab.runtime.runs import Identity
from halfway.lab.study.conditions import Condition
from halfway.lab.study.protocol import Study

FLAGS = {
    "config": "FILE.py or FILE.py:VARIANT; fields are set by --config.FIELD=VALUE. A relative path "
    "is looked for in the current folder, then in the repository. Default: configs/digits.py.",
    "only": "Hypotheses, e.g. G1,T1, or 'all' that exist; the config's own by default.",
    "workdir": "Where results go; runs/<config>[-<variant>][-<hash of overrides>] by default.",
    "data_dir": "Data folder; $TFDS_DATA_DIR, else ~/tensorflow_datasets, by default.",
    "compilation_cache": "Folder where compiled programs are kept, or 'off'; the user's cache "
    "folder by default.",
    "dataset": f"What to prepare: {', '.join(data.preparable())}.",
    "source": "Folder of its original files.",
    "sweep": "FILE.toml: a config and what varies; see configs/sweeps/example.toml.",
    "shard": "i/n with 1 <= i <= n: run each n-th setting from the i-th on, the others elsewhere.",
    "architecture": "Which of the config's architectures to draw; its first by default.",
    "condition": "Key (conditions.parquet) of a stored population of the run, to draw it instead.",
    "params": "One to three .npz files of parameters, an array for each tensor (Dense_0/kernel).",
    "loss": "pkg.module:fn, a function from those parameters to a scalar.",
    "suite": "Which benchmarks: attacks, landscapes, scale, strength or transfer.",
    "out": "FILE.json for the rows of a benchmark.",
    "surrogates": "pkg.module:fn, a function without arguments that returns the models to attack: "
    "a dict of names to functions from images [B, H, W, D] to logits [B, C], or to (apply_fn, "
    "stacked parameters).",
    "targets": "The same, for the models that are looked at; the surrogates by default.",
    "data": "A data set by name, whose test split is used, or FILE.npz with images [N, ...] in "
    "[0, 1] and labels [N]; digits by default.",
    "attacks": "Names from halfway.attacks, e.g. pgd,mi_fgsm; pgd by default.",
    "epsilon": "Budgets, e.g. 0.05,0.1; 0.1 by default.",
    "norm": "Of the budget: linf (default), l2 or l1.",
    "num_steps": "Of the attacks that take steps; each one's own by default.",
    "num_examples": "The first so many images are attacked; 1000 by default.",
    "out_dir": "FOLDER for the page, its figures, tables and outcomes; runs/transfer by default.",
    "dry_run": "true: say what would be run, and run nothing.",
    "mesh": "Devices that members and the examples of a batch are spread over, e.g. member:8 or "
    "member:4,data:2; by default all devices, members first.",
    "at_once": "Members of one device that run at once, at most; by default what is fastest.",
    "distributed": "true: this is one of several processes, each started with the same command; "
    "they find each other through the cluster (TPU pod, Slurm).",
    "coordinator": "HOST:PORT of process 0, where no cluster says it.",
    "num_processes": "How many there are, with --coordinator.",
    "process_id": "Which one this is, from 0, with --coordinator.",
    "checkpoint_every": "Seconds from one checkpoint of a training to the next; 60 by default.",
    "tensorboard": "true: write event files for TensorBoard into WORKDIR/tensorboard.",
}
"""Every flag of ours with its help; all are text but `_SWITCHES`."""
_SWITCHES = ("dry_run", "distributed", "tensorboard")
PLACE_FLAGS = ("mesh", "at_once", "distributed", "coordinator", "num_processes", "process_id")
"""Those that say where a run computes."""
RUN_FLAGS = (
    *("config", "only", "workdir", "data_dir", "compilation_cache"),
    *PLACE_FLAGS,
    *("checkpoint_every",),
)
"""Those of an entry point that runs a config."""


class Options(NamedTuple):
    """What the command line says; None where it is silent.

    Attributes:
      config: with overrides, locked; None for an entry point without a config.
      name: of config file and variant.
      overrides: fields that differ from the file.
      arguments: what is no flag, where the entry point takes any.
      config_given: whether the command line says anything of the config.
    """

    config: Config = None
    name: str = ""
    overrides: dict[str, Any] = {}  # noqa: RUF012
    only: str | None = None
    workdir: str | None = None
    data_dir: str | None = None
    compilation_cache: str | None = None
    dataset: str | None = None
    source: str | None = None
    sweep: str | None = None
    shard: str | None = None
    dry_run: bool = False
    architecture: str | None = None
    condition: str | None = None
    params: str | None = None
    loss: str | None = None
    suite: str | None = None
    out: str | None = None
    surrogates: str | None = None
    targets: str | None = None
    data: str | None = None
    attacks: str | None = None
    epsilon: str | None = None
    norm: str | None = None
    num_steps: str | None = None
    num_examples: str | None = None
    out_dir: str | None = None
    mesh: str | None = None
    at_once: str | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: str | None = None
    process_id: str | None = None
    checkpoint_every: str | None = None
    tensorboard: bool = False
    config_given: bool = False
    arguments: tuple[str, ...] = ()


class Settings(NamedTuple):
    """What a run is to do, checked."""

    config: Config
    name: str
    workdir: Path
    studies: list[Study]
    dataset: data.Dataset
    layout: sharding.Layout
    checkpoint_every: float


def launch(
    main: Callable[[Options], None], takes: Sequence[str] = RUN_FLAGS, *, positional: bool = False
) -> None:
    """Runs an entry point; a `UserError` ends it with one line on stderr and exit code 2.

    Args:
      main: what to do with the options.
      takes: those of `FLAGS` that the entry point has.
      positional: whether it takes arguments that are no flags.
    """
    parsed = Options()

    def parser(argv: Sequence[str]) -> list[str]:
        nonlocal parsed
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(usage(takes, main))
            sys.exit(0)
        try:
            parsed = parse(argv, takes, positional=positional)
        except UserError as error:
            _fail(error)
        return [argv[0]]

    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks ρ or ● shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # A log line of ours is for the user; absl's own handler would show other libraries' too.
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    app.run(lambda _: guard(main, parsed), flags_parser=parser)


OUT_OF_MEMORY = (
    "out of memory: lower --at_once where there are several processes, config.training.batch_size, "
    "config.num_examples, config.num_holdout or config.num_pairs (of experiments.transfer, "
    "--num_examples), or choose smaller config.models ({})"
)


def guard(main: Callable[[Options], None], options: Options) -> None:
    """Calls an entry point; what a user can do something about ends the process with one line.

    Args:
      main: what to do with the options.
      options: of the command line.
    """
    try:
        main(options)
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        processes.abandon(130)
        sys.exit(130)
    except processes.Terminated:
        if processes.is_first():
            print("terminated: the same command goes on from here", file=sys.stderr)
        sys.exit(processes.EXIT_TERMINATED)
    except (jax.errors.JaxRuntimeError, ValueError, MemoryError) as error:
        if processes.lost(error):
            processes.leave()
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            _abandon()
            raise
        _fail(UserError(OUT_OF_MEMORY.format(" ".join(str(error).split())[:200])))
    except Exception:
        _abandon()
        raise


def _abandon() -> None:
    """Ends one of several processes that met a fault, with its traceback; of one does nothing."""
    if processes.count() > 1:
        traceback.print_exc()
        processes.abandon(1)


def _fail(error: UserError) -> None:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    processes.abandon(2)
    sys.exit(2)


def usage(takes: Sequence[str], main: Callable[[Options], None]) -> str:
    """Returns what --help prints: the entry point's docstring and its flags."""
    doc = sys.modules[main.__module__].__doc__ or ""
    lines = (f"  --{name}\n{flags.text_wrap(FLAGS[name], 96, '      ')}" for name in takes)
    return "\n".join([doc.strip(), "", *lines])


def parse(
    argv: Sequence[str],
    takes: Sequence[str],
    values: flags.FlagValues = flags.FLAGS,
    *,
    positional: bool = False,
) -> Options:
    """Returns the options of a command line.

    Args:
      argv: program and arguments.
      takes: those of `FLAGS` that the entry point has.
      values: where flags are defined.
      positional: whether arguments that are no flags are allowed.

    Raises:
      UserError: for an unknown flag, file, variant or field, a value of the wrong type, or an
        argument that is no flag.
    """
    argv, fresh, file = list(argv), {}, None
    words = [argument.lstrip("-").partition("=")[0].partition(".")[0] for argument in argv[1:]]
    if "config" in takes:
        argv, file = config_file.take(argv)
        config_file.check_names(argv, file.config)
        fresh = config_file.leaves(file.config)
        config_flags.DEFINE_config_dict(
            "config", file.config, FLAGS["config"], flag_values=values, sys_argv=argv
        )
    ours = [name for name in takes if name != "config"]
    for name in ours:
        if name in _SWITCHES:
            flags.DEFINE_bool(name, False, FLAGS[name], flag_values=values)
        else:
            flags.DEFINE_string(name, None, FLAGS[name], flag_values=values)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, takes, n=1)
        there = f"there are --{', --'.join(takes)}" if takes else "there are none here"
        hint = f"did you mean --{close[0]}?" if close else there
        raise UserError(f"unknown flag --{error.flagname}: {hint}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(config_file.explain(error, fresh)) from error
    if len(rest) > 1 and not positional:
        raise UserError(f"unexpected argument {rest[1]!r}: all options begin with --")
    given: dict[str, Any] = {name: values[name].value for name in ours}
    options = Options(**given, arguments=tuple(rest[1:]))
    if file is None:
        return options
    overrides = config_file.settle(file.config, fresh)
    return options._replace(
        config=file.config, name=file.name, overrides=overrides, config_given="config" in words
    )


def prepare(
    options: Options,
    needs: Callable[[Config], Sequence[Condition]] | None = None,
    *,
    started: bool = False,
) -> Settings:
    """Returns the checked settings of a run; sets up devices and the compilation cache.

    Args:
      options: of the command line.
      needs: a config to the conditions that are wanted, where no hypothesis is to be decided.
      started: whether `start` was called before.

    Raises:
      UserError: for whatever flags and config ask for that cannot be done.
    """
    config = options.config
    try:
        settings.validate(config)
        chosen = [] if needs else choose(config, options.only)
        every = _seconds("checkpoint_every", options.checkpoint_every, checkpoints.EVERY)
        if not started:
            start(options)
        dataset = load_data(config.dataset, environment.data_dir(options.data_dir))
        if dataset.num_classes != config.num_classes:
            raise ValueError(
                f"config.num_classes is {config.num_classes}, but {config.dataset} has "
                f"{dataset.num_classes} classes"
            )
        if processes.shared(lambda: dataset.checksum) != dataset.checksum:
            raise ValueError(
                f"{config.dataset} is not the same on all processes: prepare it anew on each"
            )
        pool = dataset.pool(config.subset)
        wanted = {c for study in chosen for r in study.needs(config) for c in r.conditions}
        wanted = needs(config) if needs else wanted
        for one in wanted:
            populations.validate(one, pool)
        layout = place(options, wanted, pool)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if processes.lost(error):
            raise
        raise UserError(str(error)) from error
    digest = "-" + storage.json_digest(options.overrides)[:6] if options.overrides else ""
    workdir = Path(options.workdir or f"runs/{options.name}{digest}")
    return Settings(config, options.name, workdir, chosen, dataset, layout, every)


def start(options: Options) -> None:
    """Sets up devices, processes and the compilation cache, before anything is computed.

    Args:
      options: of the command line.

    Raises:
      UserError: if a flag asks for what cannot be done.
    """
    number = None
    if options.mesh is not None:
        try:
            number = math.prod(sharding.parse_mesh(options.mesh).values())
        except ValueError as error:
            raise UserError(f"--mesh: {error}") from error
    if options.distributed:
        # The devices of a mesh are those of all processes.
        if number is not None and (options.num_processes or "").isdecimal():
            number = max(1, number // max(1, int(options.num_processes or 1)))
        environment.use_cores(number)
        processes.start(options.coordinator, options.num_processes, options.process_id)
        if not processes.is_first():
            LOG.setLevel(logging.ERROR)
    elif options.coordinator or options.num_processes or options.process_id:
        raise UserError("--coordinator, --num_processes and --process_id need --distributed")
    else:
        environment.use_cores(number)
    environment.use_cache(options.compilation_cache)
    processes.listen()


def place(
    options: Options, wanted: Iterable[Condition] = (), pool: data.Split | None = None
) -> sharding.Layout:
    """Returns where a run computes: the mesh that is asked for, else what suits its populations.

    Args:
      options: of the command line.
      wanted: conditions of the populations.
      pool: the examples that halves are drawn from.

    Raises:
      UserError: if there are not that many devices.
    """
    at_once = None
    if options.at_once is not None:
        if not options.at_once.isdecimal() or int(options.at_once) < 1:
            raise UserError(f"--at_once must be a whole number from 1 on, got {options.at_once!r}")
        at_once = int(options.at_once)
    if options.mesh is not None:
        sizes = sharding.parse_mesh(options.mesh)
        try:
            mesh = sharding.make_mesh(sizes[sharding.MEMBER], sizes[sharding.DATA])
        except ValueError as error:
            raise UserError(f"--mesh: {error}") from error
        if {one.process_index for one in mesh.devices.flat} != set(range(jax.process_count())):
            raise UserError(
                f"--mesh={options.mesh} leaves a process without a device: there are "
                f"{jax.device_count()} devices on {jax.process_count()} processes"
            )
    elif wanted and pool is not None:
        shape, memory = pool.images.shape[1:], processes.shared(environment.device_bytes)
        mesh = sharding.choose(
            min(one.num_pairs for one in wanted),
            member_bytes=max(costs.member_bytes(one, shape) for one in wanted) if memory else 0,
            device_bytes=memory,
        ).mesh
    else:
        mesh = sharding.make_mesh()
    return sharding.Layout(mesh, at_once)


def _seconds(flag: str, text: str | None, default: float) -> float:
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"--{flag} must be a number of seconds from 0 on, got {text!r}")
    return value


def choose(config: Config, only: str | None) -> list[Study]:
    """Returns the studies of a run in the order of the family.

    Args:
      config: names them where `only` does not.
      only: of --only.

    Raises:
      UserError: for an unknown name, or none.
    """
    known = studies.available()
    if only is None:
        names = list(config.hypotheses)
    elif only == "all":
        names = list(known)
    else:
        names = [name.strip() for name in only.split(",") if name.strip()]
    if not names:
        where = "config.hypotheses" if only is None else "--only"
        raise UserError(f"{where} names no hypothesis: e.g. --only=G1,T1 or --only=all")
    for name in names:
        if name not in known:
            raise UserError(f"unknown hypothesis {name!r}: there are {', '.join(known)}, or 'all'")
    return [study for name, study in known.items() if name in names]


def load_data(name: str, folder: str) -> data.Dataset:
    """Returns a data set, and says so where that takes long.

    Args:
      name: as of `data.load`.
      folder: data folder.

    Raises:
      DataError: as `data.load`.
    """
    patience = threading.Timer(2.0, LOG.info, ("reading data set %s", name))
    patience.start()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", data.DataWarning)
            dataset = data.load(name, folder)
    finally:
        patience.cancel()
    for warning in caught:
        LOG.warning("warning: %s", warning.message)
    return dataset


def identity(settings: Settings) -> Identity:
    """Returns what identifies a run."""
    return Identity(settings.name, settings.config.to_dict(), settings.dataset.checksum)


def finish(run: Any) -> None:
    """Decides, writes the report and prints the map, the verdicts and where the report is."""
    processes.shared(lambda: print(pipeline.ending(run, pipeline.conclude(run)), flush=True))
