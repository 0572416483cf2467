"""The figure of G3: how much less a measure errs than each of its rivals."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import BLUE, GREY, INK, clip_ends, new_figure, styled, symbols, wrapped


@styled
def leads(
    means: Mapping[str, tuple[float, float, float]],
    by_factor: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a row for each rival: the lead over it, and that in each factor.

    Args:
      means: estimate, low and high of the mean over factors, by rival.
      by_factor: `[F]` of each rival; grey dots.
      ax: where to draw, or None for a new figure.
    """
    if ax is None:
        ax = new_figure(6.0, 0.9 + 0.3 * len(means)).subplots()
    order = sorted(means, key=lambda name: means[name][0])
    for row, name in enumerate(order):
        values = np.asarray(by_factor[name], float)
        ax.plot(values, np.full(values.shape, row), "o", color=GREY, ms=4, mfc="none", zorder=1)
        middle, low, high = means[name]
        ax.plot(clip_ends(np.array([low, high])), [row, row], color=BLUE, lw=2, zorder=2)
        ax.plot(middle, row, "D", color=BLUE, ms=6, zorder=3)
    ax.axvline(0, color=INK, lw=1, ls=(0, (4, 3)))
    ax.set_yticks(range(len(order)), [symbols(name) for name in order])
    ax.set_xlim(-1.02, 1.02)
    ax.set_xlabel(wrapped("lead of coherence: how much less it errs than the rival, −1 to 1", 42))
    return ax
