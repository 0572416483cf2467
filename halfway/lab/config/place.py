"""Where a user lets a run compute."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a user lets a run compute; None where a flag is not given.

    Attributes:
      mesh: the axes of the mesh, e.g. "member:4,data:2".
      at_once: the largest number of members of one device that run at once.
      distributed: whether this is one of several processes.
      coordinator: HOST:PORT of process 0.
      num_processes: the number of processes of the run.
      process_id: the number of this process, from 0.
      compilation_cache: the folder of compiled programs, or "off".
    """

    mesh: str | None = None
    at_once: int | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    compilation_cache: str | None = None
