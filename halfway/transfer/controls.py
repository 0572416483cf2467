"""Controls of an attack: perturbations of equal norm that follow no gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from halfway.types import Array, Key

_LEVELS = 1 << 23
"""Number of values that a uniform draw in float32 can take."""


class Perturbed(NamedTuple):
    """Control points `[B, ...]`, and `[B]` whether their norms could be matched."""

    points: Array
    matched: Array


def matched_noise(
    key: Key, x: Array, adversarial: Array, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Perturbed:
    """Returns random feasible signs on a random set of pixels, matched in l∞ and l2.

    With m the l∞ norm of an example's perturbation δ, ⌊‖δ‖²/m²⌋ random pixels move by ±m and
    another pixel by what is left of the l2 norm. Where only one sign stays within bounds, that sign
    is taken.

    Args:
      key: a PRNG key, which is consumed.
      x: clean points `[B, ...]` within bounds.
      adversarial: points `[B, ...]` of an attack, whose norms are matched example by example.
      bounds: the lowest and the highest value of a pixel.

    Examples:
      >>> x = jnp.full((1, 6), 0.5)
      >>> adversarial = x + 0.125 * jnp.array([[1.0, -1.0, 1.0, 0.0, 0.0, 0.0]])
      >>> noise = transfer.matched_noise(jax.random.key(0), x, adversarial)
      >>> sorted(jnp.abs(noise.points - x)[0].tolist()), noise.matched.tolist()
      ([0.0, 0.0, 0.0, 0.125, 0.125, 0.125], [True])
    """
    low, high = bounds
    flat = x.reshape(x.shape[0], -1)
    delta = adversarial.reshape(flat.shape) - flat
    size = jnp.abs(delta).max(-1, keepdims=True)
    squared = (delta**2).sum(-1, keepdims=True)
    safe = jnp.where(size > 0, size, 1.0)
    count = jnp.floor(squared / safe**2)
    rest = jnp.sqrt(jnp.maximum(squared - count * safe**2, 0.0))

    key_sign, key_where = jax.random.split(key)
    up, down = flat + size <= high, flat - size >= low
    coin = jax.random.bernoulli(key_sign, shape=flat.shape)
    sign = jnp.where(up & (coin | ~down), 1.0, -1.0)
    # Pixels that can move in neither direction come last in the random order.
    draws = jax.random.uniform(key_where, flat.shape) * _LEVELS
    draws = jnp.where(up | down, draws.astype(jnp.int32), _LEVELS)
    first_pixels, next_pixel = _select(draws, count.astype(jnp.int32))
    step = jnp.where(first_pixels, size, jnp.where(next_pixel, rest, 0.0))
    movable = (up | down).sum(-1, keepdims=True)
    matched = (count + (rest > 1e-3 * safe) <= movable)[:, 0]
    points = jnp.clip(flat + sign * jnp.where(up | down, step, 0.0), low, high)
    return Perturbed(points.reshape(x.shape), matched)


def _select(draws: Array, count: Array) -> tuple[Array, Array]:
    """Returns masks `[B, N]` of the `count` lowest draws, and of the draw that follows.

    Among equal draws the first come first. The value of rank `count` is found by bisection: XLA's
    sort takes most of a transfer's time on a CPU.

    Args:
      draws: `[B, N]` integers in [0, `_LEVELS`].
      count: `[B, 1]`, at least 0; from N on no draw follows.
    """

    def halve(_, interval):
        low, high = interval
        middle = (low + high) // 2
        enough = (draws <= middle).sum(-1, keepdims=True) > count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # The least value that more than `count` draws do not exceed; above all draws if there is none.
    ends = jnp.zeros_like(count), jnp.full_like(count, _LEVELS + 1)
    value, _ = lax.fori_loop(0, _LEVELS.bit_length(), halve, ends)
    equal, lower = draws == value, draws < value
    place = lower.sum(-1, keepdims=True) + jnp.cumsum(equal, -1) - 1
    return lower | (equal & (place < count)), equal & (place == count)


def other_example(
    key: Key, x: Array, adversarial: Array, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Perturbed:
    """Returns each example under the perturbation of another example, rescaled to its own l2 norm.

    The perturbation is scaled up until what is left after clipping to the box has the norm of the
    example's own perturbation, as far as the box allows. The l∞ norm is not matched; it can only be
    larger than needed.

    Args:
      key: a PRNG key, which is consumed.
      x: clean points `[B, ...]` within bounds, B at least 2.
      adversarial: points `[B, ...]` of an attack.
      bounds: the lowest and the highest value of a pixel.

    Raises:
      ValueError: if there is only one example.
    """
    num_examples = x.shape[0]
    if num_examples < 2:
        raise ValueError(f"another example's perturbation needs two examples, got {num_examples}")
    flat = x.reshape(num_examples, -1)
    delta = adversarial.reshape(flat.shape) - flat
    shift = jax.random.randint(key, (), 1, num_examples)
    direction = jnp.roll(delta, shift, 0)
    norm = jnp.linalg.norm(delta, axis=-1)
    points = stretched(flat, direction, norm, bounds)
    reached = jnp.linalg.norm(points - flat, axis=-1)
    return Perturbed(points.reshape(x.shape), reached >= 0.99 * norm)


def stretched(
    x: Array, direction: Array, length: Array, bounds: tuple[Any, Any] = (0.0, 1.0)
) -> Array:
    """Returns points `[B, d]` that lie a given length away along a direction, after clipping.

    The multiple of the direction is at most 10⁴, and the box may allow less than the length.

    Args:
      x: points `[B, d]` within bounds.
      direction: `[B, d]`; entries that are 0 do not move.
      length: `[B]`, length of the move in l2.
      bounds: the lowest and the highest value of a pixel.
    """
    low, high = bounds

    def move(scale):
        return jnp.clip(x + scale * direction, low, high)

    def halve(_, interval):
        small, large = interval
        middle = 0.5 * (small + large)
        short = jnp.linalg.norm(move(middle) - x, axis=-1, keepdims=True) < length[:, None]
        return jnp.where(short, middle, small), jnp.where(short, large, middle)

    smallest = jnp.where(direction == 0, jnp.inf, jnp.abs(direction)).min(-1, keepdims=True)
    # At this scale every moving pixel has reached its bound.
    largest = jnp.where(jnp.isfinite(smallest), (high - low) / smallest, 0.0)
    # Scales beyond 1e4 only chase pixels that the attack hardly moved.
    interval = (jnp.zeros_like(largest), jnp.minimum(largest, 1e4))
    _, scale = lax.fori_loop(0, 40, halve, interval)
    return move(scale)
