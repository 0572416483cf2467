"""Planted records of T11."""

import functools

import numpy as np
from support import plants

from halfway.lab.studies.t11 import study
from halfway.lab.studies.t11.measure import ARCHITECTURES, NAMES, POINTS, compared_on, control_of

BOUNDARIES = [study.test_name(cell, control) for control in study.CONTROLS for cell in study.CELLS]
SIZED = BOUNDARIES[::6]
"""Of forty tests of one form: each architecture attacks and each control is there."""
NUM_COUNTED = 32
"""Surrogates and targets of a cell."""
PLANTED = 0.05
"""Fooling rate above that of each control at effect 1."""
CONTROL_RATE = 0.03
"""Fooling rate of the controls."""
NOISE = {"surrogate": 0.01, "target": 0.01, "example": 0.01}
"""Planted standard deviations of a fooling rate over surrogates, targets and examples.

Those of cells with about the planted rate; cells of higher rates vary more. Examples are fewer than
in a run and differ less, so that they add as much to the error as there.
"""
NUM_EXAMPLES = 32
RIGHT = 0.95
"""Share of the examples that a model has right."""


def plant(rng, effect, boundary=None):
    """Records whose attacks lead each control by .05 times `effect` in every cell."""
    conditions = compared_on(plants.CONFIG)
    number = conditions[NAMES[0]].num_pairs
    size = number, len(POINTS), len(NAMES), number, NUM_EXAMPLES
    planted = list(learned())
    target_right = _coins(rng, RIGHT, (len(NAMES), number, NUM_EXAMPLES))
    for name, trained in conditions.items():
        rate = np.full((len(POINTS), len(NAMES)), CONTROL_RATE)
        rate[0] += PLANTED * effect
        for control, test in study.CONTROLS.items():
            for place, target in enumerate(NAMES):
                if boundary == f"{name} to {target}, {test}":
                    rate[POINTS.index(control), place] = rate[0, place]
        drawn = rate[..., None, None] + sum(
            rng.normal(0, NOISE[side], shape)
            for side, shape in (
                ("surrogate", (number, len(POINTS), 1, 1, 1)),
                ("target", (len(POINTS), len(NAMES), number, 1)),
                ("example", (len(POINTS), len(NAMES), 1, NUM_EXAMPLES)),
            )
        )
        cells = "pair", "architecture", "target"
        counted = np.full(number, RIGHT * plants.CONFIG.num_holdout)
        values = {
            "increase": (cells, np.full((number, len(NAMES), number), 300.0)),
            "own_increase": (("pair",), np.full(number, 1000.0)),
            "own_fooled": (("pair",), 0.5 * counted),
            "own_examples": (("pair",), counted),
        }
        outcomes = {
            "right": (("pair", "example"), _coins(rng, RIGHT, (number, NUM_EXAMPLES))),
            "target_right": (("architecture", "target", "example"), target_right),
            "wrong": (("pair", "points", *cells[1:], "example"), _coins(rng, drawn, size)),
        }
        labels = {"points": POINTS, "architecture": NAMES, "target": np.arange(number)}
        made = plants.dataset(trained, values, outcomes, **labels)
        planted.append((ARCHITECTURES, trained, made))
    return plants.records(*planted)


def _coins(rng, rate, size):
    """Outcomes that are true at a rate."""
    return rng.random(size, np.float32) < rate


@functools.cache
def learned():
    """Training of all architectures and controls; the rule reads which pairs stayed finite."""
    rng = np.random.default_rng(0)
    return [
        plants.learning(rng, each, 0.9)
        for trained in compared_on(plants.CONFIG).values()
        for each in (trained, control_of(trained))
    ]
