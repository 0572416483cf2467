"""Curvature of a landscape: Hessian products, Lanczos, traces, spectral densities, sharpness.

Everything takes a `loss_fn(params) -> scalar` and sees its Hessian H through products alone, at the
cost of about two gradients each. Lift over an ensemble with `vmap`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from halfway import losses, trees
from halfway.types import Array, Key, Params, ScalarFn

_BLOCK = 10
"""Rows of a basis that are read at once."""


def hessian_product(loss_fn: ScalarFn, params: Params, vector: Params) -> Params:
    """Returns H v at `params`, a pytree like `params`: the derivative of the gradient along v.

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree; the point of parameter space.
      vector: v, a pytree like `params`.

    Examples:
      >>> loss_fn = lambda z: z[0] ** 2 * z[1]
      >>> print(landscapes.hessian_product(loss_fn, jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])))
      [4. 2.]
    """
    _, join = trees.split(params)
    fn, leaves = trees.on_floating(lambda point: losses.smooth_scalar(loss_fn(point)), params)
    product = jax.jvp(jax.grad(fn), (leaves,), (_tangents(params, vector),))[1]
    return join(product, direction=True)


def gauss_newton_product(
    output_fn: Callable[[Params], Array],
    loss_fn: Callable[[Array], Array],
    params: Params,
    vector: Params,
) -> Params:
    """Returns G v = Jᵀ H_out J v at `params`, the part of H v without the model's own curvature.

    G is positive semidefinite where the loss is convex in the outputs.

    Args:
      output_fn: a function of parameters that returns outputs, e.g. logits `[B, C]`.
      loss_fn: a function of outputs that returns a scalar, e.g. the mean cross-entropy.
      params: θ, a pytree; the point of parameter space.
      vector: v, a pytree like `params`.

    Returns:
      A pytree like `params`.

    Source: Schraudolph (2002).
    """
    _, join = trees.split(params)
    fn, leaves = trees.on_floating(output_fn, params)
    outputs, tangent = jax.jvp(fn, (leaves,), (_tangents(params, vector),))
    _, vjp = jax.vjp(fn, leaves)
    return join(vjp(hessian_product(loss_fn, outputs, tangent))[0], direction=True)


def _tangents(params: Params, vector: Params) -> list[Array]:
    """Returns the leaves of a vector at the floating-point leaves of the parameters."""
    leaves, _ = trees.split(params)
    vectors = trees.select(params, vector)
    return [jnp.asarray(v).astype(leaf.dtype) for v, leaf in zip(vectors, leaves, strict=True)]


class Lanczos(NamedTuple):
    """A tridiagonal section of a symmetric matrix, `Vᵀ H V = T`.

    Attributes:
      basis: `[K, D]`, orthonormal rows v_1, ..., v_K; zero from `num_steps` on.
      diagonal: `[K]`, the diagonal of T; 0 from `num_steps` on.
      off_diagonal: `[K]`, the coupling of each vector to the next; 0 where the space reached by
        then is invariant and the next vector was drawn afresh.
      num_steps: scalar int, the number of vectors that were made.
    """

    basis: Array
    diagonal: Array
    off_diagonal: Array
    num_steps: Array


def lanczos(
    product_fn: Callable[[Array], Array],
    start: Array,
    key: Key,
    *,
    num_steps: int,
    stop_fn: Callable[[Lanczos], Array] | None = None,
) -> Lanczos:
    """Returns the result of `num_steps` steps of Lanczos with full reorthogonalization.

    Each new vector is made orthogonal to all earlier ones, a second time where the first pass took
    much away, so that no eigenvalue appears more often than it exists. Where the space reached is
    invariant (a breakdown: the coupling is rounding alone), the iteration continues from a random
    vector orthogonal to that space, without coupling.

    Args:
      product_fn: a function of a vector `[D]` that returns H times the vector; H is symmetric.
      start: `[D]`, the first vector, not 0; it is normalized here.
      key: a PRNG key for the vectors after a breakdown, consumed.
      num_steps: K, the largest number of steps, 1 to D.
      stop_fn: a function of the state that returns a bool, called after each step; True stops the
        iteration. None: it never stops early.

    Raises:
      ValueError: if `num_steps` is not within 1 and D.
    """
    (size,) = start.shape
    if not 1 <= num_steps <= size:
        raise ValueError(f"num_steps must lie in [1, {size}], the dimension, got {num_steps}")
    tiny = 10 * jnp.finfo(start.dtype).eps
    block = min(_BLOCK, num_steps)
    num_rows = num_steps + -num_steps % block

    def orthogonal(basis, vector, count):
        def remove(index, vector):
            rows = lax.dynamic_slice_in_dim(basis, index * block, block)
            return vector - (rows @ vector) @ rows

        # Rows that are not made yet are 0; reading them would cost as much as reading the others.
        return lax.fori_loop(0, (count + block - 1) // block, remove, vector)

    def step(carry):
        state, vector, scale = carry
        index, count = state.num_steps, state.num_steps + 1
        before = jnp.where(index > 0, state.basis[index - 1], 0)
        coupled = jnp.where(index > 0, state.off_diagonal[index - 1], 0)
        basis = state.basis.at[index].set(vector)
        product = product_fn(vector)
        scale = jnp.maximum(scale, trees.norm(product))
        diagonal = product @ vector
        local = product - diagonal * vector - coupled * before
        rest = orthogonal(basis, local, count)
        # Where a pass takes much away, its rounding error is large beside what is left.
        rest = lax.cond(
            trees.norm(rest) < 0.7 * trees.norm(local),
            lambda rest: orthogonal(basis, rest, count),
            lambda rest: rest,
            rest,
        )
        coupling = trees.norm(rest)
        broken = coupling <= tiny * scale

        def anew(_):
            fresh = jax.random.normal(jax.random.fold_in(key, index), vector.shape, vector.dtype)
            fresh = trees.unit(fresh)
            for _ in range(4):
                fresh = orthogonal(basis, fresh, count)
            return fresh

        following = lax.cond(broken, anew, lambda rest: rest, rest)
        # In the last dimension nothing is left of a fresh vector, but it is never used.
        following = trees.unit(following)
        state = Lanczos(
            basis,
            state.diagonal.at[index].set(diagonal),
            state.off_diagonal.at[index].set(jnp.where(broken, 0.0, coupling)),
            count,
        )
        return state, following, scale

    def goes_on(carry):
        state = carry[0]
        within = state.num_steps < num_steps
        return within if stop_fn is None else within & ~stop_fn(state)

    zeros = jnp.zeros(num_steps, start.dtype)
    empty = Lanczos(jnp.zeros((num_rows, size), start.dtype), zeros, zeros, jnp.int32(0))
    first = (empty, trees.unit(start), jnp.zeros((), start.dtype))
    state = lax.while_loop(goes_on, step, first)[0]
    return state._replace(basis=state.basis[:num_steps])


def _ritz(state: Lanczos) -> tuple[Array, Array]:
    """Returns ascending eigenvalues and eigenvectors of T, unmade steps below all others."""
    made = jnp.arange(state.diagonal.size) < state.num_steps
    # Entries of any size are scaled to be near 1, and what is made up lies near them.
    scale = trees.power_of_two(jnp.maximum(jnp.abs(state.diagonal), state.off_diagonal).max())
    diagonal, off_diagonal = state.diagonal / scale, state.off_diagonal / scale
    # By Gershgorin nothing of T is below this.
    low = -(jnp.abs(diagonal).max() + 2 * off_diagonal.max() + 1)
    inner = jnp.where(made[1:], off_diagonal[:-1], 0)
    matrix = jnp.diag(jnp.where(made, diagonal, 2 * low))
    values, vectors = jnp.linalg.eigh(matrix + jnp.diag(inner, 1) + jnp.diag(inner, -1))
    return values * scale, vectors


@struct.dataclass
class Eigenpairs:
    """Eigenvalues of a Hessian with their vectors, and how far they can be trusted.

    It unpacks into values and vectors: `values, vectors = top_eigenvalues(...)`.

    Attributes:
      values: `[k]`, the eigenvalues, descending.
      vectors: the unit vectors, a pytree like the parameters with leaves `[k, ...]`.
      residuals: `[k]`, ‖H v − λ v‖ of each; within so much of λ lies an eigenvalue.
      converged: `[k]` bool, whether the errors of this value and of all larger ones are within the
        tolerance.
    """

    values: Array
    vectors: Params
    residuals: Array
    converged: Array

    def __iter__(self) -> Iterator[Any]:
        return iter((self.values, self.vectors))


def top_eigenvalues(
    loss_fn: ScalarFn,
    params: Params,
    key: Key,
    *,
    num_eigenvalues: int,
    max_steps: int = 100,
    tolerance: float = 1e-4,
) -> Eigenpairs:
    """Returns the largest (algebraic) eigenvalues of the Hessian, descending, and their vectors.

    Lanczos stops where the error of each eigenvalue is below `tolerance` times the largest |λ|, or
    after `max_steps` products. With the residual r = ‖H v − λ v‖ the error is at most
    min(r, r²/gap), where gap is the distance to the next Ritz value (Kato and Temple). The error of
    a vector is about r/gap, so `tolerance` bounds its square. A multiple eigenvalue is found once,
    unless its eigenspace is exhausted. What has not converged is flagged, not left out: read
    `converged` where eigenvalues lie close together, and raise `max_steps` there.

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree; the point of parameter space.
      key: a PRNG key, consumed.
      num_eigenvalues: k, the number of eigenvalues, static.
      max_steps: the largest number of products, static; at most D, the number of parameters, are
        taken. Memory is `max_steps` D.
      tolerance: the error of an eigenvalue that is allowed, relative to the largest |λ|.

    Returns:
      The values `[k]` and the unit vectors, with residuals and flags; the residuals take k
      further products where they are read. Integers among the parameters are 0 in the vectors.

    Raises:
      ValueError: if `num_eigenvalues` is not within 1 and the number of steps.
    """
    flat, unravel = trees.flatten(params)
    num_steps = min(max_steps, flat.size)
    if not 1 <= num_eigenvalues <= num_steps:
        raise ValueError(
            f"num_eigenvalues must lie in [1, {num_steps}], the steps, got {num_eigenvalues}"
        )
    product_fn = _flat_product(loss_fn, params)
    key_start, key_fresh = jax.random.split(key)

    tiny = jnp.finfo(flat.dtype).tiny

    def errors(state):
        values, vectors = _ritz(state)
        made = jnp.arange(num_steps) == state.num_steps - 1
        last = jnp.where(made[:, None], vectors, 0).sum(0)
        coupling = jnp.where(made, state.off_diagonal, 0).sum()
        residuals = jnp.abs(last * coupling)
        bounds = _error_bounds(values, residuals)
        # A breakdown has residual 0, and may have missed a multiple of an eigenvalue.
        return jnp.where(coupling == 0, jnp.inf, bounds[-num_eigenvalues:].max())

    def converged(state):
        scale = jnp.abs(state.diagonal).max() + tiny
        # The eigenvalues of T cost as much as a product does for a small network.
        asked = (state.num_steps >= num_eigenvalues) & (state.num_steps % 4 == 0)
        return (
            lax.cond(asked, errors, lambda _: jnp.full((), jnp.inf, flat.dtype), state)
            <= tolerance * scale
        )

    start = jax.random.normal(key_start, flat.shape, flat.dtype)
    state = lanczos(product_fn, start, key_fresh, num_steps=num_steps, stop_fn=converged)
    values, vectors = _ritz(state)
    rows = vectors[:, ::-1][:, :num_eigenvalues].T @ state.basis
    top = values[::-1][:num_eigenvalues]
    products = lax.map(product_fn, rows)
    residuals = trees.norm(products - top[:, None] * rows, axis=1)
    # Those of the other Ritz values do not matter: only the places of these do.
    others = jnp.zeros(num_steps - num_eigenvalues, residuals.dtype)
    bounds = _error_bounds(values, jnp.concatenate([others, residuals[::-1]]))[::-1]
    made = jnp.arange(num_steps) < state.num_steps
    largest = jnp.where(made, jnp.abs(values[::-1]), 0).max()
    return Eigenpairs(
        values=top,
        vectors=jax.vmap(lambda row: unravel(row, direction=True))(rows),
        residuals=residuals,
        # What lies below one that has not converged may be another eigenvalue than it seems.
        converged=lax.cummax(bounds[:num_eigenvalues]) <= tolerance * largest,
    )


def _error_bounds(values: Array, residuals: Array) -> Array:
    """Returns min(r, r²/gap) for ascending Ritz values and their residuals."""
    scale = trees.power_of_two(jnp.abs(values).max())  # for squares of small and large numbers
    values, residuals = values / scale, residuals / scale
    apart = jnp.diff(values, prepend=-jnp.inf, append=jnp.inf)
    gaps = jnp.maximum(jnp.minimum(apart[:-1], apart[1:]), residuals)
    return residuals**2 / jnp.maximum(gaps, jnp.finfo(values.dtype).tiny) * scale


def power_iteration(product_fn: Callable[[Array], Array], start: Array, *, num_steps: int) -> Array:
    """Returns the eigenvalue of largest |λ| of a symmetric map, by Rayleigh's quotient.

    After K steps its relative error is of the order of the 2 K-th power of |λ_2/λ_1|. Where λ_2 has
    the other sign and nearly the same size, the iterates turn back and forth between the two
    eigenvectors; from |λ_2| ≥ .8 |λ_1| on, the result is the Ritz value of largest |λ| in the span
    of the last two iterates instead, which needs no further product. Of two eigenvalues λ and −λ
    it is either. It takes more products than Lanczos, but it keeps no basis and decomposes no
    matrix, which some backends cannot do for many members at once.

    Args:
      product_fn: a function of a vector `[D]` that returns H times the vector; H is symmetric.
      start: `[D]`, the first vector, not orthogonal to the eigenvector.
      num_steps: K, the number of steps, at least 1, static; at least 3 for eigenvalues of both
        signs.

    Raises:
      ValueError: if `num_steps` is below 1.

    Examples:
      >>> matrix = jnp.array([[2.0, 0.0], [0.0, -3.0]])
      >>> eigenvalue = landscapes.power_iteration(lambda v: matrix @ v, jnp.ones(2), num_steps=30)
      >>> print(round(float(eigenvalue), 4))
      -3.0
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    tiny = jnp.finfo(start.dtype).tiny

    def step(index, carry):
        _, _, vector, product = carry
        length = trees.norm(product)
        following = product / jnp.maximum(length, tiny)
        # The start is no product: it tells nothing of an eigenvalue.
        return vector, jnp.where(index > 0, length, tiny), following, product_fn(following)

    # One call of the product: nearly all of what it takes to compile is in it.
    carry = (jnp.zeros_like(start), jnp.asarray(tiny), jnp.zeros_like(start), start)
    before, length, vector, product = lax.fori_loop(0, num_steps, step, carry)
    value = vector @ product
    return _larger_of_two(before, length, vector, product, value)


