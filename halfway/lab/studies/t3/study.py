"""T3: transfer follows generalization."""

from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import NOISE_RATES, Measures
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t3 import figures as drawing
from halfway.lab.studies.t3.linear_gaussian import (
    DIMENSION,
    HALF_SIZES,
    LINEAR_GAUSSIAN,
    NOISE,
    SIGNAL,
    TARGETS,
)
from halfway.lab.studies.t3.transfer_gap import (
    GapCorrelations,
    correlate_with_gap,
    transfer_and_gap,
)
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Headline, Outcome, PartResult, Verdict
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition

TEXT = text.load(__file__)
PART = "M_x and the gap"


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training and attacks of G3's conditions, and the linear model beside them."""
    requests = [
        Request(measurement, (cell.condition,))
        for cell in grid.cells(config)
        for measurement in (LEARNING, TRANSFER)
    ]
    return [*requests, Request(LINEAR_GAUSSIAN, (stored_at(config),))]


def stored_at(config: RunConfig) -> Condition:
    """Returns the condition that the linear models are stored at: the first of the grid."""
    return grid.cells(config)[0].condition


def decide(records: Records) -> Outcome:
    """Returns the one test, of τ_K within ρ."""
    measures = transfer_and_gap(records)
    correlations = correlate_with_gap(measures)
    known = np.isfinite(correlations.within[0])
    estimate, low, high = correlations.within if known else (0.0, -np.inf, np.inf)
    part = PartResult(
        name=PART,
        kind="test",
        statistic="τ_K of M_x with the gap in error, within ρ",
        estimate=estimate,
        low=low,
        high=high,
        direction="less",
        threshold=(0.0,),
        p_value=correlations.p_value,
        p_reverse=correlations.p_reverse,
        num_pairs=int(measures.finite.sum()),
        num_excluded=int((~measures.finite).sum()),
        control="conditions permuted within ρ",
    )
    headlines = [
        Headline(
            "τ_K of M_x with the gap, within ρ",
            *correlations.within,
            "gradient norm partialled out",
            correlations.partial,
        )
    ]
    headlines += [Headline(f"τ_K at {rate}", *tau) for rate, tau in _by_rate(correlations).items()]
    warnings = *grid.warn_of_unreached(measures), *_warn_of_signs(correlations)
    return Outcome((part,), (PART,), tuple(headlines), warnings)


def _by_rate(correlations: GapCorrelations) -> dict[str, tuple[float, float, float]]:
    """Returns τ_K with its interval at each ρ."""
    names = [f"ρ = {rate:g}" for rate in NOISE_RATES]
    return dict(zip(names, correlations.strata, strict=True))


def _warn_of_signs(correlations: GapCorrelations) -> list[str]:
    """Returns a warning, if τ_K has one sign at one ρ and the other at another."""
    taus = [tau for tau, *_ in correlations.strata]
    if not min(taus) < 0 < max(taus):
        return []
    by_rate = _by_rate(correlations).items()
    listed = " and ".join(f"{format_estimate(*tau)} at {rate}" for rate, tau in by_rate)
    return [f"The rule pools noise rates, and they do not agree in sign: τ_K is {listed}."]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns M_x of every condition against its gap, and the same in the linear model.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    measures = transfer_and_gap(records)
    correlations = correlate_with_gap(measures)
    caption = TEXT.caption("t3_transfer", verdict, within=format_estimate(*correlations.within))
    axes = _scatter(measures, correlations, records.config)
    table = _table(correlations, TEXT.caption("t3_table", verdict))
    return [
        Figure("t3_transfer", caption, rules.figure_of(axes), table),
        _theory(records, verdict),
    ]


def _scatter(measures: Measures, correlations: GapCorrelations, config: RunConfig) -> np.ndarray:
    """Returns axes with a point for each condition that has a pair that counts."""
    used = np.isfinite(measures.gap)
    present = used.any(1)
    numerators, denominators = measures.numerators[0], measures.denominators[0]
    terms = zip(numerators[present], denominators[present], strict=True)
    coefficient = np.array([rules.triple(stats.fieller(*pairs)) for pairs in terms])
    gap = np.where(used, measures.gap, 0)[present].sum(1) / used[present].sum(1)
    cells = grid.cells(config)
    conditions = [cells[index].condition for index in np.flatnonzero(present)]
    rates = np.array([condition.noise_rate for condition in conditions])
    by_rate = _by_rate(correlations)
    names = [f"ρ = {rate:g}" for rate in np.unique(rates)]
    return drawing.scatter_strata(
        gap,
        coefficient[:, 0],
        rates,
        [f"n = {condition.num_examples}" for condition in conditions],
        titles=[f"{name}: τ_K = {format_estimate(*by_rate[name])}" for name in names],
        xlabel="generalization gap in error",
        ylabel=f"M_x at ε = {config.attack.epsilon:g}, share of its own loss that the other "
        "model's rises by",
        y_interval=coefficient[:, 1:].T,
    )


def _table(correlations: GapCorrelations, caption: str) -> Table:
    """Returns all rank correlations."""
    triples = {
        "M_x with the gap, within ρ": correlations.within,
        "the same, gradient norm partialled out": correlations.partial,
        **{f"the same, at {rate}": tau for rate, tau in _by_rate(correlations).items()},
        "gradient norm with the gap, within ρ": correlations.gradient,
        "M_x with the gap, over every ρ": correlations.pooled,
    }
    rows = [[name, format_estimate(*triple)] for name, triple in triples.items()]
    return Table("Rank correlations", caption, ["Kendall's τ of", "τ_K [95 %]"], rows)


def _theory(records: Records, verdict: Verdict) -> Figure:
    """Returns transfer against risk of linear models, with the curve of P7."""
    linear = records.get(LINEAR_GAUSSIAN, stored_at(records.config))
    other_increases, own_increases = (
        [linear.read("increase", "replicate", num_examples=n, target=target) for n in HALF_SIZES]
        for target in TARGETS
    )
    risks = [linear.read("risk", "replicate", num_examples=n) for n in HALF_SIZES]
    coefficients = [
        rules.triple(stats.fieller(*terms))
        for terms in zip(other_increases, own_increases, strict=True)
    ]
    means = [rules.triple(stats.mean_test(risk, alternative="greater")) for risk in risks]
    risk = np.geomspace(0.03, 8, 100)
    axes = plots.transfer_against_risk(
        np.array(HALF_SIZES) / DIMENSION,
        means,
        coefficients,
        {"P7: 1/(1 + R/s²)": (risk, 1 / (1 + risk))},
    )
    caption = TEXT.caption(
        "t3_theory",
        verdict,
        dimension=DIMENSION,
        noise=f"{NOISE / SIGNAL:g}",
        distance=f"{linear['distance_from_P7'].item():.3f}",
    )
    return Figure("t3_theory", caption, rules.figure_of(axes))


STUDY = Study("T3", TEXT, needs, decide, figures, stands_on=("T1",))
