"""Figures of the laws: predictions as lines, measurements as points with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    COLORS,
    GREY,
    INK,
    MARKERS,
    PAPER,
    check_colors,
    clip_ends,
    new_figure,
    styled,
    symbols,
    wrapped,
)


@styled
def law(
    sizes: ArrayLike,
    measured: Mapping[str, ArrayLike],
    predicted: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    half: Mapping[str, float],
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a law of halves: the share μ against a size on a logarithmic axis.

    Args:
      sizes: `[T]`, the sizes n or k at which μ was measured.
      measured: `{name: [T, 3]}` estimate, low, high of μ; at most three names.
      predicted: `{name: (sizes [G], values [G])}`, the points of each line.
      half: `{name: size}`, the size at which the law gives one half, marked on the line.
      xlabel: the label of the sizes, symbol and words.
      ylabel: the label of the share, symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three names.
    """
    check_colors("law", len(measured))
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    x = _against_size(ax, sizes, xlabel)
    for (name, values), color, marker in zip(measured.items(), COLORS, MARKERS, strict=False):
        at, line = (np.asarray(v, float) for v in predicted[name])
        ax.plot(at, line, color=color, lw=1.4)
        _points(ax, x, values, color=color, fmt=marker, label=symbols(name))
        if at[0] <= half[name] <= at[-1]:
            ax.plot(half[name], 0.5, marker="|", ms=16, mew=2, color=color)
    ax.set_ylabel(wrapped(ylabel, 34))
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return ax


@styled
def spectral_law(
    sizes: ArrayLike,
    measured: Mapping[str, tuple[ArrayLike, ArrayLike]],
    predicted: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    xlabel: str = "n, examples of each half",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the spectral law (P10): what two models share in values and in gradients.

    A colour is a level of noise. Values, μ_f, are full lines and circles; input gradients, μ_J,
    are dashed lines and open squares.

    Args:
      sizes: `[T]`, the numbers of examples at which both were measured, on a logarithmic axis.
      measured: `{level: (μ_f [T, 3], μ_J [T, 3])}`, estimate, low and high of each; at most three
        levels.
      predicted: `{level: (sizes [G], μ_f [G], μ_J [G])}`, the points of its two lines.
      xlabel: the label of the sizes, symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three levels.
    """
    check_colors("spectral_law", len(measured))
    ax = new_figure(5.4, 3.8).subplots() if ax is None else ax
    x = _against_size(ax, sizes, xlabel)
    spaces = {"μ_f, values": ("-", "o", None), "μ_J, input gradients": ("--", "s", PAPER)}
    for (level, points), color in zip(measured.items(), COLORS, strict=False):
        at, *lines = (np.asarray(values, float) for values in predicted[level])
        for line, values, (dashes, marker, face) in zip(
            lines, points, spaces.values(), strict=True
        ):
            ax.plot(at, line, color=color, ls=dashes, lw=1.4)
            _points(ax, x, values, color=color, fmt=marker, mfc=face or color)
        ax.plot([], [], color=color, lw=4, label=wrapped(level, 24))
    for name, (dashes, marker, face) in spaces.items():
        ax.plot([], [], dashes, marker=marker, mfc=face or INK, color=INK, label=symbols(name))
    ax.set_ylabel(symbols("μ, what two models share"))
    ax.legend(
        frameon=False,
        fontsize=9,
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        handlelength=2.6,
    )
    return ax


def _against_size(ax: Axes, sizes: ArrayLike, xlabel: str) -> np.ndarray:
    """Returns sizes `[T]`, once axes are made for shares against them, with a line at one half."""
    x = np.asarray(sizes, float)
    ax.set_xscale("log")
    ax.axhline(0.5, color=GREY, lw=0.8, ls=(0, (5, 3)))
    ax.set(ylim=(0, 1.03), xlabel=wrapped(xlabel, 48))
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.minorticks_off()
    return x


def _points(ax: Axes, x: np.ndarray, values: ArrayLike, **look: Any) -> None:
    """Draws estimates with their intervals, `[T, 3]`, as points without a line."""
    middle, low, high = np.asarray(values, float).T
    spread = [middle - clip_ends(low), clip_ends(high) - middle]
    ax.errorbar(x, middle, np.maximum(spread, 0), ms=5, lw=0, elinewidth=1.2, **look)


@styled
def transfer_against_risk(
    ratios: ArrayLike,
    risks: ArrayLike,
    measured: ArrayLike,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the linear-Gaussian model (P7): transfer μ_x against excess risk R/s².

    Args:
      ratios: `[T]`, n/d of each setting, written beside its point.
      risks: `[T, 3]`, estimate, low and high of R/s², on a logarithmic axis.
      measured: `[T, 3]`, estimate, low and high of μ_x.
      curves: `{branch: (R/s² [G], μ_x [G])}`, the points of at most three lines.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three curves.
    """
    check_colors("transfer_against_risk", len(curves))
    ax = new_figure(5.4, 3.8).subplots() if ax is None else ax
    ax.set_xscale("log")
    for (name, (x, y)), color in zip(curves.items(), COLORS, strict=False):
        ax.plot(np.asarray(x, float), np.asarray(y, float), color=color, label=symbols(name))
    (risk, risk_low, risk_high), (mu, low, high) = (
        np.asarray(v, float).T for v in (risks, measured)
    )
    ax.errorbar(
        risk,
        mu,
        yerr=np.maximum([mu - low, high - mu], 0),
        xerr=np.maximum([risk - risk_low, risk_high - risk], 0),
        fmt="o",
        ms=4,
        color=INK,
        lw=0,
        elinewidth=1,
        label="simulated, 95 %",
    )
    for ratio, x, y in zip(np.asarray(ratios, float), risk, mu, strict=True):
        # The lower branch turns, so its labels stand outside of the bend.
        place, side = ((5, 4), "left") if ratio > 1 else ((-6, 2), "right")
        place, side = ((0, -11), "center") if 0.5 < ratio < 1 else (place, side)
        ax.annotate(
            f"{ratio:.3g}", (x, y), place, textcoords="offset points", fontsize=7.5, ha=side
        )
    ax.set(
        ylim=(0, 1.05),
        xlabel=symbols("R/s², excess risk over signal; numbers: n/d"),
        ylabel=symbols("μ_x, what the other model shares"),
    )
    ax.legend(frameon=False, fontsize=9)
    return ax
