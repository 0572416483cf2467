"""Runs many settings of a config, each in a folder of its own, and puts them into one table.

python -m experiments.sweep --sweep=configs/sweeps/example.toml [--shard=1/4] [--dry_run]

A setting that fails does not stop the others. The same command again runs what is missing; shards
on several machines may share the folder.
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from halfway import storage
from halfway.lab.commands import cli, sweep_file
from halfway.lab.commands.sweep_file import Setting
from halfway.lab.config.user import UserError
from halfway.lab.runtime.runs import Identity
from halfway.lab.study import wording

_PASSED_ON = ("data_dir", "compilation_cache")


def main(options: cli.Options) -> None:
    """Every setting of a file, then a table over all of them."""
    if not options.sweep:
        raise UserError("--sweep is needed: a file such as configs/sweeps/example.toml")
    sweep = sweep_file.load(options.sweep)
    root = Path(options.workdir or f"runs/{sweep.name}")
    first, every = _shard(options.shard)
    mine = sweep.settings[first - 1 :: every]
    given = [(name, getattr(options, name)) for name in _PASSED_ON]
    passed_on = [f"--{name}={value}" for name, value in given if value is not None]
    if options.dry_run:
        _announce(root, mine, passed_on)
        return
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the child as Ctrl-C does
    failures = _run_all(root, mine, passed_on)
    table = tabulate(root, sweep.settings)
    with _writing(root):
        storage.write_table(root / "sweep.parquet", table)
        storage.write_whole(root / "sweep.csv", table.to_csv(index=False).encode())
    print(f"\n{format_table(table)}\n\n{root / 'sweep.csv'}")
    if failures:
        names = "; ".join(f"{name} ({reason})" for name, reason in failures.items())
        print(f"{len(failures)} of {len(mine)} settings failed: {names}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir={root} cannot be written ({error.strerror})") from error


def _shard(text: str | None) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={text} must be i/n with 1 <= i <= n, e.g. --shard=1/4")
    return int(match[1]), int(match[2])


def _command(root: Path, setting: Setting, passed_on: Sequence[str]) -> list[str]:
    """Returns the arguments of Python that run a setting."""
    program = ["-m", "experiments.reproduce"]
    return [*program, *setting.arguments, f"--workdir={root / setting.name}", *passed_on]


def _announce(root: Path, mine: Sequence[Setting], passed_on: Sequence[str]) -> None:
    for setting in mine:
        state = "finished" if is_finished(root / setting.name, setting) else "to run"
        print(f"{state:9} python {shlex.join(_command(root, setting, passed_on))}")


def _run_all(root: Path, mine: Sequence[Setting], passed_on: Sequence[str]) -> dict[str, str]:
    """Returns why settings failed, by name; says on the way which one runs."""
    failures = {}
    for number, setting in enumerate(mine, 1):
        where = f"[{number}/{len(mine)}] {setting.name}"
        if is_finished(root / setting.name, setting):
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
    """Returns why a setting failed, or nothing.

    A process of its own: what kills it, memory or a fault, spares the others.
    """
    log = root / f"{setting.name}.log"
    # Another process may be writing to it: added to, never emptied.
    with _writing(root), log.open("ab") as file:
        before = file.tell()
        process = subprocess.Popen(
            [sys.executable, *_command(root, setting, passed_on)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _stop(process)
        raise
    if code < 0:
        return f"killed by signal {-code}"
    return _last_words(log.read_bytes()[before:]) if code else ""


def _stop(process: subprocess.Popen) -> None:
    """Ends a process; a run may be killed at any time, since all of its files are written whole."""
    try:
        process.wait(3)  # a terminal has told it too
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if line] or ["no output"])[-1]


def is_finished(folder: Path, setting: Setting) -> bool:
    """Returns whether a folder holds this very run with verdicts on all hypotheses and its report.

    Nothing is loaded but two small files. Of what identifies a run the checksum of the data is
    left out, which only reading them would tell; the report is written last.
    """
    try:
        stored = storage.read_json(folder / "config.json")
        decided = {verdict["id"] for verdict in storage.read_json(folder / "verdicts.json")}
        same = Identity(setting.run_name, setting.config.to_dict(), stored["data_checksum"])
        identical = all(stored[name] == value for name, value in same.to_json().items())
    except storage.UNREADABLE:
        return False
    written = (folder / "report.html").is_file()
    return identical and written and set(setting.hypotheses) <= decided


def tabulate(root: Path, settings: Sequence[Setting]) -> pd.DataFrame:
    """Returns one row for each setting and hypothesis, whoever has run it.

    Args:
      root: folder of the sweep.
      settings: of all shards.

    Returns:
      Columns: setting, status ("finished" or "missing"), the fields that are set, id, verdict,
      effect, low, high, p_value, p_adjusted, evidence, num_pairs; infinite ends are null.
    """
    fields = list(dict.fromkeys(name for setting in settings for name in setting.fields))
    rows = []
    for setting in settings:
        finished = is_finished(root / setting.name, setting)
        verdicts = storage.read_json(root / setting.name / "verdicts.json") if finished else []
        for name in setting.hypotheses:
            verdict = next((one for one in verdicts if one["id"] == name), {})
            row: dict[str, Any] = {
                "setting": setting.name,
                "status": "finished" if finished else "missing",
            }
            row |= {field: _cell(setting.fields.get(field)) for field in fields}
            row |= {"id": name, "verdict": verdict.get("verdict"), "effect": verdict.get("effect")}
            row |= dict(zip(("low", "high"), verdict.get("interval", (None, None)), strict=True))
            row |= {key: verdict.get(key) for key in ("p_value", "p_adjusted")}
            row |= {key: verdict.get(key) for key in ("evidence", "num_pairs")}
            rows.append(row)
    return pd.DataFrame(rows).convert_dtypes()


def _cell(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value


def format_table(table: pd.DataFrame) -> str:
    """Returns the table as text of at most 100 columns; names that are too long head their rows."""
    heads = ("id", "verdict", "effect [95 % interval]", "pairs", "evidence")
    names = [str(name) for name in table["setting"]]
    rows = [_cells(row) for row in table.to_dict("records")]
    beside = wording.align(
        [("setting", *heads), *((name, *row) for name, row in zip(names, rows, strict=True))]
    )
    lines = beside if max(map(len, beside)) <= wording.WIDTH else _headed(names, [heads, *rows])
    note = "p-values are adjusted over the family within a setting, not over the sweep."
    return "\n".join([*lines, note])


def _headed(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    first, *lines = wording.align([("", *row) for row in rows])
    headed = [first]
    for index, (name, line) in enumerate(zip(names, lines, strict=True)):
        headed += [line] if index and names[index - 1] == name else [name, line]
    return headed


def _cells(row: Mapping[Any, Any]) -> tuple[str, ...]:
    if row["status"] != "finished":
        return row["id"], row["status"], "", "", ""
    numbers = (row[name] for name in ("effect", "low", "high"))
    text = wording.format_stored(*(None if pd.isna(number) else number for number in numbers))
    return row["id"], row["verdict"], text, str(row["num_pairs"]), row["evidence"]


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(
        main, takes=("sweep", "shard", "dry_run", "workdir", "data_dir", "compilation_cache")
    )
