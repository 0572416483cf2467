"""Planted records of T10."""

import numpy as np
from support import plants

from halfway.lab.studies.t10 import study
from halfway.lab.studies.t10.measure import MANIFOLD_PARTS, PARTS
from halfway.lab.study.conditions import condition

BOUNDARIES = plants.CONFIG.architectures
PLANTED = 0.1
"""Difference of M_x beyond the threshold at effect 1."""
LEVELS = {"off": 0.36, "rest": 0.15, "whole": 0.6}
"""M_x of what is not on the data."""
NOISE = {"on": 0.03, "off": 0.06, "rest": 0.05, "whole": 0.03}
"""Standard deviations over pairs of M_x: the larger ones of two architectures."""
INCREASE = {"on": 4.9, "off": 1.8, "rest": 1.1, "whole": 4.9}
"""Mean increase of A's own margin loss."""
SHARES = {"on": 0.5, "off": 0.27, "rest": 0.23, "whole": 1.0}
"""Of the perturbation's energy."""


def plant(rng, effect, boundary=None):
    """Records whose part on the data leads by the threshold and .1 times `effect`."""
    config, planted = plants.CONFIG, []
    for architecture in config.architectures:
        size = 0.0 if architecture == boundary else PLANTED * effect
        levels = LEVELS | {"on": LEVELS["off"] + study.LEAD + size}
        trained = condition(config, architecture)
        num_pairs, num_examples = trained.num_pairs, trained.num_holdout
        increase = np.zeros((num_pairs, 2, 2, len(PARTS)))
        surrogate, target = np.array([0, 1]), np.array([1, 0])
        for index, part in enumerate(PARTS):
            mean = INCREASE[part]
            rise = num_examples * rng.normal(mean, 0.05 * mean, (num_pairs, 2))
            share = levels[part] + rng.normal(0, NOISE[part], (num_pairs, 1))
            increase[:, surrogate, surrogate, index] = rise
            increase[:, surrogate, target, index] = rise * share
        energy = num_examples * rng.normal(0.6, 0.01, (num_pairs, 2, 1))
        numbers = {
            "increase": (("pair", "surrogate", "target", "part"), increase),
            "energy": (("pair", "surrogate", "part"), energy * [SHARES[part] for part in PARTS]),
            "num_components": (("pair",), np.full(num_pairs, 41)),
        }
        made = plants.dataset(trained, numbers, part=PARTS)
        planted.append((MANIFOLD_PARTS, trained, made))
    return plants.records(*planted)
