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

from halfway import trees
from halfway.transfer import controls
from halfway.types import Array, Key


class Mirror(NamedTuple):
    """A reflection that makes a frame's directions equally aligned with a gradient.

    Attributes:
      normal: `[d]`, the normal of the hyperplane; not of unit length, never near 0.
      sign: scalar, 1 or −1, by which reflected directions are multiplied.
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
      mean: `[d]`, the mean of the data.
      basis: `[k, d]`, orthonormal directions, the largest variance first.
      variance: `[k]`, the variance of the data along each direction (sums divided by N).
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray


class Parts(NamedTuple):
    """A perturbation as the sum of its projection onto a subspace and of the rest.

    Attributes:
      on: `[..., d]`, the projection.
      off: `[..., d]`, the rest.
    """

    on: Array
    off: Array


class Rescaled(NamedTuple):
    """Examples that were moved along a direction by a given length.

    Attributes:
      points: `[B, ...]`, the moved examples, within the box.
      length: `[B]`, the l2 length of the move.
    """

    points: Array
    length: Array


# Directions of equal cosine to a gradient


def orthogonal_frames(
    key: Key, num_directions: int, size: int, *, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """Returns random orthonormal directions `[*shape, k, d]`, uniformly distributed; float32.

    Args:
      key: a PRNG key, consumed.
      num_directions: k, the number of directions, at most d.
      size: d, the number of features.
      shape: the shape of the array of independent frames.

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
      gradient: g, `[d]`; where it is 0, the frame is mirrored but not aligned.
      frame: `[k, d]`, orthonormal directions.
      num: how many of the frame's directions, counted from the first, share the gradient; all by
        default. It may be traced. The other directions become orthogonal to the gradient; with 0,
        the frame is mirrored but not aligned.

    Formula: with z = Σ_{i ≤ num} f_i / √num, ĝ = g/‖g‖ and σ = ±1 the sign of ⟨z, ĝ⟩, reflect along
    v = z + σĝ, ‖v‖² = 2 + 2|⟨z, ĝ⟩|; r_i = −σ (f_i − 2 v ⟨v, f_i⟩/‖v‖²).
    """
    number = frame.shape[0] if num is None else num
    chosen = (jnp.arange(frame.shape[0]) < number).astype(frame.dtype)
    center = (chosen @ frame) / jnp.sqrt(jnp.maximum(jnp.asarray(number, frame.dtype), 1.0))
    unit = trees.unit(trees.real(gradient))
    sign = jnp.where(center @ unit < 0, -1.0, 1.0).astype(frame.dtype)
    return Mirror(center + sign * unit, -sign)


def reflect_directions(mirror: Mirror, directions: Array) -> Array:
    """Returns directions `[..., d]` reflected.

    Args:
      mirror: the reflection, from `mirror_onto`.
      directions: `[..., d]`, all directions of the frame or some of them.
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
      frame: `[k, d]`, orthonormal; a random frame gives random directions of the same cosine.
      num: how many directions, at least 1, have cosine 1/√num, counted from the first; the others
        have cosine 0. All by default.

    Source: the gradient-aligned adversarial subspace of Tramèr et al., arXiv 1704.03453.

    Examples:
      >>> rows = input_space.aligned_directions(jnp.array([0.0, 3.0, 4.0]), jnp.eye(3)[:2])
      >>> cosines = rows @ jnp.array([0.0, 0.6, 0.8])
      >>> print(cosines.round(4), jnp.abs(rows @ rows.T).round(4).tolist())
      [0.7071 0.7071] [[1.0, 0.0], [0.0, 1.0]]
    """
    return reflect_directions(mirror_onto(gradient, frame, num), frame)


def most_directions(increase: Array, gradient_norm: Array, epsilon: Any, size: int) -> Array:
    """Returns how many orthogonal directions of length ε gain `increase` each, to first order.

    Args:
      increase: γ, the rise of the loss that is needed; where it is at most 0, every direction
        suffices.
      gradient_norm: ‖g‖_2, of the shape of `increase`.
      epsilon: ε, the length of a direction in l2.
      size: d, the number of features.

    Returns:
      Integers in [0, d] of the shape of `increase`; 0 where the increase or the norm is NaN.

    Formula: min(⌊ε² ‖g‖² / γ²⌋, d), since the squared cosines to g sum to at most 1.
    Source: Tramèr et al., arXiv 1704.03453, Lemma 1.

    Examples:
      >>> print(input_space.most_directions(jnp.array([1.0, 0.3, 3.0]), jnp.ones(3), 2.0, size=10))
      [ 4 10  0]
    """
    gain = epsilon * gradient_norm
    needed = jnp.where(increase > 0, increase, 1.0)
    # The factor keeps a ratio such as 1.9999999, which stands for 2, from being rounded down.
    count = jnp.floor(jnp.minimum((gain / needed) ** 2, size) * (1 + 1e-6))
    count = jnp.where(increase > 0, jnp.minimum(count, size), size)
    return jnp.where(jnp.isnan(increase) | jnp.isnan(gain), 0, count).astype(jnp.int32)


def move_along(
    x: Array, directions: Array, length: Any, bounds: tuple[Any, Any] = (0.0, 1.0)
) -> Array:
    """Returns points `[B, ...]`, each example moved along its direction, then clipped to the box.

    Args:
      x: `[B, ...]`, the examples, within the bounds.
      directions: `[B, d]`, of unit length.
      length: the length of the step in l2, before clipping.
      bounds: the lowest and the highest value of a feature; infinite for no bounds.
    """
    return jnp.clip(x + length * directions.reshape(x.shape), *bounds)


def fooling_contrast(surrogate_fooled: Array, target_fooled: Array) -> Contrast:
    """Returns how the target fares along directions that fool the surrogate and along the others.

    Both rates belong to one example, so that hard and easy examples are not compared.

    Args:
      surrogate_fooled: `[k, B]` bool, whether each direction fools the surrogate.
      target_fooled: `[k, B]` bool, whether each direction fools the target.

    Examples:
      >>> surrogate = jnp.array([[True, True], [True, True], [False, True], [False, True]])
      >>> target = jnp.array([[True, True], [False, False], [False, True], [False, True]])
      >>> # No direction spares the second example.
      >>> contrast = input_space.fooling_contrast(surrogate, target)
      >>> contrast.along.tolist(), contrast.beside.tolist(), contrast.mixed.tolist()
      ([0.5, 0.0], [0.0, 0.0], [True, False])
    """
    surrogate_fooled, target_fooled = (
        jnp.asarray(fooled, bool) for fooled in (surrogate_fooled, target_fooled)
    )
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
      x: `[N, ...]`, the data, N at least 2.
      num_directions: k, the number of directions, at most min(N − 1, d).

    Raises:
      ValueError: if k does not lie in [1, min(N − 1, d)], or the data are not finite.

    Formula: eigenvectors of the covariance, or of the N × N matrix of inner products where that is
    smaller. Each is given the sign that makes its largest entry positive.

    Examples:
      >>> subspace = input_space.principal_subspace([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]], 1)
      >>> subspace.mean.tolist(), subspace.basis.tolist()
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
    if not np.isfinite(flat).all():
        raise ValueError(f"x must be finite: {int((~np.isfinite(flat)).sum())} entries are not")
    mean = flat.mean(0)
    centred = flat - mean
    if size <= number:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        basis = vectors[:, ::-1][:, :num_directions].T
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        # Directions without variance have length 0 here: QR replaces them by orthogonal ones.
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
      x: `[B, ...]`, the examples.
      data: `[N, ...]`, the data that neighbours are taken from, by Euclidean distance. An example
        that is among the data counts as one of its neighbours.
      num_neighbors: m, the number of neighbours, at most N and more than k.
      num_directions: k, the number of directions.

    Returns:
      Subspaces whose arrays have a leading axis `[B]`.

    Raises:
      ValueError: if m does not lie in [2, N], k in [1, min(m − 1, d)], or a number is not finite.
    """
    points, pool = (np.asarray(v, np.float64).reshape(len(np.asarray(v)), -1) for v in (x, data))
    if not 2 <= num_neighbors <= len(pool):
        raise ValueError(f"num_neighbors must lie in [2, {len(pool)}], got {num_neighbors}")
    for name, values in (("x", points), ("data", pool)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite")
    squared = (pool**2).sum(1) - 2 * points @ pool.T
    nearest = np.argpartition(squared, num_neighbors - 1, axis=1)[:, :num_neighbors]
    subspaces = [principal_subspace(pool[rows], num_directions) for rows in nearest]
    return Subspace(*(np.stack(leaves) for leaves in zip(*subspaces, strict=True)))


def split_on_subspace(delta: Array, basis: Array) -> Parts:
    """Returns the projection of perturbations onto a subspace, and the rest.

    Args:
      delta: `[..., d]`, the perturbations.
      basis: `[k, d]`, an orthonormal basis of the subspace.

    Examples:
      >>> parts = input_space.split_on_subspace(jnp.array([3.0, 4.0]), jnp.array([[1.0, 0.0]]))
      >>> print(parts.on, parts.off)
      [3. 0.] [0. 4.]
    """
    on = (delta @ basis.T) @ basis
    return Parts(on, delta - on)


def subspace_energy(delta: Array, basis: Array) -> tuple[Array, Array]:
    """Returns ‖Pδ‖² and ‖δ‖², `[...]` each: their ratio is the energy share of the subspace.

    For a direction that is uniform over the sphere, the share has expectation k/d.

    Args:
      delta: δ, `[..., d]`, the perturbations.
      basis: `[k, d]`, an orthonormal basis of the subspace.
    """
    return ((delta @ basis.T) ** 2).sum(-1), (delta**2).sum(-1)


def rescale_parts(
    x: Array, direction: Array, length: Array, bounds: tuple[Any, Any] = (0.0, 1.0)
) -> Rescaled:
    """Returns points so far along a direction that the move has a given length after clipping.

    Where the box does not allow this length, the move is as long as possible.

    Args:
      x: `[B, ...]`, the examples, within the bounds.
      direction: `[B, ...]`, of any length; no move where it is 0.
      length: `[B]`, the length of the move in l2.
      bounds: the lowest and the highest value of a feature.

    Formula: 40 bisections of the scale, up to the scale at which every moving feature is at its
    bound, or to 10⁴ times the length of the direction; beyond it only features with tiny components
    would still move.

    Examples:
      >>> x, direction = jnp.array([[0.5, 0.875]]), jnp.array([[1.0, 1.0]])
      >>> rescaled = input_space.rescale_parts(x, direction, jnp.array([0.325]))
      >>> print(rescaled.points.round(3))  # the second pixel is clipped, the first moves further
      [[0.8 1. ]]
    """
    flat, along = (trees.real(v).reshape(v.shape[0], -1) for v in (x, direction))
    stretched = controls.stretched(flat, trees.unit(along, axis=-1), length, bounds)
    return Rescaled(stretched.reshape(x.shape), trees.norm(stretched - flat, axis=-1))
