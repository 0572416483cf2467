"""The environment of a run: versions, commit, devices, data set."""

import importlib.metadata
import os
import subprocess
import sys
import time
from typing import Any

import jax

import halfway
from halfway import data, sharding
from halfway.lab.config.config_file import CHECKOUT

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pandas")


def describe(dataset: data.Dataset, command: str) -> dict[str, Any]:
    """Returns what a reader needs to repeat the run: command, versions, commit, devices, start.

    Args:
      dataset: the data set, of which version and size are noted.
      command: the command of the run, as it can be pasted into a shell.
    """
    devices = jax.devices()
    return {
        "command": command,
        "versions": versions(),
        "commit": _commit(),
        "devices": f"{devices[0].device_kind} ({os.cpu_count()} cores)",
        "layout": _layout(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "data_version": dataset.version,
        "data_size": {"train": len(dataset.train.labels), "test": len(dataset.test.labels)},
    }


def versions() -> dict[str, str]:
    """Returns the versions of this package, of Python, and of what it is built on."""
    ours = {"halfway": halfway.__version__, "python": sys.version.split()[0]}
    return ours | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _layout() -> str:
    number = jax.process_count()
    return f"mesh {sharding.current()}" + (f", {number} processes" if number > 1 else "")


def _commit() -> str | None:
    """Returns the commit of the checkout; None where there is none."""
    if CHECKOUT is None or not (CHECKOUT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        clean = not git("status", "--porcelain")
        return git("rev-parse", "HEAD") + ("" if clean else " with uncommitted changes")
    except (OSError, subprocess.CalledProcessError):
        return None
