"""Landscapes as figures, tables and one page; arrays in, no models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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
_LOSSES = {"error": "error on S", "cross_entropy": "cross-entropy on S, nats", "loss": "loss"}
_BASELINES = {"linear": "above the line between the ends", "endpoints": "above their mean"}


def figures(arrays: Arrays) -> dict[str, list[Figure]]:
    """Returns the figures of every section for which there are arrays."""
    drawn = {
        "picture": _picture(arrays),
        "segments": _segments(arrays),
        "slices": _slices(arrays),
        "spectra": _spectra(arrays),
        "classes": _classes(arrays),
        "inputs": _inputs(arrays),
    }
    return {anchor: items for anchor, items in drawn.items() if items}


def _picture(arrays: Arrays) -> list[Figure]:
    if "plane_x" not in arrays:
        return []
    values = arrays["plane_cross_entropy"]
    halves = len(values) == 2
    figure = plots.new_figure(9.2 if halves else 4.6, 4.4)
    axes = np.atleast_1d(figure.subplots(1, len(values), sharey=True))
    levels = plots.contour_levels(values)
    if halves:
        walk_a, walk_b = arrays["plane_walks"]
        walks: dict[str, ArrayLike] = {"walk of A": walk_a, "walk of B": walk_b}
        points = {"θ_0": walk_a[0], "θ_A": walk_a[-1], "θ_B": walk_b[-1]}
        titles = ["landscape of half A, L_A", "landscape of half B, L_B"]
        away = arrays["plane_distances"]
        caption = (
            "Two parties walk from one place: A sees only the left landscape, B the right. "
            "Cross-entropy in nats on the plane through θ_0, θ_A and θ_B of the first pair, darker "
            "is higher, levels alike on both sides. A walk that goes down on the other side too "
            "meets. "
            "Walks are projected into the plane; on the way they leave it by up to "
            f"{away.max():.2g} ({away.max() / np.ptp(arrays['plane_x']):.0%} of its width)."
        )
    else:
        walks, titles = {}, ["your loss"]
        points = {str(i): place for i, place in enumerate(arrays["plane_points"])}
        caption = "The loss on the plane through the three points given; darker is higher."
    for ax, face, title in zip(axes, values, titles, strict=True):
        plots.contour(
            arrays["plane_x"],
            arrays["plane_y"],
            face,
            walks=walks,
            points=points,
            levels=levels,
            title=title,
            ax=ax,
        )
    for ax in axes[1:]:
        ax.set_ylabel("")
        if ax.get_legend():
            ax.get_legend().remove()
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
            number = len(next(iter(lines.values())))
            caption = (
                f"{label[0].upper()}{label[1:]} on the straight line from θ_A to θ_B: mean and "
                f"95 % interval over {number} {'pair' if number == 1 else 'pairs'}. Dashed: the "
                "line between the ends; what rises above it is the barrier."
            )
            ax = plots.barriers(lines, ylabel=label)
            drawn.append(Figure(f"segment_{loss}", caption, ax.figure))  # pyright: ignore
    return drawn


def _slices(arrays: Arrays) -> list[Figure]:
    t = arrays["slice_t"]
    lines = {"L_A, seen in training": arrays["slice_own"]}
    if "slice_other" in arrays:
        lines["L_B, never seen"] = arrays["slice_other"]
    number = len(arrays["slice_own"])
    ax = plots.slices(t, lines)
    caption = (
        "The loss from the model outwards along one random direction each, filters normalized: 1 "
        f"is as far as the weights are long. Mean and 95 % interval over {number} "
        f"{'model' if number == 1 else 'models'}."
    )
    drawn = [Figure("slice", caption, ax.figure)]  # pyright: ignore
    faces = arrays["slice_plane"]
    levels = plots.contour_levels(faces)
    figure = plots.new_figure(4.6 * len(faces), 4.2)
    names = ["L_A", "L_B"] if len(faces) == 2 else ["the loss"]
    for ax, face, name in zip(
        np.atleast_1d(figure.subplots(1, len(faces))), faces, names, strict=True
    ):
        plots.contour(
            t,
            t,
            face,
            levels=levels,
            title=f"{name} around θ_A",
            points={"θ_A": (0, 0)},
            xlabel="first direction",
            ylabel="second direction",
            ax=ax,
        )
    caption = (
        "Two random directions, filters normalized, orthogonal within every filter, of the first "
        "model. Darker is higher; levels by equal ratios."
    )
    drawn.append(Figure("slice_plane", caption, figure))
    ax = plots.surface(t, t, faces[0], zlabel=names[0])
    caption = f"The same slice of {names[0]} as a surface, cut at its 98th percentile."
    return [*drawn, Figure("surface", caption, ax.figure)]  # pyright: ignore


def _spectra(arrays: Arrays) -> list[Figure]:
    densities, tops = {}, {}
    names = {"start": "at θ_0", "end": "at θ_A"}
    all_nodes = [arrays[f"spectrum_{n}_nodes"] for n in names if f"spectrum_{n}_nodes" in arrays]
    low, high = min(v.min() for v in all_nodes), max(v.max() for v in all_nodes)
    pad = 0.05 * (high - low) or 1.0
    grid = np.linspace(low - pad, high + pad, 400)
    for name, words in names.items():
        if f"spectrum_{name}_nodes" not in arrays:
            continue
        nodes, weights = (arrays[f"spectrum_{name}_{what}"] for what in ("nodes", "weights"))
        # Starts within a model estimate its spectrum; models are the unit of the band.
        by_model = [
            landscapes.smooth_density(
                landscapes.SpectralDensity(n, w), grid, width=0.01 * np.ptp(grid)
            )
            for n, w in zip(nodes, weights, strict=True)
        ]
        curves = np.stack([np.asarray(curve) for curve, _ in by_model])
        error = (
            curves.std(0, ddof=1) / np.sqrt(len(curves))
            if len(curves) > 1
            else np.asarray(by_model[0][1])
        )
        densities[words] = (curves.mean(0), error)
        tops[words] = arrays[f"spectrum_{name}_tops"].ravel()
    ax = plots.spectrum(grid, densities, tops=tops)
    unit = "models" if len(all_nodes[0]) > 1 else "random starts"
    caption = (
        "Density of the Hessian's eigenvalues by stochastic Lanczos quadrature, smoothed by a "
        f"hundredth of the width; bands are two standard errors over {unit}. Ticks: the "
        "largest eigenvalues."
    )
    return [Figure("spectrum", caption, ax.figure)]  # pyright: ignore


def _classes(arrays: Arrays) -> list[Figure]:
    if "matrix" not in arrays:
        return []
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
    if "section_x" not in arrays:
        return []
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
                _BASELINES[baseline],
                wording.format_estimate(*mean_interval(kept)),
                f"{kept.max():.3g}" if kept.size else "undefined",
                f"{kept.size} of {values.size}",
            ]
        )
    result = {}
    if rows:
        names = ["Path", "Height", "Mean, 95 % interval", "Largest", "Pairs"]
        caption = "The highest point of each pair's segment above its baseline, then over pairs."
        result["segments"] = Table("Barriers", caption, names, rows)
    rows = []
    for name, words in {"start": "θ_0", "end": "θ_A"}.items():
        if f"spectrum_{name}_tops" not in arrays:
            continue
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
    aligned = _alignments(arrays)
    return result if aligned is None else result | {"classes": aligned}


def page(
    arrays: Arrays,
    barriers: Mapping[tuple[str, str], np.ndarray],
    *,
    heading: str,
    lead: str,
    command: str,
    run: RunInfo | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Page:
    """Returns the page of landscapes.

    Args:
      arrays: of `measurements.weight_space`.
      barriers: of `weight_space.summary`.
      heading: of the page.
      lead: a paragraph that says what was drawn.
      command: as typed.
      run: what was run, for the landscapes of a population.
      facts: what a repetition needs, for those of somebody's own models.
    """
    drawn, tabled = figures(arrays), tables(arrays, barriers)
    anchors = ("picture", "segments", "slices", "spectra", "classes", "inputs")
    content = {
        "lead": lead,
        "shown": [*(a for a in anchors if a in drawn or a in tabled), "distrust", "repeat"],
        "drawn": {anchor: drawn.get(anchor) for anchor in anchors},
        "tabled": {anchor: tabled.get(anchor) for anchor in anchors},
        "run": run,
        "command": command,
        "settings": settings_table(facts or {}),
    }
    saved = [figure for many in drawn.values() for figure in many]
    return Page("landscape", f"halfway: {heading}", heading, content, saved)


def _alignments(arrays: Arrays) -> Table | None:
    words = {
        "halves": "θ_A with θ_B",
        "shuffled": "the same, examples of one shuffled",
        "walk": "θ_0 with θ_A",
    }
    rows = [
        [words[name], wording.format_estimate(*mean_interval(values)), str(len(values))]
        for name in words
        if (values := arrays.get(f"alignment_{name}")) is not None
    ]
    caption = (
        "Centred alignment of the tangent kernels tr K(x, x′)/C on examples of S, 1 where both "
        "models find the same examples alike: mean and 95 % interval over pairs."
    )
    names = ["Kernels at", "Alignment", "Pairs"]
    return Table("Alignment of the tangent kernels", caption, names, rows) if rows else None
