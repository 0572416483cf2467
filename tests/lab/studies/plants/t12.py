"""Planted records of T12."""

import functools

import numpy as np
from lab.studies.grid_arrays import PLAN
from scipy import optimize
from support import plants

from halfway.lab.measurements.grid import AGREEMENT
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t12 import lines, study

BOUNDARIES = list(lines.MEASURES)
SMALLEST = 0.005
"""How much more a line of two errs at effect 1, in the share fooled."""
SIZE = 0.03
"""What an intervention moves the line of all three by; each moves one measure."""
BASE_RATE, BASE_TAU, SPREAD = 0.3, 0.4, 0.3
NUM_EXAMPLES = 300
NOISE = {"size": 0.03, "tau": 0.01}
"""Standard deviations over pairs."""


@functools.cache
def _missed(targets):
    """Which share of the line's contrast is missing for each measure, so that leads are as given.

    Args:
      targets: mean lead over the line without each measure.
    """
    slopes = study.locked()
    whole = slopes[lines.ALL]
    groups = np.arange(len(PLAN.interventions)) % 3

    def leads(missed):
        near = missed[groups]
        values = []
        for place, name in enumerate(lines.MEASURES):
            said = slopes[name][groups] / whole[groups]  # of what all three say
            far = np.where(groups == place, 1 - near, np.abs(said - (1 - near)))
            values.append(SIZE * (far - near).mean())
        return np.array(values) - targets

    solved = optimize.least_squares(leads, np.full(3, 0.4), bounds=(0, 1))
    assert np.abs(solved.fun).max() < 1e-4, solved.fun
    return solved.x


def plant(rng, effect, boundary=None):
    """Records whose lines of two err by .005 times `effect` more than that of all three."""
    targets = tuple(0.0 if name == boundary else SMALLEST * effect for name in lines.MEASURES)
    missed = _missed(targets)
    whole = study.locked()[lines.ALL]
    number = len(PLAN.interventions)
    groups = np.arange(number) % 3
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
