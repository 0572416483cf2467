"""Times what is done side by side with what people use today, in the same run on the same threads.

python -m experiments.benchmark --suite=attacks [--data_dir=DIR] [--out=FILE.json]
"""

import dataclasses
from pathlib import Path

from halfway import storage
from halfway.lab import benchmarks
from halfway.lab.benchmarks.timing import Row
from halfway.lab.commands import cli
from halfway.lab.config.user import UserError
from halfway.lab.runtime import environment
from halfway.lab.study import wording


def main(options: cli.Options) -> None:
    """One suite to a table, and to a file where one is named."""
    suites = benchmarks.available()
    if options.suite not in suites:
        raise UserError(f"--suite must be one of {', '.join(suites)}, got {options.suite!r}")
    environment.use_cores()
    environment.use_cache(options.compilation_cache)
    suite = suites[options.suite]
    rows = suite.rows(options.data_dir)
    print(getattr(suite, "as_text", as_text)(rows))
    if options.out:
        try:
            storage.write_json(Path(options.out), [dataclasses.asdict(row) for row in rows])
        except OSError as error:
            raise UserError(f"--out={options.out} cannot be written ({error.strerror})") from error


def as_text(rows: list[Row]) -> str:
    """Returns the rows as a table for a terminal."""
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


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(main, takes=("suite", "data_dir", "out", "compilation_cache"))
