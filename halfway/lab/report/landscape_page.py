"""Landscapes of a population as figures, tables and one page; arrays in, no models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from halfway import landscapes, plots
from halfway.lab.report.page import Page, settings_table
from halfway.lab.report.run_report import RunInfo
from halfway.lab.study import wording
from halfway.lab.study.protocol import Figure, Table
from halfway.plots import mean_interval

Arrays = Mapping[str, np.ndarray]
_PATHS = {
    "raw": "as trained",
    "matched": "permutation matched",
    "shared": "shared start",
}
_LOSSES = {"error": "error on S", "cross_entropy": "cross-entropy on S, nats"}
HEIGHTS = {"linear": "above the line between the ends", "endpoints": "above their mean"}
_TITLES = {
    "picture": "Two walks",
    "segments": "Between them",
    "slices": "Around θ_A",
    "spectra": "Curvature",
    "classes": "Class by class",
    "inputs": "In input space",
}
DOUBTS = (
    "Lines, planes and slices are sections of a space of thousands of dimensions: a barrier on the "
    "straight line says nothing about other paths, and a plane through three points shows those "
    "points, not what lies between in other directions.",
    "Filter normalization makes slices comparable between networks of different weight scales; it "
    "does not make a wide slice a flat minimum.",
)
"""What is to be distrusted of every landscape."""
_DOUBTS = (
    "The pair in the plane shares its start, which the population's pairs do not: without that, "
    "there is no one θ_0 to walk from. All else is the population's.",
    "Weight matching finds a local optimum: the barrier after the best permutation can be lower.",
    "All pairs are drawn from one finite data set. They are independent only given that set: the "
    "intervals say what other splits of the same data would give, not what other data would.",
)


def figures(arrays: Arrays) -> dict[str, list[Figure]]:
    """Returns the figures of every section.

    Args:
      arrays: of `measurements.weight_space`.
    """
    return {
        "picture": _picture(arrays),
        "segments": _segments(arrays),
        "slices": _slices(arrays),
        "spectra": _spectra(arrays),
        "classes": _classes(arrays),
        "inputs": _inputs(arrays),
    }


def _picture(arrays: Arrays) -> list[Figure]:
    values = arrays["plane_cross_entropy"]
    figure = plots.new_figure(9.2, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    walk_a, walk_b = arrays["plane_walks"]
    away = arrays["plane_distances"]
    titles = ("landscape of half A, L_A", "landscape of half B, L_B")
    for ax, face, title in zip(panels, values, titles, strict=True):
        plots.contour(
            arrays["plane_x"],
            arrays["plane_y"],
            face,
            walks={"walk of A": walk_a, "walk of B": walk_b},
            points={"θ_0": walk_a[0], "θ_A": walk_a[-1], "θ_B": walk_b[-1]},
            levels=plots.contour_levels(values),
            title=title,
            ax=ax,
        )
    panels[1].set_ylabel("")
    panels[1].get_legend().remove()
    caption = (
        "Two parties walk from one place: A sees only the left landscape, B the right. "
        "Cross-entropy in nats on the plane through θ_0, θ_A and θ_B of the first pair, darker is "
        "higher, levels alike on both sides. A walk that goes down on the other side too meets. "
        "Walks are projected into the plane; on the way they leave it by up to "
        f"{away.max():.2g} ({away.max() / np.ptp(arrays['plane_x']):.0%} of its width)."
    )
    return [Figure("plane", caption, figure)]


def _segments(arrays: Arrays) -> list[Figure]:
    drawn = []
    for loss, label in _LOSSES.items():
        lines = {
            words: arrays[f"segment_{name}_{loss}"]
            for name, words in _PATHS.items()
            if f"segment_{name}_{loss}" in arrays
        }
        if lines:
            caption = (
                f"{label[0].upper()}{label[1:]} on the straight line from θ_A to θ_B: "
                f"{_over(len(next(iter(lines.values()))), 'pair')}. Dashed: the line between the "
                "ends; what rises above it is the barrier."
            )
            ax = plots.barriers(lines, ylabel=label)
            drawn.append(Figure(f"segment_{loss}", caption, ax.figure))  # pyright: ignore
    return drawn


def _slices(arrays: Arrays) -> list[Figure]:
    t = arrays["slice_t"]
    half, rest = arrays["slice_own"], arrays["slice_other"]
    ax = plots.slices(t, {"L_A, seen in training": half, "L_B, never seen": rest})
    caption = (
        "The loss from θ_A outwards along one random direction each, filters normalized: 1 is as "
        f"far as the weights are long. {wording.sentence(_over(len(half), 'model'))}"
    )
    titles = ("L_A around θ_A", "L_B around θ_A")
    return [
        Figure("slice", caption, ax.figure),  # pyright: ignore
        slice_planes(t, arrays["slice_plane"], titles, "of the first θ_A", center="θ_A"),
        slice_surfaces(t, arrays["slice_plane"][:1], ("L_A",)),
    ]


def slice_planes(
    t: np.ndarray, faces: np.ndarray, titles: Sequence[str], whose: str, *, center: str
) -> Figure:
    """Returns slices along two random directions as panels with the same levels.

    Args:
      t: `[G]`, coordinates along both directions.
      faces: `[F, G, G]`, a panel each.
      titles: of the panels.
      whose: whose directions they are, in words.
      center: the name of the model in the middle.
    """
    figure = plots.new_figure(4.6 * len(faces), 4.2)
    levels = plots.contour_levels(faces)
    for ax, face, title in zip(
        np.atleast_1d(figure.subplots(1, len(faces))), faces, titles, strict=True
    ):
        plots.contour(
            t,
            t,
            face,
            levels=levels,
            title=title,
            points={center: (0, 0)} if center else None,
            xlabel="first direction",
            ylabel="second direction",
            ax=ax,
        )
    caption = (
        f"Two random directions {whose}, filters normalized, orthogonal within every filter. "
        "Darker is higher; levels, alike in all panels, have equal ratios if values are positive."
    )
    return Figure("slice_plane", caption, figure)


def slice_surfaces(t: np.ndarray, faces: np.ndarray, names: Sequence[str]) -> Figure:
    """Returns the slices of `slice_planes` as surfaces.

    Args:
      t: `[G]`, coordinates along both directions.
      faces: `[F, G, G]`, a surface each.
      names: of the losses.
    """
    figure = plots.new_figure(4.8 * len(faces), 4.0)
    for index, (face, name) in enumerate(zip(faces, names, strict=True)):
        ax = figure.add_subplot(1, len(faces), index + 1, projection="3d")
        plots.surface(t, t, face, zlabel=name, ax=ax)
    whole = "the same slice" if len(faces) == 1 else "the same slices"
    caption = f"{wording.sentence(f'{whole} as a surface')[:-1]}, cut at the 98th percentile."
    return Figure("surface", caption, figure)


class Spectrum(NamedTuple):
    """The quadrature of M Hessians and their largest eigenvalues, arrays of leading axis M."""

    nodes: np.ndarray
    weights: np.ndarray
    tops: np.ndarray


def _spectra(arrays: Arrays) -> list[Figure]:
    named = {
        words: Spectrum(*(arrays[f"spectrum_{name}_{what}"] for what in Spectrum._fields))
        for name, words in {"start": "at θ_0", "end": "at θ_A"}.items()
    }
    return [spectrum_figure(named)]


def spectrum_figure(spectra: Mapping[str, Spectrum]) -> Figure:
    """Returns the densities of eigenvalues, each with two standard errors.

    Args:
      spectra: by name; over several models where there are, else over random starts.
    """
    low = min(spectrum.nodes.min() for spectrum in spectra.values())
    high = max(spectrum.nodes.max() for spectrum in spectra.values())
    pad = 0.05 * (high - low) or 1.0
    grid = np.linspace(low - pad, high + pad, 400)
    densities = {}
    for name, spectrum in spectra.items():
        # Starts within a model estimate its spectrum; models are the unit of the band.
        by_model = [
            landscapes.smooth_density(
                landscapes.SpectralDensity(nodes, weights), grid, width=0.01 * np.ptp(grid)
            )
            for nodes, weights in zip(spectrum.nodes, spectrum.weights, strict=True)
        ]
        curves = np.stack([np.asarray(curve) for curve, _ in by_model])
        error = (
            curves.std(0, ddof=1) / np.sqrt(len(curves))
            if len(curves) > 1
            else np.asarray(by_model[0][1])
        )
        densities[name] = (curves.mean(0), error)
    tops = {name: spectrum.tops.ravel() for name, spectrum in spectra.items()}
    ax = plots.spectrum(grid, densities, tops=tops)
    several = any(len(spectrum.nodes) > 1 for spectrum in spectra.values())
    caption = (
        "Density of the Hessian's eigenvalues by stochastic Lanczos quadrature, smoothed by a "
        "hundredth of the width; bands are two standard errors over "
        f"{'models' if several else 'random starts'}. Ticks: the largest eigenvalues."
    )
    return Figure("spectrum", caption, ax.figure)  # pyright: ignore


def _classes(arrays: Arrays) -> list[Figure]:
    mean = np.nanmean(arrays["matrix"], 0)
    ax = plots.meeting_matrix(mean, label="tr K(x, x′)/C, mean over A and B")
    diagonal = np.array([np.nanmean(np.diag(m)) for m in arrays["matrix"]])
    aside = np.array([np.nanmean(m[~np.eye(len(m), dtype=bool)]) for m in arrays["matrix"]])
    difference = wording.format_estimate(*mean_interval(diagonal - aside))
    caption = (
        "The residual-free meeting matrix at initialization (P6): how far a step on an example of "
        "a class in A moves the logits of one in B. Diagonal minus the rest, over pairs: "
        f"{difference}. A description without a verdict; G5 has the control."
    )
    return [Figure("matrix", caption, ax.figure)]  # pyright: ignore


def _inputs(arrays: Arrays) -> list[Figure]:
    figure = plots.new_figure(9.2, 4.4)
    points = {f"x{'₁₂₃'[i]}": place for i, place in enumerate(arrays["section_points"])}
    for ax, decisions, name in zip(
        figure.subplots(1, 2), arrays["section_decisions"], ("θ_A", "θ_B"), strict=True
    ):
        plots.decision_section(
            arrays["section_x"],
            arrays["section_y"],
            decisions,
            points=points,
            xlabel=f"what {name} decides; l2 distance",
            ylabel="l2 distance",
            ax=ax,
        )
    labels = ", ".join(str(int(label)) for label in arrays["section_labels"])
    caption = (
        "Decisions of both models of the first pair on the plane of images through three examples "
        f"of S, of classes {labels}. Where the boundaries agree, a perturbation transfers."
    )
    return [Figure("section", caption, figure)]


def tables(arrays: Arrays, barriers: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Table]:
    """Returns tables of barriers, of curvature and of alignment, by section.

    Args:
      arrays: of `measurements.weight_space`.
      barriers: of `weight_space.summary`.
    """
    rows = []
    for (name, baseline), values in barriers.items():
        path, _, loss = name.partition("_")
        kept = values[np.isfinite(values)]
        rows.append(
            [
                f"{_PATHS[path]}, {_LOSSES[loss]}",
                HEIGHTS[baseline],
                wording.format_estimate(*mean_interval(kept)),
                f"{kept.max():.3g}" if kept.size else "undefined",
                f"{kept.size} of {values.size}",
            ]
        )
    names = ["Path", "Height", "Mean, 95 % interval", "Largest", "Pairs"]
    caption = "The highest point of each pair's segment above its baseline, then over pairs."
    result = {"segments": Table("Barriers", caption, names, rows)}
    rows = []
    for name, words in {"start": "θ_0", "end": "θ_A"}.items():
        tops, traces = arrays[f"spectrum_{name}_tops"], arrays[f"spectrum_{name}_trace"]
        errors = arrays[f"spectrum_{name}_trace_error"]
        rows.append(
            [
                words,
                wording.format_estimate(*mean_interval(tops[:, 0])),
                wording.format_estimate(*mean_interval(traces)),
                f"{np.sqrt((errors**2).mean()):.2g}",
                str(len(tops)),
            ]
        )
    names = ["At", "Largest eigenvalue", "Trace", "Standard error of one trace", "Models"]
    caption = "Means and 95 % intervals over models; traces by Hutchinson's estimator."
    result["spectra"] = Table("Hessian of L_A", caption, names, rows)
    return result | {"classes": _alignments(arrays)}


def sentences(arrays: Arrays, barriers: Mapping[tuple[str, str], np.ndarray]) -> list[str]:
    """Returns what the landscapes say in short.

    Args:
      arrays: of `measurements.weight_space`.
      barriers: of `weight_space.summary`.
    """

    def height(name: str) -> str:
        return wording.format_estimate(*mean_interval(barriers[f"{name}_error", "linear"]))

    def mean(name: str, *place: Any) -> str:
        return f"{np.nanmean(arrays[name][place] if place else arrays[name]):.3g}"

    middle = (slice(None), len(arrays["slice_t"]) // 2)
    return [
        f"Around θ_A: cross-entropy is {mean('slice_own', *middle)} nats on the half that it was "
        f"trained on, and {mean('slice_other', *middle)} on the other one.",
        "Between θ_A and θ_B: on the straight line the error on S rises above the line between the "
        f"ends by {height('raw')}; once units are matched, by {height('matched')}; between models "
        f"of one start, by {height('shared')}.",
        "Curvature: the largest eigenvalue of the Hessian goes from "
        f"{mean('spectrum_start_tops', slice(None), 0)} at θ_0 to "
        f"{mean('spectrum_end_tops', slice(None), 0)} at θ_A.{_exceeded(arrays)}",
        "Kernels: those of θ_A and θ_B are aligned by "
        f"{mean('alignment_halves')}, by {mean('alignment_shuffled')} where examples are shuffled.",
    ]


def _exceeded(arrays: Arrays) -> str:
    """Returns in how many models a start of the density found a larger eigenvalue; "" for none.

    Ritz values never exceed the largest eigenvalue, so there the one that is told is too small.
    """
    number = total = 0
    for name in ("start", "end"):
        nodes, tops = arrays[f"spectrum_{name}_nodes"], arrays[f"spectrum_{name}_tops"]
        rounding = 1e-3 * np.abs(nodes).max(axis=(1, 2))
        number += int((nodes.max(axis=(1, 2)) > tops[:, 0] + rounding).sum())
        total += len(tops)
    if not number:
        return ""
    return f" In {number} of {total} spectra it has not converged: read it as a lower bound."


def page(
    arrays: Arrays,
    barriers: Mapping[tuple[str, str], np.ndarray],
    *,
    lead: str,
    command: str,
    run: RunInfo,
) -> Page:
    """Returns the page of a population's landscapes.

    Args:
      arrays: of `measurements.weight_space`.
      barriers: of `weight_space.summary`.
      lead: a paragraph that says what was drawn.
      command: as typed.
      run: what was run.
    """
    return assemble(
        "What the two parties see",
        _TITLES,
        figures(arrays),
        tables(arrays, barriers),
        lead=lead,
        sentences=sentences(arrays, barriers),
        doubts=(*DOUBTS, *_DOUBTS),
        command=command,
        run=run,
    )


def assemble(
    heading: str,
    titles: Mapping[str, str],
    drawn: Mapping[str, list[Figure]],
    tabled: Mapping[str, Table],
    *,
    lead: str,
    sentences: Sequence[str],
    doubts: Sequence[str],
    command: str,
    run: RunInfo | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Page:
    """Returns a page of landscapes.

    Args:
      heading: of the page.
      titles: of the sections by anchor; those that have neither figure nor table are left out.
      drawn: figures by anchor.
      tabled: a table by anchor.
      lead: a paragraph that says what was drawn.
      sentences: what is to be seen, in short.
      doubts: what to distrust.
      command: as typed.
      run: what was run, for the landscapes of a population.
      facts: what a repetition needs, for those of somebody's own models.
    """
    shown = {a: title for a, title in titles.items() if a in drawn or a in tabled}
    content = {
        "lead": lead,
        "sentences": sentences,
        "titles": shown,
        "drawn": {anchor: drawn.get(anchor) for anchor in shown},
        "tabled": {anchor: tabled.get(anchor) for anchor in shown},
        "doubts": doubts,
        "run": run,
        "command": command,
        "settings": settings_table(facts or {}),
    }
    saved = [figure for many in drawn.values() for figure in many]
    return Page("landscape", f"halfway: {heading}", heading, content, saved)


def _over(number: int, unit: str) -> str:
    """Returns what a line is over so many units."""
    return f"one {unit}" if number == 1 else f"mean and 95 % interval over {number} {unit}s"


def _alignments(arrays: Arrays) -> Table:
    words = {
        "halves": "θ_A with θ_B",
        "shuffled": "the same, examples of one shuffled",
        "walk": "θ_0 with θ_A",
    }
    rows = [
        [words[name], wording.format_estimate(*mean_interval(values)), str(len(values))]
        for name in words
        if (values := arrays[f"alignment_{name}"]) is not None
    ]
    caption = (
        "Centred alignment of the tangent kernels tr K(x, x′)/C on examples of S, 1 where both "
        "models find the same examples alike: mean and 95 % interval over pairs."
    )
    names = ["Kernels at", "Alignment", "Pairs"]
    return Table("Alignment of the tangent kernels", caption, names, rows)
