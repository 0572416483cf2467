"""The page of laws: a figure and a table for each, and whether they hold."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from halfway import meeting, plots
from halfway.lab.measurements import laws
from halfway.lab.measurements.laws import Law
from halfway.lab.report.page import Page
from halfway.lab.study import rules
from halfway.lab.study.protocol import Figure, Table
from halfway.lab.study.wording import format_estimate, format_p

_XLABELS = {"n": "n, examples of a half", "k": "k, surrogates whose gradients are averaged"}
_YLABELS = {"n": "μ_θ, what the other half shares", "k": "μ_x, what the target shares"}


def page(
    first: Mapping[int, Mapping[str, Law]],
    second: Mapping[str, Law],
    gaussian: Mapping[str, np.ndarray],
    *,
    lead: str,
    command: str,
) -> tuple[Page, list[Table]]:
    """Returns the page of laws, and its tables for the terminal.

    Args:
      first: the first law by steps of training and architecture.
      second: the second law by architecture.
      gaussian: of `laws.linear_gaussian`.
      lead: a paragraph that says what was measured.
      command: as typed.
    """
    drawn = [
        law_figure("first_law", "n", first[0], meeting.first_law),
        law_figure("first_law_trained", "n", first[laws.TRAINED], meeting.first_law),
        law_figure("second_law", "k", second, meeting.second_law),
        _gaussian_figure(gaussian),
    ]
    tables = [
        law_table("First law (P3), at initialization", "n", first[0]),
        law_table(f"First law (P3), after {laws.TRAINED} steps", "n", first[laws.TRAINED]),
        law_table("Second law (P4)", "k", second),
        _gaussian_table(gaussian),
    ]
    content = {
        "lead": lead,
        "laws": list(zip(drawn, tables, strict=True)),
        "num_steps": laws.TRAINED,
        "command": command,
    }
    heading = "Signal, noise, and half of the way"
    return Page("laws", "halfway: the laws", heading, content, drawn), tables


def law_figure(
    name: str, symbol: str, by_model: Mapping[str, Law], predict: Callable[..., Any]
) -> Figure:
    """Returns a law as a line and what was measured as points.

    Args:
      name: of the figure.
      symbol: "n" or "k".
      by_model: the law of each model.
      predict: (sizes, half) to μ.
    """
    sizes = [entry.size for entry in next(iter(by_model.values())).checked]
    grid = np.geomspace(sizes[0] / 1.5, sizes[-1] * 1.5, 100)
    axes = plots.law(
        sizes,
        {model: [entry.measured for entry in law.checked] for model, law in by_model.items()},
        {model: (grid, np.asarray(predict(grid, law.half))) for model, law in by_model.items()},
        half={model: law.half for model, law in by_model.items()},
        xlabel=_XLABELS[symbol],
        ylabel=_YLABELS[symbol],
    )
    holds = all(entry.p_value < 0.05 for law in by_model.values() for entry in law.checked)
    caption = (
        f"Lines: {symbol}/({symbol} + {symbol}_half), with {symbol}_half from other "
        f"{'examples' if symbol == 'n' else 'models'}; ticks mark {symbol}_half, where signal "
        f"equals noise: halfway. Points: measured, 95 % intervals. "
        f"{'They agree everywhere' if holds else 'They do not agree everywhere'} by the "
        "equivalence test."
    )
    return Figure(name, caption, rules.figure_of(axes))


def _gaussian_figure(gaussian: Mapping[str, np.ndarray]) -> Figure:
    risk = np.geomspace(
        gaussian["exact"][:, 0].min() / 1.3, gaussian["exact"][:, 0].max() * 1.3, 200
    )
    few = np.arange(2, laws.DIMENSION - 1)
    known = meeting.linear_gaussian(few, laws.DIMENSION, 1.0, laws.NOISE)
    axes = plots.transfer_against_risk(
        gaussian["ratios"],
        gaussian["risks"],
        gaussian["measured"],
        {
            "n > d + 1: 1/(1 + R/s²)": (risk, 1 / (1 + risk)),
            "n < d − 1": (np.asarray(known.risk), np.asarray(known.coefficient)),
        },
    )
    caption = (
        f"Least squares on n Gaussian examples of dimension {laws.DIMENSION}, σ² = s²: for n > d "
        "transfer is a function of generalization alone; for n < d it lies on the other branch. "
        f"Points: {laws.NUM_REPLICATES} simulated pairs of halves each."
    )
    return Figure("linear_gaussian", caption, rules.figure_of(axes))


def law_table(title: str, symbol: str, by_model: Mapping[str, Law]) -> Table:
    """Returns what was predicted and measured at every size.

    Args:
      title: of the table.
      symbol: "n" or "k".
      by_model: the law of each model.
    """
    rows = [
        [
            model,
            f"{law.half:.3g}",
            str(entry.size),
            f"{entry.predicted:.3f}",
            format_estimate(*entry.measured),
            format_p(entry.p_value),
        ]
        for model, law in by_model.items()
        for entry in law.checked
    ]
    caption = (
        "p of the equivalence test: below .05, measured and predicted agree within .03, within "
        "15 % where the prediction is below .2."
    )
    names = ["model", f"{symbol}_half", symbol, "predicted", "measured, 95 % interval", "p (TOST)"]
    return Table(title, caption, names, rows)


def _gaussian_table(gaussian: Mapping[str, np.ndarray]) -> Table:
    rows = [
        [
            f"{ratio:.2f}",
            f"{risk:.3f}",
            format_estimate(*risks),
            f"{mu:.3f}",
            format_estimate(*measured),
        ]
        for ratio, (risk, mu), risks, measured in zip(
            gaussian["ratios"],
            gaussian["exact"],
            gaussian["risks"],
            gaussian["measured"],
            strict=True,
        )
    ]
    names = ["n/d", "R/s², exact", "R/s², simulated", "μ_x, exact", "μ_x, simulated"]
    return Table("Linear-Gaussian model (P7)", "Means and 95 % intervals.", names, rows)
