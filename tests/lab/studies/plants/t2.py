"""Planted records of T2."""

import functools

import numpy as np
import scipy.stats
from scipy import optimize
from support import plants

from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t2 import study
from halfway.lab.studies.t2.measure import FIRST_ORDER

MARGINS = {
    f"{study.CALIBRATION}, low": study.MARGIN[0],
    f"{study.CALIBRATION}, high": study.MARGIN[1],
}
BOUNDARIES = [study.POOLED, study.STRATIFIED, *MARGINS]
RATES = np.array([0.1, 0.15, 0.25, 0.4, 0.6])
"""Planted share of fooled examples in each margin bin."""


def plant(rng, effect, boundary=None):
    """Outcomes of examples with known AUCs and slope.

    B is fooled with a probability that depends on its margin bin alone; the score is normal,
    shifted within a bin for the fooled and between bins by what gives the pooled AUC.
    """
    config = plants.CONFIG
    goal = {name: 0.5 + 0.05 * effect for name in (study.POOLED, study.STRATIFIED)}
    if boundary in goal:
        goal[boundary] = 0.5
    within = np.sqrt(2) * float(scipy.stats.norm.ppf(goal[study.STRATIFIED]))
    between = shift_between(within, goal[study.POOLED])
    size = (config.num_pairs, 2, config.num_holdout)
    labels = rng.integers(0, config.num_classes, (size[0], size[2]))
    eligible = rng.random(size) < 0.45
    loss = rng.normal(size=size)
    bins = margin_bins(loss, eligible)
    fooled = rng.random(size) < RATES[bins]
    score = rng.normal(size=size) + within * fooled + between * bins
    predicted = rng.gamma(2.0, 0.1, size)
    slope = MARGINS.get(boundary, 1.0) + rng.normal(0, 0.05, (size[0], 1, 1))
    actual = slope * predicted + rng.normal(0, 0.1, size)
    trained = study.decided_on(config)
    # Of each direction the surrogate is A, then B, and the target the other.
    both = np.stack(
        [np.stack([eligible[:, 0], fooled[:, 0]], 1), np.stack([fooled[:, 1], eligible[:, 1]], 1)],
        1,
    )
    attacked = {
        "fooled": (("pair", "surrogate", "target", "example"), both),
        "clean_correct": (("pair", "model", "example"), np.ones(size, bool)),
        "clean_loss": (("pair", "model", "example"), loss[:, ::-1]),
        "label": (("pair", "example"), labels),
    }
    first_order = {
        name: (("pair", "surrogate", "example"), values)
        for name, values in (("score", score), ("predicted", predicted), ("actual", actual))
    }
    return plants.records(
        (TRANSFER, trained, plants.dataset(trained, {}, attacked)),
        (FIRST_ORDER, trained, plants.dataset(trained, {}, first_order)),
    )


def margin_bins(loss, eligible):
    """Bins `[P, 2, B]` of equal counts of eligible examples, 0 for the others."""
    ranks = np.where(eligible, loss, np.inf).argsort(-1).argsort(-1)
    return np.where(eligible, study.NUM_BINS * ranks // eligible.sum(-1, keepdims=True), 0)


@functools.lru_cache(maxsize=64)
def shift_between(within, goal):
    """The shift between neighbouring bins that gives a pooled AUC of `goal`.

    AUC = Σ_kl w⁺_k w⁻_l Φ((within + between (k − l)) / √2) for normal scores in bins k and l.
    """
    fooled, rest = RATES / RATES.sum(), (1 - RATES) / (1 - RATES).sum()
    bins = np.arange(study.NUM_BINS)

    def excess(between):
        distance = within + between * (bins[:, None] - bins[None, :])
        return float(fooled @ scipy.stats.norm.cdf(distance / np.sqrt(2)) @ rest) - goal

    return optimize.root_scalar(excess, bracket=(-2.0, 2.0)).root
