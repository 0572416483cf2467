"""T12: size of gradients, alignment and variability each say something of transfer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t12 import figures as drawing
from halfway.lab.studies.t12 import partial_ranks
from halfway.lab.studies.t12.measure import TRANSFER_FACTORS, architectures, units
from halfway.lab.studies.t12.partial_ranks import PREDICTORS, PartialCorrelations, Quantities
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Direction, Headline, Outcome, PartResult, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)


class Expected(NamedTuple):
    """What is expected of a predictor.

    Attributes:
      sign: of its partial correlation with transfer.
      label: what it is, in words.
      null: what is permuted.
    """

    sign: int
    label: str
    null: str


EXPECTED = {
    "size": Expected(
        1, "size of the target's input gradient", "targets permuted within architecture"
    ),
    "alignment": Expected(
        1, "alignment τ of both input gradients", "conditions permuted within architecture"
    ),
    "variability": Expected(
        -1, "variability of the surrogate's margins", "surrogates permuted within architecture"
    ),
}


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training of every condition, and attacks of each on all of them."""
    conditions = [unit.condition for unit in units(config)]
    trained = [Request(LEARNING, (condition,)) for condition in conditions]
    return [
        *trained,
        *(Request(TRANSFER_FACTORS, (condition, *conditions)) for condition in conditions),
    ]


def read(records: Records) -> tuple[Quantities, np.ndarray]:
    """Returns outcome and predictors of all conditions, and which pairs `[C, P]` are finite.

    Conditions come in the order of `units`.
    """
    conditions = [unit.condition for unit in units(records.config)]
    measured = [records.get(TRANSFER_FACTORS, condition) for condition in conditions]
    finite = np.array([surrogates.finite for surrogates in measured])
    arrays = {
        name: np.array([_at_targets(surrogates, name, conditions) for surrogates in measured])
        for name in partial_ranks.CROSSED
    }
    arrays["size"] = np.array([surrogates.read("size") for surrogates in measured])
    arrays["margin"] = np.array([s.read("margin", "pair", "example") for s in measured])
    return partial_ranks.summarize_sets(arrays, finite), finite


def _at_targets(surrogates: Measured, name: str, targets: Sequence[Condition]) -> np.ndarray:
    """Returns `[P, T, Q]` what surrogates do to targets, in the order of their conditions."""
    values = [
        surrogates.read(name, "pair", "partner", target_condition=target.id) for target in targets
    ]
    return np.stack(values, 1)


def correlate(quantities: Quantities, config: RunConfig) -> PartialCorrelations:
    """Returns what each predictor says that the others do not, within architectures.

    Args:
      quantities: outcome and predictors, from `read`.
      config: of the run, whose architectures are the strata.
    """
    place = np.array([unit.architecture for unit in units(config)])
    return partial_ranks.correlate(quantities, place)


def decide(records: Records) -> Outcome:
    """Returns one test for each predictor."""
    quantities, finite = read(records)
    correlations = correlate(quantities, records.config)
    sides: dict[int, Direction] = {1: "greater", -1: "less"}
    parts, headlines = [], []
    for index, name in enumerate(PREDICTORS):
        expected = EXPECTED[name]
        estimate, null = float(correlations.estimate[index]), correlations.null[index]
        low, high = float(correlations.low[index]), float(correlations.high[index])
        known = bool(np.isfinite(estimate))
        p_value, p_reverse = (
            _p_value(null, estimate, sign * expected.sign) if known else 1.0 for sign in (1, -1)
        )
        if not known:
            low, high = -np.inf, np.inf
        parts.append(
            PartResult(
                name=name,
                kind="test",
                statistic=f"partial rank correlation with transfer of the {expected.label}",
                estimate=estimate if known else 0.0,
                low=low,
                high=high,
                direction=sides[expected.sign],
                threshold=(0.0,),
                p_value=p_value,
                p_reverse=p_reverse,
                num_pairs=int(finite.sum()),
                num_excluded=int((~finite).sum()),
                control=expected.null,
            )
        )
        middle, *ends = map(float, correlations.alone[index])
        headlines.append(
            Headline(
                f"partial rank correlation of {name}",
                estimate,
                low,
                high,
                "with nothing partialled out",
                (middle, ends[0], ends[1]),
            )
        )
    return Outcome(tuple(parts), (PREDICTORS[0],), tuple(headlines))


def _p_value(null: np.ndarray, estimate: float, sign: int) -> float:
    """Returns the share of a null `[R]` that lies as far out as the estimate, or farther."""
    # What is not defined counts against; what differs by rounding is equal.
    beyond = ~(sign * null < sign * estimate - 1e-12)
    return float(1 + beyond.sum()) / (1 + len(null))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the three partial correlations with their nulls, and transfer by architecture.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    quantities, _ = read(records)
    correlations = correlate(quantities, records.config)
    axes = drawing.partial_correlations(
        correlations.estimate,
        correlations.low,
        correlations.high,
        correlations.null,
        names=[EXPECTED[name].label for name in PREDICTORS],
        expected=[EXPECTED[name].sign for name in PREDICTORS],
        alone=correlations.alone[:, 0],
        xlabel="partial rank correlation with the share fooled, within architectures",
    )
    caption = TEXT.caption("t12_partials", verdict)
    table = _rates(quantities, records.config, verdict)
    return [Figure("t12_partials", caption, rules.figure_of(axes), table)]


def _rates(quantities: Quantities, config: RunConfig, verdict: Verdict) -> Table:
    """Returns mean transfer between architectures."""
    place = np.array([unit.architecture for unit in units(config)])
    rates = quantities.outcome.mean(0)
    names = list(architectures(config))
    rows = [
        [
            name,
            *(f"{rates[np.ix_(place == a, place == b)].mean():.3f}" for b in range(len(names))),
        ]
        for a, name in enumerate(names)
    ]
    return Table(
        "Transfer between architectures",
        TEXT.caption("t12_rates", verdict, epsilon=f"{config.attack.epsilon:g}"),
        ["surrogate, down; target, across", *names],
        rows,
    )


STUDY = Study("T12", TEXT, needs, decide, figures, stands_on=("T1",))
