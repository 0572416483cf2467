"""Random changes of one image, at which attacks that are meant to transfer take their gradients.

Each maps a key and an image `[H, W, D]` to an image of the same shape, and gradients flow through
it. `estimators.transformed` takes them, as it takes any function of this form.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway.types import Array, Key


def shrink(key: Key, image: Array, *, probability: float, smallest: float) -> Array:
    """Returns the image resized to a share of its side, at a random place on a black canvas.

    Args:
      key: consumed.
      image: `[H, W, D]`.
      probability: that it is changed.
      smallest: share of its side that it is resized to at least; it is uniform up to 1.
    """
    key_size, key_place, key_whether = jax.random.split(key, 3)
    size = jax.random.uniform(key_size, minval=smallest, maxval=1.0)
    sides = jnp.asarray(image.shape[:2], image.dtype)
    place = jax.random.uniform(key_place, (2,)) * (1 - size) * sides
    scale = jnp.broadcast_to(size, (2,))
    moved = jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, place, "linear", antialias=False
    )
    return jnp.where(jax.random.bernoulli(key_whether, probability), moved, image)


def add_another(key: Key, image: Array, *, images: Array, portion: float) -> Array:
    """Returns the image plus a portion of another one.

    Args:
      key: consumed; draws the other one, each of them as likely.
      image: `[H, W, D]`.
      images: `[N, H, W, D]`, the others.
      portion: that is added.
    """
    other = images[jax.random.randint(key, (), 0, len(images))]
    chex.assert_equal_shape([image, other])
    return image + portion * other


def vary_spectrum(key: Key, image: Array, *, deviation: float, spread: float) -> Array:
    """Returns the image plus noise, with each of its cosine coefficients times a random factor.

    Args:
      key: consumed.
      image: `[H, W, D]`.
      deviation: of the noise, which is Gaussian.
      spread: ρ; factors are uniform in [1 − ρ, 1 + ρ].
    """
    key_noise, key_factors = jax.random.split(key)
    noise = deviation * jax.random.normal(key_noise, image.shape, image.dtype)
    factors = jax.random.uniform(key_factors, image.shape, image.dtype, 1 - spread, 1 + spread)
    rows, columns = (jnp.asarray(cosines(side), image.dtype) for side in image.shape[:2])
    precise = lax.Precision.HIGHEST
    spectrum = jnp.einsum("ih,hwd,jw->ijd", rows, image + noise, columns, precision=precise)
    return jnp.einsum("ih,ijd,jw->hwd", rows, factors * spectrum, columns, precision=precise)


def cosines(length: int) -> np.ndarray:
    """Returns the orthonormal matrix `[length, length]` of the discrete cosine transform, DCT-II.

    Args:
      length: of the signals, at least 1.
    """
    frequency, place = np.arange(length)[:, None], np.arange(length)[None, :]
    matrix = np.sqrt(2 / length) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * length))
    matrix[0] /= np.sqrt(2)
    return matrix


def shuffle_blocks(key: Key, image: Array, *, num_blocks: int, degrees: float) -> Array:
    """Returns the image cut into blocks, which change places and turn about their middles.

    Rows of blocks are shuffled, and columns of blocks. A block turns within its borders: what
    leaves them is lost, and corners that it leaves are black. Values between pixels are bilinear.

    Args:
      key: consumed.
      image: `[H, W, D]`.
      num_blocks: along each side, static.
      degrees: that a block turns at most, either way; its angle is uniform.
    """
    key_places, key_angles = jax.random.split(key)
    draws = jax.random.uniform(key_places, (2, 2, num_blocks))
    rows, columns = map(_shuffled_places, draws, image.shape[:2])
    most = np.deg2rad(degrees)
    angles = jax.random.uniform(key_angles, (num_blocks,) * 2, minval=-most, maxval=most)
    angles = angles[rows.block[:, None], columns.block[None, :]]
    row, column = rows.from_middle[:, None], columns.from_middle[None, :]
    turned_row = rows.middle[:, None] + jnp.cos(angles) * row - jnp.sin(angles) * column
    turned_column = columns.middle[None, :] + jnp.sin(angles) * row + jnp.cos(angles) * column
    first_row, first_column = jnp.floor(turned_row), jnp.floor(turned_column)
    total = jnp.zeros_like(image)
    for near_row in (first_row, first_row + 1):
        for near_column in (first_column, first_column + 1):
            weight = (1 - jnp.abs(turned_row - near_row)) * (
                1 - jnp.abs(turned_column - near_column)
            )
            inside = (near_row >= rows.begin[:, None]) & (near_row < rows.end[:, None])
            inside &= near_column >= columns.begin[None, :]
            inside &= near_column < columns.end[None, :]
            at_row, at_column = (
                jnp.clip(near.astype(int), 0, side - 1)
                for near, side in zip((near_row, near_column), image.shape[:2], strict=True)
            )
            weight = jnp.where(inside, weight, 0).astype(image.dtype)
            total += weight[..., None] * image[at_row, at_column]
    return total


class _Places(NamedTuple):
    """Of each place `[L]` along a side, the block that comes to lie there, before it moves.

    Attributes:
      block: its number.
      begin: its first place.
      end: the first place after it.
      from_middle: how far the place itself lies behind the middle of the block.
    """

    block: Array
    begin: Array
    end: Array
    from_middle: Array

    @property
    def middle(self) -> Array:
        """Returns the middle of the block, in places: a multiple of 1/2."""
        return 0.5 * (self.begin + self.end - 1)


def _shuffled_places(draws: Array, length: int) -> _Places:
    """Returns what a side holds once its blocks are shuffled.

    Args:
      draws: `[2, num_blocks]`, uniform in [0, 1): the blocks' shares of the side, and their order.
      length: of the side.
    """
    shares = jnp.cumsum(1 - draws[0])  # of numbers above 0
    edges = jnp.concatenate([jnp.zeros(1), jnp.round(shares / shares[-1] * length)]).astype(int)
    order = jnp.argsort(draws[1])
    lengths = jnp.diff(edges)[order]
    ends, places = jnp.cumsum(lengths), jnp.arange(length)
    # An empty block ends where the one before it does, and so holds no place.
    slot = (places[:, None] >= ends[None, :]).sum(1)
    block = order[slot]
    offset = places - (ends - lengths)[slot]
    return _Places(block, edges[block], edges[block + 1], offset - 0.5 * (lengths[slot] - 1))
