"""Every condition in tables, and transfer against the gap: a description without a verdict."""

from typing import NamedTuple

import numpy as np

from experiments import rules
from experiments.conditions import Config, condition, control
from experiments.elements import Table
from experiments.studies import t1
from experiments.study import Figure, Records
from experiments.tables import LOSSES, Reader
from experiments.wording import format_estimate
from halfway import plots, statistics
from halfway.populations import Condition
from halfway.transfer import DENOMINATORS

POINTS = {
    "clean": {"attack": "clean", "target": "other"},
    "attack": t1.ATTACK,
    **{name: which for name, which in t1.CONTROLS.items()},
}
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
    tables = [_learning_table(reader, learned)] if learned else []
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


def _text(estimate: statistics.Estimate) -> str:
    return format_estimate(*rules.triple(estimate))


def _learning_table(reader: Reader, conditions: list[Condition]) -> Table:
    columns = ["condition", "ceiling 1 − ρ", "training accuracy"]
    for loss in LOSSES:
        name = loss.replace("_", "-")
        columns += [f"M_θ in {name}, end", f"M_θ in {name}, S best"]
    columns.append("gap in error")
    rows = []
    for one in conditions:
        accuracy = statistics.mean_test(reader.training_accuracy(one.key), alternative="greater")
        gap = statistics.mean_test(reader.gap(one.key), alternative="greater")
        row = [
            _name(one),
            "–" if one.permuted else f"{1 - one.noise_rate:g}",
            format_estimate(*rules.triple(accuracy)),
        ]
        for loss in LOSSES:
            row += [
                _text(statistics.fieller(*reader.terms(one.key, loss, at)))
                for at in ("end", "best")
            ]
        rows.append([*row, format_estimate(*rules.triple(gap))])
    return Table(
        "Where halves meet",
        "M_θ: the other half's progress as a share of the own, from the best constant predictor; "
        "95 % Fieller intervals over pairs. End: after the last step. S best: at the probe where "
        "the third sample, as noisy as the halves, has the least cross-entropy. Error decides; "
        "cross-entropy punishes confidence, so that at the end it measures the length of training.",
        columns,
        rows,
    )


def _coefficient_table(reader: Reader, conditions: list[Condition], epsilon: float) -> Table:
    columns = ["condition", "M_x", *(f"M_x of {name}" for name in t1.CONTROLS)]
    rows = []
    for one in conditions:
        own = reader.directed(one.key, "increase", budget=epsilon, attack="attack", target="own")
        row = [_name(one)]
        for which in (t1.ATTACK, *t1.CONTROLS.values()):
            other = reader.directed(one.key, "increase", budget=epsilon, **which)
            row.append(_text(statistics.fieller(other, own)))
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
    reader: Reader, conditions: list[Condition], epsilon: float, denominator: str
) -> Table:
    columns = ["condition", "examples a pair", "surrogate itself"]
    columns += [name if name != "attack" else "attack on the other" for name in POINTS]
    rows = []
    for one in conditions:

        def rate(which: dict[str, str], one: Condition = one) -> tuple[np.ndarray, np.ndarray]:
            fooled, counted = (
                reader.directed(one.key, name, budget=epsilon, subset=denominator, **which)
                for name in ("num_fooled", "num_examples")
            )
            return fooled, counted

        own = {"attack": "attack", "target": "own"}
        counted = np.nanmean(rate(t1.ATTACK)[1]) / 2
        row = [_name(one), f"{counted:.0f}"]
        row += [_text(statistics.fieller(*rate(which))) for which in (own, *POINTS.values())]
        rows.append(row)
    return Table(
        f"Success among {COUNTED[denominator]}, ε = {epsilon:g}",
        "Share that the target misclassifies; the column 'clean' is its error without any attack. "
        "The number of examples is the mean a direction; for the target with permuted labels the "
        "same rule counts other examples. 95 % Fieller intervals over pairs.",
        columns,
        rows,
    )


def _scatter(reader: Reader, conditions: list[Condition], epsilon: float) -> Figure:
    gaps = [statistics.mean_test(reader.gap(one.key), alternative="greater") for one in conditions]
    meets = [
        statistics.fieller(*t1.coefficient_terms(reader, one.key, epsilon)) for one in conditions
    ]
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


def _warnings(reader: Reader, conditions: list[Condition], config: Config) -> list[str]:
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
