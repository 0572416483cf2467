"""A figure of first-order predictions: rates by score."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from halfway.plots.style import (
    BLUE,
    GREY,
    label_ends,
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
    x: ArrayLike,
    y: ArrayLike,
    pair: ArrayLike,
    num_bins: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean x `[bins]` and (mean, low, high) of y over pairs `[bins, 3]`."""
    x, y, pair = np.asarray(x, float), np.asarray(y, float), np.asarray(pair)
    if not x.shape == y.shape == pair.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"shapes {x.shape}, {y.shape}, {pair.shape}: three equal [B] are needed")
    bins = _bins(x, num_bins)
    pairs, place = np.unique(pair, return_inverse=True)
    middles, rows = [], []
    for index in np.unique(bins):
        inside = bins == index
        count = np.bincount(place[inside], minlength=len(pairs))
        total = np.bincount(place[inside], weights=y[inside], minlength=len(pairs))
        means = total[count > 0] / count[count > 0]
        middles.append(x[inside].mean())
        rows.append(mean_interval(means, bounds))
    return np.array(middles), np.array(rows)


@styled
def rates(
    score: ArrayLike,
    fooled: ArrayLike,
    pair: ArrayLike,
    *,
    xlabel: str = "τ, alignment",
    ylabel: str = "share that fools B, of those that\nboth models have right",
    num_bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the observed transfer rate in bins of a score, intervals over pairs.

    The grey line is the rate over all examples: where every bin would be if the score told nothing.

    Args:
      score: `[B]`, the predictor; bins hold equal numbers of examples.
      fooled: `[B]`, 0 or 1.
      pair: `[B]`, the pair each example was attacked in; a pair's mean in a bin is one value.
      xlabel, ylabel: symbol and words.
      num_bins: 10 for deciles.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the lengths differ, or there is nothing to draw.
    """
    middle, rate = _by_bin(score, fooled, pair, num_bins, (0, 1))
    ax = new_figure(4.8, 3.4).subplots() if ax is None else ax
    ax.fill_between(middle, rate[:, 1], rate[:, 2], color=BLUE, alpha=0.2, lw=0)
    ax.plot(middle, rate[:, 0], color=BLUE, marker="o", ms=5)
    overall = float(np.mean(np.asarray(fooled, float)))
    ax.axhline(overall, color=GREY, lw=1.4, ls=(0, (5, 3)))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34), ylim=(-0.03, 1.03))
    label_ends(ax, ax.get_xlim()[1], [(overall, "all examples", GREY)], 0.08)
    return ax
