"""A condition that is trained in a moment: linear models on two dozen random images."""

import numpy as np

from halfway.data import Split
from halfway.populations import Condition

CONDITION = Condition(
    dataset="random",
    architecture="linear",
    model={"kind": "linear"},
    num_classes=2,
    num_examples=8,
    num_holdout=4,
    probe_steps=(0, 3, 6, 9, 12),
    num_pairs=3,
    seed=0,
    batch_size=4,
)


def images():
    """Return images and labels that have nothing to do with each other."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(24, 2, 2, 1)).astype(np.float32)
    return Split(x, rng.integers(0, 2, 24).astype(np.int32))
