"""Published numbers beside ours: tables of the literature page."""

import math
from collections.abc import Sequence

from halfway.lab.publication.result import Result
from halfway.lab.publication.tables import markdown, name_of
from halfway.lab.study.verdict import Headline, Verdict
from halfway.lab.study.wording import format_estimate

DISAGREEMENT = {
    "all different": "1.036",
    "same start and order, other data": "1.038",
    "same data, other start": ".911",
    "same data, other order": ".901",
    "same data, other start and order": "–",
}
"""Disagreement over error by what differs: Jiang et al., arXiv 2106.13799, CIFAR-10, ResNet-18."""
_ALL = "all different"


def disagreement(results: Sequence[Result]) -> str:
    """Returns disagreement over error by what differs between two models, published and ours.

    Args:
      results: shipped ones.
    """
    ours = [(result, result.verdict("G4")) for result in results]
    measured = [(result, verdict) for result, verdict in ours if verdict is not None]
    larger = dict.fromkeys(
        headline.label.split(", ", 1)[1]
        for _, verdict in measured
        for headline in verdict.headlines
        if f", {_ALL}, n = " in headline.label
    )
    rows = []
    for setting in (*DISAGREEMENT, *larger):
        cells = [_ratio(verdict, setting) for _, verdict in measured]
        rows.append([setting, DISAGREEMENT.get(setting, "–"), *cells])
    return markdown(
        ["what differs", "published", *(name_of(result) for result, _ in measured)], rows
    )


def _ratio(verdict: Verdict, setting: str) -> str:
    if setting == _ALL:
        return format_estimate(verdict.effect, *verdict.interval)
    return _shown(verdict, f"disagreement over error, {setting}")


def _shown(verdict: Verdict, label: str) -> str:
    """Returns a headline of a verdict as text; a dash where it has none of that label."""
    headlines: dict[str, Headline] = {headline.label: headline for headline in verdict.headlines}
    if label not in headlines:
        return "–"
    headline = headlines[label]
    if math.isnan(headline.low) and headline.estimate.is_integer():  # a step
        return f"{headline.estimate:.0f}"
    return format_estimate(headline.estimate, headline.low, headline.high)


ONSETS = {
    "last step before accuracy": "step t* ({})",
    "onset of the alignment": "onset of the alignment of input gradients ({}), step",
    "share of the alignment's gain before accuracy": "part of the alignment's gain at t* ({})",
}
"""Rows of the table of onsets, with the headlines of T4."""


def onsets(results: Sequence[Result]) -> str:
    """Returns when attack directions align and when accuracy rises, by data set and architecture.

    Args:
      results: shipped ones.
    """
    columns, cells = [], {name: [] for name in ONSETS}
    for result in results:
        verdict = result.verdict("T4")
        if verdict is None:
            continue
        for architecture in result.meeting:
            columns.append(f"{name_of(result)}, {architecture.upper()}")
            for name, label in ONSETS.items():
                cells[name].append(_shown(verdict, label.format(architecture)))
    return markdown(["", *columns], [[name, *row] for name, row in cells.items()])
