"""Planted records of T7."""

import numpy as np
from support import plants

from halfway.lab.studies.t7 import study
from halfway.lab.studies.t7.measure import ENSEMBLES, block_sizes, compared_on, other_ways

HALF = 0.6
"""k_half."""
PLANTED = 0.05
"""Success rate of all surrogates above that of one, at effect 1."""
REMAINS = 0.1
"""Share of the margin that alignment is off by at effect 1."""
SIZES = block_sizes(plants.CONFIG.num_pairs)
BOUNDARIES = [f"k = {k}, {side}" for k in SIZES for side in ("below", "above")] + [study.SUCCESS]
"""Both margins at each k, and the rise of success."""


def plant(rng, effect, boundary=None):
    """Records off the law by .03 at effect 0 and by a tenth of it at effect 1.

    The success rate rises by .05 times `effect`.
    """
    trained = compared_on(plants.CONFIG)
    size, signal, last = trained.num_pairs, 1000.0, len(SIZES) - 1
    shared = rng.normal(0, 1, (2, size))  # of a model's square and its product with others
    products = signal * (1 + 0.03 * shared)
    squares = signal * (1 + HALF) * (1 + 0.05 * shared + 0.035 * rng.normal(0, 1, (2, size)))
    off = np.full(len(SIZES), study.MARGIN * (1 - (1 - REMAINS) * effect))
    for place, k in enumerate(SIZES):
        if boundary in (f"k = {k}, below", f"k = {k}, above"):
            off[place] = -study.MARGIN if boundary.endswith("below") else study.MARGIN
    laws = np.array([study.law(k, HALF) for k in SIZES])
    rise = 0.0 if boundary == study.SUCCESS else PLANTED * effect
    level, noise = rng.normal(0.21, 0.015, size), rng.normal(0, 0.012, size)
    share = level[:, None] + (rise + noise)[:, None] * np.arange(len(SIZES)) / last
    counted = np.full(size, 0.95 * plants.CONFIG.num_holdout)
    ways = other_ways()
    values = {
        "partner_product": (("pair",), products[0]),
        "partner_square": (("pair",), squares[0]),
        "target_square": (("pair",), squares[1]),
        "num_examples": (("pair",), counted),
        "ensemble_product": (
            ("pair", "num_surrogates"),
            np.repeat(products[1][:, None], len(SIZES), 1),
        ),
        "ensemble_square": (
            ("num_surrogates",),
            (signal / (laws + off)) ** 2 / (signal * (1 + HALF)),
        ),
        "num_fooled": (("pair", "num_surrogates"), counted[:, None] * share),
        "num_fooled_by": (
            ("pair", "way"),
            np.repeat((counted * level)[:, None], len(ways), 1),
        ),
    }
    # Every pair has a target here, where a measurement has one in the second half of them.
    made = plants.dataset(trained, values, num_surrogates=SIZES, way=ways)
    return plants.records((ENSEMBLES, trained, made))
