"""T3: transfer follows generalization."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import FACTORS
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.measurements.meetings import MEETING
from halfway.lab.report.elements import Table
from halfway.lab.studies.g3 import study as g3
from halfway.lab.studies.t3.linear_gaussian import (
    DIMENSION,
    LINEAR_GAUSSIAN,
    NOISE,
    SAMPLES,
    SIGNAL,
)
from halfway.lab.studies.t3.transfer_gap import Grid, correlate, read
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

PART = "M_x and the gap"
PLANTED = 1 / 3
"""−τ_K at effect 1: the condition of larger gap transfers less in two comparisons of three."""
SPREAD, PAIRS = {"gap": g3.SPREAD, "M_x": 0.08}, {"gap": g3.NOISE, "M_x": 0.04}
"""Planted standard deviations over conditions of one ρ, and over pairs of a condition."""


@dataclasses.dataclass(frozen=True)
class T3:
    """Stratified τ_K of M_x with the gap in error is negative."""

    id: str = "T3"
    claim: str = "Conditions that generalize better transfer better."
    controls: tuple[str, ...] = (
        "conditions of the same label noise, permuted among each other",
        "the input-gradient norm, partialled out within ρ",
        "P7: transfer as a function of generalization in the linear-Gaussian model",
    )
    smallest_effect: str = (
        "τ_K = −1/3: of two conditions of the same label noise, the one of larger gap transfers "
        "less in two comparisons of three"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training and attacks of G3's conditions, and the linear model beside them."""
        every = [cell.condition for cell in grid.cells(config)]
        found = [Request(what, (one,)) for one in every for what in (LEARNING, MEETING)]
        return [*found, Request(LINEAR_GAUSSIAN, (every[0],))]

    def decide(self, records: Records) -> Outcome:
        """Returns the one test, of τ_K within ρ."""
        found = read(Reader(records), records.config)
        own = correlate(found)
        known = np.isfinite(own.within[0])
        estimate, low, high = own.within if known else (0.0, -np.inf, np.inf)
        part = PartResult(
            name=PART,
            kind="test",
            statistic="τ_K of M_x with the gap in error, within ρ",
            estimate=estimate,
            low=low,
            high=high,
            direction="less",
            threshold=(0.0,),
            p_value=own.p_value,
            p_reverse=own.p_reverse,
            num_pairs=int(found.finite.sum()),
            num_excluded=int((~found.finite).sum()),
            control="conditions permuted within ρ",
        )
        rates = [f"ρ = {rate:g}" for rate in _rates()]
        headlines = [
            Headline(
                "τ_K of M_x with the gap, within ρ",
                *own.within,
                "gradient norm partialled out",
                own.partial,
            ),
            *(
                Headline(f"τ_K at {rate}", *one)
                for rate, one in zip(rates, own.strata, strict=False)
            ),
        ]
        warnings = [*g3.unreached(found.finite, found.reached)]
        if min(one[0] for one in own.strata) < 0 < max(one[0] for one in own.strata):
            each = " and ".join(
                f"{wording.format_estimate(*one)} at {rate}"
                for rate, one in zip(rates, own.strata, strict=False)
            )
            warnings.append(
                f"The rule pools noise rates, and they do not agree in sign: τ_K is {each}."
            )
        return Outcome((part,), (PART,), tuple(headlines), tuple(warnings))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns M_x of every condition against its gap, and the same in the linear model."""
        found = read(Reader(records), records.config)
        return [self._scatter(found, records.config, verdict), self._theory(records)]

    def _scatter(self, found: Grid, config: RunConfig, verdict: Verdict) -> Figure:
        own = correlate(found)
        used = np.isfinite(found.gap)
        some = used.any(1)
        terms = [np.where(used, v[0], np.nan)[some] for v in (found.numerators, found.denominators)]
        ratio = np.array([rules.triple(stats.fieller(*one)) for one in zip(*terms, strict=True)])
        gap = np.where(used, found.gap, 0)[some].sum(1) / used[some].sum(1)
        every = grid.cells(config)
        cells = [every[index].condition for index in np.flatnonzero(some)]
        rates = np.array([one.noise_rate for one in cells])
        shown = dict(zip(_rates(), own.strata, strict=False))
        axes = plots.scatter_strata(
            gap,
            ratio[:, 0],
            rates,
            [f"n = {one.num_examples}" for one in cells],
            titles=[
                f"ρ = {rate:g}: τ_K = {wording.format_estimate(*shown[rate])}"
                for rate in np.unique(rates)
            ],
            xlabel="generalization gap in error",
            ylabel=f"M_x at ε = {config.attack.epsilon:g}, share of its own loss that the other "
            "model's rises by",
            y_interval=ratio[:, 1:].T,
        )
        within = wording.format_estimate(*own.within)
        seen = {
            "supported": "At equal label noise, M_x falls where the gap rises",
            "refuted": "At equal label noise, M_x rises with the gap",
            "inconclusive": "At equal label noise, no direction is settled",
        }[verdict.verdict]
        caption = (
            "Each point is a condition of G3, all of its pairs together, with the 95 % interval of "
            f"M_x. {seen}: τ_K within ρ = {within}. Conditions of different panels are never "
            "compared: what the noise rate does to both is no evidence."
        )
        rows = [
            ["M_x with the gap, within ρ", within],
            ["the same, gradient norm partialled out", wording.format_estimate(*own.partial)],
            *(
                [f"the same, at ρ = {rate:g}", wording.format_estimate(*one)]
                for rate, one in zip(_rates(), own.strata, strict=False)
            ),
            ["gradient norm with the gap, within ρ", wording.format_estimate(*own.gradient)],
            ["M_x with the gap, over every ρ", wording.format_estimate(*own.pooled)],
        ]
        table = Table(
            "Rank correlations",
            "Measure and gap from disjoint pairs, mean over 20 splits; intervals resample "
            "conditions within ρ and pairs. The first decides. The last is due to ρ, which moves "
            "both, and is no evidence.",
            ["Kendall's τ of", "τ_K [95 %]"],
            rows,
        )
        return Figure("t3_transfer", caption, rules.figure_of(axes), table)

    def _theory(self, records: Records) -> Figure:
        key = grid.cells(records.config)[0].condition.key
        arrays = records.arrays[LINEAR_GAUSSIAN.name, key]
        attacked, risks, sizes = arrays["attacked"], arrays["risks"], arrays["sizes"]
        measured = [rules.triple(stats.fieller(*one.T)) for one in attacked.swapaxes(0, 1)]
        told = [rules.triple(stats.mean_test(r, alternative="greater")) for r in risks.T]
        farthest = np.abs(np.array(measured)[:, 0] - 1 / (1 + _exact_risk(sizes))).max()
        risk = np.geomspace(0.03, 8, 100)
        axes = plots.transfer_against_risk(
            sizes / DIMENSION, told, measured, {"P7: 1/(1 + R/s²)": (risk, 1 / (1 + risk))}
        )
        caption = (
            f"What theory says of linear models (P7, n > d = {DIMENSION}, σ²/s² = "
            f"{NOISE / SIGNAL:g}): the more excess risk, the less transfer, and nothing else "
            "matters. Points: least squares on linear-Gaussian data, attacked by the code that "
            f"attacks networks; the farthest lies {farthest:.3f} from P7's value. A check of the "
            "instrument, not part of the verdict."
        )
        return Figure("t3_theory", caption, rules.figure_of(axes))

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        opening = (
            "Does what generalizes also transfer? Many networks of different size, depth, data and "
            "training all stop at the same training loss. For each condition we take the gap "
            "between training and fresh data from some pairs, and from other pairs M_x: how far an "
            "attack on one model moves the other, as a share of what it does to its own. "
            f"Conditions are compared only at equal label noise, which moves both. {numbers}."
        )
        ending = {
            "supported": (
                "At equal noise, conditions of a smaller gap transfer more, as the linear model "
                "says: a direction that any sample of the data teaches is one that an attack on "
                "another sample's model finds. What decides is the mean over noise rates; where "
                "they disagree, the claim holds only where τ_K is negative."
            ),
            "refuted": (
                "It is the other way round: at equal noise, conditions of a larger gap transfer "
                "more. What makes these networks transfer is not what makes them generalize; τ_K "
                "would have to be negative."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. τ_K would have to be clear of 0: "
                "more conditions, or more pairs in each."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [PART]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records in which M_x follows the gap to τ_K = −`PLANTED` times `effect`."""
        config = plants.CONFIG
        tau = -PLANTED * (0.0 if boundary == PART else effect)
        # Normal variables of correlation r have τ = 2 arcsin(r)/π.
        correlation = np.sin(np.pi / 2 * tau)
        cells, parts = grid.cells(config), {}
        for cell in cells:
            one = cell.condition
            pairs, size = (one.num_pairs, 1), (one.num_pairs, 2)
            place, apart = rng.normal(size=2)
            follows = correlation * place + np.sqrt(1 - correlation**2) * apart
            gap = 0.2 + 0.3 * one.noise_rate + SPREAD["gap"] * place
            gap = gap + rng.normal(0, PAIRS["gap"], pairs) * np.ones(2)
            share = 0.5 - 0.5 * one.noise_rate + SPREAD["M_x"] * follows
            share = share + rng.normal(0, PAIRS["M_x"], pairs)
            own = 4000 * np.exp(rng.normal(0, 0.1, size))
            last = one.probe_steps[-1]
            parts[one] = {
                "finite": np.ones(one.num_pairs),
                plants.named("error", "own", last): np.full(size, 0.001),
                plants.named("error", "other", last): 0.001 + gap,
                plants.named("cross_entropy", "own", last): np.full(size, 0.04),
                plants.named("gradient_norm", "all"): own / 0.1,
                "increase.attack.own": own,
                "increase.attack.other": share * own,
            }
        risk, size = _exact_risk(np.array(SAMPLES)), (50, len(SAMPLES))
        arrays: dict[str, np.ndarray] = {
            "sizes": np.array(SAMPLES),
            "risks": risk * rng.uniform(0.5, 1.5, size),
            "attacked": np.stack([1 / (1 + risk) * rng.uniform(0.9, 1.1, size), np.ones(size)], -1),
        }
        return plants.records(
            config, parts, {(LINEAR_GAUSSIAN.name, cells[0].condition.key): arrays}
        )


def _exact_risk(sizes: np.ndarray) -> np.ndarray:
    """Returns R/s² of P7 for n > d + 1."""
    return NOISE / SIGNAL * DIMENSION / (sizes - DIMENSION - 1.0)


def _rates() -> tuple[float, ...]:
    return next(f.levels for f in FACTORS if f.name == "noise_rate")


STUDY = T3()
