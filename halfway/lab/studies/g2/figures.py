"""The figure of M_θ against label noise."""

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
    check_colors,
    clip_ends,
    label_ends,
    last_finite,
    new_figure,
    styled,
    symbols,
)


@styled
def dose_response(
    rates: ArrayLike,
    estimates: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    names: Sequence[str],
    ceiling: ArrayLike | None = None,
    early: ArrayLike | None = None,
    regained: float = 0.5,
    training_accuracy: ArrayLike | None = None,
    gate: float = 0.95,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns axes `[2 or 3]`, one below the other: M_θ, its share of the ceiling, training.

    Args:
      rates: `[R]` label-noise rates, ascending; every axes shares them.
      estimates, low, high: `[A, R]` M_θ in error and its interval for each architecture.
      names: `[A]`, at most three.
      ceiling: `[R]`, what a perfect predictor reaches, 1 − ρ by default; no share is drawn where
        it is 0.
      early: `[A, R, 3]` the same with its interval where each model is stopped early, drawn into
        the second axes with dashes, or None.
      regained: the part of what noise costs at the end, in shares of the ceiling, that stopping
        early must win back: a line in the second axes for each architecture, if `early` is given.
      training_accuracy: `[A, R]` mean over models, or None for no third axes.
      gate: that every training accuracy must exceed, a line in the third axes.
      ax: two or three axes, or None for a new figure.

    Raises:
      ValueError: for more than three architectures.
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
    for axes, (ylabel, scale, line, word) in zip(axes_list, panels, strict=False):
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
        if axes is axes_list[1] and early is not None:
            _draw_early(axes, rates, np.asarray(early, float) * scale[:, None], bands[0], regained)
        # A model that ignores the labels reaches 0.
        least, most = np.nanmin(bands[0]), max(1.0, np.nanmax(bands[0]))
        axes.set(ylim=(min(least, 0) - 0.06, most + 0.08), ylabel=symbols(ylabel))
        shown = np.flatnonzero(np.isfinite(line))
        place = rates[shown[len(shown) // 2]], line[shown[len(shown) // 2]]
        axes.annotate(word, place, (5, 4), textcoords="offset points", color=GREY, fontsize=9)
        if axes is axes_list[1]:  # where the lines end apart; the first axes has the same colours
            label_ends(axes, float(rates[shown[-1]]), ends, 0.13)
    if early is not None:
        words = [("o-", "at the end"), ("o--", "where S errs least")]
        marks = [
            axes_list[1].plot([], [], style, color=INK, mfc=PAPER if "--" in style else INK, ms=4)[
                0
            ]
            for style, _ in words
        ]
        marks += axes_list[1].plot([], [], ":", color=GREY, lw=1.4)
        labels = [word for _, word in words] + ["threshold"]
        axes_list[1].legend(marks, labels, frameon=False, fontsize=8.5, loc="lower left")
    if training_accuracy is not None:
        for name, color, marker, values in zip(
            names, COLORS, MARKERS, np.asarray(training_accuracy, float), strict=False
        ):
            axes_list[2].plot(rates, values, color=color, marker=marker, ms=4, lw=1.2, label=name)
        axes_list[2].axhline(gate, color=GREY, lw=1, ls=(0, (5, 3)))
        axes_list[2].margins(y=0.25)
        name = f"gate {gate:g}".replace(" 0.", " .")
        label_ends(axes_list[2], axes_list[2].get_xlim()[1], [(gate, name, GREY)], 0.2)
        axes_list[2].set(ylabel="training\naccuracy")
    axes_list[-1].set(xlabel="ρ, label-noise rate", xticks=rates)
    return np.asarray(ax)


def _draw_early(
    axes: Axes, rates: np.ndarray, early: np.ndarray, ends: np.ndarray, regained: float
) -> None:
    """Draws shares of early stops `[A, R, 3]`, and where they win enough of the loss back."""
    for (middle, low, high), end, color, marker in zip(
        np.moveaxis(early, -1, 1), ends, COLORS, MARKERS, strict=False
    ):
        axes.fill_between(rates, clip_ends(low), clip_ends(high), color=color, alpha=0.12, lw=0)
        axes.plot(rates, middle, color=color, marker=marker, mfc=PAPER, ms=5, ls=(0, (4, 2)))
        axes.plot(rates, end + regained * (end[0] - end), color=GREY, lw=1.4, ls=":")
