"""Planted records of G2."""

from support import plants

from halfway.lab.studies.g2 import study

PLANTED = 0.14
"""Fall of M_θ/(1 − ρ) from each noise rate to the next at effect 1."""
NOISE = {0.0: 0.012, 0.2: 0.018, 0.4: 0.018, 0.6: 0.010, 0.8: 0.022, 1.0: 0.018}
"""Standard deviations over pairs of M_θ: they give the measured ones of the differences, which are
smaller than independent pairs would have, since a pair shares its draws across rates."""
BOUNDARIES = [
    name
    for architecture in plants.CONFIG.architectures
    for name in (*study.steps(plants.CONFIG, architecture), study.leakage(architecture))
]


def plant(rng, effect, boundary=None):
    """Records whose M_θ/(1 − ρ) falls by `PLANTED` times `effect` at each step."""
    planted = []
    for architecture in plants.CONFIG.architectures:
        conditions = study.conditions(plants.CONFIG, architecture)
        shares = {0.0: 0.99}
        for name, (low, high) in study.steps(plants.CONFIG, architecture).items():
            shares[high] = shares[low] - (0.0 if name == boundary else PLANTED * effect)
        meetings = {rate: share * (1 - rate) for rate, share in shares.items()}
        meetings[1.0] = study.MARGIN if boundary == study.leakage(architecture) else 0.0
        for rate, meeting in meetings.items():
            planted.append(plants.learning(rng, conditions[rate], meeting, NOISE[rate]))
    return plants.records(*planted)
