"""Runs side by side: what differs in their settings first, then every verdict and effect."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from halfway.lab.study import wording
from halfway.lab.study.verdict import Listed


class Summary(NamedTuple):
    """What is compared of a run.

    Attributes:
      name: of its folder.
      settings: config fields by dotted name, with what else identifies it, see `settings`.
      verdicts: as verdicts.json has them, by hypothesis.
    """

    name: str
    settings: Mapping[str, Any]
    verdicts: Mapping[str, Mapping[str, Any]]


def settings(
    stored: Mapping[str, Any], notes: Mapping[str, Any], leaves: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns everything in which two runs may differ, by name.

    Args:
      stored: config.json.
      notes: run.json.
      leaves: config fields by dotted name.
    """
    environment = notes.get("environment", {})
    versions = environment.get("versions", {})
    commit, _, changes = str(environment.get("commit") or "unknown").partition(" ")
    return {
        **leaves,
        "config file": stored.get("name"),
        "data version": environment.get("data_version"),
        "data checksum": str(stored.get("data_checksum"))[:12],
        "commit": commit[:8] + (" +changes" if changes else ""),
        "devices": f"{stored.get('num_devices')} × {environment.get('devices')}",
        "layout": environment.get("layout"),
        **{f"{package} version": version for package, version in versions.items()},
    }


def text(runs: Sequence[Summary], listed: Sequence[Listed]) -> str:
    """Returns the comparison as plain text of at most 100 columns.

    Args:
      runs: at least two.
      listed: all studies in the order of the report.
    """
    letters = [chr(ord("A") + index) for index in range(len(runs))]
    lines = [
        "Runs",
        *(f"  {letter}  {run.name}" for letter, run in zip(letters, runs, strict=True)),
    ]
    return "\n".join(
        [*lines, "", *_differences(runs, letters), "", *_verdicts(runs, letters, listed)]
    )


def _differences(runs: Sequence[Summary], letters: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    different = {
        name: [_show(run.settings.get(name)) for run in runs]
        for name in names
        if len({repr(run.settings.get(name)) for run in runs}) > 1
    }
    if not different:
        return ["The settings do not differ."]
    # Never cut: the end of a long value may be all that differs.
    width = (wording.WIDTH - max(map(len, different)) - 2) // len(runs) - 2
    short = {name: cells for name, cells in different.items() if max(map(len, cells)) <= width}
    rows = [(f"  {name}", *cells) for name, cells in short.items()]
    lines = wording.align([("What differs", *letters), *rows]) if rows else ["What differs"]
    for name in (name for name in different if name not in short):
        lines += [f"  {name}", *_long(different[name], letters)]
    return lines


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_show, value)) or "()"
    return "–" if value is None else " ".join(str(value).split())


def _long(cells: Sequence[str], letters: Sequence[str]) -> list[str]:
    """Returns each value once, wrapped, behind the letters of the runs that have it."""
    who: dict[str, list[str]] = {}
    for letter, cell in zip(letters, cells, strict=True):
        who.setdefault(cell, []).append(letter)
    first = max(len(" ".join(holders)) for holders in who.values())
    lines = []
    for cell, holders in who.items():
        head = f"    {' '.join(holders).ljust(first)}  "
        lines += textwrap.wrap(
            cell, wording.WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
        )
    return lines


def _verdicts(
    runs: Sequence[Summary], letters: Sequence[str], listed: Sequence[Listed]
) -> list[str]:
    lines = []
    for name, claim, _ in listed:
        if not any(name in run.verdicts for run in runs):
            continue
        rows = [
            (f"  {letter}", *_row(run.verdicts.get(name)))
            for letter, run in zip(letters, runs, strict=True)
        ]
        lines += [f"{name}  {claim}", *wording.align(rows)]
    return lines or ["No hypothesis was decided."]


def _row(verdict: Mapping[str, Any] | None) -> tuple[str, ...]:
    if verdict is None:
        return "not run", "", "", "", ""
    adjusted = verdict["p_adjusted"]
    p_value = verdict["p_value"] if adjusted is None else adjusted
    return (
        verdict["verdict"],
        wording.format_stored(verdict["effect"], *verdict["interval"]),
        f"{'raw' if adjusted is None else 'adjusted'} p {wording.format_p(p_value)}",
        f"{verdict['num_pairs']} pairs",
        f"evidence {verdict['evidence']}",
    )
