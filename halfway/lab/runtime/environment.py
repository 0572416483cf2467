"""What a run stands on: data folder, devices, compilation cache; versions, commit, data set."""

import gc
import importlib.metadata
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

import halfway
from halfway import data, sharding
from halfway.lab.config.config_file import ROOT
from halfway.lab.config.user import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pandas")


def data_dir(given: str | None) -> str:
    """Returns the data folder: the given one, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return given or data.default_root()  # empty is unset


def use_cores(number: int | None = None) -> None:
    """Makes each core a device of JAX's on a CPU, unless XLA_FLAGS says how many there are.

    Members are spread over devices, which is faster than threads inside one member's operations.

    Args:
      number: of devices instead of one for each core.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # jax_num_cpu_devices would silently win
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", number or cores or 1)


def device_bytes() -> int | None:
    """Returns the memory of a device; None where it does not say, as on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


MOST_MAPS = 30_000
"""Memory maps beyond which compiled programs are forgotten: Linux gives 65,530 to a process, and
XLA crashes without a word where it gets no more."""


def forget_programs(most: int = MOST_MAPS) -> bool:
    """Forgets what is compiled where it holds too many memory maps, and says whether it did.

    Each program holds some for as long as it is known: a run of all hypotheses has hundreds of
    them. What is still needed comes back from the compilation cache.

    Args:
      most: maps of this process that are let be.
    """
    maps = Path("/proc/self/maps")  # on Linux alone
    if not maps.exists() or maps.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True


def use_cache(given: str | None) -> None:
    """Keeps compiled programs in a folder, the user's cache by default, where it can be written.

    Raises:
      UserError: if the given folder cannot be written.
    """
    if given == "off":
        return
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(given or f"{base}/halfway/jax")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        if given:
            reason = getattr(error, "strerror", error)
            raise UserError(
                f"--compilation_cache={folder} cannot be written ({reason}): choose another "
                "folder, or 'off'"
            ) from error
        return  # slower, not wrong
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def describe(dataset: data.Dataset) -> dict[str, Any]:
    """Returns what a reader needs to repeat the run: command, versions, commit, devices, start.

    Args:
      dataset: whose version and size are noted.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = module.name if module else Path(sys.argv[0]).name
    versions = {"halfway": halfway.__version__, "python": sys.version.split()[0]}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = jax.devices()
    return {
        "command": f"python -m {shlex.join([program, *sys.argv[1:]])}",
        "versions": versions,
        "commit": _commit(),
        "devices": f"{devices[0].device_kind} ({os.cpu_count()} cores)",
        "layout": _layout(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "data_version": dataset.version,
        "data_size": f"{len(dataset.train.labels)} train, {len(dataset.test.labels)} test",
    }


def _layout() -> str:
    number = jax.process_count()
    return f"mesh {sharding.current()}" + (f", {number} processes" if number > 1 else "")


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
