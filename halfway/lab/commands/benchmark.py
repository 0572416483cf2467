"""Time what is done side by side with what people use today, in the same run on the same threads.

Example: halfway benchmark --suite=attacks --data_dir=DIR --out=FILE.json
"""

import dataclasses
from pathlib import Path

from absl import flags

from halfway import storage
from halfway.lab import benchmarks
from halfway.lab.benchmarks.timing import Row
from halfway.lab.commands import launch, shared
from halfway.lab.config.user import UserError
from halfway.lab.runtime import devices
from halfway.lab.study import wording

FLAGS = flags.FlagValues()
SUITE = flags.DEFINE_string(
    "suite", None, "attacks, landscapes, scale, strength or transfer", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "FILE.json for the rows", flag_values=FLAGS)
DATA_DIR = shared.data_dir(FLAGS)
CACHE = flags.DEFINE_string(
    "compilation_cache", None, "folder of compiled programs, or 'off'", flag_values=FLAGS
)


def main() -> None:
    """Runs a suite, prints its table, and writes its rows to a file if --out names one."""
    suites = benchmarks.available()
    if SUITE.value not in suites:
        raise UserError(f"--suite must be one of {', '.join(suites)}, got {SUITE.value!r}")
    devices.use_cores()
    devices.use_cache(CACHE.value)
    suite = suites[SUITE.value]
    rows = suite.rows(DATA_DIR.value)
    print(getattr(suite, "as_text", as_text)(rows))
    if OUT.value:
        try:
            storage.write_json(Path(OUT.value), [dataclasses.asdict(row) for row in rows])
        except OSError as error:
            raise UserError(f"--out={OUT.value} cannot be written ({error.strerror})") from error


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


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
