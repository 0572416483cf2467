"""The figure of the identities and laws: each residual in units of its margin."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GRID,
    INK,
    VERDICT_MARKS,
    draw_interval,
    new_figure,
    styled,
    symbols,
)

_VIEW = 1.6
"""Half the width of the axis, in margins, where no estimate is farther out."""
_ROW_HEIGHT = 0.24
"""Of a label and the space around it, in inches."""


@styled
def residuals(
    names: Sequence[str],
    values: ArrayLike,
    *,
    held: Sequence[bool],
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a row for each residual: estimate and interval in units of its margin.

    Args:
      names: R labels, from the top down.
      values: `[R, 3]` estimate, low, high; an end outside the view becomes an arrow.
      held: whether each is shown to be within its margin: blue squares, else red crosses.
      ax: where to draw, or None for a new figure.
    """
    values = np.asarray(values, float)
    ax = new_figure(4.8, 0.9 + _ROW_HEIGHT * len(names)).subplots() if ax is None else ax
    view = max(_VIEW, 1.1 * np.abs(values[:, 0]).max())
    ax.set_xlim(-view, view)
    ax.axvspan(-1, 1, color=GRID, alpha=0.55, lw=0)
    ax.axvline(0, color=INK, lw=0.8)
    for row, ((estimate, low, high), within) in enumerate(zip(values, held, strict=True)):
        color = VERDICT_MARKS["verified" if within else "off"][0]
        ends = low if low >= -view else -np.inf, high if high <= view else np.inf
        draw_interval(ax, estimate, *ends, row, color, "s" if color == BLUE else "X", 6)
    ax.set_yticks(range(len(names)), [symbols(name) for name in names])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("residual, in units of its margin")
    return ax