def _larger_of_two(
    before: Array, length: Array, vector: Array, product: Array, value: Array
) -> Array:
    """Returns the Ritz value of largest |λ| of two iterates, where the signs of the two differ.

    Args:
      before: `[D]`, the unit vector v.
      length: ‖H v‖.
      vector: `[D]`, H v/‖H v‖.
      product: `[D]`, H² v/‖H v‖.
      value: Rayleigh's quotient of `vector`, which is returned where the signs agree.
    """
    scale = trees.power_of_two(jnp.maximum(jnp.abs(product).max(), length))
    length, product = length / scale, product / scale
    cosine = before @ vector
    rest = vector - cosine * before
    sine = trees.norm(rest)
    # Below so small an angle Rayleigh's quotient is right, and the rest is rounding.
    apart = sine > 1e-3
    rest = rest / jnp.where(apart, sine, 1)
    image = (product - cosine * length * vector) / jnp.where(apart, sine, 1)
    corner, side, other = length * cosine, length * (rest @ vector), rest @ image
    middle, half = (corner + other) / 2, jnp.hypot((corner - other) / 2, side)
    low, high = middle - half, middle + half
    both_signs = (low < 0) & (high > 0) & (jnp.minimum(-low, high) >= 0.8 * jnp.maximum(-low, high))
    larger = jnp.where(-low > high, low, high) * scale
    return jnp.where(apart & both_signs, larger, value)


