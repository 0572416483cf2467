"""Planted records of G3."""

import numpy as np
from scipy import special
from support import plants

from halfway.lab.measurements import grid
from halfway.lab.measurements.grid import COMPLEXITY, RIVALS
from halfway.lab.studies.g3 import prediction, study

BOUNDARIES = list(study.COMPARED)
IMPLIED = (grid.NO_CHANGE, prediction.SIZE)
"""Where coherence says nothing it errs as these do, and so do its other rivals."""
SIZED = BOUNDARIES[:1] + BOUNDARIES[2::4]
"""What a change has to wait for; the others are alike, and nightly."""
NOISE = 0.03
"""Standard deviation over interventions of what coherence says of the log odds of the gap."""
FACTOR = 30.0
"""How much more a rival's noise is at effect 1, where it errs about as no change does."""
PAIRS = 0.03
"""Standard deviation over pairs of the log of a measure, and of the log odds of a gap."""
CONDITIONS = prediction.conditions(plants.CONFIG)
CHANGED = prediction.interventions(plants.CONFIG)
BASE_GAPS = {grid.MLP: 0.05, grid.CNN: 0.06}


def _moved():
    """The log odds of every condition's gap beside its base's, the same in every draw."""
    rng = np.random.default_rng(12)
    moves = {condition.id: 0.0 for condition in CONDITIONS}
    for item in CHANGED:
        moves[item.condition.id] = rng.choice([-1, 1]) * rng.uniform(0.8, 1.6)
    return moves


MOVES = _moved()


def plant(rng, effect, boundary=None):
    """Records in which coherence follows the gap and every rival follows it less closely.

    Rivals have 30^effect times its noise; below effect 0 coherence has 30^−effect times theirs.
    """
    plan = grid.design(plants.CONFIG)
    bases = {item.condition.id: item.base for item in CHANGED}
    cnn, mlp = plan.bases[grid.CNN].id, plan.bases[grid.MLP].id
    bases |= {mlp: grid.MLP, cnn: grid.MLP}
    start = {grid.MLP: 0.0, grid.CNN: MOVES[cnn]}
    moved = np.array([MOVES[c.id] + start[bases[c.id]] * (c.id != cnn) for c in CONDITIONS])
    is_base = np.array([c.id == mlp for c in CONDITIONS])
    num_pairs = CONDITIONS[0].num_pairs
    odds = special.logit(BASE_GAPS[grid.MLP]) + moved
    names = [prediction.COHERENCE, *RIVALS.values()]
    logs = []
    for name in names:
        side = -effect if name == prediction.COHERENCE else effect
        scale = NOISE * FACTOR ** max(side, 0.0)
        if name == boundary:
            scale = NOISE
        follows = 0.0 if boundary in IMPLIED else 1.0
        logs.append(follows * moved + scale * rng.normal(size=len(CONDITIONS)) * ~is_base)
    logs = np.array(logs)
    size = len(CONDITIONS), num_pairs
    gap = special.expit(odds[:, None] + PAIRS * rng.normal(size=size))
    measured = logs[..., None, None] + PAIRS * rng.normal(size=(len(names), *size, 2))
    numbers = np.array([condition.num_examples for condition in CONDITIONS], float)
    is_log = np.array([name.startswith("log_") for name in RIVALS])[:, None, None, None]
    rivals = np.where(is_log, measured[1:], np.exp(measured[1:]))
    values = {
        "early_noise": numbers[:, None, None] * np.exp(measured[0]),
        "early_square": np.ones((*size, 2)),
        "rivals": np.moveaxis(rivals, 0, -1),
    }
    both = "pair", "model"
    dims = {"early_noise": both, "early_square": both, "rivals": (*both, "measure")}
    first = plants.dataset(
        CONDITIONS[0],
        {name: (dims[name], value[0]) for name, value in values.items()},
        measure=list(RIVALS),
    )
    return plants.records(
        *plants.with_gaps(CONDITIONS, gap), *plants.alike(COMPLEXITY, CONDITIONS, first, values)
    )
