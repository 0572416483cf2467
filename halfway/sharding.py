"""Placement: maps over the members of a population on all devices of all processes.

A mesh has two axes. Members are spread over `member` first, since they need nothing of each other.
The examples of a batch or a sum are spread over `data`, where there are more devices than members
or a member does not fit on a device. Every program of training, attacks, transfer and landscapes is
made by `jit` and mapped by `spread`; the layout in force (`use`) is part of it.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from halfway import trees
from halfway.types import is_traced

MEMBER, DATA = "member", "data"

CPU_LEVEL: int | None = 1
"""XLA's optimization level of `jit` on a CPU; None: that of the process."""

TPU_EFFORT = -1.0
"""How much a TPU's compiler looks for the fastest program, -1 to 1 (XLA's
`exec_time_optimization_effort`, 0 by default), where most of a run's time does not go into it."""

AT_ONCE: dict[str, int] = {"cpu": 1}
"""Number of members that a device runs at once, by backend, where a program does not say; all by
default.

Several members at once exceed the cache of a CPU. One after another, training takes 20 % less time
for MLPs and 6 % for CNNs, reading landscapes 36 %, attacks 21 to 37 % (measured on digits with 8
pairs on each of 2 devices), and less memory.
"""
_LOG = logging.getLogger("halfway.placement")
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")
"""What errors say where memory is short; products of matrices on a CPU say no more than that."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices, and how many members of a device run at once.

    Attributes:
      mesh: devices along the axes `member` and `data`.
      at_once: the largest number of members of a device that run at once, in chunks of equal size;
        None: each program decides, or else `AT_ONCE`.
    """

    mesh: Mesh
    at_once: int | None = None

    def __str__(self) -> str:
        """Returns the layout in words, e.g. "member:2,data:1"."""
        axes = ",".join(f"{name}:{size}" for name, size in self.mesh.shape.items())
        return axes if self.at_once is None else f"{axes}, {self.at_once} members at once"


