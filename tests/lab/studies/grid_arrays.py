"""Records of the whole grid with given transfer and given measures, for T3 and T12."""

import numpy as np
from support import plants

from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import AGREEMENT, SPACES, TERMS
from halfway.lab.measurements.learning import SAMPLES
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t3 import law

PLAN = grid.design(plants.CONFIG)
BASE = {"transfer": 0.6, law.LAW: 0.85, law.GAP: 0.05}
"""M_x and measures of the base; 0.6 where nothing is said."""
NOISE = 0.02
"""Standard deviation over pairs of M_x and of each measure, around the condition's."""
SHARED = 0.5
"""The share of that variance that a pair has in all conditions."""
NUM_EXAMPLES = 40
_SPACES = dict(zip((law.LAW, law.JACOBIANS, law.NOISE_IMAGES, law.GRADIENTS), SPACES, strict=True))


def planted(rng, truth, measures):
    """Transfer, agreement and learning of every condition.

    Args:
      rng: consumed.
      truth: `[N]` M_x of the interventions.
      measures: `[1 + N]` by name of a predictor.
    """
    conditions = PLAN.conditions
    size = len(conditions), conditions[0].num_pairs
    common = rng.normal(size=size[1])

    def around(values, noise=NOISE):
        apart = rng.normal(size=size)
        drawn = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * apart
        return np.asarray(values)[:, None] + noise * drawn

    share = around(np.r_[BASE["transfer"], truth])
    own_increase = 4000 * np.exp(rng.normal(0, 0.05, (*size, 2)))
    other = share[..., None] * own_increase
    increase = np.stack(
        [
            np.stack([own_increase[..., 0], other[..., 0]], -1),
            np.stack([other[..., 1], own_increase[..., 1]], -1),
        ],
        -2,
    )
    first = plants.dataset(
        conditions[0], {"increase": (("pair", "surrogate", "target"), increase[0])}
    )
    return [
        *plants.alike(TRANSFER, conditions, first, {"increase": increase}),
        *_agreement(conditions, {name: around(v) for name, v in measures.items()}),
        *_learning(conditions, around(measures[law.MEETING]), around(measures[law.GAP])),
    ]


def _agreement(conditions, measured):
    """Agreement with given coefficients, shares and similarities `[1 + N, P]` by name."""
    shape = measured[law.LAW].shape
    terms = np.ones((*shape, len(SPACES), len(TERMS)))
    for name, space in _SPACES.items():
        terms[..., SPACES.index(space), TERMS.index("product")] = measured[name]
    values = {
        "terms": 1000 * terms,
        "accuracy": np.repeat(measured[law.ACCURACY][..., None], 2, -1),
        "agreement": measured[law.PREDICTIONS],
        "cka": measured[law.CKA],
        "cosine": measured[law.COSINE],
    }
    dims = {"terms": ("pair", "space", "term"), "accuracy": ("pair", "model")}
    first = plants.dataset(
        conditions[0],
        {name: (dims.get(name, ("pair",)), value[0]) for name, value in values.items()},
        space=SPACES,
        term=TERMS,
    )
    return plants.alike(AGREEMENT, conditions, first, values)


def _learning(conditions, meeting, gap):
    """Learning with a given M_θ on S and a given gap on S: M_θ by the constant on S."""
    own_start, own_end = 0.9, 0.001
    ends = np.full((*gap.shape, 2, len(SAMPLES)), own_end)
    ends[..., 1:] += gap[..., None, None]
    starts = np.full(ends.shape, own_start)
    starts[..., 1:] = ends[..., 1:] + (meeting * (own_start - own_end))[..., None, None]
    walks = np.repeat(starts[..., None], len(conditions[0].probe_steps), -1)
    walks[..., -1] = ends
    *_, first = plants.learned(conditions[0], ends[0], starts[0])
    values = {}
    for loss in plants.LOSSES:
        values |= {loss: walks, f"constant_{loss}": starts}
    return plants.alike(plants.LEARNING, conditions, first, values)
