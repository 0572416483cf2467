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
VERDICT_MARKS = {"supported": (BLUE, "o"), "refuted": (VERMILLION, "X"), "inconclusive": (INK, "d")}
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
SYMBOL = re.compile(r"\b([A-Za-zθκμτ])_([A-Za-zθ0]|half)\b")
"""A letter with a subscript as it is written in words: `M_θ`, `n_half`."""
_DRAWN = r"$\1_{\\mathrm{\2}}$"
_UNDO = re.compile(r"\$(\w)_\{\\mathrm\{(\w+)\}\}\$")


@contextmanager
def style() -> Iterator[None]:
    """Applies the one style of all figures while the context lasts."""
    with matplotlib.rc_context(STYLE):
        yield


def styled(fn: Callable[_Args, _Out]) -> Callable[_Args, _Out]:
    """Returns `fn` as it draws in the shared style."""

    @functools.wraps(fn)
    def wrapped(*args: _Args.args, **kwargs: _Args.kwargs) -> _Out:
        with style():
            return fn(*args, **kwargs)

    return wrapped


@styled
def new_figure(width: float = 4.8, height: float = 3.2) -> Figure:
    """Returns an empty figure in the shared style, `width` by `height` inches, without pyplot."""
    return Figure(figsize=(width, height), layout="constrained")


def symbols(text: str) -> str:
    """Returns `text` with symbols such as `M_θ` in mathtext, as matplotlib draws a subscript."""
    return SYMBOL.sub(_DRAWN, text)


def wrapped(text: str, width: int) -> str:
    """Returns a label with drawn symbols, in lines of at most `width` characters."""
    return symbols("\n".join(textwrap.fill(line, width) for line in text.split("\n")))


@contextmanager
def plain_symbols(figure: Figure) -> Iterator[None]:
    """Shows symbols as `M_θ` while the context lasts, for a page that sets its own subscripts."""
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
    """Draws an estimate with its interval along x; an unbounded end runs into an arrow."""
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


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Returns the mean of the finite `values [P]` and its 95 % t interval, nan below two values."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if finite.size < 2:
        return (float(finite.mean()) if finite.size else np.nan), np.nan, np.nan
    half = stats.t.ppf(0.975, finite.size - 1) * stats.sem(finite)
    return float(finite.mean()), float(finite.mean() - half), float(finite.mean() + half)


def label_ends(ax: Axes, x: float, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Writes (y, text, colour) to the right of x, pushed apart to `gap` of the axes' height."""
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
    """Returns the last finite value of `[R]`, nan where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else np.nan


def check_colors(where: str, number: int) -> None:
    """Raises ValueError if there are more lines than colours that readers can tell apart."""
    if number > len(COLORS):
        raise ValueError(f"{where}: {number} lines; at most {len(COLORS)} and controls")


def clip_ends(values: ArrayLike) -> np.ndarray:
    """Returns ends of intervals with infinite ones far outside any view instead."""
    return np.nan_to_num(np.asarray(values, float), nan=np.nan, posinf=1e6, neginf=-1e6)
