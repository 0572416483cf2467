"""Figures of the framework as functions of arrays: `(data..., *, ax=None) -> Axes`.

Nothing here touches pyplot or matplotlib's global settings: where `ax` is None a figure of its
own is made, reachable as `ax.figure`, which a notebook shows after `%matplotlib inline`. Axes of
your own look like the others if made under the style:

    with plots.style():
        figure, ax = plt.subplots(1, 2, layout="constrained")

Data in at most three colours that colour-blind readers can tell apart, controls and references
in grey; lines are labelled at their ends. Labels may hold symbols written as `M_θ`, which are
drawn with a subscript.
"""

from halfway.plots.crossed import interval_matrix
from halfway.plots.grids import images, transfer_matrix
from halfway.plots.intervals import ForestRow, forest, pair_comparison
from halfway.plots.landscapes import (
    barriers,
    contour,
    contour_levels,
    decision_section,
    meeting_matrix,
    slices,
    spectrum,
    surface,
)
from halfway.plots.laws import law, spectral_law, transfer_against_risk
from halfway.plots.learning import walks
from halfway.plots.mistakes import mistakes
from halfway.plots.style import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    GRID,
    INK,
    MARKERS,
    PAPER,
    STYLE,
    SYMBOL,
    VERDICT_MARKS,
    VERMILLION,
    draw_interval,
    label_ends,
    last_finite,
    mean_interval,
    new_figure,
    plain_symbols,
    style,
    styled,
    symbols,
    wrapped,
)
from halfway.plots.transfer import budget_curve, scatter_transfer_gap

__all__ = [
    "BLUE",
    "COLORS",
    "GREEN",
    "GREY",
    "GRID",
    "INK",
    "MARKERS",
    "PAPER",
    "STYLE",
    "SYMBOL",
    "VERDICT_MARKS",
    "VERMILLION",
    "ForestRow",
    "barriers",
    "budget_curve",
    "contour",
    "contour_levels",
    "decision_section",
    "draw_interval",
    "forest",
    "images",
    "interval_matrix",
    "label_ends",
    "last_finite",
    "law",
    "mean_interval",
    "meeting_matrix",
    "mistakes",
    "new_figure",
    "pair_comparison",
    "plain_symbols",
    "scatter_transfer_gap",
    "slices",
    "spectral_law",
    "spectrum",
    "style",
    "styled",
    "surface",
    "symbols",
    "transfer_against_risk",
    "transfer_matrix",
    "walks",
    "wrapped",
]
