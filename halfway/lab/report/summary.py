"""Every condition in tables, and transfer against the gap: a description without a verdict."""

from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.report.elements import Table
from halfway.lab.studies import t1
from halfway.lab.study import rules
from halfway.lab.study.conditions import condition, control
from halfway.lab.study.protocol import Figure, Records
from halfway.lab.study.tables import LOSSES, Reader
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition
from halfway.transfer import DENOMINATORS, Denominator

POINTS = {
    "clean": {"attack": "clean", "target": "other"},
    "attack on the other": t1.ATTACK,
    **t1.CONTROLS,
}
NAMES = {"error": "error", "brier": "Brier score", "cross_entropy": "cross-entropy"}
OWN = {"attack": "attack", "target": "own"}
COUNTED = {
    "all": "all examples",
    "target_correct": "those that the target has right when clean",
    "both_correct": "those that both models have right when clean",
}


class Overview(NamedTuple):
    """Tables, figures and warnings about all conditions of a run."""

    tables: list[Table]
    figures: list[Figure]
    warnings: list[str]


def overview(records: Records) -> Overview:
    """Returns tables of meeting and transfer for every measured condition, with the scatter."""
    reader, config = Reader(records), records.config
    keys = set(records.conditions.index)
    conditions = [
        one
        for name in config.architectures
        for one in (
            *(condition(config, name, noise_rate=float(r)) for r in config.noise_rates),
            control(config, name),
        )
        if one.key in keys
    ]
    learned = [one for one in conditions if _has(reader, one, "error")]
    attacked = [one for one in conditions if _has(reader, one, "increase")]
    tables = _learning_tables(reader, learned) if learned else []
    figures = []
    if attacked:
        epsilon = float(config.attack.epsilon)
        tables.append(_coefficient_table(reader, attacked, epsilon))
        tables += [_success_table(reader, attacked, epsilon, name) for name in DENOMINATORS]
        figures.append(_scatter(reader, attacked, epsilon))
    return Overview(tables, figures, _warnings(reader, learned, config))


def _has(reader: Reader, one: Condition, quantity: str) -> bool:
    return reader.has(one.key, quantity)


def _name(one: Condition) -> str:
    return f"{one.architecture}, {_rate(one)}"


def _rate(one: Condition) -> str:
    return "permuted labels" if one.permuted else f"ρ = {one.noise_rate:g}"


def _text(estimate: stats.Estimate | stats.Decision) -> str:
    return format_estimate(*rules.triple(estimate))


def _learning_tables(reader: Reader, conditions: list[Condition]) -> list[Table]:
    meaning = {
        "error": "M_θ: the other half's progress as a share of the own, from the best constant "
        "predictor; 95 % Fieller intervals over pairs. End: after the last step. S best: at the "
        "probe where the third sample, as noisy as the halves, has the least cross-entropy, which "
        "may be the first where there is nothing to learn. Error at the end decides.",
        "brier": "The same in Brier score, summed over classes.",
        "cross_entropy": "The same in cross-entropy, which punishes confidence: once a half is "
        "memorized, its end measures the length of training.",
    }
    tables = []
    for loss in LOSSES:
        name = NAMES[loss]
        columns = ["condition", "ceiling 1 − ρ", f"M_θ in {name}, end", f"M_θ in {name}, S best"]
        if loss == "error":
            columns += ["gap in error", "training accuracy"]
        rows = []
        for one in conditions:
            row = [_name(one), "–" if one.permuted else f"{1 - one.noise_rate:g}"]
            row += [
                _text(stats.fieller(*reader.terms(one.key, loss, at))) for at in ("end", "best")
            ]
            if loss == "error":
                means = (reader.gap(one.key), reader.training_accuracy(one.key))
                row += [_text(stats.mean_test(values, alternative="greater")) for values in means]
            rows.append(row)
        tables.append(Table(f"Where halves meet, in {name}", meaning[loss], columns, rows))
    return tables


def _coefficient_table(reader: Reader, conditions: list[Condition], epsilon: float) -> Table:
    columns = ["condition", "M_x", *(f"M_x of {name}" for name in t1.CONTROLS)]
    rows = []
    for one in conditions:
        own = reader.directed(one.key, "increase", budget=epsilon, **OWN)
        row = [_name(one)]
        for which in (t1.ATTACK, *t1.CONTROLS.values()):
            other = reader.directed(one.key, "increase", budget=epsilon, **which)
            row.append(_text(stats.fieller(other, own)))
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
    reader: Reader, conditions: list[Condition], epsilon: float, denominator: Denominator
) -> Table:
    # Among examples that are right when clean, the clean error is 0 by definition.
    shown = {k: v for k, v in POINTS.items() if k != "clean" or denominator == "all"}
    columns = ["condition", "examples", "surrogate itself", *shown]
    rows = []
    for one in conditions:
        counts = {
            name: tuple(
                reader.directed(one.key, count, budget=epsilon, subset=denominator, **which)
                for count in ("num_fooled", "num_examples")
            )
            for name, which in ({"own": OWN} | shown).items()
        }
        both = counts["attack on the other"][1]
        per_direction = stats.mean_test(both, alternative="greater").estimate / 2
        rates = [_text(stats.fieller(*count)) for count in counts.values()]
        rows.append([_name(one), f"{per_direction:.0f}", *rates])
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


def _scatter(reader: Reader, conditions: list[Condition], epsilon: float) -> Figure:
    gaps = [stats.mean_test(reader.gap(one.key), alternative="greater") for one in conditions]
    meets = [stats.fieller(*t1.coefficient_terms(reader, one.key, epsilon)) for one in conditions]
    axes = plots.scatter_transfer_gap(
        [gap.estimate for gap in gaps],
        [meet.estimate for meet in meets],
        [one.noise_rate for one in conditions],
        names=[one.architecture for one in conditions],
        gap_interval=np.array([[gap.low for gap in gaps], [gap.high for gap in gaps]]),
        transfer_interval=np.array([[m.low for m in meets], [m.high for m in meets]]),
    )
    caption = (
        "A description, not a verdict: transfer against the generalization gap, one point a "
        "condition with 95 % intervals. The noise rate moves both, so conditions of different ρ "
        "are not compared; T3 asks the question within a rate."
    )
    return Figure("transfer_and_gap", caption, rules.figure_of(axes))


def _warnings(reader: Reader, conditions: list[Condition], config: RunConfig) -> list[str]:
    found = []
    for one in conditions:
        lost = np.flatnonzero(~reader.finite(one.key))
        if lost.size:
            pairs = ", ".join(map(str, lost))
            found.append(
                f"{_name(one)}: training of {lost.size} of {config.num_pairs} pairs was not "
                f"finite; they are left out (pair {pairs})."
            )
    return found
