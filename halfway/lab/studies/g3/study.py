"""G3: coherence measured early, inside A alone, predicts the gap better than its rivals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import COMPLEXITY, FACTORS, NOISE_RATE, RIVALS, Measures
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.g3 import figures as drawing
from halfway.lab.studies.g3.contest import Contest
from halfway.lab.study import rules, text, wording
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Headline, Outcome, PartResult, Verdict

TEXT = text.load(__file__)
PART = "n_half against its rivals"
PREDICTOR, BESIDE = "n_half at step 20", "n_half/n at step 20"
"""The measure on trial; and noise over signal of the whole half's gradient, which is only shown."""
NAMES = (PREDICTOR, *RIVALS.values(), BESIDE)
TITLES = {
    "noise_rate": "ρ",
    "num_examples": "n",
    "depth": "depth",
    "width": "width",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
}


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training and complexity of every condition of the grid."""
    return [
        Request(measurement, (cell.condition,))
        for cell in grid.cells(config)
        for measurement in (LEARNING, COMPLEXITY)
    ]


def candidates(records: Records) -> Measures:
    """Returns the measures of every condition with its gaps, in the order of `NAMES`."""
    cells = grid.cells(records.config)
    complexity = [records.get(COMPLEXITY, cell.condition) for cell in cells]
    both = "pair", "model"
    signal, noise = (
        np.array([measured.read(name, *both).mean(-1) for measured in complexity])
        for name in ("early_signal", "early_noise")
    )
    rivals = [
        [measured.read("rivals", *both, measure=name).mean(-1) for measured in complexity]
        for name in RIVALS
    ]
    num_examples = np.array([[cell.condition.num_examples] for cell in cells])
    return grid.with_gaps(
        records,
        numerators=np.array([noise, *rivals, noise]),
        denominators=np.array([signal, *np.ones_like(rivals), signal * num_examples]),
    )


def judge(measures: Measures) -> Contest:
    """Returns how the first measure does against its rivals, within ρ."""
    return contest.contest(
        measures.numerators,
        measures.denominators,
        measures.gap,
        measures.strata,
        np.delete(measures.levels, NOISE_RATE, 1),
        num_rivals=len(RIVALS),
    )


def decide(records: Records) -> Outcome:
    """Returns the one test, of the lead over the best rival."""
    measures = candidates(records)
    result = judge(measures)
    half_width = 1.96 * result.standard_error
    part = PartResult(
        name=PART,
        kind="test",
        statistic="τ_K of n_half at step 20 minus the largest |τ_K| of a rival, within ρ",
        estimate=result.lead,
        low=result.lead - half_width,
        high=result.lead + half_width,
        direction="greater",
        threshold=(0.0,),
        p_value=result.p_value,
        p_reverse=result.p_reverse,
        num_pairs=int(measures.finite.sum()),
        num_excluded=int((~measures.finite).sum()),
        control="best rival",
    )
    headlines = [
        Headline(
            f"τ_K with the gap of {PREDICTOR}",
            *_triple(result, 0),
            NAMES[result.best],
            _triple(result, result.best),
        ),
        Headline(f"τ_K with the gap of {BESIDE}", *_triple(result, len(NAMES) - 1)),
    ]
    return Outcome((part,), (PART,), tuple(headlines), grid.warn_of_unreached(measures))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns τ_K of every measure with its interval, and a table of all of them.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    result = judge(candidates(records))
    axes = drawing.rank_contest(
        result.tau,
        result.low,
        result.high,
        names=NAMES,
        granulated=contest.mean(result.granulated.T),
        highlighted=(0, len(NAMES) - 1),
    )
    caption = TEXT.caption("g3_predictors", verdict)
    table = _table(result, TEXT.caption("g3_table", verdict))
    return [Figure("g3_predictors", caption, rules.figure_of(axes), table)]


def _table(result: Contest, caption: str) -> Table:
    """Returns every measure's correlations, the largest |τ_K| first."""
    varied = [TITLES[factor.name] for factor in FACTORS if factor.name != "noise_rate"]
    granulated = contest.mean(result.granulated.T)
    rows = [
        [
            NAMES[index],
            wording.format_estimate(*_triple(result, index)),
            *map(_two_digits, result.granulated[:, index]),
            _two_digits(granulated[index]),
            _two_digits(result.pooled[index]),
        ]
        for index in np.argsort(-np.abs(np.nan_to_num(result.tau)))
    ]
    columns = ["measure", "τ_K within ρ [95 %]", *(f"varied: {name}" for name in varied)]
    return Table("Every measure", caption, [*columns, "granulated", "over all"], rows)


def _triple(result: Contest, index: int) -> tuple[float, float, float]:
    """Returns τ_K of a measure with its interval."""
    return float(result.tau[index]), float(result.low[index]), float(result.high[index])


def _two_digits(value: Any) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "undefined"


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the names of the measure on trial and of its best rival."""
    return {
        "predictor": PREDICTOR,
        "rival": verdict.headlines[0].control_label or "a rival",
    }


STUDY = Study("G3", TEXT, needs, decide, figures, words, stands_on=("G1",))
