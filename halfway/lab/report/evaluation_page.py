"""An evaluation of one model to sentences, tables, figures and one page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MplFigure

from halfway import attacks, plots, robustness, stats
from halfway.lab.report.page import Page, settings_table
from halfway.lab.study.protocol import Figure, Table
from halfway.lab.study.rules import figure_of
from halfway.lab.study.wording import format_budget, format_percent
from halfway.plots.style import (
    BLUE,
    GREY,
    MARKERS,
    PAPER,
    VERMILLION,
    clip_ends,
    new_figure,
    styled,
)
from halfway.robustness import Robustness
from halfway.stats import Share

NUM_SHOWN = 8
"""Images that are drawn, at most."""
FEW = 20
"""Fewer images that are right as they are say little."""
AXES = {"linf": "l∞", "l2": "l2", "l1": "l1"}
NORM_WORDS = {"linf": "in each pixel (l∞)", "l2": "in Euclidean length (l2)", "l1": "in sum (l1)"}


def sentences(result: Robustness) -> list[str]:
    """Returns the answer in plain words: what is right as it is, and what stays so under attack.

    Args:
      result: of `robustness.evaluate`.
    """
    clean = result.clean_accuracy
    lines = [
        f"The model classifies {_percent(clean)} % of {clean.num_trials} images rightly as they "
        "are."
    ]
    for place, threat in enumerate(result.threats):
        share = result.robust_accuracy(place)
        lines.append(
            f"{_percent(share)} % stay right under every attack that was tried with changes of at "
            f"most {format_budget(float(threat.epsilon))} {NORM_WORDS[threat.norm.name]}."
        )
    lines.append("An attack that was not tried can only lower this. Brackets are 95 % intervals.")
    return lines


def _percent(share: Share) -> str:
    return format_percent(share.estimate, share.low, share.high)


def accuracy_table(result: Robustness) -> Table:
    """Returns robust accuracy by budget and attack.

    Args:
      result: of `robustness.evaluate`.
    """
    rows = []
    for place, threat in enumerate(result.threats):
        right = result.right
        undecided = int((result.undecided[:, place] & right).any(0).sum())
        rows.append(
            [
                f"{threat.norm.name} {format_budget(float(threat.epsilon))}",
                _percent(result.robust_accuracy(place)),
                *(_percent(result.robust_accuracy(place, name)) for name in result.attacks),
                str(undecided),
            ]
        )
    columns = ["budget", "all together", *result.attacks, "undecided images"]
    caption = (
        "Robust accuracy in % of all images, with 95 % intervals over images, given this model. "
        "Undecided: the model answers with NaN, or an attack had nowhere to begin; counted as not "
        "robust."
    )
    return Table("Robust accuracy", caption, columns, rows)


def class_table(result: Robustness) -> Table:
    """Returns accuracy of each class, as it is and under all attacks together.

    Args:
      result: of `robustness.evaluate`.
    """
    columns = [
        "class",
        "images",
        "as they are",
        *(f"{t.norm.name} {format_budget(float(t.epsilon))}" for t in result.threats),
    ]
    rows = []
    for label in np.unique(result.labels):
        chosen = result.labels == label
        shares = [result.right, *(result.robust(place) for place in range(len(result.threats)))]
        rows.append(
            [
                str(label),
                str(int(chosen.sum())),
                *(_percent(stats.share(values, chosen)) for values in shares),
            ]
        )
    return Table("By class", "Accuracy in % with 95 % intervals.", columns, rows)


@styled
def curves(result: Robustness) -> MplFigure:
    """Returns robust accuracy against the budget, axes for each norm.

    Args:
      result: of `robustness.evaluate`.
    """
    names = list(dict.fromkeys(threat.norm.name for threat in result.threats))
    figure = new_figure(1.2 + 3.6 * len(names), 3.3)
    for ax, norm in zip(
        np.ravel(figure.subplots(1, len(names), squeeze=False)), names, strict=True
    ):
        places = [p for p, threat in enumerate(result.threats) if threat.norm.name == norm]
        budgets = np.array([float(result.threats[place].epsilon) for place in places])
        top = 1.25 * budgets.max()
        if norm in result.norms:
            x = np.linspace(0, top, 200)
            ax.plot(x, 100 * result.curve(norm, x), color=GREY, label="smallest changes found")
        shares = [result.robust_accuracy(place) for place in places]
        middle, low, high = (np.array([100 * share[i] for share in shares]) for i in range(3))
        ends = np.abs(clip_ends(np.stack([low, high])) - middle)
        ax.errorbar(
            budgets,
            middle,
            ends,
            fmt=MARKERS[1],
            color=BLUE,
            ms=6,
            mec=PAPER,
            elinewidth=1.2,
            label="all attacks together",
        )
        clean = 100 * result.clean_accuracy.estimate
        ax.plot(0, clean, MARKERS[0], color=VERMILLION, ms=6, mec=PAPER, label="as they are")
        ax.set(xlim=(-0.03 * top, top), ylim=(-2, 102), xlabel=f"largest change, {AXES[norm]}")
        ax.set_ylabel("right, % of all images")
    figure.axes[-1].legend(frameon=False, fontsize=8.5, loc="upper right")
    return figure


def worst(result: Robustness, images: np.ndarray) -> Figure | None:
    """Returns the images that the smallest changes fool; None where these are no pictures.

    Args:
      result: of `robustness.evaluate`.
      images: `[B, ...]`.
    """
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        return None
    places = sorted(range(len(result.threats)), key=lambda p: float(result.threats[p].epsilon))
    for place in places:
        threat = result.threats[place]
        fooled = np.flatnonzero(result.found_by[place] >= 0)
        if not len(fooled):
            continue
        if threat.norm.name in result.norms:
            length = result.distance[result.norms.index(threat.norm.name), fooled]
            fooled = fooled[np.argsort(length, kind="stable")]
        rows = fooled[:NUM_SHOWN]
        axes = plots.images(
            images[rows],
            result.adversarial[place][rows],
            titles=[f"{result.labels[row]}" for row in rows],
            perturbed_titles=[f"{result.seen_as[place][row]}" for row in rows],
        )
        budget = f"{format_budget(float(threat.epsilon))} {NORM_WORDS[threat.norm.name]}"
        caption = (
            f"Images that the smallest changes fool, attacked with at most {budget}: label above, "
            "the class that the model sees below."
        )
        return Figure("worst", caption, figure_of(axes))
    return None


def numbers(result: Robustness) -> dict[str, Any]:
    """Returns what the tables hold as plain data: shares with the ends of their intervals.

    Args:
      result: of `robustness.evaluate`.
    """

    def plain(share: Share) -> dict[str, float]:
        return dict(share._asdict())

    return {
        "clean_accuracy": plain(result.clean_accuracy),
        "robust_accuracy": [
            {
                "norm": threat.norm.name,
                "epsilon": float(threat.epsilon),
                "all together": plain(result.robust_accuracy(place)),
                **{name: plain(result.robust_accuracy(place, name)) for name in result.attacks},
            }
            for place, threat in enumerate(result.threats)
        ],
    }


def adversarial_arrays(result: Robustness) -> dict[str, np.ndarray]:
    """Returns the points that fool the model, and which images they are of, by budget.

    Args:
      result: of `robustness.evaluate`.
    """
    arrays = {"labels": result.labels}
    for place, threat in enumerate(result.threats):
        rows = np.flatnonzero(result.found_by[place] >= 0)
        name = f"{threat.norm.name}_{float(threat.epsilon):g}"
        arrays |= {f"{name}_images": result.adversarial[place][rows], f"{name}_rows": rows}
    return arrays


def warnings(result: Robustness) -> list[str]:
    """Returns what should make a reader doubt the numbers, a sentence each.

    Args:
      result: of `robustness.evaluate`.
    """
    said = list(attacks.in_words(result.diagnosis)) if result.diagnosis is not None else []
    right = int(result.right.sum())
    if right < FEW:
        said.append(f"only {right} images are right as they are: intervals are wide")
    chance = np.bincount(result.labels).max() / max(1, len(result.labels))
    if result.clean_accuracy.high < 1.5 * chance:
        said.append(
            f"accuracy is about that of a constant answer, {100 * chance:.0f} %: are images scaled "
            "as the model expects, and are classes numbered as it numbers them?"
        )
    for name in result.attacks:
        if name.endswith(f", {robustness.SECOND_LOSS}"):
            said.append(f"{name}: run beside the other because cross-entropy saturates")
    return said


def page(
    result: Robustness,
    images: np.ndarray,
    *,
    model: str,
    source: str,
    command: str,
    settings: Mapping[str, Any],
) -> tuple[Page, list[Table]]:
    """Returns the page of an evaluation, and its tables for the terminal.

    Args:
      result: of `robustness.evaluate`.
      images: `[B, ...]`, as they are.
      model: as the user names it.
      source: of the images.
      command: as typed.
      settings: that were used, by name.
    """
    caption = (
        "Images that stay right against the largest change that is allowed. Grey: images for which "
        "no smaller change was found, which robust accuracy cannot exceed. Squares: all attacks at "
        "the budgets asked for, with 95 % intervals."
    )
    drawn = [Figure("curve", caption, curves(result))]
    pictures = worst(result, images)
    drawn += [] if pictures is None else [pictures]
    shown = [accuracy_table(result), class_table(result)]
    content = {
        "sentences": sentences(result),
        "lead": f"{model} on {len(result.labels)} images of {source}.",
        "tables": shown,
        "curve": drawn[0],
        "worst": pictures,
        "doubts": warnings(result),
        "numbers": numbers(result),
        "command": command,
        "settings": settings_table(settings),
    }
    return Page("evaluation", "halfway: evaluation", "How robust is it?", content, drawn), shown[:1]
