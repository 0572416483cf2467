"""D3: how far published attacks transfer, and which steps of the published order hold."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.d3 import figures as drawing
from halfway.lab.studies.d3.measure import (
    ALONE,
    ATTACKS,
    JOINT,
    WAYS,
    compared_on,
    ensemble_size,
)
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.lab.study.wording import format_estimate
from halfway.stats import Crossed

TEXT = text.load(__file__, "description")
STEPS = (
    ("I-FGSM", "FGSM"),
    ("FGSM", "MI-FGSM"),
    ("FGSM", "TIM"),
    ("MI-FGSM", "NI-FGSM"),
    ("NI-FGSM", "SIM"),
    ("NI-FGSM", "VMI-FGSM"),
    ("NI-FGSM", "DIM"),
    ("ensemble", "ensemble, SVRE"),
)
"""Steps of the published order, from the weaker attack to the stronger; the last is claimed to be
none."""
Interval = tuple[float, float, float]


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training of every architecture, and the attacks on the first one."""
    conditions = list(compared_on(config).values())
    learned = [Request(LEARNING, (trained,)) for trained in conditions]
    return [*learned, Request(ATTACKS, tuple(conditions))]


def hits(attacked: Measured, name: str, architecture: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns successes and trials `[R, M, B]` of a way; NaN where models are not independent.

    A trial is an image that the target has right. Success is another class than the label, and of
    a targeted attack the class that it steers to.

    Args:
      attacked: of `ATTACKS`.
      name: of `WAYS`.
      architecture: of the targets.
    """
    way = WAYS[name]
    variable, dim, side = (
        ("predicted_joint", "joint", "block") if way.is_joint else ("predicted", "alone", "pair")
    )
    predicted = attacked.read(
        variable, side, "target", "example", **{dim: name, "architecture": architecture}
    )
    clean = attacked.read("clean", "target", "example", architecture=architecture)
    label, goal = (attacked.read(each, "example") for each in ("label", "goal"))
    succeeded = predicted == goal if way.is_targeted else predicted != label
    num_pairs = len(attacked.finite)
    size = ensemble_size(num_pairs) if way.is_joint else 1
    first = size * np.arange(len(predicted))[:, None]
    place = np.arange(num_pairs)
    in_block = (place >= first) & (place < first + size)  # R, P: of surrogates, and of targets
    alive = np.array([attacked.finite[row].all() for row in in_block])
    finite = attacked.read("target_finite", "target", architecture=architecture).astype(bool)
    counted = ~in_block & alive[:, None] & finite
    trials = np.where(counted[..., None], (clean == label).astype(float), np.nan)
    return succeeded * trials, trials


def decide(records: Records) -> Outcome:
    """Returns rates of every way on targets of every architecture, and the steps of the order.

    Intervals are over draws of surrogates, of targets and of examples.
    """
    conditions = compared_on(records.config)
    first = next(iter(conditions.values()))
    attacked = records.get(ATTACKS, first)
    headlines = []
    for architecture in conditions:
        counts = {name: hits(attacked, name, architecture) for name in WAYS}
        for name, (succeeded, trials) in counts.items():
            rate = stats.bounded(stats.crossed_ratio(succeeded, trials))
            headlines.append(_headline(f"{name} to {architecture}", rate))
        for weaker, stronger in STEPS:
            (before, trials), (after, _) = counts[weaker], counts[stronger]
            step = stats.bounded(stats.crossed_ratio(after - before, trials), -1.0)
            headlines.append(_headline(f"{stronger} minus {weaker} to {architecture}", step))
    return Outcome((), (), tuple(headlines), num_pairs=int(attacked.finite.sum()))


def _headline(label: str, estimate: Crossed) -> Headline:
    return Headline(label, estimate.estimate, estimate.low, estimate.high)


def architectures(headlines: Sequence[Headline]) -> list[str]:
    """Returns the architectures of the targets, the surrogates' own first.

    Args:
      headlines: of D3.
    """
    return list(dict.fromkeys(headline.label.rsplit(" to ", 1)[1] for headline in headlines))


def rates(headlines: Sequence[Headline], names: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Returns rates, or differences, by architecture of the targets and name.

    Args:
      headlines: of D3.
      names: of `WAYS`, or "STRONGER minus WEAKER" of `STEPS`.
    """
    known = {shown.label: (shown.estimate, shown.low, shown.high) for shown in headlines}
    return {
        architecture: {
            name: known[f"{name} to {architecture}"]
            for name in names
            if f"{name} to {architecture}" in known
        }
        for architecture in architectures(headlines)
    }


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the rates of all ways on targets of every architecture.

    Args:
      records: the measurements of the run.
      verdict: what was described.
    """
    del records
    by_architecture = rates(verdict.headlines, [*ALONE, *JOINT])
    axes = drawing.ways(by_architecture)
    names = [*WAYS, *(f"{stronger} minus {weaker}" for weaker, stronger in STEPS)]
    numbers = rates(verdict.headlines, names)
    rows = [
        [name, *(format_estimate(*column[name]) for column in numbers.values())] for name in names
    ]
    table = Table("Transfer of published attacks", "", ["attack", *numbers], rows)
    caption = TEXT.caption("d3_attacks", verdict)
    return [Figure("d3_attacks", caption, rules.figure_of(axes), table)]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the steps of the published order that hold, and those that do not."""
    names = [f"{stronger} minus {weaker}" for weaker, stronger in STEPS[:-1]]
    by_step = next(iter(rates(verdict.headlines, names).values()))
    groups = {
        "hold": [name for name, (_, low, _) in by_step.items() if low > 0],
        "reversed": [name for name, (_, _, high) in by_step.items() if high < 0],
    }
    groups["open"] = [name for name in by_step if name not in groups["hold"] + groups["reversed"]]
    shown = {key: "; ".join(group) or "none" for key, group in groups.items()}
    return shown | {"surrogate": architectures(verdict.headlines)[0]}


STUDY = Study("D3", TEXT, needs, decide, figures, words, kind="description")
