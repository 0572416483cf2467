"""A figure of two parts of a perturbation: how far each transfers."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    PAPER,
    VERMILLION,
    check_colors,
    new_figure,
    styled,
    wrapped,
)


@styled
def parts(
    on: Mapping[str, ArrayLike],
    off: Mapping[str, ArrayLike],
    *,
    lead: float,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of M_x of one part of a perturbation against that of the other, a dot a pair.

    Args:
      on: `{architecture: [P]}` M_x of the part on the data.
      off: `{architecture: [P]}` M_x of the part off the data at equal norm.
      lead: of the first that the claim asks for, a dashed line; equality is a grey one.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three architectures.
    """
    check_colors("parts", len(on))
    ax = new_figure(4.6, 4.2).subplots() if ax is None else ax
    drawn = np.concatenate([np.ravel(v) for both in (on, off) for v in both.values()])
    drawn = drawn[np.isfinite(drawn)]
    low, high = (drawn.min(), drawn.max()) if drawn.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.1
    ends = np.array([low - pad, high + pad])
    ax.plot(ends, ends, color=GREY, lw=1, label="equal")
    ax.plot(ends, ends + lead, color=INK, lw=1, ls=(0, (4, 3)), label=f"{lead:g} more")
    styles = zip((BLUE, VERMILLION, INK), MARKERS, strict=False)
    for index, ((name, values), (color, marker)) in enumerate(
        zip(on.items(), styles, strict=False)
    ):
        x, y = np.asarray(off[name], float), np.asarray(values, float)
        ax.scatter(
            x,
            y,
            s=26,
            marker=marker,
            facecolor=PAPER if index else color,
            edgecolor=color,
            lw=1,
            alpha=0.8,
            label=name,
            zorder=3,
        )
    ax.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel=wrapped("M_x of the part off the data", 42),
        ylabel=wrapped("M_x of the part on the data, at equal norm", 42),
    )
    ax.legend(frameon=False, fontsize=9, loc="best")
    return ax
