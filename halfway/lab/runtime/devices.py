"""Where a run computes: processes, cores and devices, the mesh, the compilation cache."""

import ctypes
import gc
import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from halfway import sharding
from halfway.data import Split
from halfway.lab.config.place import Place
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import costs, processes
from halfway.populations import Condition


class Hardware(NamedTuple):
    """Devices that programs are compiled for, whether they are there or not.

    Attributes:
      name: in words, e.g. "v5e:4x4".
      devices: in the order of their numbers.
      device_bytes: the memory of each, in bytes; None: not known.
    """

    name: str
    devices: tuple[Any, ...]
    device_bytes: int | None


def start(place: Place) -> None:
    """Sets up devices, processes and the compilation cache, before anything is computed.

    Args:
      place: where the user lets the run compute.

    Raises:
      UserError: if the mesh cannot be read, processes cannot be connected, flags of processes are
        given without `distributed`, or the cache cannot be written.
    """
    number = None
    if place.mesh is not None:
        try:
            number = math.prod(sharding.parse_mesh(place.mesh).values())
        except ValueError as error:
            raise UserError(f"--mesh: {error}") from error
    if place.distributed:
        # The devices of a mesh are those of all processes.
        if number is not None and place.num_processes:
            number = max(1, number // place.num_processes)
        use_cores(number)
        processes.start(place.coordinator, place.num_processes, place.process_id)
        if not processes.is_first():
            LOG.setLevel(logging.ERROR)
    elif not (place.coordinator is place.num_processes is place.process_id is None):
        raise UserError("--coordinator, --num_processes and --process_id need --distributed")
    else:
        use_cores(number)
    use_cache(place.compilation_cache)
    processes.listen()


def lay_out(
    place: Place,
    wanted: Iterable[Condition] = (),
    pool: Split | None = None,
    hardware: Hardware | None = None,
) -> sharding.Layout:
    """Returns the layout with the user's mesh, or else with the mesh that suits the populations.

    Args:
      place: where the user lets the run compute.
      wanted: the conditions of the populations.
      pool: the examples that halves are drawn from.
      hardware: what programs are compiled for; the devices of all processes by default.

    Raises:
      UserError: if there are fewer devices than the mesh has, or a process has none in it.
    """
    limit_memory()
    there = None if hardware is None else hardware.devices
    wanted, at_once = list(wanted), place.at_once
    needs, memory = [], None
    if wanted and pool is not None:
        shape = pool.images.shape[1:]
        needs = [costs.memory_of(condition, shape) for condition in wanted]
        memory = processes.shared(device_bytes) if hardware is None else hardware.device_bytes
    if place.mesh is not None:
        sizes = sharding.parse_mesh(place.mesh)
        try:
            mesh = sharding.make_mesh(sizes[sharding.MEMBER], sizes[sharding.DATA], devices=there)
        except ValueError as error:
            raise UserError(f"--mesh: {error}") from error
        if hardware is None and {device.process_index for device in mesh.devices.flat} != set(
            range(jax.process_count())
        ):
            raise UserError(
                f"--mesh={place.mesh} leaves a process without a device: there are "
                f"{jax.device_count()} devices on {jax.process_count()} processes"
            )
    elif needs:
        mesh = sharding.choose(
            min(condition.num_pairs for condition in wanted),
            member_bytes=max(need.most for need in needs) if memory else 0,
            device_bytes=memory,
            devices=there,
        ).mesh
    else:
        mesh = sharding.make_mesh(devices=there)
    if at_once is None and memory:
        at_once = _at_once_by_memory(wanted, needs, mesh, memory)
    return sharding.Layout(mesh, at_once)


def _at_once_by_memory(
    wanted: Sequence[Condition], needs: Sequence[costs.Memory], mesh: jax.sharding.Mesh, memory: int
) -> int | None:
    """Returns how many pairs of a device run at once where all do not fit into memory, else None.

    A CPU has no limit that a program would run into: the system ends the process.

    Args:
      wanted: the conditions of the populations.
      needs: their memory.
      mesh: the devices.
      memory: the bytes of a device.
    """
    num_members, num_data = mesh.shape[sharding.MEMBER], mesh.shape[sharding.DATA]
    fitting = math.inf
    for condition, need in zip(wanted, needs, strict=True):
        here = -(-condition.num_pairs // num_members)
        left = FOR_POPULATIONS * memory - here * need.held
        at_once = left // max(1, max(need.look, need.step) // num_data)
        if at_once < here:
            fitting = min(fitting, max(1, at_once))
    return None if math.isinf(fitting) else int(fitting)


def use_cores(number: int | None = None) -> None:
    """Makes each core a device of JAX's on a CPU, unless XLA_FLAGS says how many there are.

    Members are spread over devices, which is faster than threads inside the operations of a member.

    Args:
      number: the number of devices; None for the number of cores.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # jax_num_cpu_devices would silently win
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", number or cores or 1)


def device_bytes() -> int | None:
    """Returns the bytes of a device's memory, on a CPU its share; None where they are not known."""
    if jax.default_backend() != "cpu":
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    machine = _machine_bytes()
    return None if machine is None else machine // jax.local_device_count()


def _machine_bytes() -> int | None:
    """Returns the bytes of the machine's memory; None where they are not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


FOR_POPULATIONS = 0.6
"""Share of a device's memory that populations are planned for: what is left is for images,
programs, and the error of the estimate."""


def limit_memory() -> None:
    """Limits the memory of this process on a CPU, so that a program that needs more says so.

    Without, the system ends the process and leaves no message; with it, XLA runs out of memory, and
    the program goes on with fewer members at once (`sharding.jit`). A lower limit stays.
    """
    machine = _machine_bytes()
    if jax.default_backend() != "cpu" or machine is None:
        return
    try:
        import resource
    except ImportError:  # not on every system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(MOST_OF_MEMORY * machine)
    if soft == resource.RLIM_INFINITY or soft > wanted:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


MOST_OF_MEMORY = 0.9
"""Share of a machine's memory that one process may take on a CPU."""
MOST_MAPS = 30_000
"""Memory maps beyond which compiled programs are forgotten. Linux allows a process 65,530, and XLA
crashes without a message where it gets no more."""


def forget_programs(most: int = MOST_MAPS) -> bool:
    """Forgets compiled programs where they hold too many memory maps.

    Each program holds memory maps until it is forgotten, and a run of all hypotheses has hundreds
    of programs. Programs that are still needed come back from the compilation cache.

    Args:
      most: the number of memory maps up to which nothing is done.

    Returns:
      Whether programs were forgotten.
    """
    maps = Path("/proc/self/maps")  # on Linux alone
    if not maps.exists() or maps.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True


def return_memory() -> bool:
    """Gives memory that was freed back to the system, as far as its C library can.

    A compiler frees most of what it takes, and the GNU C library keeps that for later: a quarter of
    the memory of a process after eight programs.

    Returns:
      Whether any was given back.
    """
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library alone
    return trim is not None and bool(trim(0))


def use_cache(given: str | None) -> None:
    """Keeps compiled programs in a folder, if the folder can be written.

    Args:
      given: a folder, "off" for no cache, or None for a folder in the user's cache.

    Raises:
      UserError: if a given folder cannot be written.
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
