"""The figure of T3: a measure against another, a panel for each stratum."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    COLORS,
    GREY,
    MARKERS,
    PAPER,
    check_colors,
    clip_ends,
    new_figure,
    styled,
    symbols,
    wrapped,
)


@styled
def scatter_strata(
    x: ArrayLike,
    y: ArrayLike,
    strata: ArrayLike,
    groups: Sequence[str],
    *,
    titles: Sequence[str],
    xlabel: str,
    ylabel: str,
    y_interval: ArrayLike | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes `[S]`, one for each stratum: a point a condition, coloured by group.

    Panels have scales of their own: what is in different panels is not to be compared.

    Args:
      x, y: `[N]`.
      strata: `[N]`; panels in ascending order.
      groups: `[N]` names, at most three, the first colour to the first that comes.
      titles: `[S]`.
      xlabel, ylabel: symbol and words.
      y_interval: `[2, N]` lower and upper ends, grey, or None.
      ax: `[S]`, or None for a new figure.

    Raises:
      ValueError: if there are not as many titles as strata, or too many groups.
    """
    x, y, strata = np.asarray(x, float), np.asarray(y, float), np.asarray(strata)
    levels, names = np.unique(strata), list(dict.fromkeys(groups))
    check_colors("scatter_strata", len(names))
    if len(titles) != len(levels):
        raise ValueError(f"scatter_strata: {len(titles)} titles of {len(levels)} strata")
    if ax is None:
        ax = new_figure(3.4 * len(levels) + 0.6, 3.5).subplots(1, len(levels), squeeze=False)[0]
    axes = np.asarray(ax, object)
    for panel, level, title in zip(axes, levels, titles, strict=True):
        inside = strata == level
        if y_interval is not None:
            ends = np.abs(clip_ends(y_interval)[:, inside] - y[inside])
            panel.errorbar(
                x[inside], y[inside], ends, fmt="none", ecolor=GREY, elinewidth=0.8, zorder=1
            )
        for name, color, marker in zip(names, COLORS, MARKERS, strict=False):
            mask = inside & np.array([group == name for group in groups])
            panel.scatter(
                x[mask],
                y[mask],
                c=color,
                s=26,
                marker=marker,
                ec=PAPER,
                lw=0.5,
                zorder=2,
                label=symbols(name),
            )
        panel.set_title(symbols(title), fontsize=10, loc="left")
        panel.set_xlabel(wrapped(xlabel, 38))
        panel.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel(wrapped(ylabel, 36))
    axes[0].legend(frameon=False, fontsize=9, loc="best", handletextpad=0.1, borderpad=0)
    return axes
