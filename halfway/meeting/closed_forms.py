"""Closed forms: the linear-Gaussian model (P7), its simulation, and the midpoint (P8).

In the model x ~ N(0, I_d) and y = ⟨w*, x⟩ + σξ with ξ ~ N(0, 1). A half is n examples, and its
model is the solution of least squares, of minimum norm where there are many. The score's input
gradient is w, so that generalization (‖w_A − w*‖²) and transfer (⟨w_A, w_B⟩) are both known.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike

from halfway.meeting.replicates import map_replicates
from halfway.types import Array, Key, is_traced

_CHUNK = 2**22
"""How many numbers of designs `simulate_linear_gaussian` holds at a time."""


class LinearGaussian(NamedTuple):
    """Expectations over two independent halves of the linear-Gaussian model.

    Attributes:
      risk: R = E‖w_A − w*‖², the excess risk in squared error.
      overlap: E⟨w_A, w_B⟩.
      norm: E‖w_A‖².
      coefficient: μ_x = overlap / norm, the local coefficient in input space.
      midpoint_risk: excess risk of (w_A + w_B)/2.
    """

    risk: Array
    overlap: Array
    norm: Array
    coefficient: Array
    midpoint_risk: Array


def linear_gaussian(
    num_examples: ArrayLike, dimension: ArrayLike, signal: ArrayLike, noise: ArrayLike
) -> LinearGaussian:
    """Returns risk, overlap and norm of least squares on two independent halves (P7).

    With a = min(1, n/d), the share of w* that a half determines, s² = ‖w*‖² and the variance
    `V = σ² min(n, d) / (|n − d| − 1)`, for |n − d| > 1

        R = (1 − a) s² + V
        E⟨w_A, w_B⟩ = a² s²
        E‖w_A‖² = a s² + V
        midpoint risk = (1 − a)(1 − a/2) s² + V/2

    So for n > d + 1 the midpoint has risk R/2 and μ_x is 1/(1 + R/s²): transfer is a function of
    generalization alone. For n < d − 1 it is not. V is 0 where σ = 0, for any n. Otherwise it is
    infinite where |n − d| ≤ 1. From E (XᵀX)⁻¹ = I/(n − d − 1), the mean of an inverse Wishart
    matrix, and E P = (n/d) I, P the projection on the span of n < d examples; R is as in Hastie
    et al., *Surprises in high-dimensional ridgeless least squares interpolation*, arXiv 1903.08560.

    Works under `jit`, `vmap` and `grad`. Derivatives by `noise` at noise 0 within |n − d| ≤ 1 are
    infinite, and given as 0.

    Args:
      num_examples: n ≥ 1, the number of examples of each half.
      dimension: d ≥ 1, the dimension of x.
      signal: s² = ‖w*‖² ≥ 0.
      noise: σ² ≥ 0, the variance of the noise. All arguments broadcast against each other.

    Returns:
      Fields of the shape that the arguments broadcast to. `coefficient` is NaN where the norm is 0;
      all are NaN where |n − d| ≤ 1 with noise and the arguments are traced.

    Raises:
      ValueError: if an argument is out of range, or |n − d| ≤ 1 with noise; only where the
        arguments are not traced.

    Examples:
      >>> exact = meeting.linear_gaussian(21, 10, signal=1.0, noise=1.0)
      >>> print(exact.risk, exact.coefficient)  # the risk is as large as the signal: halfway
      1.0 0.5
    """
    _check_ranges(num_examples, dimension, signal, noise)
    _check_gap(num_examples, dimension, noise)
    arguments = (jnp.asarray(value) for value in (num_examples, dimension, signal, noise))
    n, d, signal, noise = jnp.broadcast_arrays(*arguments)

    freedom = jnp.abs(n - d) - 1
    in_gap = freedom <= 0
    variance = noise * jnp.where(in_gap, 0.0, jnp.minimum(n, d) / jnp.where(in_gap, 1, freedom))
    # A factor, not a `where` around the results: derivatives are NaN too.
    defined = jnp.where(in_gap & (noise > 0), jnp.nan, 1.0)
    share = jnp.minimum(1.0, n / d)

    overlap = defined * share**2 * signal
    norm = defined * (share * signal + variance)
    is_zero = norm == 0
    return LinearGaussian(
        risk=defined * ((1 - share) * signal + variance),
        overlap=overlap,
        norm=norm,
        coefficient=jnp.where(is_zero, jnp.nan, overlap / jnp.where(is_zero, 1.0, norm)),
        # ½(norm + overlap) − 2 share · signal + signal, without its cancellation.
        midpoint_risk=defined * ((1 - share) * (1 - share / 2) * signal + variance / 2),
    )


def _check_ranges(
    num_examples: ArrayLike, dimension: ArrayLike, signal: ArrayLike, noise: ArrayLike
) -> None:
    """Checks that counts are at least 1 and sizes finite and at least 0, unless traced."""
    for name, count in (("num_examples", num_examples), ("dimension", dimension)):
        if not is_traced(count):
            counts = np.asarray(count)
            if np.any(wrong := ~(counts >= 1)):
                raise ValueError(f"{name} must be at least 1, got {counts[wrong][0]}")
    for name, size in (("signal", signal), ("noise", noise)):
        if not is_traced(size):
            sizes = np.asarray(size)
            if np.any(wrong := ~(np.isfinite(sizes) & (sizes >= 0))):
                raise ValueError(f"{name} must be finite and at least 0, got {sizes[wrong][0]}")


def _check_gap(num_examples: ArrayLike, dimension: ArrayLike, noise: ArrayLike) -> None:
    """Checks that the risk has an expectation, unless arguments are traced."""
    if any(map(is_traced, (num_examples, dimension, noise))):
        return
    n, d, noise = np.broadcast_arrays(*map(np.asarray, (num_examples, dimension, noise)))
    if np.any(wrong := (np.abs(n - d) <= 1) & (noise > 0)):
        raise ValueError(
            "with noise, num_examples and dimension must differ by more than 1, got "
            f"{n[wrong][0]} and {d[wrong][0]}: the risk has no expectation"
        )


class Simulation(NamedTuple):
    """A simulation of the linear-Gaussian model; R replicates of two independent halves.

    The fields are those of `LinearGaussian`, whose values are their expectations. The coefficient
    is a ratio of means over replicates and has no value for a single one.

    Attributes:
      risk: `[R]`, ½(‖w_A − w*‖² + ‖w_B − w*‖²).
      overlap: `[R]`, ⟨w_A, w_B⟩.
      norm: `[R]`, ½(‖w_A‖² + ‖w_B‖²).
      midpoint_risk: `[R]`, ‖(w_A + w_B)/2 − w*‖².
    """

    risk: Array
    overlap: Array
    norm: Array
    midpoint_risk: Array


def simulate_linear_gaussian(
    key: Key,
    *,
    num_examples: int,
    dimension: int,
    signal: ArrayLike,
    noise: ArrayLike,
    num_replicates: int,
) -> Simulation:
    """Returns the quantities of P7, measured on replicates of two independent halves.

    Near n = d the distributions have heavy tails: for |n − d| below 4 the risk has no variance, and
    standard errors mean nothing. In float32, solutions are accurate to about 1e-5 at |n − d| ≥ 6.

    Args:
      key: a PRNG key, which is consumed.
      num_examples: n, the number of examples of each half; static.
      dimension: d, the dimension of x; static.
      signal: s² = ‖w*‖², a scalar. By symmetry the direction of w* does not matter; it is (1, ...).
      noise: σ², the variance of the noise, a scalar.
      num_replicates: R, the number of replicates; static.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> simulate = functools.partial(
      ...     meeting.simulate_linear_gaussian, num_examples=21, dimension=10)
      >>> measured = simulate(jax.random.key(0), signal=1.0, noise=1.0, num_replicates=2000)
      >>> f"{measured.overlap.mean() / measured.norm.mean():.1f}"  # halfway
      '0.5'
    """
    if num_replicates < 1:
        raise ValueError(f"num_replicates must be at least 1, got {num_replicates}")
    _check_ranges(num_examples, dimension, signal, noise)
    optimum = jnp.full(dimension, jnp.sqrt(jnp.asarray(signal) / dimension))
    sigma = jnp.sqrt(jnp.asarray(noise))

    def fit(key):
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (num_examples, dimension))
        return minimum_norm_fit(
            x, x @ optimum + sigma * jax.random.normal(noise_key, (num_examples,))
        )

    def replicate(key):
        a, b = jax.vmap(fit)(jax.random.split(key))
        return Simulation(
            risk=(jnp.sum((a - optimum) ** 2) + jnp.sum((b - optimum) ** 2)) / 2,
            overlap=jnp.sum(a * b),
            norm=(jnp.sum(a**2) + jnp.sum(b**2)) / 2,
            midpoint_risk=jnp.sum(((a + b) / 2 - optimum) ** 2),
        )

    chunk = max(1, min(num_replicates, _CHUNK // (num_examples * dimension)))
    keys = jax.random.split(key, num_replicates)
    # Not the tensor cores' 10 bits, which JAX takes for products of float32 on some devices.
    with jax.default_matmul_precision("highest"):
        return map_replicates(replicate, keys, at_once=chunk)


def minimum_norm_fit(x: Array, y: Array) -> Array:
    """Returns the least-squares solution `[d]` of minimum norm, for x of full rank.

    It is solved by Cholesky factors of the smaller Gram matrix, which are fast under `vmap`. One
    step of refinement makes good the error that squaring the condition number brings.

    Args:
      x: inputs `[N, d]` of rank min(N, d).
      y: outcomes `[N]`.

    Examples:
      >>> print(meeting.minimum_norm_fit(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([4.0])))
      [2. 0. 0.]
    """
    is_tall = x.shape[0] >= x.shape[1]
    factor = cho_factor(x.T @ x if is_tall else x @ x.T, lower=True)

    def solve(y):
        return cho_solve(factor, x.T @ y) if is_tall else x.T @ cho_solve(factor, y)

    solution = solve(y)
    return solution + solve(y - x @ solution)


def quadratic_midpoint(loss_a: ArrayLike, loss_b: ArrayLike, curvature: ArrayLike) -> Array:
    """Returns the loss in the middle between two models on a quadratic landscape (P8).

    `L((θ_A + θ_B)/2) = ½(L(θ_A) + L(θ_B)) − ⅛ ΔᵀHΔ`, Δ = θ_A − θ_B. So the barrier on the linear
    path, measured from the mean of its ends, is −⅛ ΔᵀHΔ. A convex quadratic has no barrier; that of
    a network comes from terms beyond second order, or from negative curvature.

    Args:
      loss_a: L(θ_A), of any shape.
      loss_b: L(θ_B), of the same shape.
      curvature: ΔᵀHΔ with H the Hessian, of the same shape.

    Examples:
      >>> print(meeting.quadratic_midpoint(1.0, 1.0, 8.0))  # L = ½ z², from z = √2 to −√2
      0.0
    """
    loss_a, loss_b, curvature = map(jnp.asarray, (loss_a, loss_b, curvature))
    return (loss_a + loss_b) / 2 - curvature / 8
