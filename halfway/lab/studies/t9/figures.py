"""Figures of decision boundaries: where two models cross, and a plane."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    COLORS,
    GREY,
    INK,
    PAPER,
    check_colors,
    label_ends,
    new_figure,
    styled,
    symbols,
    wrapped,
)

_COUNTS = LinearSegmentedColormap.from_list("counts", [PAPER, "#b9bdc4"])


@styled
def crossings(
    first: ArrayLike,
    second: ArrayLike,
    predicted: ArrayLike,
    *,
    num_bins: int = 10,
    xlabel: str = "t_A, share of the segment until A changes its mind",
    ylabel: str = "t_B, the same of B",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with where two models cross the same segments, their number in grey.

    Lines are means of the second in bins of the first that hold equal numbers; where boundaries
    are the same, all lies on the diagonal.

    Args:
      first, second: `[N]`, t in [0, 1] of both models.
      predicted: `[N]`, of the second by the control, which knows the data alone.
      num_bins: of the first.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the lengths differ, or there is nothing to draw.
    """
    x, y, other = (np.asarray(values, float) for values in (first, second, predicted))
    if not x.shape == y.shape == other.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"crossings: shapes {x.shape}, {y.shape}, {other.shape}: three equal [N]")
    ax = new_figure(4.4, 3.9).subplots() if ax is None else ax
    extent = (0.0, 1.0, 0.0, 1.0)
    ax.hexbin(x, y, gridsize=34, extent=extent, cmap=_COUNTS, bins="log", mincnt=1, linewidths=0)
    ax.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)))
    bins = np.searchsorted(np.quantile(x, np.linspace(0, 1, num_bins + 1)[1:-1]), x, side="right")
    present = np.unique(bins)
    middle = [x[bins == index].mean() for index in present]
    ends = [(1.0, "equal", INK)]
    lines = (("as the rules\npredict", other, GREY, "s"), ("same\nsegment", y, BLUE, "o"))
    for name, values, color, marker in lines:
        mean = [values[bins == index].mean() for index in present]
        ax.plot(middle, mean, color=color, marker=marker, ms=5)
        ends.append((float(mean[-1]), name, color))
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    label_ends(ax, 1.0, ends, 0.13)
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    return ax


@styled
def boundaries(
    x: ArrayLike,
    y: ArrayLike,
    decisions: Mapping[str, ArrayLike],
    *,
    points: Mapping[str, ArrayLike] | None = None,
    xlabel: str = "l2 distance in the plane",
    ylabel: str = "l2 distance",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the boundaries of models in a plane of inputs, one colour a model.

    Regions are those of the first model, in grey.

    Args:
      x: `[X]` coordinates, ascending; `y`: `[Y]`.
      decisions: name of a model to `[Y, X]` classes, at most three.
      points: name to `[2]` coordinates, marked and named.
      xlabel, ylabel: words with units.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three models, or shapes that do not fit together.
    """
    check_colors("boundaries", len(decisions))
    x, y = np.asarray(x, float), np.asarray(y, float)
    ax = new_figure(4.6, 3.8).subplots() if ax is None else ax
    for index, (name, values) in enumerate(decisions.items()):
        values = np.asarray(values)
        if values.shape != (len(y), len(x)):
            raise ValueError(f"boundaries: {name} {values.shape} on {(len(y), len(x))} points")
        present, ranks = np.unique(values, return_inverse=True)
        for rank in range(len(present)):
            inside = (ranks == rank).reshape(values.shape).astype(float)
            if index == 0:
                shade = to_rgba(GREY, 0.04 + 0.3 * rank / len(present))
                ax.contourf(x, y, inside, levels=[0.5, 1.5], colors=[shade])
            if rank:  # every boundary has two sides: the last one needs no line of its own
                ax.contour(x, y, inside, levels=[0.5], colors=[COLORS[index]], linewidths=1.6)
        ax.plot([], [], color=COLORS[index], label=name)
    for name, place in (points or {}).items():
        across, up = (float(value) for value in np.asarray(place, float))
        ax.plot(across, up, "o", color=INK, ms=6, mec=PAPER, zorder=5)
        ax.annotate(symbols(name), (across, up), (7, 6), textcoords="offset points")
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    ax.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax
