"""G3: coherence measured early, inside A alone, predicts the gap better than its rivals."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.grid import COMPLEXITY, NO_CHANGE, RIVALS
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g3 import figures as drawing
from halfway.lab.studies.g3 import prediction
from halfway.lab.studies.g3.prediction import COHERENCE, SIZE, Gaps
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Headline, Outcome, PartResult, Verdict

TEXT = text.load(__file__)
COMPARED = (NO_CHANGE, SIZE, *RIVALS.values())
"""Every one is a test of its own."""
REVERSED = (NO_CHANGE, RIVALS["early_loss"])
"""Rivals against which the reverse is tested."""


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training and complexity of the bases and interventions."""
    return [
        Request(measurement, (condition,))
        for condition in prediction.conditions(config)
        for measurement in (LEARNING, COMPLEXITY)
    ]


def decide(records: Records) -> Outcome:
    """Returns a test against each rival: signs of the factors' leads are flipped, all 2^11.

    The lead in a factor is (e_rival − e)/(e_rival + e + .01), e the mean error of the predicted gap
    over its interventions. All conditions are means over the same pairs.
    """
    gaps = prediction.read(records)
    parts = [_part(gaps, rival) for rival in COMPARED]
    error = float(prediction.factor_errors(gaps, COHERENCE).mean())
    headlines = [
        Headline(
            f"mean error of the gap predicted by {COHERENCE}",
            error,
            np.nan,
            np.nan,
            NO_CHANGE,
            (float(prediction.factor_errors(gaps, NO_CHANGE).mean()), np.nan, np.nan),
        )
    ]
    headlines += [
        Headline(
            f"the same by {rival}",
            float(prediction.factor_errors(gaps, rival).mean()),
            np.nan,
            np.nan,
        )
        for rival in COMPARED[1:]
    ]
    return Outcome(tuple(parts), tuple(part.name for part in parts), tuple(headlines))


def _part(gaps: Gaps, rival: str) -> PartResult:
    """Returns the test that coherence errs less than a rival."""
    flips = stats.sign_flip_test(prediction.leads(gaps, rival), alternative="greater")
    return PartResult(
        name=rival,
        kind="test",
        statistic="mean over factors of the lead of coherence in error of the gap",
        estimate=flips.estimate,
        low=flips.low,
        high=flips.high,
        direction="greater",
        threshold=(0.0,),
        p_value=flips.p_value,
        p_reverse=flips.p_reverse if rival in REVERSED else None,
        num_pairs=gaps.num_pairs,
        num_excluded=gaps.num_excluded,
        control=rival,
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns the lead over every rival with its interval, and errors by factor in a table.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    gaps = prediction.read(records)
    parts = {part.name: part for part in verdict.parts}
    axes = drawing.leads(
        {
            rival: (parts[rival].estimate, parts[rival].low, parts[rival].high)
            for rival in COMPARED
            if rival in parts
        },
        {rival: prediction.leads(gaps, rival) for rival in COMPARED},
    )
    caption = TEXT.caption("g3_leads", verdict)
    return [Figure("g3_leads", caption, rules.figure_of(axes), _table(gaps, verdict))]


def _table(gaps: Gaps, verdict: Verdict) -> Table:
    """Returns the error of every measure in every factor, the least first."""
    names = (COHERENCE, *COMPARED)
    errors = {name: prediction.factor_errors(gaps, name) for name in names}
    factors = stats.factor_means(np.zeros(len(gaps.factors)), gaps.factors).labels
    rows = [
        [name, f"{errors[name].mean():.3f}", *(f"{value:.3f}" for value in errors[name])]
        for name in sorted(names, key=lambda name: errors[name].mean())
    ]
    caption = TEXT.caption("g3_table", verdict)
    columns = ["measure", "mean over factors", *map(str, factors)]
    return Table("Error of the predicted gap by factor", caption, columns, rows)


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the rival that comes nearest."""
    nearest = min(verdict.parts, key=lambda part: part.estimate)
    return {"nearest": nearest.name}


STUDY = Study("G3", TEXT, needs, decide, figures, words, stands_on=("G1",))
