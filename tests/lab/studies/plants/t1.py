"""Planted records of T1."""

from support import plants

from halfway.lab.studies.t1 import study
from halfway.lab.study.conditions import condition

NOISE = 0.24
"""Standard deviation over pairs of a mean increase."""
BOUNDARIES = [
    f"{architecture}, {label}"
    for architecture in plants.CONFIG.architectures
    for label in study.COMPARED
]


def plant(rng, effect, boundary=None):
    """Records whose attack leads every control by .5 times `effect`."""
    planted = []
    for architecture in plants.CONFIG.architectures:
        increases = {("attack", "other"): 1.0, ("attack", "own"): 3.0}
        for label, (points, target) in study.COMPARED.items():
            lead = 0.0 if boundary == f"{architecture}, {label}" else 0.5 * effect
            increases[points, target] = 1.0 - lead
        shares = {("attack", "own"): 0.5, ("attack", "other"): 0.16}
        shares |= {("noise", "other"): 0.01, ("other_example", "other"): 0.06}
        trained = condition(plants.CONFIG, architecture)
        planted.append(plants.attacked(rng, trained, 1.0, 3.0, NOISE))
        planted.append(plants.controlled(rng, trained, increases, NOISE, shares))
    return plants.records(*planted)
