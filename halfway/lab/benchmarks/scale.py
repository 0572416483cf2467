"""Scale: training beside PyTorch, cost against members and devices, the start of a second run.

Pieces of the trainings are timed in turns with the peers' and with a matrix product, the ceiling;
medians count, and all is compiled before.
"""

import dataclasses
import functools
from typing import Any

import jax

from halfway.lab.benchmarks import scale_devices, scale_start, scale_torch, scale_work
from halfway.lab.benchmarks.scale_work import WORKS, Problem, Trainer, Work
from halfway.lab.benchmarks.timing import Row

MEMBERS = (1, 4, 16, 64, 256)


@dataclasses.dataclass(frozen=True)
class ScaleRow(Row):
    """A row with what a training has besides. None where a field has no meaning.

    Attributes:
      steps_per_second: of all members together.
      compile_seconds: of our program, without the persistent cache.
      flops_utilization: operations of the model over what the devices' data sheets promise in the
        same time.
    """

    steps_per_second: float | None = None
    compile_seconds: float | None = None
    flops_utilization: float | None = None


def rows(data_dir: str | None = None) -> list[Row]:
    """Returns the rows of the suite; it needs no data folder."""
    del data_dir
    found: list[Row] = []
    for name, work in WORKS.items():
        found += training_rows(name, work)
    found += member_rows(MEMBERS)
    for name in ("train_mlp_x16", "train_small_mlp_x64"):
        found += scale_devices.device_rows(name)
    return [*found, scale_start.row()]


def training_rows(name: str, work: Work) -> list[Row]:
    """Returns a training beside PyTorch's loop and `torch.func`; on an accelerator in bfloat16 too.

    Args:
      name: of the row.
      work: which members.

    Raises:
      RuntimeError: if the sides do not train alike.
    """
    problem = scale_work.problem(work)
    own = scale_work.ours(problem)
    others = [] if jax.default_backend() == "cpu" else [scale_work.ours(problem, "bfloat16")]
    torch = scale_torch.trainers(problem)
    peers = [] if isinstance(torch, str) else torch
    for trainer in (own, *others, *peers):
        trainer.advance(0, scale_work.NUM_CHECKED)
    differences = [scale_work.check(own, peer) for peer in peers]
    (seconds, *rest), ceiling = scale_work.compare(own, *others, *peers)
    row = functools.partial(_row, problem, own, seconds, ceiling)
    found: list[Row] = []
    for peer, difference, other in zip(peers, differences, rest[len(others) :], strict=True):
        note = f"losses equal to {difference:.0e} after {scale_work.NUM_CHECKED} steps"
        found.append(
            row(
                name,
                note,
                peer=peer.name,
                peer_seconds=other,
                ratio=seconds / other,
                target=None if found else work.target,
            )
        )
    if not peers:
        found.append(row(name, "", target=work.target, skipped=str(torch)))
    for other, lower in zip(rest, others, strict=False):
        found.append(
            _row(
                problem,
                lower,
                other,
                None,
                f"{name}_bfloat16",
                "peer: float32",
                peer=own.name,
                peer_seconds=seconds,
                ratio=other / seconds,
            )
        )
    return found


def member_rows(numbers: tuple[int, ...]) -> list[Row]:
    """Returns the seconds a member of the small MLP takes, against the number of members.

    Args:
      numbers: of members, each one row; the ratio is to the first.
    """
    problems = [scale_work.problem(scale_work.small(number)) for number in numbers]
    trainers = [scale_work.ours(problem) for problem in problems]
    for trainer in trainers:
        trainer.advance(0, scale_work.NUM_CHECKED)
    seconds, ceiling = scale_work.compare(*trainers)
    found: list[Row] = []
    for number, problem, trainer, total in zip(numbers, problems, trainers, seconds, strict=True):
        note = f"seconds a member; ratio to {numbers[0]} member{'s' if numbers[0] > 1 else ''}"
        row = _row(problem, trainer, total, ceiling, f"train_small_mlp_members_{number}", note)
        each, first = total / number, seconds[0] / numbers[0]
        found.append(dataclasses.replace(row, ours_seconds=each, ratio=each / first))
    return found


def _row(
    problem: Problem,
    own: Trainer,
    seconds: float,
    ceiling: float | None,
    name: str,
    note: str,
    **fields: Any,
) -> Row:
    """Returns the row of one of our trainings; its note says what has no column."""
    work = problem.work
    operations, rate = (
        work.operations(scale_work.NUM_STEPS),
        work.num_members * scale_work.NUM_STEPS / seconds,
    )
    dtype = "bfloat16" if "bfloat16" in own.name else "float32"
    peak = scale_work.peak(dtype)
    used = None if peak is None else operations / seconds / peak
    words = [
        f"{work.num_members} x {scale_work.NUM_STEPS} steps of {scale_work.BATCH_SIZE}",
        f"{rate:.0f} steps/s",
        f"compiled in {own.compile_seconds:.1f} s",
        *([] if used is None else [f"{used:.1%} of the peak FLOPs"]),
        *([note] if note else []),
    ]
    return ScaleRow(
        name,
        seconds,
        ceiling_share=None if ceiling is None else operations / seconds / ceiling,
        peak_memory_bytes=own.memory,
        note="; ".join(words),
        steps_per_second=rate,
        compile_seconds=own.compile_seconds,
        flops_utilization=used,
        **fields,
    )
