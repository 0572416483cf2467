"""What every model of a condition predicts on the same examples of the pool."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway.lab.measurements import grid
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns predictions of both models on the rows `shared.extra`, and who trained on none."""
    rows = shared.extra
    logits = jax.lax.map(lambda params: program.apply_fn(params, shared.images[rows]), pair.params)
    halves = (pair.halves.a, pair.halves.b)
    trained_on = [jnp.where(half.mask, half.indices, -1) for half in halves]
    return {
        "predicted": logits.argmax(-1).astype(jnp.int16),
        "unseen": jnp.stack([~jnp.isin(rows, half) for half in trained_on]),
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns the `predicted` class of each of the `examined_rows`, and whether it is `unseen`.

    Both (pair, model, example); `label` (example), clean.
    """
    rows = grid.examined_rows(context.config, len(context.pool.images))
    arrays = context.over_pairs(_pair, shared_extra=jnp.asarray(rows))
    cells = "pair", "model", "example"
    labels = np.asarray(context.pool.labels)[rows].astype(np.int16)
    outcomes = {name: (cells, values) for name, values in arrays.items()}
    return context.dataset({}, outcomes | {"label": (("example",), labels)})


PREDICTIONS = Measurement("predictions", _measure)
