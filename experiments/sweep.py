"""Runs many settings of a config, each in a folder of its own, and puts them into one table.

python -m experiments.sweep --sweep=configs/sweeps/example.toml [--shard=1/4] [--dry_run]

A setting that fails does not stop the others. The same command again runs what is missing; shards
on several machines may share the folder.
"""

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import cli, files, sweep_file, wording
from experiments.errors import UserError
from experiments.sweep_file import Setting

_SHOWN = 38  # columns of a setting's name in the printed table


def main(options: cli.Options) -> None:
    """Every setting of a file, then a table over all of them."""
    if not options.sweep:
        raise UserError("--sweep is needed: a file such as configs/sweeps/example.toml")
    sweep = sweep_file.load(options.sweep)
    root = Path(options.workdir or f"runs/{sweep.name}")
    first, every = _shard(options.shard)
    mine = sweep.settings[first - 1 :: every]
    passed_on = [
        f"--{name}={value}"
        for name in ("data_dir", "compilation_cache")
        if (value := getattr(options, name))
    ]
    if options.dry_run:
        for setting in mine:
            state = "finished" if is_finished(root / setting.name, setting) else "to run"
            print(f"{state:9} {shlex.join(_command(root, setting, passed_on)[1:])}")
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={root} cannot be written ({error.strerror})") from error
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
    table = tabulate(root, sweep.settings)
    files.write_table(root / "sweep.parquet", table)
    files.write_whole(root / "sweep.csv", table.to_csv(index=False).encode())
    print("\n" + format_table(table) + f"\n\n{root / 'sweep.csv'}")
    if failures:
        names = "; ".join(f"{name} ({reason})" for name, reason in failures.items())
        print(f"{len(failures)} of {len(mine)} settings failed: {names}", file=sys.stderr)
        sys.exit(1)


def _shard(text: str | None) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={text} must be i/n with 1 <= i <= n, e.g. --shard=1/4")
    return int(match[1]), int(match[2])


def _command(root: Path, setting: Setting, passed_on: Sequence[str]) -> list[str]:
    program = [sys.executable, "-m", "experiments.reproduce"]
    return [*program, *setting.arguments, f"--workdir={root / setting.name}", *passed_on]


def _run(root: Path, setting: Setting, passed_on: Sequence[str]) -> str:
    """Returns why a setting failed, or nothing.

    A process of its own: what kills it, memory or a fault, spares the others.
    """
    log = root / f"{setting.name}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            _command(root, setting, passed_on), stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(3)  # a terminal has told it too
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                process.wait()
            raise
    if code == 0:
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("error: ") if lines else "no output"
    return f"killed by signal {-code}" if code < 0 else said


def is_finished(folder: Path, setting: Setting) -> bool:
    """Returns whether a folder holds this very setting with verdicts on all of its hypotheses."""
    try:
        stored = files.read_json(folder / "config.json")["config"]
        decided = {verdict["id"] for verdict in files.read_json(folder / "verdicts.json")}
    except files.UNREADABLE:
        return False
    return cli.plain(setting.config) == stored and set(setting.hypotheses) <= decided


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
        verdicts = files.read_json(root / setting.name / "verdicts.json") if finished else []
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
    """Returns the table as text of at most 100 columns."""
    rows = [("setting", "id", "verdict", "effect [95 % interval]", "pairs", "evidence")]
    for row in table.to_dict("records"):
        name = str(row["setting"])
        name = name if len(name) <= _SHOWN else name[: _SHOWN - 1] + "…"
        if row["status"] != "finished":
            rows.append((name, row["id"], row["status"], "", "", ""))
            continue
        ends = [
            float("inf") * sign if pd.isna(row[end]) else row[end]
            for end, sign in (("low", -1), ("high", 1))
        ]
        effect = wording.format_estimate(row["effect"], *ends)
        rows.append(
            (name, row["id"], row["verdict"], effect, str(row["num_pairs"]), row["evidence"])
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    note = "p-values are adjusted over the family within a setting, not over the sweep."
    return "\n".join([*lines, note])


if __name__ == "__main__":
    cli.launch(
        main, takes=("sweep", "shard", "dry_run", "workdir", "data_dir", "compilation_cache")
    )
