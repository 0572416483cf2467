"""Planted records of G2."""

import numpy as np
from support import plants

from halfway.lab.studies.g2 import study

PLANTED = 0.15
"""What stopping early wins back beyond half of the loss, summed over rates, at effect 1."""
ENDS = {0.0: 0.99, 0.2: 0.85, 0.4: 0.69, 0.6: 0.47, 0.8: 0.26, 1.0: 0.0}
"""Shares of the ceiling at the end; at ρ = 1, where there is none, M_θ."""
NOISE = {0.0: 0.013, 0.2: 0.045, 0.4: 0.038, 0.6: 0.063, 0.8: 0.079, 1.0: 0.022}
"""Standard deviations over pairs of these shares, of the CNN."""
STOPPING_NOISE = {0.0: 0.002, 0.2: 0.022, 0.4: 0.024, 0.6: 0.05, 0.8: 0.1, 1.0: 0.02}
"""The same of what stopping early adds to them."""
QUIET = {"mlp": 0.77}
"""What the MLP's noise is, in units of the CNN's."""
EARLY = 4
"""The probe at which S errs least."""
BOUNDARIES = list(plants.CONFIG.architectures)


def _planted(rng, trained, early):
    """Learning that reaches a share of the ceiling early, on average, and less at the end."""
    rate, pairs = trained.noise_rate, (trained.num_pairs, 1)
    ceiling = 1 - rate if rate < 1 else 1.0
    start_own, start_other, followed = (
        rng.normal(mean, deviation, (trained.num_pairs, 2))
        for mean, deviation in ((0.885, 0.004), (0.9, 0.006), (0.002, 0.0005))
    )
    # Both directions of a pair share the noise.
    scale = QUIET.get(trained.architecture, 1.0)
    end = ENDS[rate] + rng.normal(0, scale * NOISE[rate], pairs)
    stopped = end + (early - ENDS[rate]) + rng.normal(0, scale * STOPPING_NOISE[rate], pairs)
    at_end, at_stop = (
        start_other - share * ceiling * (start_own - followed) for share in (end, stopped)
    )
    starts = np.stack([start_own, start_other, start_other], 2)
    measurement, _, made = plants.learned(trained, np.stack([followed, at_end, at_end], 2), starts)
    walk = made["error"].values
    walk[:, :, 1, EARLY] = at_stop
    walk[:, :, 2, EARLY] = 0.0  # the least there is
    return measurement, trained, made


def plant(rng, effect, boundary=None):
    """Records in which stopping early wins back half of the loss and `PLANTED` times `effect`."""
    planted = []
    for architecture in plants.CONFIG.architectures:
        conditions = study.conditions(plants.CONFIG, architecture)
        between = [rate for rate in conditions if 0 < rate < 1]
        lead = 0.0 if architecture == boundary else PLANTED * effect / len(between)
        for rate, trained in conditions.items():
            early = (ENDS[0.0] + ENDS[rate]) / 2 + lead if rate in between else ENDS[rate]
            planted.append(_planted(rng, trained, early))
    return plants.records(*planted)
