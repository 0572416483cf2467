"""Where members live: one layer that maps over a population on all devices of all processes.

A mesh has two axes. Members are spread over `member` first, since they need nothing of each other;
over `data` are spread the examples of a batch or a sum, where there are more devices than members
or a member does not fit. Every program of training, attacks, transfer and landscapes is made by
`jit` and mapped by `spread`; the layout in force (`use`) is part of it.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

MEMBER, DATA = "member", "data"

CPU_LEVEL: int | None = 1
"""XLA's optimization level of `jit` on a CPU; None: that of the process."""

AT_ONCE: dict[tuple[str, str], int] = {
    ("cpu", "mlp"): 1,
    ("cpu", "cnn"): 1,
    ("cpu", "residual"): 1,
}
"""Members of a device that train at once, by backend and kind of model; all where it says nothing.

What several members hold at once goes beyond the cache of a CPU: one after another MLPs take 20 %
less and CNNs 6 % (measured: digits, 8 pairs on each of 2 devices; residual networks were not).
"""
_LOG = logging.getLogger("halfway.placement")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices, and how many members of a device run at once.

    Attributes:
      mesh: with the axes `member` and `data`.
      at_once: at most so many, in chunks of equal size; None: as many as each program likes.
    """

    mesh: Mesh
    at_once: int | None = None

    def __str__(self) -> str:
        """In words, e.g. "member:2,data:1"."""
        axes = ",".join(f"{name}:{size}" for name, size in self.mesh.shape.items())
        return axes if self.at_once is None else f"{axes}, {self.at_once} members at once"


def make_mesh(num_members: int | None = None, num_data: int = 1) -> Mesh:
    """Returns a mesh over the first `num_members` · `num_data` devices of all processes.

    Args:
      num_members: devices along `member`; by default as many as there are.
      num_data: devices along `data`.

    Raises:
      ValueError: if there are fewer devices.
    """
    devices = jax.devices()
    if num_members is None:
        num_members = max(1, len(devices) // max(1, num_data))
    if num_members < 1 or num_data < 1 or num_members * num_data > len(devices):
        raise ValueError(
            f"a mesh has from 1 to {len(devices)} devices, all that there are, got "
            f"{MEMBER}:{num_members},{DATA}:{num_data}"
        )
    return jax.make_mesh(
        (num_members, num_data),
        (MEMBER, DATA),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: num_members * num_data],
    )


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the sizes of the axes of a text, "member:4,data:2"; what it does not name is 1.

    Raises:
      ValueError: if the text is of another form.

    Examples:
      >>> sharding.parse_mesh("member:2")
      {'member': 2, 'data': 1}
    """
    sizes = {MEMBER: 1, DATA: 1}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in sizes or not size.isdecimal():
            raise ValueError(f"a mesh is like '{MEMBER}:8' or '{MEMBER}:4,{DATA}:2', got {text!r}")
        sizes[name] = int(size)
    return sizes


