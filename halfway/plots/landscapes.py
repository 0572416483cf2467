"""Figures of landscapes: planes with walks on them, paths, spectra, class matrices, sections."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.contour import QuadContourSet
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy import ndimage

from halfway.plots.style import (
    BLUE,
    COLORS,
    GREY,
    INK,
    PAPER,
    VERMILLION,
    check_colors,
    label_ends,
    mean_interval,
    new_figure,
    styled,
    symbols,
    wrapped,
)

_STRENGTHS = (0.0, 0.75)
"""Opacity of grey from the lowest to the highest level, readable on light and dark pages."""
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "|||", "+++", "***")
_DIVERGING = LinearSegmentedColormap.from_list("meeting", [VERMILLION, PAPER, BLUE])
_POSITIVE = LinearSegmentedColormap.from_list("meet", [PAPER, BLUE])
_NEGATIVE = LinearSegmentedColormap.from_list("oppose", [VERMILLION, PAPER])


@styled
def contour(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    walks: Mapping[str, ArrayLike] | None = None,
    points: Mapping[str, ArrayLike] | None = None,
    levels: ArrayLike | None = None,
    title: str = "",
    xlabel: str = "distance in the plane",
    ylabel: str = "distance in the plane",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a landscape on a plane as levels of grey, darker where it is higher.

    Args:
      x: `[X]`, ascending coordinates along the first axis.
      y: `[Y]`, ascending coordinates along the second axis.
      values: `[Y, X]`, as `landscapes.surface` gives; a value that is not finite stays empty.
      walks: the coordinates `[T, 2]` of at most three walks by name; a dot marks the end of each.
      points: the coordinates `[2]` of points by name, which are marked and named.
      levels: ascending levels; None for the nine of `contour_levels`. Two panels need the same
        levels to be compared.
      title: the name of the landscape.
      xlabel: the label of the first axis, words with units.
      ylabel: the label of the second axis, words with units.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit together, no value is finite, or there are more than
        three walks.
    """
    x, y, values = _grid("contour", x, y, values)
    walks, points = dict(walks or {}), dict(points or {})
    check_colors("contour", len(walks))
    ax = new_figure(4.4, 3.9).subplots() if ax is None else ax
    levels = contour_levels(values) if levels is None else np.asarray(levels, float)
    shown = np.ma.masked_invalid(values)
    strengths = np.linspace(*_STRENGTHS, len(levels) + 1)
    ax.contourf(
        x, y, shown, levels=levels, extend="both", colors=[to_rgba(GREY, s) for s in strengths]
    )
    drawn = ax.contour(x, y, shown, levels=levels, colors=[GREY], linewidths=0.7)
    _label_levels(drawn)
    for (name, walk), color in zip(walks.items(), COLORS, strict=False):
        walk = np.asarray(walk, float)
        ax.plot(walk[:, 0], walk[:, 1], color=color, lw=2.2, label=symbols(name))
        ax.plot(walk[-1, 0], walk[-1, 1], "o", color=color, ms=7, mec=PAPER, zorder=4)
    for name, place in points.items():
        across, up = np.asarray(place, float)
        ax.plot(across, up, "o", color=INK, ms=4, zorder=5)
        box = {"boxstyle": "round,pad=.15", "fc": PAPER, "ec": "none", "alpha": 0.8}
        ax.annotate(
            symbols(name),
            (across, up),
            (6, 6),
            textcoords="offset points",
            bbox=box,
            zorder=6,
        )
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
    ax.set(xlabel=wrapped(xlabel, 34), ylabel=wrapped(ylabel, 34))
    ax.set_title(wrapped(title, 40), fontsize=10, loc="left")
    # The outermost ticks would run into those of a panel beside this one.
    ax.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    if walks:  # below: the landscape fills the axes
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3, fontsize=9, frameon=False)
    return ax


