"""Planted records of T3."""

import functools

import numpy as np
from lab.studies.plants import g3
from lab.studies.plants.g3 import CONDITIONS
from support import plants

from halfway import meeting
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.t3 import linear_gaussian, study

BOUNDARIES = [study.PART]
POOLED = True
FEWER = [(contest, "NUM_RESAMPLES", 20), (contest, "NUM_PERMUTATIONS", 499)]
"""The least p-value is .002, where the study takes 10,000; intervals do not decide."""
FEWEST = [(contest, "NUM_RESAMPLES", 20), (contest, "NUM_PERMUTATIONS", 99)]
"""Where no small p-value is needed: a test by permutations has its size with any number."""
PLANTED = 1 / 3
"""−τ_K at effect 1: the condition of larger gap transfers less in two comparisons of three."""
SPREAD, NOISE = {"gap": g3.SPREAD, "M_x": 0.08}, {"gap": g3.NOISE, "M_x": 0.04}
"""Standard deviations over conditions of one ρ, and over pairs of a condition."""
NUM_REPLICATES = 50


def plant(rng, effect, boundary=None):
    """Records in which M_x follows the gap to τ_K = −`PLANTED` times `effect`."""
    tau = -PLANTED * (0.0 if boundary == study.PART else effect)
    # Normal variables of correlation r have τ = 2 arcsin(r)/π.
    correlation = np.sin(np.pi / 2 * tau)
    size = len(CONDITIONS), CONDITIONS[0].num_pairs
    places, apart = rng.normal(size=(2, size[0], 1))
    follows = correlation * places + np.sqrt(1 - correlation**2) * apart
    rates = np.array([[condition.noise_rate] for condition in CONDITIONS])
    gap = 0.2 + 0.3 * rates + SPREAD["gap"] * places + rng.normal(0, NOISE["gap"], size)
    share = 0.5 - 0.5 * rates + SPREAD["M_x"] * follows + rng.normal(0, NOISE["M_x"], size)
    own_increase = 4000 * np.exp(rng.normal(0, 0.1, (*size, 2)))
    other = share[..., None] * own_increase
    increase = np.stack(
        [
            np.stack([own_increase[..., 0], other[..., 0]], -1),
            np.stack([other[..., 1], own_increase[..., 1]], -1),
        ],
        -2,
    )
    values = {"increase": increase, "gradient_norm": own_increase / plants.CONFIG.attack.epsilon}
    numbers = {
        "increase": (("pair", "surrogate", "target"), increase[0]),
        "gradient_norm": (("pair", "surrogate"), values["gradient_norm"][0]),
    }
    first = plants.dataset(CONDITIONS[0], numbers)
    return plants.records(
        *plants.with_gaps(CONDITIONS, gap),
        *plants.alike(TRANSFER, CONDITIONS, first, values),
        linear(rng),
    )


@functools.cache
def exact():
    """Coefficients and risks of P7, by n."""
    made = meeting.linear_gaussian(
        np.array(linear_gaussian.HALF_SIZES),
        linear_gaussian.DIMENSION,
        linear_gaussian.SIGNAL,
        linear_gaussian.NOISE,
    )
    return np.asarray(made.coefficient), np.asarray(made.risk)


def linear(rng):
    """Linear models around P7."""
    sizes = np.array(linear_gaussian.HALF_SIZES)
    coefficient, risk = exact()
    cells = NUM_REPLICATES, len(sizes)
    coefficient = coefficient * rng.uniform(0.9, 1.1, cells)
    increase = np.stack([coefficient, np.ones(cells)], -1)
    dims = "replicate", "num_examples"
    trained = study.stored_at(plants.CONFIG)
    made = plants.dataset(
        trained,
        {
            "risk": (dims, risk * rng.uniform(0.5, 1.5, cells)),
            "increase": ((*dims, "target"), increase),
            "distance_from_P7": ((), np.float64(0.01)),
        },
        num_examples=sizes,
        target=linear_gaussian.TARGETS,
    )
    return linear_gaussian.LINEAR_GAUSSIAN, trained, made
