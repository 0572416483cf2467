"""Landscapes of models that a user brought, as figures, tables and one page."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfway import plots
from halfway.lab.report import landscape_page
from halfway.lab.report.landscape_page import Arrays, Spectrum
from halfway.lab.report.page import Page
from halfway.lab.study.protocol import Figure, Table
from halfway.plots.style import literal

_TITLES = {
    "picture": "The plane through the three",
    "segments": "Between them",
    "slices": "Around each",
    "spectra": "Curvature",
}
_DOUBTS = (
    "The loss is what the function of --loss returns: of training data, it says nothing about "
    "others.",
    "A slice is along random directions, drawn once: others may be steeper. There is one model of "
    "each name, so that nothing here has an interval over models.",
    "Hidden units have no order. A barrier between two models may be one of their naming alone: "
    "halfway.landscapes.weight_match finds a common one.",
)
_STEP = 0.5
"""How far from a model its rise is told, in lengths of its weights."""


def page(
    arrays: Arrays,
    barriers: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    command: str,
    facts: Mapping[str, Any],
) -> Page:
    """Returns the page.

    Args:
      arrays: of `user_models.landscapes.measure`.
      barriers: of `user_models.landscapes.barriers`.
      names: of the models, in the order of the arrays.
      command: as typed.
      facts: what a repetition needs.
    """
    return landscape_page.assemble(
        "The landscape of a model" if len(names) == 1 else "The landscape of models",
        _TITLES | ({"slices": "Around it"} if len(names) == 1 else {}),
        figures(arrays, list(map(literal, names))),
        tables(arrays, barriers, names),
        lead=f"{', '.join(names)} under {facts['Loss']}.",
        sentences=sentences(arrays, barriers, names),
        doubts=(*landscape_page.DOUBTS, *_DOUBTS),
        command=command,
        facts=facts,
    )


def figures(arrays: Arrays, names: Sequence[str]) -> dict[str, list[Figure]]:
    """Returns the figures of every section for which there are arrays.

    Args:
      arrays: of `user_models.landscapes.measure`.
      names: of the models.
    """
    drawn = {"slices": _slices(arrays, names), "spectra": [_spectra(arrays, names)]}
    if "segment_loss" in arrays:
        drawn["segments"] = [_segments(arrays, names)]
    if "plane_loss" in arrays:
        drawn["picture"] = [_plane(arrays, names)]
    return drawn


def sentences(
    arrays: Arrays, barriers: Mapping[str, np.ndarray], names: Sequence[str]
) -> list[str]:
    """Returns what the landscapes say in short.

    Args:
      arrays: of `user_models.landscapes.measure`.
      barriers: of `user_models.landscapes.barriers`.
      names: of the models.
    """
    t, curves = arrays["slice_t"], arrays["slice_loss"]
    away = np.abs(np.abs(t) - _STEP).argmin()
    told = []
    for name, curve, tops in zip(names, curves, arrays["spectrum_tops"], strict=True):
        further = curve[[away, len(t) - 1 - away]].mean()
        told.append(
            f"{name}: the loss is {curve[len(t) // 2]:.3g}. {abs(t[away]):.2g} of the weights' "
            f"length along a random direction, either way, it is {further:.3g}. The largest "
            f"eigenvalue of the Hessian is {tops[0]:.3g}."
        )
    told += [
        f"{name}: {len(flags) - flags.sum()} of the {len(flags)} largest eigenvalues have not "
        "converged: read them as lower bounds."
        for name, flags in zip(names, _converged(arrays), strict=True)
        if not flags.all()
    ]
    for pair, height, values in zip(
        _pairs(names), barriers.get("linear", ()), arrays.get("segment_loss", ()), strict=True
    ):
        ends = max(values[0], values[-1])
        place = np.argmax(values - np.linspace(values[0], values[-1], len(values)))
        told.append(
            f"Between {pair}: the loss rises {height:.3g} above the line between the ends, at t = "
            f"{place / (len(values) - 1):.2g}."
            if height > 1e-3 * max(1e-12, abs(ends))
            else f"Between {pair}: no barrier; the loss does not rise above the line between the "
            "ends."
        )
    return told


def tables(
    arrays: Arrays, barriers: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, Table]:
    """Returns tables of barriers and of curvature, by section.

    Args:
      arrays: of `user_models.landscapes.measure`.
      barriers: of `user_models.landscapes.barriers`.
      names: of the models.
    """
    rows = [
        [name, f"{tops[0]:.4g}", f"{flags.sum()} of {flags.size}", f"{trace:.4g}", f"{error:.2g}"]
        for name, flags, tops, trace, error in zip(
            names,
            _converged(arrays),
            *(arrays[f"spectrum_{what}"] for what in ("tops", "trace", "trace_error")),
            strict=True,
        )
    ]
    columns = ["Model", "Largest eigenvalue", "Converged", "Trace", "Standard error of the trace"]
    caption = (
        "Eigenvalues by Lanczos, and how many of the largest were found again from another start; "
        "traces by Hutchinson's estimator."
    )
    result = {"spectra": Table("Hessian", caption, columns, rows)}
    if barriers:
        rows = [
            [pair, *(f"{heights[index]:.4g}" for heights in barriers.values())]
            for index, pair in enumerate(_pairs(names))
        ]
        columns = ["Between", *(landscape_page.HEIGHTS[baseline] for baseline in barriers)]
        caption = "The highest point of the straight line."
        result["segments"] = Table("Barriers", caption, columns, rows)
    return result


def _converged(arrays: Arrays) -> np.ndarray:
    """Returns which of the largest eigenvalues of each model have converged, `[M, k]`."""
    return np.asarray(arrays["spectrum_converged"], bool)


def _plane(arrays: Arrays, names: Sequence[str]) -> Figure:
    ax = plots.contour(
        arrays["plane_x"],
        arrays["plane_y"],
        arrays["plane_loss"],
        points=dict(zip(names, arrays["plane_points"], strict=True)),
    )
    caption = (
        "The loss on the plane through the three models; darker is higher. Distances are those of "
        "the parameters."
    )
    return Figure("plane", caption, ax.figure)  # pyright: ignore


def _segments(arrays: Arrays, names: Sequence[str]) -> Figure:
    lines = dict(zip(_pairs(names), arrays["segment_loss"], strict=True))
    ax = plots.barriers(lines, xlabel="t, from the first to the second", ylabel="loss")
    caption = (
        "The loss on the straight line between models. Dashed: the line between the ends; what "
        "rises above it is the barrier."
    )
    return Figure("segment", caption, ax.figure)  # pyright: ignore


def _slices(arrays: Arrays, names: Sequence[str]) -> list[Figure]:
    t = arrays["slice_t"]
    ax = plots.slices(t, dict(zip(names, arrays["slice_loss"], strict=True)), ylabel="loss")
    same = "" if len(names) == 1 else ", the same direction for all but for its lengths"
    caption = (
        "The loss from the model outwards along one random direction, filters normalized: 1 is as "
        f"far as the weights are long{same}."
    )
    return [
        Figure("slice", caption, ax.figure),  # pyright: ignore
        landscape_page.slice_planes(t, arrays["slice_plane"], names, "of each model", center=""),
        landscape_page.slice_surfaces(t, arrays["slice_plane"], names),
    ]


def _spectra(arrays: Arrays, names: Sequence[str]) -> Figure:
    return landscape_page.spectrum_figure(
        {
            name: Spectrum(*(arrays[f"spectrum_{what}"][i : i + 1] for what in Spectrum._fields))
            for i, name in enumerate(names)
        }
    )


def _pairs(names: Sequence[str]) -> list[str]:
    """Returns the names of each two models, in the order of the arrays."""
    return [f"{a} and {b}" for a, b in itertools.combinations(names, 2)]
