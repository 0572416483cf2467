"""Planted records of G5."""

import numpy as np
from support import plants

from halfway.lab.studies.g5 import study
from halfway.lab.studies.g5.measure import CLASSES, LABELS, MATRICES

PLANTED = 0.05
"""Contrast above that of shuffled labels at effect 1."""
NOISE = 0.02
"""Standard deviation over pairs of a contrast."""
BOUNDARIES = [study.DECIDES]


def plant(rng, effect, boundary=None):
    """Records whose contrast exceeds that of shuffled labels by `PLANTED` times `effect`."""
    trained = study.on_holdout(plants.CONFIG)
    lead = 0.0 if boundary else PLANTED * effect
    shape = (trained.num_pairs, 2, 2, len(MATRICES), len(LABELS))
    size = rng.normal(5.0, 0.2, shape)
    noise = rng.normal(0, NOISE, (trained.num_pairs, 1, *shape[2:]))  # of both directions alike
    mean = np.where(np.array(LABELS) == "true", lead, 0.0)
    cells = "pair", "model", "step", "matrix", "labels"
    classes = trained.num_classes
    matrices = np.broadcast_to(np.eye(classes, dtype=np.float32), (*shape, classes, classes))
    made = plants.dataset(
        trained,
        {"class_contrast": (cells, size * (mean + noise)), "class_size": (cells, size)},
        {"class_matrix": ((*cells, "class", "other_class"), matrices)},
        step=(0, trained.probe_steps[-1]),
        matrix=MATRICES,
        labels=LABELS,
    )
    return plants.records((CLASSES, trained, made))
