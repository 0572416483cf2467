"""Signal and noise of single examples' gradients along training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from halfway import meeting
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

HALVES = ("own", "other")
"""The half trained on, and the other one, which the model has never seen."""


def steps_of(condition: Condition) -> tuple[int, ...]:
    """Returns the steps at which gradients are looked at: every other probe, and the last.

    Args:
      condition: that is trained.
    """
    return tuple(dict.fromkeys((*condition.probe_steps[::2], condition.probe_steps[-1])))


def _look(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Any]:
    """Returns ‖E g‖² and tr Cov(g) of cross-entropy on both halves; a `Probe`."""
    del key
    scales = {}
    for half in HALVES:
        sample = samples[half]
        x = images[sample.indices]
        scale = meeting.noise_scale(program.apply_fn, params, x, sample.labels, sample.mask)
        scales[half] = {"signal": scale.signal, "noise": scale.noise}
    return scales


def _measure(context: Context) -> xr.Dataset:
    """Returns `signal` and `noise` (pair, model, half, step) of both halves along training."""
    steps = steps_of(context.condition)
    scales = context.along_training(_look, steps)
    numbers = {
        name: (
            ("pair", "model", "half", "step"),
            np.stack([np.asarray(scales[half][name]) for half in HALVES], 2),
        )
        for name in ("signal", "noise")
    }
    return context.dataset(numbers, half=HALVES, step=steps)


NOISE = Measurement("noise_scale", _measure)
