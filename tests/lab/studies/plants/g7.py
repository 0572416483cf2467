"""Planted records of G7."""

import numpy as np
from support import plants

from halfway.lab.studies.g7 import study
from halfway.lab.studies.g7.measure import LEARNING_TIMES, PERMUTED, WITHIN

PLANTED = 0.05
"""Rank correlation above half of that of two seeds at effect 1."""
SEEDS = 0.4
"""Rank correlation of two seeds on one half."""
NOISE = {study.HALVES: 0.036, study.SEEDS: 0.05}
"""Standard deviation over pairs; that of the mean over permutations is a tenth of it."""
BOUNDARIES = [WITHIN]


def plant(rng, effect, boundary=None):
    """Records whose two halves exceed half of two seeds by `PLANTED` times `effect`."""
    size = 0.0 if boundary else PLANTED * effect
    means = study.MOST * SEEDS + size, SEEDS
    planted = []
    for (name, trained), mean in zip(study.conditions(plants.CONFIG).items(), means, strict=True):
        within = mean + rng.normal(0, NOISE[name], trained.num_pairs)
        permuted = rng.normal(0, NOISE[name] / 10, trained.num_pairs)
        # Both directions alike.
        values = np.stack([within, permuted], -1)[:, None] * np.ones((2, 1))
        numbers = {
            "rank_correlation": (("pair", "surrogate", "times"), values),
            "num_undefined_strata": (("pair", "surrogate"), np.zeros((trained.num_pairs, 2))),
        }
        made = plants.dataset(trained, numbers, times=(WITHIN, PERMUTED))
        planted.append((LEARNING_TIMES, trained, made))
    return plants.records(*planted)
