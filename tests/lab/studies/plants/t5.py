"""Planted records of T5."""

import numpy as np
from support import plants

from halfway.lab.studies.t5 import study

BOUNDARIES = [study.PART]
PLANTED = 0.5
"""How far a exceeds ½ at effect 1: the straight line."""
LEVELS = 0.63, 0.79
"""M_x without shared data and with all shared."""
COMMON, NOISE = 0.012, 0.012
"""Standard deviations over pairs: of what all overlaps of a pair share in M_x, and of each mean
increase as a share of the own one. As measured, that of a pair's influence on a is .42."""
INCREASE = 20.0
"""Mean increase of the attacked model's own margin loss."""


def plant(rng, effect, boundary=None):
    """Records whose rise with the overlap is in proportion to it for a = ½ + ½ `effect`."""
    share = study.HALF + (0.0 if boundary == study.PART else PLANTED * effect)
    common = rng.normal(0, COMMON, plants.CONFIG.num_pairs)
    planted = []
    for overlap, level in zip(study.OVERLAPS, levels(share), strict=True):
        trained = study.setting(plants.CONFIG, overlap)
        other = INCREASE * (level + common)
        planted.append(plants.attacked(rng, trained, other, INCREASE, INCREASE * NOISE))
    return plants.records(*planted)


def levels(share):
    """M_x by overlap on the curve of a share."""
    overlaps = np.array(study.OVERLAPS)
    start, end = LEVELS
    return start + (end - start) * (share * overlaps + (1 - share) * overlaps**2)
