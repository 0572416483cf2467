"""T12: size of gradients, alignment and variability each say something of transfer."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.report.elements import Table
from halfway.lab.studies.t12 import partial_ranks
from halfway.lab.studies.t12.measure import FACTORS, architectures, others, units
from halfway.lab.studies.t12.partial_ranks import PREDICTORS, Crossed, Partial
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.protocol import (
    Direction,
    Figure,
    Headline,
    Outcome,
    PartResult,
    Records,
    Request,
    Verdict,
)
from halfway.lab.study.tables import Reader

SIGNS = {"size": 1, "alignment": 1, "variability": -1}
WORDS = {
    "size": "size of the target's input gradient",
    "alignment": "alignment τ of both input gradients",
    "variability": "variability of the surrogate's margins",
}
PERMUTED = {
    "size": "targets permuted within architecture",
    "alignment": "conditions permuted within architecture",
    "variability": "surrogates permuted within architecture",
}
WEIGHT = 0.8
"""Planted slope of each predictor at effect 1: a partial rank correlation of .5 as measured."""
SPREADS = {"surrogate": 0.35, "target": 0.7, "cell": 0.62}
"""Planted standard deviations of what the predictors do not explain, as on digits; 1 in all."""
PLANTED_EXAMPLES = 40


@dataclasses.dataclass(frozen=True)
class T12:
    """Partial rank correlations with transfer: size > 0, alignment > 0, variability < 0."""

    id: str = "T12"
    claim: str = (
        "How large the target's input gradients are, how well they align with the surrogate's, and "
        "how little the surrogate varies each say something of transfer that the others do not."
    )
    controls: tuple[str, ...] = (
        "the other two, partialled out",
        "conditions permuted within architecture",
        "matched noise, whose success is taken off",
    )
    smallest_effect: str = (
        "a partial rank correlation of .5 of each: a quarter of the variance that the others leave"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training of every condition, and attacks of each on all of them."""
        every = [unit.condition for unit in units(config)]
        found = [Request(LEARNING, (one,)) for one in every]
        return [*found, *(Request(FACTORS, (one, *every)) for one in every)]

    def decide(self, records: Records) -> Outcome:
        """Returns one test for each predictor."""
        _, finite, own = _read(records)
        sides: dict[int, Direction] = {1: "greater", -1: "less"}
        parts, headlines = [], []
        for index, name in enumerate(PREDICTORS):
            estimate = own.estimate[index]
            known = bool(np.isfinite(estimate))
            p_value, p_reverse = (
                _p_value(own.null[index], estimate, sign * SIGNS[name]) if known else 1.0
                for sign in (1, -1)
            )
            low, high = (own.low[index], own.high[index]) if known else (-np.inf, np.inf)
            parts.append(
                PartResult(
                    name=name,
                    kind="test",
                    statistic=f"partial rank correlation with transfer of the {WORDS[name]}",
                    estimate=float(estimate) if known else 0.0,
                    low=float(low),
                    high=float(high),
                    direction=sides[SIGNS[name]],
                    threshold=(0.0,),
                    p_value=p_value,
                    p_reverse=p_reverse,
                    num_pairs=int(finite.sum()),
                    num_excluded=int((~finite).sum()),
                    control=PERMUTED[name],
                )
            )
            middle, *ends = map(float, own.alone[index])
            headlines.append(
                Headline(
                    f"partial rank correlation of {name}",
                    float(estimate),
                    float(low),
                    float(high),
                    "with nothing partialled out",
                    (middle, ends[0], ends[1]),
                )
            )
        return Outcome(tuple(parts), (PREDICTORS[0],), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns the three partial correlations with their nulls, and transfer by architecture."""
        found, _, own = _read(records)
        axes = plots.partial_correlations(
            own.estimate,
            own.low,
            own.high,
            own.null,
            names=[WORDS[name] for name in PREDICTORS],
            expected=[SIGNS[name] for name in PREDICTORS],
            alone=own.alone[:, 0],
            xlabel="partial rank correlation with the share fooled, within architectures",
        )
        seen = {
            "supported": "Each lies where it was expected, beyond what chance gives",
            "refuted": "One lies clearly on the other side than expected",
            "inconclusive": "Not each of them is clear of chance on the side expected",
        }[verdict.verdict]
        caption = (
            f"What each measure says of transfer once the other two are known. {seen}. Blue: "
            "estimates with 95 % intervals over surrogate and target conditions; open circles: "
            "with nothing partialled out; grey: conditions permuted within architecture, with the "
            "central 95 %."
        )
        config = records.config
        place = np.array([unit.architecture for unit in units(config)])
        names = list(architectures(config))
        rates = found.outcome.mean(0)
        rows = [
            [
                name,
                *(f"{rates[np.ix_(place == a, place == b)].mean():.3f}" for b in range(len(names))),
            ]
            for a, name in enumerate(names)
        ]
        table = Table(
            "Transfer between architectures",
            f"Share fooled at ε = {config.attack.epsilon:g} of what both had right, minus that by "
            "matched noise; means over weight decays. Only differences within a cell of this table "
            "count above.",
            ["surrogate, down; target, across", *names],
            rows,
        )
        return [Figure("t12_partials", caption, rules.figure_of(axes), table)]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "Three things are said to decide whether an attack transfers (Demontis et al. 2019): "
            "how steep the target's loss is, how well the two input gradients align, and how much "
            "the surrogate changes from one training sample to the next. Models of four "
            "architectures and many weight decays attack each other; all three are measured on "
            "other pairs of models than transfer is, and compared within architectures alone. "
            f"{numbers}."
        )
        ending = {
            "supported": (
                "Each of them says something that the other two do not: larger gradients and "
                "better alignment go with more transfer, more variable surrogates with less."
            ),
            "refuted": (
                f"That refutes the claim: {verdict.reason}. What it is said to do, it does not do "
                "once the other two are known; the sign would have to be the other one."
            ),
            "inconclusive": (
                f"The run does not settle the whole claim: {verdict.reason}. Each of the three "
                "would have to be clear of chance, in its sign, with the others known."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the three predictors."""
        return PREDICTORS

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records in which each predictor moves transfer by `WEIGHT` times `effect`.

        Transfer is the sum of the three, of equal weight, and of what surrogates, targets and cells
        have of their own.
        """
        config = plants.CONFIG
        every = units(config)
        size = len(every)
        weights = {
            name: 0.0 if name == boundary else SIGNS[name] * WEIGHT * effect for name in PREDICTORS
        }
        steep, varied = rng.normal(size=(2, size))
        shape = (size, size)
        aligned = rng.normal(size=(size, 1)) + rng.normal(size=size) + rng.normal(size=shape)
        aligned = aligned / np.sqrt(3)
        rest = (
            SPREADS["surrogate"] * rng.normal(size=(size, 1))
            + SPREADS["target"] * rng.normal(size=size)
            + SPREADS["cell"] * rng.normal(size=shape)
        )
        score = weights["size"] * steep + weights["alignment"] * aligned + rest
        score = score + weights["variability"] * varied[:, None]
        num_pairs = every[0].condition.num_pairs
        wide = (size, num_pairs, size, others(num_pairs).shape[1])
        counted = 500.0
        rate = 0.3 + 0.04 * score[:, None, :, None] + rng.normal(0, 0.02, wide)
        tau = 0.4 + 0.1 * aligned[:, None, :, None] + rng.normal(0, 0.02, wide)
        spread = np.exp(0.5 * varied)[:, None, None]
        margin = 1 + 0.3 * spread * rng.normal(size=(size, num_pairs, PLANTED_EXAMPLES))
        steepness = np.exp(0.5 * steep[:, None] + rng.normal(0, 0.05, (size, num_pairs)))
        values = {
            "num_examples": np.full(wide, counted),
            "num_fooled": counted * rate,
            "num_by_noise": np.full(wide, 0.01 * counted),
            "tau": tau,
            "margin": margin,
            "size": steepness,
        }
        arrays = {
            (FACTORS.name, unit.condition.key): {name: v[index] for name, v in values.items()}
            for index, unit in enumerate(every)
        }
        parts = {unit.condition: {"finite": np.ones(num_pairs)} for unit in every}
        return plants.records(config, parts, arrays)


def _read(records: Records) -> tuple[Crossed, np.ndarray, Partial]:
    """Returns what was measured, `[C, P]` whether models stayed finite, and the correlations."""
    every = units(records.config)
    keys = [unit.condition.key for unit in every]
    finite = Reader(records).stack(keys, ["finite"])[0] > 0.5
    found = partial_ranks.cross([records.arrays[FACTORS.name, key] for key in keys], finite)
    place = np.array([unit.architecture for unit in every])
    return found, finite, partial_ranks.judge(found, place)


def _p_value(null: np.ndarray, estimate: float, sign: int) -> float:
    # What is not defined counts against; what differs by rounding is equal.
    beyond = ~(sign * null < sign * estimate - 1e-12)
    return float(1 + beyond.sum()) / (1 + len(null))


STUDY = T12()
