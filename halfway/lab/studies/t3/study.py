"""T3, the law of transfer: how far outputs agree says how far attacks move between models."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import AGREEMENT, AGREEMENT_ONLY, NO_CHANGE
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t3 import figures as drawing
from halfway.lab.studies.t3 import law
from halfway.lab.studies.t3.law import Line, Measures
from halfway.lab.study import registration, rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Headline, Outcome, PartResult, Verdict
from halfway.lab.study.wording import format_estimate

TEXT = text.load(__file__)
LARGEST_ERROR = 0.05
"""Below which the law's mean error in M_x must lie."""
ERROR, STABLE = "error of the law", "any factor left out"
COMPARED = (NO_CHANGE, *law.RIVALS)
"""The rivals that decide."""
_LISTED = 5
"""Interventions of the largest error that are named."""


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training, attacks and agreement of the base and of every intervention."""
    return [
        Request(measurement, (condition,))
        for condition in grid.design(config).conditions
        for measurement in (LEARNING, TRANSFER, AGREEMENT)
    ]


def locked() -> dict[str, Line]:
    """Returns the lines of the lock, and that of "no change"."""
    lines = registration.fitted("T3")["lines"]
    return {NO_CHANGE: law.UNMOVED} | {
        name: Line(line["transform"], tuple(line["slopes"])) for name, line in lines.items()
    }


def decide(records: Records) -> Outcome:
    """Returns the test of the law's error, one against each rival, and the gate.

    Errors are means of |M_x − predicted| over the 28 interventions, all predicted from the MLP's
    base. Pairs are the units: a t-test on influence values, the same pairs deleted in every
    condition. The gate: each of these estimates stays on its side of its threshold with the
    interventions of any one factor left out.
    """
    measures = law.read(records)
    lines = locked()
    error_fns = {name: law.mean_error(measures, name, line) for name, line in lines.items()}
    parts = [_part(measures, ERROR, error_fns[law.LAW], LARGEST_ERROR, "less", "")]
    for name in COMPARED:

        def lead(weights: np.ndarray, name: str = name) -> np.ndarray:
            return error_fns[name](weights) - error_fns[law.LAW](weights)

        parts.append(_part(measures, name, lead, 0.0, "greater", name))
    parts.append(_gate(measures, lines, parts))
    return Outcome(
        tuple(parts), (ERROR,), tuple(_headlines(measures, lines)), tuple(_warnings(measures))
    )


def _part(measures, name, statistic_fn, threshold, direction, control) -> PartResult:
    """Returns a test of a mean error, or of a rival's minus the law's."""
    decision = stats.composite_test(
        statistic_fn, measures.num_pairs, threshold, alternative=direction, valid=measures.valid
    )
    statistic = (
        "mean |M_x − predicted by μ_f|" if not control else f"lead of the law over {control}"
    )
    return rules.part(decision, name, statistic, direction, threshold, control=control)


def _each_error(measures: Measures, name: str, line: Line) -> np.ndarray:
    """Returns `[N]` errors of a predictor over all pairs that count."""
    return law.errors(measures, name, line, measures.valid.astype(float)[None])[0]


def _gate(measures: Measures, lines: Mapping[str, Line], parts: Sequence[PartResult]) -> PartResult:
    """Returns how far the nearest estimate stays on its side with any one factor left out."""
    factors = measures.plan.factors
    of_law = _each_error(measures, law.LAW, lines[law.LAW])
    distances = [LARGEST_ERROR - of_law]
    distances += [_each_error(measures, name, lines[name]) - of_law for name in COMPARED]
    sides = [
        np.sign(distance.mean()) * stats.without_each_factor(distance, factors)
        for distance in distances
    ]
    statistic = "least distance of an estimate from its threshold, any one factor left out"
    return rules.least_above(sides, STABLE, statistic, parts[0])


def _estimate(measures: Measures, name: str, line: Line, mask=None) -> stats.Decision:
    """Returns the mean error of a predictor, which is at least 0, with its interval."""
    error_fn = law.mean_error(measures, name, line, mask)
    decision = stats.composite_test(
        error_fn, measures.num_pairs, 0.0, alternative="greater", valid=measures.valid
    )
    return stats.bounded(decision, 0.0, np.inf)


def _is_fitted_here(measures: Measures) -> bool:
    """Returns whether the lines were fitted on this data set."""
    return registration.fitted("T3")["dataset"] == measures.plan.bases[grid.MLP].dataset


def _headlines(measures: Measures, lines: Mapping[str, Line]) -> list[Headline]:
    """Returns the error of the law beside "no change", and of all that is shown beside it."""
    of_law = _estimate(measures, law.LAW, lines[law.LAW])
    changed = measures.plan.interventions
    clean = np.array([item.condition.noise_rate == 0 for item in changed])
    alone = np.array([item.factor in AGREEMENT_ONLY for item in changed])
    beside = [*law.RIVALS, *law.BESIDE]
    if not _is_fitted_here(measures):  # There the table errs by 0, as it was made.
        beside.append(law.TABLE)
    return [
        rules.headline(
            "mean error of the law in M_x",
            of_law,
            NO_CHANGE,
            _estimate(measures, NO_CHANGE, law.UNMOVED),
        ),
        rules.headline(
            "the same without label noise", _estimate(measures, law.LAW, lines[law.LAW], clean)
        ),
        rules.headline(
            "the same where agreement alone was moved",
            _estimate(measures, law.LAW, lines[law.LAW], alone),
        ),
        *(
            rules.headline(f"mean error of {name}", _estimate(measures, name, lines[name]))
            for name in beside
        ),
    ]


def _warnings(measures: Measures) -> list[str]:
    """Returns what is so by construction where the slopes were fitted to the same pairs."""
    if not _is_fitted_here(measures):
        return []
    return [
        "The slopes of the law and of its rivals were fitted on this data set: errors are smaller "
        "than those of a prediction."
    ]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the slope, and which other measures of agreement do better."""
    slope = registration.fitted("T3")["lines"][law.LAW]["slopes"][0]
    errors = {headline.label: headline.estimate for headline in verdict.headlines}
    of_law = errors["mean error of the law in M_x"]
    better = [
        name
        for name in (law.CKA, law.COSINE, law.TABLE)
        if errors.get(f"mean error of {name}", np.inf) < of_law
    ]
    said = f"{' and '.join(better)} {'do' if better[1:] else 'does'} better than μ_f here"
    return {
        "slope": f"{slope:g}",
        "better": said[:1].upper() + said[1:]
        if better
        else "Neither CKA nor the cosine of logits nor the table does better than μ_f here",
    }


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns measured against predicted M_x of every intervention, with the rivals' errors.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    shown = points(records)
    axes = drawing.law(
        shown.predicted,
        shown.measured,
        factors=shown.factors,
        names=shown.names,
        errors=shown.errors,
        num_deciding=1 + len(COMPARED),
        largest_error=LARGEST_ERROR,
    )
    caption = TEXT.caption(
        "t3_law", verdict, largest=_largest(shown), slope=words(verdict)["slope"]
    )
    table = _table(shown, TEXT.caption("t3_table", verdict))
    return [Figure("t3_law", caption, rules.figure_of(axes), table)]


