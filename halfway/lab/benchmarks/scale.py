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
    """A row with further fields of a training. None where a field has no meaning.

    Attributes:
      steps_per_second: the steps of all members together in a second.
      compile_seconds: seconds to compile our program without the persistent cache.
      flops_utilization: operations of the model over the operations that the data sheets of the
        devices promise in the same time.
    """

    steps_per_second: float | None = None
    compile_seconds: float | None = None
    flops_utilization: float | None = None


def rows(data_dir: str | None = None) -> list[Row]:
    """Returns the rows of the suite; it needs no data folder."""
    del data_dir
    suite_rows: list[Row] = []
    for name, work in WORKS.items():
        suite_rows += training_rows(name, work)
    suite_rows += member_rows(MEMBERS)
    for name in ("train_mlp_x16", "train_small_mlp_x64"):
        suite_rows += scale_devices.device_rows(name)
    return [*suite_rows, scale_start.row()]


def training_rows(name: str, work: Work) -> list[Row]:
    """Returns the rows of a training beside PyTorch's loop and `torch.func`.

    On an accelerator there is also a row of training in bfloat16.

    Args:
      name: the name of the row.
      work: the members that train.

    Raises:
      RuntimeError: if losses of the sides differ after the first steps.
    """
    problem = scale_work.problem(work)
    ours = scale_work.ours(problem)
    others = [] if jax.default_backend() == "cpu" else [scale_work.ours(problem, "bfloat16")]
    torch = scale_torch.trainers(problem)
    peers = [] if isinstance(torch, str) else torch
    for trainer in (ours, *others, *peers):
        trainer.advance(0, scale_work.NUM_CHECKED)
    differences = [scale_work.check(ours, peer) for peer in peers]
    (seconds, *rest), ceiling = scale_work.compare(ours, *others, *peers)
    row = functools.partial(_row, problem, ours, seconds, ceiling)
    rows: list[Row] = []
    for peer, difference, other in zip(peers, differences, rest[len(others) :], strict=True):
        note = f"losses equal to {difference:.0e} after {scale_work.NUM_CHECKED} steps"
        rows.append(
            row(
                name,
                note,
                peer=peer.name,
                peer_seconds=other,
                ratio=seconds / other,
                target=None if rows else work.target,
            )
        )
    if not peers:
        rows.append(row(name, "", target=work.target, skipped=str(torch)))
    for other, lower in zip(rest, others, strict=False):
        rows.append(
            _row(
                problem,
                lower,
                other,
                None,
                f"{name}_bfloat16",
                "peer: float32",
                peer=ours.name,
                peer_seconds=seconds,
                ratio=other / seconds,
            )
        )
    return rows


def member_rows(numbers: tuple[int, ...]) -> list[Row]:
    """Returns rows of the seconds that a member of the small MLP takes, by number of members.

    Args:
      numbers: the numbers of members, one for each row; the ratio is to the first row.
    """
    problems = [scale_work.problem(scale_work.small(number)) for number in numbers]
    trainers = [scale_work.ours(problem) for problem in problems]
    for trainer in trainers:
        trainer.advance(0, scale_work.NUM_CHECKED)
    seconds, ceiling = scale_work.compare(*trainers)
    rows: list[Row] = []
    for number, problem, trainer, total in zip(numbers, problems, trainers, seconds, strict=True):
        note = f"seconds a member; ratio to {numbers[0]} member{'s' if numbers[0] > 1 else ''}"
        row = _row(problem, trainer, total, ceiling, f"train_small_mlp_members_{number}", note)
        each, first = total / number, seconds[0] / numbers[0]
        rows.append(dataclasses.replace(row, ours_seconds=each, ratio=each / first))
    return rows


def _row(
    problem: Problem,
    trainer: Trainer,
    seconds: float,
    ceiling: float | None,
    name: str,
    note: str,
    **fields: Any,
) -> Row:
    """Returns the row of a training of ours; its note has the facts without a column."""
    work = problem.work
    operations, rate = (
        work.operations(scale_work.NUM_TIMED_STEPS),
        work.num_members * scale_work.NUM_TIMED_STEPS / seconds,
    )
    dtype = "bfloat16" if "bfloat16" in trainer.name else "float32"
    peak = scale_work.peak(dtype)
    used = None if peak is None else operations / seconds / peak
    words = [
        f"{work.num_members} x {scale_work.NUM_TIMED_STEPS} steps of {scale_work.BATCH_SIZE}",
        f"{rate:.0f} steps/s",
        f"compiled in {trainer.compile_seconds:.1f} s",
        *([] if used is None else [f"{used:.1%} of the peak FLOPs"]),
        *([note] if note else []),
    ]
    return ScaleRow(
        name,
        seconds,
        ceiling_share=None if ceiling is None else operations / seconds / ceiling,
        peak_memory_bytes=trainer.memory,
        note="; ".join(words),
        steps_per_second=rate,
        compile_seconds=trainer.compile_seconds,
        flops_utilization=used,
        **fields,
    )
