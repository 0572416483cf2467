"""Figures of memorization: κ against passes over the data, and the gap as a sum over steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    COLORS,
    GREY,
    INK,
    MARKERS,
    VERMILLION,
    check_colors,
    clip_ends,
    label_ends,
    last_finite,
    mean_interval,
    new_figure,
    styled,
    wrapped,
)


@styled
def memorization(
    passes: ArrayLike,
    estimates: Mapping[int, Sequence[ArrayLike]],
    low: Mapping[int, Sequence[ArrayLike]],
    high: Mapping[int, Sequence[ArrayLike]],
    *,
    rates: Sequence[float],
    marked: Mapping[int, float] | None = None,
    fresh: tuple[float, float, float] | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes `[number of n]`, side by side: κ against passes over the data, a line a rate.

    Args:
      passes: `[T]`, ascending; on a logarithmic axis.
      estimates, low, high: `{n: [R][T]}` κ and its interval for each rate.
      rates: `[R]` label-noise rates, at most three.
      marked: the passes that are compared, for each n, at a line.
      fresh: κ on fresh data with its interval, in grey, or None.
      ax: as many axes as there are n, or None for a new figure.
    """
    check_colors("memorization", len(rates))
    x = np.asarray(passes, float)
    if ax is None:
        ax = new_figure(4.2 * len(estimates), 3.4).subplots(1, len(estimates), sharey=True)
    axes_list = list(np.atleast_1d(np.asarray(ax, object)))
    named = []
    for index, (axes, size) in enumerate(zip(axes_list, estimates, strict=True)):
        axes.set_xscale("log", base=2)
        axes.axhline(0, color=INK, lw=0.8)
        ends = []
        if marked is not None:
            axes.axvline(marked[size], color=INK, lw=1, ls=(0, (4, 3)))
        if fresh is not None:
            axes.plot(x[[0, -1]], [fresh[0]] * 2, color=GREY, ls=(0, (5, 3)))
            axes.fill_between(x[[0, -1]], *clip_ends(fresh[1:]), color=GREY, alpha=0.3, lw=0)
            ends.append((fresh[0], "fresh data", GREY))
        lines = zip(rates, COLORS, MARKERS, estimates[size], low[size], high[size], strict=False)
        for rate, color, marker, middle, under, over in lines:
            axes.fill_between(x, clip_ends(under), clip_ends(over), color=color, alpha=0.2, lw=0)
            axes.plot(x, np.asarray(middle, float), color=color, marker=marker, ms=5)
            ends.append((last_finite(np.asarray(middle, float)), f"ρ = {rate:g}", color))
        axes.set(xlabel="passes over the half", title=f"n = {size}")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
        if index == 0:
            axes.set_ylabel(wrapped("κ, share of the gradient's noise used up", 28))
        axes.margins(y=0.1)
        named.append(ends)
    # At last, when the axes that share a scale have all that is drawn on them.
    for axes, ends in zip(axes_list, named, strict=True):
        label_ends(axes, float(x[-1]), ends, 0.08)
    return np.asarray(axes_list)


@styled
def gap_path(
    paths: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes `[number of paths]`, side by side: the gap along training, and its sum.

    Args:
      paths: `{name: (steps [T], gap [P, T], summed [P, T])}`, the measured gap and what the steps
        before add up to; lines are means over pairs, the band is the 95 % interval of the gap.
      ax: as many axes as paths, or None for a new figure.
    """
    if ax is None:
        ax = new_figure(4.0 * len(paths) + 0.6, 3.2).subplots(1, len(paths))
    axes_list = list(np.atleast_1d(np.asarray(ax, object)))
    for index, (axes, (name, path)) in enumerate(zip(axes_list, paths.items(), strict=True)):
        steps, gap, summed = (np.asarray(values, float) for values in path)
        middle, low, high = np.array([mean_interval(values) for values in gap.T]).T
        together = np.array([mean_interval(values)[0] for values in summed.T])
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, lw=0)
        axes.plot(steps, middle, color=BLUE)
        axes.plot(steps, together, color=VERMILLION, ls=(0, (5, 3)))
        axes.set(xlabel="training steps", title=name)
        ends = [
            (last_finite(middle), "measured", BLUE),
            (last_finite(together), "summed", VERMILLION),
        ]
        label_ends(axes, float(steps[-1]), ends, 0.09)
        if index == 0:
            axes.set_ylabel("gap in cross-entropy")
    return np.asarray(axes_list)
