"""Planted records of G6."""

import numpy as np
from support import plants

from halfway import landscapes
from halfway.lab.studies.g6 import study
from halfway.lab.studies.g6.measure import BARRIERS, LOSSES, MATCHED, RAW

PLANTED = (0.014, 0.1)
"""Matched barrier below its level, and raw one above the matched, by this much at effect 1."""
NOISE = (0.012, 0.065)
"""Standard deviations over pairs of the matched barrier, and of the raw one above it."""
NUM_POINTS = 5
"""Of each curve, the middle one among them."""
BOUNDARIES = [study.LOW, study.GAIN]


def plant(rng, effect, boundary=None):
    """Records with a matched barrier of .02 − .014 and a raw one .1 above it, at effect 1."""
    trained = study.compared(plants.CONFIG)[0]
    low, gain = (
        0.0 if boundary == name else size * effect
        for name, size in zip(BOUNDARIES, PLANTED, strict=True)
    )
    matched = rng.normal(study.LEVEL - low, NOISE[0], trained.num_pairs)
    raw = matched + rng.normal(gain, NOISE[1], trained.num_pairs)
    others = study.described(plants.CONFIG)
    heights = np.stack([raw, matched, *[0.5 * matched] * len(others)], 1)
    # Of both losses, above either baseline: the ends are equal.
    barrier = np.broadcast_to(heights[..., None, None], (*heights.shape, 2, 2))
    t = np.linspace(0, 1, NUM_POINTS)
    curve = 0.1 + barrier[..., :1] * 4 * t * (1 - t)
    made = plants.dataset(
        trained,
        {
            "curve": (("pair", "path", "loss", "t"), curve),
            "barrier": (("pair", "path", "loss", "baseline"), barrier),
        },
        path=(RAW, MATCHED, *others),
        loss=LOSSES,
        t=t,
        baseline=landscapes.BASELINES,
    )
    return plants.records((BARRIERS, trained, made))
