"""Rotations and translations as a threat model: images are turned and moved as a whole.

A move of an image is three numbers in [−1, 1], shares of the largest angle and of the largest shift
down and across: a box, in which every attack of a `threat` or of `bounds` can look. `spatial` looks
at a grid or at random moves, which is what such models give way to most.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from halfway import losses
from halfway.attacks import base, door, threat
from halfway.attacks.base import AttackResult
from halfway.attacks.threat import Bounds
from halfway.types import Array, Key, LogitsFn, LossFn


def rotate_and_shift(x: Array, moves: Array, *, degrees: Any = 30.0, shift: Any = 0.1) -> Array:
    """Returns images that are rotated about their middle and shifted; what comes in is black (0).

    Pixels are interpolated bilinearly, so that moves have gradients.

    Args:
      x: `[B, H, W, D]`.
      moves: `[B, 3]` in [−1, 1]: shares of the largest angle (counterclockwise, as seen with rows
        downwards), of the largest shift down and of that to the right.
      degrees: the largest angle.
      shift: the largest shift, a share of the side.

    Examples:
      >>> x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 2, 0].set(1.0)  # right of the middle
      >>> quarter = attacks.rotate_and_shift(x, jnp.array([[1.0, 0.0, 0.0]]), degrees=90.0)
      >>> print(quarter[0, :, :, 0].round(3))  # above the middle
      [[0. 1. 0.]
       [0. 0. 0.]
       [0. 0. 0.]]
    """

    def move(image: Array, shares: Array) -> Array:
        height, width, _ = image.shape
        angle = jnp.deg2rad(degrees) * shares[0]
        down, across = shift * shares[1] * height, shift * shares[2] * width
        middle = (height - 1) / 2, (width - 1) / 2
        rows, columns = jnp.mgrid[:height, :width]
        # Where each pixel comes from: back by the shift, then turned back.
        below, right = rows - middle[0] - down, columns - middle[1] - across
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        places = [cosine * below + sine * right, cosine * right - sine * below]
        places = [place + centre for place, centre in zip(places, middle, strict=True)]
        look = lambda channel: ndimage.map_coordinates(channel, places, order=1)  # noqa: E731
        return jax.vmap(look, -1, -1)(image)

    return jax.vmap(move)(x, moves.astype(x.dtype))


@door.checked
def spatial(
    logits_fn: LogitsFn,
    key: Key,
    x: Array,
    labels: Array,
    *,
    degrees: Any = 30.0,
    shift: Any = 0.1,
    bounds: Bounds = (0.0, 1.0),
    targets: Array | None = None,
    loss_fn: LossFn = losses.margin,
    num_draws: int | None = None,
    grid: tuple[int, int] = (31, 5),
) -> AttackResult:
    """Returns the worst of a grid of rotations and translations, or of random ones.

    The image as it is comes first; success counts before the loss. Any other attack can look in the
    box of moves: the model is `lambda moves: logits_fn(attacks.rotate_and_shift(x, moves))`, its
    inputs are `jnp.zeros((len(x), 3))`, and `attacks.linf(1.0, bounds=(-1.0, 1.0))` is the threat.

    Args:
      logits_fn: `[B, H, W, D]` to logits `[B, C]`; it must not couple examples.
      key: consumed; its value matters with random moves, which belong to an example's place.
      x: `[B, H, W, D]` clean images within the bounds.
      labels: `[B]` integers.
      degrees: the largest angle.
      shift: the largest shift, a share of the side.
      bounds: smallest and largest value of a pixel; what comes in is 0, moved into them.
      targets: `[B]` integers that the attack steers to, or None.
      loss_fn: logits and labels to a loss per example.
      num_draws: of moves, uniform in the box; None: the grid; static.
      grid: numbers of angles and of shifts in either direction, ends included; static.

    Raises:
      ValueError: for inputs that are no images, and counts below 1.

    Source: Engstrom et al., arXiv 1712.02779.
    """
    if x.ndim != 4:
        raise ValueError(f"spatial needs images [B, H, W, D], got shape {x.shape}")
    base.check_channels_last(x)
    goal = base.objective(logits_fn, labels, loss_fn, targets)
    number = x.shape[0]
    if num_draws is None:
        for name, count in zip(("angles", "shifts"), grid, strict=True):
            base.check_count(f"grid, {name},", count)
        angles, shifts = (np.linspace(-1, 1, count) if count > 1 else [0.0] for count in grid)
        plan = jnp.asarray(list(itertools.product(angles, shifts, shifts)), x.dtype)
        moves = jnp.broadcast_to(plan[:, None], (len(plan), number, 3))
    else:
        base.check_count("num_draws", num_draws)
        draw = lambda key: jax.random.uniform(key, (num_draws, 3), x.dtype, -1.0, 1.0)  # noqa: E731
        moves = jax.vmap(draw, out_axes=1)(base.example_keys(key, number))

    def look(kept: base.Candidate, shares: Array) -> tuple[base.Candidate, None]:
        point = rotate_and_shift(x, shares, degrees=degrees, shift=shift)
        return base.better_of(worth(threat.clip_to_box(point, bounds)), kept), None

    def worth(point: Array) -> base.Candidate:
        loss, logits = goal.value(point)
        return base.Candidate(point, goal.success(logits), loss)

    kept, _ = jax.lax.scan(look, worth(x), moves)
    queries = jnp.full(labels.shape, (len(moves) + 1) * goal.num_queries, jnp.int32)
    return AttackResult(kept.point, kept.success, kept.loss, queries)
