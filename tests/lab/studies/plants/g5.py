"""Planted records of G5.

Confusions are Poisson counts whose rates follow both predictors: what the network shows of two
classes, and what the images do. The two are mirror images of each other, so that with equal weights
their correlations with the counts are equal in law, and with exchanged weights exchanged.
"""

import numpy as np
import scipy.stats
from support import plants

from halfway.lab.studies.g5 import study
from halfway.lab.studies.g5.measure import CLASSES, CONFUSIONS

WEIGHT = 0.72
"""By how much the weight of the network exceeds .5 at effect 1: a correlation .06 higher."""
COMMON = 4.0
"""What both predictors have in common over what each has alone: their ranks correlate to .91."""
NUM_CONFUSED = 38
"""Expected confusions of a pair of models."""
NOISE = 0.016
"""Standard deviation over pairs of K_cc′/√(K_cc K_c′c′)."""
BOUNDARIES = [study.DECIDES]


def _predictors(num_classes):
    """`[L]` each of the network and of the images, of unit variance: each the other reversed."""
    rng = np.random.default_rng(1)
    length = num_classes * (num_classes - 1) // 2
    scores = scipy.stats.norm.ppf((np.arange(length) + 0.5) / length)
    common, alone = (rng.permutation(scores) for _ in range(2))
    network = COMMON * (common + common[::-1]) / np.sqrt(2) + alone
    return network / network.std(), network[::-1] / network.std()


def _as_matrices(values, num_classes, diagonal):
    """`[..., C, C]`, symmetric, of values `[..., L]` over pairs of classes."""
    matrices = np.zeros((*values.shape[:-1], num_classes, num_classes))
    rows, columns = np.triu_indices(num_classes, 1)
    matrices[..., rows, columns] = matrices[..., columns, rows] = values
    matrices[..., np.arange(num_classes), np.arange(num_classes)] = diagonal
    return matrices


def plant(rng, effect, boundary=None):
    """Records in which the network predicts confusions better by .06 times `effect`."""
    halves, holdout = study.conditions(plants.CONFIG)
    pairs, classes = halves.num_pairs, halves.num_classes
    network, images = _predictors(classes)
    lead = 0.0 if boundary else WEIGHT * effect
    rates = np.exp((0.5 + lead) * network + (0.5 - lead) * images)
    rates *= NUM_CONFUSED / rates.sum()
    # Two models, and two orders of the classes.
    right = 600 / classes
    counts = rng.poisson(rates / 4, (2, pairs, 2, len(rates)))
    first, second = (_as_matrices(part, classes, right) for part in counts)
    confusion = np.triu(first) + np.tril(second, -1)
    cells = "pair", "model", "class", "other_class"
    numbers = {
        "confusion": (cells, confusion),
        # Squared distances from 1 to 2.
        "pixel_product": (cells[2:], _as_matrices(0.25 + 0.08 * images, classes, 1.0)),
    }
    planted = [(CONFUSIONS, halves, plants.dataset(halves, numbers))]
    values = 0.7 + 0.1 * network + rng.normal(0, NOISE, (pairs, 2, 2, len(rates)))
    matrices = 5.0 * _as_matrices(values, classes, 1.0)
    cells = "pair", "model", "step", "class", "other_class"
    made = plants.dataset(
        holdout, {"class_matrix": (cells, matrices)}, step=(0, holdout.probe_steps[-1])
    )
    return plants.records(*planted, (CLASSES, holdout, made))
