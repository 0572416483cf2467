"""A grid of transfer to figures, tables and one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from halfway import plots, transfer
from halfway.lab.report import transfer_summary
from halfway.lab.report.document import document
from halfway.lab.report.elements import Drawing, Table, figure, listing, table, text
from halfway.lab.report.page import FINITE_DATA
from halfway.lab.report.report import inline_svg
from halfway.lab.report.transfer_summary import Summary
from halfway.lab.study.protocol import Figure
from halfway.lab.study.rules import figure_of
from halfway.lab.study.wording import format_estimate
from halfway.storage import write_whole
from halfway.transfer import Grid

MOST_CELLS = 100
"""More kinds of surrogates times kinds of targets are drawn without intervals, and not tabled."""
Cells = Mapping[tuple[str, float], Mapping[tuple[str, str], Summary]]
"""(attack, budget) to (kind of surrogate, kind of target) to what happened."""
_WEAK, _MATCHED = 0.5, 0.99
_SECTIONS = {"answer": "In short", "matrices": "Who fools whom", "mistakes": "Which mistakes"}


def summarize(grid: Grid) -> tuple[dict[tuple[str, float], Summary], Cells]:
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


def figures(grid: Grid, whole: Mapping[tuple[str, float], Summary], cells: Cells) -> list[Figure]:
    """Returns heat maps of rates and of M_x, the kinds of mistakes, and rates over budgets."""
    drawn = []
    limits = 0.0, max([s.rate[0] for by in cells.values() for s in by.values()], default=1.0) or 1.0
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


def _curve(grid: Grid, whole: Mapping[tuple[str, float], Summary]) -> Figure:
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
    """Returns a table of attacks and budgets, and one of kinds of models where there are more."""
    first = [
        [
            attack,
            f"{budget:g}",
            format_estimate(*s.rate),
            format_estimate(*s.beyond),
            _share(s.noise),
            _share(s.other),
            _share(s.of_target),
            _share(s.of_all),
            _share(s.clean),
            _share(s.own),
            format_estimate(*s.coefficient),
            f"{s.coefficient_noise:.3f}",
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
        "of target right",
        "of all",
        "clean error",
        "surrogate fooled",
        "M_x",
        "M_x of noise",
    ]
    caption = (
        "Over all surrogates and targets but models attacked through themselves. Fooled: share of "
        "the examples that both models have right when clean, with a 95 % interval; beside it the "
        "controls of equal norm, the other denominators and what clean examples get wrong."
    )
    found = [Table("Attacks and budgets", caption, names, first)]
    rows = [
        [
            f"{a} → {b}",
            attack,
            f"{budget:g}",
            format_estimate(*s.rate),
            _share(s.noise),
            _share(s.clean),
            _share(s.same),
            _share(s.different),
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
        found.append(Table("Kinds of models", caption, names, rows))
    return found


def distrust(whole: Mapping[tuple[str, float], Summary], source: str) -> list[str]:
    """Returns what a reader should not believe, a sentence each."""
    some = next(iter(whole.values()))
    parts = ", ".join(f"{share:.0%} from {name}" for name, share in some.shares.items())
    found = [
        "Intervals resample surrogates, targets and examples together; a side of one model, and "
        "two models against each other, stand for these models only.",
        "Models that were trained alike, such as from one another, are fewer than they look.",
        f"Variance of the first rate: {parts}. More of what adds most narrows it.",
        FINITE_DATA.replace("All pairs are", "Models and images may be"),
        f"Images: {source}. Where models were trained on them, clean errors are too low.",
        "M_x carries the scale of both models' logits; rates do not.",
    ]
    for (attack, budget), s in whole.items():
        words = f"{attack}, ε = {budget:g}"
        if s.own < _WEAK:
            found.append(
                f"{words}: the attack fools its own surrogates on {s.own:.0%} of what they have "
                "right; a stronger one, or a larger budget, may transfer more."
            )
        if s.matched < _MATCHED:
            found.append(
                f"{words}: within the box {1 - s.matched:.1%} of the noise falls short of the "
                "attack's norm."
            )
    return found


def write(
    path: Path,
    *,
    lead: str,
    drawn: Sequence[Figure],
    tabled: Sequence[Table],
    distrusted: Sequence[str],
    repeat: str,
) -> None:
    """Writes the page, whole or not at all.

    Args:
      path: the file.
      lead: a paragraph that says what was attacked.
      drawn: figures.
      tabled: tables, that of all attacks first.
      distrusted: a sentence each.
      repeat: HTML on how to repeat it.
    """
    pictures = {"matrices": "", "mistakes": ""}
    for number, item in enumerate(drawn):
        svg = inline_svg(item.figure, f"f{number}", item.caption)
        wide = item.figure.get_figwidth() > 6
        part = "mistakes" if item.name in ("mistakes", "budgets") else "matrices"
        pictures[part] += figure(Drawing(item.caption, svg, wide))
    numbers = [
        f"<p>{text(one.caption)}</p>{table(one.columns, one.rows, one.title)}" for one in tabled
    ]
    bodies = {name: f'<div class="figures">{body}</div>' for name, body in pictures.items()}
    bodies["answer"] = f'<p class="ran">{text(lead)}</p>{numbers[0]}'
    sections = {name: (title, bodies[name]) for name, title in _SECTIONS.items()}
    if len(numbers) > 1:
        sections["cells"] = (tabled[1].title, numbers[1])
    sections["distrust"] = ("What to distrust", listing([text(item) for item in distrusted]))
    sections["repeat"] = ("To repeat it", repeat)
    heading = "Who fools whom?"
    write_whole(path, document("halfway: transfer", heading, sections).encode())


def _share(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"
