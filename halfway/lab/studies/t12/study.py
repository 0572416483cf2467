"""T12: gradient size, alignment and variability each say something of transfer."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import AGREEMENT
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t12 import figures as drawing
from halfway.lab.studies.t12 import lines
from halfway.lab.studies.t12.lines import ALL, MEASURES, Factors
from halfway.lab.study import registration, rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict

TEXT = text.load(__file__)
EXPECTED = {"size": 1, "alignment": 1, "variability": -1}
"""Signs of the slopes, from the literature."""
LABELS = {
    "size": "size of input gradients",
    "alignment": "alignment τ of both input gradients",
    "variability": "variability of margins over models",
}
SIGNS, STABLE = "signs of slopes", "any factor left out"


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training, attacks and gradients of the base and of every intervention."""
    return [
        Request(measurement, (condition,))
        for condition in grid.design(config).conditions
        for measurement in (LEARNING, TRANSFER, AGREEMENT)
    ]


def locked() -> dict[str, np.ndarray]:
    """Returns the slopes `[3]` of the lock, of all three and with each left out."""
    return {name: np.array(slopes) for name, slopes in registration.fitted("T12")["lines"].items()}


def decide(records: Records) -> Outcome:
    """Returns one test for each measure, and two gates.

    A measure says something where the line without it errs more, in the mean over interventions of
    |Δ rate − line|. Pairs are the units, as in T3. Gates: the slopes refitted here have the signs
    that were expected, and the three estimates their side with any one factor left out.
    """
    factors = lines.read(records)
    slopes = locked()
    parts = []
    for name in MEASURES:
        decision = stats.composite_test(
            lines.lead(factors, slopes[ALL], slopes[name]),
            factors.valid.size,
            0.0,
            alternative="greater",
            valid=factors.valid,
        )
        statistic = f"error of the line without {name} − that of all three"
        parts.append(rules.part(decision, name, statistic, "greater", 0.0, control="all three"))
    refitted = np.array(lines.fit(factors)[ALL]) if factors.valid.any() else np.full(3, np.nan)
    signed = np.array(list(EXPECTED.values())) * refitted
    gates = [
        (signed, SIGNS, "least slope refitted here, in its expected sign"),
        (
            _left_out(factors, slopes),
            STABLE,
            "least lead on its side of 0, any one factor left out",
        ),
    ]
    parts += [rules.least_above(*gate, like=parts[0]) for gate in gates]
    headlines = [
        Headline(f"slope of the {LABELS[name]}, refitted here", value, np.nan, np.nan)
        for name, value in zip(MEASURES, map(float, refitted), strict=True)
    ]
    return Outcome(tuple(parts), MEASURES, tuple(headlines))


def _left_out(factors: Factors, slopes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns mean leads with each factor left out, in the sign of the whole."""
    weights = factors.valid.astype(float)[None]
    near = lines.errors(factors, slopes[ALL], weights)[0]
    kept = []
    for name in MEASURES:
        distance = lines.errors(factors, slopes[name], weights)[0] - near
        kept.append(
            np.sign(distance.mean()) * stats.without_each_factor(distance, factors.plan.factors)
        )
    return np.array(kept)


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns contrasts of the rate as measured against the line of all three.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    factors = lines.read(records)
    values = lines.contrasts(factors, factors.valid.astype(float)[None])[0]
    slopes = locked()
    axes = drawing.contributions(
        values[:, 0],
        values[:, 1:],
        slopes[ALL],
        factors=factors.plan.factors.tolist(),
        names=[LABELS[name] for name in MEASURES],
    )
    caption = TEXT.caption("t12_lines", verdict)
    return [Figure("t12_lines", caption, rules.figure_of(axes), _table(factors, values, verdict))]


def _table(factors: Factors, values: np.ndarray, verdict: Verdict) -> Table:
    """Returns contrasts of every intervention."""
    rows = [
        [changed.name, changed.factor, *(f"{value:.3f}".replace("-", "−") for value in row)]
        for changed, row in zip(factors.plan.interventions, values, strict=True)
    ]
    columns = ["intervention", "factor", "Δ rate", "Δ log size", "Δτ", "Δ log variability"]
    return Table("Every contrast", TEXT.caption("t12_table", verdict), columns, rows)


STUDY = Study("T12", TEXT, needs, decide, figures, stands_on=("T1",))
