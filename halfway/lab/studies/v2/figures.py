"""The figure of the second law: alignment against the number of surrogates."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    GRID,
    INK,
    PAPER,
    clip_ends,
    label_ends,
    new_figure,
    styled,
    wrapped,
)


@styled
def alignment(
    numbers: ArrayLike,
    values: ArrayLike,
    *,
    law: tuple[ArrayLike, ArrayLike],
    limit: float,
    margin: float,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with alignment over the number k of surrogates, and the law with its margin.

    Args:
      numbers: `[T]`, k, on a logarithmic axis.
      values: `[T, 3]` estimate, low, high.
      law: (k `[G]`, alignment `[G]`), the line.
      limit: of the law for many surrogates, a dashed line.
      margin: half the width of the grey band around the law.
      ax: where to draw, or None for a new figure.
    """
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    k, (middle, low, high) = np.asarray(numbers, float), np.asarray(values, float).T
    x, line = (np.asarray(part, float) for part in law)
    ax.fill_between(x, line - margin, line + margin, color=GRID, alpha=0.55, lw=0)
    ax.axhline(limit, color=GREY, lw=1.2, ls=(0, (5, 3)))
    ax.plot(x, line, color=GREY, lw=1.8)
    spread = np.maximum([middle - clip_ends(low), clip_ends(high) - middle], 0)
    style = {"ms": 6, "color": BLUE, "mec": PAPER, "mew": 0.6, "lw": 0}
    ax.errorbar(k, middle, spread, fmt="o", elinewidth=1.6, ecolor=INK, zorder=3, **style)
    ax.set_xscale("log")
    ax.set_xticks(k, [f"{value:g}" for value in k])
    ax.minorticks_off()
    ax.set_xlabel("k, number of surrogates")
    ax.set_ylabel(wrapped("alignment of k surrogates' mean gradient with a target's", 32))
    shown = np.concatenate([middle, low, high, line, [limit]])
    shown = shown[np.isfinite(shown) & (np.abs(shown) < 1e6)]
    pad = margin + 0.08 * (shown.max(initial=0.0) - shown.min(initial=1.0))
    if shown.size:
        ax.set_ylim(shown.min() - pad, shown.max() + pad)
    label_ends(ax, float(x[-1]), [(limit, "limit", GREY), (float(line[-1]), "law", GREY)], 0.09)
    return ax
