"""Figures about learning: landscapes along training, and M_θ against label noise."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    COLORS,
    GREY,
    GRID,
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
    symbols,
    wrapped,
)


@styled
def walks(
    steps: ArrayLike,
    own: ArrayLike,
    other: ArrayLike,
    *,
    names: tuple[str, str] = ("own half", "other half"),
    start: str = "best constant predictor",
    xlabel: str = "training steps",
    ylabel: str = "error",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with both landscapes along a walk that follows the first of them.

    Lines are means over pairs, bands their 95 % t intervals. The two arrows at the end are the
    descents from the start, in each one's own colour: the coefficient M is the length of the second
    over that of the first. Pairs with a value that is not finite leave.
    `plots.walks(steps, *population.walks())` draws a population, both models of a pair summed.

    Args:
      steps: `[T]`, ascending.
      own, other: `[P, T]`, values of the landscape that was followed and of the other one, or
        `[P, 1 + T]` with the value that progress is counted from before them; as in
        `meeting.coefficient`, of which M is computed.
      names: of the two landscapes, written at their lines.
      start: in words, what has the value that progress is counted from; a dashed line.
      xlabel, ylabel: symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit together, or no pair is finite.
    """
    steps = np.asarray(steps, float)
    values = np.stack([np.asarray(own, float), np.asarray(other, float)])
    extra = values.shape[-1] - steps.size
    if steps.ndim != 1 or values.ndim != 3 or extra not in (0, 1):
        raise ValueError(
            f"walks: own and other of shape {values.shape[1:]} for {steps.size} steps; they are "
            "[P, T] or, with the start before them, [P, 1 + T]"
        )
    values = values[:, np.isfinite(values).all((0, 2))]
    if not values.size:
        raise ValueError("walks: no pair with finite values, nothing to draw")
    ax = new_figure(4.8, 3.2).subplots() if ax is None else ax
    begin = values[..., 0].mean(1)
    length = float(np.ptp(steps)) or 1.0
    end = float(steps.max())
    ax.axhline(begin.mean(), color=GREY, lw=1.4, ls=(0, (5, 3)), zorder=1)
    ends = [(float(begin.mean()), start, GREY)]
    for index, (name, color) in enumerate(zip(names, (BLUE, VERMILLION), strict=True)):
        middle, low, high = np.array([mean_interval(v) for v in values[index, :, extra:].T]).T
        ax.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(steps, middle, color=color)
        place = end + (0.05 + 0.05 * index) * length
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (place, middle[-1]), (place, begin[index]), arrowprops=arrow)
        ends.append((float(middle[-1]), name, color))
    ax.set(xlim=(steps.min() - 0.02 * length, end + 0.13 * length))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    label_ends(ax, end + 0.13 * length, [(y, wrapped(word, 15), c) for y, word, c in ends], 0.14)
    return ax


