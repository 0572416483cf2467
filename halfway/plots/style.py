"""The one style of all figures: colours, sizes, symbols, and the marks that figures share."""

import functools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import blended_transform_factory
from numpy.typing import ArrayLike
from scipy import stats

INK, PAPER, GRID = "#16181c", "#fefefc", "#d8dadf"
BLUE, VERMILLION, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#7f858d"
COLORS = (BLUE, VERMILLION, GREEN)
MARKERS = ("o", "s", "^", "D", "v", "P")
VERDICT_MARKS = {
    "supported": (BLUE, "o"),
    "refuted": (VERMILLION, "X"),
    "inconclusive": (INK, "d"),
    "not at this size": (GREY, "d"),
    "met": (BLUE, "s"),
    "not met": (VERMILLION, "s"),
    "verified": (BLUE, "s"),
    "off": (VERMILLION, "s"),
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
}
_Args = ParamSpec("_Args")
_Out = TypeVar("_Out")
SYMBOL = re.compile(r"\b([A-Za-zθκμτℓΣ])_([A-Za-zθρ0]|half|early|end)\b")
"""Matches a letter with a subscript as it is written in text: `M_θ`, `n_half`."""
_DRAWN = r"$\1_{\\mathrm{\2}}$"
_UNDO = re.compile(r"\$(\w)_\{\\mathrm\{(\w+)\}\}\$")


@contextmanager
def style() -> Iterator[None]:
    """Applies the one style of all figures while the context lasts."""
    with matplotlib.rc_context(STYLE):
        yield


def styled(fn: Callable[_Args, _Out]) -> Callable[_Args, _Out]:
    """Returns a function that calls `fn` in the shared style.

    Args:
      fn: a function that draws.
    """

    @functools.wraps(fn)
    def wrapped(*args: _Args.args, **kwargs: _Args.kwargs) -> _Out:
        with style():
            return fn(*args, **kwargs)

    return wrapped


@styled
def new_figure(width: float = 4.8, height: float = 3.2) -> Figure:
    """Returns an empty figure in the shared style, made without pyplot.

    Args:
      width: its width in inches.
      height: its height in inches.
    """
    return Figure(figsize=(width, height), layout="constrained")


def symbols(text: str) -> str:
    """Returns a text with its symbols, such as `M_θ`, in mathtext, which draws subscripts.

    Args:
      text: the text, with symbols as `SYMBOL` matches them.
    """
    return SYMBOL.sub(_DRAWN, text)


def literal(text: str) -> str:
    """Returns a text as matplotlib draws it as it is: dollar signs begin no formula.

    Args:
      text: a name that somebody else has chosen.
    """
    return text.replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """Returns a label in lines of limited length, with its symbols in mathtext.

    Args:
      text: the label.
      width: the largest number of characters in a line.
    """
    return symbols("\n".join(textwrap.fill(line, width) for line in text.split("\n")))


@contextmanager
def plain_symbols(figure: Figure) -> Iterator[None]:
    """Writes symbols as `M_θ` while the context lasts, for a page that sets its own subscripts.

    Args:
      figure: the figure whose texts are changed, and changed back at the end.
    """
    changed = [(text, text.get_text()) for text in figure.findobj(Text) if isinstance(text, Text)]
    changed = [(text, drawn) for text, drawn in changed if _UNDO.search(drawn)]
    try:
        for text, drawn in changed:
            text.set_text(_UNDO.sub(r"\1_\2", drawn))
        yield
    finally:
        for text, drawn in changed:
            text.set_text(drawn)


def draw_interval(
    ax: Axes, estimate: float, low: float, high: float, y: float, color: str, marker: str, size: int
) -> None:
    """Draws an estimate with its interval along x; an infinite end becomes an arrow.

    Args:
      ax: where to draw.
      estimate: the estimate; not drawn where it is not finite.
      low: the lower end of the interval.
      high: the upper end of the interval.
      y: the height at which the interval is drawn.
      color: the colour of line and symbol.
      marker: the symbol of the estimate.
      size: the size of the symbol in points.
    """
    ends = [
        edge if not np.isfinite(end) else end
        for end, edge in zip((low, high), ax.get_xlim(), strict=True)
    ]
    ax.plot(ends, [y, y], color=color, lw=2.2, solid_capstyle="butt", zorder=3)
    for end, edge, arrow in zip((low, high), ax.get_xlim(), "<>", strict=True):
        if np.isinf(end):
            ax.plot(edge, y, arrow, color=color, ms=8, clip_on=False, zorder=3)
    if np.isfinite(estimate):
        ax.plot(estimate, y, marker, color=color, ms=size, mec=PAPER, mew=0.8, zorder=4)


def mean_interval(
    values: ArrayLike, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float, float]:
    """Returns the mean of the finite values, and the low and high end of its 95 % t interval.

    Args:
      values: `[P]`; the interval is nan where fewer than two are finite.
      bounds: the least and the largest value there is, such as 0 and 1 of a share; what the
        interval says beyond is cut off.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if finite.size < 2:
        return (float(finite.mean()) if finite.size else np.nan), np.nan, np.nan
    half = stats.t.ppf(0.975, finite.size - 1) * stats.sem(finite)
    low, high = np.clip([finite.mean() - half, finite.mean() + half], *bounds)
    return float(finite.mean()), float(low), float(high)


def label_ends(ax: Axes, x: float, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Writes labels to the right of a place, moved apart where they would overlap.

    Args:
      ax: where to write.
      x: the place along x, in data coordinates.
      ends: height y, text and colour of each label; a label whose y is not finite is left out.
      gap: the smallest distance of two labels, as a share of the height of the axes.
    """
    low, high = ax.get_ylim()
    order = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    places = [(end[0] - low) / (high - low) for end in order]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    for index in range(len(places) - 1, -1, -1):
        ceiling = 1.02 if index == len(places) - 1 else places[index + 1] - gap
        places[index] = min(places[index], ceiling)
    transform = blended_transform_factory(ax.transData, ax.transAxes)
    for (_, text, color), place in zip(order, places, strict=True):
        ax.annotate(
            symbols(text),
            (x, place),
            (6, 0),
            xycoords=transform,
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def last_finite(values: np.ndarray) -> float:
    """Returns the last finite value; nan where there is none.

    Args:
      values: `[R]`.
    """
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else np.nan


def check_colors(where: str, number: int) -> None:
    """Checks that there are not more lines than colours that readers can tell apart.

    Args:
      where: the name of the figure, for the message.
      number: the number of lines.

    Raises:
      ValueError: if there are more lines than `COLORS`.
    """
    if number > len(COLORS):
        raise ValueError(f"{where}: {number} lines; at most {len(COLORS)} and controls")


def clip_ends(values: ArrayLike) -> np.ndarray:
    """Returns ends of intervals with infinite ends moved to ±10⁶, outside any view.

    Args:
      values: ends of intervals, of any shape.
    """
    return np.nan_to_num(np.asarray(values, float), nan=np.nan, posinf=1e6, neginf=-1e6)
