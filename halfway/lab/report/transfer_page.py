"""A grid of transfer to figures, tables and one page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from halfway import plots, transfer
from halfway.lab.report import transfer_summary
from halfway.lab.report.evaluation_page import FEW
from halfway.lab.report.page import Page, settings_table
from halfway.lab.report.transfer_summary import Cells, Summary
from halfway.lab.study.protocol import Figure, Table
from halfway.lab.study.rules import figure_of
from halfway.lab.study.wording import format_estimate, format_percent
from halfway.transfer import TransferGrid

MOST_CELLS = 100
"""More kinds of surrogates times kinds of targets are drawn without intervals, and not tabled."""
_WEAK, _MATCHED = 0.5, 0.99


def summarize(grid: TransferGrid) -> tuple[dict[tuple[str, float], Summary], Cells]:
    """Returns the summary of each attack and budget, and those of kinds of models where few.

    Args:
      grid: of `transfer.transfer_grid`.
    """
    rows, columns = (transfer_summary.groups(names) for names in (grid.surrogates, grid.targets))
    few = len(rows) * len(columns) <= MOST_CELLS
    cells = {
        place: {
            (a, b): transfer_summary.summarize(transfer_summary.select(cell, ks, ms))
            for a, ks in rows.items()
            for b, ms in columns.items()
        }
        if few
        else {}
        for place, cell in grid.cells.items()
    }
    return {name: transfer_summary.summarize(cell) for name, cell in grid.cells.items()}, cells


def figures(
    grid: TransferGrid, whole: Mapping[tuple[str, float], Summary], cells: Cells
) -> list[Figure]:
    """Returns heat maps of rates and of M_x, the kinds of mistakes, and rates over budgets.

    Args:
      grid: of `transfer.transfer_grid`.
      whole: over all models, by attack and budget.
      cells: the same by kinds of surrogate and target; empty where there are too many kinds.
    """
    drawn = []
    rates = [s.rate[0] for by in cells.values() for s in by.values()]
    limits = 0.0, max([rate for rate in rates if not np.isnan(rate)], default=1.0) or 1.0
    for (attack, budget), cell in grid.cells.items():
        words = f"{attack}, ε = {budget:g}"
        by = cells[attack, budget]
        for name, label, of in (
            ("rate", "fooled, share of what both have right", lambda s: s.rate),
            ("coefficient", "M_x, transfer in margin loss", lambda s: s.coefficient),
        ):
            if by:
                rows, columns = (list(dict.fromkeys(pair[i] for pair in by)) for i in (0, 1))
                matrix = np.array([[of(by[a, b]) for b in columns] for a in rows], float)
                ax = plots.interval_matrix(
                    matrix,
                    names=rows,
                    targets=columns,
                    label=label,
                    framed=False,
                    limits=limits if name == "rate" else None,
                )
            else:
                matrix = _plain(cell, name)
                ax = plots.transfer_matrix(
                    matrix, surrogates=grid.surrogates, targets=grid.targets, label=label
                )
            caption = f"{words}: {label}. Rows are attacked, columns look at what was made of them."
            caption += " Brackets: 95 %." if by else ""
            caption += " Empty: a model attacked through itself." if _any_self(cell) else ""
            drawn.append(Figure(f"{name}_{attack}_{budget:g}", caption, figure_of(ax)))
    places = list(whole)
    axes = plots.mistakes(
        [whole[place].same for place in places],
        [whole[place].different for place in places],
        noise=[whole[place].noise for place in places],
        names=[f"{attack}, ε = {budget:g}" for attack, budget in places],
    )
    caption = (
        "What became of perturbed examples that both models have right when clean, over all "
        "surrogates and targets. Where the target is fooled it makes the surrogate's mistake or "
        "another one; the tick is what noise of equal norm does."
    )
    drawn.append(Figure("mistakes", caption, figure_of(axes)))
    if len(grid.budgets) > 1:
        drawn.append(_curve(grid, whole))
    return drawn


def _curve(grid: TransferGrid, whole: Mapping[tuple[str, float], Summary]) -> Figure:
    budgets, names = sorted(grid.budgets), list(grid.attacks[:3])

    def line(name, value):
        return [value(whole[name, budget]) for budget in budgets]

    rates = {name: line(name, lambda s: s.rate[0]) for name in names}
    ends = [{n: line(n, lambda s, i=i: s.rate[i]) for n in names} for i in (1, 2)]
    ax = plots.budget_curve(
        budgets,
        rates | {"noise": line(names[0], lambda s: s.noise)},
        low=ends[0],
        high=ends[1],
        controls=("noise",),
        xlabel="ε, budget of the attack",
        ylabel="fooled, share of what both have right",
    )
    caption = (
        "Share fooled against the budget, over all surrogates and targets, 95 % intervals. Grey: "
        f"noise that matches {names[0]} in l∞ and l2."
    )
    return Figure("budgets", caption, figure_of(ax))


def _plain(cell: transfer.TransferMatrix, name: str) -> np.ndarray:
    if name == "coefficient":
        values = np.asarray(transfer.coefficient(cell), float)
    else:
        rate = transfer.success(cell, transfer_summary.SUBSET)
        number = np.asarray(rate.num_examples, float)
        values = np.asarray(rate.num_fooled) / np.where(number > 0, number, np.nan)
    return np.where(transfer_summary.itself(cell), np.nan, values)


def _any_self(cell: transfer.TransferMatrix) -> bool:
    return bool(transfer_summary.itself(cell).any())


def tables(whole: Mapping[tuple[str, float], Summary], cells: Cells) -> list[Table]:
    """Returns tables of attacks and budgets, and one of kinds of models where there are more.

    The first table has the rate with what it is compared with, the second other denominators.

    Args:
      whole: over all models, by attack and budget.
      cells: the same by kinds of surrogate and target.
    """
    first = [
        [
            attack,
            f"{budget:g}",
            format_estimate(*s.rate),
            format_estimate(*s.beyond),
            _fixed(s.noise),
            _fixed(s.other),
            format_estimate(*s.coefficient),
            _fixed(s.coefficient_noise),
        ]
        for (attack, budget), s in whole.items()
    ]
    names = [
        "attack",
        "ε",
        "fooled, of both right",
        "minus noise",
        "noise",
        "another's perturbation",
        "M_x",
        "M_x of noise",
    ]
    caption = (
        "Over all surrogates and targets but models attacked through themselves. Fooled: share of "
        "the examples that both models have right when clean, with a 95 % interval; beside it the "
        "controls of equal norm."
    )
    page_tables = [
        Table("Attacks and budgets", caption, names, first),
        Table(
            "Fooled, of other denominators",
            "The same attacks. Of those the target has right when clean, and of all examples; what "
            "clean examples get wrong, and how many of its own the attack fools the surrogate on.",
            ["attack", "ε", "of target right", "of all", "clean error", "surrogate fooled"],
            [
                [
                    attack,
                    f"{budget:g}",
                    _fixed(s.of_target),
                    _fixed(s.of_all),
                    _fixed(s.clean),
                    _fixed(s.surrogate_fooled),
                ]
                for (attack, budget), s in whole.items()
            ],
        ),
    ]
    rows = [
        [
            f"{a} → {b}",
            attack,
            f"{budget:g}",
            format_estimate(*s.rate),
            _fixed(s.noise),
            _fixed(s.clean),
            _fixed(s.same),
            _fixed(s.different),
            format_estimate(*s.coefficient),
            f"{s.num_examples:.0f}",
            str(s.num_cells),
        ]
        for (attack, budget), by in cells.items()
        for (a, b), s in by.items()
        if s.num_cells
    ]
    if len(rows) > len(first):
        names = [
            "surrogate → target",
            "attack",
            "ε",
            "fooled, of both right",
            "noise",
            "clean error",
            "same mistake",
            "another mistake",
            "M_x",
            "examples",
            "pairs of models",
        ]
        caption = "Every kind of surrogate and target; examples: that both have right, on average."
        page_tables.append(Table("Kinds of models", caption, names, rows))
    return page_tables


def first_budget_table(cells: Cells) -> Table | None:
    """Returns the smallest budgets at which kinds of models fool each other; None where none can.

    Args:
      cells: summaries by kinds of surrogate and target.
    """
    budgets = sorted({budget for _, budget in cells})
    rows = [
        [f"{a} → {b}", attack, *(_first(value) for value in first)]
        for (a, b, attack), first in transfer_summary.first_budgets(cells).items()
    ]
    if len(budgets) < 2 or not rows:
        return None
    names = ["surrogate → target", "attack", "first ε beyond noise", "first ε that fools half"]
    caption = (
        f"The smallest of the budgets {', '.join(f'{budget:g}' for budget in budgets)} at which an "
        "attack fools more than noise of equal norm does (95 % interval), and at which it fools "
        "half of what both have right. None: at none of them."
    )
    return Table("First budget", caption, names, rows)


def sentences(whole: Mapping[tuple[str, float], Summary], cells: Cells) -> list[str]:
    """Returns the answer in plain words, of the first attack at its largest budget.

    Args:
      whole: over all models, by attack and budget.
      cells: the same by kinds of surrogate and target.
    """
    first = next(iter(whole))[0]
    place = max((place for place in whole if place[0] == first), key=lambda place: place[1])
    summary = whole[place]
    if np.isnan(summary.rate[0]):
        return ["No image is classified rightly by both models of any pair: there is no rate."]
    lines = [
        f"An attack on one model ({first}, changes of at most {place[1]:g}) fools another one on "
        f"{format_percent(*summary.rate)} % of the images that both have right. Noise of equal "
        f"size does on {format_percent(summary.noise)} %."
    ]
    means: list[dict[str, float]] = [{}, {}]
    for side, by_name in enumerate(means):
        for name in dict.fromkeys(pair[side] for pair in cells[place]):
            rates = [
                s.rate[0]
                for pair, s in cells[place].items()
                if pair[side] == name and s.num_cells and not np.isnan(s.rate[0])
            ]
            if rates:
                by_name[name] = float(np.mean(rates))
    surrogates, targets = means
    if len(surrogates) > 1:
        name = max(surrogates, key=lambda each: surrogates[each])
        lines.append(
            f"The strongest surrogate is {name}: attacks on it fool others on "
            f"{format_percent(surrogates[name])} %, mean over the kinds of targets."
        )
    if len(targets) > 1:
        name = max(targets, key=lambda each: targets[each])
        lines.append(
            f"The target that is fooled most easily is {name}: on "
            f"{format_percent(targets[name])} %, mean over the kinds of surrogates."
        )
    return lines


def warnings(
    grid: TransferGrid, labels: np.ndarray, whole: Mapping[tuple[str, float], Summary]
) -> list[str]:
    """Returns what should make a reader doubt the numbers, a sentence each.

    Args:
      grid: of `transfer.transfer_grid`.
      labels: `[B]` of the images.
      whole: over all models, by attack and budget.
    """
    said = []
    number = next(iter(whole.values())).num_examples
    if number < FEW:
        said.append(
            f"Surrogate and target have {number:.0f} images right together, on average: fewer than "
            f"{FEW} say little."
        )
    chance = np.bincount(labels).max() / len(labels)
    cell = next(iter(grid.cells.values()))
    sides = (grid.surrogates, cell.surrogate["clean"]), (grid.targets, cell.target["clean"])
    accuracies = {
        name: float(np.asarray(right).mean())
        for names, outcome in sides
        for name, right in zip(names, np.asarray(outcome.correct), strict=True)
    }
    guessing = [name for name, accuracy in accuracies.items() if accuracy < 1.2 * chance]
    if guessing:
        said.append(
            f"Accuracy of {', '.join(guessing)} is about that of a constant answer, "
            f"{100 * chance:.0f} %: are images scaled as it expects, and classes numbered alike?"
        )
    return said


def page(
    grid: TransferGrid,
    labels: np.ndarray,
    whole: Mapping[tuple[str, float], Summary],
    cells: Cells,
    *,
    lead: str,
    source: str,
    command: str,
    settings: Mapping[str, Any],
) -> tuple[Page, list[Table]]:
    """Returns the page of transfer, and its tables for the terminal.

    Args:
      grid: of `transfer.transfer_grid`.
      labels: `[B]` of the images.
      whole, cells: of `summarize`.
      lead: a paragraph that says what was attacked.
      source: of the images.
      command: as typed.
      settings: that were used, by name.
    """
    drawn, tabled = figures(grid, whole, cells), tables(whole, cells)
    first_budgets = first_budget_table(cells)
    places = [(f"{attack}, ε = {budget:g}", summary) for (attack, budget), summary in whole.items()]
    doubts = warnings(grid, labels, whole)
    curves = ("mistakes", "budgets")
    content = {
        "lead": lead,
        "sentences": sentences(whole, cells),
        "doubts": doubts,
        "tables": tabled,
        "first_budgets": first_budgets,
        "matrices": [figure for figure in drawn if figure.name not in curves],
        "others": [figure for figure in drawn if figure.name in curves],
        "source": source,
        "shares": next(iter(whole.values())).shares,
        "weak": [
            {"name": n, "share": s.surrogate_fooled}
            for n, s in places
            if s.surrogate_fooled < _WEAK
        ],
        "unmatched": [
            {"name": n, "share": 1 - s.matched} for n, s in places if s.matched < _MATCHED
        ],
        "command": command,
        "settings": settings_table(settings),
    }
    shown = [*tabled, *([first_budgets] if first_budgets else [])]
    return Page("transfer", "halfway: transfer", "Who fools whom?", content, drawn), shown


def _first(budget: float) -> str:
    return "none" if np.isnan(budget) else f"{budget:g}"


def _fixed(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}".replace("-", "−")
