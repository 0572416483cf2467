"""The figure of D1: how far disagreement and error differ against what bounds it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from halfway.plots.style import (
    BLUE,
    INK,
    MARKERS,
    PAPER,
    clip_ends,
    new_figure,
    styled,
)


@styled
def against_bound(
    points: Mapping[str, Mapping[str, tuple[float, float, float, float]]],
    *,
    colors: Sequence[str] = (BLUE,),
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of disagreement minus error against its bound, a mark a condition.

    Args:
      points: by name of the data set and of the condition: the difference with the ends of its 95 %
        interval, and the calibration error. A data set without a name gets no legend.
      colors: of the data sets.
      ax: where to draw, or None for a new figure.
    """
    ax = new_figure(5.0, 4.2).subplots() if ax is None else ax
    highest = farthest = 0.0
    for place, (name, conditions) in enumerate(points.items()):
        values = np.array(list(conditions.values()), float)
        middle, low, high, bound = values.T
        ends = np.abs(clip_ends(np.stack([low, high])) - middle)
        ax.errorbar(
            bound,
            middle,
            ends,
            fmt=MARKERS[place % len(MARKERS)],
            color=colors[place % len(colors)],
            ms=5,
            mec=PAPER,
            mew=0.5,
            elinewidth=0.8,
            label=name or None,
        )
        highest = max(highest, float(np.nanmax(bound)))
        farthest = max(farthest, float(np.nanmax(np.abs([low, high]))))
    edge, top = 1.08 * highest, min(1.08 * highest, 1.6 * farthest)
    for sign in (1, -1):
        ax.plot([0.0, edge], [0.0, sign * edge], color=INK, lw=1, ls=(0, (4, 3)))
    ax.axhline(0, color=INK, lw=0.8)
    ax.set(xlim=(0.0, edge), ylim=(-top, top))
    ax.set_xlabel("class-aggregated calibration error of the vote")
    ax.set_ylabel("disagreement minus error")
    ax.annotate(
        "the bound",
        (0.9 * top, 0.9 * top),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
    )
    if any(points):
        ax.legend(frameon=False, fontsize=9, loc="lower left")
    return ax