class Points(NamedTuple):
    """What the law says of every intervention beside what was measured.

    Attributes:
      names: `[N]` of the interventions; `factors`: `[N]` what each of them changes.
      agreement: `[1 + N]` μ_f, the base first.
      predicted: `[N]` M_x by the law.
      measured: `[1 + N, 3]` M_x, estimate, low and high, the base first.
      errors: mean error of the law, of every rival and of what is shown beside: estimate, low and
        high by name.
    """

    names: list[str]
    factors: list[str]
    agreement: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray
    errors: dict[str, tuple[float, float, float]]


def points(records: Records) -> Points:
    """Returns the law beside what was measured.

    Args:
      records: the measurements of the run.
    """
    measures = law.read(records)
    lines = locked()
    weights = measures.valid.astype(float)[None]
    fieller = [
        rules.triple(stats.fieller(*terms)) for terms in zip(*measures.transfer, strict=True)
    ]
    shown = (law.LAW, *COMPARED, *law.BESIDE)
    return Points(
        [changed.name for changed in measures.plan.interventions],
        measures.plan.factors.tolist(),
        stats.weighted_ratio(weights, *measures.predictors[law.LAW])[0],
        law.predicted(measures, law.LAW, lines[law.LAW], weights)[0],
        np.array(fieller),
        {name: rules.triple(_estimate(measures, name, lines[name])) for name in shown},
    )


def _largest(shown: Points) -> str:
    """Returns the interventions of the largest errors with their sizes."""
    errors = np.abs(shown.measured[1:, 0] - shown.predicted)
    order = np.argsort(-np.nan_to_num(errors))[:_LISTED]
    return ", ".join(f"{shown.names[index]} {errors[index]:.3f}" for index in order)


def _table(shown: Points, caption: str) -> Table:
    """Returns agreement, predicted and measured transfer of every intervention."""
    base, *measured = shown.measured
    rows = [["base", "–", f"{shown.agreement[0]:.3f}", "–", format_estimate(*base)]]
    rows += [
        [name, factor, f"{mu:.3f}", f"{expected:.3f}", format_estimate(*triple)]
        for name, factor, mu, expected, triple in zip(
            shown.names,
            shown.factors,
            shown.agreement[1:],
            shown.predicted,
            measured,
            strict=True,
        )
    ]
    columns = ["intervention", "factor", "μ_f", "M_x predicted", "M_x measured"]
    return Table("Every intervention", caption, columns, rows)


STUDY = Study("T3", TEXT, needs, decide, figures, words, stands_on=("T1",))
