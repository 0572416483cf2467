"""Figures of attacks on several models: success against alignment, and by way of attack."""

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
    new_figure,
    styled,
    symbols,
    wrapped,
)


@styled
def gains(
    numbers: ArrayLike,
    alignment: ArrayLike,
    success: ArrayLike,
    *,
    line: tuple[ArrayLike, ArrayLike],
    predicted: tuple[float, tuple[float, float, float]],
    margin: float,
    epsilon: float,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with success over alignment, the line through the first two, and the prediction.

    Args:
      numbers: `[T]`, k.
      alignment: `[T]`, of k surrogates.
      success: `[T, 3]` estimate, low, high.
      line: (alignment `[G]`, success `[G]`).
      predicted: alignment by the law, and success there as (estimate, low, high).
      margin: half the height of the grey band around the last measured success.
      epsilon: the budget, for words.
      ax: where to draw, or None for a new figure.
    """
    ax = new_figure(5.2, 3.6).subplots() if ax is None else ax
    rates, x = np.asarray(success, float), np.asarray(alignment, float)
    ax.axhspan(rates[-1, 0] - margin, rates[-1, 0] + margin, color=GRID, alpha=0.55, lw=0)
    ax.plot(*(np.asarray(values, float) for values in line), color=GREY, lw=1.8)
    _points(ax, x, rates, BLUE, "o", BLUE)
    place, rate = predicted
    _points(ax, np.array([place]), np.array([rate]), VERMILLION, "s", PAPER)
    for k, at, value in zip(np.asarray(numbers), x, rates[:, 0], strict=True):
        ax.annotate(
            f"k = {k:g}", (at, value), (4, -11), textcoords="offset points", color=INK, size=8
        )
    ax.annotate(
        "predicted",
        (place, rate[0]),
        (-6, 6),
        textcoords="offset points",
        color=VERMILLION,
        ha="right",
    )
    ax.margins(x=0.12, y=0.15)
    ax.set_xlabel(wrapped("alignment of k surrogates' mean gradient with a target's", 40))
    ax.set_ylabel(wrapped(f"success at ε = {epsilon:g}: share of S right and then fooled", 32))
    return ax


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


def _points(
    ax: Axes, x: np.ndarray, values: np.ndarray, color: str, marker: str, face: str
) -> None:
    """Draws estimates `[T, 3]` with their intervals."""
    middle, low, high = values.T
    spread = np.maximum([middle - clip_ends(low), clip_ends(high) - middle], 0)
    style = {"ms": 6, "color": color, "mfc": face, "mec": color, "mew": 1.2, "lw": 0}
    ax.errorbar(x, middle, spread, fmt=marker, elinewidth=1.4, ecolor=color, zorder=3, **style)
