"""Planted records of T7."""

import numpy as np
from lab.studies.plants import v2
from scipy import special
from support import plants

from halfway.lab.measurements.ensembles import SMALL_SIZES, block_sizes, compared_on, law
from halfway.lab.studies.t7 import study
from halfway.lab.studies.t7.measure import ATTACKED, ENSEMBLES, other_ways

GAIN = 0.08
"""Success of all surrogates above that of one, at effect 1 and beyond."""
ONE = 0.2
"""Success of one surrogate."""
REMAINS = 0.1
"""Share of the margin that the prediction is off by at effect 1."""
SIZES = block_sizes(plants.CONFIG.num_pairs)
BELOW, ABOVE = (f"{study.LAW}, {side}" for side in ("below", "above"))
BOUNDARIES = [BELOW, ABOVE, study.SUCCESS]
IMPLIED = [study.SUCCESS]
"""Where the gain is 0 no prediction is within a share of it: the first test fails too."""
NUM_EXAMPLES = 40
NOISE = {
    "pair": (0.018, 0.0028),
    "example": (0.08, 0.0053),
    "outcome": (0.02, 0.002),
    "group": (0.005, 0.0028),
}
"""Standard deviations of success over targets, examples, single outcomes and groups: what all
numbers of surrogates share, which moves the level alone, and what each has for itself.

The prediction errs by .0045, as on digits; a group is two surrogates.
"""


def plant(rng, effect, boundary=None):
    """Records whose gain is .08, predicted to a tenth of the margin, at effect 1.

    At effect 0 the prediction is at its upper margin, and beyond it below that; at the boundary of
    the gain's null nothing is gained.
    """
    trained = compared_on(plants.CONFIG)
    slope = 1 - REMAINS if effect > 0 else 1.5
    off = study.MARGIN * (1 - slope * effect)
    off = {BELOW: -study.MARGIN, ABOVE: study.MARGIN}.get(boundary, off)
    gain = 0.0 if boundary == study.SUCCESS else GAIN
    levels = _levels(gain, off)
    size = trained.num_pairs
    rates = _noisy(
        rng,
        levels,
        {"pair": (size, 1), "example": (1, NUM_EXAMPLES), "outcome": (size, NUM_EXAMPLES)},
    )
    num_groups = SIZES[-1] // 2
    groups = _noisy(rng, 0 * levels, {"group": (num_groups, 1)})
    mean = groups.mean(1, keepdims=True)
    rates = rates + mean
    # With a group left out each of the others counts a seventh and not an eighth.
    groups = (groups - mean) / (num_groups - 1)
    places = [SIZES.index(k) for k in (*SMALL_SIZES, SIZES[-1])]
    without = rates[places].mean(-1)[:, None] - groups[places]
    ways = other_ways()
    values = {
        "fooled": (("num_surrogates", "pair", "example"), rates),
        "fooled_without": (("attacked", "group", "pair"), without),
        "fooled_by": (("pair", "way"), np.repeat(rates[0].mean(-1)[:, None], len(ways), 1)),
        "right": (("pair",), np.full(size, 0.95)),
    }
    made = plants.dataset(
        trained,
        values,
        num_surrogates=SIZES,
        attacked=ATTACKED,
        way=ways,
    )
    exact = v2.aligned(rng, np.zeros(len(SIZES)), noise=0.3, num_examples=NUM_EXAMPLES)
    return plants.records(exact, (ENSEMBLES, trained, made))


def _levels(gain, off):
    """Success at each k, on a line of its logit but for all surrogates, which the line misses."""
    laws = np.array([law(k, v2.HALF) for k in SIZES])
    last = ONE + gain
    start, end = special.logit([ONE, last + off * gain])
    levels = special.expit(start + (end - start) * (laws - laws[0]) / (laws[-1] - laws[0]))
    levels[-1] = last
    return levels


def _noisy(rng, levels, shapes):
    """Levels `[T]` with noise that numbers of surrogates share, but for a part of each."""
    drawn = levels[:, None, None]
    for name, shape in shapes.items():
        shared, single = NOISE[name]
        drawn = drawn + shared * rng.normal(0, 1, (1, *shape))
        drawn = drawn + single * rng.normal(0, 1, (len(levels), *shape))
    return drawn
