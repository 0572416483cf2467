"""Pages: a template and what it is filled with, to one self-contained HTML file.

Words and marks of a page are in `templates/`; what is filled in is escaped there.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from halfway import storage
from halfway.lab.config import user
from halfway.lab.report import drawing
from halfway.lab.study import wording
from halfway.lab.study.protocol import Figure, Table
from halfway.plots import SYMBOL

_LONG = 28
"""Characters, from which on a cell of a table needs width."""


@dataclasses.dataclass(frozen=True)
class Page:
    """One HTML file, with its figures beside it.

    Attributes:
      name: of the file and of its template: "report" is written to report.html.
      title: of the window.
      heading: the one heading above the sections.
      content: what the template shows, by name.
      figures: saved as PNG and SVG in the folder `figures` beside the page.
    """

    name: str
    title: str
    heading: str
    content: Mapping[str, Any]
    figures: Sequence[Figure] = ()


class Piece(NamedTuple):
    """A piece of text: "plain", a "symbol" with an index, or a "power" of ten."""

    kind: str
    text: str
    index: str = ""


def pieces(text: str) -> list[Piece]:
    """Returns a text cut at its symbols with subscripts and at its powers of ten.

    Args:
      text: plain, with symbols as `M_θ` and powers as `10^−5`.

    Examples:
      >>> pieces("M_θ of 10^−5")
      [Piece(kind='symbol', text='M', index='θ'), Piece(kind='plain', text=' of ', index=''), \
Piece(kind='power', text='10', index='−5')]
    """
    parts, end, text = [], 0, str(text)  # what a template lacks raises here
    matches = [(match, "symbol") for match in SYMBOL.finditer(text)]
    matches += [(match, "power") for match in re.finditer(r"(10)\^(−?\d+)", text)]
    for match, kind in sorted(matches, key=lambda entry: entry[0].start()):
        if match.start() > end:
            parts.append(Piece("plain", text[end : match.start()]))
        parts.append(Piece(kind, match[1], match[2]))
        end = match.end()
    return parts + ([Piece("plain", text[end:])] if end < len(text) else [])


def column_kinds(table: Table) -> list[str]:
    """Returns "number", "long" or nothing for each column of a table.

    Args:
      table: to be shown.
    """
    kinds = []
    for index in range(len(table.columns)):
        cells = [row[index] for row in table.rows]
        numeric = bool(cells) and all(re.match(r"[−∞–+<\d.]|undefined", cell) for cell in cells)
        long = max(map(len, cells), default=0) > _LONG
        kinds.append("number" if numeric else "long" if long else "")
    return kinds


def settings_table(facts: Mapping[str, Any]) -> Table:
    """Returns what a page was made with as a table; what was not set is left out.

    Args:
      facts: values by name; of a list each item is shown.
    """
    rows = [
        [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
        for name, value in facts.items()
        if value is not None
    ]
    return Table("Facts", "", ["What", "Value"], rows)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halfway.lab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "pieces": pieces,
        "column_kinds": column_kinds,
        "estimate": lambda part: wording.format_estimate(part.estimate, part.low, part.high),
        "evidence": wording.EVIDENCE.__getitem__,
        "rule": wording.format_rule,
        "sentence": wording.sentence,
    }
    return environment


def render(page: Page) -> str:
    """Returns the HTML of a page: no script, no network, the same bytes each time.

    Args:
      page: what is shown.
    """
    number = itertools.count(1)
    draw = functools.partial(_draw, number)
    template = _environment().get_template(f"{page.name}.html.jinja")
    return template.render(page.content, title=page.title, heading=page.heading, draw=draw) + "\n"


def _draw(number: Iterator[int], figure: Figure) -> drawing.Drawing:
    return drawing.inline(figure, f"f{next(number)}")


def write(
    folder: Path,
    page: Page,
    files: Mapping[str, Callable[[Path], None]] | None = None,
    *,
    resumes: bool = False,
) -> Path:
    """Writes a page, its figures and what else belongs to it; each file whole or not at all.

    Args:
      folder: made where it does not exist.
      page: what is shown.
      files: names to what writes the file at a path.
      resumes: whether the same command goes on from what is there; see `user.writing`.

    Returns:
      The path of the page.

    Raises:
      UserError: if the folder cannot be written.
    """
    source, path = render(page), folder / f"{page.name}.html"
    with user.writing(folder, resumes=resumes):
        folder.mkdir(parents=True, exist_ok=True)
        for name, write_file in (files or {}).items():
            write_file(folder / name)
        if page.figures:
            drawing.save(folder / "figures", page.figures)
        storage.write_whole(path, source.encode())
    return path
