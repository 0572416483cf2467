"""The figure of T12: what each of three measures says of transfer beyond the other two."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    COLORS,
    GREY,
    INK,
    MARKERS,
    PAPER,
    new_figure,
    styled,
    symbols,
    wrapped,
)


@styled
def contributions(
    rate: ArrayLike,
    measures: ArrayLike,
    slopes: ArrayLike,
    *,
    factors: Sequence[str],
    names: Sequence[str],
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes, one a measure: what the others leave of the contrast, against the measure's.

    Args:
      rate: `[N]` contrasts of the rate fooled.
      measures: `[N, K]` contrasts of the measures.
      slopes: `[K]` of the line of all.
      factors: `[N]`, what each intervention changes.
      names: `[K]`.
      ax: `[K]`, or None for a new figure.
    """
    rate, measures, slopes = (np.asarray(v, float) for v in (rate, measures, slopes))
    if ax is None:
        ax = new_figure(3.3 * len(names) + 0.4, 3.6).subplots(1, len(names), sharey=True)
    axes = np.asarray(ax, object)
    colors = (*COLORS, INK)
    for k, (panel, name) in enumerate(zip(axes, names, strict=True)):
        others = np.delete(np.arange(len(slopes)), k)
        left = rate - measures[:, others] @ slopes[others]
        for place, factor in enumerate(dict.fromkeys(factors)):
            mask = (np.array(factors) == factor) & np.isfinite(left)
            panel.scatter(
                measures[mask, k],
                left[mask],
                c=colors[place % len(colors)],
                marker=MARKERS[place // len(colors) + place % 2 * 2],
                s=26,
                ec=PAPER,
                lw=0.4,
                label=symbols(factor),
            )
        shown = measures[np.isfinite(measures[:, k]), k]
        ends = np.array([shown.min(), shown.max()]) if shown.size else np.zeros(2)
        panel.plot(ends, slopes[k] * ends, color=INK, lw=1, ls=(0, (4, 3)))
        panel.axhline(0, color=GREY, lw=0.6, zorder=0)
        panel.set_xlabel(wrapped(f"change of the {name}", 34))
    axes[0].set_ylabel(wrapped("change of the share fooled, less what the other two say", 30))
    axes[-1].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    return axes
