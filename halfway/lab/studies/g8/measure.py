"""What κ is made of where data are seen again."""

from collections.abc import Mapping

import xarray as xr

from halfway import meeting, populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g8.gap_paths import gap
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

PASSES = (1, 2, 4, 8, 16, 32)
"""Epochs after which memorization is looked at."""


def pass_steps(condition: Condition) -> tuple[int, ...]:
    """Returns the steps after which a half has been seen `PASSES` times, within training."""
    steps = [round(k * condition.num_examples / condition.batch_size) for k in PASSES]
    return tuple(min(max(1, step), condition.probe_steps[-1]) for step in steps)


def _memorizing(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns `fresh.PRODUCTS`, the covariance on S, and the gap in cross-entropy: a probe."""
    del key
    products = populations.gradient_products(
        program.apply_fn, params, images, samples["own"], samples["other"]
    )
    holdout = samples["holdout"]
    scale = meeting.noise_scale(
        program.apply_fn, params, images[holdout.indices], holdout.labels, holdout.mask
    )
    return {
        "own_own": products["own_own"],
        "own_other": products["own_other"],
        "trace_cov": scale.noise,
        "gap": gap(program, params, samples, images),
    }


def _measure_memorization(context: Context) -> xr.Dataset:
    """Returns what κ is made of after each number of passes over the own half.

    `fresh.PRODUCTS` and `gap`, that in cross-entropy (pair, model, passes).
    """
    watched = context.along_training(_memorizing, pass_steps(context.condition))
    dims = "pair", "model", "passes"
    return context.dataset({name: (dims, v) for name, v in watched.items()}, passes=PASSES)


MEMORIZATION = Measurement("memorization", _measure_memorization)
