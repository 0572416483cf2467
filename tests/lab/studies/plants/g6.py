"""Planted records of G6."""

import numpy as np
from support import plants

from halfway import landscapes
from halfway.lab.studies.g6 import study
from halfway.lab.studies.g6.measure import BARRIERS, LOSSES, MATCHED, RAW

PLANTED = 0.05
"""By which the matched barrier lies below half of the barrier as trained, at effect 1."""
RAW_HEIGHT = 0.12
"""Mean barrier as trained."""
NOISE = (0.012, 0.065)
"""Standard deviations over pairs of the matched barrier, and of the raw one."""
CHANCE, ERROR = 0.88, 0.05
"""Errors on S of chance and of the ends."""
NUM_POINTS = 5
"""Of each curve, the middle one among them."""
BOUNDARIES = plants.CONFIG.architectures


def plant(rng, effect, boundary=None):
    """Records whose matched barrier is half the raw one minus .05 times `effect`."""
    planted = []
    for architecture in plants.CONFIG.architectures:
        trained, *others = study.compared(plants.CONFIG, architecture)
        lead = 0.0 if boundary == architecture else PLANTED * effect
        raw = RAW_HEIGHT + rng.normal(0, NOISE[1], trained.num_pairs)
        level = study.SHARE * RAW_HEIGHT - lead
        matched = level + rng.normal(0, NOISE[0], trained.num_pairs)
        heights = np.stack([raw, matched, *[0.5 * matched] * len(others)], 1)
        # Of both losses, above either baseline: the ends are equal.
        barrier = np.broadcast_to(heights[..., None, None], (*heights.shape, 2, 2))
        t = np.linspace(0, 1, NUM_POINTS)
        curve = ERROR + barrier[..., :1] * 4 * t * (1 - t)
        made = plants.dataset(
            trained,
            {
                "chance": (("pair",), np.full(trained.num_pairs, CHANCE)),
                "curve": (("pair", "path", "loss", "t"), curve),
                "barrier": (("pair", "path", "loss", "baseline"), barrier),
            },
            path=(RAW, MATCHED, *(study.described(plants.CONFIG) if others else ())),
            loss=LOSSES,
            t=t,
            baseline=landscapes.BASELINES,
        )
        planted.append((BARRIERS, trained, made))
    return plants.records(*planted)
