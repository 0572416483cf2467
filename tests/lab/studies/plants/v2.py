"""Planted records of V2."""

import numpy as np
from support import plants

from halfway.lab.measurements.ensembles import ALIGNMENT, SMALL_SIZES, block_sizes, compared_on, law
from halfway.lab.studies.v2 import study

HALF = 0.6
"""k_half."""
REMAINS = 0.1
"""Share of the margin that alignment is off by at effect 1."""
SIZES = block_sizes(plants.CONFIG.num_pairs)
BOUNDARIES = [f"k = {k}, {side}" for k in SIZES for side in ("below", "above")]
"""Both margins at each k."""
SIGNAL = 1000.0


def plant(rng, effect, boundary=None):
    """Records off the law by .03 at effect 0 and by a tenth of it at effect 1."""
    off = np.full(len(SIZES), study.MARGIN * (1 - (1 - REMAINS) * effect))
    for place, k in enumerate(SIZES):
        if boundary in (f"k = {k}, below", f"k = {k}, above"):
            off[place] = -study.MARGIN if boundary.endswith("below") else study.MARGIN
    return plants.records(aligned(rng, off))


def aligned(rng, off, noise=1.0, num_examples=3):
    """Alignment that is off the law by so much at each k; noise is relative to the study's."""
    trained = compared_on(plants.CONFIG)
    size = trained.num_pairs
    shared = noise * rng.normal(0, 1, (2, size))  # of a model's square and its product with others
    products = SIGNAL * (1 + 0.03 * shared)
    single = noise * rng.normal(0, 1, (2, size))
    squares = SIGNAL * (1 + HALF) * (1 + 0.05 * shared + 0.035 * single)
    laws = np.array([law(k, HALF) for k in SIZES])
    ensemble = (SIGNAL / (laws + off)) ** 2 / (SIGNAL * (1 + HALF))

    def at_examples(values):
        """Sums over examples, spread over them alike."""
        return np.repeat(np.asarray(values)[..., None], num_examples, -1) / num_examples

    groups = 1 + 0.02 * noise * rng.normal(0, 1, SIZES[-1] // 2)
    groups /= groups.mean()
    values = {
        "partner_product": (("pair", "example"), at_examples(products[0])),
        "partner_square": (("pair", "example"), at_examples(squares[0])),
        "target_square": (("pair", "example"), at_examples(squares[1])),
        "ensemble_product": (
            ("num_surrogates", "pair", "example"),
            at_examples(np.repeat(products[1][None], len(SIZES), 0)),
        ),
        "ensemble_square": (("num_surrogates", "example"), at_examples(ensemble)),
        "group_product": (("group", "pair"), groups[:, None] * products[1]),
        "group_square": (("small_size", "group"), ensemble[:2, None] * groups),
    }
    # Every pair has a target here, where a measurement has one in the second half of them.
    made = plants.dataset(
        trained,
        values,
        num_surrogates=SIZES,
        small_size=SMALL_SIZES,
    )
    return ALIGNMENT, trained, made
