"""Where a run computes: processes, cores and devices, the mesh, the compilation cache."""

import dataclasses
import gc
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

import jax

from halfway import sharding
from halfway.data import Split
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import costs, processes
from halfway.populations import Condition


@dataclasses.dataclass(frozen=True)
class Place:
    """What a user says of where a run computes; None where nothing is said.

    Attributes:
      mesh: "member:4,data:2".
      at_once: members of one device that run at once, at most.
      distributed: whether this is one of several processes.
      coordinator: HOST:PORT of process 0.
      num_processes: of the run.
      process_id: of this one.
      compilation_cache: a folder, or "off".
    """

    mesh: str | None = None
    at_once: int | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    compilation_cache: str | None = None


def start(place: Place) -> None:
    """Sets up devices, processes and the compilation cache, before anything is computed.

    Args:
      place: what the user says.

    Raises:
      UserError: if it asks for what cannot be done.
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
    place: Place, wanted: Iterable[Condition] = (), pool: Split | None = None
) -> sharding.Layout:
    """Returns the mesh that is asked for, else what suits the populations.

    Args:
      place: what the user says.
      wanted: conditions of the populations.
      pool: the examples that halves are drawn from.

    Raises:
      UserError: if there are not that many devices.
    """
    wanted = list(wanted)
    if place.mesh is not None:
        sizes = sharding.parse_mesh(place.mesh)
        try:
            mesh = sharding.make_mesh(sizes[sharding.MEMBER], sizes[sharding.DATA])
        except ValueError as error:
            raise UserError(f"--mesh: {error}") from error
        if {device.process_index for device in mesh.devices.flat} != set(
            range(jax.process_count())
        ):
            raise UserError(
                f"--mesh={place.mesh} leaves a process without a device: there are "
                f"{jax.device_count()} devices on {jax.process_count()} processes"
            )
    elif wanted and pool is not None:
        shape, memory = pool.images.shape[1:], processes.shared(device_bytes)
        mesh = sharding.choose(
            min(condition.num_pairs for condition in wanted),
            member_bytes=max(costs.member_bytes(c, shape) for c in wanted) if memory else 0,
            device_bytes=memory,
        ).mesh
    else:
        mesh = sharding.make_mesh()
    return sharding.Layout(mesh, place.at_once)


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