def make_mesh(
    num_members: int | None = None, num_data: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns a mesh over the first `num_members` · `num_data` devices.

    Args:
      num_members: number of devices along `member`; by default as many as there are.
      num_data: number of devices along `data`.
      devices: the devices there are; by default those of all processes.

    Raises:
      ValueError: if a number is below 1, or there are fewer devices.
    """
    devices = list(jax.devices() if devices is None else devices)
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
    """Returns the sizes of the axes that a text such as "member:4,data:2" names; others are 1.

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


def choose(
    num_members: int,
    *,
    member_bytes: int = 0,
    device_bytes: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Layout:
    """Returns the layout of a population on all devices.

    The axis `member` has as many devices as there are members for, among the numbers that divide
    the number of devices; the rest lies along `data`. Where a member needs more memory than a
    device has, `data` takes devices from `member` until the share of each device fits, or all are
    taken.

    Args:
      num_members: number of members of the smallest population of a run.
      member_bytes: memory that a member needs while it trains, in bytes; 0: not known.
      device_bytes: memory of a device in bytes; None: not known.
      devices: the devices there are; by default those of all processes.
    """
    number = len(jax.devices() if devices is None else devices)
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    along = max(d for d in divisors if d <= max(1, num_members))
    if device_bytes:
        fits = [d for d in divisors if d <= along and member_bytes * d <= device_bytes * number]
        along = max(fits, default=1)
    return Layout(make_mesh(along, number // along, devices=devices))


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


def members_at_once(number: int, layout: Layout, wanted: int | None = None) -> int:
    """Returns how many members of a device run at once.

    Args:
      number: of members that the device has.
      layout: the layout, which may allow fewer.
      wanted: what a program says; None: as `AT_ONCE` has it.
    """
    default = AT_ONCE.get(layout.mesh.devices.flat[0].platform)
    limits = default if wanted is None else wanted, layout.at_once, number
    return min(limit for limit in limits if limit is not None)


def takes_turns() -> bool:
    """Returns whether the models of a member take turns: where members do (`AT_ONCE`)."""
    return AT_ONCE.get(backend()) == 1


def lift(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `fn` mapped over the leading axis of all its arguments, for few models of a member.

    In turns both models of a pair train in 5 % less time (wide MLPs) to 15 % (residual networks)
    on a CPU, see `takes_turns`. Elsewhere they run together.

    Args:
      fn: of one model.
    """
    if takes_turns():
        return lambda *args: jax.lax.map(lambda each: fn(*each), args)
    return jax.vmap(fn)


def backend() -> str:
    """Returns the name of the backend that the layout in force computes on, such as "cpu"."""
    layout = _LAYOUT.get()
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform


class Call(NamedTuple):
    """A call of a compiled program.

    Attributes:
      name: of the function that was compiled.
      program: what `jax.jit` made of it.
      args: its arguments.
      kwargs: its arguments by name, those that are part of the program among them.
      chunks: the number of members that run at once, in each of its maps; filled when it is traced.
    """

    name: str
    program: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    chunks: list[int]


_TAKEN: ContextVar[Callable[[Call], Any] | None] = ContextVar("taken", default=None)


@contextlib.contextmanager
def taken_by(runner: Callable[[Call], Any]) -> Iterator[None]:
    """Hands every program that is called in the block to a function in the place of running it.

    Args:
      runner: a call to what stands for its result. An error of JAX that says that memory is short
        is answered as on a device: by half as many members at once.

    Examples:
      >>> double = sharding.alone(lambda x: 2 * x)
      >>> with sharding.taken_by(lambda call: call.args):
      ...     double(3)
      (3,)
    """
    token = _TAKEN.set(runner)
    try:
        yield
    finally:
        _TAKEN.reset(token)


def is_taken() -> bool:
    """Returns whether programs are handed over, so that results are stand-ins without meaning."""
    return _TAKEN.get() is not None


def _run(call: Call) -> Any:
    """Returns the result of a program, or what stands for it."""
    runner = _TAKEN.get()
    if runner is None or any(map(is_traced, jax.tree.leaves((call.args, call.kwargs)))):
        return call.program(*call.args, **call.kwargs)
    return runner(call)


def alone(
    fn: Callable[..., Any], *, static_argnames: Sequence[str] = (), hot: bool = False
) -> Callable[..., Any]:
    """Returns `fn` jitted for one device, as `jax.jit` does it, where `taken_by` reaches it.

    Args:
      fn: the function to compile.
      static_argnames: names of arguments that are part of the program.
      hot: as of `jit`.
    """

    @functools.cache  # what is traced may depend on the platform, as a convolution does
    def compiled(platform: str) -> Any:
        options = _options(platform, hot)
        return jax.jit(fn, static_argnames=static_argnames, compiler_options=options)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _run(Call(_name(fn), compiled(backend()), args, kwargs, []))

    return call


def _options(platform: str, hot: bool, level: int | None = None) -> dict[str, Any] | None:
    """Returns what the compiler of a platform is told; `level` is a CPU's."""
    if level is not None:
        return {"xla_backend_optimization_level": level}
    return {"exec_time_optimization_effort": TPU_EFFORT} if platform == "tpu" and not hot else None


def _name(fn: Callable[..., Any]) -> str:
    """Returns the name of a function, that of a part of it too."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(inner, "__name__", type(inner).__name__)


def jit(
    fn: Callable[..., Any],
    *,
    static_argnames: Sequence[str] = (),
    gather: bool = True,
    brief: bool = False,
    hot: bool = False,
) -> Callable[..., Any]:
    """Returns `fn` jitted for populations, on the layout in force when it is called.

    On a CPU at XLA's optimization level `CPU_LEVEL`: the time goes into matrix products that XLA
    does not generate itself. Level 1 halves the time to compile and runs as fast (measured:
    training and attacks within 5 %); level 0 runs twice as long. A TPU's compiler is told not to
    look for long (`TPU_EFFORT`), but where a program is hot: it takes a quarter to a sixth of the
    time, and by its own estimate the programs are as fast (compiled, not run). GPUs keep their own.

    Where a device runs out of memory, the program is compiled again with half as many members at
    once, down to one. With several processes the error is raised instead.

    Args:
      fn: the function to compile.
      static_argnames: names of arguments that are part of the program.
      gather: whether each process gets the entries of the result that others hold. If False, the
        caller gathers them with `local`.
      brief: whether a call takes less time than compilation, so that level 0 is enough.
      hot: whether it runs so long that the time to compile it does not matter, as training does.
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

        options = _options(backend(), hot, level)
        program = jax.jit(under, static_argnames=static_argnames, compiler_options=options)
        return program, chunks

    fitting: dict[Any, Layout] = {}

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        level = CPU_LEVEL if backend() == "cpu" else None
        level = 0 if brief and level is not None else level
        statics = tuple((name, kwargs.get(name)) for name in static_argnames)
        wanted = current()
        layout = fitting.get((wanted, statics), wanted)
        while True:
            program, chunks = compiled(level, layout)
            try:
                out = jax.block_until_ready(_run(Call(_name(fn), program, args, kwargs, chunks)))
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                # Several processes could not agree: the others may be waiting for this one.
                alone = jax.process_count() == 1 and max(chunks, default=1) > 1
                if not any(sign in str(error) for sign in _OUT_OF_MEMORY) or not alone:
                    raise
                layout = dataclasses.replace(layout, at_once=max(chunks) // 2)
                fitting[wanted, statics] = layout
                _LOG.warning(
                    "out of memory: %s goes on with %d members at once", _name(fn), layout.at_once
                )
                continue
            return local(out) if gather else out

    return call


def local(tree: Any) -> Any:
    """Returns arrays of which every process holds all entries; with one process, as they are.

    All processes must call it together.

    Args:
      tree: a pytree of arrays.
    """
    if jax.process_count() == 1 or not any(map(_is_far, jax.tree.leaves(tree))):
        return tree
    leaves, structure = jax.tree.flatten(tree)
    full_leaves = [
        multihost_utils.process_allgather(leaf, tiled=True) if _is_far(leaf) else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in full_leaves])


def _is_far(leaf: Any) -> bool:
    """Returns whether other processes hold entries of an array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def spread(
    fn: Callable[..., Any], *, at_once: int | None = None, by_data: bool = False
) -> Callable[..., Any]:
    """Returns `fn` mapped over the leading axis of its first argument, spread over the devices.

    The axis is padded to a multiple of the devices and chunks by repeating its first entry; the
    padding is cut off again. Call it under `jit`.

    Args:
      fn: `(member, *shared) -> pytree` for one member.
      at_once: number of members of one device that run at once, by `vmap`; chunks of that size take
        turns, by `lax.map`. None: as `AT_ONCE` has it. The layout may allow fewer.
      by_data: whether `fn` shares its examples out over the axis `data`, see `data_axis`. If False,
        that axis holds members too.

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
        most = members_at_once(each, layout, at_once)
        num_turns = -(-each // most)
        chunk = -(-each // num_turns)
        chunks = _CHUNKS.get()
        if chunks is not None:
            chunks.append(chunk)
        pad = number * num_turns * chunk - size
        # Parts of unequal size would be sent around, in operations for each device and leaf: each
        # device has all members while they are padded and cut. A training's stay where they are.
        everywhere = functools.partial(
            jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, PartitionSpec())
        )
        is_shared_out = not pad or by_data
        members = members if is_shared_out else everywhere(members)
        members = jax.tree.map(lambda leaf: trees.pad_by_first(leaf, pad), members)

        def lifted(members, *shared):
            member_fn = lambda member: fn(member, *shared)  # noqa: E731
            token = _WITHIN.set((DATA, mesh.shape[DATA]) if by_data else None)
            try:
                if num_turns == 1 and chunk > 1:
                    return jax.vmap(member_fn)(members)
                if chunk == 1:
                    return jax.lax.map(member_fn, members)
                turns = jax.tree.map(
                    lambda leaf: leaf.reshape(num_turns, chunk, *leaf.shape[1:]), members
                )
                results = jax.lax.map(jax.vmap(member_fn), turns)
                return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)
            finally:
                _WITHIN.reset(token)

        out = jax.shard_map(
            lifted,
            mesh=mesh,
            in_specs=(PartitionSpec(axes), *(PartitionSpec() for _ in shared)),
            out_specs=PartitionSpec(axes),
            check_vma=False,
        )(members, *shared)
        out = out if is_shared_out else everywhere(out)
        return jax.tree.map(lambda leaf: leaf[:size], out)

    return mapped


def data_axis() -> tuple[str, int] | None:
    """Returns name and size of the mesh axis over which examples are shared out, or None.

    There is such an axis while a function of `spread(..., by_data=True)` is traced, if the mesh has
    more than one device along `data`.
    """
    within = _WITHIN.get()
    return within if within and within[1] > 1 else None


def share(array: jax.Array, axis: tuple[str, int]) -> jax.Array:
    """Returns this device's part of the leading axis, padded by its first entry to equal parts.

    Args:
      array: `[N, ...]`, the same on all devices along the axis.
      axis: name and size of the axis, from `data_axis`.

    Returns:
      `[⌈N / size⌉, ...]`.
    """
    name, size = axis
    part = -(-array.shape[0] // size)
    array = trees.pad_by_first(array, part * size - array.shape[0])
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(name) * part, part)


def share_mask(mask: jax.Array, axis: tuple[str, int]) -> jax.Array:
    """Returns this device's part of a mask, padded by False to equal parts.

    Args:
      mask: `[N]` bool, the same on all devices along the axis.
      axis: name and size of the axis, from `data_axis`.

    Returns:
      `[⌈N / size⌉]` bool.
    """
    pad = -mask.shape[0] % axis[1]
    return share(jnp.concatenate([mask.astype(bool), jnp.zeros(pad, bool)]), axis)
