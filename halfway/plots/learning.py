"""Figures about learning: landscapes along training."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    VERMILLION,
    label_ends,
    mean_interval,
    new_figure,
    styled,
    wrapped,
)


@styled
def walks(
    steps: ArrayLike,
    followed: ArrayLike,
    other: ArrayLike,
    *,
    names: tuple[str, str] = ("own half", "other half"),
    start: str = "best constant predictor",
    xlabel: str = "training steps",
    ylabel: str = "error",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with both landscapes along a walk that follows the first of them.

    Lines are means over pairs, bands their 95 % t intervals. The two arrows at the end are the
    descents from the start, in each one's own colour: the coefficient M is the length of the second
    over that of the first. Pairs with a value that is not finite leave.
    `plots.walks(steps, *population.walks())` draws a population, both models of a pair summed.

    Args:
      steps: `[T]`, ascending.
      followed, other: `[P, T]`, values of the landscape that was followed and of the other one, or
        `[P, 1 + T]` with the value that progress is counted from before them; as in
        `meeting.coefficient`, of which M is computed.
      names: of the two landscapes, written at their lines.
      start: in words, what has the value that progress is counted from; a dashed line.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit together, or no pair is finite.
    """
    steps = np.asarray(steps, float)
    values = np.stack([np.asarray(followed, float), np.asarray(other, float)])
    extra = values.shape[-1] - steps.size
    if steps.ndim != 1 or values.ndim != 3 or extra not in (0, 1):
        raise ValueError(
            f"walks: followed and other of shape {values.shape[1:]} for {steps.size} steps; they "
            "are [P, T] or, with the start before them, [P, 1 + T]"
        )
    values = values[:, np.isfinite(values).all((0, 2))]
    if not values.size:
        raise ValueError("walks: no pair with finite values, nothing to draw")
    ax = new_figure(4.8, 3.2).subplots() if ax is None else ax
    begin = values[..., 0].mean(1)
    length = float(np.ptp(steps)) or 1.0
    end = float(steps.max())
    ax.axhline(begin.mean(), color=GREY, lw=1.4, ls=(0, (5, 3)), zorder=1)
    ends = [(float(begin.mean()), start, GREY)]
    for index, (name, color) in enumerate(zip(names, (BLUE, VERMILLION), strict=True)):
        middle, low, high = np.array([mean_interval(v) for v in values[index, :, extra:].T]).T
        ax.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(steps, middle, color=color)
        place = end + (0.05 + 0.05 * index) * length
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (place, middle[-1]), (place, begin[index]), arrowprops=arrow)
        ends.append((float(middle[-1]), name, color))
    ax.set(xlim=(steps.min() - 0.02 * length, end + 0.13 * length))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    label_ends(ax, end + 0.13 * length, [(y, wrapped(word, 15), c) for y, word, c in ends], 0.14)
    return ax
