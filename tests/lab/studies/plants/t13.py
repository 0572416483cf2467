"""Planted records of T13."""

import numpy as np
from support import plants

from halfway.lab.measurements.grid import AGREEMENT, SPACES, TERMS
from halfway.lab.studies.t13 import study
from halfway.lab.studies.t13.measure import KERNELS, LOSSES, RATES, SPECTRA, setting, sizes

BOUNDARIES = [study.AGREES, study.BEATS]
NOISE = 0.02
"""Standard deviation over pairs of μ_f."""
TRUE = 0.6
"""μ_f of every cell."""
SIZES = sizes(plants.CONFIG)


def plant(rng, effect, boundary=None):
    """Records whose prediction errs by .05 − .02 effect, and distances by .03 effect more."""
    near = study.NEAR - 0.02 * effect
    lead = 0.03 * effect
    if boundary == study.AGREES:
        near = study.NEAR
    if boundary == study.BEATS:
        lead = 0.0
    signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
    predicted = TRUE + np.stack([near * signs, (near + lead) * -signs])
    planted = [
        _agreement(rng, setting(plants.CONFIG, size, rate, LOSSES[0]))
        for size in SIZES
        for rate in RATES
    ]
    condition = setting(plants.CONFIG, SIZES[0], RATES[0], LOSSES[0])
    cells = "kernel", "num_examples", "noise_rate"
    made = plants.dataset(
        condition,
        {
            "predicted": (cells, predicted),
            "predicted_slopes": (cells, predicted - 0.1),
        },
        kernel=KERNELS,
        num_examples=SIZES,
        noise_rate=RATES,
    )
    return plants.records(*planted, (SPECTRA, condition, made))


def _agreement(rng, condition):
    """Agreement of one condition; the same μ in every space."""
    num_pairs = condition.num_pairs
    squares = 1000 * np.exp(rng.normal(0, 0.05, (num_pairs, len(SPACES))))
    mu = TRUE + rng.normal(0, NOISE, (num_pairs, len(SPACES)))
    terms = np.stack([mu * squares, squares, squares], -1)
    made = plants.dataset(
        condition, {"terms": (("pair", "space", "term"), terms)}, space=SPACES, term=TERMS
    )
    return AGREEMENT, condition, made
