"""Planted records of G4."""

import numpy as np
from support import plants

from halfway.lab.studies.g4 import study
from halfway.lab.studies.g4.measure import AGREEMENT

BOUNDARIES = [f"{study.DECIDES}, below", f"{study.DECIDES}, above"]
"""Both margins of the equivalence."""
NOISE = (0.0095, 0.011)
"""Standard deviations over pairs of error, and of disagreement minus error."""


def plant(rng, effect, boundary=None):
    """Records whose disagreement is .99 of the error at effect 1, .9 at 0."""
    ratio = study.MARGINS[0] + 0.09 * effect
    if boundary is not None:
        ratio = study.MARGINS[BOUNDARIES.index(boundary)]
    trained = study.setting(plants.CONFIG, study.DECIDES)
    error = rng.normal(0.08, NOISE[0], trained.num_pairs)
    disagreement = ratio * error + rng.normal(0, NOISE[1], trained.num_pairs)
    apart = rng.normal(0, 0.004, trained.num_pairs)
    size = float(trained.num_holdout)
    largest = rng.binomial(trained.num_holdout, 0.11, trained.num_pairs)
    numbers = {
        "num_compared": (("pair",), np.full(trained.num_pairs, size)),
        "num_disagree": (("pair",), size * disagreement),
        "num_wrong": (("pair", "model"), size * np.stack([error + apart, error - apart], 1)),
        "num_largest": (("pair",), largest),
    }
    return plants.records((AGREEMENT, trained, plants.dataset(trained, numbers)))
