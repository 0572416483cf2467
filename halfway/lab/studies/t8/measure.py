"""What orthogonal directions aligned with one model's gradient do to both models of a pair."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import input_space, losses
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, LogitsFn

LENGTH, DIGITS_SIZE, DIGITS_SPREAD = 1.5, 64, 0.230188
"""Length of a step in l2 on digits, their number of pixels, and their `pixel_spread`."""
NUM_DIRECTIONS = 16
"""Orthogonal directions of equal cosine, 1/4: on digits a quarter of all there are."""
MOST_DIRECTIONS = 64
"""As many directions as are looked at where first order says how many there are."""
MOST_EXAMPLES = 2_000
"""Of S, whose order is random, that are looked at."""
BOUNDS = {"free": (-np.inf, np.inf), "box": (0.0, 1.0)}
"""Not clipped, so that cosine and length are equal exactly, which decides; and clipped."""
SIDES = ("along", "beside")
"""Directions that fool the surrogate, and the others of the same example."""
FOOLED = ("surrogate", "target", "both")
DIMENSIONS = ("granted", "fooling", "shared")
"""Directions that first order grants an example, those of them that fool the surrogate, and those
that fool both models."""


def pixel_spread(images: np.ndarray) -> float:
    """Returns the mean over pixels and channels of the standard deviation over images.

    Args:
      images: `[N, H, W, D]`.
    """
    mean = np.mean(images, axis=0, dtype=np.float64)
    # Without a copy of all images in double precision.
    square = np.einsum("n...,n...->...", images, images, dtype=np.float64) / len(images)
    return float(np.sqrt(np.maximum(square - mean**2, 0)).mean())


def step_length(images: np.ndarray) -> float:
    """Returns the length of a step in l2: that on digits, as long for the size of the images.

    `1.5 √(d/64) · pixel_spread / that of digits`.

    Args:
      images: `[N, H, W, D]` of the pool.
    """
    size = float(np.prod(images.shape[1:]))
    return LENGTH * (size / DIGITS_SIZE) ** 0.5 * pixel_spread(images) / DIGITS_SPREAD


class Steps(NamedTuple):
    """What a step along each of k directions does to B examples.

    Attributes:
      fooled: `[k, 2, B]` bool, surrogate and target.
      length: `[k, B]`, in l2.
      gain: `[k, B]`, to first order, as a share of what an unclipped step gains at this cosine.
    """

    fooled: Array
    length: Array
    gain: Array


def contrast(steps: Steps, right: Array) -> dict[str, Array]:
    """Returns means of each example over directions that fool the surrogate, and over the others.

    Args:
      steps: along k directions.
      right: `[B]` bool, which examples both models classify correctly when clean.

    Returns:
      the target's `rate`, the `length` and the `gain` of a step, `[2, B]` by side, 0 where an
      example is not mixed; `mixed` `[B]`, whether some directions fool the surrogate and some do
      not; and `directions` `[3, B]`, how many fool the surrogate, the target and both, −1 for
      examples that are not right.
    """
    surrogate, target = steps.fooled[:, 0], steps.fooled[:, 1]
    rates = input_space.fooling_contrast(surrogate, target)
    mixed = rates.mixed & right
    sides = jnp.stack([surrogate, ~surrogate])
    number = jnp.maximum(sides.sum(1), 1)
    means = {
        "rate": jnp.stack([rates.along, rates.beside]),
        "length": (steps.length[None] * sides).sum(1) / number,
        "gain": (steps.gain[None] * sides).sum(1) / number,
    }
    counts = jnp.stack([surrogate.sum(0), target.sum(0), (surrogate & target).sum(0)])
    return {name: jnp.where(mixed[None], mean, 0.0) for name, mean in means.items()} | {
        "mixed": mixed,
        "directions": jnp.where(right[None], counts, -1),
    }


def _along(
    surrogate_fn: LogitsFn, target_fn: LogitsFn, x: Array, labels: Array, frame: Array, length
) -> dict[str, Array]:
    """Returns `contrast` without and with a box, and the dimensions `[3, B]` of both subspaces.

    `frame` `[m, d]` is turned towards the surrogate's gradient; `length` is that of a step.
    """
    before, back = jax.vjp(lambda x: losses.margin(surrogate_fn(x), labels), x)
    (gradient,) = back(jnp.ones_like(before))
    gradient = gradient.reshape(x.shape[0], -1)
    norm = jnp.linalg.norm(gradient, axis=-1)
    models = surrogate_fn, target_fn
    right = jnp.stack([logits_fn(x).argmax(-1) == labels for logits_fn in models]).all(0)
    chosen = frame[:NUM_DIRECTIONS]
    # What an unclipped step gains on each of the chosen directions.
    whole = length * norm / chosen.shape[0] ** 0.5

    def follow(mirrors, rows, bounds):
        def step(row):
            directions = jax.vmap(input_space.reflect_directions, (0, None))(mirrors, row)
            points = input_space.move_along(x, directions, length, bounds)
            move = (points - x).reshape(gradient.shape)
            return Steps(
                jnp.stack([logits_fn(points).argmax(-1) != labels for logits_fn in models]),
                jnp.linalg.norm(move, axis=-1),
                (move * gradient).sum(-1) / jnp.where(whole > 0, whole, 1.0),
            )

        return jax.lax.map(step, rows)

    fixed = jax.vmap(input_space.mirror_onto, (0, None))(gradient, chosen)
    contrasts = jax.lax.map(
        lambda bounds: contrast(follow(fixed, chosen, (bounds[0], bounds[1])), right),
        jnp.array(list(BOUNDS.values())),
    )
    # Of the whole frame each example uses as many directions as first order grants it.
    granted = input_space.most_directions(-before, norm, length, frame.shape[0])
    most = jax.vmap(input_space.mirror_onto, (0, None, 0))(gradient, frame, granted)
    fooled = follow(most, frame, BOUNDS["free"]).fooled
    fooling = fooled[:, 0] & (jnp.arange(frame.shape[0])[:, None] < granted[None])
    dimensions = jnp.stack([granted, fooling.sum(0), (fooling & fooled[:, 1]).sum(0)])
    return contrasts | {"right": right, "dimensions": dimensions * right[None]}


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns what steps do to each example, `[2, ...]` by surrogate.

    `pair.extra` are random frames `[2, m, d]`, one of each surrogate.
    """
    rows = pair.halves.s.indices[:MOST_EXAMPLES]
    x, labels = shared.images[rows], shared.labels[rows]
    swapped = jax.tree.map(lambda leaf: leaf[::-1], pair.params)

    def direction(models):
        *params, frame = models
        surrogate_fn, target_fn = (functools.partial(program.apply_fn, model) for model in params)
        return _along(surrogate_fn, target_fn, x, labels, frame, shared.epsilon)

    return jax.lax.map(direction, (pair.params, swapped, pair.extra))


