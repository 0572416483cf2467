"""Figures of orthogonal directions: how often they fool a target, and how many there are."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    COLORS,
    GREY,
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


@styled
def rates_by_number(
    fooling: ArrayLike,
    both: ArrayLike,
    others: ArrayLike,
    *,
    num_directions: int,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the target's two fooling rates by how many directions fool the surrogate.

    Only examples with some but not all directions count. Lines are means over pairs, bands their
    95 % t intervals; a number that fewer than two pairs have is left out.

    Args:
      fooling: `[P, B]` integers, how many directions fool the surrogate; negative: not counted.
      both: `[P, B]`, how many of them fool the target.
      others: `[P, B]`, how many of the other directions fool the target.
      num_directions: k, of all directions.
      ax: where to draw, or None for a new figure.
    """
    fooling = np.asarray(fooling)
    numbers = np.arange(1, num_directions)
    rows = np.full((2, 3, numbers.size), np.nan)
    for index, number in enumerate(numbers):
        here = fooling == number
        count = here.sum(1)
        if (count > 0).sum() < 2:
            continue
        for line, (values, total) in enumerate(((both, number), (others, num_directions - number))):
            rate = np.where(here, np.asarray(values), 0).sum(1) / np.maximum(count * total, 1)
            rows[line, :, index] = mean_interval(rate[count > 0], (0, 1))
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    ends = []
    for (middle, low, high), name, color, marker in zip(
        rows, ("fool A", "the others"), (BLUE, GREY), MARKERS, strict=False
    ):
        ax.fill_between(numbers, clip_ends(low), clip_ends(high), color=color, alpha=0.2, lw=0)
        ax.plot(numbers, middle, color=color, marker=marker, ms=5)
        ends.append((last_finite(middle), name, color))
    ax.set(
        xlabel=wrapped(f"how many of an example's {num_directions} directions fool A", 42),
        ylabel=wrapped("share of directions that fool B", 34),
        xlim=(0.5, num_directions - 0.5),
        ylim=_from_zero(rows[:, 2]),
    )
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    shown = numbers[np.isfinite(rows[0, 0])]
    label_ends(ax, float(shown[-1]) if shown.size else num_directions - 0.5, ends, 0.08)
    return ax


@styled
def numbers_of_directions(
    counts: Mapping[str, ArrayLike], *, num_directions: int, ax: Axes | None = None
) -> Axes:
    """Returns axes with the share of examples that have at least so many directions.

    Args:
      counts: `{name: [P, B]}` integers, how many directions of each kind; negative: not counted.
      num_directions: k, of all directions.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three kinds.
    """
    check_colors("numbers_of_directions", len(counts))
    numbers = np.arange(1, num_directions + 1)
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    ends, highest = [], [0.0]
    for (name, values), color, marker in zip(counts.items(), COLORS, MARKERS, strict=False):
        values = np.asarray(values)
        total = np.maximum((values >= 0).sum(1), 1)
        shares = (values[:, :, None] >= numbers).sum(1) / total[:, None]
        middle, low, high = np.array([mean_interval(share, (0, 1)) for share in shares.T]).T
        ax.fill_between(numbers, clip_ends(low), clip_ends(high), color=color, alpha=0.2, lw=0)
        ax.plot(numbers, middle, color=color, marker=marker, ms=5)
        ends.append((last_finite(middle), name, color))
        highest.append(float(np.nanmax(high, initial=0.0)))
    ax.set(
        xlabel=wrapped(f"number of directions, of {num_directions}, at least", 42),
        ylabel=wrapped("share of the examples that both models have right", 30),
        ylim=_from_zero(highest),
    )
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    label_ends(ax, float(numbers[-1]), ends, 0.09)
    return ax


def _from_zero(values: ArrayLike) -> tuple[float, float]:
    """Returns limits from 0 to a little above the highest share, at most 1."""
    highest = np.nanmax(np.asarray(values, float), initial=0.1)
    top = min(1.0, 1.1 * float(highest))
    return -0.03 * top, 1.03 * top