@styled
def dose_response(
    rates: ArrayLike,
    estimates: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    names: Sequence[str],
    ceiling: ArrayLike | None = None,
    training_accuracy: ArrayLike | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes `[2 or 3]`, one below the other: M_θ, its share of the ceiling, training.

    Args:
      rates: `[R]` label-noise rates, ascending; every axes shares them.
      estimates, low, high: `[A, R]` M_θ in error and its interval for each architecture.
      names: `[A]`, at most three.
      ceiling: `[R]`, what a perfect predictor reaches, 1 − ρ by default; no share is drawn where
        it is 0.
      training_accuracy: `[A, R]` mean over models, or None for no third axes.
      ax: two or three axes, or None for a new figure.
    """
    check_colors("dose_response", len(names))
    rates = np.asarray(rates, float)
    limit = 1 - rates if ceiling is None else np.asarray(ceiling, float)
    num_axes = 2 if training_accuracy is None else 3
    if ax is None:
        heights = [1.7, 1.7, 0.8][:num_axes]
        figure = new_figure(4.8, 0.8 + 1.5 * sum(heights))
        ax = figure.subplots(num_axes, 1, sharex=True, height_ratios=heights)
    axes_list = list(np.asarray(ax, object))
    share = np.where(limit > 0, 1 / np.where(limit > 0, limit, 1), np.nan)
    panels = [
        ("M_θ in error", np.ones_like(limit), limit, "ceiling 1 − ρ"),
        ("M_θ/(1 − ρ), share of\nthe ceiling reached", share, limit * share, "ceiling"),
    ]
    for axes, (name_y, scale, line, word) in zip(axes_list, panels, strict=False):
        axes.plot(rates, line, color=GREY, lw=1.4, ls=(0, (5, 3)))
        axes.axhline(0, color=GREY, lw=0.8)
        bands = [np.asarray(values, float) * scale for values in (estimates, low, high)]
        ends = []
        for name, color, marker, middle, under, over in zip(
            names, COLORS, MARKERS, *bands, strict=False
        ):
            axes.fill_between(
                rates, clip_ends(under), clip_ends(over), color=color, alpha=0.2, lw=0
            )
            axes.plot(rates, middle, color=color, marker=marker, ms=5)
            ends.append((last_finite(middle), name, color))
        # The control of the rule: a model that ignores the labels reaches 0.
        least, most = np.nanmin(bands[0]), max(1.0, np.nanmax(bands[0]))
        axes.set(ylim=(min(least, 0) - 0.06, most + 0.08), ylabel=symbols(name_y))
        shown = np.flatnonzero(np.isfinite(line))
        place = rates[shown[len(shown) // 2]], line[shown[len(shown) // 2]]
        axes.annotate(word, place, (5, 4), textcoords="offset points", color=GREY, fontsize=9)
        if axes is axes_list[1]:  # where the lines end apart; the first axes has the same colours
            label_ends(axes, float(rates[shown[-1]]), ends, 0.13)
    if training_accuracy is not None:
        for name, color, marker, values in zip(
            names, COLORS, MARKERS, np.asarray(training_accuracy, float), strict=False
        ):
            axes_list[2].plot(rates, values, color=color, marker=marker, ms=4, lw=1.2, label=name)
        axes_list[2].axhline(0.95, color=GREY, lw=1, ls=(0, (5, 3)))
        axes_list[2].margins(y=0.25)
        label_ends(axes_list[2], axes_list[2].get_xlim()[1], [(0.95, "gate .95", GREY)], 0.2)
        axes_list[2].set(ylabel="training\naccuracy")
    axes_list[-1].set(xlabel="ρ, label-noise rate", xticks=rates)
    return np.asarray(ax)


@styled
def agreement(
    errors: Mapping[str, ArrayLike],
    disagreements: Mapping[str, ArrayLike],
    *,
    margins: tuple[float, float],
    ax: Axes | None = None,
) -> Axes:
    """Returns axes of disagreement against error, a dot a pair, with the line of equality.

    Args:
      errors: `{setting: [P]}` mean error of a pair's models; the first setting decides and is blue.
      disagreements: `{setting: [P]}` how often the models of a pair differ.
      margins: of disagreement over error, drawn as a band.
      ax: where to draw, or None for a new figure.
    """
    if ax is None:
        ax = new_figure(4.8, 4.2).subplots()
    every = np.concatenate([np.ravel(v) for m in (errors, disagreements) for v in m.values()])
    every = every[np.isfinite(every)]
    top = 1.08 * every.max() if every.size and every.max() > 0 else 1.0
    low = max(0.0, 2 * every.min() - every.max()) if every.size else 0.0
    ends = np.array([low, top])
    ax.fill_between(ends, margins[0] * ends, margins[1] * ends, color=GRID, alpha=0.7, lw=0)
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
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    return ax


@styled
def memorization(
    passes: ArrayLike,
    estimates: Mapping[int, Sequence[ArrayLike]],
    low: Mapping[int, Sequence[ArrayLike]],
    high: Mapping[int, Sequence[ArrayLike]],
    *,
    rates: Sequence[float],
    fresh: tuple[float, float, float] | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes `[number of n]`, side by side: κ against passes over the data, a line a rate.

    Args:
      passes: `[T]`, ascending; on a logarithmic axis.
      estimates, low, high: `{n: [R][T]}` κ and its interval for each rate.
      rates: `[R]` label-noise rates, at most three.
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
