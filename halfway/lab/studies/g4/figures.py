"""The figure of disagreement against error."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import BLUE, GREY, GRID, INK, MARKERS, new_figure, styled


@styled
def agreement(
    errors: Mapping[str, ArrayLike],
    disagreements: Mapping[str, ArrayLike],
    *,
    margins: tuple[float, float],
    interval: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of disagreement against error, a dot a pair, with the line of equality.

    Args:
      errors: `{setting: [P]}` mean error of a pair's models; the first setting decides and is blue.
      disagreements: `{setting: [P]}` how often the models of a pair differ.
      margins: of disagreement over error, drawn as a band.
      interval: of the mean ratio in the first setting, drawn as a blue wedge, or None.
      ax: where to draw, or None for a new figure.
    """
    if ax is None:
        ax = new_figure(4.8, 5.2).subplots()
    values = np.concatenate([np.ravel(v) for m in (errors, disagreements) for v in m.values()])
    values = values[np.isfinite(values)]
    top = 1.08 * values.max() if values.size and values.max() > 0 else 1.0
    low = max(0.0, 2 * values.min() - values.max()) if values.size else 0.0
    ends = np.array([low, top])
    ax.fill_between(ends, margins[0] * ends, margins[1] * ends, color=GRID, alpha=0.7, lw=0)
    if interval is not None and np.isfinite(interval).all():
        ax.fill_between(ends, interval[0] * ends, interval[1] * ends, color=BLUE, alpha=0.3, lw=0)
    ax.plot(ends, ends, color=INK, lw=1, ls=(0, (4, 3)))
    for index, (name, error) in enumerate(errors.items()):
        ax.scatter(
            error,
            disagreements[name],
            s=24 if index == 0 else 20,
            marker=MARKERS[index],
            facecolor=BLUE if index == 0 else "none",
            edgecolor=BLUE if index == 0 else GREY,
            lw=0.9,
            alpha=0.75,
            label=name,
            zorder=3 - index,
        )
    ax.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel="mean error of the two models on S",
        ylabel="share of S on which they differ",
    )
    # Below the axes: dots are everywhere inside.
    ax.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return ax
