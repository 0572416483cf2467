"""The classes that a target gives perturbed examples: right, the surrogate's mistake, another."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    GRID,
    INK,
    PAPER,
    VERMILLION,
    new_figure,
    styled,
    wrapped,
)


@styled
def mistakes(
    same: ArrayLike,
    different: ArrayLike,
    *,
    names: Sequence[str],
    noise: ArrayLike | None = None,
    xlabel: str = "share of examples that both models have right",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a bar for each row: the same mistake as the surrogate, then different ones.

    Args:
      same: `[R]`, shares of examples to which the target gives the surrogate's wrong class.
      different: `[R]`, shares of examples to which the target gives another wrong class.
      names: `[R]`, a name for each row, e.g. model and attack.
      noise: `[R]`, shares that the matched noise fools, marked on the bars; None for no marks.
      xlabel: what the shares are shares of.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if there are no names, or their number is not that of the values.
    """
    parts = [np.asarray(values, float) for values in (same, different)]
    marks = None if noise is None else np.asarray(noise, float)
    sizes = {values.shape for values in (*parts, *([] if marks is None else [marks]))}
    if sizes != {(len(names),)} or not names:
        raise ValueError(f"mistakes: values of shapes {sorted(sizes)} for {len(names)} names")
    if ax is None:
        ax = new_figure(5.6, 0.9 + 0.36 * len(names)).subplots()
    rows = np.arange(len(names))
    left = np.zeros(len(names))
    for values, color, label in zip(
        parts, (BLUE, VERMILLION), ("same mistake as the surrogate", "another mistake"), strict=True
    ):
        ax.barh(rows, values, left=left, height=0.62, color=color, label=label)
        left = left + np.nan_to_num(values)
    ax.barh(rows, 1 - left, left=left, height=0.62, color=GRID, label="unfooled")
    if marks is not None:
        ax.plot(marks, rows, "|", color=PAPER, ms=21, mew=4.5)
        ax.plot(marks, rows, "|", color=INK, ms=21, mew=2, label="fooled by matched noise")
    ax.set_yticks(rows, [wrapped(name, 34) for name in names])
    ax.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel=wrapped(xlabel, 52))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color=GREY, lw=0.8)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        borderaxespad=0.2,
        markerscale=0.5,
    )
    return ax
