"""Time what is done side by side with what people use today, in the same run on the same threads.

What it takes is in `halfway.lab.flags.benchmark`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from halfway import storage
from halfway.lab import benchmarks
from halfway.lab.benchmarks.timing import Row
from halfway.lab.config.user import UserError, writing
from halfway.lab.flags.benchmark import CACHE, DATA_DIR, MARKDOWN, OUT, SUITE
from halfway.lab.runtime import devices, progress
from halfway.lab.study import wording


def main() -> None:
    """Runs a suite, prints its table, and writes rows and tables to the files that flags name."""
    suites = benchmarks.available()
    if SUITE.value not in suites:
        raise UserError(f"--suite must be one of {', '.join(suites)}, got {SUITE.value!r}")
    suite = suites[SUITE.value]
    if MARKDOWN.value and not hasattr(suite, "as_markdown"):
        able = ", ".join(name for name in suites if hasattr(suites[name], "as_markdown"))
        raise UserError(f"--markdown: {SUITE.value} writes no tables; {able or 'none'} does")
    devices.use_cores()
    devices.use_cache(CACHE.value)
    with progress.doing(f"the suite {SUITE.value}"):
        if OUT.value and getattr(suite, "KEEPS_ROWS", False):
            rows = suite.rows(DATA_DIR.value, Path(OUT.value))
        else:
            rows = suite.rows(DATA_DIR.value)
    print(getattr(suite, "as_text", as_text)(rows))
    if OUT.value:
        content = [dataclasses.asdict(row) for row in rows]
        _write("out", OUT.value, lambda path: storage.write_json(path, content))
    if MARKDOWN.value:
        text = f"{suite.as_markdown(rows)}\n".encode()
        _write("markdown", MARKDOWN.value, lambda path: storage.write_whole(path, text))


def _write(flag: str, path: str, write: Callable[[Path], None]) -> None:
    with writing(f"--{flag}={path}"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write(Path(path))


def as_text(rows: list[Row]) -> str:
    """Returns the rows as a table for a terminal.

    Args:
      rows: the rows of a suite.
    """
    names = ["work", "ours, s", "peer", "peer, s", "ratio", "at most", "of ceiling", "MB", "note"]
    body = [
        [
            row.work,
            _number(row.ours_seconds),
            row.peer or "–",
            _number(row.peer_seconds),
            _number(row.ratio),
            _number(row.target),
            _number(row.ceiling_share),
            _number(None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6),
            row.note if row.skipped is None else f"skipped: {row.skipped}",
        ]
        for row in rows
    ]
    return "\n".join(wording.align([names, *body]))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
