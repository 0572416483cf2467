"""Planted records of G1."""

from support import plants

from halfway.lab.studies.g1 import study

PLANTED = 0.05
"""Difference in M_θ beyond the threshold at effect 1: the smallest worth reporting."""
BOUNDARIES = plants.CONFIG.architectures


def plant(rng, effect, boundary=None):
    """Records whose M_θ exceeds its control by the threshold and `PLANTED` times `effect`."""
    planted = []
    for architecture in plants.CONFIG.architectures:
        size = 0.0 if architecture == boundary else PLANTED * effect
        true, permuted = study.conditions(plants.CONFIG, architecture)
        planted.append(plants.learning(rng, true, 0.5 + study.LEAD + size))
        planted.append(plants.learning(rng, permuted, 0.5))
    return plants.records(*planted)
