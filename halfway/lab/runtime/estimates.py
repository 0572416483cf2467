"""Estimates of what training will take, made before it starts: FLOPs, memory, time.

FLOPs are XLA's count of a step and of measuring landscapes, without compiling; memory is counted
from shapes; time is FLOPs over the rate of this machine, which is measured for half a second.
"""

import dataclasses
import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from halfway import populations, sharding
from halfway.data import Split
from halfway.lab.runtime import costs
from halfway.lab.runtime.progress import duration
from halfway.lab.study import wording
from halfway.populations import Condition
from halfway.sharding import Layout

SHARE: dict[tuple[str, str], float] = {
    ("cpu", "linear"): 0.04,
    ("cpu", "mlp"): 0.65,
    ("cpu", "cnn"): 0.5,
    ("cpu", "residual"): 0.35,
    ("cpu", "transformer"): 0.2,
}
"""Share of a matrix product's rate that training reaches, by backend and kind of model.

Measured on 2 CPU cores, whose products run at 200 GFLOP/s, with the 8×8 digits at batch 64.
"""
UNKNOWN_SHARE = 0.1
"""The share that is assumed where none has been measured."""
COMPILE_SECONDS = 6.0
"""Seconds to compile the training of one program: 4 to 11 on 2 CPU cores, 1 to 2 from the cache."""
_SIZE = 1024
_MOST_LETTERS = 30


