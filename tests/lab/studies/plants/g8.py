"""Planted records of G8."""

import numpy as np
from support import plants

from halfway.lab.measurements.fresh import PRODUCTS
from halfway.lab.studies.g8 import study
from halfway.lab.studies.g8.measure import MEMORIZATION, PASSES

PLANTED = 0.2
"""κ after 32 passes over n ÷ 4 minus that after 8 passes over n, at effect 1."""
NOISE = (0.1, 0.3)
"""Standard deviations over pairs of κ in a cell of the smaller and of the larger n."""
BOUNDARIES = [study.PART]


def plant(rng, effect, boundary=None):
    """Records with κ higher by .2 times `effect` after more passes, in every cell alike."""
    planted = []
    lead = 0.0 if boundary else PLANTED * effect
    levels = dict(zip(study.sizes(plants.CONFIG), (0.5 + lead, 0.5), strict=True))
    noises = dict(zip(levels, NOISE, strict=True))
    passes_of = dict(zip(levels, (study.MANY, study.FEW), strict=True))
    for trained in study.cells(plants.CONFIG).values():
        size = trained.num_examples
        share = np.minimum(1, np.array(PASSES) / passes_of[size])
        level = levels[size] + rng.normal(0, noises[size], (trained.num_pairs, 1, 1))
        kappa = np.repeat(share * level, 2, 1)  # both directions alike
        dims = "pair", "model", "passes"
        numbers = {part: (dims, v) for part, v in made_of(kappa, size).items()}
        planted.append((MEMORIZATION, trained, plants.dataset(trained, numbers, passes=PASSES)))
    return plants.records(*planted)


def made_of(kappa, size):
    """Inner products and a covariance that make a κ."""
    trace, other = np.full(kappa.shape, 30.0), np.full(kappa.shape, 0.5)
    own_product = other + (1 - kappa) * trace / size
    return dict(zip(PRODUCTS, (own_product, other, trace), strict=True))
