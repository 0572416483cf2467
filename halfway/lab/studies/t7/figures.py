"""Figures of attacks on several models: against the number of surrogates, and by way of attack."""

from collections.abc import Mapping, Sequence

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
    clip_ends,
    draw_interval,
    label_ends,
    new_figure,
    styled,
    symbols,
    wrapped,
)


@styled
def curves(
    numbers: ArrayLike,
    alignment: ArrayLike,
    success: ArrayLike,
    *,
    law: tuple[ArrayLike, ArrayLike],
    limit: float,
    epsilon: float,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns two axes over the number k of surrogates: alignment with its law, and success.

    Args:
      numbers: `[T]`, k, on a logarithmic axis.
      alignment: `[T, 3]` estimate, low, high.
      success: `[T, 3]` share of examples fooled; NaN where it was not measured.
      law: (k `[G]`, alignment `[G]`), the line.
      limit: of the law for many surrogates, a dashed line.
      epsilon: the budget, for words.
      ax: two axes, or None for a new figure.
    """
    if ax is None:
        ax = np.asarray(new_figure(7.6, 3.4).subplots(1, 2))
    k = np.asarray(numbers, float)
    left, right = np.ravel(np.asarray(ax, object))
    line = [np.asarray(values, float) for values in law]
    left.axhline(limit, color=GREY, lw=1.2, ls=(0, (5, 3)))
    left.plot(*line, color=GREY, lw=1.8)
    _points(left, k, alignment, BLUE, "o")
    _points(right, k, success, VERMILLION, "s")
    right.plot(k, np.asarray(success, float)[:, 0], color=VERMILLION, lw=1.4)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(k, [f"{value:g}" for value in k])
        axes.minorticks_off()
        axes.set_xlabel("k, number of surrogates")
    left.set_ylabel(wrapped("alignment of k surrogates' mean gradient with a target's", 32))
    right.set_ylabel(wrapped(f"share fooled at ε = {epsilon:g}, of those the target had right", 32))
    shown = np.concatenate([np.asarray(alignment, float).ravel(), line[1], [limit]])
    shown = shown[np.isfinite(shown) & (np.abs(shown) < 1e6)]
    pad = 0.08 * (shown.max() - shown.min()) or 0.1
    left.set_ylim(shown.min() - pad, shown.max() + pad)
    right.set_ylim(0, None)
    ends = [(limit, "limit", GREY), (float(line[1][-1]), "second law", GREY)]
    label_ends(left, float(line[0][-1]), ends, 0.09)
    return np.array([left, right])


@styled
def ways(
    rates: Mapping[str, ArrayLike],
    *,
    reference: Sequence[str] = (),
    xlabel: str = "share of examples fooled",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a row for each way to attack: its rate with an interval.

    Args:
      rates: `{name: [3]}` estimate, low, high, from the top.
      reference: names drawn in grey, with a line down through all rows.
      xlabel: of the rate.
      ax: where to draw, or None for a new figure.
    """
    ax = new_figure(5.6, 0.8 + 0.34 * len(rates)).subplots() if ax is None else ax
    values = {name: np.asarray(value, float) for name, value in rates.items()}
    most = max((v[np.isfinite(v)].max(initial=0) for v in values.values()), default=0.0) or 1.0
    ax.set(xlim=(0, 1.08 * most), ylim=(-len(rates) + 0.4, 0.6))
    for row, (name, (estimate, low, high)) in enumerate(values.items()):
        color, marker = (GREY, "s") if name in reference else (BLUE, "o")
        if name in reference and np.isfinite(estimate):
            ax.axvline(estimate, color=GRID, lw=1.4, zorder=0)
        draw_interval(ax, estimate, low, high, -row, color, marker, 7)
    ax.set_yticks(-np.arange(len(rates)), [symbols(name) for name in rates])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(wrapped(xlabel, 52))
    return ax


def _points(ax: Axes, x: np.ndarray, values: ArrayLike, color: str, marker: str) -> None:
    middle, low, high = np.asarray(values, float).T
    spread = np.maximum([middle - clip_ends(low), clip_ends(high) - middle], 0)
    ax.errorbar(
        x,
        middle,
        spread,
        fmt=marker,
        ms=6,
        color=color,
        mec=PAPER,
        mew=0.6,
        lw=0,
        elinewidth=1.6,
        ecolor=INK,
        zorder=3,
    )
