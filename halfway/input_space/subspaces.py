"""Linear subspaces of input space: adversarial ones, aligned with a gradient, and those of data.

Directions are rows: `[k, d]` is k directions of d features, an image flattened. Functions of JAX
arrays take one example and are lifted with `vmap`; bases are found by NumPy, outside of any
program, since XLA's decompositions of many small matrices at once are slow.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from halfway.transfer import controls
from halfway.types import Array, Key


class Mirror(NamedTuple):
    """A reflection that makes a frame's directions equally aligned with a gradient.

    Attributes:
      normal: `[d]`, of the hyperplane; not of unit length, never near 0.
      sign: scalar, 1 or −1, which the reflected directions are multiplied by.
    """

    normal: Array
    sign: Array


class Contrast(NamedTuple):
    """How often the target is fooled along directions that fool the surrogate, and along others.

    Attributes:
      along: `[B]`, the target's rate along the fooling directions; 0 where not mixed.
      beside: `[B]`, its rate along the other directions; 0 where not mixed.
      mixed: `[B]` bool, whether some directions fool the surrogate and some do not.
    """

    along: Array
    beside: Array
    mixed: Array


class Subspace(NamedTuple):
    """Principal directions of data; local ones have a leading axis `[B]`.

    Attributes:
      mean: `[d]`.
      basis: `[k, d]`, orthonormal, the largest variance first.
      variance: `[k]`, of the data along each, divided by their number.
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray


class Parts(NamedTuple):
    """A perturbation `[..., d]` as the sum of its projection onto a subspace and of the rest."""

    on: Array
    off: Array


class Rescaled(NamedTuple):
    """Points `[B, ...]` within the box, and `[B]` the l2 length of the move that led there."""

    points: Array
    length: Array


# Directions of equal cosine to a gradient


