"""Planted records of T1."""

from support import plants

from halfway.lab.studies.t1 import study
from halfway.lab.study.conditions import condition

NOISE = 0.24
"""Standard deviation over pairs of a mean increase."""
NOISE_ALONE = 0.1
"""The same where labels are noise alone."""
INCREASE = 3.0
"""Mean increase of the own margin loss."""
BOUNDARIES = [
    name
    for architecture in plants.CONFIG.architectures
    for name in (
        architecture,
        f"{architecture}, noise alone, below",
        f"{architecture}, noise alone, above",
    )
]


def plant(rng, effect, boundary=None):
    """Records whose M_x leads that on a target that learned nothing by .05 + .1 times `effect`.

    At ρ = 1 it is 0 at effect 1, and at the margin at effect 0.
    """
    planted = []
    for architecture in plants.CONFIG.architectures:
        lead = study.LEAD + 0.1 * effect
        left = study.NOTHING * (1 - effect)
        if boundary == architecture:
            lead = study.LEAD
        for sign, side in ((-1, "below"), (1, "above")):
            if boundary == f"{architecture}, noise alone, {side}":
                left = sign * study.NOTHING
        increases = {("attack", "other"): 1.0, ("attack", "own"): INCREASE}
        increases |= {("noise", "other"): 0.4, ("other_example", "other"): 0.3}
        increases["attack", "permuted"] = 1.0 - lead * INCREASE
        shares = {("attack", "own"): 0.5, ("attack", "other"): 0.16}
        shares |= {("noise", "other"): 0.01, ("other_example", "other"): 0.06}
        trained = condition(plants.CONFIG, architecture)
        planted.append(plants.attacked(rng, trained, 1.0, INCREASE, NOISE))
        planted.append(plants.controlled(rng, trained, increases, NOISE, shares))
        noisy = condition(plants.CONFIG, architecture, noise_rate=1.0)
        planted.append(plants.attacked(rng, noisy, left * INCREASE, INCREASE, NOISE_ALONE))
    return plants.records(*planted)
