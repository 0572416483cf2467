"""The figure of G3: rank correlations of many measures with one outcome."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import BLUE, GREY, INK, PAPER, clip_ends, new_figure, styled, symbols


@styled
def rank_contest(
    tau: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    names: Sequence[str],
    granulated: ArrayLike | None = None,
    highlighted: Sequence[int] = (0,),
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a row for each measure, the largest |τ_K| on top: estimate and interval.

    Args:
      tau, low, high: `[M]` rank correlations and their intervals, in [-1, 1]; NaN where undefined.
      names: `[M]`.
      granulated: `[M]` another correlation of each, open circles, or None.
      highlighted: indices of the measures on trial: the first filled blue, others blue and open;
        all others are grey.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the lengths differ.
    """
    values = np.array([np.asarray(v, float) for v in (tau, low, high)])
    if values.shape != (3, len(names)):
        raise ValueError(f"rank_contest: {values.shape[1:]} values of {len(names)} names")
    if ax is None:
        ax = new_figure(5.4, 0.8 + 0.29 * len(names)).subplots()
    circles = None if granulated is None else np.asarray(granulated, float)
    order = np.argsort(np.abs(np.nan_to_num(values[0])), kind="stable")
    ax.axvline(0, color=INK, lw=1, ls=(0, (4, 3)))
    for row, index in enumerate(order):
        place = list(highlighted).index(index) if index in highlighted else -1
        color = BLUE if place >= 0 else GREY
        ends = clip_ends(values[1:, index])
        if np.isfinite(values[0, index]):
            ax.plot(ends, [row, row], color=color, lw=2.2 if place == 0 else 1.6)
            ax.plot(
                values[0, index],
                row,
                "D" if place >= 0 else "s",
                color=color,
                mfc=PAPER if place > 0 else color,
                ms=7 if place >= 0 else 5,
                zorder=4,
            )
        if circles is not None:
            ax.plot(circles[index], row, "o", mec=color, mfc="none", ms=6, zorder=3)
    ax.set_yticks(range(len(order)), [symbols(str(names[index])) for index in order])
    for label, index in zip(ax.get_yticklabels(), order, strict=True):
        label.set_color(BLUE if index in highlighted else INK)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(
        xlim=(-1.04, 1.04),
        xticks=np.linspace(-1, 1, 5),
        ylim=(-0.7, len(order) - 0.3),
        xlabel=symbols("τ_K, rank correlation with the gap in error, within ρ"),
    )
    return ax
