"""Closed forms: two halves of the linear-Gaussian model (P7) and the middle of two models (P8).

The linear-Gaussian model: x ~ N(0, I_d), y = ⟨w*, x⟩ + σξ with ξ ~ N(0, 1); each half of n examples
has its minimum-norm least-squares solution, w_A and w_B. `signal` is ‖w*‖² and `noise` is σ². The
input gradient of the score ⟨w, x⟩ is w itself, so in this model the walk in weight space and the
one in input space follow the same vectors. Propositions are named as in docs/framework.md.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from halfway.landscapes import curvature, paths
from halfway.types import Array, Key, Params, is_traced


class LinearGaussian(NamedTuple):
    """Expectations of the linear-Gaussian model over two independent halves.

    Attributes:
      risk: R = E‖w_A − w*‖², the excess risk in squared error.
      overlap: E⟨w_A, w_B⟩.
      norm: E‖w_A‖².
      coefficient: μ_x = overlap / norm, how far one model's input gradient descends the other's.
      midpoint_risk: the excess risk of (w_A + w_B)/2.
    """

    risk: Array
    overlap: Array
    norm: Array
    coefficient: Array
    midpoint_risk: Array


def linear_gaussian(
    num_examples: int | Array,
    dimension: int | Array,
    signal: float | Array,
    noise: float | Array,
) -> LinearGaussian:
    """Returns the exact expectations of the linear-Gaussian model (P7), each of the joint shape.

    With r = min(1, n/d) and the variance `V = σ² min(n, d) / (|n − d| − 1)`, from the mean of an
    inverse Wishart matrix:

        E⟨w_A, w_B⟩ = r² s²     E‖w_A‖² = r s² + V     R = (1 − r) s² + V

    and the midpoint has excess risk `R/2 + ½ (1 − r)² s²`. For n > d + 1 that is R/2, and
    `μ_x = 1/(1 + R/s²)`: transfer is a function of generalization alone. For n < d − 1 it is
    smaller. With σ = 0 there is no gap around n = d; otherwise nothing has an expectation where
    |n − d| ≤ 1, nor has R a derivative by σ² there.

    Args:
      num_examples: n ≥ 1, of each half; arguments broadcast against each other.
      dimension: d ≥ 1.
      signal: s² = ‖w*‖² ≥ 0; 0 gives μ_x = 0, and NaN (nothing is followed) where σ² is 0 too.
      noise: σ² ≥ 0.

    Returns:
      fields of the broadcast shape; NaN where |n − d| ≤ 1 and σ² > 0 if any of the three is traced.

    Raises:
      ValueError: for concrete arguments out of range, or within that gap.

    Examples:
      >>> law = theory.linear_gaussian(41, 20, 1.0, 1.0)
      >>> print(law.risk, law.coefficient, law.midpoint_risk)  # signal = risk: they meet halfway
      1.0 0.5 0.5
      >>> print(theory.linear_gaussian(10, 20, 1.0, 0.0).coefficient)  # a random projection, n/d
      0.5
    """
    _check_least("num_examples", num_examples, 1)
    _check_least("dimension", dimension, 1)
    _check_least("signal", signal, 0)
    _check_least("noise", noise, 0)
    _check_gap(num_examples, dimension, noise)
    arrays = (jnp.asarray(value) for value in (num_examples, dimension, signal, noise))
    n, d, signal, noise = jnp.broadcast_arrays(*arrays)
    dtype = jnp.result_type(signal, noise, float)
    distance = jnp.abs(n - d).astype(dtype) - 1  # exact: subtracted as integers
    n, d, signal, noise = (array.astype(dtype) for array in (n, d, signal, noise))

    share = jnp.minimum(1, n / d)
    inside = distance <= 0
    spread = jnp.minimum(n, d) / jnp.where(inside, 1, distance)
    # The product keeps the derivative by σ² at σ = 0: outside the gap it is the spread, inside NaN.
    variance = noise * jnp.where(inside, jnp.nan, spread)
    variance = jnp.where(inside & (noise == 0), 0, variance)
    risk = (1 - share) * signal + variance
    overlap = share**2 * signal
    norm = share * signal + variance
    midpoint_risk = risk / 2 + (1 - share) ** 2 * signal / 2
    return LinearGaussian(risk, overlap, norm, overlap / norm, midpoint_risk)


def _check_least(name: str, value: float | Array, least: int) -> None:
    if not is_traced(value) and not np.all(np.asarray(value) >= least):
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_gap(num_examples: int | Array, dimension: int | Array, noise: float | Array) -> None:
    if any(map(is_traced, (num_examples, dimension, noise))):
        return
    n, d, variance = np.broadcast_arrays(num_examples, dimension, noise)
    inside = (np.abs(n - d) <= 1) & (variance > 0)
    if inside.any():
        raise ValueError(
            "with noise > 0 there is no expectation where |num_examples - dimension| <= 1, got "
            f"num_examples={n[inside][0]}, dimension={d[inside][0]}"
        )


class Simulation(NamedTuple):
    """Draws of the linear-Gaussian model, one a replicate of two halves.

    Their means estimate the fields of `LinearGaussian` of the same name; the coefficient is the
    ratio of the means of `overlap` and `norm` (`halfway.statistics.fieller` has its interval).

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


