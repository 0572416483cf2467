"""Planted records of T11."""

import functools

import numpy as np
from support import plants

from halfway.lab.studies.t11 import study
from halfway.lab.studies.t11.measure import ARCHITECTURES, NAMES, POINTS, compared_on

BOUNDARIES = list(study.CELLS)
NUM_COUNTED = 16
"""Surrogates and targets of a cell."""
PLANTED = 0.05
"""Fooling rate above that of matched noise at effect 1."""
NOISE = {"surrogate": 0.01, "target": 0.01, "cell": 0.015}
"""Planted standard deviations of a fooling rate: over surrogates, targets, and pairs of them.

Those of cells with about the planted rate; cells of higher rates vary more.
"""


def plant(rng, effect, boundary=None):
    """Records whose attacks lead noise by .05 times `effect` in every cell."""
    conditions = compared_on(plants.CONFIG)
    number = conditions[NAMES[0]].num_pairs
    size, counted = (number, len(NAMES), number), 0.9 * plants.CONFIG.num_holdout
    shapes = {"surrogate": (number, len(NAMES), 1), "target": size[1:], "cell": size}
    planted = list(learned())
    for name, trained in conditions.items():
        lead = np.full((len(NAMES), 1), PLANTED * effect)
        if boundary is not None and boundary.startswith(f"{name} to "):
            lead[NAMES.index(study.CELLS[boundary][1])] = 0.0
        drawn = sum(rng.normal(0, NOISE[part], shape) for part, shape in shapes.items())
        rates = [0.01 + lead + drawn, 0.01 + rng.normal(0, 0.002, size)]
        cells = "pair", "architecture", "target"
        values = {
            "num_fooled": (("pair", "points", *cells[1:]), counted * np.stack(rates, 1)),
            "num_examples": (cells, np.full(size, counted)),
            "increase": (cells, 300.0 + rng.normal(0, 20, size)),
            "own_increase": (("pair",), np.full(number, 1000.0)),
            "own_fooled": (("pair",), np.full(number, 0.5 * counted)),
            "own_examples": (("pair",), np.full(number, counted)),
        }
        labels = {"points": POINTS, "architecture": NAMES, "target": np.arange(number)}
        planted.append((ARCHITECTURES, trained, plants.dataset(trained, values, **labels)))
    return plants.records(*planted)


@functools.cache
def learned():
    """Training of all architectures, which no test of the rule reads."""
    rng = np.random.default_rng(0)
    conditions = compared_on(plants.CONFIG).values()
    return [plants.learning(rng, trained, 0.9) for trained in conditions]