def sharpness(loss_fn: ScalarFn, params: Params, key: Key, *, num_steps: int = 20) -> Array:
    """Returns the Hessian's eigenvalue of largest |λ| by `power_iteration` from a random start.

    Where λ and −λ are both the largest, it is either.

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree; the point of parameter space.
      key: a PRNG key, consumed.
      num_steps: the number of products with the Hessian.
    """
    flat, _ = trees.flatten(params)
    start = jax.random.normal(key, flat.shape, flat.dtype)
    return power_iteration(_flat_product(loss_fn, params), start, num_steps=num_steps)


def hessian_trace(
    loss_fn: ScalarFn,
    params: Params,
    key: Key,
    *,
    num_samples: int,
    method: str = "hutchinson",
    chunk_size: int = 5,
) -> tuple[Array, Array]:
    """Returns an unbiased estimate of tr H and its standard error.

    "hutchinson" takes the mean of zᵀHz over Rademacher vectors z; each term has the variance
    `2(‖H‖_F² − Σ H_ii²)`. "hutch++" (Meyer et al., arXiv 2010.09649) spans a subspace that holds
    the large eigenvalues with a third of the products, takes the trace on it exactly with another
    third, and samples the rest with the last third, whose spread gives the standard error. It is
    better where few eigenvalues dominate.

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree; the point of parameter space.
      key: a PRNG key, consumed.
      num_samples: the number of Hessian products, at least 2 ("hutch++": 6).
      method: "hutchinson" or "hutch++".
      chunk_size: the number of samples taken at once, which share the pass at `params`; the memory
        of activations grows with it.

    Raises:
      ValueError: for another method, or too few samples for a standard error.
    """
    least = {"hutchinson": 2, "hutch++": 6}
    if method not in least:
        raise ValueError(f"unknown method {method!r}: choose hutchinson or hutch++")
    if num_samples < least[method]:
        raise ValueError(f"{method} needs at least {least[method]} samples, got {num_samples}")
    flat, unravel = trees.flatten(params)
    product_fn = _flat_product(loss_fn, params)
    key_sketch, key_probes = jax.random.split(key)
    exact, num_probes = jnp.zeros((), flat.dtype), num_samples
    basis = jnp.zeros((0, flat.size), flat.dtype)
    if method == "hutch++":
        rank = min(num_samples // 3, flat.size)
        sketch = jax.random.rademacher(key_sketch, (rank, flat.size), flat.dtype)
        basis = _orthonormal(lax.map(product_fn, sketch))
        exact = (basis * lax.map(product_fn, basis)).sum()
        num_probes = num_samples - 2 * rank

    def slope(point, z):
        return jax.jvp(lambda flat: losses.smooth_scalar(loss_fn(unravel(flat))), (point,), (z,))[1]

    def probe(key):
        z = jax.random.rademacher(key, flat.shape, flat.dtype)
        z = z - (basis @ z) @ basis
        # Forward mode alone takes half of the arithmetic of H z.
        return jax.jvp(lambda point: slope(point, z), (flat,), (z,))[1]

    keys = jax.random.split(key_probes, num_probes)
    samples = lax.map(probe, keys, batch_size=min(chunk_size, num_probes))
    scale = trees.power_of_two(jnp.abs(samples).max())  # for squares of small and large numbers
    deviation = (samples / scale).std(ddof=1) * scale
    return exact + samples.mean(), deviation / jnp.sqrt(num_probes)


def _orthonormal(rows: Array) -> Array:
    """Returns an orthonormal basis `[K, D]` of the rows' span by Gram-Schmidt, twice each row.

    A row within the span of the earlier rows becomes 0. (A vmapped `jnp.linalg.qr` can stall.)
    """
    tiny = 10 * jnp.finfo(rows.dtype).eps

    def add(index, basis):
        row = rows[index]
        rest = row
        for _ in range(2):
            rest = rest - (basis @ rest) @ basis
        norm = trees.norm(rest)
        dependent = norm <= tiny * trees.norm(row)
        return basis.at[index].set(jnp.where(dependent, 0, rest / jnp.where(dependent, 1, norm)))

    return lax.fori_loop(0, rows.shape[0], add, jnp.zeros_like(rows))


class SpectralDensity(NamedTuple):
    """The spectrum of a Hessian as quadrature, from R random starts of K Lanczos steps.

    Attributes:
      nodes: `[R, K]`, the eigenvalues of each T.
      weights: `[R, K]`, the squared first components of its eigenvectors; each row sums to 1.
        `(weights * f(nodes)).sum(-1).mean()` estimates tr f(H)/D.
    """

    nodes: Array
    weights: Array


def spectral_density(
    loss_fn: ScalarFn, params: Params, key: Key, *, num_steps: int, num_samples: int
) -> SpectralDensity:
    """Returns the Hessian's spectral density by stochastic Lanczos quadrature.

    Polynomials up to degree 2 K − 1 are integrated exactly along each start (Ubaru et al. 2017;
    Ghorbani et al., arXiv 1901.10159).

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree; the point of parameter space.
      key: a PRNG key, consumed.
      num_steps: K, the number of Lanczos steps, at most the number of parameters.
      num_samples: R, the number of random starts.

    Raises:
      ValueError: if `num_steps` is not within 1 and the number of parameters.
    """
    flat, _ = trees.flatten(params)
    product_fn = _flat_product(loss_fn, params)

    def quadrature(key):
        key_start, key_fresh = jax.random.split(key)
        start = jax.random.normal(key_start, flat.shape, flat.dtype)
        nodes, vectors = _ritz(lanczos(product_fn, start, key_fresh, num_steps=num_steps))
        return nodes, vectors[0] ** 2

    return SpectralDensity(*lax.map(quadrature, jax.random.split(key, num_samples)))


def smooth_density(density: SpectralDensity, grid: Array, *, width: float) -> tuple[Array, Array]:
    """Returns the density on a grid as a mixture of Gaussians, and its standard error over starts.

    Args:
      density: the spectral density of R ≥ 2 starts.
      grid: `[G]`, the eigenvalues at which it is wanted.
      width: standard deviation of each Gaussian, in units of the eigenvalues.

    Returns:
      Two arrays `[G]`; the first integrates to 1 over a grid that holds the spectrum.
    """
    scaled = (grid[:, None, None] - density.nodes[None]) / width
    bumps = jnp.exp(-0.5 * scaled**2) / (width * jnp.sqrt(2 * jnp.pi))
    curves = (density.weights[None] * bumps).sum(-1)
    error = curves.std(axis=1, ddof=1) / jnp.sqrt(curves.shape[1])
    return curves.mean(1), error


def sam_sharpness(loss_fn: ScalarFn, params: Params, *, radius: float | Array) -> Array:
    """Returns L(θ + r g/‖g‖) − L(θ), the ascent of one normalized gradient step (SAM).

    It is 0 where the gradient is 0.

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree.
      radius: r, the length of the step in l2 over all parameters.

    Returns:
      A scalar.

    Source: Foret et al., arXiv 2010.01412.
    """
    flat, unravel = trees.flatten(params)
    value_fn = jax.value_and_grad(lambda point: losses.smooth_scalar(loss_fn(unravel(point))))
    value, gradient = value_fn(flat)
    return loss_fn(unravel(flat + radius * trees.unit(gradient))) - value


def worst_case_sharpness(
    loss_fn: ScalarFn,
    params: Params,
    key: Key,
    *,
    radius: float | Array,
    num_steps: int = 20,
    relative_step: float = 0.5,
) -> Array:
    """Returns the largest L(θ + δ) − L(θ) that normalized gradient ascent finds with ‖δ‖ ≤ r.

    It is a lower bound of the true maximum and at least 0; for a quadratic at its minimum it tends
    to ½ r² λ_max.

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree.
      key: a PRNG key for the random point of the sphere where ascent starts, consumed.
      radius: r, the largest ‖δ‖ in l2 over all parameters.
      num_steps: the number of steps of ascent.
      relative_step: the length of a step as a share of r.
    """
    flat, unravel = trees.flatten(params)
    value_fn = jax.value_and_grad(
        lambda delta: losses.smooth_scalar(loss_fn(unravel(flat + delta)))
    )

    def step(carry, _):
        delta, best = carry
        value, gradient = value_fn(delta)
        moved = delta + relative_step * radius * trees.unit(gradient)
        moved = optax.projections.projection_l2_ball(moved, radius)
        return (moved, jnp.maximum(best, value)), None

    base = loss_fn(params)
    start = radius * trees.unit(jax.random.normal(key, flat.shape, flat.dtype))
    (delta, best), _ = lax.scan(step, (start, base), length=num_steps)
    return jnp.maximum(best, value_fn(delta)[0]) - base


def _flat_product(loss_fn: ScalarFn, params: Params) -> Callable[[Array], Array]:
    flat, unravel = trees.flatten(params)
    gradient_fn = jax.grad(lambda point: losses.smooth_scalar(loss_fn(unravel(point))))
    return lambda vector: jax.jvp(gradient_fn, (flat,), (vector,))[1]
