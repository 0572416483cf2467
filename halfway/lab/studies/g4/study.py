"""G4: halves disagree as often as they err."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g4 import figures as drawing
from halfway.lab.studies.g4.measure import AGREEMENT
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
NUM_EXAMPLES, NUM_HOLDOUT = 150, 1400
"""n, small enough that models err, and S, large enough to count: at least 1,000."""
PAIRS = 4
"""Times the config's number of pairs: small halves make noisy pairs, and cheap ones."""
MARGINS = (0.9, 1.1)
"""Of disagreement over error."""
CHANCE_SHARE = 0.9
"""The mean error must be below this share of chance, or agreement would say nothing."""
DECIDES = "all different"
SETTINGS = {
    DECIDES: {},
    "different data": {"shared_start": True, "shared_order": True},
    "different start": {"overlap": 1.0, "shared_order": True},
    "different order": {"overlap": 1.0, "shared_start": True},
}
"""The four of Jiang et al. 2022; the first decides, the others are described."""


def setting(config: RunConfig, name: str) -> Condition:
    """Returns the condition of one of `SETTINGS`, of the config's first architecture.

    Args:
      config: of the run.
      name: one of `SETTINGS`.
    """
    trained = condition(config, config.architectures[0])
    return dataclasses.replace(
        trained,
        num_pairs=PAIRS * trained.num_pairs,
        num_examples=NUM_EXAMPLES,
        capacity=NUM_EXAMPLES,
        num_holdout=NUM_HOLDOUT,
        **SETTINGS[name],
    )


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training and agreement in the four settings."""
    conditions = [setting(config, name) for name in SETTINGS]
    return [
        Request(measurement, (trained,))
        for trained in conditions
        for measurement in (LEARNING, AGREEMENT)
    ]


def shares(agreement: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` shares of S on which the models differ, and on which each errs, on average."""
    compared, disagree = (agreement.read(name) for name in ("num_compared", "num_disagree"))
    wrong = agreement.read("num_wrong", "pair", "model").mean(-1)
    return disagree / compared, wrong / compared


def _measured(records: Records) -> dict[str, Measured]:
    """Returns the agreement of each setting that was measured, the one that decides first."""
    conditions = {name: setting(records.config, name) for name in SETTINGS}
    return {
        name: records.get(AGREEMENT, trained)
        for name, trained in conditions.items()
        if name == DECIDES or records.has(AGREEMENT, trained)
    }


def decide(records: Records) -> Outcome:
    """Returns the equivalence of disagreement and error, and the gate on the error."""
    measured = _measured(records)
    disagreement, error = shares(measured[DECIDES])
    parts = (
        rules.part(
            stats.ratio_equivalence(disagreement, error, *MARGINS),
            DECIDES,
            "disagreement over error on S, labels clean",
            "within",
            *MARGINS,
        ),
        rules.gate(
            1 - error,
            "error below chance",
            "mean accuracy on S",
            1 - CHANCE_SHARE * (1 - 1 / records.config.num_classes),
            bounds=(0, 1),
        ),
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
        rules.headline(f"disagreement over error, {name}", stats.fieller(*shares(agreement)))
        for name, agreement in measured.items()
        if name != DECIDES
    ]
    # A theorem: it bounds |disagreement − error| of the same votes, and is no evidence.
    headlines.append(
        Headline(
            "class-aggregated calibration error of all models' vote on the pool",
            measured[DECIDES]["calibration_error"].item(),
            math.nan,
            math.nan,
        )
    )
    return Outcome(parts, (DECIDES,), tuple(headlines))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns disagreement against error of every pair, in each setting.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    of_settings = {name: shares(agreement) for name, agreement in _measured(records).items()}
    axes = drawing.agreement(
        {name: error for name, (_, error) in of_settings.items()},
        {name: disagreement for name, (disagreement, _) in of_settings.items()},
        margins=MARGINS,
    )
    caption = TEXT.caption("g4_agreement", verdict)
    return [Figure("g4_agreement", caption, rules.figure_of(axes))]


STUDY = Study("G4", TEXT, needs, decide, figures, stands_on=("G1",))
