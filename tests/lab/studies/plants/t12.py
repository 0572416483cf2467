"""Planted records of T12."""

import numpy as np
from support import plants

from halfway.lab.studies.t12 import partial_ranks
from halfway.lab.studies.t12.measure import TRANSFER_FACTORS, partners, units
from halfway.lab.studies.t12.study import EXPECTED, PREDICTORS

BOUNDARIES = PREDICTORS
POOLED = True
FEWER = [(partial_ranks, "NUM_PERMUTATIONS", 1299), (partial_ranks, "NUM_RESAMPLES", 50)]
"""Three tests, Holm over twenty: a reverse needs p < .0008."""
FEWEST = [(partial_ranks, "NUM_PERMUTATIONS", 199), (partial_ranks, "NUM_RESAMPLES", 50)]
"""Where no small p-value is needed: a test by permutations has its size with any number."""
WEIGHT = 0.8
"""Slope of each predictor at effect 1: a partial rank correlation of .5 as measured."""
SPREADS = {"surrogate": 0.35, "target": 0.7, "cell": 0.62}
"""Standard deviations of what the predictors do not explain, as on digits; 1 in all."""
NUM_EXAMPLES = 40
COUNTED = 500.0
CONDITIONS = [unit.condition for unit in units(plants.CONFIG)]


def plant(rng, effect, boundary=None):
    """Records in which each predictor moves transfer by `WEIGHT` times `effect`.

    Transfer is the sum of the three, of equal weight, and of what surrogates, targets and cells
    have of their own.
    """
    size, num_pairs = len(CONDITIONS), CONDITIONS[0].num_pairs
    weights = {
        name: 0.0 if name == boundary else EXPECTED[name].sign * WEIGHT * effect
        for name in PREDICTORS
    }
    steep, varied = rng.normal(size=(2, size))
    shape = (size, size)
    aligned = rng.normal(size=(size, 1)) + rng.normal(size=size) + rng.normal(size=shape)
    aligned = aligned / np.sqrt(3)
    rest = (
        SPREADS["surrogate"] * rng.normal(size=(size, 1))
        + SPREADS["target"] * rng.normal(size=size)
        + SPREADS["cell"] * rng.normal(size=shape)
    )
    score = weights["size"] * steep + weights["alignment"] * aligned + rest
    score = score + weights["variability"] * varied[:, None]
    wide = (size, num_pairs, size, partners(num_pairs).shape[1])
    rate = 0.3 + 0.04 * score[:, None, :, None] + rng.normal(0, 0.02, wide)
    tau = 0.4 + 0.1 * aligned[:, None, :, None] + rng.normal(0, 0.02, wide)
    spread = np.exp(0.5 * varied)[:, None, None]
    margin = 1 + 0.3 * spread * rng.normal(size=(size, num_pairs, NUM_EXAMPLES))
    steepness = np.exp(0.5 * steep[:, None] + rng.normal(0, 0.05, (size, num_pairs)))
    crossed = {
        "num_examples": np.full(wide, COUNTED),
        "num_fooled": COUNTED * rate,
        "num_by_noise": np.full(wide, 0.01 * COUNTED),
        "tau": tau,
    }
    dims = "pair", "target_condition", "partner"
    numbers = {name: (dims, values[0]) for name, values in crossed.items()}
    first = plants.dataset(
        CONDITIONS[0],
        numbers | {"size": (("pair",), steepness[0])},
        {"margin": (("pair", "example"), margin[0])},
        target_condition=[condition.id for condition in CONDITIONS],
    )
    values = crossed | {"size": steepness, "margin": margin}
    return plants.records(*plants.alike(TRANSFER_FACTORS, CONDITIONS, first, values))