def contour_levels(values: ArrayLike, number: int = 9) -> np.ndarray:
    """Returns ascending levels for one or several landscapes.

    Levels have equal ratios where all values are positive, which shows a basin far below its rim,
    else equal differences. They lie between the 2nd and the 98th percentile of the finite values.
    Levels of equal ratios do not go below a thousandth of the highest, since differences further
    down are not of interest.

    Args:
      values: the values of the landscapes, of any shape.
      number: the number of levels, at least 2.

    Raises:
      ValueError: if no value is finite.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        raise ValueError("contour: no finite value, nothing to draw")
    low, high = np.percentile(finite, [2, 98])
    if high <= low:  # the landscape is flat
        low, high = low - 0.5, high + 0.5
    if finite.min() > 0 and low > 0:
        return np.geomspace(max(low, 1e-3 * high), high, number)
    return np.linspace(low, high, number)


def _label_levels(drawn: QuadContourSet) -> None:
    every_other = np.asarray(drawn.levels)[::2]
    drawn.axes.clabel(drawn, every_other, fontsize=7, fmt=lambda v: f"{v:.2g}", colors=[INK])


def _grid(name: str, x: ArrayLike, y: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, ...]:
    x, y, values = (np.asarray(a, float) for a in (x, y, values))
    if values.shape != (y.size, x.size):
        raise ValueError(
            f"{name}: values of shape {values.shape} for {x.size} x and {y.size} y coordinates; "
            "they are [Y, X]"
        )
    return x, y, values


@styled
def surface(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    zlabel: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """Returns three-dimensional axes with a landscape as a surface, for shape rather than reading.

    Values above their 98th percentile are cut there, since a steep corner would flatten the rest.

    Args:
      x: `[X]`, ascending coordinates along the first axis.
      y: `[Y]`, ascending coordinates along the second axis.
      values: `[Y, X]`, the landscape.
      zlabel: the label of the values, symbol and words.
      ax: three-dimensional axes (`projection="3d"`), or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    x, y, values = _grid("surface", x, y, values)
    top = np.nanpercentile(values[np.isfinite(values)], 98)
    if ax is None:
        ax = new_figure(4.8, 4.0).add_subplot(projection="3d")
    mesh = np.meshgrid(x, y)
    ax.plot_surface(  # pyright: ignore[reportAttributeAccessIssue]
        *mesh,
        np.minimum(values, top),
        cmap="cividis",
        lw=0.2,
        edgecolor=INK,
        alpha=0.95,
        rcount=len(y),
        ccount=len(x),
    )
    ax.set(xlabel="first direction", ylabel="second direction")
    ax.set_zlabel(symbols(zlabel))  # pyright: ignore[reportAttributeAccessIssue]
    ax.locator_params(nbins=4)  # three axes meet at a corner: more ticks collide there
    ax.tick_params(labelsize=8, pad=1)
    return ax


