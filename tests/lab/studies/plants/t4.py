"""Planted records of T4."""

import numpy as np
from support import plants

from halfway.lab.studies.t4 import study
from halfway.lab.studies.t4.measure import ACCURACY, EARLY_DIRECTIONS

BOUNDARIES = plants.CONFIG.architectures
PLANTED = 0.15
"""How far the part of the alignment's gain at t* lies above the threshold at effect 1."""
START = 12
"""The step at which accuracy has a tenth of its gain."""
LEVELS = {study.MARGIN: (0.02, 0.42), study.CROSS_ENTROPY: (0.0, 0.5), ACCURACY: (0.1, 0.92)}
"""Values at step 0 and at the last."""
NOISE = {study.MARGIN: 0.02, study.CROSS_ENTROPY: 0.02, ACCURACY: 0.05}
"""Standard deviations over pairs of what differs at step 0, early and, of alignments, late."""
FEWEST = [(study, "NUM_RESAMPLES", 400)]


def plant(rng, effect, boundary=None):
    """Records whose alignment has .1 + .15 times `effect` of its gain when accuracy has .1."""
    planted = []
    for architecture in plants.CONFIG.architectures:
        trained = study.decided_on(plants.CONFIG, architecture)
        part = study.STARTED + (0.0 if architecture == boundary else PLANTED * effect)
        steps = np.arange(study.LAST_STEP + 1)
        numbers = {}
        for name, (first, last) in LEVELS.items():
            # Between two steps, so that t* is the step that is meant.
            place, gain = (START + 0.5, study.STARTED) if name == ACCURACY else (START, part)
            rise = np.interp(steps, [0, place, study.LAST_STEP], [0, gain, 1])
            begin, early, late = rng.normal(0, NOISE[name], (3, trained.num_pairs, 1))
            late = 0 * late if name == ACCURACY else late
            coming = np.interp(steps, [0, START, study.LAST_STEP], [0, 1, 0])
            noise = begin + early * coming + late * steps / study.LAST_STEP
            numbers[name] = ("pair", "step"), first + (last - first) * rise + noise
        made = plants.dataset(trained, numbers, step=steps)
        planted.append((EARLY_DIRECTIONS, trained, made))
    return plants.records(*planted)
