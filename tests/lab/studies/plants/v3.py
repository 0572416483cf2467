"""Planted records of V3."""

import numpy as np
from lab.studies.plants.g8 import made_of
from support import plants

from halfway.lab.measurements import fresh
from halfway.lab.measurements.fresh import FRESH
from halfway.lab.studies.v3 import study

NOISE = 0.05
"""Standard deviation over runs of κ, pooled over steps."""
NUM_STEPS = 12
BOUNDARIES = [f"{study.PART}, {side}" for side in ("below", "above")]


def plant(rng, effect, boundary=None):
    """Records with κ at its upper margin at effect 0, beyond it below that, 0 from effect 1 on."""
    trained = fresh.fresh_condition(plants.CONFIG)
    sides = dict(zip(BOUNDARIES, (-study.MARGIN, study.MARGIN), strict=True))
    kappa = sides.get(boundary, study.MARGIN * max(0.0, 1 - effect))
    kappa = kappa + rng.normal(0, NOISE, (trained.num_pairs, 1))
    kappa = np.repeat(kappa, NUM_STEPS, 1)
    numbers = {
        name: (("pair", "step"), values)
        for name, values in made_of(kappa, trained.batch_size).items()
    } | {"of_pool": ((), np.array(0.0))}
    made = plants.dataset(trained, numbers, step=np.arange(NUM_STEPS))
    return plants.records((FRESH, trained, made))