@styled
def barriers(
    lines: Mapping[str, ArrayLike],
    *,
    control: str = "",
    xlabel: str = "t, from θ_A to θ_B",
    ylabel: str = "error on S",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the landscape along paths: mean over pairs, 95 % t interval as a band.

    The dashed line joins the ends of each mean: a barrier is what rises above it.

    Args:
      lines: values `[P, T]` at equally spaced t from 0 to 1 by name, at most three beside the
        control; pairs with a value that is not finite are left out.
      control: the name of the line that is drawn in grey, if any.
      xlabel: the label of t, symbol and words.
      ylabel: the label of the values, symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three lines, or one without a finite pair.
    """
    ax, drawn = _bands("barriers", None, lines, ax, control)
    # Above the lines: those without a barrier lie on each other.
    ax.legend(
        labels=[symbols(band.name) for band in drawn],
        handles=ax.lines[:],
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        labelcolor="linecolor",
        borderpad=0,
        handlelength=1,
    )
    for band in drawn:
        ax.plot([0, 1], band.middle[[0, -1]], color=band.color, lw=1, ls=(0, (5, 3)))
    ax.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1])
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    return ax


@styled
def slices(
    t: ArrayLike,
    lines: Mapping[str, ArrayLike],
    *,
    xlabel: str = "t along a random direction, filters normalized",
    ylabel: str = "cross-entropy, nats",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with landscapes along random directions: mean over models, band of 95 %.

    Args:
      t: `[G]`, ascending coordinates; 0 is the model.
      lines: values `[P, G]` by name, at most three; models with a value that is not finite are left
        out.
      xlabel: the label of t, symbol and words.
      ylabel: the label of the values, symbol and words.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three lines, or one without a finite model.
    """
    t = np.asarray(t, float)
    ax, drawn = _bands("slices", t, lines, ax)
    ends = [(float(band.middle[-1]), wrapped(band.name, 12), band.color) for band in drawn]
    ax.set(xlim=(t[0], t[-1]))
    label_ends(ax, float(t[-1]), ends, 0.16)
    ax.axvline(0, color=GREY, lw=1, ls=(0, (5, 3)), zorder=0)
    ax.set(xlabel=wrapped(xlabel, 42), ylabel=wrapped(ylabel, 34))
    return ax


class _Band(NamedTuple):
    """A line that was drawn: its points `[T]`, its name and colour."""

    x: np.ndarray
    middle: np.ndarray
    name: str
    color: str


def _bands(
    where: str,
    t: np.ndarray | None,
    lines: Mapping[str, ArrayLike],
    ax: Axes | None,
    control: str = "",
) -> tuple[Axes, list[_Band]]:
    """Draws the mean of each `[P, T]` with its 95 % interval."""
    shown = [name for name in lines if name != control]
    check_colors(where, len(shown))
    colors = {control: GREY} | dict(zip(shown, COLORS, strict=False))
    ax = new_figure(4.8, 3.2).subplots() if ax is None else ax
    drawn = []
    for name, values in lines.items():
        color = colors[name]
        values = np.atleast_2d(np.asarray(values, float))
        values = values[np.isfinite(values).all(1)]
        if not values.size:
            raise ValueError(f"{where}: {name} has no pair with finite values, nothing to draw")
        x = np.linspace(0, 1, values.shape[1]) if t is None else t
        middle, low, high = np.array([mean_interval(column) for column in values.T]).T
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(x, middle, color=color, label=name)
        drawn.append(_Band(x, middle, name, color))
    ax.margins(y=0.12)
    return ax, drawn


@styled
def spectrum(
    grid: ArrayLike,
    densities: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    tops: Mapping[str, ArrayLike] | None = None,
    floor: float = 1e-5,
    xlabel: str = "eigenvalue of the Hessian",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with spectral densities on a logarithmic scale, two standard errors as bands.

    Args:
      grid: `[G]`, the eigenvalues at which densities are given.
      densities: density `[G]` and standard error `[G]` by name, from `landscapes.smooth_density`;
        at most three.
      tops: the largest eigenvalues by name, drawn as ticks below.
      floor: the lowest density that is shown.
      xlabel: the label of the eigenvalues.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: for more than three densities.
    """
    check_colors("spectrum", len(densities))
    ax = new_figure(4.8, 3.0).subplots() if ax is None else ax
    grid = np.asarray(grid, float)
    for index, ((name, (middle, error)), color) in enumerate(
        zip(densities.items(), COLORS, strict=False)
    ):
        middle, error = np.asarray(middle, float), np.asarray(error, float)
        low, high = (np.maximum(middle + k * error, floor / 10) for k in (-2, 2))
        ax.fill_between(grid, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(grid, np.maximum(middle, floor / 10), color=color, label=symbols(name))
        marks = np.asarray((tops or {}).get(name, ()), float)
        ax.plot(marks, np.full(marks.shape, floor * 1.6**index), "|", color=color, ms=9, mew=1.6)
    ax.set(yscale="log", ylim=(floor, None), xlim=(grid[0], grid[-1]))
    ax.set(xlabel=wrapped(xlabel, 42), ylabel="density")
    # Above: densities fill the axes, and have no corner in common that is free.
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9, frameon=False)
    return ax


@styled
def meeting_matrix(
    matrix: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    label: str = "⟨∇L_A, ∇L_B⟩ by class",
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with a class by class matrix: blue where halves meet, orange where they oppose.

    Where all values have one sign, the colours run from white to that sign's.

    Args:
      matrix: `[C, C]`, a row for each class of A, a column for each of B.
      classes: `[C]` names of classes; None for numbers from 0.
      label: the label of the colours, symbol and words.
      limit: the magnitude of the last colour; None for the largest in the matrix. White is 0.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the matrix is not square, or the number of names is not that of the classes.
    """
    values = np.asarray(matrix, float)
    size = values.shape[0]
    names = [str(i) for i in range(size)] if classes is None else list(classes)
    if values.shape != (size, size) or len(names) != size:
        raise ValueError(
            f"meeting_matrix: shape {values.shape} with {len(names)} names; it is [C, C] with C"
        )
    ax = new_figure(4.4, 3.7).subplots() if ax is None else ax
    top = (float(np.nanmax(np.abs(values))) if limit is None else limit) or 1.0
    low = 0.0 if np.nanmin(values) >= 0 < np.nanmax(values) else -top
    high = 0.0 if np.nanmax(values) <= 0 > np.nanmin(values) else top
    ends = {(0.0, top): _POSITIVE, (-top, 0.0): _NEGATIVE}
    image = ax.imshow(values, cmap=ends.get((low, high), _DIVERGING), vmin=low, vmax=high)
    ax.set_xticks(range(size), names)
    ax.set_yticks(range(size), names)
    ax.set(xlabel="class in B", ylabel="class in A")
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03, aspect=24)
    bar.set_label(wrapped(label, 34))
    return ax


@styled
def decision_section(
    x: ArrayLike,
    y: ArrayLike,
    decisions: ArrayLike,
    *,
    points: Mapping[str, ArrayLike] | None = None,
    classes: Mapping[int, str] | None = None,
    xlabel: str = "first direction",
    ylabel: str = "second direction",
    ax: Axes | None = None,
) -> Axes:
    """Returns axes with the regions that a model assigns to each class on a plane of inputs.

    Classes differ in grey and hatching, and each is named in its largest region.

    Args:
      x: `[X]`, ascending coordinates along the first axis.
      y: `[Y]`, ascending coordinates along the second axis.
      decisions: `[Y, X]`, the predicted classes, at most ten different ones.
      points: the coordinates `[2]` of points by name, e.g. the example and its perturbations.
      classes: the names of classes by number; None for their numbers.
      xlabel: the label of the first axis, words with units.
      ylabel: the label of the second axis, words with units.
      ax: where to draw, or None for a new figure.

    Raises:
      ValueError: if the shapes do not fit together, or for more than ten classes.
    """
    x, y, values = _grid("decision_section", x, y, decisions)
    present = np.unique(values)
    if present.size > len(_HATCHES):
        raise ValueError(f"decision_section: {present.size} classes; at most {len(_HATCHES)}")
    ax = new_figure(4.4, 3.9).subplots() if ax is None else ax
    ax.set_facecolor(to_rgba(GREY, 0.35))  # shows in the gaps where three regions meet
    for index, number in enumerate(present):
        inside = (values == number).astype(float)
        strength = 0.1 + 0.5 * index / max(present.size - 1, 1)
        ax.contourf(
            x,
            y,
            inside,
            levels=[0.5, 1.5],
            colors=[to_rgba(GREY, strength)],
            hatches=[_HATCHES[index]],
        )
        if present.size > 1:
            ax.contour(x, y, inside, levels=[0.5], colors=[INK], linewidths=0.9)
        # The name goes where it has most room: far from other regions and from the points.
        free = np.pad(inside > 0, 1)
        for place in (points or {}).values():
            across, up = np.asarray(place, float)
            free[1 + np.argmin(np.abs(y - up)), 1 + np.argmin(np.abs(x - across))] = False
        room = np.asarray(ndimage.distance_transform_edt(free))[1:-1, 1:-1]
        row, column = np.unravel_index(np.argmax(room), room.shape)
        name = str(int(number)) if classes is None else classes[int(number)]
        box = {"boxstyle": "round,pad=.2", "fc": PAPER, "ec": "none", "alpha": 0.85}
        ax.text(float(x[column]), float(y[row]), name, ha="center", va="center", bbox=box)
    for (name, place), color in zip((points or {}).items(), (INK, *COLORS), strict=False):
        place = np.asarray(place, float)
        ax.plot(*place, "o", color=color, ms=6, mec=PAPER, zorder=5)
        ax.annotate(
            symbols(name),
            (float(place[0]), float(place[1])),
            (7, 6),
            textcoords="offset points",
            bbox={"boxstyle": "round,pad=.15", "fc": PAPER, "ec": "none", "alpha": 0.85},
        )
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.set(xlabel=wrapped(xlabel, 34), ylabel=wrapped(ylabel, 34))
    return ax
