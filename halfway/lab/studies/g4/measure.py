"""How often the models of pairs differ and err, and how well their vote is calibrated."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import meeting
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, Sample


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns counts over S, and what both models predict on the pool and may vote for."""
    logits = jax.vmap(program.apply_fn, (0, None))(pair.params, shared.images)
    predictions = logits.argmax(-1)
    rows = pair.halves.s.indices
    on_holdout = predictions[:, rows]

    def unseen(half: Sample) -> Array:
        trained_on = jnp.where(half.mask, half.indices, len(shared.labels))  # padding is nowhere
        return jnp.ones(len(shared.labels), bool).at[trained_on].set(False, mode="drop")

    return {
        "num_compared": jnp.int32(len(rows)),
        "num_disagree": (on_holdout[0] != on_holdout[1]).sum(),
        "num_wrong": (on_holdout != shared.labels[rows][None]).sum(-1),
        "predictions": predictions,
        "unseen": jnp.stack([unseen(half) for half in (pair.halves.a, pair.halves.b)]),
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns on how many examples of S, labels clean, models of a pair differ and err.

    `num_disagree` of `num_compared` (pair), and `num_wrong` (pair, model). And one number of all
    pairs together, `calibration_error` of the vote of all models on the pool, in which each votes
    where it has not trained; NaN where every pair diverged.
    """
    arrays = context.over_pairs(_pair)
    finite, num_classes = context.population.finite, context.condition.num_classes
    calibration_error = np.nan
    if finite.any():
        voters = (np.concatenate(arrays[name][finite]) for name in ("predictions", "unseen"))
        predictions, unseen = voters
        votes = meeting.votes(predictions, num_classes, unseen)
        labels = np.asarray(context.pool.labels)
        calibration_error = meeting.class_aggregated_calibration_error(votes, labels)
    return context.dataset(
        {
            "num_compared": (("pair",), arrays["num_compared"]),
            "num_disagree": (("pair",), arrays["num_disagree"]),
            "num_wrong": (("pair", "model"), arrays["num_wrong"]),
            "calibration_error": ((), calibration_error),
        }
    )


AGREEMENT = Measurement("agreement", _measure)
