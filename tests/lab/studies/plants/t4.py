"""Planted records of T4."""

import numpy as np
from support import plants

from halfway.lab.studies.t4 import study
from halfway.lab.studies.t4.measure import ACCURACY, EARLY_DIRECTIONS, steps_of

BOUNDARIES = [study.PART]
PLANTED = 2.0
"""Steps by which the alignment is ahead at effect 1."""
NOISE = {study.GRADIENT: 1.3, study.PERTURBATION: 1.0, ACCURACY: 0.8}
"""Standard deviations over pairs of the step to half."""
LEVELS = {study.GRADIENT: (0.01, 0.55), study.PERTURBATION: (0.18, 0.52), ACCURACY: (0.11, 0.95)}
"""Values at step 0 and at the last."""


def plant(rng, effect, boundary=None):
    """Records in which alignment comes half-way 2 times `effect` steps before accuracy.

    A curve has come half-way at the step t_½ of its approach 1 − 2^(−t/t_½).
    """
    trained = study.decided_on(plants.CONFIG)
    steps = np.array(steps_of(trained))
    ahead = 0.0 if boundary else PLANTED * effect
    numbers = {}
    for name, (first, last) in LEVELS.items():
        middle = 10.0 - (0.0 if name == ACCURACY else ahead)
        half = middle + rng.normal(0, NOISE[name], (trained.num_pairs, 1))
        numbers[name] = ("pair", "step"), first + (last - first) * (1 - 2 ** (-steps / half))
    return plants.records((EARLY_DIRECTIONS, trained, plants.dataset(trained, numbers, step=steps)))
