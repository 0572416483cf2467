"""What orthogonal directions aligned with one model's gradient do to both models of a pair."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import input_space, losses, populations, sharding
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key

EPSILON = 1.5
"""Length of a step, in l2."""
NUM_DIRECTIONS = 16
"""Orthogonal directions of equal cosine, 1/4: on digits a quarter of all there are."""
MOST_DIRECTIONS = 64
"""As many directions as are looked at where first order says how many there are."""
MOST_EXAMPLES = 2_000
"""Of S, whose order is random, that are looked at."""
BOUNDS = {"box": (0.0, 1.0), "free": (-np.inf, np.inf)}
"""Clipped to the box, which decides; and not, where cosine and length are equal exactly."""


@functools.partial(sharding.jit, static_argnames=("program", "num_directions"))
def _program(members, images, labels, epsilon, *, program: Condition, num_directions: int):
    apply_fn = program.apply_fn

    def pair(member, images, labels, epsilon):
        params, rows, frames = member
        x, y = images[rows], labels[rows]
        swapped = jax.tree.map(lambda leaf: leaf[::-1], params)

        def direction(models):
            surrogate, target, frame = models
            return _along(
                functools.partial(apply_fn, surrogate),
                functools.partial(apply_fn, target),
                x,
                y,
                frame,
                epsilon,
                num_directions,
            )

        return lax.map(direction, (params, swapped, frames))

    # One pair after another: points are as many as examples times features.
    run = sharding.spread(pair, at_once=1)
    return run(members, images, labels, epsilon)


def _along(surrogate, target, x, labels, frame, epsilon, num_directions) -> dict[str, Array]:
    """Returns outcomes `[k, B]` of steps along each direction, and what first order says `[B]`."""

    def loss(z):
        return losses.margin(surrogate(z), labels)

    before, back = jax.vjp(loss, x)
    (gradient,) = back(jnp.ones_like(before))
    gradient = gradient.reshape(x.shape[0], -1)
    norm = jnp.linalg.norm(gradient, axis=-1)
    count = input_space.most_directions(-before, norm, epsilon, frame.shape[0])

    def outcomes(mirrors, bounds):
        def one(row):
            directions = jax.vmap(input_space.reflect_directions, (0, None))(mirrors, row)
            points = input_space.move_along(x, directions, epsilon, bounds)
            step = (points - x).reshape(gradient.shape)
            wrong = [model(points).argmax(-1) != labels for model in (surrogate, target)]
            return {
                "surrogate_fooled": wrong[0],
                "target_fooled": wrong[1],
                "length": jnp.linalg.norm(step, axis=-1),
                # To first order, as a share of what an unclipped step gains at this cosine.
                "gain": (step * gradient).sum(-1),
            }

        return one

    chosen = frame[:num_directions]
    fixed = jax.vmap(input_space.mirror_onto, (0, None))(gradient, chosen)
    found = {
        f"{name}.{where}": value
        for where, bounds in BOUNDS.items()
        for name, value in lax.map(outcomes(fixed, bounds), chosen).items()
    }
    # As a share of what an unclipped step gains at this cosine.
    whole = epsilon * norm / np.sqrt(num_directions)
    for where in BOUNDS:
        found[f"gain.{where}"] = found[f"gain.{where}"] / jnp.where(whole > 0, whole, 1.0)[None]
    # Of the whole frame each example uses as many directions as first order grants it.
    most = jax.vmap(input_space.mirror_onto, (0, None, 0))(gradient, frame, count)
    seen = lax.map(outcomes(most, BOUNDS["box"]), frame)
    used = jnp.arange(frame.shape[0])[:, None] < count[None]
    own = used & seen["surrogate_fooled"]
    found["most.predicted"] = count
    found["most.surrogate"] = own.sum(0)
    found["most.both"] = (own & seen["target_fooled"]).sum(0)
    found["surrogate_correct"] = surrogate(x).argmax(-1) == labels
    found["target_correct"] = target(x).argmax(-1) == labels
    return found


def _subspace(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns sums over examples of S, labels clean, that both models of a pair have right.

    For each surrogate, k random orthogonal directions of equal cosine to its gradient of the margin
    loss, each followed for 1.5 in l2. `shared_rate`, subset "along.box": the target's rate along
    directions that fool the surrogate, a mean within each example, summed over the examples in
    which some directions fool it and some do not; "beside.box": along those that do not;
    `shared_examples`: the number of these examples, and of all ("both_correct"). The same without
    a box ("free"). `shared_directions`: numbers of directions, summed over examples. `shared_step`:
    length and first-order gain of a step, means within an example and summed likewise.
    """
    del config
    (one,) = population
    condition = one.condition
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels)
    size = int(np.prod(images.shape[1:]))
    most, number = min(MOST_DIRECTIONS, size), min(NUM_DIRECTIONS, size)
    frames = input_space.orthogonal_frames(key, most, size, shape=(condition.num_pairs, 2))
    rows = one.halves.s.indices[:, :MOST_EXAMPLES]
    found = _program(
        (one.params, rows, jnp.asarray(frames)),
        images,
        labels,
        jnp.float32(EPSILON),
        program=populations.program_of(condition),
        num_directions=number,
    )
    found = {name: np.asarray(value) for name, value in found.items()}
    return summarize(found, one.finite, condition.key)