def orthogonal_frames(
    key: Key, num_directions: int, size: int, *, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """Returns random orthonormal directions `[*shape, k, d]`, uniformly distributed; float32.

    Args:
      key: consumed.
      num_directions: k, at most d.
      size: d.
      shape: of independent frames.

    Raises:
      ValueError: for k outside [1, d].
    """
    if not 1 <= num_directions <= size:
        raise ValueError(f"num_directions must lie in [1, {size}], features, got {num_directions}")
    normal = np.asarray(jax.random.normal(key, (*shape, size, num_directions)), np.float64)
    columns, upper = np.linalg.qr(normal)
    # QR is unique up to signs, which would otherwise favour some frames.
    signs = np.sign(np.diagonal(upper, axis1=-2, axis2=-1))
    return np.swapaxes(columns * signs[..., None, :], -1, -2).astype(np.float32)


def mirror_onto(gradient: Array, frame: Array, num: Any = None) -> Mirror:
    """Returns the Householder reflection that takes the mean of a frame to the gradient's line.

    Args:
      gradient: g, `[d]`; where it is 0 the frame stays as it is, but for its mirror image.
      frame: `[k, d]`, orthonormal.
      num: how many of the frame's directions, its first ones, are to share the gradient; all by
        default. May be traced. The others become orthogonal to it; with 0 there is nothing to
        align, and all are mirrored only.

    Formula: with z = Σ_{i ≤ num} f_i / √num, ĝ = g/‖g‖ and σ = ±1 the sign of ⟨z, ĝ⟩, reflect along
    v = z + σĝ, ‖v‖² = 2 + 2|⟨z, ĝ⟩|; r_i = −σ (f_i − 2 v ⟨v, f_i⟩/‖v‖²).
    """
    number = frame.shape[0] if num is None else num
    chosen = (jnp.arange(frame.shape[0]) < number).astype(frame.dtype)
    center = (chosen @ frame) / jnp.sqrt(jnp.maximum(jnp.asarray(number, frame.dtype), 1.0))
    unit = _unit(gradient)
    sign = jnp.where(center @ unit < 0, -1.0, 1.0).astype(frame.dtype)
    return Mirror(center + sign * unit, -sign)


def reflect_directions(mirror: Mirror, directions: Array) -> Array:
    """Returns directions `[..., d]` reflected.

    Args:
      mirror: see `mirror`.
      directions: `[..., d]`, those of the frame or some of them.
    """
    normal = mirror.normal
    squared = jnp.maximum(normal @ normal, jnp.finfo(normal.dtype).tiny)
    along = (directions @ normal) * (2.0 / squared)
    return mirror.sign * (
        directions - along[..., None] * jnp.broadcast_to(normal, directions.shape)
    )


def aligned_directions(gradient: Array, frame: Array, num: Any = None) -> Array:
    """Returns orthonormal directions `[k, d]` of equal cosine 1/√k to a gradient (GAAS).

    No set of k orthogonal directions has a larger smallest cosine, and their sum is along g.

    Args:
      gradient: g, `[d]`.
      frame: `[k, d]`, orthonormal; a random one gives random directions of the same cosine.
      num: see `mirror`: the first `num`, at least 1, have cosine 1/√num, the others 0.

    Source: the gradient-aligned adversarial subspace of Tramèr et al., arXiv 1704.03453.

    Examples:
      >>> found = input_space.aligned_directions(jnp.array([0.0, 3.0, 4.0]), jnp.eye(3)[:2])
      >>> cosines = found @ jnp.array([0.0, 0.6, 0.8])
      >>> print(cosines.round(4), jnp.abs(found @ found.T).round(4).tolist())
      [0.7071 0.7071] [[1.0, 0.0], [0.0, 1.0]]
    """
    return reflect_directions(mirror_onto(gradient, frame, num), frame)


def most_directions(increase: Array, gradient_norm: Array, epsilon: Any, size: int) -> Array:
    """Returns how many orthogonal directions of length ε gain `increase` each, to first order.

    Args:
      increase: γ, what the loss has to rise by; every direction does where it is at most 0.
      gradient_norm: ‖g‖_2, of increase's shape.
      epsilon: ε.
      size: d.

    Returns:
      Integers of increase's shape in [0, d].

    Formula: min(⌊ε² ‖g‖² / γ²⌋, d), since the squared cosines to g sum to at most 1.
    Source: Tramèr et al., arXiv 1704.03453, Lemma 1.

    Examples:
      >>> print(input_space.most_directions(jnp.array([1.0, 0.3, 3.0]), jnp.ones(3), 2.0, size=10))
      [ 4 10  0]
    """
    gain = epsilon * gradient_norm
    needed = jnp.where(increase > 0, increase, 1.0)
    # 2.0 and 1.9999999 are the same number here.
    count = jnp.floor(jnp.minimum((gain / needed) ** 2, size) * (1 + 1e-6))
    return jnp.where(increase > 0, jnp.minimum(count, size), size).astype(jnp.int32)


def equal_cosine(key: Key, gradient: Array, cosine: Any, num_directions: int) -> Array:
    """Returns random unit directions `[k, d]` of one cosine to a gradient, else independent.

    Args:
      key: consumed.
      gradient: g, `[d]`, d at least 2, not 0.
      cosine: in [−1, 1]; may be traced.
      num_directions: k, of any number, since they are not orthogonal.
    """
    unit = _unit(gradient)
    normal = jax.random.normal(key, (num_directions, gradient.shape[0]), gradient.dtype)
    across = normal - (normal @ unit)[:, None] * unit[None]
    across = across / jnp.linalg.norm(across, axis=-1, keepdims=True)
    cosine = jnp.asarray(cosine, gradient.dtype)
    return cosine * unit[None] + jnp.sqrt(1 - cosine**2) * across


def move_along(
    x: Array, directions: Array, length: Any, bounds: tuple[Any, Any] = (0.0, 1.0)
) -> Array:
    """Returns points `[B, ...]`, each example moved along its direction, then clipped to the box.

    Args:
      x: `[B, ...]` within bounds.
      directions: `[B, d]`, of unit length.
      length: of the step in l2, before clipping.
      bounds: of the box; infinite for none.
    """
    return jnp.clip(x + length * directions.reshape(x.shape), *bounds)


def fooling_contrast(surrogate_fooled: Array, target_fooled: Array) -> Contrast:
    """Returns how the target fares along directions that fool the surrogate and along the others.

    Both rates belong to one example, so that hard and easy examples are not compared.

    Args:
      surrogate_fooled: `[k, B]` bool, along each direction.
      target_fooled: `[k, B]` bool, likewise.

    Examples:
      >>> surrogate = jnp.array([[True, True], [True, True], [False, True], [False, True]])
      >>> target = jnp.array([[True, True], [False, False], [False, True], [False, True]])
      >>> # No direction spares the second example.
      >>> found = input_space.fooling_contrast(surrogate, target)
      >>> found.along.tolist(), found.beside.tolist(), found.mixed.tolist()
      ([0.5, 0.0], [0.0, 0.0], [True, False])
    """
    number, rest = surrogate_fooled.sum(0), (~surrogate_fooled).sum(0)
    mixed = (number > 0) & (rest > 0)
    both = (surrogate_fooled & target_fooled).sum(0)
    other = (~surrogate_fooled & target_fooled).sum(0)
    along = jnp.where(mixed, both / jnp.maximum(number, 1), 0.0)
    return Contrast(along, jnp.where(mixed, other / jnp.maximum(rest, 1), 0.0), mixed)


# Subspaces of data


def principal_subspace(x: ArrayLike, num_directions: int) -> Subspace:
    """Returns the principal directions of data, by NumPy in double precision.

    Args:
      x: `[N, ...]`, N at least 2.
      num_directions: k, at most min(N − 1, d).

    Raises:
      ValueError: for another k.

    Formula: eigenvectors of the covariance, or of the N × N matrix of inner products where that is
    smaller. Each is given the sign that makes its largest entry positive.

    Examples:
      >>> found = input_space.principal_subspace([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]], 1)
      >>> found.mean.tolist(), found.basis.tolist()
      ([2.0, 1.0], [[1.0, 0.0]])
    """
    flat = np.asarray(x, np.float64)
    flat = flat.reshape(len(flat), -1)
    number, size = flat.shape
    if not 1 <= num_directions <= min(number - 1, size):
        raise ValueError(
            f"num_directions must lie in [1, {min(number - 1, size)}] for {number} examples of "
            f"{size} features, got {num_directions}"
        )
    mean = flat.mean(0)
    centred = flat - mean
    if size <= number:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        basis = vectors[:, ::-1][:, :num_directions].T
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        # Directions without variance come out of length 0: QR fills in what is orthogonal.
        columns, _ = np.linalg.qr(centred.T @ vectors[:, ::-1][:, :num_directions])
        basis = columns.T
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1)
    variance = np.maximum(values[::-1][:num_directions], 0.0) / number
    return Subspace(mean, basis * np.where(largest < 0, -1.0, 1.0), variance)


