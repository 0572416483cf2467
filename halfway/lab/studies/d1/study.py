"""D1: how far disagreement and error differ in every condition of the grid, and its bound."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from halfway import meeting, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.studies.d1 import figures as drawing
from halfway.lab.studies.d1.measure import PREDICTIONS
from halfway.lab.studies.g4 import study as g4
from halfway.lab.studies.g4.measure import AGREEMENT
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.lab.study.wording import format_estimate, format_headline
from halfway.populations import Condition
from halfway.stats import Decision

TEXT = text.load(__file__, "description")
BASE = "base"
DIFFERENCE = "disagreement minus error"
OTHER_DATA = "same start and order, other data"
"""The setting of Jiang et al. that G4 leaves out."""
BOUND = "class-aggregated calibration error"


Point = tuple[float, float, float, float]
"""Disagreement minus error with the ends of its 95 % interval, and the calibration error."""


class Ballot(NamedTuple):
    """What the models of a condition predict where they may vote.

    Attributes:
      predicted: `[M, B]` classes.
      may_vote: `[M, B]` bool, whether the model has not trained on the example.
      labels: `[B]`.
    """

    predicted: np.ndarray
    may_vote: np.ndarray
    labels: np.ndarray


def conditions(config: RunConfig) -> dict[str, Condition]:
    """Returns the conditions of the grid by name, the base of the MLP first.

    Args:
      config: of the run.
    """
    design = grid.design(config)
    changed = {each.name: each.condition for each in design.interventions}
    return {BASE: design.bases[grid.MLP]} | changed


def other_data(config: RunConfig) -> Condition:
    """Returns G4's condition of small halves whose models differ in their data alone.

    Args:
      config: of the run.
    """
    different = g4.setting(config, g4.DECIDES)
    return dataclasses.replace(different, shared_start=True, shared_order=True)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns predictions of every condition of the grid, and agreement where data alone differ."""
    of_grid = [Request(PREDICTIONS, (trained,)) for trained in conditions(config).values()]
    return [*of_grid, Request(AGREEMENT, (other_data(config),))]


def equal_numbers(ballot: Ballot, number: int) -> Ballot:
    """Returns a ballot in which as many models vote on each example, the first that may.

    Shares of votes are then multiples of one unit: else each would be a value of its own, and a
    calibration error that is summed over values would be large by chance.

    Args:
      ballot: of a condition.
      number: of votes; examples with fewer do not count.
    """
    order = np.cumsum(ballot.may_vote, 0)
    enough = order[-1] >= number
    return Ballot(
        ballot.predicted[:, enough],
        (ballot.may_vote & (order <= number))[:, enough],
        ballot.labels[enough],
    )


def difference(ballot: Ballot, num_classes: int) -> float:
    """Returns disagreement minus error: of two different voters, and of a voter.

    Args:
      ballot: at least two votes an example.
      num_classes: C.
    """
    shares = meeting.votes(ballot.predicted, num_classes, ballot.may_vote)
    number = ballot.may_vote.sum(0)
    agree = (shares**2).sum(-1)
    disagreement = (1 - agree) * number / (number - 1)
    error = 1 - shares[np.arange(len(shares)), ballot.labels]
    return float((disagreement - error).mean())


def described(measured: Measured, num_classes: int) -> tuple[Decision, float]:
    """Returns disagreement minus error with its interval over pairs, and the bound.

    Args:
      measured: of `PREDICTIONS`.
      num_classes: C.
    """
    predicted, unseen = (
        measured.read(name, "pair", "model", "example") for name in ("predicted", "unseen")
    )
    finite, labels = measured.finite, measured.read("label", "example").astype(int)

    def ballot(kept: np.ndarray) -> Ballot:
        models = predicted[kept].reshape(-1, predicted.shape[-1])
        return Ballot(models, unseen[kept].reshape(models.shape).astype(bool), labels)

    whole = ballot(finite)
    # Any pair may be left out, so that two votes fewer are cast than there could be.
    number = max(2, int(whole.may_vote.sum(0).min()) - 2)

    def statistic(weights: np.ndarray) -> np.ndarray:
        ballots = [equal_numbers(ballot(row > 0), number) for row in weights]
        return np.array([difference(each, num_classes) for each in ballots])

    test = stats.composite_test(statistic, len(finite), alternative="greater", valid=finite)
    votes = equal_numbers(whole, number)
    shares = meeting.votes(votes.predicted, num_classes, votes.may_vote)
    return test, meeting.class_aggregated_calibration_error(shares, votes.labels)


def decide(records: Records) -> Outcome:
    """Returns disagreement minus error of every condition, beside the bound; nothing is decided."""
    headlines, counts = [], []
    for name, trained in conditions(records.config).items():
        measured = records.get(PREDICTIONS, trained)
        test, bound = described(measured, trained.num_classes)
        shown = rules.headline(f"{DIFFERENCE}, {name}", test)
        headlines.append(
            Headline(
                shown.label, shown.estimate, shown.low, shown.high, BOUND, (bound, bound, bound)
            )
        )
        counts.append(test.num_pairs)
    agreement = records.get(AGREEMENT, other_data(records.config))
    shares = g4.shares(agreement)
    ratio = stats.fieller(shares.disagreement, shares.error)
    headlines.append(rules.headline(f"disagreement over error, {OTHER_DATA}", ratio))
    counts.append(ratio.num_pairs)
    return Outcome((), (), tuple(headlines), num_pairs=min(counts))


def points(headlines: Sequence[Headline]) -> dict[str, Point]:
    """Returns the difference with its interval, and the bound, by name of the condition.

    Args:
      headlines: of D1.
    """
    named = {
        headline.label.removeprefix(f"{DIFFERENCE}, "): headline
        for headline in headlines
        if headline.control is not None
    }
    return {
        name: (shown.estimate, shown.low, shown.high, shown.control[0])
        for name, shown in named.items()
        if shown.control is not None
    }


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the difference of every condition against its bound.

    Args:
      records: the measurements of the run.
      verdict: what was described.
    """
    del records
    by_name = points(verdict.headlines)
    axes = drawing.against_bound({"": by_name})
    rows = [
        [name, format_estimate(*values[:3]), f"{values[3]:.3f}"] for name, values in by_name.items()
    ]
    table = Table("Disagreement and calibration", "", ["condition", DIFFERENCE, BOUND], rows)
    caption = TEXT.caption("d1_calibration", verdict)
    return [Figure("d1_calibration", caption, rules.figure_of(axes), table)]


def words(verdict: Verdict) -> dict[str, str]:
    """Returns how many conditions there are, and the largest difference with its bound."""
    by_name = points(verdict.headlines)
    name = max(by_name, key=lambda each: abs(by_name[each][0]))
    values = by_name[name]
    return {
        "num_conditions": str(len(by_name)),
        "largest": f"{format_estimate(*values[:3])}, of the condition {name}; "
        f"its bound is {values[3]:.3f}",
        "other_data": format_headline(verdict.headlines[-1]),
        "num_above": str(sum(abs(value[0]) > value[3] for value in by_name.values())),
    }


STUDY = Study("D1", TEXT, needs, decide, figures, words, kind="description")
