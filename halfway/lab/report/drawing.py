"""Figures as files, and as SVG inside a page, where their colours follow light and dark.

The same figure gives the same bytes.
"""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import markupsafe
import matplotlib
from matplotlib.figure import Figure as MplFigure

from halfway import plots
from halfway.lab.study.protocol import Figure
from halfway.storage import write_whole

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
_DOTS = 96 * 1.1
"""Pixels of an inch: text as large as the captions below it."""
_SUBSCRIPT = (  # the zero-width space carries the shift back to the line
    r'<tspan font-style="italic">\1</tspan><tspan dy=".3em" font-size="75%">\2</tspan>'
    r'<tspan dy="-.225em">&#8203;</tspan>'
)


class Drawing(NamedTuple):
    """A figure inside a page.

    Attributes:
      body: elements of an SVG image.
      view_box: its coordinates.
      width: in pixels.
      wide: whether it has a row to itself.
    """

    body: markupsafe.Markup
    view_box: str
    width: int
    wide: bool


def inline(figure: Figure, prefix: str) -> Drawing:
    """Returns a figure for a page: unique ids, colours as CSS variables.

    Args:
      figure: drawn with `halfway.plots`.
      prefix: put before every id, so that two figures of one page never share one.
    """
    with plots.plain_symbols(figure.figure):
        svg = _svg(figure.figure, transparent=True)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'\b(?:d|x|y)="[^"]*"', lambda match: _rounded(match[0]), svg)
    for color, name in _VARIABLES.items():
        svg = re.sub(re.escape(color), f"var({name})", svg, flags=re.I)
    svg = re.sub(r"font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"(?<=>)[^<>]+(?=</text>)", lambda m: plots.SYMBOL.sub(_SUBSCRIPT, m[0]), svg)
    whole = re.match(r'<svg[^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>', svg, re.S)
    assert whole is not None
    width = float(figure.figure.get_figwidth())
    return Drawing(
        markupsafe.Markup(whole[2]),  # matplotlib has escaped what was drawn
        whole[1],
        round(width * _DOTS),
        width > _WIDE,
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


def png(figure: MplFigure, *, dpi: int = 200) -> bytes:
    """Returns the content of a PNG file; the same figure gives the same bytes.

    Args:
      figure: drawn with `halfway.plots`.
      dpi: dots per inch.
    """
    buffer = io.BytesIO()
    with plots.style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save(folder: str | os.PathLike[str], figures: Sequence[Figure]) -> list[Path]:
    """Writes every figure as PNG (200 dpi) and SVG, each whole or not at all; returns the paths.

    Args:
      folder: made where it does not exist.
      figures: their names become the names of the files.

    Raises:
      ValueError: two figures of the same name, or a name with other than letters, digits, _ - .
    """
    names = [figure.name for figure in figures]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or names.count(name) > 1:
            raise ValueError(f"figure name {name!r}: letters, digits, _ - . and only once")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in figures:
        for ending, data in (
            ("png", png(figure.figure)),
            ("svg", _svg(figure.figure, transparent=False).encode()),
        ):
            paths.append(folder / f"{figure.name}.{ending}")
            write_whole(paths[-1], data)
    return paths
