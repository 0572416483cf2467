"""Planted records of T9."""

import functools

import numpy as np
from support import plants

from halfway.lab.studies.t9 import study
from halfway.lab.studies.t9.measure import BOUNDARIES as MEASURED
from halfway.lab.studies.t9.measure import GRID_SIZE, NUM_SEGMENTS, RULES

BOUNDARIES = [study.PART]
PLANTED = 0.1
"""How far the partial correlation lies above half of the correlation at effect 1."""
CORRELATION, NOISE = 0.73, 0.01
"""Planted r, and the standard deviation over pairs of the partial one, of what drawing segments
does not make by itself."""
NUM_ROWS = 1797
"""Of the pool."""


def plant(rng, effect, boundary=None):
    """Segments with known correlations of t_A and t_B, with and without the rules.

    Both are √α g + √β s + noise: g is what the first rule crosses by, s what the models share
    beyond. So r = α + β and, given the rule, β / (1 − α).
    """
    config = plants.CONFIG
    num_pairs, num_classes = config.num_pairs, config.num_classes
    num_groups = num_classes * (num_classes - 1) // 2
    size = num_groups * NUM_SEGMENTS
    above = 0.0 if boundary == study.PART else PLANTED * effect
    partial = study.SHARE * CORRELATION + above + rng.normal(0, NOISE, (num_pairs, 1))
    of_rule = (CORRELATION - partial) / (1 - partial)
    beyond = partial * (1 - of_rule)
    ruled, shared = rng.normal(size=(2, num_pairs, size))
    models = [
        np.sqrt(of_rule) * ruled
        + np.sqrt(beyond) * shared
        + np.sqrt(1 - of_rule - beyond) * rng.normal(size=ruled.shape)
        for _ in range(2)
    ]
    others = [ruled + rng.normal(size=ruled.shape) for _ in RULES[1:]]
    crossing, rule_crossing = (
        0.5 + 0.1 * np.stack(columns, 1) for columns in (models, [ruled, *others])
    )
    of_segments = ("pair", "segment")
    start, end = rng.integers(0, NUM_ROWS, (2, num_pairs, size))
    group = np.tile(np.repeat(np.arange(num_groups), NUM_SEGMENTS), (num_pairs, 1))
    outcomes = {
        "start": (of_segments, start),
        "end": (of_segments, end),
        "class_pair": (of_segments, group.astype(np.int16)),
        "crossing": (("pair", "model", "segment"), crossing),
        "rule_crossing": (("pair", "rule", "segment"), rule_crossing),
    }
    trained = study.decided_on(config)
    made = plants.dataset(trained, {}, outcomes | planes(num_pairs), rule=RULES)
    return plants.records((MEASURED, trained, made))


@functools.lru_cache(maxsize=4)
def planes(num_pairs):
    """Planes in which both models tell three examples apart by the nearest."""
    corners = np.array([[0.0, 0.0], [3.0, 0.0], [1.0, 2.5]])
    x, y = (np.linspace(low, high, GRID_SIZE) for low, high in ((-0.8, 3.8), (-0.8, 3.3)))
    places = np.stack(np.meshgrid(x, y), -1)[:, :, None]
    nearest = ((places - corners) ** 2).sum(-1).argmin(-1)
    of_pair = {
        "decision": (("model", "y", "x"), np.stack([nearest, nearest])),
        "corners": (("corner", "axis"), corners),
        "x": (("x",), x),
        "y": (("y",), y),
        "classes": (("corner",), np.arange(3)),
    }
    return {
        f"plane_{name}": (("pair", *dims), np.broadcast_to(values, (num_pairs, *values.shape)))
        for name, (dims, values) in of_pair.items()
    }
