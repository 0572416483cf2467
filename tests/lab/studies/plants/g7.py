"""Planted records of G7."""

import numpy as np
from support import plants

from halfway.lab.studies.g7 import study
from halfway.lab.studies.g7.measure import ALL, LEARNING_TIMES, PERMUTED, WITHIN

PLANTED = 0.05
"""Rank correlation within class at effect 1."""
NOISE = 0.036
"""Standard deviation over pairs; that of the mean over permutations is a tenth of it."""
BOUNDARIES = [WITHIN]


def plant(rng, effect, boundary=None):
    """Records whose correlation within class is `PLANTED` times `effect`."""
    trained = study.conditions(plants.CONFIG)[0.0]
    size = 0.0 if boundary else PLANTED * effect
    within = size + rng.normal(0, NOISE, trained.num_pairs)
    permuted = rng.normal(0, NOISE / 10, trained.num_pairs)
    # Both directions alike; easy classes add to the order of all examples.
    orders = np.stack([within, permuted, within + 0.3], -1)[:, None] * np.ones((2, 1))
    numbers = {
        "rank_correlation": (("pair", "surrogate", "order"), orders),
        "num_undefined_strata": (("pair", "surrogate"), np.zeros((trained.num_pairs, 2))),
    }
    made = plants.dataset(trained, numbers, order=(WITHIN, PERMUTED, ALL))
    return plants.records((LEARNING_TIMES, trained, made))
