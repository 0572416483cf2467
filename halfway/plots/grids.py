"""Figures on a grid: transfer matrices as heat maps, and images under an attack."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from halfway.plots.style import BLUE, INK, PAPER, VERMILLION, new_figure, styled, wrapped

MOST_WRITTEN = 100
"""The largest number of cells of a matrix that shows its numbers."""
_COLORMAP = "cividis"
"""Ordered by brightness, so that colour-blind readers and grey prints show the order too."""


@styled
def transfer_matrix(
    matrix: ArrayLike,
    *,
    surrogates: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    label: str = "M_x, transfer in margin loss",
    limits: tuple[float, float] | None = None,
    xlabel: str = "target",
    ylabel: str = "surrogate, the model attacked",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a matrix of surrogates against targets as a heat map.

    Numbers are written into the cells of a small matrix; a cell that is not finite is left empty.

    Args:
      matrix: `[K, M]`, a row for each surrogate and a column for each target, e.g. from
        `transfer.coefficient`.
      surrogates: `[K]` names; None for numbers from 0.
      targets: `[M]` names; None for numbers from 0.
      label: the label of the colours, symbol and words.
      limits: the values that the first and the last colour stand for; None for the smallest and the
        largest of 0 and the values of the matrix. Two maps need the same limits to be compared.
      xlabel: the label of the columns.
      ylabel: the label of the rows.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if it is no matrix, or the numbers of names and of rows or columns differ.
    """
    values = np.asarray(matrix, float)
    rows, columns = _names(values, surrogates, targets)
    num_rows, num_columns = values.shape
    ax = _grid_axes(values.shape) if ax is None else ax
    finite = values[np.isfinite(values)]
    least, most = limits or (min(0.0, finite.min(initial=0)), finite.max(initial=0) or 1.0)
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(shown, cmap=_COLORMAP, vmin=least, vmax=most, aspect="equal")
    if values.size <= MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = _readable_on(image.to_rgba(value))
                text = f"{value:.2f}"
                ax.text(column, row, text, color=color, ha="center", va="center", fontsize=8)
    across, down = _some(num_columns), _some(num_rows)
    ax.set_xticks(across, columns[across].tolist())
    ax.set_yticks(down, rows[down].tolist())
    width = 18 if num_rows < 6 else 34
    ax.set(xlabel=wrapped(xlabel, 18 if num_columns < 6 else 42), ylabel=wrapped(ylabel, width))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03, aspect=24, ticks=MaxNLocator(6))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(wrapped(label, width))
    return ax


@styled
def images(
    clean: ArrayLike,
    adversarial: ArrayLike | None = None,
    *,
    titles: Sequence[str] | None = None,
    perturbed_titles: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a row of images and, below them, a perturbation and the perturbed images.

    A perturbation of grey images is orange where it brightens, blue where it darkens, and paper
    where it does nothing; one of colour images is drawn around grey, channel by channel. The
    largest change of all the examples has full strength.

    Args:
      clean: `[B, H, W, D]` in [0, 1], a few images, D of 1 or 3.
      adversarial: `[B, H, W, D]`, the same images after an attack; None for one row.
      titles: `[B]` texts above the images, e.g. their labels.
      perturbed_titles: `[B]` texts below the perturbed images, e.g. the classes that a model
        predicts.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes are not `[B, H, W, D]` with D of 1 or 3, or differ.
    """
    rows = [np.asarray(values, float) for values in (clean, adversarial) if values is not None]
    shape = rows[0].shape
    if len(shape) != 4 or shape[3] not in (1, 3) or any(row.shape != shape for row in rows):
        raise ValueError(
            f"images: shapes {' and '.join(str(row.shape) for row in rows)}; [B, H, W, D] with D "
            "of 1 or 3 is needed, the same for both"
        )
    words = [""]
    if adversarial is not None:
        rows.insert(1, _perturbation(rows[1] - rows[0]))
        words = ["clean", "change", "attacked"]
    height, width = shape[1:3]
    gap = max(1, round(0.12 * width)) / width
    count = shape[0]
    if ax is None:
        ax = new_figure(max(2.4, min(6.4, 0.62 * count + 0.8)), 0.62 * len(rows) + 0.5).subplots()
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            left, top = column * (1 + gap), row * (height / width + gap)
            rgb = np.broadcast_to(np.clip(picture, 0, 1), (height, width, 3))
            place = (left, left + 1, top + height / width, top)
            ax.imshow(rgb, extent=place, interpolation="nearest")
    step = height / width + gap
    ax.set(
        xlim=(-0.01, count * (1 + gap) - gap + 0.01), ylim=(len(rows) * step - gap + 0.01, -0.01)
    )
    ax.set_yticks([row * step + height / width / 2 for row in range(len(rows))], words)
    centres = [column * (1 + gap) + 0.5 for column in range(count)]
    ax.set_xticks(centres, perturbed_titles or [""] * count)
    for centre, title in zip(centres, titles or [], strict=False):
        ax.annotate(
            title,
            (centre, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            annotation_clip=False,
        )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _names(
    values: np.ndarray, surrogates: Sequence[str] | None, targets: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the names of rows and columns after checking their numbers."""
    if values.ndim != 2 or not values.size:
        raise ValueError(f"transfer_matrix: a matrix of shape {values.shape}; [K, M] is needed")
    given = [
        [str(index) for index in range(size)] if names is None else list(names)
        for names, size in zip((surrogates, targets), values.shape, strict=True)
    ]
    if tuple(map(len, given)) != values.shape:
        counts = " and ".join(str(len(names)) for names in given)
        raise ValueError(f"transfer_matrix: {counts} names for a matrix of shape {values.shape}")
    return np.array(given[0]), np.array(given[1])


def _grid_axes(shape: tuple[int, ...]) -> Axes:
    """Returns axes of a new figure, large enough for numbers in the cells of a small matrix."""
    height, width = (min(4.6, max(1.9, 0.46 * size)) for size in shape)
    return new_figure(width + 1.9, height + 0.8).subplots()


def _some(size: int) -> np.ndarray:
    """Returns the rows whose names are shown: all of up to 20, else every 10th or so."""
    return np.arange(0, size, 1 if size <= 20 else int(np.ceil(size / 100)) * 10)


def _readable_on(color: ArrayLike) -> str:
    """Returns the colour of ink or paper that is readable on a colour (luminance, WCAG 2)."""
    channels = np.asarray(color, float)[:3]
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return INK if linear @ (0.2126, 0.7152, 0.0722) > 0.18 else PAPER


def _perturbation(change: np.ndarray) -> np.ndarray:
    """Returns a change of images `[B, H, W, D]` as colours `[B, H, W, 3]`."""
    strength = change / (np.abs(change).max() or 1.0)
    if change.shape[-1] == 3:
        return 0.5 + 0.5 * strength
    paper, up, down = (np.array(to_rgb(color)) for color in (PAPER, VERMILLION, BLUE))
    return paper + np.abs(strength) * (np.where(strength > 0, up, down) - paper)
