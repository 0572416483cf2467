"""How often the models of pairs differ, and how often each of them errs."""

import jax
import jax.numpy as jnp
import xarray as xr

from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns counts over S, labels clean."""
    rows = pair.halves.s.indices
    labels = shared.labels[rows]
    predictions = jax.vmap(program.apply_fn, (0, None))(pair.params, shared.images[rows]).argmax(-1)
    classes = jnp.bincount(labels, length=program.condition.num_classes)
    return {
        "num_compared": jnp.int32(len(rows)),
        "num_disagree": (predictions[0] != predictions[1]).sum(),
        "num_wrong": (predictions != labels[None]).sum(-1),
        "num_largest": classes.max(),
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns on how many examples of S, labels clean, models of a pair differ and err.

    `num_disagree` of `num_compared` and `num_largest`, the examples of the most frequent class of S
    (pair), and `num_wrong` (pair, model).
    """
    arrays = context.over_pairs(_pair)
    numbers = {name: (("pair",), values) for name, values in arrays.items() if values.ndim == 1}
    return context.dataset(numbers | {"num_wrong": (("pair", "model"), arrays["num_wrong"])})


AGREEMENT = Measurement("agreement", _measure)
