"""The frame of every page: one self-contained HTML file, no script, no network."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from halfway.lab.report.elements import text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, heading: str, sections: Mapping[str, tuple[str, str]]) -> str:
    """Returns a page with its sections and links to them.

    Args:
      title: of the window.
      heading: the one heading above the sections.
      sections: anchor to (title, body as HTML), in order.
    """
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{name}">{text(words)}</a>' for name, (words, _) in sections.items())
    bodies = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{text(words)}</h2>\n{body}\n</section>'
        for name, (words, body) in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body>
<header><p class="name">halfway</p><h1>{escape(heading)}</h1>
<nav aria-label="Sections">{links}</nav></header>
<main>
{bodies}
</main>
</body>
</html>
"""