def local_subspace(
    x: ArrayLike, data: ArrayLike, num_neighbors: int, num_directions: int
) -> Subspace:
    """Returns the principal directions of each example's nearest neighbours, by NumPy.

    Args:
      x: `[B, ...]`.
      data: `[N, ...]`, among which neighbours are looked for, in Euclidean distance.
      num_neighbors: m, at most N, and more than k. An example that is among the data is its own.
      num_directions: k.

    Returns:
      Leaves `[B, ...]`.

    Raises:
      ValueError: for another m, or for k as in `principal`.
    """
    points, pool = (np.asarray(v, np.float64).reshape(len(np.asarray(v)), -1) for v in (x, data))
    if not 2 <= num_neighbors <= len(pool):
        raise ValueError(f"num_neighbors must lie in [2, {len(pool)}], got {num_neighbors}")
    squared = (pool**2).sum(1) - 2 * points @ pool.T
    nearest = np.argpartition(squared, num_neighbors - 1, axis=1)[:, :num_neighbors]
    found = [principal_subspace(pool[rows], num_directions) for rows in nearest]
    return Subspace(*(np.stack(leaves) for leaves in zip(*found, strict=True)))


def split_on_subspace(delta: Array, basis: Array) -> Parts:
    """Returns the projection of perturbations onto a subspace, and what is left of them.

    Args:
      delta: `[..., d]`.
      basis: `[k, d]`, orthonormal.

    Examples:
      >>> parts = input_space.split_on_subspace(jnp.array([3.0, 4.0]), jnp.array([[1.0, 0.0]]))
      >>> print(parts.on, parts.off)
      [3. 0.] [0. 4.]
    """
    on = (delta @ basis.T) @ basis
    return Parts(on, delta - on)


def subspace_energy(delta: Array, basis: Array) -> tuple[Array, Array]:
    """Returns ‖Pδ‖² and ‖δ‖², `[...]` each: their ratio is the energy share of the subspace.

    In a direction that is uniform over the sphere the share has expectation k/d.

    Args:
      delta: δ, `[..., d]`.
      basis: `[k, d]`, orthonormal.
    """
    return ((delta @ basis.T) ** 2).sum(-1), (delta**2).sum(-1)


def rescale_parts(
    x: Array, direction: Array, length: Array, bounds: tuple[Any, Any] = (0.0, 1.0)
) -> Rescaled:
    """Returns points so far along a direction that the move has a given length after clipping.

    Where the box does not allow it, the move is as long as it can be.

    Args:
      x: `[B, ...]` within bounds.
      direction: `[B, ...]`, of any length; no move where it is 0.
      length: `[B]`, of the move in l2.
      bounds: of the box.

    Formula: 40 bisections of the scale, up to that at which every moving feature is at its bound,
    or 10⁴ of the direction's own length: beyond, only features that it hardly has are chased.

    Examples:
      >>> x, direction = jnp.array([[0.5, 0.875]]), jnp.array([[1.0, 1.0]])
      >>> found = input_space.rescale_parts(x, direction, jnp.array([0.325]))
      >>> print(found.points.round(3))  # what one pixel lacks the other makes up
      [[0.8 1. ]]
    """
    flat, along = x.reshape(x.shape[0], -1), direction.reshape(x.shape[0], -1)
    norm = jnp.linalg.norm(along, axis=-1, keepdims=True)
    found = controls.stretched(flat, along / jnp.where(norm > 0, norm, 1.0), length, bounds)
    return Rescaled(found.reshape(x.shape), jnp.linalg.norm(found - flat, axis=-1))


def _unit(vector: Array) -> Array:
    """Returns `[d]` of length 1; 0 where it is 0. Scaled first, for squares of small numbers."""
    largest = jnp.abs(vector).max()
    scaled = vector / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.linalg.norm(scaled)
    return scaled / jnp.where(norm > 0, norm, 1.0)
