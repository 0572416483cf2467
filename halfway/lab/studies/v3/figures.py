"""The figure of fresh batches: κ along the steps."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    GRID,
    INK,
    clip_ends,
    label_ends,
    new_figure,
    styled,
    wrapped,
)


@styled
def along_steps(
    steps: ArrayLike, kappa: ArrayLike, *, margin: float, ax: Axes | None = None
) -> Axes:
    """Returns axes with κ in parts of the steps, its interval, and the margins around 0.

    Args:
      steps: `[T]`, the middles of the parts.
      kappa: `[T, 3]` estimate, low, high.
      margin: half the width of the grey band around 0.
      ax: where to draw, or None for a new figure.
    """
    ax = new_figure(4.8, 3.2).subplots() if ax is None else ax
    x, (middle, low, high) = np.asarray(steps, float), np.asarray(kappa, float).T
    ax.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0)
    ax.axhline(0, color=INK, lw=0.8)
    ax.fill_between(x, clip_ends(low), clip_ends(high), color=BLUE, alpha=0.2, lw=0)
    ax.plot(x, middle, color=BLUE, marker="o", ms=5)
    ax.set_xlabel("steps on fresh batches")
    ax.set_ylabel(wrapped("κ, share of the gradient's noise used up", 28))
    ax.margins(y=0.1)
    label_ends(ax, float(x[-1]), [(margin, f"± {margin:g}", GREY)], 0.08)
    return ax
