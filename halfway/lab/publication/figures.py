"""Figures of published results: the map, how clear each verdict is, the law on all data sets."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from halfway.lab import studies
from halfway.lab.publication import tables
from halfway.lab.publication.result import Result, Triple
from halfway.lab.studies.t3 import figures as t3_figures
from halfway.lab.study import wording
from halfway.lab.study.verdict import Verdict
from halfway.plots.style import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    MARKERS,
    PAPER,
    VERDICT_MARKS,
    VERMILLION,
    clip_ends,
    new_figure,
    styled,
    symbols,
)

DATASET_COLORS = (INK, BLUE, VERMILLION, GREEN)
"""Of data sets, in the order of the documents."""
_FARTHEST = 20.0
"""Half widths of an interval beyond which a point is drawn at the edge."""


@styled
def verdict_map(results: Sequence[Result]) -> Figure:
    """Returns the map: every study by data set, a mark and a word for what came out.

    Args:
      results: shipped ones.
    """
    listed = [study for study in studies.listed() if study.kind != "description"]
    figure = new_figure(3.9 + 1.25 * len(results), 0.6 + 0.25 * len(listed))
    ax = figure.subplots()
    for row, study in enumerate(listed):
        for column, result in enumerate(results):
            verdict = result.verdict(study.id)
            if verdict is None:
                ax.text(column, row, "not run", color=GREY, fontsize=8, ha="center", va="center")
                continue
            color, marker = VERDICT_MARKS[verdict.verdict]
            ax.plot(column - 0.36, row, marker, color=color, ms=7)
            ax.text(column - 0.26, row, verdict.verdict, fontsize=8.5, va="center")
    ax.set_yticks(range(len(listed)), [f"{study.id}  {study.short}" for study in listed])
    ax.set_xticks(range(len(results)), [tables.name_of(result) for result in results])
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=8.5)
    ax.set(xlim=(-0.5, len(results) - 0.5), ylim=(len(listed) - 0.5, -0.5))
    for spine in ax.spines.values():
        spine.set_visible(False)
    for row in range(1, len(listed)):
        if listed[row].id[0] != listed[row - 1].id[0]:
            ax.axhline(row - 0.5, color=GREY, lw=0.8)
    ax.hlines(np.arange(len(listed)) + 0.5, -0.5, len(results) - 0.5, color=GRID, lw=0.4)
    return figure


@styled
def clearness(results: Sequence[Result]) -> Figure:
    """Returns the forest of all hypotheses: how far effects lie beyond the threshold of the claim.

    The unit is half of the 95 % interval of each effect, so that 1 is where an interval alone would
    be clear of the threshold.

    Args:
      results: shipped ones.
    """
    listed = [study for study in studies.listed() if study.kind == "hypothesis"]
    figure = new_figure(6.6, 0.9 + 0.32 * len(listed))
    ax = figure.subplots()
    ax.axvspan(-_FARTHEST * 1.3, 0, color=GRID, alpha=0.35, lw=0)
    for level, style in ((0, "-"), (1, ":"), (-1, ":")):
        ax.axvline(level, color=INK, lw=0.9, ls=style)
    spread = 0.5 / max(1, len(results))
    for place, result in enumerate(results):
        color, marker = DATASET_COLORS[place % len(DATASET_COLORS)], MARKERS[place % len(MARKERS)]
        rows, values = [], []
        for row, study in enumerate(listed):
            verdict = result.verdict(study.id)
            value = math.nan if verdict is None else clear_by(verdict)
            if math.isfinite(value):
                rows.append(row + spread * (place - (len(results) - 1) / 2))
                values.append(np.clip(value, -_FARTHEST, _FARTHEST))
        ax.plot(values, rows, marker, color=color, ms=6, mec=PAPER, label=tables.name_of(result))
    ax.set_xscale("symlog", linthresh=2)
    ticks = [-20, -5, -2, -1, 0, 1, 2, 5, 20]
    names = ["≤ −20", *(f"{tick}".replace("-", "−") for tick in ticks[1:-1]), "≥ 20"]
    ax.set_xticks(ticks, names)
    ax.minorticks_off()
    ax.set_xlim(-_FARTHEST * 1.3, _FARTHEST * 1.3)
    ax.set_yticks(range(len(listed)), [f"{study.id}  {study.short}" for study in listed])
    ax.set_ylim(len(listed) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    ax.set_xlabel("distance from the threshold, in half widths\nof the interval; right: as claimed")
    ax.legend(
        frameon=False,
        fontsize=9,
        ncols=2,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        handletextpad=0.3,
        borderpad=0,
    )
    return figure


def clear_by(verdict: Verdict) -> float:
    """Returns how far an effect lies on the claim's side, in half widths of its interval.

    Args:
      verdict: of a study.
    """
    part = wording.effect_part(verdict)
    if part is None:
        return math.nan
    unit = wording.half_width(verdict.effect, *verdict.interval)
    return part.clearance / unit if unit else math.nan


@styled
def law(results: Sequence[Result], num_deciding: int, largest_error: float) -> Figure:
    """Returns the law of transfer on all data sets: each intervention, and the mean errors.

    Args:
      results: shipped ones.
      num_deciding: how many of the predictors decide, the law first.
      largest_error: the threshold of the law.
    """
    known = [(result, result.law) for result in results if result.law is not None]
    figure = new_figure(10.6, 5.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    rows = t3_figures.error_rows(right, list(known[0][1].errors), num_deciding, largest_error)
    highest = 0.0
    for place, (result, points) in enumerate(known):
        color, marker = DATASET_COLORS[place % len(DATASET_COLORS)], MARKERS[place % len(MARKERS)]
        base, values = points.measured[0, 0], points.measured[1:]
        ends = clip_ends(values[:, 1:].T)
        left.errorbar(
            points.predicted,
            values[:, 0],
            np.abs(ends - values[:, 0]),
            fmt=marker,
            ms=5.5,
            color=color,
            mec=PAPER,
            mew=0.5,
            elinewidth=0.8,
            label=tables.name_of(result),
        )
        left.plot(base, base, "*", color=color, ms=13, mec=PAPER)
        highest = max(highest, values[:, 0].max(), max(points.predicted))
        offset = 0.5 / len(known) * (place - (len(known) - 1) / 2)
        _errors(right, points.errors, rows + offset, color, marker)
    limits = (-0.03, highest + 0.06)
    left.plot(limits, limits, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    left.set(xlim=limits, ylim=limits, aspect="equal")
    left.set_xlabel(symbols("M_x predicted from μ_f and each data set's base (star)"))
    left.set_ylabel(symbols("M_x measured, share of the attacked model's rise in loss"))
    left.legend(frameon=False, loc="upper left")
    right.set_xlim(left=0)
    return figure


@styled
def noise_scales(
    curves: Mapping[str, Mapping[tuple[str, str], Mapping[int, Triple]]],
    *,
    half: str,
    published: float,
) -> Figure:
    """Returns the gradient noise scale along training: an architecture a panel, a data set a curve.

    Values that are not positive, whose signal cannot be told from 0, are left out.

    Args:
      curves: by data set: n_half and the ends of its interval by step, of architectures and halves.
      half: the half that is shown, in words.
      published: the published mean over training, drawn as a line to compare with.
    """
    architectures = list(
        dict.fromkeys(
            place[0] for places in curves.values() for place in places if place[1] == half
        )
    )
    figure = new_figure(7.6, 3.4)
    panels = figure.subplots(1, len(architectures), sharey=True, squeeze=False)[0]
    for ax, architecture in zip(panels, architectures, strict=True):
        drawn = zip(curves.items(), DATASET_COLORS, MARKERS, strict=False)
        for (name, places), color, marker in drawn:
            curve = places.get((architecture, half), {})
            steps = sorted(curve)
            middle, low, high = np.array([curve[step] for step in steps], float).reshape(-1, 3).T
            shown = np.isfinite(middle) & (middle > 0)
            x = np.array(steps, float)[shown]
            ends = [clip_ends(values[shown]) for values in (np.maximum(low, 1.0), high)]
            ax.fill_between(x, *ends, color=color, alpha=0.13, lw=0)
            ax.plot(x, middle[shown], color=color, marker=marker, ms=4, lw=1.2, label=name)
        ax.axhline(published, color=GREY, ls=(0, (4, 2)), lw=0.9)
        ax.set_xscale("symlog", linthresh=10)
        ax.set_yscale("log")
        ax.set(xlabel="training steps", xlim=(0, None))
        ax.set_title(architecture.upper(), loc="left", fontsize=10)
    panels[0].set(ylabel=symbols("n_half, gradient noise scale"))
    panels[0].annotate(
        "published mean, MNIST",
        (0.02, published),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=GREY,
        fontsize=8,
    )
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


def _errors(ax, errors: Mapping[str, Triple], rows: np.ndarray, color, marker) -> None:
    for row, (estimate, low, high) in zip(rows, errors.values(), strict=True):
        if math.isfinite(estimate):
            ax.plot(clip_ends(np.array([low, high])), [row, row], color=color, lw=1.4)
            ax.plot(estimate, row, marker, color=color, ms=5.5, mec=PAPER, mew=0.5)
