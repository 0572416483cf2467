"""The table of a sweep: all settings with their verdicts and effects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from halfway.lab.runtime import sweep_file
from halfway.lab.runtime.runs import Run
from halfway.lab.runtime.sweep_file import Setting
from halfway.lab.study import wording


def tabulate(root: Path, settings: Sequence[Setting]) -> pd.DataFrame:
    """Returns a table with a row for each setting and hypothesis.

    Args:
      root: the folder of the sweep.
      settings: the settings of all shards.

    Returns:
      A table with the columns setting, status ("finished" or "missing"), the fields that are set,
      id, verdict, effect, low, high, p_value, p_adjusted, evidence, num_pairs; infinite ends are
      null.
    """
    fields = list(dict.fromkeys(name for setting in settings for name in setting.fields))
    rows = []
    for setting in settings:
        finished = sweep_file.is_finished(root / setting.name, setting)
        verdicts = Run.open(root / setting.name).verdicts() if finished else []
        for name in setting.hypotheses:
            verdict = next((stored for stored in verdicts if stored["id"] == name), {})
            row: dict[str, Any] = {
                "setting": setting.name,
                "status": "finished" if finished else "missing",
            }
            row |= {field: _cell(setting.fields.get(field)) for field in fields}
            row |= {"id": name, "verdict": verdict.get("verdict"), "effect": verdict.get("effect")}
            row |= dict(zip(("low", "high"), verdict.get("interval", (None, None)), strict=True))
            row |= {field_name: verdict.get(field_name) for field_name in ("p_value", "p_adjusted")}
            row |= {field_name: verdict.get(field_name) for field_name in ("evidence", "num_pairs")}
            rows.append(row)
    return pd.DataFrame(rows).convert_dtypes()


def _cell(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value


def format_table(table: pd.DataFrame) -> str:
    """Returns a table as text of at most 100 columns.

    Names of settings that are too long stand above their rows.

    Args:
      table: the table, from `tabulate`.
    """
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
