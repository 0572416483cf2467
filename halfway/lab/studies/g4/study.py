"""G4: halves disagree as often as they err."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g4 import figures as drawing
from halfway.lab.studies.g4.measure import AGREEMENT
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, PartResult, Verdict
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition

TEXT = text.load(__file__)
QUARTER = 4
"""The config's n over that of the rule: small halves make models that err."""
PAIRS = 4
"""Times the config's number of pairs: 64. Small halves make noisy pairs, and cheap ones."""
MARGINS = (0.9, 1.1)
"""Of disagreement over error."""
CHANCE_SHARE = 0.9
"""The error must be below this share of chance, or agreement would say nothing."""
DECIDES = "all different"
SETTINGS = {
    DECIDES: {},
    "same data, other start": {"overlap": 1.0, "shared_order": True},
    "same data, other order": {"overlap": 1.0, "shared_start": True},
    "same data, other start and order": {"overlap": 1.0},
}
"""The four of Jiang et al. 2022 by what differs; the first decides, the others are described."""


class Shares(NamedTuple):
    """Shares of S, `[P]` each; NaN for pairs that diverged.

    Attributes:
      disagreement: on which the two models differ.
      error: on which a model errs, mean of the two.
      chance: outside the most frequent class of S, labels clean: the error of the best constant.
    """

    disagreement: np.ndarray
    error: np.ndarray
    chance: np.ndarray


def setting(config: RunConfig, name: str) -> Condition:
    """Returns the condition of one of `SETTINGS`, of the config's first architecture.

    Args:
      config: of the run.
      name: one of `SETTINGS`.
    """
    trained = condition(config, config.architectures[0])
    num_examples = max(1, config.num_examples // QUARTER)
    return dataclasses.replace(
        trained,
        num_pairs=PAIRS * trained.num_pairs,
        num_examples=num_examples,
        capacity=num_examples,
        # S takes what the smaller halves leave: more examples to count on.
        num_holdout=config.num_holdout + 2 * (config.num_examples - num_examples),
        **SETTINGS[name],
    )


def larger(config: RunConfig) -> list[Condition]:
    """Returns the conditions of half the config's n and of all of it, which are described.

    All is different between the models of a pair. They have the config's pairs, S and capacity, so
    that they share a program, and the last is a condition that other studies train too.

    Args:
      config: of the run.
    """
    trained = condition(config, config.architectures[0])
    return [dataclasses.replace(trained, num_examples=max(1, config.num_examples // 2)), trained]


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training and agreement in the four settings, and at larger n."""
    conditions = [*(setting(config, name) for name in SETTINGS), *larger(config)]
    return [
        Request(measurement, (trained,))
        for trained in dict.fromkeys(conditions)
        for measurement in (LEARNING, AGREEMENT)
    ]


def shares(agreement: Measured) -> Shares:
    """Returns how often models of each pair differ and err, and chance."""
    names = ("num_compared", "num_disagree", "num_largest")
    compared, disagree, largest = (agreement.read(name) for name in names)
    wrong = agreement.read("num_wrong", "pair", "model").mean(-1)
    return Shares(disagree / compared, wrong / compared, 1 - largest / compared)


def _described(records: Records) -> dict[str, tuple[Condition, Shares]]:
    """Returns what was measured, the setting that decides first, by its name."""
    config = records.config
    conditions = {name: setting(config, name) for name in SETTINGS}
    conditions |= {f"{DECIDES}, n = {trained.num_examples}": trained for trained in larger(config)}
    return {
        name: (trained, shares(records.get(AGREEMENT, trained)))
        for name, trained in conditions.items()
        if name == DECIDES or records.has(AGREEMENT, trained)
    }


def decide(records: Records) -> Outcome:
    """Returns the equivalence of disagreement and error, and the gate on the error.

    Both are ratios of sums over 64 pairs at a quarter of the config's n: disagreement over error,
    and the error over chance, which is 1 minus the share of S, labels clean, that its most frequent
    class has. An error is the mean of the two models. S is what the small halves leave of the
    config's halves and S together.
    """
    described = _described(records)
    disagreement, error, chance = described[DECIDES][1]
    parts = (
        rules.part(
            stats.ratio_equivalence(disagreement, error, *MARGINS),
            DECIDES,
            "disagreement over error on S, labels clean",
            "within",
            *MARGINS,
        ),
        _below_chance(error, chance),
    )
    headlines = [
        rules.headline(
            f"disagreement on S ({DECIDES})",
            stats.bounded(stats.mean_test(disagreement, alternative="greater")),
            "error",
            stats.bounded(stats.mean_test(error, alternative="greater")),
        )
    ]
    headlines += [
        rules.headline(
            f"disagreement over error, {name}", stats.fieller(other.disagreement, other.error)
        )
        for name, (_, other) in described.items()
        if name != DECIDES
    ]
    return Outcome(parts, (DECIDES,), tuple(headlines))


def _below_chance(error: np.ndarray, chance: np.ndarray) -> PartResult:
    """Returns the gate on the error as a share of chance."""
    decision = stats.ratio_test(error, chance, CHANCE_SHARE, alternative="less")
    tested = rules.part(
        decision,
        "error below chance",
        "mean error on S over that of the best constant",
        "less",
        CHANCE_SHARE,
    )
    return rules.as_gate(tested)


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns disagreement against error of every pair, in each setting and at each n.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    described = _described(records)
    axes = drawing.agreement(
        {name: values.error for name, (_, values) in described.items()},
        {name: values.disagreement for name, (_, values) in described.items()},
        margins=MARGINS,
        interval=verdict.interval,
    )
    caption = TEXT.caption("g4_agreement", verdict)
    return [Figure("g4_agreement", caption, rules.figure_of(axes), _table(described))]


def _table(described: dict[str, tuple[Condition, Shares]]) -> Table:
    """Returns how often models differ and err in each setting and at each n."""
    columns = ["setting", "disagreement over error", "disagreement", "error", "n", "pairs"]
    rows = []
    for name, (trained, (disagreement, error, _)) in described.items():
        ratio = stats.fieller(disagreement, error)
        means = (stats.mean_test(values, alternative="greater") for values in (disagreement, error))
        numbers = (rules.triple(estimate) for estimate in (ratio, *means))
        rows.append(
            [
                name,
                *(format_estimate(*number) for number in numbers),
                str(trained.num_examples),
                str(ratio.num_pairs),
            ]
        )
    caption = "The first row decides, the others are described. Labels of S are clean."
    return Table("Disagreement and error in numbers", caption, columns, rows)


STUDY = Study("G4", TEXT, needs, decide, figures, stands_on=("G1",))
