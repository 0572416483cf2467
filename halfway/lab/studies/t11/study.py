"""T11: transfer crosses architectures."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t11.measure import ARCHITECTURES, NAMES, POINTS, compared_on
from halfway.lab.study import rules, text, wording
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.stats import Crossed

TEXT = text.load(__file__)
CELLS = {f"{a} to {b}": (a, b) for a, b in itertools.permutations(NAMES, 2)}
"""Surrogate and target of another architecture, by name of the test."""


class Cell(NamedTuple):
    """Sums over examples of one architecture's surrogates against another's targets, `[K, M]`.

    NaN where models are of one pair, so that they are not independent, or a pair diverged.

    Attributes:
      num_fooled: by the attack, of the examples that both had right.
      num_by_noise: by matched noise.
      num_examples: that both had right.
      increase: of the target's margin loss under the attack.
      own_increase: of the surrogate's.
    """

    num_fooled: np.ndarray
    num_by_noise: np.ndarray
    num_examples: np.ndarray
    increase: np.ndarray
    own_increase: np.ndarray


def cells(records: Records) -> dict[tuple[str, str], Cell]:
    """Returns what attacks do, by architecture of the surrogates and of the targets.

    Args:
      records: with all architectures crossed.
    """
    measured = {
        name: records.get(ARCHITECTURES, trained)
        for name, trained in compared_on(records.config).items()
    }
    return {
        (surrogate, target): _cell(measured[surrogate], target, measured[target].finite)
        for surrogate in NAMES
        for target in NAMES
    }


def _cell(attacked: Measured, target: str, finite: np.ndarray) -> Cell:
    """Returns the sums of one cell.

    Args:
      attacked: of `ARCHITECTURES`, of the surrogates.
      target: architecture.
      finite: `[M]`, whether the pairs of the targets stayed so.
    """
    counted = ~np.eye(len(attacked.finite), dtype=bool) & finite[None]

    def read(name: str, **labels: str) -> np.ndarray:
        values = attacked.read(name, "pair", "target", architecture=target, **labels)
        return np.where(counted, values, np.nan)

    by_attack, by_noise = (read("num_fooled", points=name) for name in POINTS)
    own_increase = np.where(counted, attacked.read("own_increase")[:, None], np.nan)
    return Cell(by_attack, by_noise, read("num_examples"), read("increase"), own_increase)


def fooling_rate(cell: Cell) -> Crossed:
    """Returns the share of examples that the attack fools."""
    return stats.bounded(stats.crossed_ratio(cell.num_fooled, cell.num_examples))


def noise_rate(cell: Cell) -> Crossed:
    """Returns the share of examples that matched noise fools."""
    return stats.bounded(stats.crossed_ratio(cell.num_by_noise, cell.num_examples))


def lead(cell: Cell) -> Crossed:
    """Returns the fooling rate of the attack minus that of matched noise."""
    difference = stats.crossed_ratio(cell.num_fooled - cell.num_by_noise, cell.num_examples)
    return stats.bounded(difference, -1.0)


def coefficient(cell: Cell) -> Crossed:
    """Returns M_x."""
    return stats.crossed_ratio(cell.increase, cell.own_increase)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns every architecture trained, and attacks of each on all."""
    conditions = list(compared_on(config).values())
    learned = [Request(LEARNING, (trained,)) for trained in conditions]
    crossings = [
        Request(ARCHITECTURES, (trained, *(other for other in conditions if other is not trained)))
        for trained in conditions
    ]
    return [*learned, *crossings]


def decide(records: Records) -> Outcome:
    """Returns one test for each pair of different architectures."""
    epsilon = records.config.attack.epsilon
    by_place = cells(records)
    sums = {name: by_place[place] for name, place in CELLS.items()}
    parts = tuple(
        rules.part(
            stats.crossed_test(lead(cell), 0.0, alternative="greater"),
            name,
            f"fooling rate at ε = {epsilon:g} of examples that both had right, minus matched noise",
            "greater",
            0.0,
            control="matched noise",
        )
        for name, cell in sums.items()
    )
    order = sorted(parts, key=lambda part: part.estimate)
    headlines = tuple(
        _headline(f"fooling rate, {words}, {part.name}", sums[part.name])
        for words, part in (("least", order[0]), ("most", order[-1]))
    )
    return Outcome(parts, tuple(CELLS), headlines)


def _headline(label: str, cell: Cell) -> Headline:
    return Headline(label, *fooling_rate(cell)[:3], "matched noise", noise_rate(cell)[:3])


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the matrix of fooling rates, and that of M_x.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    budget = f"ε\u00a0=\u00a0{records.config.attack.epsilon:g}"  # stays in one line
    sums = cells(records)
    rates, coefficients, controls = (
        np.array([[fn(sums[a, b])[:3] for b in NAMES] for a in NAMES])
        for fn in (fooling_rate, coefficient, noise_rate)
    )
    axes = plots.interval_matrix(
        rates, names=NAMES, label=f"share fooled at {budget}, both right before"
    )
    low, high = 100 * controls[..., 0].min(), 100 * controls[..., 0].max()
    caption = TEXT.caption("t11_fooling", verdict, noise=f"{low:.1f} to {high:.1f} %")
    drawn = Figure("t11_fooling", caption, rules.figure_of(axes), _quality(records))
    axes = plots.interval_matrix(
        coefficients, names=NAMES, label=f"M_x at {budget}, transfer in margin loss"
    )
    caption = TEXT.caption("t11_coefficient", verdict)
    return [drawn, Figure("t11_coefficient", caption, rules.figure_of(axes))]


def _quality(records: Records) -> Table:
    """Returns how good the models are, and how far they are fooled themselves."""
    rows = []
    for name, trained in compared_on(records.config).items():
        learned, attacked = (records.get(kind, trained) for kind in (LEARNING, ARCHITECTURES))
        shares = [
            1 - learned.read("error", "pair", "model", "step", sample=sample)[..., -1]
            for sample in ("own", "holdout")
        ]
        number = np.maximum(attacked.read("own_examples"), 1)
        shares.append(attacked.read("own_fooled") / number)
        rows.append([name, *(f"{np.nanmean(values):.3f}" for values in shares)])
    return Table(
        "The models",
        "Means over both models of all pairs; the last column over surrogates.",
        ["architecture", "accuracy on what it trained on", "accuracy on S", "fooled itself"],
        rows,
    )


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the smallest lead over noise."""
    least = min(verdict.parts, key=lambda part: part.clearance)
    return {
        "least": wording.format_estimate(least.estimate, least.low, least.high),
        "least_name": least.name,
    }


STUDY = Study("T11", TEXT, needs, decide, figures, words, stands_on=("T1",))
