"""The figure of T3: the law of transfer, and how far it and its rivals err."""

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
    PAPER,
    clip_ends,
    new_figure,
    styled,
    symbols,
)

_NAMED = 4
"""Points of the largest error that are named in the figure."""


@styled
def law(
    predicted: ArrayLike,
    measured: ArrayLike,
    *,
    factors: Sequence[str],
    names: Sequence[str],
    errors: Mapping[str, tuple[float, float, float]],
    num_deciding: int,
    largest_error: float,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns two axes: measured against predicted M_x, and the mean error of each predictor.

    Args:
      predicted: `[N]`, M_x of each intervention.
      measured: `[1 + N, 3]`, estimate, low and high, the base first.
      factors: `[N]`, what each intervention changes; a mark of its own for each.
      names: `[N]`, of the interventions.
      errors: estimate, low and high by predictor, the law first.
      num_deciding: how many of these decide; the others are set apart and grey.
      largest_error: the threshold of the law.
      ax: `[2]`, or None for a new figure.
    """
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    if ax is None:
        ax = new_figure(10.2, 5.6).subplots(1, 2, width_ratios=(1.5, 1))
    axes = np.asarray(ax, object)
    _points(axes[0], predicted, measured, factors, names)
    _bars(axes[1], errors, num_deciding, largest_error)
    return axes


def _points(ax, predicted, measured, factors, names) -> None:
    base, values = measured[0, 0], measured[1:]
    ends = clip_ends(values[:, 1:].T)
    known = np.isfinite(predicted) & np.isfinite(values[:, 0])
    ax.errorbar(
        predicted[known],
        values[known, 0],
        np.abs(ends[:, known] - values[known, 0]),
        fmt="none",
        ecolor=GREY,
        elinewidth=0.9,
        zorder=1,
    )
    colors = (*COLORS, INK)
    for place, factor in enumerate(dict.fromkeys(factors)):
        mask = known & (np.array(factors) == factor)
        ax.scatter(
            predicted[mask],
            values[mask, 0],
            c=colors[place % len(colors)],
            marker=MARKERS[place // len(colors) + place % 2 * 2],
            s=34,
            ec=PAPER,
            lw=0.5,
            zorder=2,
            label=symbols(factor),
        )
    ax.plot(base, base, "*", color=INK, ms=12, mec=PAPER, zorder=3, label="base, the anchor")
    shown = np.r_[predicted[known], values[known, 0], base]
    low, high = min(0.0, shown.min()) - 0.02, shown.max() + 0.06
    ax.plot([low, high], [low, high], color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    distance = np.where(known, np.abs(predicted - values[:, 0]), -1)
    for index in np.argsort(-distance)[:_NAMED]:
        if known[index]:
            above = values[index, 0] > predicted[index]
            ax.annotate(
                symbols(names[index]),
                (predicted[index], values[index, 0]),
                xytext=(-6, 5) if above else (6, -5),
                textcoords="offset points",
                ha="right" if above else "left",
                va="bottom" if above else "top",
                fontsize=8.5,
            )
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set_xlabel(symbols("M_x predicted from μ_f and the base"))
    ax.set_ylabel(symbols("M_x measured, share of its own rise in loss"))
    ax.legend(
        frameon=False,
        fontsize=8.5,
        loc="lower right",
        ncols=2,
        handletextpad=0.2,
        columnspacing=0.8,
        borderpad=0,
    )


def _bars(ax, errors, num_deciding, largest_error) -> None:
    rows = error_rows(ax, list(errors), num_deciding, largest_error)
    for row, (place, (middle, low, high)) in zip(rows, enumerate(errors.values()), strict=True):
        color = BLUE if place == 0 else INK if place < num_deciding else GREY
        if np.isfinite(middle):
            ends = clip_ends(np.array([low, high]))
            ax.plot(ends, [row, row], color=color, lw=1.8)
            ax.plot(middle, row, "D" if place == 0 else "o", color=color, ms=6)
    ax.set_xlim(left=0)


def error_rows(
    ax: Axes, names: Sequence[str], num_deciding: int, largest_error: float
) -> np.ndarray:
    """Returns where the errors of predictors stand on axes that are made for them.

    Args:
      ax: whose y axis gets the names, those that do not decide set apart below a line.
      names: of the predictors, the law first.
      num_deciding: how many of them decide.
      largest_error: the threshold of the law.
    """
    rows = np.arange(len(names), dtype=float)
    rows[num_deciding:] += 0.8
    ax.axvline(largest_error, color=INK, lw=1, ls=(0, (4, 3)))
    ax.axhline((rows[num_deciding - 1] + rows[num_deciding]) / 2, color=GREY, lw=0.6)
    ax.set_yticks(rows, [symbols(name) for name in names])
    ax.invert_yaxis()
    ax.set_xlabel(symbols("mean error in M_x"))
    return rows
