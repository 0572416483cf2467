"""What input gradients say of transfer before any attack."""

import functools

import jax
import xarray as xr

from halfway import attacks, transfer
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, Params


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns what P5 says of each example of S, labels clean, A→B and B→A: `[2, B]` each."""
    rows = pair.halves.s.indices
    images, labels = shared.images[rows], shared.labels[rows]
    threat = attacks.linf(shared.epsilon)

    def direction(surrogate: Params, target: Params) -> dict[str, Array]:
        surrogate_fn, target_fn = (
            functools.partial(program.apply_fn, params) for params in (surrogate, target)
        )
        predicted = transfer.first_order(surrogate_fn, target_fn, images, labels, threat=threat)
        gradient = transfer.input_gradients(target_fn, images, labels)
        return {
            "score": predicted.score,
            "tau": predicted.tau,
            "target_norm": threat.dual_norm(gradient),
        }

    swapped = jax.tree.map(lambda leaf: leaf[::-1], pair.params)
    return jax.vmap(direction)(pair.params, swapped) | {"row": rows}


def _measure(context: Context) -> xr.Dataset:
    """Returns first-order predictions of transfer to the other model of the pair, see P5.

    Of each example of S, labels clean: `score`, ⟨h_B, s(h_A)⟩, `tau`, its share of the best there
    is, and `target_norm`, ‖h_B‖ in the dual norm (pair, surrogate, example); `row` (pair, example)
    of the pool.
    """
    arrays = context.over_pairs(_pair)
    rows = arrays.pop("row")
    outcomes = {name: (("pair", "surrogate", "example"), values) for name, values in arrays.items()}
    return context.dataset({}, outcomes | {"row": (("pair", "example"), rows)})


FIRST_ORDER = Measurement("first_order", _measure)
