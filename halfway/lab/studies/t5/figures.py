"""A figure of transfer against the share of examples that two halves have in common."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import BLUE, GREY, PAPER, clip_ends, new_figure, styled, wrapped


@styled
def overlap_curve(
    overlaps: ArrayLike,
    coefficients: ArrayLike,
    *,
    share: float,
    threshold: float,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with M_x at every overlap, a fitted curve, the line and the threshold.

    The curves are M_x(0) + (M_x(1) − M_x(0)) (a ω + (1 − a) ω²): the fitted one in colour, in grey
    that of a = 1, on which every shared example adds the same, and that of the threshold.

    Args:
      overlaps: `[T]`, ω ascending from 0 to 1.
      coefficients: `[T, 3]`, M_x with the ends of its interval.
      share: a as fitted.
      threshold: a that the claim must exceed.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit.
    """
    x, values = np.asarray(overlaps, float), np.asarray(coefficients, float)
    if values.shape != (*x.shape, 3):
        raise ValueError(f"overlap_curve: coefficients {values.shape}, ({len(x)}, 3) are needed")
    ax = new_figure(4.8, 3.6).subplots() if ax is None else ax
    grid = np.linspace(x[0], x[-1], 101)
    start, end = values[0, 0], values[-1, 0]
    dashed, dotted = (0, (5, 3)), (0, (1.5, 2))
    lines = (
        ("one by one (a = 1)", 1.0, GREY, dashed),
        (f"threshold (a = {threshold:g})", threshold, GREY, dotted),
        (f"fitted (a = {share:.2f})", share, BLUE, "-"),
    )
    for label, linear, color, dash in lines:
        curve = start + (end - start) * (linear * grid + (1 - linear) * grid**2)
        ax.plot(grid, curve, color=color, ls=dash, lw=1.5, label=label)
    sides = np.abs(clip_ends(values[:, 1:]) - values[:, :1]).T
    low, high = ax.get_ylim()
    marks = {"color": BLUE, "mec": PAPER, "ms": 7, "elinewidth": 1.6}
    ax.errorbar(x, values[:, 0], sides, fmt="o", label="measured", **marks)
    finite = values[np.isfinite(values)]
    low, high = min(low, finite.min()), max(high, finite.max())
    pad = 0.05 * (high - low) or 0.1
    ax.set(
        xticks=x,
        ylim=(low - pad, high + pad),
        xlabel=wrapped("ω, share of a half's examples that the other half holds too", 42),
        ylabel=wrapped("M_x, share of the attack's rise that the other model sees", 34),
    )
    ax.legend(frameon=False, fontsize=9, loc="best")
    return ax
