"""V3, a verification: on fresh batches nothing is memorized, κ is 0 (P3)."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import fresh
from halfway.lab.measurements.fresh import FRESH, MOST_STEPS, PRODUCTS
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.v3 import figures as drawing
from halfway.lab.study import rules, text
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict

TEXT = text.load(__file__, "verification")
MARGIN = 0.05
"""Of κ, which has to be 0."""
PART = "fresh batches"
NUM_WINDOWS = 6
"""Equal parts of the steps, in which κ is shown."""


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns runs on fresh batches, as many as pairs, with the config's training."""
    trained = fresh.fresh_condition(config)
    return [Request(LEARNING, (trained,)), Request(FRESH, (trained,))]


def _read(records: Records) -> tuple[Measured, int]:
    """Returns what was measured, and the batch size."""
    trained = fresh.fresh_condition(records.config)
    return records.get(FRESH, trained), trained.batch_size


def decide(records: Records) -> Outcome:
    """Returns the equivalence of κ with 0: a ratio of sums over steps and runs, the unit a run.

    n is the batch size: A is the batch that comes next, B is fixed and held out.
    """
    measured, size = _read(records)
    terms = fresh.fresh_terms(measured, size)
    part = rules.part(
        stats.ratio_equivalence(*terms, -MARGIN, MARGIN),
        PART,
        "κ on fresh batches, pooled over steps",
        "within",
        -MARGIN,
        MARGIN,
        control="0, where nothing is seen twice",
    )
    label = f"κ on fresh batches of {_source(measured, records.config)}"
    return Outcome((part,), (PART,), (rules.headline(label, stats.fieller(*terms)),))


def _source(measured: Measured, config: RunConfig) -> str:
    """Returns what the batches are drawn from, in words."""
    return config.dataset if measured.read("of_pool").item() else "a Gaussian mixture"


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns κ along training on fresh batches, with its margins.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    measured, size = _read(records)
    made_of = [measured.read(name, "pair", "step") for name in PRODUCTS]
    steps = np.arange(made_of[0].shape[1])
    windows = [part for part in np.array_split(steps, min(NUM_WINDOWS, steps.size)) if part.size]
    kappa = [
        rules.triple(
            stats.fieller(*fresh.kappa_terms(size, *(v[:, part].sum(-1) for v in made_of)))
        )
        for part in windows
    ]
    middles = [float(part.mean()) for part in windows]
    axes = drawing.along_steps(middles, kappa, margin=MARGIN)
    caption = TEXT.caption("v3_fresh", verdict, source=_source(measured, records.config))
    return [Figure("v3_fresh", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the margin, and the longest run."""
    del verdict
    return {"margin": f"{MARGIN:g}", "num_steps": str(MOST_STEPS)}


STUDY = Study("V3", TEXT, needs, decide, figures, words, kind="verification")
