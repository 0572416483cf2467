"""Plain text in columns, for a terminal."""

from collections.abc import Sequence

WIDTH = 100
"""Columns that a terminal is expected to have."""


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns one line a row, its cells padded to the widest of their column.

    Args:
      rows: of equally many cells.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