def summarize(found: dict[str, np.ndarray], finite: np.ndarray, key: str) -> Measured:
    """Returns the sums of `_subspace` from outcomes `[P, 2, k, B]` and numbers `[P, 2, B]`.

    Args:
      found: as the program returns it.
      finite: `[P]`; of the other pairs everything is NaN.
      key: of the condition.
    """
    right = found["surrogate_correct"] & found["target_correct"]
    sums: dict[tuple[str, str], np.ndarray] = {
        ("shared_examples", "both_correct"): right.sum(-1),
    }
    arrays = {}
    for where in BOUNDS:
        own, other = (found[f"{name}_fooled.{where}"] for name in ("surrogate", "target"))
        # Directions first, as the library has them.
        stacked = (np.moveaxis(values, 2, 0) for values in (own, other))
        rates = input_space.fooling_contrast(*map(jnp.asarray, stacked))
        mixed = np.asarray(rates.mixed) & right
        for name, rate in (("along", rates.along), ("beside", rates.beside)):
            sums["shared_rate", f"{name}.{where}"] = (np.asarray(rate, np.float64) * mixed).sum(-1)
            side = own if name == "along" else ~own
            count = np.maximum(side.sum(2), 1)
            for quantity in ("length", "gain"):
                mean = (found[f"{quantity}.{where}"] * side).sum(2) / count
                sums["shared_step", f"{quantity}.{name}.{where}"] = (mean * mixed).sum(-1)
        sums["shared_examples", f"mixed.{where}"] = mixed.sum(-1)
        counts = {"surrogate": own, "target": other, "both": own & other}
        for name, values in counts.items():
            number = values.sum(2)
            sums["shared_directions", f"{name}.{where}"] = (number * right).sum(-1)
            arrays[f"{name}.{where}"] = np.where(right, number, -1).astype(np.int16)
    for name in ("predicted", "surrogate", "both"):
        sums["shared_directions", f"{name}.most"] = (found[f"most.{name}"] * right).sum(-1)
    axes = {"pair": range(len(finite)), "surrogate": tables.HALVES}
    parts = [
        tables.rows(
            np.where(finite[:, None], values, np.nan),
            axes,
            condition=key,
            quantity=quantity,
            subset=subset,
            budget=EPSILON,
        )
        for (quantity, subset), values in sums.items()
    ]
    return Measured(tables.concat(parts), arrays)


SUBSPACE = Measurement("adversarial_subspace", 20, _subspace)
