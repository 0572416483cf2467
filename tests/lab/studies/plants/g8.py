"""Planted records of G8."""

import numpy as np
from support import plants

from halfway.lab.studies.g8 import study
from halfway.lab.studies.g8.measure import FRESH, MEMORIZATION, PASSES, PRODUCTS

PLANTED = 0.65
"""κ(32 passes) − κ(1) at effect 1."""
NOISE = {150: (0.28, 0.08), 600: (0.4, 0.2)}
"""Standard deviations over pairs of κ after one pass and after 32, by n."""
FRESH_NOISE = 0.036
"""The same on fresh data."""
BELOW, ABOVE = (f"{study.FRESH_PART}, {side}" for side in ("below", "above"))
BOUNDARIES = [BELOW, ABOVE, *study.cells(plants.CONFIG)]


def plant(rng, effect, boundary=None):
    """Records with κ rising by `PLANTED` times `effect` in every cell.

    On fresh data κ is at its upper margin at effect 0, beyond it below that, 0 from effect 1 on.
    """
    planted = []
    share = np.linspace(0, 1, len(PASSES))
    for name, trained in study.cells(plants.CONFIG).items():
        rise = 0.0 if name == boundary else PLANTED * effect
        early, late = NOISE[trained.num_examples]
        first = 0.3 + rng.normal(0, early, (trained.num_pairs, 1, 1))
        last = 0.3 + rise + rng.normal(0, late, (trained.num_pairs, 1, 1))
        kappa = np.repeat((1 - share) * first + share * last, 2, 1)  # both directions alike
        dims = "pair", "model", "passes"
        numbers = {part: (dims, v) for part, v in _made(kappa, trained.num_examples).items()}
        planted.append((MEMORIZATION, trained, plants.dataset(trained, numbers, passes=PASSES)))
    trained = planted[0][1]
    planned = study.MARGIN * max(0.0, 1 - effect)
    fresh = {BELOW: -study.MARGIN, ABOVE: study.MARGIN}.get(boundary, planned)
    kappa = fresh + rng.normal(0, FRESH_NOISE, (trained.num_pairs, 1))
    numbers = {part: (("pair", "step"), v) for part, v in _made(kappa, trained.batch_size).items()}
    planted.append((FRESH, trained, plants.dataset(trained, numbers, step=[0])))
    return plants.records(*planted)


def _made(kappa, size):
    """Inner products and a covariance that make a κ."""
    trace, other = np.full(kappa.shape, 30.0), np.full(kappa.shape, 0.5)
    own_product = other + (1 - kappa) * trace / size
    return dict(zip(PRODUCTS, (own_product, other, trace), strict=True))
