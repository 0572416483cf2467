"""T11: transfer crosses architectures."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t11.measure import (
    ARCHITECTURES,
    NAMES,
    POINTS,
    compared_on,
    control_of,
)
from halfway.lab.study import rules, text, wording
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.stats import Crossed

TEXT = text.load(__file__)
CELLS = {f"{a} to {b}": (a, b) for a, b in itertools.permutations(NAMES, 2)}
"""Surrogate and target of another architecture, by name of the test."""


ATTACK, *_ = POINTS
LEAD = 0.0
"""By which the fooling rate of every cell exceeds that of each control."""
CONTROLS = {
    "other_example": "other example",
    "permuted": "permuted labels",
}
"""The controls by their points, as the tests are named."""
CONTROL_WORDS = {
    "other_example": "another example's perturbation",
    "permuted": "surrogates trained on permuted labels",
}


class Cell(NamedTuple):
    """What one architecture's surrogates do to another's targets.

    Models of one pair are not independent, and a pair may have diverged: there, sums are NaN.

    Attributes:
      wrong: by points, `[K, M, B]` bool, whether a target errs.
      both_right: `[K, M, B]` bool, whether both models are right about the image as it is.
      counted: by points, `[K, M]` bool, whether a cell counts; that of surrogates that learned
        nothing needs these too.
      increase: `[K, M]`, of the target's margin loss under the attack, summed over examples.
      own_increase: `[K, M]`, of the surrogate's.
    """

    wrong: Mapping[str, np.ndarray]
    both_right: np.ndarray
    counted: Mapping[str, np.ndarray]
    increase: np.ndarray
    own_increase: np.ndarray


def cells(records: Records) -> dict[tuple[str, str], Cell]:
    """Returns what attacks do, by architecture of the surrogates and of the targets.

    Args:
      records: with all architectures crossed.
    """
    conditions = compared_on(records.config)
    measured = {name: records.get(ARCHITECTURES, trained) for name, trained in conditions.items()}
    controls = {
        name: records.get(LEARNING, control_of(trained)).finite
        for name, trained in conditions.items()
    }
    return {
        (surrogate, target): _cell(
            measured[surrogate], target, measured[target].finite, controls[surrogate]
        )
        for surrogate in NAMES
        for target in NAMES
    }


def _cell(
    attacked: Measured, target: str, targets_finite: np.ndarray, controls_finite: np.ndarray
) -> Cell:
    """Returns one cell.

    Args:
      attacked: of `ARCHITECTURES`, of the surrogates.
      target: architecture.
      targets_finite: `[M]`, whether the pairs of the targets stayed so.
      controls_finite: `[K]`, whether those of the surrogates that learned nothing did.
    """
    counted = ~np.eye(len(attacked.finite), dtype=bool) & targets_finite & attacked.finite[:, None]
    wrong = {
        points: attacked.read(
            "wrong", "pair", "target", "example", points=points, architecture=target
        )
        for points in POINTS
    }
    right = attacked.read("right", "pair", "example")
    target_right = attacked.read("target_right", "target", "example", architecture=target)
    increase = attacked.read("increase", "pair", "target", architecture=target)
    return Cell(
        wrong,
        right[:, None] & target_right,
        dict.fromkeys(POINTS, counted) | {"permuted": counted & controls_finite[:, None]},
        np.where(counted, increase, np.nan),
        np.where(counted, attacked.read("own_increase")[:, None], np.nan),
    )


def _rate(fooled: np.ndarray, cell: Cell, points: str, least: float = 0.0) -> Crossed:
    """Returns the mean of outcomes `[K, M, B]` over the examples that both models had right."""
    valid = cell.counted[points][..., None]
    number = np.where(valid, cell.both_right, np.nan)
    return stats.bounded(stats.crossed_ratio(fooled * cell.both_right, number), least)


def fooling_rate(cell: Cell, points: str = ATTACK) -> Crossed:
    """Returns the share of the examples that both models had right which points take away.

    Args:
      cell: of `cells`.
      points: of `POINTS`.
    """
    return _rate(cell.wrong[points], cell, points)


def lead(cell: Cell, control: str) -> Crossed:
    """Returns the fooling rate of the attack minus that of a control, on the same examples.

    Args:
      cell: of `cells`.
      control: of `CONTROLS`.
    """
    difference = cell.wrong[ATTACK].astype(np.int8) - cell.wrong[control]
    return _rate(difference, cell, control, -1.0)


def coefficient(cell: Cell) -> Crossed:
    """Returns M_x; its intervals are given the examples."""
    return stats.crossed_ratio(cell.increase, cell.own_increase)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns every architecture trained, on true and on permuted labels, and attacks on all."""
    conditions = list(compared_on(config).values())
    learned = [
        Request(LEARNING, (each,))
        for trained in conditions
        for each in (trained, control_of(trained))
    ]
    crossings = [
        Request(
            ARCHITECTURES,
            (trained, control_of(trained), *(other for other in conditions if other != trained)),
        )
        for trained in conditions
    ]
    return [*learned, *crossings]


