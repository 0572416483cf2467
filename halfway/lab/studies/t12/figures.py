"""The figure of T12: partial rank correlations with their nulls."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    INK,
    draw_interval,
    new_figure,
    styled,
    wrapped,
)


@styled
def partial_correlations(
    estimate: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    null: ArrayLike,
    *,
    names: Sequence[str],
    expected: Sequence[int],
    alone: ArrayLike | None = None,
    xlabel: str = "partial rank correlation with the outcome",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a row for each predictor: estimate, interval, and what chance gives.

    Grey: the central 95 % of the permutation null, and its density.

    Args:
      estimate, low, high: `[Q]`.
      null: `[Q, R]`.
      names: `[Q]`.
      expected: `[Q]` signs, said at the right or left end of a row.
      alone: `[Q]` correlations with nothing partialled out, open circles, or None.
      xlabel: symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the lengths differ.
    """
    middle, low, high = (np.asarray(v, float) for v in (estimate, low, high))
    null = np.asarray(null, float)
    if not len(middle) == len(null) == len(names) == len(expected):
        raise ValueError(
            f"partial_correlations: {len(middle)} estimates, {len(null)} nulls, {len(names)} names "
            f"and {len(expected)} signs"
        )
    ax = new_figure(5.6, 1.1 + 0.72 * len(names)).subplots() if ax is None else ax
    ax.set(xlim=(-1.04, 1.04), ylim=(-0.6, len(names) - 0.3))
    ax.axvline(0, color=INK, lw=1, ls=(0, (4, 3)))
    edges = np.linspace(-1, 1, 121)
    for index, sign in enumerate(expected):
        row = len(names) - 1 - index
        chance = null[index][np.isfinite(null[index])]
        if chance.size:
            height = np.histogram(chance, edges)[0]
            height = 0.42 * height / height.max()
            ax.fill_between(
                edges[:-1] + np.diff(edges) / 2, row, row + height, color=GREY, alpha=0.35, lw=0
            )
            ends = np.quantile(chance, [0.025, 0.975])
            ax.plot(ends, [row, row], color=GREY, lw=5, alpha=0.6, solid_capstyle="butt")
        if alone is not None:
            ax.plot(np.asarray(alone, float)[index], row, "o", mec=BLUE, mfc="none", ms=7, zorder=3)
        if np.isfinite(middle[index]):
            draw_interval(ax, middle[index], low[index], high[index], row, BLUE, "D", 7)
        ax.text(
            0.98 * sign,
            row + 0.3,
            "expected →" if sign > 0 else "← expected",
            color=INK,
            fontsize=8,
            ha="left" if sign < 0 else "right",
            va="center",
        )
    ax.set_yticks(range(len(names)), [wrapped(str(name), 24) for name in reversed(names)])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xticks=np.linspace(-1, 1, 5), xlabel=wrapped(xlabel, 56))
    return ax
