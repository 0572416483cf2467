"""Planted records of T2."""

import numpy as np
import scipy.stats
from support import plants

from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t2 import study
from halfway.lab.studies.t2.measure import FIRST_ORDER

BOUNDARIES = [study.WITHIN, study.BEYOND]
PLANTED = {study.WITHIN: 0.05, study.BEYOND: 0.01}
"""How far each AUC lies beyond its threshold at effect 1."""
DISTANCE, FOOLED = 0.974, 0.17
"""AUC of the distance to the boundary, and the share of examples that fool B."""
COMMON = 0.93
"""Correlation of both scores among examples of one outcome; the difference of their AUCs then has
the standard deviation over pairs that was measured, .005."""
NUM_ROWS = 1797
"""Of the pool."""


def plant(rng, effect, boundary=None):
    """Outcomes of examples with known AUCs.

    Scores are normal, shifted for the fooled by what gives their AUC; losses and gradients follow
    from them, and τ is drawn for itself, so that each AUC can be put at its boundary.
    """
    config = plants.CONFIG
    size = {name: step * (0.0 if name == boundary else effect) for name, step in PLANTED.items()}
    shape = (config.num_pairs, 2, config.num_holdout)
    fooled = rng.random(shape) < FOOLED
    shared, first, second = rng.normal(size=(3, *shape))
    noise = [np.sqrt(COMMON) * shared + np.sqrt(1 - COMMON) * part for part in (first, second)]
    goals = DISTANCE + size[study.BEYOND], DISTANCE
    aligned, distance = (
        -6 + shift(goal) * fooled + part for goal, part in zip(goals, noise, strict=True)
    )
    norm = rng.lognormal(0, 0.3, shape)
    loss = distance * norm
    tau = rng.normal(size=shape) + shift(study.GUESSING + size[study.WITHIN]) * fooled
    order = rng.permuted(np.tile(np.arange(NUM_ROWS), (shape[0], 1)), axis=1)
    trained = study.decided_on(config)
    # Of each direction the surrogate is A, then B, and the target the other.
    own = np.ones(shape, bool)
    both = np.stack(
        [np.stack([own[:, 0], fooled[:, 0]], 1), np.stack([fooled[:, 1], own[:, 1]], 1)], 1
    )
    attacked = {
        "fooled": (("pair", "surrogate", "target", "example"), both),
        "clean_correct": (("pair", "model", "example"), rng.random(shape) < 0.97),
        "clean_loss": (("pair", "model", "example"), loss[:, ::-1]),
    }
    numbers = {
        "score": (aligned - loss) / config.attack.epsilon,
        "tau": tau,
        "target_norm": norm,
    }
    first_order = {
        name: (("pair", "surrogate", "example"), values) for name, values in numbers.items()
    } | {"row": (("pair", "example"), order[:, : shape[2]])}
    return plants.records(
        (TRANSFER, trained, plants.dataset(trained, {}, attacked)),
        (FIRST_ORDER, trained, plants.dataset(trained, {}, first_order)),
    )


def shift(auc):
    """The shift of a normal score of variance 1 that gives an AUC."""
    return np.sqrt(2) * float(scipy.stats.norm.ppf(auc))
