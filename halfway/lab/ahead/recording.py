"""Programs of a run, compiled as it would call them, without running any.

In the place of each program its result gets a stand-in of the same shapes, so that what the host
does in between goes on. So the same code makes the programs as in a run, and nothing is copied.
"""

import functools
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import sharding
from halfway.lab.ahead import slices
from halfway.lab.config.user import LOG
from halfway.populations import Condition

_ADDRESS = re.compile(r"0x[0-9a-f]+")
_COLLECTIVE = re.compile(
    r"= [^=\n]*? (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
_CALLBACK = re.compile(r'custom_call_target="[^"]*callback[^"]*"|is_host_transfer=true')
_NEEDED = re.compile(r"([\d.]+)([KMGT])")
_OF_THE_MODEL = ("logits_fn", "apply_fn", "kernel_fn", "program")
"""Arguments that are part of programs and that no program is named by."""
_MAP = "shard_map"
"""The operation of programs that run on a mesh."""
_VARIANTS = 4
"""Number of different stand-ins for the results of a program that is called again."""
_SMALL = 1e-2
"""Floats of stand-ins lie below it: a change of an image so small is within every budget."""


class Row(NamedTuple):
    """What the compiler says of a program.

    Attributes:
      stage: what the run does with it.
      program: name of the function.
      model: of the models.
      hardware: what it is compiled for.
      dtype: of training steps.
      num_devices: devices that it runs on.
      at_once: members of a device that run at once; None: it is not mapped over members.
      problem: why it does not compile or fit, in words; empty where it does.
      needs: bytes of a device that it takes; None: not known.
      has: bytes of a device.
      flops: on a device, the body of each loop counted once; None: not known.
      accessed: bytes read and written on a device, counted likewise.
      seconds: the least time by the compiler, counted likewise; None where it gives none.
      collectives: number of operations in which devices speak to each other, by name.
      padding: bytes of the arguments over what they hold.
      callbacks: number of calls of the host.
      compile_seconds: CPU time that it took to compile.
      lower: what to lower where it does not fit.
      cuda: "lowers", why it does not, or "" where it was not tried.
    """

    stage: str
    program: str
    model: str
    hardware: str
    dtype: str
    num_devices: int = 1
    at_once: int | None = None
    problem: str = ""
    needs: int | None = None
    has: int | None = None
    flops: float | None = None
    accessed: float | None = None
    seconds: float | None = None
    collectives: Mapping[str, int] = {}
    padding: float | None = None
    callbacks: int = 0
    compile_seconds: float = 0.0
    lower: str = ""
    cuda: str = ""

    @property
    def fits(self) -> bool:
        """Whether it compiles and has room."""
        return not self.problem


class Recorder:
    """Compiles programs for some hardware in the place of running them.

    Args:
      hardware: its name, for the rows.
      device_bytes: the memory of a device; None: not known.
      lower_fn: name of a program to the field that lowers its memory.
      dtype: of training steps, for the rows.
      with_cuda: whether programs are lowered for CUDA too.
      modulus: integers of stand-ins are 0 to `modulus` - 1 in turn.
      say: called with each new row.
    """

    def __init__(
        self,
        hardware: str,
        device_bytes: int | None = None,
        *,
        lower_fn: Callable[[str], str] = lambda name: "",
        dtype: str = "float32",
        with_cuda: bool = False,
        modulus: int = 3,
        say: Callable[[Row], None] = lambda row: None,
    ):
        self.hardware, self.device_bytes, self.dtype = hardware, device_bytes, dtype
        self.stage = ""
        self.rows: dict[str, Row] = {}
        self.unfinished: dict[str, str] = {}
        self._lower_fn, self._with_cuda, self._say = lower_fn, with_cuda, say
        # Equal shapes share a stand-in: a run holds many populations of the same shapes.
        made = functools.cache(functools.partial(stand_in, modulus=modulus))
        self._stand_in = lambda info, variant: made(tuple(info.shape), info.dtype, variant=variant)
        self._results: dict[Any, Any] = {}
        self._num_calls: Counter[Any] = Counter()

    def __call__(self, call: sharding.Call) -> Any:
        """Returns what stands for the result of a program, which is compiled if it is new.

        Args:
          call: what was called.

        Raises:
          jax.errors.JaxRuntimeError: if it does not fit while several members run at once.
        """
        place = _place(call)
        if place not in self._results:
            traced, text, shapes = _traced(call)
            digest = digest_of(call.name, text)
            if digest not in self.rows:
                mapped = _MAP in text
                self.rows[digest] = row = self._compiled(call, traced, shapes, mapped=mapped)
                self._say(row)
            self._results[place] = traced.out_info
        # The first result differs from later ones: a walk that stays where it is spans no plane.
        number = self._num_calls[place]
        self._num_calls[place] += 1
        variant = 1 + number % (_VARIANTS - 1) if number else 0
        return jax.tree.map(lambda info: self._stand_in(info, variant), self._results[place])

    def _compiled(
        self, call: sharding.Call, traced: Any, shapes: tuple[Any, Any], *, mapped: bool
    ) -> Row:
        """Returns what the compiler says of a program."""
        at_once = call.chunks[-1] if mapped and call.chunks else None
        row = Row(
            stage=self.stage,
            program=_label(call),
            model=_model(call),
            hardware=self.hardware,
            dtype=self.dtype,
            num_devices=sharding.current().mesh.size if mapped else 1,
            at_once=at_once,
            has=self.device_bytes,
            cuda=cuda_verdict(call, shapes) if self._with_cuda else "",
        )
        started = time.process_time()
        try:
            compiled = traced.lower().compile()
        except Exception as error:  # whatever a compiler says
            if "RESOURCE_EXHAUSTED" in str(error) and at_once is not None and at_once > 1:
                LOG.info("%s: %d at once do not fit, half as many are tried", row.program, at_once)
                raise
            return self._refused(row, error, time.process_time() - started)
        return self._read(row, compiled, time.process_time() - started)

    def _refused(self, row: Row, error: Exception, seconds: float) -> Row:
        words = " ".join(str(error).split()).removeprefix("RESOURCE_EXHAUSTED: ")
        lower = self._lower_fn(row.program) if "RESOURCE_EXHAUSTED" in str(error) else ""
        return row._replace(
            problem=words[:200],
            needs=_needed(words) if lower else None,
            has=slices.memory_in(words) or self.device_bytes,
            compile_seconds=seconds,
            lower=lower,
        )

    def _read(self, row: Row, compiled: Any, seconds: float) -> Row:
        """Returns a row with what a compiled program says of itself."""
        costs = compiled.cost_analysis() or {}
        costs = costs[0] if isinstance(costs, list) else costs
        memory, text = compiled.memory_analysis(), compiled.as_text()
        needs, padding = None, None
        if memory is not None:
            needs = total_bytes(memory)
            held = _held_bytes(compiled)
            padding = memory.argument_size_in_bytes / held if held else None
        row = row._replace(
            needs=needs,
            flops=costs.get("flops"),
            accessed=costs.get("bytes accessed"),
            seconds=_positive(costs.get("optimal_seconds")),
            collectives=collectives_of(text),
            padding=padding,
            callbacks=len(_CALLBACK.findall(text)),
            compile_seconds=seconds,
        )
        problem = verdict(needs, self.device_bytes)
        return row._replace(problem=problem, lower=self._lower_fn(row.program) if problem else "")


def _place(call: sharding.Call) -> Any:
    """Returns what calls with the same result have in common: program, shapes, static arguments."""
    leaves, structure = jax.tree.flatten(jax.tree.map(_shape, (call.args, call.kwargs)))
    return call.program, structure, tuple(leaves)


def _traced(call: sharding.Call) -> tuple[Any, str, tuple[Any, Any]]:
    """Returns a traced program, as text too, and the shapes of its arguments on its devices.

    A program that is mapped over members has the devices of its mesh, any other the first device.
    """
    args, kwargs = jax.tree.map(_shape, (call.args, call.kwargs))
    traced = call.program.trace(*args, **kwargs)
    text = str(traced.jaxpr)
    if _MAP not in text:
        device = sharding.current().mesh.devices.flat[0]
        on_device = functools.partial(_shape, where=jax.sharding.SingleDeviceSharding(device))
        args, kwargs = jax.tree.map(on_device, (call.args, call.kwargs))
        traced = call.program.trace(*args, **kwargs)
    return traced, text, (args, kwargs)


def _shape(leaf: Any, where: Any = None) -> Any:
    """Returns the shape of an array; what is none, such as a number, as it is."""
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    weak = getattr(leaf, "weak_type", False)
    dtype = leaf.dtype if isinstance(leaf, jax.Array) else jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where, weak_type=weak)


