"""Planted records of T8."""

import numpy as np
from support import plants

from halfway.lab.studies.t8 import study
from halfway.lab.studies.t8.measure import (
    BOUNDS,
    DIMENSIONS,
    FOOLED,
    LENGTH,
    NUM_DIRECTIONS,
    SIDES,
    SUBSPACE,
)

BOUNDARIES = [study.PART]
PLANTED = 0.05
"""Lead of the rate along directions that fool A, at effect 1."""
RATE, NOISE = 0.2, 0.03
"""Rate along the other directions, and the standard deviation over pairs of the lead."""
STEPS = [[LENGTH, LENGTH], [1.22, 1.18]]
GAIN = [[1.0, 1.0], [0.99, 0.75]]
"""Mean length and first-order gain of a step, by bounds and side."""
NUM_DIMENSIONS = [14.9, 6.7, 2.2]
"""Mean numbers by dimension."""


def plant(rng, effect, boundary=None):
    """Records in which B's rate leads by .05 times `effect` along what fools A."""
    trained = study.decided_on(plants.CONFIG)
    num_pairs, num_examples = trained.num_pairs, trained.num_holdout
    lead = 0.0 if boundary else PLANTED * effect
    mixed = np.round(rng.normal(0.5, 0.02, (num_pairs, 2)) * num_examples)
    # Both directions of a pair share their noise, which is the most they can.
    beside = RATE + rng.normal(0, NOISE, num_pairs)
    along = beside + lead + rng.normal(0, NOISE, num_pairs)
    rate = np.stack([np.stack([along, beside], -1)] * len(BOUNDS), 1)[:, None]
    fooled_a = rng.integers(0, NUM_DIRECTIONS + 1, (num_pairs, 2, num_examples))
    both = rng.binomial(fooled_a, 0.3)
    fooled_b = both + rng.binomial(NUM_DIRECTIONS - fooled_a, RATE)
    directions = np.stack([np.stack([fooled_a, fooled_b, both], 2)] * len(BOUNDS), 2)
    dims = "pair", "surrogate"
    counted = np.full((num_pairs, 2), float(num_examples))
    numbers = {
        name: ((*dims, "bounds", "side"), mixed[:, :, None, None] * mean)
        for name, mean in (("rate", rate), ("length", STEPS), ("gain", GAIN))
    } | {
        "step_length": ((), np.array(LENGTH)),
        "num_mixed": ((*dims, "bounds"), np.stack([mixed] * len(BOUNDS), -1)),
        "num_examples": (dims, counted),
        "num_directions": ((*dims, "bounds", "fooled"), directions.sum(-1)),
        "num_dimensions": ((*dims, "dimension"), counted[..., None] * NUM_DIMENSIONS),
    }
    outcomes = {"directions": ((*dims, "bounds", "fooled", "example"), directions)}
    made = plants.dataset(
        trained,
        numbers,
        outcomes,
        bounds=list(BOUNDS),
        side=SIDES,
        fooled=FOOLED,
        dimension=DIMENSIONS,
    )
    return plants.records((SUBSPACE, trained, made))
