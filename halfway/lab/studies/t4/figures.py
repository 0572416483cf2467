"""A figure about what comes first: curves along training, each as a part of its gain."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    COLORS,
    GREY,
    INK,
    check_colors,
    label_ends,
    mean_interval,
    new_figure,
    styled,
    wrapped,
)


@styled
def early_gains(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    reference: str,
    threshold: float,
    xlabel: str = "training steps",
    ylabel: str = "part of the mean gain from step 0 to the last",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of curves from 0 at the first step to 1 at the last, and where one starts.

    Lines are means over pairs, bands their 95 % t intervals; all are divided by the mean gain of
    the last step. A vertical line marks the last step at and before which the reference is below
    the threshold.

    Args:
      steps: `[T]`, ascending.
      curves: `{name: [P, T]}`, at most three besides the reference; pairs with a value that is not
        finite leave. A curve without a mean gain is not drawn.
      reference: the curve that the others are compared with, in grey.
      threshold: the part of its gain at which the reference has started.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if no pair is finite.
    """
    check_colors("early_gains", len(set(curves) - {reference}))
    x = np.asarray(steps, float)
    values = {name: np.asarray(curve, float) for name, curve in curves.items()}
    finite = np.all([np.isfinite(curve).all(-1) for curve in values.values()], 0)
    if not finite.any():
        raise ValueError("early_gains: no pair with finite values, nothing to draw")
    ax = new_figure(4.8, 3.6).subplots() if ax is None else ax
    colors, ends = iter(COLORS), []
    for name, curve in values.items():
        color = GREY if name == reference else next(colors)
        gain = (curve - curve[:, :1])[finite]
        whole = gain[:, -1].mean()
        if not whole > 0:
            continue
        middle, low, high = np.array([mean_interval(column) for column in gain.T / whole]).T
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(x, middle, color=color)
        # At the last step all are 1: labels stand in the order of what they have in the middle.
        ends.append((float(middle[len(x) // 4]), wrapped(name, 18), color))
        if name == reference:
            place = int((middle >= threshold).argmax()) - 1
            ax.axvline(x[place], color=INK, lw=1, ls=(0, (4, 3)))
            ax.annotate("t*", (x[place], 1.02), (4, 0), textcoords="offset points", fontsize=9)
    ax.axhline(threshold, color=INK, lw=0.8, ls=(0, (1.5, 2)))
    ax.set(xlim=(x[0], x[-1]), xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    label_ends(ax, float(x[-1]), ends, 0.15)
    return ax