def choose(num_members: int, *, member_bytes: int = 0, device_bytes: int | None = None) -> Layout:
    """Returns the layout of a population on all devices.

    Along `member` lie as many devices as there are members for, among the numbers that divide the
    devices; what is left lies along `data`. Where a member needs more memory than a device has,
    `data` takes devices from `member` until its share fits, or all are taken.

    Args:
      num_members: of the smallest population of a run.
      member_bytes: that a member needs while it trains, see `costs`; 0: not known.
      device_bytes: memory of a device; None: not known.
    """
    number = len(jax.devices())
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    along = max(d for d in divisors if d <= max(1, num_members))
    if device_bytes:
        fits = [d for d in divisors if d <= along and member_bytes * d <= device_bytes * number]
        along = max(fits, default=1)
    return Layout(make_mesh(along, number // along))


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)
_CHUNKS: ContextVar[list[int] | None] = ContextVar("chunks", default=None)
_WITHIN: ContextVar[tuple[str, int] | None] = ContextVar("within", default=None)


def current() -> Layout:
    """Returns the layout in force: that of `use`, else all devices along `member`."""
    return _LAYOUT.get() or Layout(make_mesh())


@contextlib.contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Puts a layout in force for the programs that are called in the block.

    Examples:
      >>> with sharding.use(sharding.Layout(sharding.make_mesh(1))):
      ...     sharding.current().mesh.size
      1
    """
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def at_once(kind: str) -> int | None:
    """Returns how many members of a device train at once for a kind of model; None: all.

    Args:
      kind: of `models.build`.
    """
    return AT_ONCE.get((jax.default_backend(), kind))


def jit(
    fn: Callable[..., Any],
    *,
    static_argnames: Sequence[str] = (),
    gather: bool = True,
    brief: bool = False,
) -> Callable[..., Any]:
    """Returns `fn` jitted for populations, on the layout in force when it is called.

    On a CPU at XLA's optimization level `CPU_LEVEL`: the time goes into matrix products that XLA
    does not generate itself. Level 1 halves the time to compile and runs as fast (measured:
    training and attacks within 5 %); level 0 runs twice as long. Other backends keep their own
    level.

    Where a device has no memory for it, the program is made again with half as many members at
    once, down to one; several processes end instead.

    Args:
      fn: to be compiled.
      static_argnames: arguments that are part of the program.
      brief: whether it takes less time than its compilation: level 0.
      gather: whether each process gets what others hold of the result. False: `local` does it.
    """

    @functools.cache
    def compiled(level: int | None, layout: Layout) -> tuple[Callable[..., Any], list[int]]:
        chunks: list[int] = []

        @functools.wraps(fn)
        def under(*args: Any, **kwargs: Any) -> Any:
            token = _CHUNKS.set(chunks)
            try:
                # Accelerators would round the factors of a float32 product otherwise.
                with use(layout), jax.default_matmul_precision("highest"):
                    return fn(*args, **kwargs)
            finally:
                _CHUNKS.reset(token)

        options = None if level is None else {"xla_backend_optimization_level": level}
        program = jax.jit(under, static_argnames=static_argnames, compiler_options=options)
        return program, chunks

    fitting: dict[Any, Layout] = {}

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        level = CPU_LEVEL if jax.default_backend() == "cpu" else None
        level = 0 if brief and level is not None else level
        statics = tuple((name, kwargs.get(name)) for name in static_argnames)
        wanted = current()
        layout = fitting.get((wanted, statics), wanted)
        while True:
            program, chunks = compiled(level, layout)
            try:
                out = jax.block_until_ready(program(*args, **kwargs))
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                # Several processes could not agree: the others may be waiting for this one.
                alone = jax.process_count() == 1 and max(chunks, default=1) > 1
                if "RESOURCE_EXHAUSTED" not in str(error) or not alone:
                    raise
                layout = dataclasses.replace(layout, at_once=max(chunks) // 2)
                fitting[wanted, statics] = layout
                name = getattr(fn, "__name__", "a program")
                _LOG.warning(
                    "out of memory: %s goes on with %d members at once", name, layout.at_once
                )
                continue
            return local(out) if gather else out

    return call


def local(tree: Any) -> Any:
    """Returns arrays of which every process holds everything; arrays of one process are as before.

    All processes must call it together.

    Args:
      tree: of arrays.
    """
    if jax.process_count() == 1 or not any(map(_is_far, jax.tree.leaves(tree))):
        return tree
    leaves, structure = jax.tree.flatten(tree)
    found = [
        multihost_utils.process_allgather(leaf, tiled=True) if _is_far(leaf) else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in found])


def _is_far(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def spread(
    fn: Callable[..., Any], *, at_once: int | None = None, by_data: bool = False
) -> Callable[..., Any]:
    """Returns `fn` mapped over the leading axis of its first argument, spread over the devices.

    The axis is padded to a multiple of the devices and chunks by repeating its first entry; the
    padding is cut off again. Call it under `jit`.

    Args:
      fn: `(member, *shared) -> pytree` for one member.
      at_once: members of one device that run at once, by `vmap`; chunks of that size take turns,
        by `lax.map`. None: all. The layout may say less.
      by_data: whether `fn` shares its examples out over the axis `data`, see `data_axis`. Else that
        axis holds members too.

    Returns:
      `(members, *shared) -> pytree`, `[M, ...]` in each leaf; `shared` is the same for all.

    Examples:
      >>> squares = jax.jit(sharding.spread(lambda member, offset: member**2 + offset))
      >>> print(squares(jnp.arange(3.0), jnp.array(1.0)))
      [1. 2. 5.]
    """

    def mapped(members, *shared):
        layout = current()
        mesh = layout.mesh
        axes = (MEMBER,) if by_data else (MEMBER, DATA)
        number = math.prod(mesh.shape[axis] for axis in axes)
        size = jax.tree.leaves(members)[0].shape[0]
        each = -(-size // number)
        most = min(n for n in (at_once, layout.at_once, each) if n is not None)
        num_turns = -(-each // most)
        chunk = -(-each // num_turns)
        seen = _CHUNKS.get()
        if seen is not None:
            seen.append(chunk)
        pad = number * num_turns * chunk - size
        if pad:
            members = jax.tree.map(
                lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], pad, 0)]), members
            )

        def lifted(members, *shared):
            one = lambda member: fn(member, *shared)  # noqa: E731
            token = _WITHIN.set((DATA, mesh.shape[DATA]) if by_data else None)
            try:
                if num_turns == 1 and chunk > 1:
                    return jax.vmap(one)(members)
                if chunk == 1:
                    return jax.lax.map(one, members)
                turns = jax.tree.map(
                    lambda leaf: leaf.reshape(num_turns, chunk, *leaf.shape[1:]), members
                )
                found = jax.lax.map(jax.vmap(one), turns)
                return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
            finally:
                _WITHIN.reset(token)

        out = jax.shard_map(
            lifted,
            mesh=mesh,
            in_specs=(PartitionSpec(axes), *(PartitionSpec() for _ in shared)),
            out_specs=PartitionSpec(axes),
            check_vma=False,
        )(members, *shared)
        return jax.tree.map(lambda leaf: leaf[:size], out)

    return mapped


def data_axis() -> tuple[str, int] | None:
    """Returns name and size of the axis that shares examples out; None where there is nothing to.

    It is there while a function of `spread(..., by_data=True)` is traced, if the mesh has more than
    one device along `data`.
    """
    within = _WITHIN.get()
    return within if within and within[1] > 1 else None


def share(array: jax.Array, axis: tuple[str, int]) -> jax.Array:
    """Returns this device's part of the leading axis, padded by its first entry to equal parts.

    Args:
      array: `[N, ...]`, the same on all devices along the axis.
      axis: of `data_axis`.

    Returns:
      `[⌈N / size⌉, ...]`.
    """
    name, size = axis
    part = -(-array.shape[0] // size)
    pad = part * size - array.shape[0]
    if pad:
        array = jnp.concatenate([array, jnp.repeat(array[:1], pad, 0)])
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(name) * part, part)


def share_mask(mask: jax.Array, axis: tuple[str, int]) -> jax.Array:
    """Returns this device's part of a mask `[N]`, padded by False; see `share`."""
    pad = -mask.shape[0] % axis[1]
    return share(jnp.concatenate([mask.astype(bool), jnp.zeros(pad, bool)]), axis)
