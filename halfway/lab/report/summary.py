"""Every condition in tables, and transfer against the gap: a description without a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, populations, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import learning, transfer
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER, TRANSFER_CONTROLS
from halfway.lab.studies import g2, t1
from halfway.lab.study import rules
from halfway.lab.study.conditions import condition, control
from halfway.lab.study.protocol import Figure, Table
from halfway.lab.study.records import Measured, Records
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition
from halfway.transfer import DENOMINATORS, Denominator

NAMES = {"error": "error", "brier": "Brier score", "cross_entropy": "cross-entropy"}
OWN = t1.Points("attack", "own")
TRANSFER_ROWS = {
    "clean": t1.Points("clean", "other"),
    "attack on the other": t1.ATTACK,
    **t1.COMPARED,
}
COUNTED = {
    "all": "all examples",
    "target_correct": "those that the target has right when clean",
    "both_correct": "those that both models have right when clean",
}


class Overview(NamedTuple):
    """Tables, figures and warnings about all conditions of a run, and the picture of two walks."""

    tables: list[Table]
    figures: list[Figure]
    warnings: list[str]
    walks: Figure | None


def overview(records: Records) -> Overview:
    """Returns tables of meeting and transfer for the conditions of the config, with the scatter.

    Args:
      records: of a run.
    """
    config = records.config
    conditions = [
        listed
        for name in config.architectures
        for listed in (
            *(condition(config, name, noise_rate=rate) for rate in config.noise_rates),
            control(config, name),
        )
    ]
    learned = [listed for listed in conditions if records.has(LEARNING, listed)]
    attacked = [listed for listed in conditions if records.has(TRANSFER, listed)]
    controlled = [listed for listed in attacked if records.has(TRANSFER_CONTROLS, listed)]
    tables = _learning_tables(records, learned) if learned else []
    if controlled:
        tables.append(_coefficient_table(records, controlled))
        tables += [_success_table(records, controlled, name) for name in DENOMINATORS]
    figures = [_scatter(records, attacked)] if attacked else []
    walks = _two_walks(records, controlled[0]) if controlled else None
    return Overview(tables, figures, _warnings(records, learned, config), walks)


def _name(listed: Condition) -> str:
    labels = "permuted labels" if listed.permuted else f"ρ = {listed.noise_rate:g}"
    return f"{listed.architecture}, {labels}"


def _text(estimate: stats.Estimate | stats.Decision) -> str:
    return format_estimate(*rules.triple(estimate))


def _learning_tables(records: Records, conditions: Sequence[Condition]) -> list[Table]:
    meaning = {
        "error": "M_θ: the other half's progress as a share of the own, from the best constant "
        "predictor; 95 % Fieller intervals over pairs. The ceiling stands where A is fitted. End: "
        "after the last step. S best: at the probe where the third sample, as noisy as the halves, "
        "has the least cross-entropy, which may be the first where there is nothing to learn. "
        "Error at the end decides.",
        "brier": "The same in Brier score, summed over classes.",
        "cross_entropy": "The same in cross-entropy, which punishes confidence: once a half is "
        "memorized, its end measures the length of training.",
    }
    tables = []
    for loss in populations.LOSSES:
        name = NAMES[loss]
        columns = ["condition", "ceiling 1 − ρ", f"M_θ in {name}, end", f"M_θ in {name}, S best"]
        if loss == "error":
            columns += ["gap in error", "training accuracy"]
        rows = []
        for listed in conditions:
            learned = records.get(LEARNING, listed)
            row = [_name(listed), _ceiling(listed, learned)]
            row += [
                _text(stats.fieller(*learning.meeting_terms(learned, loss, at)))
                for at in ("end", "best")
            ]
            if loss == "error":
                gap, accuracy = (
                    stats.mean_test(values, alternative="greater")
                    for values in (learning.gap(learned), learning.training_accuracy(learned))
                )
                row += [_text(stats.bounded(gap, -1.0)), _text(stats.bounded(accuracy))]
            rows.append(row)
        tables.append(Table(f"Where halves meet, in {name}", meaning[loss], columns, rows))
    return tables


def _ceiling(listed: Condition, learned: Measured) -> str:
    """Returns 1 − ρ where A is fitted: only there it is the most that can be reached."""
    accuracy = learning.training_accuracy(learned)[learned.finite]
    is_fitted = accuracy.size and accuracy.mean() > g2.FITTED
    return f"{1 - listed.noise_rate:g}" if is_fitted and not listed.permuted else "–"


def _coefficient_table(records: Records, conditions: Sequence[Condition]) -> Table:
    epsilon = records.config.attack.epsilon
    columns = ["condition", "M_x", *(f"M_x of {name}" for name in t1.COMPARED)]
    rows = []
    for listed in conditions:
        terms = transfer.coefficient_terms(records.get(TRANSFER, listed))
        row = [_name(listed), _text(stats.fieller(*terms))]
        for points in t1.COMPARED.values():
            moved = transfer.control_terms(
                records.get(TRANSFER_CONTROLS, listed), "increase", *points, budget=epsilon
            )
            row.append(_text(stats.fieller(moved, terms.denominators)))
        rows.append(row)
    return Table(
        f"Where models meet, ε = {epsilon:g}",
        "M_x: the rise of the target's margin loss as a share of the surrogate's own under its "
        "attack, summed over all of S and both directions; the same rise under each control. 95 % "
        "Fieller intervals over pairs.",
        columns,
        rows,
    )


def _success_table(
    records: Records, conditions: Sequence[Condition], denominator: Denominator
) -> Table:
    epsilon = records.config.attack.epsilon
    # Among examples that are right when clean, the clean error is 0 by definition.
    shown = {k: v for k, v in TRANSFER_ROWS.items() if k != "clean" or denominator == "all"}
    columns = ["condition", "examples", "surrogate itself", *shown]
    rows = []
    for listed in conditions:
        controlled = records.get(TRANSFER_CONTROLS, listed)
        counts = {
            name: tuple(
                transfer.control_terms(
                    controlled, quantity, *points, budget=epsilon, denominator=denominator
                )
                for quantity in ("num_fooled", "num_examples")
            )
            for name, points in ({"own": OWN} | shown).items()
        }
        number = stats.mean_test(counts["attack on the other"][1], alternative="greater")
        rates = [_text(stats.bounded(stats.fieller(*count))) for count in counts.values()]
        rows.append([_name(listed), f"{number.estimate / 2:.0f}", *rates])
    return Table(
        f"Success among {COUNTED[denominator]}, ε = {epsilon:g}",
        "Share that the target misclassifies; 'clean' is its error without any attack. The number "
        "of examples is the mean for one direction; a control with another target counts its own. "
        "95 % Fieller intervals over pairs."
        if denominator == "all"
        else "",
        columns,
        rows,
    )


def _two_walks(records: Records, trained: Condition) -> Figure | None:
    """Returns training on both halves' landscapes, and attacks on both models'; None for no pair.

    Args:
      records: of a run.
      trained: a condition whose transfer was measured with controls.
    """
    learned = records.get(LEARNING, trained)
    attacked = records.get(TRANSFER_CONTROLS, trained)
    landscapes = {
        sample: np.column_stack(
            [
                learned.read("constant_error", "pair", "model", sample=sample).mean(-1),
                learned.read("error", "pair", "model", "step", sample=sample).mean(1),
            ]
        )
        for sample in ("own", "other")
    }
    measured = map(float, attacked.dataset["budget"].values)
    budgets = sorted(budget for budget in measured if budget <= records.config.attack.epsilon)
    increases = [
        np.column_stack(
            [np.zeros(trained.num_pairs)]
            + [t1.mean_increase(attacked, where, budget) for budget in budgets]
        )
        for where in (OWN, t1.ATTACK)
    ]
    if not stats.valid_pairs(*(v.T for v in (*landscapes.values(), *increases))).any():
        return None
    with plots.style():
        axes = plots.new_figure(9.8, 3.4).subplots(1, 2)
    plots.walks(
        learned.dataset["step"].values,
        landscapes["own"],
        landscapes["other"],
        start="best constant",
        ax=axes[0],
    )
    plots.walks(
        [0.0, *budgets],
        *increases,
        names=("attacked model", "other model"),
        start="no attack",
        xlabel="budget ε of the attack",
        ylabel="rise of margin loss",
        ax=axes[1],
    )
    caption = (
        f"Two walks of {_name(trained)}, means over pairs with 95 % intervals. Left: training on "
        "one half, and what it does to the error on that half and on the other. Right: attacks on "
        "one model, and how far they raise the loss of that model and of the other. M is the "
        "second arrow over the first."
    )
    return Figure("two_walks", caption, axes[0].figure)


def _scatter(records: Records, conditions: Sequence[Condition]) -> Figure:
    gaps = [
        stats.mean_test(learning.gap(records.get(LEARNING, listed)), alternative="greater")
        for listed in conditions
    ]
    meets = [
        stats.fieller(*transfer.coefficient_terms(records.get(TRANSFER, listed)))
        for listed in conditions
    ]
    axes = plots.scatter_transfer_gap(
        [gap.estimate for gap in gaps],
        [meet.estimate for meet in meets],
        [listed.noise_rate for listed in conditions],
        names=[listed.architecture for listed in conditions],
        gap_interval=np.array([[gap.low for gap in gaps], [gap.high for gap in gaps]]),
        transfer_interval=np.array([[meet.low for meet in meets], [meet.high for meet in meets]]),
    )
    caption = (
        "A description, not a verdict: transfer against the generalization gap, one point a "
        "condition with 95 % intervals. The noise rate moves both, so conditions of different ρ "
        "are not compared; T3 asks what transfer follows, whatever was changed."
    )
    return Figure("transfer_and_gap", caption, rules.figure_of(axes))


def _warnings(records: Records, conditions: Sequence[Condition], config: RunConfig) -> list[str]:
    warnings = []
    for listed in conditions:
        lost = np.flatnonzero(~records.get(LEARNING, listed).finite)
        if lost.size:
            pairs = ", ".join(map(str, lost))
            warnings.append(
                f"{_name(listed)}: training of {lost.size} of {config.num_pairs} pairs was not "
                f"finite; they are left out (pair {pairs})."
            )
    return warnings
