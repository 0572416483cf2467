"""Flags, folders and devices; where a user's mistake becomes one line and exit code 2."""

import difflib
import importlib.metadata
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

import halfway
from experiments import conditions, pipeline, studies
from experiments.conditions import Config
from experiments.errors import LOG, UserError
from experiments.runs import Identity
from experiments.study import Study
from halfway import data, populations

ROOT = Path(__file__).resolve().parent.parent
CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(ROOT / "configs" / "digits.py"),
    "Config file, FILE.py or FILE.py:VARIANT; fields are set by --config.FIELD=VALUE. A relative "
    "path is looked for in the current folder, then in the repository.",
)
ONLY = flags.DEFINE_string(
    "only", None, "Hypotheses, e.g. G1,T1, or 'all' that exist; the config's own by default."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; runs/<config>[-<variant>][-<hash of overrides>] by default."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Data folder; $TFDS_DATA_DIR, else ~/tensorflow_datasets, by default."
)
CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder where compiled programs are kept, or 'off'; the user's cache folder by default.",
)
_OURS = ("config", "only", "workdir", "data_dir", "compilation_cache")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pandas")


class Settings(NamedTuple):
    """What the flags of a run say, checked."""

    config: Config
    name: str
    workdir: Path
    studies: list[Study]
    dataset: data.Dataset


def launch(main: Callable[[], None], takes: Sequence[str] = _OURS) -> None:
    """Runs an entry point; a `UserError` ends it with one line on stderr and exit code 2.

    Args:
      main: what to do once flags are parsed.
      takes: those of our flags that the entry point has.
    """

    def guarded(_: Sequence[str]) -> None:
        try:
            main()
        except UserError as error:
            _fail(error)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    # A log line of ours is for the user; absl's own handler would show other libraries' too.
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    app.run(guarded, flags_parser=lambda argv: _parse(argv, takes))


def _fail(error: Exception) -> None:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: Sequence[str], takes: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(_locate_config(list(argv)))
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: all options begin with --")
        for name in _OURS:
            if name not in takes and flags.FLAGS[name].present:
                raise UserError(f"unknown flag --{name} here: it takes --{', --'.join(takes)}")
        if "config" in takes:
            _ = CONFIG.value.num_pairs  # a file without it is noticed here, not after training
    except UserError as error:
        _fail(error)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, _OURS, n=1)
        hint = f"; did you mean --{close[0]}?" if close else f"; there are --{', --'.join(takes)}"
        _fail(UserError(f"unknown flag --{error.flagname}{hint}"))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(UserError(_explain(argv, error)))
    except (ImportError, SyntaxError, OSError) as error:
        _fail(UserError(f"the config file cannot be loaded: {error}"))
    return rest


def _explain(argv: Sequence[str], error: Exception) -> str:
    """Returns one line for whatever ml_collections raised while it set fields."""
    first = str(error).strip().strip("'\"").splitlines()[0]
    overrides = [arg for arg in argv if arg.startswith(("--config.", "-config."))]
    for arg in overrides:
        name = arg.lstrip("-").removeprefix("config.").partition("=")[0]
        fields = _fields(CONFIG.value if _config_loads() else ConfigDict())
        if fields and name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(fields)}"
            return f"unknown config field {name!r} in {arg}: {hint}"
    if overrides and isinstance(error, flags.IllegalFlagValueError | TypeError | ValueError):
        return f"{first} (in {' '.join(overrides)})"
    return first


def _config_loads() -> bool:
    try:
        return CONFIG.value is not None
    except Exception:
        return False


def _fields(config: Config, prefix: str = "") -> list[str]:
    return [path for path, _ in _leaves(config, prefix)]


