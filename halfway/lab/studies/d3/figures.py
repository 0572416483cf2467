"""The figure of D3: how often attacks on surrogates fool targets."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from halfway.plots.style import COLORS, INK, MARKERS, PAPER, clip_ends, new_figure, styled


@styled
def ways(
    rates: Mapping[str, Mapping[str, tuple[float, float, float]]], *, ax: Axes | None = None
) -> Axes:
    """Returns axes of success rates, a row an attack, a mark an architecture of the targets.

    Args:
      rates: by architecture and name of the attack: the rate with the ends of its 95 % interval.
      ax: where to draw, or None for a new figure.
    """
    names = list(next(iter(rates.values())))
    ax = new_figure(6.0, 0.9 + 0.3 * len(names)).subplots() if ax is None else ax
    for place, (architecture, by_name) in enumerate(rates.items()):
        middle, low, high = np.array([by_name[name] for name in names], float).T
        rows = np.arange(len(names)) + 0.22 * (place - (len(rates) - 1) / 2)
        ends = np.abs(clip_ends(np.stack([low, high])) - middle)
        color = (*COLORS, INK)[place % 4]
        ax.errorbar(
            100 * middle,
            rows,
            xerr=100 * ends,
            fmt=MARKERS[place % len(MARKERS)],
            color=color,
            ms=5.5,
            mec=PAPER,
            mew=0.5,
            elinewidth=1.1,
            label=f"to {architecture}",
        )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("success on the target, % of the images that it has right")
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return ax
