"""Run many settings of a config, each in a folder of its own, and put them into one table.

What it takes is in `halfway.lab.flags.sweep`.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from halfway import storage
from halfway.lab.config import user
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch
from halfway.lab.flags.sweep import DRY_RUN, PASSED_ON, SHARD, SWEEP, WORKDIR
from halfway.lab.report import sweep_page
from halfway.lab.report.page import write
from halfway.lab.runtime import processes, progress, start, sweep_file, sweep_table
from halfway.lab.runtime.sweep_file import Setting


def main() -> None:
    """Runs all settings of a sweep file, then prints a table of them."""
    sweep = sweep_file.load(SWEEP.value)
    root = Path(WORKDIR.value or f"runs/{sweep.name}")
    first, step = _shard(SHARD.value)
    mine = sweep.settings[first - 1 :: step]
    passed_on = [
        f"--{holder.name}={holder.value}" for holder in PASSED_ON if holder.value is not None
    ]
    if DRY_RUN.value:
        _announce(root, mine, passed_on)
        return
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
    failures = _run_all(root, mine, passed_on)
    table = sweep_table.tabulate(root, sweep.settings)
    page = sweep_page.page(table, name=sweep.name, command=launch.command_line())
    csv = table.to_csv(index=False).encode()
    path = write(
        root,
        page,
        {
            "sweep.parquet": lambda path: storage.write_table(path, table),
            "sweep.csv": lambda path: storage.write_whole(path, csv),
        },
        resumes=True,
    )
    print(f"\n{sweep_table.format_table(table)}\n\n{path}")
    if failures:
        names = "; ".join(f"{name} ({reason})" for name, reason in failures.items())
        print(f"{len(failures)} of {len(mine)} settings failed: {names}", file=sys.stderr)
        sys.exit(1)


def _writing(root: Path) -> AbstractContextManager[None]:
    return user.writing(f"--workdir={root}", resumes=True)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={text} must be i/n with 1 <= i <= n, e.g. --shard=1/4")
    return int(match[1]), int(match[2])


def _command(root: Path, setting: Setting, passed_on: Sequence[str]) -> list[str]:
    """Returns the command that runs a setting, without the program."""
    return ["reproduce", *setting.arguments, f"--workdir={root / setting.name}", *passed_on]


def _announce(root: Path, mine: Sequence[Setting], passed_on: Sequence[str]) -> None:
    for setting in mine:
        state = "finished" if sweep_file.is_finished(root / setting.name, setting) else "to run"
        print(f"{state:9} {shlex.join(['halfway', *_command(root, setting, passed_on)])}")


def _run_all(root: Path, mine: Sequence[Setting], passed_on: Sequence[str]) -> dict[str, str]:
    """Returns why settings failed, by name; prints the setting that is running."""
    failures = {}
    for number, setting in enumerate(mine, 1):
        where = f"[{number}/{len(mine)}] {setting.name}"
        if sweep_file.is_finished(root / setting.name, setting):
            print(f"{where}: finished before", flush=True)
            continue
        print(f"{where} ...", flush=True)
        started = time.monotonic()
        reason = _run(root, setting, passed_on)
        taken = f"{time.monotonic() - started:.0f} s"
        print(f"{where}: {f'failed, {reason}' if reason else 'finished'} ({taken})", flush=True)
        if reason:
            failures[setting.name] = reason
    return failures


def _run(root: Path, setting: Setting, passed_on: Sequence[str]) -> str:
    """Returns why a setting failed, or an empty text.

    A setting runs in a process of its own, so that a lack of memory or a fault stops it alone.
    """
    log = root / f"{setting.name}.log"
    # Another process may be writing to the log, so it is never emptied.
    with _writing(root), log.open("ab") as file:
        before = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "halfway.lab.commands", *_command(root, setting, passed_on)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {start.ENDS_WITH: str(os.getpid())},
        )
    try:
        with progress.doing(f"{setting.name} runs, and writes its lines to {log}"):
            code = process.wait()
    except (KeyboardInterrupt, processes.Terminated):
        _stop(process)
        raise
    if code < 0:
        return f"killed by signal {-code}"
    return _last_words(log.read_bytes()[before:]) if code else ""


def _stop(process: subprocess.Popen) -> None:
    """Ends a process; this is safe at any time, since a run writes each file whole."""
    try:
        process.wait(3)  # a terminal has told it too
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if line] or ["no output"])[-1]
