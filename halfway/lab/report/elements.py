"""Elements of the report page: words, marks, tables and figures as HTML."""

import dataclasses
import re
from collections.abc import Sequence
from html import escape

from halfway.plots import SYMBOL

_GLYPHS = {
    "supported": '<circle cx="8" cy="8" r="7" fill="currentColor"/>'
    '<path d="M4.5 8.2l2.4 2.5 4.6-5.2" fill="none" stroke="var(--paper)" stroke-width="2"/>',
    "refuted": '<rect x="1.5" y="1.5" width="13" height="13" fill="currentColor"/>'
    '<path d="M5 5l6 6M11 5l-6 6" fill="none" stroke="var(--paper)" stroke-width="2"/>',
    "inconclusive": '<path d="M8 1L15 8L8 15L1 8Z" fill="none" stroke="currentColor" '
    'stroke-width="1.6"/><path d="M8 1L8 15L1 8Z" fill="currentColor"/>',
    "not run": '<circle cx="8" cy="8" r="6.5" fill="none" stroke="currentColor" '
    'stroke-width="1.5" stroke-dasharray="2.4 2"/>',
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text: the first column names the row; every row is as long as `columns`."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row of {len(row)} cells, {len(self.columns)} needed"
                )


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure as inline SVG with its caption and its numbers; a wide one has a row to itself."""

    caption: str
    svg: str
    wide: bool = False
    table: Table | None = None


def text(words: str) -> str:
    """Returns `words` escaped, with `M_θ` as a subscript and `10^−5` as a power."""
    marked = SYMBOL.sub(r"<i>\1</i><sub>\2</sub>", escape(words))
    return re.sub(r"10\^(−?\d+)", r"10<sup>\1</sup>", marked)


def glyph(state: str) -> str:
    """Returns the mark of a state, which differs in shape as well as in colour."""
    return f'<svg class="glyph" viewBox="0 0 16 16" aria-hidden="true">{_GLYPHS[state]}</svg>'


def css_class(state: str) -> str:
    """Returns a state as the name of a CSS class."""
    return state.replace(" ", "-")


def listing(items: Sequence[str]) -> str:
    """Returns a list of items that are HTML already."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def duration(seconds: float) -> str:
    """Returns a time in seconds, or in minutes and seconds from two minutes on."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes >= 2 else f"{round(seconds)} s"


def figure(drawing: Drawing) -> str:
    """Returns a drawing with its caption; wide ones scroll inside their own box.

    Its table, where it has one, is folded away below it.
    """
    kind = ' class="wide"' if drawing.wide else ""
    one, numbers = drawing.table, ""
    if one is not None:
        numbers = (
            f"<details><summary>{text(one.title)}, in numbers</summary><p>{text(one.caption)}</p>"
            f"{table(one.columns, one.rows, one.title)}</details>"
        )
    return (
        f'<figure{kind}><div class="scroll" tabindex="0">{drawing.svg}</div>'
        f"<figcaption>{text(drawing.caption)}</figcaption>{numbers}</figure>"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """Returns a table that scrolls sideways in its own box; columns of numbers to the right."""
    numeric = [
        all(re.match(r"[−∞–+<\d.]|undefined", row[index]) for row in rows) and bool(rows)
        for index in range(len(columns))
    ]
    longest = [max((len(row[index]) for row in rows), default=0) for index in range(len(columns))]
    kinds = [
        ' class="number"' if number else ' class="long"' if length > 28 else ""
        for number, length in zip(numeric, longest, strict=True)
    ]
    head = "".join(
        f'<th scope="col"{kind}>{text(name)}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    body = []
    for row in rows:
        cells = [f'<th scope="row">{text(row[0])}</th>']
        cells += [
            f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
