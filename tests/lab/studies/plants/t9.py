"""Planted records of T9."""

import functools

import numpy as np
from support import plants

from halfway.lab.studies.t9 import study
from halfway.lab.studies.t9.measure import BOUNDARIES as MEASURED
from halfway.lab.studies.t9.measure import GRID_SIZE, KINDS, NUM_SEGMENTS

BOUNDARIES = [study.CORRELATION, study.MIDDLE, study.LEAD]
PLANTED = {study.CORRELATION: 0.1, study.MIDDLE: -0.02, study.LEAD: 0.2}
"""How far each statistic lies beyond its threshold at effect 1."""
NOISE = {study.CORRELATION: 0.03, study.MIDDLE: 0.005, study.LEAD: 0.03}
"""Planted standard deviation over pairs, of what drawing segments does not make by itself."""
DISTANCES = {
    "legitimate": (1.2, 0.2, 0.0),
    "adversarial": (0.7, 0.4, 0.0),
    "random": (5.6, 1.5, 0.36),
}
"""Median l2 distances to the boundary and between boundaries, and the share without one."""


def plant(rng, effect, boundary=None):
    """Segments with known correlation, distance from the middle, and l2 distances.

    Crossings are normal around the middle, with a part that the classes share; l2 distances do not
    follow from them, so that every part of the rule can be put at its boundary.
    """
    config = plants.CONFIG
    size = {name: step * (0.0 if name == boundary else effect) for name, step in PLANTED.items()}
    num_pairs, num_classes = config.num_pairs, config.num_classes
    num_groups = num_classes * (num_classes - 1) // 2
    shape = (num_pairs, num_groups, NUM_SEGMENTS)
    drawn = {name: rng.normal(size[name], NOISE[name], (num_pairs, 1, 1)) for name in PLANTED}
    # A quarter of the variance is the classes', the same for both models; of the rest the means of
    # few segments take their share.
    within = drawn[study.CORRELATION] / (0.75 * (1 - 1 / NUM_SEGMENTS))
    classes = 0.5 * rng.normal(size=(num_pairs, num_groups, 1))
    first, noise = rng.normal(size=(2, *shape))
    second = within * first + np.sqrt(1 - within**2) * noise
    crossing = np.stack([classes + np.sqrt(0.75) * part for part in (first, second)], 1)
    crossing *= (study.HALFWAY + drawn[study.MIDDLE][:, None]) / np.sqrt(2 / np.pi)
    between = rng.gamma(4.0, 0.1, shape)
    lead = drawn[study.LEAD][:, None] + rng.normal(0, 0.4, (num_pairs, 2, *shape[1:]))
    distance = between[:, None] + lead
    class_pair = np.broadcast_to(np.arange(num_groups)[:, None], shape)
    of_models = ("pair", "model", "segment")
    outcomes = {
        "class_pair": (("pair", "segment"), class_pair.reshape(num_pairs, -1)),
        "crossing": (of_models, (0.5 + crossing).reshape(num_pairs, 2, -1)),
        "distance": (of_models, distance.reshape(num_pairs, 2, -1)),
        "between": (("pair", "segment"), between.reshape(num_pairs, -1)),
    }
    names = ("boundary_distance", "inter_boundary_distance", "share_unbounded")
    numbers = {}
    for index, name in enumerate(names):
        levels = np.array([DISTANCES[kind][index] for kind in KINDS])[:, None]
        values = levels * rng.lognormal(0, 0.03, (num_pairs, len(KINDS), 2))
        numbers[name] = ("pair", "kind", "model"), values
    trained = study.decided_on(config)
    made = plants.dataset(trained, numbers, outcomes | planes(num_pairs), kind=KINDS)
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
