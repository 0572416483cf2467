"""Measures of one trained network that are said to predict how it generalizes.

Norms, margins and flatness, from what a model trained on and its parameters alone ("Fantastic
generalization measures", Jiang et al., arXiv 1912.02178, from which the names come). Each is a
number of one model; `vmap` lifts it to a population. Sharpness along the steepest directions is in
`landscapes.curvature`, rank correlation with a gap in `halfway.stats`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from halfway import losses, trees
from halfway.landscapes import curvature
from halfway.types import ApplyFn, Array, Key, Params, ScalarFn


def weight_matrices(params: Params) -> list[Array]:
    """Returns the weights of every layer as matrices `[fan-in, units]`, without the biases.

    Args:
      params: a pytree; leaves of two or more axes are weights, and their last axis holds the units.

    Raises:
      ValueError: if there are none.
    """
    leaves = [leaf for leaf in trees.split(params)[0] if leaf.ndim >= 2]
    if not leaves:
        raise ValueError("no tensor has two axes or more, so there are no weights to measure")
    return [trees.real(leaf).reshape(-1, leaf.shape[-1]) for leaf in leaves]


def parameter_norm(params: Params) -> Array:
    """Returns ‖θ‖, the l2 norm of all parameters."""
    return trees.length(params)


def parameter_distance(params: Params, start: Params) -> Array:
    """Returns ‖θ − θ_0‖, how far training has come from the initialization.

    Args:
      params: θ, a pytree.
      start: θ_0, a pytree like it.
    """
    return trees.length(trees.difference(params, start))


def log_frobenius_product(params: Params) -> Array:
    """Returns Σ_l log ‖W_l‖_F, the logarithm of the product of the layers' Frobenius norms."""
    return jnp.stack([jnp.log(trees.norm(kernel)) for kernel in weight_matrices(params)]).sum()


def log_spectral_product(params: Params) -> Array:
    """Returns Σ_l log ‖W_l‖_2, the logarithm of a bound on a network's Lipschitz constant.

    A convolution counts with the norm of its kernel as a matrix `[h w D, F]`, not with the norm of
    the operator. Norms come from 50 steps of power iteration from the row of largest norm.
    """

    def log_norm(kernel):
        scale = trees.power_of_two(jnp.abs(kernel).max(initial=0))
        kernel = kernel / scale  # its entries are squared
        start = kernel[jnp.argmax((kernel**2).sum(1))]
        gram = curvature.power_iteration(lambda v: (kernel @ v) @ kernel, start, num_steps=50)
        return 0.5 * jnp.log(gram) + jnp.log(scale)

    return jnp.stack([log_norm(kernel) for kernel in weight_matrices(params)]).sum()


def path_norm(apply_fn: ApplyFn, params: Params, unit_input: Array) -> Array:
    """Returns the square root of Σ over paths from inputs to outputs of Π w² along the path.

    It takes one pass with squared parameters. A bias is a path from a further input of 1.

    Args:
      apply_fn: parameters and inputs to logits, of a network with rectifiers.
      params: θ, a pytree.
      unit_input: `[1, ...]`, the input that reaches the first layer as all ones. The models here
        scale [0, 1] to [-1, 1], so that it is all ones itself.

    Source: Neyshabur et al., arXiv 1506.02617.

    Examples:
      >>> weights = jnp.array([[1.0, 2.0], [0.0, 2.0]])
      >>> print(landscapes.path_norm(lambda w, x: x @ w, weights, jnp.ones((1, 2))))
      3.0
    """
    return jnp.sqrt(apply_fn(trees.map_floating(jnp.square, params), unit_input).sum())


def margin_quantile(
    logits: Array, labels: Array, mask: Array | None = None, *, quantile: float = 0.1
) -> Array:
    """Returns a quantile over examples of the margin, the label's logit minus the next largest.

    Args:
      logits: `[B, C]` logits.
      labels: `[B]` integer labels.
      mask: `[B]` bool, the examples that count; all by default.
      quantile: the quantile to return, in [0, 1].
    """
    margins = -losses.margin(logits, labels)
    return jnp.nanquantile(margins if mask is None else jnp.where(mask, margins, jnp.nan), quantile)


def flatness(
    loss_fn: ScalarFn,
    params: Params,
    key: Key,
    *,
    rise: float = 0.1,
    num_samples: int = 5,
    num_steps: int = 12,
    low: float = 1e-3,
    high: float = 1.0,
) -> Array:
    """Returns the largest σ at which Gaussian noise on all parameters raises the loss by `rise`.

    Bisection of log σ solves E L(θ + σ u) − L(θ) = rise, with the same draws of u at every σ. 1/σ²
    is the sharpness of a PAC-Bayes bound, so that a large σ means a flat minimum. Where the loss
    rises by that much at every σ, or at none, the result is an end of [low, high].

    Args:
      loss_fn: a function of parameters that returns a scalar.
      params: θ, a pytree.
      key: a PRNG key, consumed.
      rise: the rise of the loss that is looked for, in units of the loss.
      num_samples: the number of draws of u.
      num_steps: halvings of the interval, which leave a factor of (high/low)^(2^-num_steps).
      low: the smallest σ that is considered.
      high: the largest σ that is considered.

    Raises:
      ValueError: unless 0 < low < high.

    Examples:
      >>> def bowl(w):
      ...     return 0.5 * (w**2).sum()
      >>> sigma = landscapes.flatness(
      ...     bowl, jnp.zeros(10_000), jax.random.key(0), rise=0.5 * 10_000 * 0.1**2)
      >>> print(f"{sigma:.2f}")
      0.10
    """
    if not 0 < low < high:
        raise ValueError(f"σ is looked for in [low, high] with 0 < low < high, got {low}, {high}")
    flat, unravel = trees.flatten(params)
    draws = jax.random.normal(key, (num_samples, flat.size), flat.dtype)
    base = trees.real(loss_fn(params))

    def halve(_, bounds):
        middle = bounds.mean()
        values = lax.map(lambda u: trees.real(loss_fn(unravel(flat + jnp.exp(middle) * u))), draws)
        # NaN compares as not within, so it counts as a rise.
        within = values.mean() - base <= rise
        return jnp.where(within, jnp.array([middle, bounds[1]]), jnp.array([bounds[0], middle]))

    bounds = jnp.log(jnp.array([low, high], flat.dtype))
    return jnp.exp(lax.fori_loop(0, num_steps, halve, bounds).mean())
