"""What input gradients say of transfer before any attack, and what one small step does."""

import functools

import jax
import jax.numpy as jnp
import xarray as xr

from halfway import attacks, losses, transfer
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, Params


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns P5 for each example of S, labels clean, A→B and B→A: `[2, B]`, and mean τ `[2]`."""
    rows = pair.halves.s.indices
    images, labels = shared.images[rows], shared.labels[rows]

    def direction(surrogate: Params, target: Params) -> transfer.FirstOrder:
        return transfer.first_order(
            functools.partial(program.apply_fn, surrogate),
            functools.partial(program.apply_fn, target),
            images,
            labels,
            threat=attacks.linf(shared.epsilon),
        )

    swapped = jax.tree.map(lambda leaf: leaf[::-1], pair.params)
    predicted = jax.vmap(direction)(pair.params, swapped)
    mean_tau = losses.masked_mean(predicted.tau, jnp.isfinite(predicted.tau), axis=-1)
    return predicted._asdict() | {"mean_tau": mean_tau}


def _measure(context: Context) -> xr.Dataset:
    """Returns first-order predictions of transfer to the other model of the pair, see P5.

    Of each example of S, labels clean, for a step of the budget of calibration: `score`, `tau`,
    `predicted` and `actual` (pair, surrogate, example), see `transfer.FirstOrder`. And `mean_tau`
    (pair, surrogate), over the examples where τ is defined.
    """
    arrays = context.over_pairs(_pair, epsilon=context.config.attack.epsilon_calibration)
    numbers = {"mean_tau": (("pair", "surrogate"), arrays.pop("mean_tau"))}
    outcomes = {name: (("pair", "surrogate", "example"), values) for name, values in arrays.items()}
    return context.dataset(numbers, outcomes)


FIRST_ORDER = Measurement("first_order", _measure)