def decide(records: Records) -> Outcome:
    """Returns two tests for each pair of different architectures, one for each control.

    A rate is of the examples that surrogate and target both had right; a control is on the same
    ones: for surrogates trained on permuted labels, which have hardly any example right, those of
    the surrogate of the same pair. All are clustered over surrogates, targets and examples. The
    surrogate of a pair does not meet the target of the same pair.
    """
    epsilon = records.config.attack.epsilon
    by_place = cells(records)
    parts = tuple(
        rules.part(
            stats.crossed_test(lead(by_place[place], control), LEAD, alternative="greater"),
            test_name(name, control),
            f"fooling rate at ε = {epsilon:g} of examples that both had right, minus that of "
            f"{CONTROL_WORDS[control]}",
            "greater",
            LEAD,
            control=CONTROL_WORDS[control],
        )
        for control in CONTROLS
        for name, place in CELLS.items()
    )
    first = tuple(test_name(name, "other_example") for name in CELLS)
    order = sorted(parts[: len(CELLS)], key=lambda part: part.estimate)
    headlines = [
        headline
        for label, part in (("least", order[0]), ("most", order[-1]))
        for headline in _headlines(label, part.name.split(",")[0], by_place)
    ]
    return Outcome(parts, first, tuple(headlines))


def test_name(cell: str, control: str) -> str:
    """Returns the name of a test, such as "linear to mlp, other example".

    Args:
      cell: of `CELLS`.
      control: of `CONTROLS`.
    """
    return f"{cell}, {CONTROLS[control]}"


def _headlines(
    label: str, name: str, by_place: Mapping[tuple[str, str], Cell]
) -> tuple[Headline, Headline]:
    """Returns the fooling rate of a cell beside the first control's, and the other control's."""
    rate, moved, nothing = (fooling_rate(by_place[CELLS[name]], points)[:3] for points in POINTS)
    words = f"fooling rate where it leads the {label} ({name})"
    return (
        Headline(words, *rate, CONTROL_WORDS["other_example"], moved),
        Headline(f"fooling rate there, of {CONTROL_WORDS['permuted']}", *nothing),
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the matrix of fooling rates, those of the leads over the controls, and that of M_x.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    budget = f"ε\u00a0=\u00a0{records.config.attack.epsilon:g}"  # stays in one line
    by_place = cells(records)

    def matrix(fn: Callable[[Cell], Crossed]) -> np.ndarray:
        return np.array([[fn(by_place[a, b])[:3] for b in NAMES] for a in NAMES])

    axes = plots.interval_matrix(
        matrix(fooling_rate), names=NAMES, label=f"share fooled at {budget}, both right before"
    )
    caption = TEXT.caption("t11_fooling", verdict, **_ranges(by_place))
    drawn = [Figure("t11_fooling", caption, rules.figure_of(axes), _quality(records))]
    for control, control_words in CONTROL_WORDS.items():
        leads = matrix(functools.partial(lead, control=control))
        label = f"share fooled at {budget}, minus {control_words}"
        axes = plots.interval_matrix(leads, names=NAMES, label=label)
        caption = TEXT.caption("t11_lead", verdict, control=control_words)
        drawn.append(Figure(f"t11_lead_{control}", caption, rules.figure_of(axes)))
    axes = plots.interval_matrix(
        matrix(coefficient), names=NAMES, label=f"M_x at {budget}, transfer in margin loss"
    )
    caption = TEXT.caption("t11_coefficient", verdict)
    return [*drawn, Figure("t11_coefficient", caption, rules.figure_of(axes))]


def _ranges(by_place: Mapping[tuple[str, str], Cell]) -> dict[str, str]:
    """Returns the least and the largest fooling rate of each control over all cells, in words."""
    ranges = {}
    for control in CONTROLS:
        rates = [100 * fooling_rate(cell, control).estimate for cell in by_place.values()]
        ranges[control] = f"{min(rates):.1f} to {max(rates):.1f} %"
    return ranges


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
    """Returns the smallest lead over a control."""
    least = min(verdict.parts, key=lambda part: part.clearance)
    return {
        "least": wording.format_estimate(least.estimate, least.low, least.high),
        "least_name": least.name,
    }


STUDY = Study("T11", TEXT, needs, decide, figures, words, stands_on=("T1",))
