"""Planted records of T6."""

import numpy as np
from support import plants

from halfway.lab.studies.t6 import study
from halfway.lab.studies.t6.measure import FEATURES, INPUTS, TARGETS

PLANTED = 0.05
"""Accuracy above each control and above chance at effect 1."""
SPREAD = {study.ATTACK: 0.03, study.NOISE: 0.02, study.UNPERTURBED: 0.025}
"""Standard deviations over pairs of the accuracies."""
SHIFTED = {"accuracy": (0.02, 0.005, 0.005), "next_accuracy": (0.9, 0.95, 0.95)}
"""Accuracies for each of `INPUTS` where every image of class c is labelled c + 1."""
BOUNDARIES = [*study.CONTROLS.values(), study.CHANCE]


def plant(rng, effect, boundary=None):
    """Accuracies that exceed chance and controls by .05 times `effect`."""
    config = plants.CONFIG
    chance, lead = 1 / config.num_classes, PLANTED * effect
    attacked = chance + (0.0 if boundary == study.CHANCE else lead)
    pairs = config.num_pairs
    accuracy, following = np.zeros((2, pairs, 2, len(TARGETS), len(INPUTS)))
    uniform, shifted = (TARGETS.index(name) for name in (study.UNIFORM, study.SHIFTED))
    for place, name in enumerate(INPUTS):
        control = name in study.CONTROLS and study.CONTROLS[name] != boundary
        level = attacked - (lead if control else 0.0)
        accuracy[:, :, uniform, place] = level + rng.normal(0, SPREAD[name], (pairs, 1))
    accuracy[:, :, shifted], following[:, :, shifted] = SHIFTED.values()
    following[:, :, uniform] = chance
    counts = ("pair", "surrogate", "targets")
    trained = study.decided_on(config)
    made = plants.dataset(
        trained,
        {
            "accuracy": ((*counts, "inputs"), accuracy),
            "next_accuracy": ((*counts, "inputs"), following),
            "num_hit": (counts, np.broadcast_to([30.0, 35.0], (pairs, 2, 2))),
            "num_aimed": (counts, np.broadcast_to([300.0, 320.0], (pairs, 2, 2))),
            "matched": (counts, np.ones((pairs, 2, 2))),
        },
        targets=TARGETS,
        inputs=INPUTS,
    )
    return plants.records((FEATURES, trained, made))