def _leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _locate_config(argv: list[str]) -> list[str]:
    """Returns the arguments with the config's path made absolute."""
    for i, arg in enumerate(argv[1:], 1):
        if arg == "--":
            break
        flag, equals, value = arg.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals and i + 1 == len(argv):
            raise UserError("--config needs a file")
        path, colon, variant = (value if equals else argv[i + 1]).partition(":")
        found = [p for p in (Path(path), ROOT / path) if p.is_file()]
        if not found:
            there = ", ".join(sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.py")))
            raise UserError(f"config file {path!r} does not exist: there are {there}")
        located = f"{found[0].resolve()}{colon}{variant}"
        if equals:
            argv[i] = f"{flag}={located}"
        else:
            argv[i + 1] = located
    return argv


def prepare() -> Settings:
    """Returns the checked settings of a run; sets up devices and the compilation cache.

    Raises:
      UserError: for whatever flags and config ask for that cannot be done.
    """
    config = CONFIG.value
    flag: Any = flags.FLAGS["config"]
    path, _, variant = str(flag.config_filename).partition(":")
    name = "-".join(filter(None, (Path(path).stem, variant)))
    changed = _overrides(config, path, variant)
    try:
        conditions.validate(config)
        chosen = _chosen(config)
        use_cores()
        use_cache()
        dataset = _load(config.dataset)
        if dataset.num_classes != config.num_classes:
            raise ValueError(
                f"config.num_classes is {config.num_classes}, but {config.dataset} has "
                f"{dataset.num_classes} classes"
            )
        pool = dataset.pool(config.subset)
        for one in {c for study in chosen for r in study.needs(config) for c in r.conditions}:
            populations.validate(one, pool)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(str(error)) from error
    digest = "-" + populations.digest(changed)[:6] if changed else ""
    workdir = Path(WORKDIR.value or f"runs/{name}{digest}")
    return Settings(config, name, workdir, chosen, dataset)


def _overrides(config: Config, path: str, variant: str) -> dict[str, Any]:
    """Returns the fields that differ from what the file says, however that came about."""
    module = config_flags.config_flags._LoadConfigModule("fresh_config", path)
    fresh = dict(_leaves(module.get_config(*([variant] if variant else []))))
    return {name: value for name, value in _leaves(config) if fresh.get(name) != value}


def _chosen(config: Config) -> list[Study]:
    known = studies.available()
    if ONLY.value is None:
        names = list(config.hypotheses)
    elif ONLY.value == "all":
        names = list(known)
    else:
        names = [name.strip() for name in ONLY.value.split(",") if name.strip()]
        if not names:
            raise UserError("--only names no hypothesis: e.g. --only=G1,T1 or --only=all")
    for name in names:
        if name not in known:
            raise UserError(f"unknown hypothesis {name!r}: there are {', '.join(known)}, or 'all'")
    return [study for name, study in known.items() if name in names]


def _load(name: str) -> data.Dataset:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", data.DataWarning)
        dataset = data.load(name, data_dir())
    for warning in caught:
        LOG.warning("warning: %s", warning.message)
    return dataset


def data_dir() -> Path:
    """Returns the data folder: the flag, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = DATA_DIR.value or os.environ.get("TFDS_DATA_DIR")  # empty is unset
    return Path(chosen) if chosen else Path("~/tensorflow_datasets").expanduser()


def use_cores() -> None:
    """Makes each core a device of JAX's on a CPU, unless XLA_FLAGS says how many there are.

    Members are spread over devices, which is faster than threads inside one member's operations.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder, where that can be written."""
    if CACHE.value == "off":
        return
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(CACHE.value or f"{base}/halfway/jax").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if CACHE.value:
            raise UserError(
                f"--compilation_cache={folder} cannot be written ({error.strerror}): choose "
                "another folder, or 'off'"
            ) from error
        return  # slower, not wrong
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def identity(settings: Settings) -> Identity:
    """Returns what identifies a run."""
    return Identity(settings.name, settings.config.to_dict(), settings.dataset.checksum)


def environment() -> dict[str, Any]:
    """Returns what a reader needs to repeat the run: command, versions, commit, devices, start."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = module.name if module else Path(sys.argv[0]).name
    versions = {"halfway": halfway.__version__, "python": sys.version.split()[0]}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = jax.devices()
    return {
        "command": " ".join(["python -m", program, *sys.argv[1:]]),
        "versions": versions,
        "commit": _commit(),
        "devices": f"{devices[0].device_kind} ({os.cpu_count()} cores)",
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        clean = not git("status", "--porcelain")
        return git("rev-parse", "HEAD") + ("" if clean else " with uncommitted changes")
    except (OSError, subprocess.CalledProcessError):
        return None


def finish(run: Any) -> None:
    """Decides, writes the report and prints the map, the verdicts and where the report is."""
    print(pipeline.ending(run, pipeline.conclude(run)))
