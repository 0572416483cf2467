"""A figure about what comes first: curves along training, compared where half is done."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    COLORS,
    GREY,
    INK,
    MARKERS,
    PAPER,
    check_colors,
    label_ends,
    mean_interval,
    new_figure,
    styled,
    wrapped,
)


@styled
def half_ways(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    half_steps: Mapping[str, ArrayLike],
    *,
    reference: str = "",
    xlabel: str = "training steps",
    ylabel: str = "change since step 0",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of curves counted from their first value, marked where half is done.

    Lines are means over pairs, bands their 95 % t intervals. A mark stands at the mean step at
    which a pair's curve is half-way, with its interval, and is joined to the axis below.

    Args:
      steps: `[T]`, ascending.
      curves: `{name: [P, T]}`, at most three besides the reference; pairs with a value that is not
        finite leave.
      half_steps: `{name: [P]}`, NaN where a pair has none.
      reference: the curve that the others are compared with, in grey.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if no pair is finite.
    """
    check_colors("half_ways", len(set(curves) - {reference}))
    x = np.asarray(steps, float)
    values = {name: np.asarray(curve, float) for name, curve in curves.items()}
    finite = np.all([np.isfinite(curve).all(-1) for curve in values.values()], 0)
    if not finite.any():
        raise ValueError("half_ways: no pair with finite values, nothing to draw")
    ax = new_figure(4.8, 3.6).subplots() if ax is None else ax
    styles = iter(zip(COLORS, MARKERS[1:], strict=False))
    ends, marks = [], []
    for name, curve in values.items():
        color, marker = (GREY, MARKERS[0]) if name == reference else next(styles)
        gain = (curve - curve[:, :1])[finite]
        middle, low, high = np.array([mean_interval(column) for column in gain.T]).T
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(x, middle, color=color)
        ends.append((float(middle[-1]), wrapped(name, 18), color))
        marks.append((mean_interval(half_steps[name]), middle[-1] / 2, color, marker))
    ax.axhline(0, color=INK, lw=0.8)
    for (step, *interval), half, color, marker in marks:
        if np.isfinite(step):
            ax.plot([step, step], [0, half], color=color, lw=1.2, ls=(0, (4, 3)))
            ax.plot(interval, [half, half], color=color, lw=2.2)
            ax.plot(step, half, marker, color=color, mec=PAPER, mew=0.8, ms=7, zorder=4)
    ax.set(xlim=(x[0], x[-1]), xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    label_ends(ax, float(x[-1]), ends, 0.15)
    return ax
