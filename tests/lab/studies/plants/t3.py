"""Planted records of T3."""

import numpy as np
from lab.studies import grid_arrays
from scipy import special
from support import plants

from halfway.lab.measurements import grid
from halfway.lab.studies.t3 import law, study

BOUNDARIES = [study.ERROR, *study.COMPARED]
FITTED = {
    "dataset": plants.CONFIG.dataset,
    "lines": {
        law.LAW: {"transform": "logit", "slopes": [0.9]},
        law.ACCURACY: {"transform": "logit", "slopes": [0.6]},
        law.MEETING: {"transform": "logit", "slopes": [0.5]},
        law.GAP: {"transform": "identity", "slopes": [-4.0]},
        law.PREDICTIONS: {"transform": "logit", "slopes": [0.8]},
        law.DESIGN: {"transform": "logit", "slopes": [0.5, 0.8]},
        **{name: {"transform": "logit", "slopes": [0.8]} for name in law.BESIDE},
        law.TABLE: {"transform": "logit", "slopes": [0.0] * len(grid_arrays.PLAN.interventions)},
    },
}
"""Made-up lines in the place of those of the lock: a rule is the same for all."""
LEAD = 0.01
"""How much more a rival errs at effect 1, in M_x."""
LARGE = 0.035
"""The law's error at effect 1."""


def plant(rng, effect, boundary=None):
    """Records in which the law errs by .05 − .015 effect, and each rival by .01 effect more.

    M_x lies as far from what ρ and n say, and all other measures are such that their locked lines
    say what they are to say.
    """
    lines = study.locked()
    plan = grid_arrays.PLAN
    of_law = study.LARGEST_ERROR + (LARGE - study.LARGEST_ERROR) * effect
    if boundary == study.ERROR:
        of_law = study.LARGEST_ERROR
    lead = LEAD * effect
    anchor = grid_arrays.BASE["transfer"]
    design = law._design(plan.conditions)
    said = special.expit(
        special.logit(anchor) + (design.T[1:] - design.T[0]) @ np.array(lines[law.DESIGN].slopes)
    )
    sign = np.where(np.arange(len(said)) % 2 == 0, 1.0, -1.0)
    sign = np.where(said < 0.15, 1.0, np.where(said > 0.85, -1.0, sign))
    if boundary == grid.NO_CHANGE:
        truth = anchor + sign * of_law
    else:
        truth = said + sign * (of_law + (0.0 if boundary == law.DESIGN else lead))
    measures = {}
    for name in (law.LAW, *law.RIVALS, *law.BESIDE):
        if name == law.DESIGN:
            continue
        error = of_law if name in (law.LAW, boundary) else of_law + lead
        expected = np.clip(truth + sign * error, 0.01, 0.99)
        measures[name] = _inverted(lines[name], grid_arrays.BASE.get(name, 0.6), anchor, expected)
    return plants.records(*grid_arrays.planted(rng, truth, measures))


def _inverted(line, base, anchor, expected):
    """Values of a measure, the base's first, from which a line predicts what is expected."""
    moved = (special.logit(expected) - special.logit(anchor)) / line.slopes[0]
    if line.transform == "identity":
        return np.r_[base, base + moved]
    return np.r_[base, special.expit(special.logit(base) + moved)]
