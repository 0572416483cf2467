"""Verdicts and figures to files: one self-contained page, and figures as PNG and SVG.

Figures are drawn in the ink of `halfway.plot_style`; in the page those colours become CSS
variables, so that they follow light and dark. The same input gives the same bytes.
"""

import io
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as MplFigure

from halfway import plots
from halfway.lab.report import page
from halfway.lab.report.elements import Drawing, Table
from halfway.lab.report.page import RunInfo
from halfway.lab.study import wording
from halfway.lab.study.protocol import Figure, Verdict
from halfway.lab.study.wording import format_estimate, format_p, terminal_map
from halfway.storage import write_whole

__all__ = [
    "RunInfo",
    "Table",
    "forest_figure",
    "format_estimate",
    "format_p",
    "inline_svg",
    "save_figures",
    "terminal_map",
    "write",
]

_VARIABLES = {
    plots.INK: "--ink",
    plots.PAPER: "--paper",
    plots.GRID: "--grid",
    plots.BLUE: "--blue",
    plots.VERMILLION: "--vermillion",
    plots.GREEN: "--green",
    plots.GREY: "--grey",
}
_WIDE = 6.5
"""Inches, from which on a figure has a row to itself."""
_SUBSCRIPT = (  # the zero-width space carries the shift back to the line
    r'<tspan font-style="italic">\1</tspan><tspan dy=".3em" font-size="75%">\2</tspan>'
    r'<tspan dy="-.225em">&#8203;</tspan>'
)


def write(
    path: str | os.PathLike[str],
    *,
    verdicts: Sequence[Verdict],
    figures: Mapping[str, Sequence[Figure]],
    explanations: Mapping[str, str],
    family: Sequence[tuple[str, str]],
    condition_tables: Sequence[Table],
    condition_figures: Sequence[Figure],
    run: RunInfo,
) -> None:
    """Writes the report to `path`, whole or not at all.

    Args:
      path: the file, e.g. "report.html".
      verdicts: what was decided, in any order.
      figures: the figures of each hypothesis's card, by id.
      explanations: a paragraph in plain words for each id; blank lines separate paragraphs.
      family: all hypotheses in the order of the map, (id, short claim).
      condition_tables, condition_figures: descriptions of every condition.
      run: what was run and how to repeat it.

    Raises:
      ValueError: a verdict on a hypothesis that is not in the family.
    """
    numbers = iter(range(1, 10_000))

    def inline(items: Sequence[Figure]) -> list[Drawing]:
        return [
            Drawing(
                item.caption,
                inline_svg(item.figure, f"f{next(numbers)}", item.caption),
                wide=item.figure.get_figwidth() > _WIDE,
                table=item.table,
            )
            for item in items
        ]

    whole = forest_figure(verdicts, family)
    html = page.render(
        verdicts=verdicts,
        family=family,
        explanations=explanations,
        forest=None if whole is None else inline([whole])[0],
        drawings={name: inline(items) for name, items in figures.items()},
        condition_tables=condition_tables,
        condition_drawings=inline(condition_figures),
        run=run,
    )
    write_whole(Path(path), html.encode())


def forest_figure(verdicts: Sequence[Verdict], family: Sequence[tuple[str, str]]) -> Figure | None:
    """Returns the forest of all effects in the family's order; None where there is no verdict.

    A control is drawn where the effect is a headline minus that control, for only then are the
    two on one axis.
    """
    rows = [_forest_row(verdict) for verdict in wording.in_order(verdicts, family)]
    if not rows:
        return None
    caption = (
        "Effect and 95 % interval of the first part of each rule, worse architecture; every row "
        "has its own scale and unit. Dashed: the threshold; shaded: the side that the claim is "
        "on. Grey: the control. An arrow is an interval without end. An effect that is a "
        "difference from a control has that control at 0."
    )
    return Figure("forest", caption, plots.forest(rows)[0].figure)


def _forest_row(verdict: Verdict) -> plots.ForestRow:
    first = verdict.parts[0] if verdict.parts else None
    low, high = verdict.interval
    control, label = None, ""
    for headline in verdict.headlines:
        if headline.control is None:
            continue
        difference = headline.estimate - headline.control[0]
        if abs(difference - verdict.effect) <= 1e-6 + 0.01 * abs(verdict.effect):
            control = headline.control
            label = f"control {format_estimate(*control).split(' [')[0]}"
            break
    failing = [part.name for part in verdict.parts if not part.passed]
    return plots.ForestRow(
        name=verdict.id,
        label=first.statistic if first else "effect",
        estimate=verdict.effect,
        low=low,
        high=high,
        threshold=first.threshold if first else (0.0,),
        direction=first.direction if first else "greater",
        verdict=verdict.verdict,
        value=format_estimate(verdict.effect, low, high),
        control=control,
        control_label=label,
        note=textwrap.shorten(f"fails: {failing[0]}", 26, placeholder="…") if failing else "",
    )


def inline_svg(figure: MplFigure, prefix: str, label: str) -> str:
    """Returns the figure as an SVG element for a page: unique ids, colours as CSS variables.

    Args:
      figure: drawn with `halfway.plots`.
      prefix: put before every id, so that two figures of one page never share one.
      label: what a screen reader says.
    """
    with plots.plain_symbols(figure):
        svg = _svg(figure, transparent=True)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'\b(?:d|x|y)="[^"]*"', lambda match: _rounded(match[0]), svg)
    for color, name in _VARIABLES.items():
        svg = re.sub(re.escape(color), f"var({name})", svg, flags=re.I)
    svg = re.sub(r"font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"(?<=>)[^<>]+(?=</text>)", lambda m: plots.SYMBOL.sub(_SUBSCRIPT, m[0]), svg)
    width = float(figure.get_figwidth()) * 96 * 1.1  # text as large as the captions below it
    return re.sub(
        r'<svg width="[^"]*" height="[^"]*"',
        f'<svg role="img" aria-label="{escape(label)}" style="width:{width:.0f}px"',
        svg,
        count=1,
    )


def _rounded(attribute: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", attribute)


def _svg(figure: MplFigure, *, transparent: bool) -> str:
    buffer = io.StringIO()
    with plots.style(), matplotlib.rc_context({"svg.hashsalt": "halfway"}):
        # Neither date nor version: the same figure gives the same bytes.
        none = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(buffer, format="svg", transparent=transparent, metadata=none)
    return buffer.getvalue()


def save_figures(folder: str | os.PathLike[str], figures: Sequence[Figure]) -> list[Path]:
    """Writes every figure as PNG (200 dpi) and SVG, each whole or not at all; returns the paths.

    Args:
      folder: made where it does not exist.
      figures: their names become the names of the files.

    Raises:
      ValueError: two figures of the same name, or a name with other than letters, digits, _ - .
    """
    names = [item.name for item in figures]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or names.count(name) > 1:
            raise ValueError(f"figure name {name!r}: letters, digits, _ - . and only once")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for item in figures:
        buffer = io.BytesIO()
        with plots.style():
            item.figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        for ending, data in (
            ("png", buffer.getvalue()),
            ("svg", _svg(item.figure, transparent=False).encode()),
        ):
            paths.append(folder / f"{item.name}.{ending}")
            write_whole(paths[-1], data)
    return paths
