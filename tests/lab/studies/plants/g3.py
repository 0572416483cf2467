"""Planted records of G3."""

import numpy as np
from support import plants

from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import COMPLEXITY, RIVALS
from halfway.lab.studies.g3 import contest, study

BOUNDARIES = [study.PART]
POOLED = True
FEWER = [(contest, "NUM_RESAMPLES", 200)]
"""A standard error to 5 %, where the study takes 10,000."""
FEWEST = [(contest, "NUM_RESAMPLES", 60)]
"""A standard error to 9 %, where no small p-value is needed."""
CORRELATIONS = (0.85, 0.45, 0.2)
"""With the gap, across conditions: n_half, the best rival, the others."""
SPREAD, NOISE = 0.04, 0.02
"""Standard deviation of the gap over conditions of one ρ, and over pairs of a condition."""
CONDITIONS = [cell.condition for cell in grid.cells(plants.CONFIG)]


def plant(rng, effect, boundary=None):
    """Records in which n_half and all rivals follow the gap to a given correlation.

    At effect 0, and at the boundary, the best rival follows it as n_half does.
    """
    strong, weak, others = CORRELATIONS
    step = (strong - weak) * (0.0 if boundary == study.PART else effect)
    trial, best = strong + min(step, 0.0), max(strong - max(step, 0.0), others)
    correlations = np.array([trial, best, *[others] * (len(RIVALS) - 1)])
    number, num_pairs, num_measures = len(CONDITIONS), CONDITIONS[0].num_pairs, len(correlations)
    # Of each condition in turn: its place, then its pairs; of each measure its level, then models.
    drawn = rng.normal(size=(number, 1 + num_pairs + num_measures * (1 + 2 * num_pairs)))
    places, noise, rest = np.split(drawn, [1, 1 + num_pairs], 1)
    rates = np.array([[condition.noise_rate] for condition in CONDITIONS])
    gap = 0.2 + 0.2 * rates + SPREAD * places + NOISE * noise
    rest = rest.reshape(number, num_measures, 1 + 2 * num_pairs)
    levels = correlations * places + np.sqrt(1 - correlations**2) * rest[..., 0]
    models = rest[..., 1:].reshape(number, num_measures, num_pairs, 2)
    follows = np.moveaxis(levels[..., None, None] + 0.3 * models, 1, 0)
    signal = np.full(follows.shape[1:], 2.0)
    values = {
        "early_signal": signal,
        "early_noise": signal * np.exp(4 + 0.2 * follows[0]),
        "rivals": np.moveaxis(5 + follows[1:], 0, -1),
    }
    both = "pair", "model"
    dims = {"early_signal": both, "early_noise": both, "rivals": (*both, "measure")}
    numbers = {name: (dims[name], value[0]) for name, value in values.items()}
    first = plants.dataset(CONDITIONS[0], numbers, measure=list(RIVALS))
    return plants.records(
        *plants.with_gaps(CONDITIONS, gap), *plants.alike(COMPLEXITY, CONDITIONS, first, values)
    )
