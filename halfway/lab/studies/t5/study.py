"""T5: what shared examples add to transfer, they add one by one."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import transfer
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t5 import figures as drawing
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition
from halfway.stats import Decision

TEXT = text.load(__file__)
OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""ω, the share of A's examples that B holds too; what lies between the ends is fitted."""
HALF = 0.5
"""What a must exceed: the share of the rise that is proportional to ω."""
RISE = 0.02
"""What M_x must rise by from ω = 0 to ω = 1 for a to mean anything."""
PART, GATE = "share added one by one", "rise with shared data"


def setting(config: RunConfig, overlap: float) -> Condition:
    """Returns the condition of an overlap, of the config's first architecture, with own seeds.

    Args:
      config: of the run.
      overlap: ω.
    """
    return dataclasses.replace(condition(config, config.architectures[0]), overlap=overlap)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns transfer of the first architecture at ρ = 0 and every overlap."""
    return [
        Request(measurement, (setting(config, overlap),))
        for overlap in OVERLAPS
        for measurement in (LEARNING, TRANSFER)
    ]


def terms(records: Records) -> RatioTerms:
    """Returns numerators and denominators `[5, P]` of M_x at the budget that decides, by overlap.

    Args:
      records: the measurements of the run.
    """
    of_overlaps = [
        transfer.coefficient_terms(records.get(TRANSFER, setting(records.config, overlap)))
        for overlap in OVERLAPS
    ]
    return RatioTerms(*(np.stack(columns) for columns in zip(*of_overlaps, strict=True)))


def linear_share(coefficients: np.ndarray) -> np.ndarray:
    """Returns a `[...]` of M_x(ω) = M_x(0) + (M_x(1) − M_x(0)) (a ω + (1 − a) ω²).

    By least squares over the overlaps between the ends; NaN where shared data add nothing. 1 is the
    straight line, 0 a parabola that is flat at ω = 0.

    Args:
      coefficients: `[..., 5]`, M_x by overlap.
    """
    inner = np.array(OVERLAPS[1:-1])
    start, end = coefficients[..., :1], coefficients[..., -1:]
    rise = end - start
    excess = coefficients[..., 1:-1] - start - rise * inner**2
    # What a multiplies; the rise is the same at every overlap.
    regressor = inner - inner**2
    product = excess @ regressor / (regressor @ regressor)
    rise = rise[..., 0]
    return np.where(rise > 0, product / np.where(rise > 0, rise, 1.0), np.nan)


def seed_share(coefficients: np.ndarray) -> np.ndarray:
    """Returns `[...]` (1/M_x(1) − 1)/(1/M_x(0) − 1): noise over signal at ω = 1 to that at ω = 0.

    What the seed alone makes of the noise that halves and seeds make together; NaN where one of
    the two coefficients is not within (0, 1).

    Args:
      coefficients: `[..., 5]`, M_x by overlap.
    """
    ends = coefficients[..., [0, -1]]
    within = (ends > 0) & (ends < 1)
    odds = 1 / np.where(within, ends, 0.5) - 1
    return np.where(within.all(-1), odds[..., 1] / odds[..., 0], np.nan)


def _tested(measured: RatioTerms, statistic_fn, threshold: float = 0.0) -> Decision:
    """Returns a statistic of the coefficients with its t over pairs."""

    def of_weights(weights: np.ndarray) -> np.ndarray:
        return statistic_fn(stats.weighted_ratio(weights, *measured))

    return stats.composite_test(
        of_weights,
        measured.numerators.shape[-1],
        threshold,
        alternative="greater",
        valid=stats.valid_pairs(*measured),
    )


def decide(records: Records) -> Outcome:
    """Returns the test of a above ½, and the gate that shared data add something.

    a is fitted by unweighted least squares to the three overlaps between the ends, both of which
    the line passes exactly. A pair that diverged at one overlap leaves a; the t is on the influence
    values of a itself. The gate is the paired difference M_x(1) − M_x(0).
    """
    config, measured = records.config, terms(records)
    each = [
        RatioTerms(*columns)
        for columns in zip(measured.numerators, measured.denominators, strict=True)
    ]
    apart, same = each[0], each[-1]
    share = rules.part(
        _tested(measured, linear_share, HALF),
        PART,
        "a of M_x(ω) = M_x(0) + (M_x(1) − M_x(0)) (a ω + (1 − a) ω²), "
        f"ε = {config.attack.epsilon:g}",
        "greater",
        HALF,
        control=TEXT.controls[0],
    )
    rise = rules.part(
        stats.ratio_difference(*same, *apart, threshold=RISE, alternative="greater", paired=True),
        GATE,
        "M_x at ω = 1 minus M_x at ω = 0",
        "greater",
        RISE,
    )
    gate = rules.as_gate(rise)
    headlines = (
        rules.headline(
            f"M_x without shared data ({config.architectures[0]})",
            stats.fieller(*apart),
            "with all data shared",
            stats.fieller(*same),
        ),
        rules.headline(
            "noise over signal of the seed alone, relative to that of seed and half",
            _tested(measured, seed_share),
        ),
    )
    return Outcome((share, gate), (PART,), headlines)


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns M_x against the overlap with the fitted curve, the line and the threshold.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    measured = terms(records)
    estimates = [
        rules.triple(stats.fieller(*columns))
        for columns in zip(measured.numerators, measured.denominators, strict=True)
    ]
    share = next(part for part in verdict.parts if part.name == PART)
    axes = drawing.overlap_curve(
        OVERLAPS, np.array(estimates), share=share.estimate, threshold=HALF
    )
    caption = TEXT.caption("t5_overlap", verdict, **words(verdict))
    return [Figure("t5_overlap", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the fitted share and how far M_x rises."""
    parts = {part.name: part for part in verdict.parts}
    share, rise = (
        wording.format_estimate(part.estimate, part.low, part.high)
        for part in (parts[PART], parts[GATE])
    )
    return {"share": share, "rise": rise, "half": f"{HALF:g}"}


STUDY = Study("T5", TEXT, needs, decide, figures, words, stands_on=("T1",))
