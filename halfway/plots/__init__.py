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

from halfway.plots.boundaries import boundaries, boundary_distances, crossings
from halfway.plots.crossed import interval_matrix
from halfway.plots.directions import half_ways
from halfway.plots.ensembles import named_rates, surrogate_curves
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
from halfway.plots.laws import law, transfer_against_risk
from halfway.plots.learning import agreement, dose_response, gap_path, memorization, walks
from halfway.plots.mistakes import mistakes
from halfway.plots.ranks import rank_contest
from halfway.plots.strata import partial_correlations, scatter_strata
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
from halfway.plots.subspaces import numbers_of_directions, parts, rates_by_number
from halfway.plots.transfer import binned_rates, budget_curve, calibration, scatter_transfer_gap

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
    "agreement",
    "barriers",
    "binned_rates",
    "boundaries",
    "boundary_distances",
    "budget_curve",
    "calibration",
    "contour",
    "contour_levels",
    "crossings",
    "decision_section",
    "dose_response",
    "draw_interval",
    "forest",
    "gap_path",
    "half_ways",
    "images",
    "interval_matrix",
    "label_ends",
    "last_finite",
    "law",
    "mean_interval",
    "meeting_matrix",
    "memorization",
    "mistakes",
    "named_rates",
    "new_figure",
    "numbers_of_directions",
    "pair_comparison",
    "partial_correlations",
    "parts",
    "plain_symbols",
    "rank_contest",
    "rates_by_number",
    "scatter_strata",
    "scatter_transfer_gap",
    "slices",
    "spectrum",
    "style",
    "styled",
    "surface",
    "surrogate_curves",
    "symbols",
    "transfer_against_risk",
    "transfer_matrix",
    "walks",
    "wrapped",
]
