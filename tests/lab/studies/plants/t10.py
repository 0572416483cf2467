"""Planted records of T10."""

import numpy as np
from support import plants

from halfway.lab.studies.t10 import study
from halfway.lab.studies.t10.measure import MANIFOLD_PARTS, MOVES, PARTS
from halfway.lab.study.conditions import condition

BOUNDARIES = [study.PART]
PLANTED = 0.1
"""Difference of M_x at effect 1, twice the margin; equal at effect 0 and below."""
LEVEL, NOISE = 0.4, 0.035
"""M_x of the off-part, and the standard deviation over pairs of each part's M_x."""
INCREASE = {"on": 9.9, "off": 4.4, "whole": 15.0}
"""Mean increase of A's own margin loss."""
FOOLED = [[0.43, 0.09, 0.6], [0.29, 0.02, 0.4]]
"""Shares of A and of B that are fooled, by part."""
SHARES = {"attack": 0.51, "noise": 0.34, "on": 0.98, "off": 0.03, "whole": 0.51}
"""Of the energy that lie on the subspace."""


def plant(rng, effect, boundary=None):
    """Records whose M_x differ by .1 times `effect`, and not at all below 0.

    The null is one point, with the claim on both of its sides. Its reverse is equality, which at a
    third of the noise is shown every time; at all of it in about half of the draws.
    """
    config = plants.CONFIG
    trained = condition(config, config.architectures[0])
    num_pairs, num_examples = trained.num_pairs, trained.num_holdout
    difference = 0.0 if boundary else PLANTED * max(effect, 0.0)
    noise = NOISE if effect >= 0 else NOISE / 3
    increase, num_fooled = np.zeros((2, num_pairs, 2, 2, len(PARTS)))
    surrogate, target = np.array([0, 1]), np.array([1, 0])
    for index, (part, mean) in enumerate(INCREASE.items()):
        rise = num_examples * rng.normal(mean, 0.05 * mean, (num_pairs, 2))
        share = LEVEL + (difference if part == "on" else 0.0)
        increase[:, surrogate, surrogate, index] = rise
        increase[:, surrogate, target, index] = rise * (
            share + rng.normal(0, noise, (num_pairs, 1))
        )
    for model, places in enumerate((surrogate, target)):
        drawn = rng.binomial(num_examples, FOOLED[model], (num_pairs, 2, len(PARTS)))
        num_fooled[:, surrogate, places] = drawn
    dims = "pair", "surrogate"
    counted = np.full((num_pairs, 2), float(num_examples))
    energy = counted[..., None] * rng.normal(0.6, 0.01, (num_pairs, 2, len(MOVES)))
    numbers = {
        "increase": ((*dims, "target", "part"), increase),
        "num_fooled": ((*dims, "target", "part"), num_fooled),
        "num_right": (dims, counted),
        "num_examples": (dims, counted),
        "num_shortened": (dims, 0 * counted),
        "num_unequal": ((*dims, "part"), np.zeros((num_pairs, 2, len(PARTS)))),
        "energy_on": ((*dims, "move"), energy * [SHARES[move] for move in MOVES]),
        "energy": ((*dims, "move"), energy),
        "expected_share": ((), 0.25),
    }
    made = plants.dataset(trained, numbers, part=PARTS, move=MOVES)
    return plants.records((MANIFOLD_PARTS, trained, made))