def simulate(
    key: Key,
    *,
    num_examples: int,
    dimension: int,
    signal: float | Array,
    noise: float | Array,
    num_replicates: int,
    chunk_size: int = 64,
) -> Simulation:
    """Returns draws of the linear-Gaussian model: two fresh halves and their solutions each time.

    x is isotropic, so that nothing depends on the direction of w*.

    Args:
      key: consumed.
      num_examples: n of each half, static.
      dimension: d, static. Any n and d, also |n − d| ≤ 1, where draws have no finite mean.
      signal: s² = ‖w*‖² ≥ 0; may be traced.
      noise: σ² ≥ 0; may be traced.
      num_replicates: R, static.
      chunk_size: replicates at once; each takes memory for 2 n d numbers and a few more.

    Raises:
      ValueError: for concrete arguments out of range.

    Examples:
      >>> draws = theory.simulate(jax.random.key(0), num_examples=20, dimension=4, signal=1.0,
      ...                         noise=0.0, num_replicates=3)
      >>> bool(draws.risk.max() < 1e-6)  # without noise, 20 examples show all four weights
      True
    """
    _check_least("num_examples", num_examples, 1)
    _check_least("dimension", dimension, 1)
    _check_least("signal", signal, 0)
    _check_least("noise", noise, 0)
    _check_least("num_replicates", num_replicates, 1)
    _check_least("chunk_size", chunk_size, 1)
    dtype = jnp.result_type(signal, noise, float)
    deviation = jnp.sqrt(jnp.asarray(noise, dtype))
    truth = jnp.full(dimension, jnp.sqrt(jnp.asarray(signal, dtype) / dimension))

    def solution(key):
        key_x, key_noise = jax.random.split(key)
        x = jax.random.normal(key_x, (num_examples, dimension), dtype)
        with jax.default_matmul_precision("highest"):
            clean = x @ truth
        draws = jax.random.normal(key_noise, (num_examples,), dtype)
        return least_squares(x, clean + deviation * draws)

    def replicate(key):
        a, b = jax.vmap(solution)(jax.random.split(key))
        return Simulation(
            (((a - truth) ** 2).sum() + ((b - truth) ** 2).sum()) / 2,
            (a * b).sum(),
            ((a**2).sum() + (b**2).sum()) / 2,
            (((a + b) / 2 - truth) ** 2).sum(),
        )

    keys = jax.random.split(key, num_replicates)
    return lax.map(replicate, keys, batch_size=min(chunk_size, num_replicates))


def least_squares(x: Array, y: Array) -> Array:
    """Returns the least-squares solution of smallest norm, `[D]`, of x of full rank.

    By a Cholesky factor of the smaller Gram matrix and one step of iterative refinement, which
    takes back most of what squaring the condition number loses.

    Args:
      x: `[N, D]`, of rank min(N, D), not close to less.
      y: `[N]`.
    """
    tall = x.shape[0] >= x.shape[1]
    with jax.default_matmul_precision("highest"):  # an accelerator's default would not do
        factor = cho_factor(x.T @ x if tall else x @ x.T, lower=True)

        def solve(target):
            return cho_solve(factor, x.T @ target) if tall else x.T @ cho_solve(factor, target)

        weights = solve(y)
        return weights + solve(y - x @ weights)


def quadratic_midpoint(
    loss_a: float | Array, loss_b: float | Array, segment_curvature: float | Array
) -> Array:
    """Returns the loss at (θ_A + θ_B)/2 on a quadratic landscape (P8).

    `½(L(θ_A) + L(θ_B)) − ⅛ ΔᵀHΔ`, Δ = θ_A − θ_B: below the mean of the ends by an eighth of the
    curvature, so that there is a barrier only where the segment is concave.

    Args:
      loss_a: L(θ_A).
      loss_b: L(θ_B), of the same shape or a scalar, as is:
      segment_curvature: ΔᵀHΔ, the second derivative along the whole segment, H the Hessian.

    Examples:
      >>> print(theory.quadratic_midpoint(1.0, 1.0, 8.0))  # z² at -1 and 1: Δ = 2, H = 2
      0.0
    """
    return (jnp.asarray(loss_a) + loss_b) / 2 - jnp.asarray(segment_curvature) / 8


class MidpointIdentity(NamedTuple):
    """P8 on a landscape.

    Attributes:
      loss: scalar, L at (θ_A + θ_B)/2.
      quadratic: scalar, what `quadratic_midpoint` says from the ends and the curvature.
      segment_curvature: scalar, ΔᵀHΔ with the Hessian at the midpoint.
      residual: scalar, |loss − quadratic|.
    """

    loss: Array
    quadratic: Array
    segment_curvature: Array
    residual: Array


def midpoint_identity(
    loss_fn: Callable[[Params], Array], params_a: Params, params_b: Params
) -> MidpointIdentity:
    """Returns the loss in the middle of two models beside that of a quadratic landscape (P8).

    The residual is rounding where the landscape is quadratic along the segment. Elsewhere odd terms
    cancel, because the Hessian is taken at the midpoint: it is `O(‖Δ‖⁴)` for smooth landscapes.

    Args:
      loss_fn: L, parameters to a scalar.
      params_a: θ_A, a pytree.
      params_b: θ_B, a pytree like it.

    Examples:
      >>> middle = theory.midpoint_identity(lambda z: z**2, jnp.array(3.0), jnp.array(-1.0))
      >>> print(middle.loss, middle.segment_curvature, middle.residual)  # ½(9 + 1) − ⅛·32 = 1
      1.0 32.0 0.0
    """
    middle = paths.linear(params_a, params_b, 0.5)
    difference = optax.tree.sub(params_a, params_b)
    product = curvature.hessian_product(loss_fn, middle, difference)
    along = jnp.asarray(optax.tree.vdot(difference, product))
    loss = loss_fn(middle)
    quadratic = quadratic_midpoint(loss_fn(params_a), loss_fn(params_b), along)
    return MidpointIdentity(loss, quadratic, along, jnp.abs(loss - quadratic))