def digest_of(name: str, text: str) -> str:
    """Returns a digest that is the same for equal programs on the layout in force.

    Args:
      name: of the function.
      text: the program, as `str(traced.jaxpr)` has it.
    """
    parts = name, str(sharding.current()), _ADDRESS.sub("", text)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stand_in(shape: tuple[int, ...], dtype: Any, modulus: int = 3, variant: int = 0) -> jax.Array:
    """Returns an array of a shape and type, in the place of a result that is not computed.

    Floats are different and small, integers 0 to `modulus` - 1 in turn, bools False.

    Args:
      shape: of the result.
      dtype: of the result; keys of `jax.random` too.
      modulus: number of different integers.
      variant: number of the draw of floats.
    """
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
    size = int(np.prod(shape, dtype=np.int64))
    if jnp.issubdtype(dtype, jnp.floating):
        values = np.random.default_rng((size, variant)).uniform(_SMALL / 10, _SMALL, size)
    elif jnp.issubdtype(dtype, jnp.integer):
        values = np.arange(size) % modulus
    else:
        values = np.zeros(size)
    return jnp.asarray(values.reshape(shape).astype(dtype))


def total_bytes(memory: Any) -> int:
    """Returns the bytes that a program takes on a device: arguments, results, the rest and itself.

    Args:
      memory: what `memory_analysis` of a compiled program returns.
    """
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
        - memory.alias_size_in_bytes
    )


