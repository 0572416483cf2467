"""Figures about transfer: against the gap, and against the budget."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from numpy.typing import ArrayLike

from halfway.plots.style import (
    COLORS,
    GREY,
    GRID,
    INK,
    MARKERS,
    check_colors,
    clip_ends,
    label_ends,
    last_finite,
    new_figure,
    styled,
    wrapped,
)


@styled
def scatter_transfer_gap(
    gap: ArrayLike,
    transfer: ArrayLike,
    noise_rate: ArrayLike,
    *,
    names: Sequence[str],
    gap_interval: ArrayLike | None = None,
    transfer_interval: ArrayLike | None = None,
    xlabel: str = "generalization gap in error",
    ylabel: str = "M_x, transfer in margin loss",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a point a condition: transfer against gap, coloured by label noise.

    Args:
      gap, transfer, noise_rate: `[N]`, one value a condition.
      names: `[N]` architecture of each condition: its marker, written once beside its points.
      gap_interval, transfer_interval: `[2, N]` lower and upper ends, or None.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.
    """
    gap, transfer = np.asarray(gap, float), np.asarray(transfer, float)
    noise = np.asarray(noise_rate, float)
    ax = new_figure(4.8, 3.8).subplots() if ax is None else ax
    levels = np.unique(noise)
    # Cividis is perceptually ordered for colour-blind readers too.
    colormap = ListedColormap(colormaps["cividis"](np.linspace(0.05, 0.95, len(levels))))
    ranks = np.searchsorted(levels, noise)
    for interval, axis in ((gap_interval, "x"), (transfer_interval, "y")):
        if interval is not None:
            ends = np.abs(clip_ends(interval) - (gap if axis == "x" else transfer))
            errors = {"xerr": ends} if axis == "x" else {"yerr": ends}
            style = {"fmt": "none", "ecolor": GREY, "elinewidth": 1, "zorder": 1}
            ax.errorbar(gap, transfer, **errors, **style)
    architectures = list(dict.fromkeys(names))
    for index, name in enumerate(architectures):
        mask = np.array([item == name for item in names])
        colors = colormap(ranks[mask])
        marker = MARKERS[index % len(MARKERS)]
        ax.scatter(
            gap[mask], transfer[mask], c=colors, s=46, marker=marker, ec=INK, lw=0.7, zorder=2
        )
        ax.scatter([], [], c="none", ec=INK, s=46, marker=marker, label=name)
    spread = [(np.nanmin(v), np.nanmax(v)) for v in (gap, transfer)]
    for (least, most), setter in zip(spread, (ax.set_xlim, ax.set_ylim), strict=True):
        pad = 0.12 * (most - least) or 0.1
        setter(least - pad, most + pad)
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    ax.legend(frameon=False, fontsize=9, loc="best", handletextpad=0.2, borderpad=0)
    norm = BoundaryNorm(np.arange(len(levels) + 1) - 0.5, len(levels))
    mappable = ScalarMappable(norm, colormap)
    bar = ax.figure.colorbar(mappable, ax=ax, ticks=np.arange(len(levels)), pad=0.02, aspect=24)
    bar.ax.set_yticklabels([f"{level:g}" for level in levels])
    bar.ax.tick_params(length=0)
    bar.set_label("ρ, label-noise rate")
    return ax


@styled
def budget_curve(
    budgets: ArrayLike,
    rates: Mapping[str, ArrayLike],
    *,
    low: Mapping[str, ArrayLike] | None = None,
    high: Mapping[str, ArrayLike] | None = None,
    controls: Sequence[str] = (),
    decides: float | None = None,
    xlabel: str = "ε, budget of the attack (l∞)",
    ylabel: str = "share of examples fooled",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a rate against the attack's budget, a labelled line for each name.

    Args:
      budgets: `[E]`, ascending.
      rates: `[E]` for each name; at most three names that are not controls.
      low, high: ends of the intervals, `[E]` for the names that have them.
      controls: names drawn in grey, each in a dash pattern of its own.
      decides: the budget that the rule looks at, marked by a thin line.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.
    """
    budgets = np.asarray(budgets, float)
    shown = [name for name in rates if name not in controls]
    check_colors("budget_curve", len(shown))
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    if decides is not None:
        ax.axvline(decides, color=GRID, lw=6, zorder=0)
    ends = []
    dashes = ((0, (5, 3)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
    for name, values in rates.items():
        values = np.asarray(values, float)
        if name in controls:
            dash = dashes[list(controls).index(name) % len(dashes)]
            ax.plot(budgets, values, color=GREY, ls=dash, label=name)
            color = GREY
        else:
            color, marker = COLORS[shown.index(name)], MARKERS[shown.index(name)]
            ax.plot(budgets, values, color=color, marker=marker, ms=5, label=name)
        if low and high and name in low and name in high:
            band = clip_ends(low[name]), clip_ends(high[name])
            ax.fill_between(budgets, *band, color=color, alpha=0.2, lw=0)
        ends.append((last_finite(values), name, color))
    most = max(float(np.nanmax(np.asarray(values, float))) for values in rates.values())
    # Bands are shown whole where they do not dwarf the lines.
    above = [value for values in (high or {}).values() for value in np.ravel(values)]
    top = min(max([most, *(value for value in above if np.isfinite(value))]), 1.6 * most)
    ax.set(ylim=(min(0.0, ax.get_ylim()[0]) if not low else -0.03 * most, max(1.1 * most, top)))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34), xticks=budgets)
    label_ends(ax, float(budgets[-1]), ends, 0.08)
    return ax