def frames_of(context: Context) -> np.ndarray:
    """Returns random orthonormal directions `[P, 2, m, d]` of each surrogate."""
    size = int(np.prod(context.pool.images.shape[1:]))
    keys = context.pair_keys("frames")
    number = min(MOST_DIRECTIONS, size)
    frames = [input_space.orthogonal_frames(key, number, size, shape=(2,)) for key in keys]
    return np.stack(frames)


def _measure(context: Context) -> xr.Dataset:
    """Returns sums over examples of S, labels clean, that both models of a pair have right.

    For each surrogate, k random orthogonal directions of equal cosine to its gradient of the margin
    loss, each followed for `step_length` in l2, without a box and with one (bounds).

    `rate` (pair, surrogate, bounds, side) is the target's fooling rate along directions that fool
    the surrogate, and beside them: a mean within each example, summed over the `num_mixed` (pair,
    surrogate, bounds) examples in which some directions fool the surrogate and some do not.
    `length` and first-order `gain` of a step are means and sums of the same kind.

    Summed over all `num_examples` (pair, surrogate): `num_directions` (pair, surrogate, bounds,
    fooled), by how many directions a model is fooled, or both; and `num_dimensions` (pair,
    surrogate, dimension), where an example uses as many directions as first order grants it,
    without a box.
    `directions` (pair, surrogate, bounds, fooled, example) are the numbers of each example, −1
    where a model errs; `step_length` is the same for all.
    """
    # Points are as many as examples times features: one pair after another.
    taken = step_length(np.asarray(context.pool.images))
    arrays = context.over_pairs(
        _pair, extra=jnp.asarray(frames_of(context)), epsilon=taken, at_once=1
    )
    directions = arrays["directions"]
    dims = "pair", "surrogate"
    numbers = {
        name: ((*dims, "bounds", "side"), arrays[name].sum(-1, dtype=np.float64))
        for name in ("rate", "length", "gain")
    }
    numbers |= {
        "step_length": ((), taken),
        "num_mixed": ((*dims, "bounds"), arrays["mixed"].sum(-1)),
        "num_examples": (dims, arrays["right"].sum(-1)),
        "num_directions": ((*dims, "bounds", "fooled"), np.maximum(directions, 0).sum(-1)),
        "num_dimensions": ((*dims, "dimension"), arrays["dimensions"].sum(-1)),
    }
    outcomes = {"directions": ((*dims, "bounds", "fooled", "example"), directions.astype(np.int16))}
    return context.dataset(
        numbers, outcomes, bounds=list(BOUNDS), side=SIDES, fooled=FOOLED, dimension=DIMENSIONS
    )


SUBSPACE = Measurement("adversarial_subspace", _measure)