def verdict(needs: int | None, has: int | None) -> str:
    """Returns why a program does not fit in words, or nothing.

    Args:
      needs: bytes that it takes on a device; None: not known.
      has: bytes of the device; None: not known.
    """
    if needs is None or has is None or needs <= has:
        return ""
    return "it needs more memory than a device has"


def collectives_of(text: str) -> dict[str, int]:
    """Returns the number of operations in which devices speak to each other, by name.

    Args:
      text: a compiled program as text.
    """
    return dict(sorted(Counter(_COLLECTIVE.findall(text)).items()))


def cuda_verdict(call: sharding.Call, shapes: tuple[Any, Any]) -> str:
    """Returns "lowers" where a program can be lowered for CUDA, or why it cannot.

    Args:
      call: the program.
      shapes: of its arguments.
    """
    args, kwargs = shapes
    try:
        jax.export.export(call.program, platforms=("cuda",))(*args, **kwargs)
    except Exception as error:  # whatever an exporter says
        return " ".join(str(error).split())[:200]
    return "lowers"


def _held_bytes(compiled: Any) -> int:
    """Returns the bytes that the arguments of a program hold on a device, without padding."""
    shapes, structure = jax.tree.flatten(compiled.in_avals)
    total = 0
    # An argument that is not used has no place.
    for where, shape in zip(structure.flatten_up_to(compiled.input_shardings), shapes, strict=True):
        if where is None or jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            continue
        part = where.shard_shape(shape.shape)
        total += int(np.prod(part, dtype=np.int64)) * shape.dtype.itemsize
    return total


def _needed(words: str) -> int | None:
    """Returns the bytes that a compiler's refusal names first."""
    return slices.memory_in(f" of {match[0]}") if (match := _NEEDED.search(words)) else None


def _positive(seconds: float | None) -> float | None:
    return seconds if seconds is not None and seconds > 0 else None


def _label(call: sharding.Call) -> str:
    """Returns the name of a program, with what is part of it by name: an attack, a probe."""
    words = [call.name]
    for name, value in call.kwargs.items():
        if name not in _OF_THE_MODEL and (callable(value) or isinstance(value, str)):
            inner = getattr(value, "func", value)
            words.append(inner if isinstance(inner, str) else getattr(inner, "__name__", ""))
    words = [word.strip("_").removesuffix("_program") for word in words if word]
    return " ".join(dict.fromkeys(words))


def _model(call: sharding.Call) -> str:
    """Returns the kind of the models of a program, where it is part of it."""
    for value in call.kwargs.values():
        condition = getattr(value, "condition", value)
        if isinstance(condition, Condition):
            return dict(condition.model).get("kind", "")
    return ""
