"""What a compiler says of programs, as tables for a terminal and for a page."""

import collections
from collections.abc import Iterable, Mapping, Sequence

from halfway.lab.ahead.recording import Row
from halfway.lab.runtime.estimates import scaled
from halfway.lab.study import wording

UNKNOWN = "–"
"""What stands for a number that the compiler does not give."""
HEAD = ("stage", "program", "memory", "compute", "traffic", "least time", "collectives")
_NOTES = (
    "memory, compute, traffic and least time are of one device, as the compiler counts them: the "
    "body of a loop once, however often it runs; – where it gives no number",
)


def as_text(rows: Sequence[Row], unfinished: Mapping[str, str], where: str) -> str:
    """Returns what a terminal shows: every program, and what does not compile or fit.

    Args:
      rows: of the programs.
      unfinished: stages whose host code could not go on with stand-ins, and why.
      where: hardware and mesh in words.
    """
    bad = [row for row in rows if not row.fits]
    lines = [
        f"{len(rows)} programs for {where}: {len(rows) - len(bad)} compile and fit, "
        f"{len(bad)} do not",
        "",
        *wording.align([HEAD, *map(_cells, rows)]),
        "",
        *_NOTES,
    ]
    lines += [problem(row) for row in bad]
    lines += [
        f"{stage}: programs may be missing, since the host reads results that are not there ({why})"
        for stage, why in unfinished.items()
    ]
    return "\n".join(lines)


def problem(row: Row) -> str:
    """Returns in a line why a program does not compile or fit, and what to lower.

    Args:
      row: of the program.
    """
    words = f"{row.stage}: {_name(row)}: {row.problem}"
    if row.needs is not None and row.has is not None and row.needs > row.has:
        words += f" ({scaled(row.needs, 'B')} of {scaled(row.has, 'B')})"
    return f"{words}: lower {row.lower}" if row.lower else words


def as_markdown(rows: Sequence[Row], reasons: Mapping[str, str]) -> str:
    """Returns a table with a row for each stage, the extremes, and what fails with its reason.

    Args:
      rows: of programs on all kinds of hardware.
      reasons: why a program may fail, by its name.
    """
    places = list(dict.fromkeys((row.hardware, row.dtype) for row in rows))
    names = [f"{hardware} {dtype}" for hardware, dtype in places]
    lines = [_line(["what is computed", *names, "memory, at most", "collectives", "CUDA"])]
    lines.append(_line(["---"] * (len(names) + 4)))
    stages: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        stages[row.stage].append(row)
    for stage, group in stages.items():
        counts = [
            _share([row for row in group if (row.hardware, row.dtype) == place]) for place in places
        ]
        most = max((row.needs or 0 for row in group), default=0)
        memory = scaled(most, "B") if most else UNKNOWN
        totals: collections.Counter[str] = collections.Counter()
        for row in group:
            totals |= collections.Counter(row.collectives)
        lowered = [row.cuda == "lowers" for row in group if row.cuda]
        cuda = f"{sum(lowered)} of {len(lowered)}" if lowered else UNKNOWN
        lines.append(_line([stage, *counts, memory, _speak(totals), cuda]))
    lines += [f"\n{text}" for text in (*_extremes(rows), *_exceptions(rows, reasons))]
    return "\n".join(lines)


def _extremes(rows: Sequence[Row]) -> list[str]:
    """Returns a line each for the slowest to compile, the largest, and calls of the host."""
    if not rows:
        return []
    slowest = max(rows, key=lambda row: row.compile_seconds)
    largest = max(rows, key=lambda row: row.needs or 0)
    calling = sum(row.callbacks > 0 for row in rows)
    texts = [f"Slowest to compile: {_full(slowest)}, {slowest.compile_seconds:.0f} s of CPU time."]
    if largest.needs:
        texts.append(f"Largest: {_full(largest)}, {scaled(largest.needs, 'B')} of a device.")
    return [*texts, f"Programs that call the host: {calling} of {len(rows)}."]


def _full(row: Row) -> str:
    return f"{row.stage}: {_name(row)} for {row.hardware}"


def _exceptions(rows: Iterable[Row], reasons: Mapping[str, str]) -> list[str]:
    """Returns a line for each program that does not compile, each once."""
    texts = [
        f"{problem(row)}. {reasons.get(row.program, '')}".strip() for row in rows if not row.fits
    ]
    texts += [
        f"{row.stage}: {_name(row)} is not lowered for CUDA: {row.cuda}"
        for row in rows
        if row.cuda not in ("", "lowers")
    ]
    return list(dict.fromkeys(texts))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(rows: Sequence[Row]) -> str:
    """Returns how many programs compile and fit, among how many."""
    return f"{sum(row.fits for row in rows)} of {len(rows)}" if rows else UNKNOWN


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.stage,
        _name(row),
        _or_unknown(row.needs, "B"),
        _or_unknown(row.flops, "FLOP"),
        _or_unknown(row.accessed, "B"),
        UNKNOWN if row.seconds is None else _seconds(row.seconds),
        _speak(row.collectives),
    )


def _name(row: Row) -> str:
    return f"{row.program} {row.model}".strip()


def _speak(collectives: Mapping[str, int]) -> str:
    words = [f"{name} {number}" for name, number in sorted(collectives.items())]
    return ", ".join(words) or "none"


def _or_unknown(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else scaled(value, unit)


def _seconds(seconds: float) -> str:
    """Returns three digits of a short time, e.g. "43.1 µs"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
