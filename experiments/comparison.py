"""Runs side by side: what differs in their settings first, then every verdict and effect."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import wording
from experiments.family import FAMILY

_WIDTH = 100


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
        "commit": commit[:10] + (" +changes" if changes else ""),
        "devices": f"{stored.get('num_devices')} × {environment.get('devices')}",
        **{f"{package} version": version for package, version in versions.items()},
    }


def text(runs: Sequence[Summary]) -> str:
    """Returns the comparison as plain text of at most 100 columns.

    Args:
      runs: at least two.
    """
    letters = [chr(ord("A") + index) for index in range(len(runs))]
    lines = [
        "Runs",
        *(f"  {letter}  {run.name}" for letter, run in zip(letters, runs, strict=True)),
    ]
    return "\n".join([*lines, "", *_differences(runs, letters), "", *_verdicts(runs, letters)])


def _differences(runs: Sequence[Summary], letters: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    different = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
    if not different:
        return ["The settings do not differ."]
    first = max(map(len, different))
    width = (_WIDTH - 2 - first) // len(runs) - 2
    lines = [f"What differs{' ' * (first - 10)}  {'  '.join(one.ljust(width) for one in letters)}"]
    for name in different:
        cells = [_short(run.settings.get(name), width) for run in runs]
        lines.append(f"  {name.ljust(first)}  {'  '.join(cells)}")
    return [line.rstrip() for line in lines]


def _short(value: Any, width: int) -> str:
    plain = "–" if value is None else " ".join(str(value).split())
    if len(plain) > width:
        plain = plain[: max(1, width - 1)] + "…"
    return plain.ljust(width)


def _verdicts(runs: Sequence[Summary], letters: Sequence[str]) -> list[str]:
    lines = []
    for name, claim in FAMILY:
        if not any(name in run.verdicts for run in runs):
            continue
        rows = [_row(run.verdicts.get(name)) for run in runs]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(f"{name}  {claim}")
        for letter, row in zip(letters, rows, strict=True):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {letter}  {'  '.join(cells)}".rstrip())
    return lines or ["No hypothesis was decided."]


def _row(verdict: Mapping[str, Any] | None) -> tuple[str, ...]:
    if verdict is None:
        return "not run", "", "", "", ""
    low, high = verdict["interval"]
    effect = wording.format_estimate(
        verdict["effect"],
        float("-inf") if low is None else low,
        float("inf") if high is None else high,
    )
    p_value = wording.format_p(verdict["p_adjusted"])
    return (
        verdict["verdict"],
        effect,
        f"adjusted p {p_value}",
        f"{verdict['num_pairs']} pairs",
        f"evidence {verdict['evidence']}",
    )
