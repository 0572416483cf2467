"""The time until a second run can compute, with its programs in the compilation cache."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from halfway.lab.benchmarks.timing import Row

MOST_SECONDS = 5.0
"""The most seconds from the start of the process."""
NUM_RUNS = 3
"""Number of second runs, of which the shortest counts."""
_COMMAND = ("-m", "halfway.lab.commands", "reproduce", "--config=digits:tiny")


def row() -> Row:
    """Returns the row of `reproduce` with the tiny config.

    Raises:
      RuntimeError: if a run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first = _run(root, 0)
        starts, wholes = zip(*(_run(root, 1 + i) for i in range(NUM_RUNS)), strict=True)
    return Row(
        "second_start",
        min(starts),
        ratio=min(starts) / MOST_SECONDS,
        target=1.0,
        note=f"reproduce, tiny, until config.json is there; whole run "
        f"{min(wholes):.1f} s, the first {first[1]:.1f} s; ratio to {MOST_SECONDS:.0f} s",
    )


def _run(root: Path, number: int) -> tuple[float, float]:
    """Returns the seconds until config.json is written, and the seconds of the whole run."""
    workdir, log = root / f"run{number}", root / f"log{number}"
    flags = [f"--workdir={workdir}", f"--compilation_cache={root / 'cache'}"]
    started = time.perf_counter()
    standing = None
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, *_COMMAND, *flags], cwd=root, stdout=output, stderr=output
        ) as process,
    ):
        while process.poll() is None:
            if standing is None and (workdir / "config.json").exists():
                standing = time.perf_counter() - started
            time.sleep(0.02)
    whole = time.perf_counter() - started
    if process.returncode or standing is None:
        said = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"a run of reproduce failed: {' '.join(said)}")
    return standing, whole
