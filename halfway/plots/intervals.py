"""Rows of estimates with their intervals: a forest of effects, and pairs with their controls."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    GRID,
    INK,
    VERDICT_MARKS,
    draw_interval,
    mean_interval,
    new_figure,
    styled,
    symbols,
    wrapped,
)


class ForestRow(NamedTuple):
    """A row of a forest plot, with an axis of its own since units differ between hypotheses.

    Attributes:
      name: the hypothesis, e.g. "G1".
      label: its effect in words with the symbol.
      estimate: the effect.
      low: the lower end of its interval; an infinite end becomes an arrow.
      high: the upper end of its interval.
      threshold: one number, or the two margins of an equivalence.
      direction: the side of the threshold that the claim is on: "greater", "less" or "within".
      verdict: a word of `VERDICT_MARKS`.
      value: effect and interval as text, written at the right.
      control: estimate, low and high of the control on the same axis, or None.
      control_label: the name of the control.
      note: a few words more, e.g. the part of the rule that fails.
    """

    name: str
    label: str
    estimate: float
    low: float
    high: float
    threshold: tuple[float, ...]
    direction: str = "greater"
    verdict: str = "inconclusive"
    value: str = ""
    control: tuple[float, float, float] | None = None
    control_label: str = "control"
    note: str = ""


@styled
def forest(
    rows: Sequence[ForestRow], *, ax: Sequence[Axes] | np.ndarray | None = None
) -> np.ndarray:
    """Returns small axes `[R]`, one for each row: effect, interval, threshold, control in grey.

    The side of the threshold that the claim is on is shaded. Each row has a scale of its own.

    Args:
      rows: R rows, at least one.
      ax: R axes to draw on, or None for a new figure.

    Raises:
      ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("forest: no rows; at least one is needed")
    if ax is None:
        figure = new_figure(4.8, 0.3 + 0.98 * len(rows))
        ax = np.atleast_1d(figure.subplots(len(rows), 1))
    for axes, row in zip(ax, rows, strict=True):
        _forest_row(axes, row)
    return np.asarray(ax)


def _forest_row(ax: Axes, row: ForestRow) -> None:
    intervals = [(row.estimate, row.low, row.high), *([row.control] if row.control else [])]
    values = np.array([*np.ravel(intervals), *row.threshold], float)
    values = values[np.isfinite(values)]
    least, most = (values.min(), values.max()) if values.size else (0.0, 1.0)
    pad = 0.09 * (most - least) or 0.1 * abs(most) or 1.0
    ax.set(xlim=(least - pad, most + pad), ylim=(0, 1), yticks=[])
    left, right = ax.get_xlim()
    edges = {"greater": (row.threshold[0], right), "less": (left, row.threshold[0])}
    ax.axvspan(*edges.get(row.direction, row.threshold[:2]), color=GRID, alpha=0.55, lw=0)
    for threshold in row.threshold:
        ax.axvline(threshold, color=INK, lw=1, ls=(0, (4, 3)))
    color, marker = VERDICT_MARKS[row.verdict]
    if row.control:
        draw_interval(ax, *row.control, 0.22, GREY, "s", 5)
    draw_interval(
        ax, row.estimate, row.low, row.high, 0.66 if row.control else 0.5, color, marker, 8
    )
    ax.spines["left"].set_visible(False)
    ax.locator_params(axis="x", nbins=4)  # more labels would overlap where numbers are small
    ax.set_title(wrapped(f"{row.name}: {row.label}", 62), loc="left", fontsize=9.5, pad=5)
    aside = {"transform": ax.transAxes, "fontsize": 9, "va": "center", "clip_on": False}
    ax.text(1.05, 0.84, row.verdict, color=color, **aside)
    ax.text(1.05, 0.46, row.value, **aside)
    below = [row.control_label] if row.control else []
    words = "; ".join([*below, *([row.note] if row.note else [])])
    ax.text(1.05, 0.08, symbols(words), color=GREY, **aside)


@styled
def pair_comparison(
    values: ArrayLike,
    controls: ArrayLike,
    *,
    names: Sequence[str],
    treatment: str,
    control_names: Sequence[str],
    xlabel: str,
    intervals: ArrayLike | None = None,
    threshold: float | None = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with every pair's value beside its controls, a block for each architecture.

    Args:
      values: `[A, P]`, a value for each pair of each of A architectures; `[P]` for one
        architecture.
      controls: `[A, K, P]`, the values of the same pairs under each of K controls; `[K, P]` for one
        architecture.
      names: `[A]`, the names of the architectures.
      treatment: the name of the row of values.
      control_names: `[K]`, the names of the rows of controls.
      xlabel: the quantity, symbol and words.
      intervals: `[A, 1 + K, 3]` estimate, low, high of each row; None for mean and t interval over
        pairs.
      threshold: where a line is drawn, or None.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit the names.
    """
    values = np.atleast_2d(np.asarray(values, float))
    controls = np.asarray(controls, float)
    controls = controls[None] if controls.ndim == 2 else controls
    wanted = (len(names), len(control_names), values.shape[1])
    if values.shape[:1] != wanted[:1] or controls.shape != wanted:
        raise ValueError(
            f"pair_comparison: values {values.shape} and controls {controls.shape} of "
            f"{len(names)} names and {len(control_names)} controls; they are [A, P] and [A, K, P]"
        )
    blocks = np.concatenate([values[:, None], controls], axis=1)
    num_blocks, num_rows, _ = blocks.shape
    given = None if intervals is None else np.asarray(intervals, float)
    if ax is None:
        ax = new_figure(4.8, 0.75 + 0.36 * num_blocks * (num_rows + 0.7)).subplots()
    shown = np.concatenate([blocks.ravel(), [0.0 if threshold is None else threshold]])
    least, most = np.nanmin(shown), np.nanmax(shown)
    ax.set_xlim(least - 0.05 * (most - least), most + 0.05 * (most - least))
    if threshold is not None:
        ax.axvline(threshold, color=INK, lw=1, ls=(0, (4, 3)))
    ticks, labels = [], []
    for index, (name, block) in enumerate(zip(names, blocks, strict=True)):
        top = -index * (num_rows + 0.7)
        rows = top - np.arange(num_rows)
        ax.plot(block, rows, color=GRID, lw=0.8, zorder=1)
        for row, (y, data) in enumerate(zip(rows, block, strict=True)):
            color = GREY if row else BLUE
            ax.scatter(data, np.full(data.shape, y), s=14, color=color, alpha=0.6, lw=0, zorder=2)
            middle, low, high = mean_interval(data) if given is None else given[index, row]
            mark = (GREY, "s") if row else (INK, "o")
            draw_interval(ax, middle, low, high, y - 0.24, *mark, 5)
        ticks += list(rows)
        labels += [wrapped(word, 22) for word in (f"{name}: {treatment}", *control_names)]
    ax.set_yticks(ticks, labels)
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(min(ticks) - 0.6, 0.6), xlabel=wrapped(xlabel, 36))
    ax.spines["left"].set_visible(False)
    return ax
