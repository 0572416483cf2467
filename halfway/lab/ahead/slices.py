"""Slices of TPUs by name: the devices that the installed compiler knows, and their memory."""

import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp

from halfway.lab.config.user import UserError
from halfway.lab.runtime.devices import Hardware

EXAMPLES = {
    "v2": "2x2",
    "v3": "2x2",
    "v4": "2x2x1",
    "v5e": "4x4",
    "v5p": "2x2x1",
    "v6e": "2x4",
    "tpu7x": "2x2x1",
}
"""Generations of TPUs, each with the shape of a slice; which ones there are is asked of libtpu."""
_NAME = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")
_FORM = "GENERATION:SHAPE with 2 or 3 numbers, e.g. v5e:4x4 or v4:2x2x1"
_MEMORY = re.compile(r"(?:HBM \(| of )([\d.]+)([KMGT])")
_UNKNOWN = "INVALID_ARGUMENT"
"""What errors say where libtpu does not know a slice."""
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_LARGE = 2**21
"""Rows of a square matrix of 16 TB, more than a device has."""


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns the generation and the shape that the name of a slice says.

    Args:
      name: such as "v5e:4x4".

    Raises:
      UserError: if it is of another form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"--topology must be {_FORM}, got {name!r}")
    return match[1], tuple(map(int, match[2].split("x")))


def choose(name: str | None) -> Hardware | None:
    """Returns a slice by its name; call it after `devices.start`, before JAX computes anything.

    JAX itself is kept on the CPU, so that a TPU of this machine stays free.

    Args:
      name: such as "v5e:4x4"; None: none is wanted.

    Raises:
      UserError: if the name is of another form, the compiler for TPUs is not installed, or it does
        not know the slice.
    """
    if name is None:
        return None
    parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology needs libtpu, the compiler for TPUs, which is not installed: "
            "pip install 'halfway[tpu]' (from a checkout: pip install -e '.[tpu]')"
        )
    _prepare()
    try:
        devices = _devices(name)
    except jax.errors.JaxRuntimeError as error:
        if _UNKNOWN not in str(error):
            words = " ".join(str(error).split())[:200]
            raise UserError(f"--topology={name}: libtpu cannot be used ({words})") from error
        known = ", ".join(f"{kind}:{EXAMPLES[kind]}" for kind in known_kinds()) or "none"
        reason = " ".join(str(error).split()).removeprefix(f"{_UNKNOWN}: ")
        raise UserError(
            f"--topology={name} is not known to the installed libtpu ({reason}): it knows {known}, "
            "and other shapes of these"
        ) from error
    return Hardware(name, devices, memory_of(devices[0]))


def known_kinds() -> list[str]:
    """Returns the generations of TPUs that the installed compiler knows."""
    kinds = []
    for kind, shape in EXAMPLES.items():
        try:
            _devices(f"{kind}:{shape}")
        except jax.errors.JaxRuntimeError:
            continue
        kinds.append(kind)
    return kinds


def memory_of(device: Any) -> int | None:
    """Returns the bytes that the compiler counts with on a device; None where it does not say.

    The compiler says it where a program does not fit: it is asked for a matrix of 16 TB.

    Args:
      device: one of a slice.
    """
    where = jax.sharding.SingleDeviceSharding(device)
    vector = jax.ShapeDtypeStruct((_TOO_LARGE,), jnp.float32, sharding=where)
    program = jax.jit(lambda v: jnp.sort(v[:, None] * v[None], axis=0))
    try:
        program.lower(vector).compile()
    except jax.errors.JaxRuntimeError as error:
        return memory_in(str(error))
    return None


def memory_in(message: str) -> int | None:
    """Returns the bytes of a device that a compiler's error names, or None.

    Args:
      message: such as "... (64.00G) exceeds available HBM (15.75G)." or "Used 20G of 15.75G hbm".
    """
    match = _MEMORY.search(message)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def _prepare() -> None:
    """Tells libtpu that there is no TPU to ask, and JAX to compute on the CPU.

    The cache of compiled programs is off: what was compiled for devices that are not there is
    written to it and cannot be read again.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    # Several processes may compile: no device is taken.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def _devices(name: str) -> tuple[Any, ...]:
    from jax.experimental import topologies

    kind, shape = parse(name)
    options: dict[str, Any] = {}
    if max(shape) == 1:  # a host has four chips, unless it is said
        options = {"chips_per_host_bounds": (1, 1, 1)}
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{kind}:{'x'.join(map(str, shape))}", **options
    )
    return tuple(description.devices)
