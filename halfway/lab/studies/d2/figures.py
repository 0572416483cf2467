"""The figure of D2: the gradient noise scale along training."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from halfway.plots.style import COLORS, GREY, INK, clip_ends, new_figure, styled, symbols


@styled
def along_training(
    curves: Mapping[tuple[str, str], Mapping[int, tuple[float, float, float]]],
    *,
    batch_size: int,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of n_half against steps: a colour an architecture, dashes for unseen examples.

    Values that are not positive, whose signal cannot be told from 0, are left out.

    Args:
      curves: by architecture and half, in words: steps to n_half with the ends of its interval.
      batch_size: of training, drawn as a line to compare with.
      ax: where to draw, or None for a new figure.
    """
    ax = new_figure(5.6, 3.8).subplots() if ax is None else ax
    names = list(dict.fromkeys(architecture for architecture, _ in curves))
    halves = list(dict.fromkeys(half for _, half in curves))
    ax.set_xscale("symlog", linthresh=10)
    ax.set_yscale("log")
    extremes = [float(batch_size)]
    for (architecture, half), curve in curves.items():
        steps = sorted(curve)
        middle, low, high = np.array([curve[step] for step in steps], float).T
        shown = np.isfinite(middle) & (middle > 0)
        x = np.array(steps, float)[shown]
        extremes += middle[shown].tolist()
        color = (*COLORS, INK)[names.index(architecture) % 4]
        style = ("-", (0, (4, 2)))[halves.index(half) % 2]
        ends = [clip_ends(values[shown]) for values in (np.maximum(low, 1e-3), high)]
        ax.fill_between(x, ends[0], ends[1], color=color, alpha=0.15, lw=0)
        ax.plot(
            x,
            middle[shown],
            color=color,
            ls=style,
            marker="o",
            ms=3.5,
            label=f"{architecture}, {half}",
        )
    ax.axhline(batch_size, color=GREY, lw=0.9)
    ax.annotate(
        f"batch size, {batch_size}",
        (0, batch_size),
        xycoords=("axes fraction", "data"),
        xytext=(6, -3),
        textcoords="offset points",
        va="top",
        color=GREY,
        fontsize=8.5,
    )
    ax.set_ylim(min(extremes) / 3, 3 * max(extremes))
    ax.set_xlabel("training steps")
    ax.set_ylabel(symbols("n_half, examples"))
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    return ax
