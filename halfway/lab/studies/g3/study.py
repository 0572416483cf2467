"""G3: coherence measured early, inside A alone, predicts the gap better than its rivals."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from halfway import plots
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import COMPLEXITY, FACTORS, RIVALS
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.report.elements import Table
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.g3.contest import Contest
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.protocol import (
    Figure,
    Headline,
    Outcome,
    PartResult,
    Records,
    Request,
    Verdict,
)
from halfway.lab.study.tables import Reader

PART = "n_half against its rivals"
PREDICTOR, BESIDE = "n_half at step 20", "n_half/n at step 20"
"""The measure on trial; and noise over signal of the whole half's gradient, which is only shown."""
NAMES = (PREDICTOR, *RIVALS.values())
CORRELATIONS = (0.85, 0.45, 0.2)
"""Planted correlations with the gap, across conditions: n_half, the best rival, the others."""
SPREAD, NOISE = 0.04, 0.02
"""Planted standard deviation of the gap over conditions of one ρ, and over pairs of a condition."""
TITLES = {
    "noise_rate": "ρ",
    "num_examples": "n",
    "depth": "depth",
    "width": "width",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
}


class Grid(NamedTuple):
    """What the records hold of the grid: M measures of C conditions with P pairs, and their gaps.

    Attributes:
      numerators, denominators: `[M, C, P]` of the measures, see who reads them.
      gap: `[C, P]` in error; NaN, like the others, where a pair does not count.
      finite: `[C, P]` whether all that is read of a pair stayed finite.
      reached: `[C, P]` whether both models came to the loss at which all stop.
      levels: `[C, F]`, 0 or 1, of each factor.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    gap: np.ndarray
    finite: np.ndarray
    reached: np.ndarray
    levels: np.ndarray

    @property
    def strata(self) -> np.ndarray:
        """`[C]`, conditions of equal ρ."""
        return self.levels[:, NOISE_RATE]


NOISE_RATE = [factor.name for factor in FACTORS].index("noise_rate")
"""The place of ρ among the factors."""


def read(reader: Reader, config: RunConfig) -> Grid:
    """Returns measures and gaps of every condition: that on trial, its rivals, and `BESIDE`."""
    cells = grid.cells(config)
    quantities = ("early_signal", "early_noise", "reached", *RIVALS)
    keys = [c.condition.key for c in cells]
    found = reader.stack(keys, quantities, ("pair", "surrogate"), subset="own").mean(-1)
    finite = reader.stack(keys, ["finite"])[0] > 0.5
    signal, noise = found[:2]
    reached = found[2] > 0.99  # both models
    whole = np.isfinite(found).all(0) & finite
    # NaN before any arithmetic: what diverged may hold anything.
    used = np.where(whole & reached, 1.0, np.nan)
    sizes = np.array([[c.condition.num_examples] for c in cells])
    ones = np.ones_like(signal)
    return Grid(
        numerators=used * np.array([noise, *found[3:], noise]),
        denominators=used * np.array([signal, *[ones] * len(RIVALS), signal * sizes]),
        gap=gaps(reader, keys, used),
        finite=whole,
        reached=reached,
        levels=np.array([c.levels for c in cells]),
    )


def gaps(reader: Reader, keys: Sequence[str], used: np.ndarray) -> np.ndarray:
    """Returns `[C, P]` the symmetric gap in error at the end; NaN where `used [C, P]` is."""
    errors = [
        reader.stack(keys, ["error"], ("pair", "surrogate"), subset=s, step=grid.MAX_STEPS)[0]
        for s in ("other", "own")
    ]
    errors = [np.where(np.isnan(used)[..., None], np.nan, values) for values in errors]
    return (errors[0] - errors[1]).mean(-1)


def unreached(finite: np.ndarray, reached: np.ndarray) -> tuple[str, ...]:
    """Returns a warning, if any finite pair `[C, P]` did not come to the loss that all stop at."""
    short = finite & ~reached
    if not short.any():
        return ()
    rows = int(short.any(1).sum())
    return (
        f"{int(short.sum())} of {short.size} pairs, of {rows} of {len(short)} conditions, had a "
        f"model that did not come to a training loss of {grid.STOP_LOSS:g} in {grid.MAX_STEPS} "
        "steps; these pairs are left out.",
    )


def judge(found: Grid) -> Contest:
    """Returns how the first measure does against its rivals, within ρ."""
    return contest.contest(
        found.numerators,
        found.denominators,
        found.gap,
        found.strata,
        np.delete(found.levels, NOISE_RATE, 1),
        num_rivals=len(RIVALS),
    )


@dataclasses.dataclass(frozen=True)
class G3:
    """Stratified τ_K of n_half at step 20 with the gap exceeds every rival's |τ_K|."""

    id: str = "G3"
    claim: str = (
        "How coherent a half's gradients are after 20 steps predicts the final gap better than "
        "norms, margins and sharpness of the trained model."
    )
    controls: tuple[str, ...] = (
        "the best of twelve rivals, training loss at the same step among them; chosen anew in "
        "every resample",
    )
    smallest_effect: str = (
        "a correlation with the gap of .85 across conditions, where that of the best rival is .45"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training and complexity of every condition of the grid."""
        every = [cell.condition for cell in grid.cells(config)]
        return [Request(what, (one,)) for one in every for what in (LEARNING, COMPLEXITY)]

    def decide(self, records: Records) -> Outcome:
        """Returns the one test, of the lead over the best rival."""
        found = read(Reader(records), records.config)
        own = judge(found)
        part = PartResult(
            name=PART,
            kind="test",
            statistic="τ_K of n_half at step 20 minus the largest |τ_K| of a rival, within ρ",
            estimate=own.lead,
            low=own.lead - 1.96 * own.standard_error,
            high=own.lead + 1.96 * own.standard_error,
            direction="greater",
            threshold=(0.0,),
            p_value=own.p_value,
            p_reverse=own.p_reverse,
            num_pairs=int(found.finite.sum()),
            num_excluded=int((~found.finite).sum()),
            control="best rival",
        )
        best = NAMES[own.best]
        headlines = [
            Headline(
                f"τ_K with the gap of {PREDICTOR}",
                *_estimate(own, 0),
                best,
                _estimate(own, own.best),
            ),
            Headline(f"τ_K with the gap of {BESIDE}", *_estimate(own, len(NAMES))),
        ]
        warnings = unreached(found.finite, found.reached)
        return Outcome((part,), (PART,), tuple(headlines), warnings)

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns τ_K of every measure with its interval, and a table of all of them."""
        found = judge(read(Reader(records), records.config))
        names = [*NAMES, BESIDE]
        average = contest.mean(found.granulated.T)
        axes = plots.rank_contest(
            found.tau,
            found.low,
            found.high,
            names=names,
            granulated=average,
            highlighted=(0, len(NAMES)),
        )
        seen = {
            "supported": "n_half after 20 steps (blue) is ahead of all of them",
            "refuted": "n_half after 20 steps (blue) is behind the best of them",
            "inconclusive": "Whether n_half after 20 steps (blue) is ahead is not settled",
        }[verdict.verdict]
        caption = (
            "Rank correlation of each measure with the gap in error, over conditions of the same "
            f"label noise; grey: rivals. {seen}. Dots with 95 % intervals over conditions and "
            "pairs; open circles: the mean over factors of the correlation where that factor alone "
            "is varied. A measure of negative sign predicts as well as one of positive sign."
        )
        order = np.argsort(-np.abs(np.nan_to_num(found.tau)))
        factors = [TITLES[f.name] for f in FACTORS if f.name != "noise_rate"]
        rows = [
            [
                names[index],
                wording.format_estimate(*_estimate(found, index)),
                *(_number(value) for value in found.granulated[:, index]),
                _number(average[index]),
                _number(found.pooled[index]),
            ]
            for index in order
        ]
        table = Table(
            "Every measure",
            "τ_K within ρ decides. Granulated: only conditions that differ in the factor named, "
            "then the mean over factors. Over all: conditions of every ρ together, which the noise "
            "rate explains.",
            [
                "measure",
                "τ_K within ρ [95 %]",
                *(f"varied: {f}" for f in factors),
                "granulated",
                "over all",
            ],
            rows,
        )
        return [Figure("g3_predictors", caption, rules.figure_of(axes), table)]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        lead = wording.format_estimate(verdict.effect, *verdict.interval)
        opening = (
            "Which number, read off a model or its early training, tells how large the gap between "
            "training and fresh data will be? Many networks of different size, depth, data and "
            "training all stop at the same training loss; each measure ranks them by their gap, "
            f"which is taken from other pairs. {numbers}. Lead of {PREDICTOR} over the best "
            f"rival: {lead}."
        )
        ending = {
            "supported": (
                "The noise of a half's gradients against what they share, after twenty steps, says "
                "more of the final gap than any norm, margin or sharpness of the finished model."
            ),
            "refuted": (
                f"It is the other way round: {verdict.headlines[0].control_label or 'a rival'} "
                "ranks the conditions better. n_half knows nothing of the number of examples, "
                "which moves the gap most; to be ahead, it would have to be read together with n, "
                "or among conditions of equal n."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The lead would have to be clear of "
                "0: more conditions, or more pairs in each."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [PART]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records in which n_half and all rivals follow the gap to a given correlation.

        At effect 0, and at the boundary, the best rival follows it as n_half does.
        """
        config = plants.CONFIG
        strong, weak, others = CORRELATIONS
        step = (strong - weak) * (0.0 if boundary == PART else effect)
        own, best = strong + min(step, 0.0), max(strong - max(step, 0.0), others)
        parts = {}
        for cell in grid.cells(config):
            one = cell.condition
            size = (one.num_pairs, 2)
            place = rng.normal()
            gap = 0.2 + 0.2 * one.noise_rate + SPREAD * place
            gap = gap + rng.normal(0, NOISE, (one.num_pairs, 1)) * np.ones(2)
            values = {
                "finite": np.ones(one.num_pairs),
                plants.named("error", "own", one.probe_steps[-1]): np.full(size, 0.001),
                plants.named("error", "other", one.probe_steps[-1]): 0.001 + gap,
                plants.named("reached", "own"): np.ones(size),
            }

            def follows(correlation: float, place: float = place, size: Any = size) -> np.ndarray:
                level = correlation * place + np.sqrt(1 - correlation**2) * rng.normal()
                return level + rng.normal(0, 0.3, size)

            signal = np.full(size, 2.0)
            values[plants.named("early_signal", "own")] = signal
            values[plants.named("early_noise", "own")] = signal * np.exp(4 + 0.2 * follows(own))
            for index, name in enumerate(RIVALS):
                values[plants.named(name, "own")] = 5 + follows(best if index == 0 else others)
            parts[one] = values
        return plants.records(config, parts)


def _estimate(found: Contest, index: int) -> tuple[float, float, float]:
    return float(found.tau[index]), float(found.low[index]), float(found.high[index])


def _number(value: Any) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "undefined"


STUDY = G3()
