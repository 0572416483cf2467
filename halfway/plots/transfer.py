"""Figures about transfer: rates by score, calibration, transfer against the gap, budgets."""

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
    mean_interval,
    new_figure,
    styled,
    wrapped,
)


def _bins(score: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns the bin `[B]` of each score, bins of equal counts; equal scores stay together."""
    edges = np.unique(np.quantile(score, np.linspace(0, 1, num_bins + 1)[1:-1]))
    return np.searchsorted(edges, score, side="right")


def _by_bin(
    x: ArrayLike, y: ArrayLike, pair: ArrayLike, num_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean x `[bins]` and (mean, low, high) of y over pairs `[bins, 3]`."""
    x, y, pair = np.asarray(x, float), np.asarray(y, float), np.asarray(pair)
    if not x.shape == y.shape == pair.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"shapes {x.shape}, {y.shape}, {pair.shape}: three equal [B] are needed")
    bins = _bins(x, num_bins)
    members, num_seen = np.unique(pair, return_inverse=True)[1], len(np.unique(pair))
    middles, rows = [], []
    for index in np.unique(bins):
        inside = bins == index
        count = np.bincount(members[inside], minlength=num_seen)
        total = np.bincount(members[inside], weights=y[inside], minlength=num_seen)
        means = total[count > 0] / count[count > 0]
        middles.append(x[inside].mean())
        rows.append(mean_interval(means))
    return np.array(middles), np.array(rows)


@styled
def binned_rates(
    score: ArrayLike,
    fooled: ArrayLike,
    pair: ArrayLike,
    *,
    label: str = "",
    xlabel: str = "⟨h_B, s(h_A)⟩, change of B's loss predicted to first order",
    ylabel: str = "share that fools B, of those that\nfool A and that B had right",
    num_bins: int = 10,
    index: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the observed transfer rate in bins of a score, intervals over pairs.

    The grey line is the rate over all examples: where every bin would be if the score told
    nothing. Call it again with the axes and another `index` for another architecture.

    Args:
      score: `[B]`, the predictor; bins hold equal numbers of examples.
      fooled: `[B]`, 0 or 1.
      pair: `[B]`, the pair each example was attacked in; a pair's mean in a bin is one value.
      label: written in the figure beside the line; `xlabel`, `ylabel`: symbol and words.
      num_bins: 10 for deciles.
      index: which colour and marker, 0, 1 or 2.
      ax: where to draw, or None for a new figure.
    """
    middle, rate = _by_bin(score, fooled, pair, num_bins)
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    color = COLORS[index]
    ax.fill_between(middle, rate[:, 1], rate[:, 2], color=color, alpha=0.2, lw=0)
    ax.plot(middle, rate[:, 0], color=color, marker=MARKERS[index], ms=5)
    overall = float(np.mean(np.asarray(fooled, float)))
    ax.axhline(overall, color=GREY, lw=1.4, ls=(0, (5, 3)))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34), ylim=(-0.03, 1.03))
    word = f"{label}: all" if label else "all examples"
    ends = [(float(rate[-1, 0]), label, color), (overall, word, GREY)]
    label_ends(ax, ax.get_xlim()[1], [end for end in ends if end[1]], 0.08)
    return ax


@styled
def calibration(
    predicted: ArrayLike,
    actual: ArrayLike,
    pair: ArrayLike,
    *,
    slope: tuple[float, float, float] | None = None,
    margin: tuple[float, float] = (0.8, 1.25),
    label: str = "",
    xlabel: str = "predicted change of B's margin loss, to first order",
    ylabel: str = "measured change of B's margin loss",
    num_bins: int = 10,
    index: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with actual against predicted change of margin loss, and the margin as a band.

    Args:
      predicted: `[B]` first-order change on the displacement that was actually made.
      actual: `[B]` change that was measured; `pair`: `[B]` the pair of each example.
      slope: estimate, low, high of the calibration slope, drawn as a line through the origin.
      margin: slopes that count as calibrated, the grey band around the identity.
      label: written at the slope's line; `xlabel`, `ylabel`: symbol and words.
      num_bins: bins of equal numbers of examples.
      index: which colour and marker, 0, 1 or 2.
      ax: where to draw, or None for a new figure.
    """
    middle, change = _by_bin(predicted, actual, pair, num_bins)
    fresh = ax is None
    ax = new_figure(4.8, 3.8).subplots() if ax is None else ax
    color = COLORS[index]
    reach = max(1e-12, float(np.abs(middle).max())) * 1.08
    line = np.array([min(0.0, 1.08 * float(middle.min())), reach])
    ends = []
    if fresh:
        ax.fill_between(line, margin[0] * line, margin[1] * line, color=GREY, alpha=0.18, lw=0)
        ax.plot(line, line, color=GREY, lw=1.4, ls=(0, (5, 3)))
        ends = [(reach, "equal", GREY), (margin[1] * reach, f"slope {margin[1]}", GREY)]
        ends.append((margin[0] * reach, f"slope {margin[0]}", GREY))
    if slope is not None:
        ax.plot(line, slope[0] * line, color=color, lw=1.4)
    ax.errorbar(
        middle,
        change[:, 0],
        np.abs(change[:, 1:] - change[:, :1]).T,
        color=color,
        fmt=MARKERS[index],
        ms=6,
        mec="none",
        elinewidth=1.6,
    )
    if label:
        text = label if slope is None else f"{label}: {slope[0]:.2f}"
        ends.append(((slope[0] if slope else 1.0) * reach, text, color))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    ax.locator_params(axis="x", nbins=6)
    label_ends(ax, reach, ends, 0.075)
    return ax


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
    seen = list(dict.fromkeys(names))
    for index, name in enumerate(seen):
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
