"""Planted records of T12."""

import numpy as np
from lab.studies.grid_arrays import PLAN
from support import plants

from halfway.lab.measurements.grid import AGREEMENT
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t12 import lines

BOUNDARIES = list(lines.MEASURES)
SLOPES = {"size": 0.4, "alignment": 0.8, "variability": -0.2}
FITTED = {
    "lines": {
        lines.ALL: list(SLOPES.values()),
        **{
            left_out: [0.0 if name == left_out else slope for name, slope in SLOPES.items()]
            for left_out in lines.MEASURES
        },
    }
}
"""Made-up lines in the place of those of the lock: of measures that move apart from each other."""
SMALLEST = 0.008
"""How much more a line of two errs at effect 1, in the share fooled."""
SIZE = 0.08
"""What an intervention moves the line of all three by; each moves one measure."""
BASE_RATE, BASE_TAU, SPREAD = 0.3, 0.4, 0.3
NUM_EXAMPLES = 597
NOISE = {"size": 0.03, "tau": 0.01}
"""Standard deviations over pairs."""


def plant(rng, effect, boundary=None):
    """Records whose lines of two err by .008 times `effect` more than that of all three.

    A share m of what the line says is missing, so that it errs by m, and without the measure that
    moves by 1 − m, of what it says.
    """
    targets = np.array([0.0 if n == boundary else SMALLEST * effect for n in lines.MEASURES])
    whole = np.array(FITTED["lines"][lines.ALL])
    number = len(PLAN.interventions)
    groups = np.arange(number) % 3
    share = np.bincount(groups) / number
    missed = (1 - targets / (SIZE * share)) / 2
    said = SIZE * np.where(np.arange(number) // 3 % 2, 1.0, -1.0)
    moved = np.zeros((number, 3))
    moved[np.arange(number), groups] = said / whole[groups]
    rate = said * (1 - missed[groups])
    # Contrasts add up where an intervention is compared with another one.
    cnn = [item.name for item in PLAN.interventions].index("CNN")
    within = np.array([item.base == "cnn" and item.name != "CNN" for item in PLAN.interventions])
    moved[within] += moved[cnn]
    rate[within] += rate[cnn]
    moved = np.vstack([np.zeros(3), moved])
    rates = BASE_RATE + np.r_[0.0, rate]
    conditions = PLAN.conditions
    size = len(conditions), conditions[0].num_pairs
    cells = (*size, 2, 2, NUM_EXAMPLES)
    fooled = rng.random(cells) < rates[:, None, None, None, None]
    values = {
        "fooled": fooled,
        "fooled_by_other": np.zeros(cells, bool),
        "clean_correct": np.ones((*size, 2, NUM_EXAMPLES), bool),
    }
    outcomes = "pair", "surrogate", "target", "example"
    dims = {"clean_correct": ("pair", "model", "example")}
    first = plants.dataset(
        conditions[0],
        {},
        {name: (dims.get(name, outcomes), value[0]) for name, value in values.items()},
    )
    transfer = plants.alike(TRANSFER, conditions, first, values)
    return plants.records(*transfer, *_agreement(rng, conditions, moved))


def _agreement(rng, conditions, moved):
    """Sizes, alignments and margins with given contrasts `[1 + N, 3]`."""
    size = len(conditions), conditions[0].num_pairs, 2
    steep = np.exp(moved[:, 0, None, None] + NOISE["size"] * rng.normal(size=size))
    tau = BASE_TAU + moved[:, 1, None, None] + NOISE["tau"] * rng.normal(size=size)
    spread = SPREAD * np.exp(moved[:, 2] / 2)[:, None, None, None]
    margin = 1 + spread * rng.normal(size=(*size, NUM_EXAMPLES))
    # Each with the mean and variance that it is to have over models, but for pairs' luck.
    values = {
        "size": steep,
        "tau": tau,
        "margin": margin,
        "unseen": np.ones((*size, NUM_EXAMPLES), bool),
    }
    cells = "pair", "model", "example"
    first = plants.dataset(
        conditions[0],
        {"size": (("pair", "model"), steep[0]), "tau": (("pair", "surrogate"), tau[0])},
        {name: (cells, values[name][0]) for name in ("margin", "unseen")},
    )
    return plants.alike(AGREEMENT, conditions, first, values)
