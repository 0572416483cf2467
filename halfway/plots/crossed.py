"""A transfer matrix of few rows whose cells show their intervals."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from halfway.plots.grids import _readable_on, transfer_matrix
from halfway.plots.style import INK, new_figure, styled


@styled
def interval_matrix(
    matrix: ArrayLike,
    *,
    names: Sequence[str],
    targets: Sequence[str] | None = None,
    label: str,
    limits: tuple[float, float] | None = None,
    framed: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a matrix as a heat map, the interval of each cell below its number.

    Args:
      matrix: `[K, M, 3]` estimate, low, high; a row for each kind of surrogate, a column for each
        kind of target. A cell that is not finite is empty; an infinite interval is left out.
      names: `[K]`, the names of the rows.
      targets: `[M]`, the names of the columns; None for the names of the rows.
      label: the label of the colours, symbol and words.
      limits: the values that the first and the last colour stand for, as in
        `plots.transfer_matrix`.
      framed: whether the diagonal, where surrogate and target are of one kind, has a frame.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shape does not fit the names.
    """
    values = np.asarray(matrix, float)
    targets = names if targets is None else targets
    shape = len(names), len(targets)
    if values.shape != (*shape, 3):
        raise ValueError(
            f"interval_matrix: a matrix of shape {values.shape} for {shape[0]} by {shape[1]} "
            "names; [K, M, 3] is needed"
        )
    if ax is None:
        ax = new_figure(0.86 * shape[1] + 2.2, 0.72 * shape[0] + 0.9).subplots()
    transfer_matrix(
        values[..., 0], surrogates=names, targets=targets, label=label, limits=limits, ax=ax
    )
    ax.set_aspect("auto")
    (image,) = ax.images
    for text in ax.texts:
        column, row = text.get_position()
        text.set_position((column, row - 0.13))
        text.set_fontsize(9.5)
    for (row, column), estimate in np.ndenumerate(values[..., 0]):
        low, high = values[row, column, 1:]
        if np.isfinite(estimate) and np.isfinite(low) and np.isfinite(high):
            color = _readable_on(image.to_rgba(estimate))
            words = f"[{low:.2f}, {high:.2f}]".replace("-", "−")
            ax.text(column, row + 0.22, words, color=color, ha="center", va="center", fontsize=6.5)
    if framed:
        for place in range(min(shape)):
            corner = (place - 0.47, place - 0.47)
            shown = values[place, place, 0]
            color = _readable_on(image.to_rgba(shown)) if np.isfinite(shown) else INK
            ax.add_patch(
                Rectangle(corner, 0.94, 0.94, fill=False, ec=color, lw=1.2, ls=(0, (3, 2)))
            )
    return ax
