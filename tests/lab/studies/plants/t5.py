"""Planted records of T5."""

from support import plants

from halfway.lab.studies.t1 import study as t1
from halfway.lab.studies.t5 import study

PLANTED = 0.06
"""How far M_x at ω = 0 exceeds `KEPT` of that at ω = 1, at effect 1."""
LEVEL, NOISE = 0.6, 0.03
"""Planted M_x at ω = 1, and the standard deviation of M_x over pairs."""
RISE = 3.0
"""Mean increase of the attacked model's own margin loss."""
BOUNDARIES = [study.PART, *t1.COMPARED]


def plant(rng, effect, boundary=None):
    """Records whose M_x at ω = 0 exceeds .8 of that at ω = 1 by .06 times `effect`."""
    apart, same = (study.setting(plants.CONFIG, overlap) for overlap in (0.0, 1.0))
    kept = study.KEPT * LEVEL + (0.0 if boundary == study.PART else PLANTED * effect)
    increases = {}
    for label, where in t1.COMPARED.items():
        lead = 0.0 if boundary == label else 0.5 * effect
        increases[tuple(where)] = RISE * kept - lead
    noise = RISE * NOISE
    return plants.records(
        plants.attacked(rng, apart, RISE * kept, RISE, noise),
        plants.controlled(rng, apart, increases, noise),
        plants.attacked(rng, same, RISE * LEVEL, RISE, noise),
    )