class Row(NamedTuple):
    """What populations that share a compiled program take.

    Attributes:
      name: the names of their architectures.
      num_steps: the number of training steps.
      num_examples: the static length of a half.
      at_once: the number of pairs that train at once on a device.
      num_populations: the number of populations.
      num_members: the number of models, two of each pair.
      flops: FLOPs of training and of measuring landscapes.
      memory_bytes: memory of one device while the largest population trains.
      kept_bytes: size of all these populations after training.
      seconds: the expected time.
    """

    name: str
    num_steps: int
    num_examples: int
    at_once: int
    num_populations: int
    num_members: int
    flops: float
    memory_bytes: int
    kept_bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What all populations that are to be trained take.

    Attributes:
      rows: a row for each compiled program.
      guessed: kinds of models for which `UNKNOWN_SHARE` was assumed.
      may_stop: whether some populations may stop before their last step, to which all are counted.
    """

    rows: tuple[Row, ...] = ()
    guessed: tuple[str, ...] = ()
    may_stop: bool = False

    num_populations = property(lambda self: sum(row.num_populations for row in self.rows))
    num_members = property(lambda self: sum(row.num_members for row in self.rows))
    flops = property(lambda self: sum(row.flops for row in self.rows))
    memory_bytes = property(lambda self: max((row.memory_bytes for row in self.rows), default=0))
    kept_bytes = property(lambda self: sum(row.kept_bytes for row in self.rows))
    seconds = property(lambda self: sum(row.seconds for row in self.rows))


def _device_bytes(condition: Condition, pool: Split, layout: Layout) -> int:
    """Returns the memory on one device while a population trains."""
    memory, here = costs.memory_of(condition, pool.images.shape[1:]), _pairs_here(condition, layout)
    num_data = layout.mesh.shape[sharding.DATA]
    images = math.prod(pool.images.shape) * 4
    at_once = _at_once(condition, layout)
    training_now = here * memory.next_state + at_once * memory.step // num_data
    return images + here * memory.held + max(training_now, at_once * memory.look // num_data)


def estimate(conditions: Sequence[Condition], pool: Split, layout: Layout) -> Forecast:
    """Returns what training will take; the rate of the devices is measured for half a second.

    Args:
      conditions: the conditions of the populations that are to be trained.
      pool: the examples that halves are drawn from; their number and shape are used.
      layout: the layout that populations train on.
    """
    if not conditions:
        return Forecast()
    rate = matmul_rate(layout)
    groups: dict[Condition, list[Condition]] = {}
    for condition in conditions:
        groups.setdefault(populations.program_of(condition), []).append(condition)
    kinds = dict.fromkeys(_kind(program) for program in groups)
    backend = jax.default_backend()
    return Forecast(
        rows=tuple(_row(group, pool, layout, rate) for group in groups.values()),
        guessed=tuple(kind for kind in kinds if (backend, kind) not in SHARE),
        may_stop=any(condition.stop_loss > 0 for condition in conditions),
    )


def _kind(condition: Condition) -> str:
    return dict(condition.model)["kind"]


def _row(group: Sequence[Condition], pool: Split, layout: Layout, rate: float) -> Row:
    """Returns the row of conditions that share a program, from the rate of all devices."""
    first, image_shape = group[0], pool.images.shape[1:]
    here = _pairs_here(first, layout)
    members = [2 * condition.num_pairs for condition in group]
    flops = sum(
        number * costs.model_flops(condition, image_shape)
        for number, condition in zip(members, group, strict=True)
    )
    # Devices that have one pair less than others wait for them.
    waiting = here * layout.mesh.shape[sharding.MEMBER] / first.num_pairs
    share = SHARE.get((jax.default_backend(), _kind(first)), UNKNOWN_SHARE)
    return Row(
        name=", ".join(dict.fromkeys(condition.architecture for condition in group)),
        num_steps=first.probe_steps[-1],
        num_examples=first.capacity or 0,
        at_once=_at_once(first, layout),
        num_populations=len(group),
        num_members=sum(members),
        flops=flops,
        memory_bytes=max(_device_bytes(condition, pool, layout) for condition in group),
        kept_bytes=sum(costs.kept_bytes(condition, image_shape) for condition in group),
        seconds=flops * waiting / (rate * share) + COMPILE_SECONDS,
    )


def _pairs_here(condition: Condition, layout: Layout) -> int:
    """Returns how many pairs a device has, the padding included."""
    return -(-condition.num_pairs // layout.mesh.shape[sharding.MEMBER])


def _at_once(condition: Condition, layout: Layout) -> int:
    """Returns how many pairs of a device train and are read at once."""
    return sharding.members_at_once(_pairs_here(condition, layout), layout)


def matmul_rate(layout: Layout, seconds: float = 0.5) -> float:
    """Returns FLOP/s of float32 matrix products on all devices of a layout at the same time.

    Args:
      layout: the layout of the devices; those of other processes are assumed to be equally fast.
      seconds: how long the rate is measured.
    """
    devices = [
        device for device in layout.mesh.devices.flat if device.process_index == jax.process_index()
    ]
    devices = devices or jax.local_devices()[:1]
    square = jnp.full((_SIZE, _SIZE), 1 / _SIZE)
    squares = [jax.device_put(square, device) for device in devices]
    product = jax.jit(jnp.matmul)
    jax.block_until_ready([product(matrix, matrix) for matrix in squares])
    rounds, started = 0, time.monotonic()
    while (taken := time.monotonic() - started) < seconds or not rounds:
        jax.block_until_ready([product(matrix, matrix) for matrix in squares])
        rounds += 1
    return rounds * 2 * _SIZE**3 * layout.mesh.size / taken


def in_words(
    total: Forecast,
    layout: Layout,
    *,
    num_stored: int = 0,
    measurements: Mapping[str, int] | None = None,
) -> str:
    """Returns an estimate as text for a terminal, at most 100 columns wide.

    Args:
      total: the estimate, from `estimate`.
      layout: the layout that `estimate` was given.
      num_stored: the number of populations that are stored already.
      measurements: the number of measurements that are still to be made, by name.
    """
    there = f"{num_stored} {'is' if num_stored == 1 else 'are'} there already"
    lines = [f"populations to train: {total.num_populations}; {there}"]
    if total.rows:
        lines += ["", *wording.align(_table(total)), "", *_totals(total)]
    sizes = ",".join(f"{name}:{size}" for name, size in layout.mesh.shape.items())
    devices = _count(layout.mesh.size, "device")
    lines.append(f"layout: mesh {sizes} on {devices} ({jax.default_backend()})")
    counts = {name: number for name, number in sorted((measurements or {}).items()) if number}
    each = ", ".join(f"{name}\N{NO-BREAK SPACE}{number}" for name, number in counts.items())
    lines += _wrapped(f"measurements to make: {sum(counts.values())}{each and f' ({each})'}")
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(text, wording.WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _table(total: Forecast) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("models", "populations", "members", "steps", "examples", "at once", "compute", "memory")
    ]
    for row in total.rows:
        name = row.name if len(row.name) <= _MOST_LETTERS else f"{row.name[: _MOST_LETTERS - 1]}…"
        numbers = row.num_populations, row.num_members, row.num_steps, row.num_examples, row.at_once
        sizes = scaled(row.flops, "FLOP"), scaled(row.memory_bytes, "B")
        rows.append((name, *map(str, numbers), *sizes))
    totals = str(total.num_populations), str(total.num_members), "", "", ""
    sizes = scaled(total.flops, "FLOP"), scaled(total.memory_bytes, "B")
    return [*rows, ("all", *totals, *sizes)]


def _totals(total: Forecast) -> list[str]:
    programs, backend = len(total.rows), jax.default_backend()
    texts = [
        "members: two models of each pair; at once: pairs that train together on a device",
        f"memory: {scaled(total.memory_bytes, 'B')} on a device while the largest population "
        f"trains, and {scaled(total.kept_bytes, 'B')} for all that are trained",
        f"time: about {duration(total.seconds)}, a factor of 2 either way, of which up to "
        f"{duration(COMPILE_SECONDS * programs)} to compile {_count(programs, 'program')}; "
        "measurements, verdicts and the report come on top",
    ]
    if total.guessed:
        kinds = ", ".join(total.guessed)
        texts.append(f"no training of {kinds} has been timed on {backend}: that time is a guess")
    if total.may_stop:
        texts.append("populations that may stop at a loss are counted to their last step")
    return [line for text in texts for line in _wrapped(text)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def scaled(value: float, unit: str) -> str:
    """Returns three digits with a decimal prefix, e.g. "309 GFLOP".

    Args:
      value: the number.
      unit: such as "FLOP".
    """
    power = 0
    while value >= 999.5 and power < 6:
        value, power = value / 1000, power + 1
    prefix = ("", "k", "M", "G", "T", "P", "E")[power]
    return f"{value:.3g} {prefix}{unit}"
