"""Cost against devices: the same members on 1, 2, 4 and 8 of them.

On a CPU each number of devices has a process of its own, since the number is fixed when JAX starts;
all have the same cores. They run in turns, so that a busy minute falls on all of them. Such a
process runs

    python -m halfway.lab.benchmarks.scale_devices train_mlp_x16
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax

from halfway import sharding
from halfway.lab.benchmarks import scale_work
from halfway.lab.benchmarks.scale_work import NUM_CHECKED, WORKS
from halfway.lab.benchmarks.timing import Row
from halfway.lab.runtime import devices

COUNTS = (1, 2, 4, 8)
MOST_RATIO = 1.15
"""The largest ratio of time on `COUNTS[-1]` devices to time on as many devices as cores."""

Turn = Callable[[int], float]
"""A function of the number of a piece that returns the seconds it takes."""


def device_rows(name: str) -> list[Row]:
    """Returns rows of a training on different numbers of devices.

    On a CPU the ratio is to as many devices as there are cores, on an accelerator to one device.

    Args:
      name: a name in `scale_work.WORKS`.
    """
    cores = os.cpu_count() or 1
    on_cpu = jax.default_backend() == "cpu"
    counts = [n for n in COUNTS if on_cpu or n <= jax.device_count()]
    with contextlib.ExitStack() as stack:
        turns = [stack.enter_context((_process if on_cpu else _mesh)(name, n)) for n in counts]
        seconds = scale_work.in_pieces(*turns)
    base = max(n for n in counts if n <= cores) if on_cpu else 1
    reference = seconds[counts.index(base)]
    return [
        Row(
            f"{name}_devices_{n}",
            taken,
            ratio=taken / reference,
            target=MOST_RATIO if on_cpu and n == COUNTS[-1] else None,
            note=f"{'forced host' if on_cpu else 'real'} devices; ratio to {base}",
        )
        for n, taken in zip(counts, seconds, strict=True)
    ]


@contextlib.contextmanager
def _mesh(name: str, number: int) -> Iterator[Turn]:
    """Yields the turn of a training on the first devices of this process."""
    layout = sharding.Layout(sharding.make_mesh(number))
    with sharding.use(layout):
        take = _warm(name)

    def turn(piece: int) -> float:
        with sharding.use(layout):
            return take(piece)

    yield turn


@contextlib.contextmanager
def _process(name: str, number: int) -> Iterator[Turn]:
    """Yields the turn of a training in a process with a given number of devices."""
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    flags = f"{flags} --xla_force_host_platform_device_count={number}".strip()
    cache = jax.config.jax_compilation_cache_dir or "off"  # pyright: ignore
    with subprocess.Popen(
        [sys.executable, "-m", __name__, name, cache],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def answer() -> str:
            line = answers.readline()
            if not line:
                raise RuntimeError(f"the process with {number} devices ended: see its output")
            return line

        def turn(piece: int) -> float:
            print(piece, file=asked, flush=True)
            return float(answer())

        try:
            answer()  # the process is warm
            yield turn
        finally:
            asked.close()


def _warm(name: str) -> Turn:
    trainer = scale_work.ours(scale_work.problem(WORKS[name]))
    trainer.advance(0, NUM_CHECKED)
    return scale_work.turn(trainer)


def _serve(name: str, cache: str = "off") -> None:
    """Runs the pieces that are read from the input, and prints the seconds of each."""
    devices.use_cache(cache)
    take = _warm(name)
    print("warm", flush=True)
    for line in sys.stdin:
        print(take(int(line)), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
