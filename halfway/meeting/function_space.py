"""Meeting in function space: how far two models agree in values and in input Jacobians (D3, P9).

No label, gradient of a loss or attack enters. Logits are taken minus their mean over classes, f̃,
since a shift of all logits changes no prediction. Sums over examples are kept as terms, so that a
population's coefficient is a ratio of sums over pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import losses
from halfway.types import Array, Key, LogitsFn

NUM_PROBES = 16
"""Number of random vectors by which the Jacobians of large models are probed."""
JACOBIAN_CHUNK = 256
"""Number of examples whose Jacobians are held at once."""


class FunctionTerms(NamedTuple):
    """Sums over examples whose ratio is a coefficient in function space, of values or Jacobians.

    Attributes:
      product: `[...]`, Σ⟨f̃_A, f̃_B⟩.
      followed: `[...]`, Σ‖f̃_A‖².
      other: `[...]`, Σ‖f̃_B‖².
    """

    product: Array
    followed: Array
    other: Array


class JacobianCoefficient(NamedTuple):
    """How far the input Jacobians of two models agree; scalars.

    Attributes:
      estimate: μ_J = product / followed.
      standard_error: over draws of the probes, given models and examples; 0 where exact.
      terms: the sums over examples, unbiased.
    """

    estimate: Array
    standard_error: Array
    terms: FunctionTerms


class Roughness(NamedTuple):
    """Mean squared input frequency of what two models share and of what they do not (P9).

    Attributes:
      signal: Ω_s = s_J/s, NaN where s is not positive.
      noise: Ω_v = v_J/v, NaN where v is not positive.
      ratio: Ω_s/Ω_v = odds(μ_J)/odds(μ_f), at most 1 where disagreement is the rougher.
    """

    signal: Array
    noise: Array
    ratio: Array


def function_terms(followed: Array, other: Array, mask: Array | None = None) -> FunctionTerms:
    """Returns the sums `[...]` over examples that μ_f is made of (D3).

    Args:
      followed: logits of A `[..., B, C]`.
      other: logits of B on the same examples, of the same shape.
      mask: `[..., B]` bool, the examples that count; all by default.

    Raises:
      ValueError: if the shapes differ or there is a single logit.
    """
    if followed.shape != other.shape or followed.ndim < 2:
        raise ValueError(
            f"logits of both models must have one shape [..., B, C], got {followed.shape} and "
            f"{other.shape}"
        )
    _check_classes(followed.shape[-1])
    a, b = _centred(followed), _centred(other)
    sums = (a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)
    if mask is not None:
        sums = tuple(jnp.where(mask, values, 0) for values in sums)
    return FunctionTerms(*(values.sum(-1) for values in sums))


def function_coefficient(followed: Array, other: Array) -> Array:
    """Returns μ_f = Σ⟨f̃_A, f̃_B⟩ / Σ‖f̃_A‖², a scalar (D3).

    The sums run over all examples and leading axes. 1: B says what A says, as loudly; 0: what A
    says is nothing to B. For both directions at once see `mutual_coefficient`.

    Args:
      followed: logits of A `[..., B, C]`.
      other: logits of B on the same examples, of the same shape.

    Raises:
      ValueError: if the shapes differ or there is a single logit.

    Examples:
      >>> a, b = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0], [5.0, 6.0]])
      >>> print(meeting.function_coefficient(a, b))  # half as far apart: a shift is no matter
      0.5
    """
    terms = function_terms(followed, other)
    return terms.product.sum() / terms.followed.sum()


def mutual_coefficient(terms: FunctionTerms) -> Array:
    """Returns μ of both directions, 2 Σ product / Σ (followed + other), a scalar in [−1, 1].

    Args:
      terms: sums `[...]` of each pair.

    Examples:
      >>> terms = meeting.FunctionTerms(*map(jnp.array, ([1.0, 2.0], [2.0, 4.0], [2.0, 4.0])))
      >>> print(meeting.mutual_coefficient(terms))
      0.5
    """
    return 2 * terms.product.sum() / (terms.followed + terms.other).sum()


def odds(coefficient: Array) -> Array:
    """Returns signal over noise, μ/(1 − μ): halfway is 1. NaN outside [0, 1], infinite at 1.

    Args:
      coefficient: μ, of any shape.

    Examples:
      >>> print(meeting.odds(jnp.array([0.0, 0.5, 0.75])))
      [0. 1. 3.]
    """
    inside = (coefficient >= 0) & (coefficient <= 1)
    return jnp.where(inside, coefficient / (1 - coefficient), jnp.nan)


def roughness(function: FunctionTerms, jacobian: FunctionTerms) -> Roughness:
    """Returns the roughness of what two models share and of what they do not (P9).

    With s = Σ⟨f̃_A, f̃_B⟩ and v = ½ Σ(‖f̃_A‖² + ‖f̃_B‖²) − s, and s_J, v_J of the Jacobians likewise,
    `Ω_s = s_J/s` and `Ω_v = v_J/v`, so that `odds(μ_J) = odds(μ_f) Ω_s/Ω_v` for the coefficients of
    both directions: transfer falls short of agreement by the factor by which disagreement is the
    rougher. The unit is one over the square of that of the inputs.

    Args:
      function: sums of the logits, of any shape, from `function_terms`.
      jacobian: sums of the Jacobians on the same examples, `terms` of `jacobian_coefficient`.

    Examples:
      >>> function = meeting.FunctionTerms(jnp.array(3.0), jnp.array(4.0), jnp.array(4.0))
      >>> jacobian = meeting.FunctionTerms(jnp.array(6.0), jnp.array(12.0), jnp.array(12.0))
      >>> rough = meeting.roughness(function, jacobian)  # μ_f = 3/4, μ_J = 1/2: odds 3 and 1
      >>> print(rough.signal, rough.noise, f"{rough.ratio:.3f}")
      2.0 6.0 0.333
    """
    signal, noise = _signal_and_noise(function)
    signal_jacobian, noise_jacobian = _signal_and_noise(jacobian)
    rough_signal = jnp.where(signal > 0, signal_jacobian / signal, jnp.nan)
    rough_noise = jnp.where(noise > 0, noise_jacobian / noise, jnp.nan)
    return Roughness(rough_signal, rough_noise, rough_signal / rough_noise)


def jacobian_coefficient(
    followed_fn: LogitsFn,
    other_fn: LogitsFn,
    x: Array,
    key: Key | None = None,
    *,
    mask: Array | None = None,
    num_probes: int = NUM_PROBES,
    chunk_size: int | None = JACOBIAN_CHUNK,
) -> JacobianCoefficient:
    """Returns μ_J = Σ⟨∂f̃_A, ∂f̃_B⟩_F / Σ‖∂f̃_A‖²_F, of the input Jacobians of two models (D3).

    Exact: a backward pass for each of C classes, or a forward pass for each of D inputs where these
    are fewer. With a key, where both are above `num_probes`: by Hutchinson's estimator,
    `⟨J_A, J_B⟩_F = E⟨vᵀJ_A, vᵀJ_B⟩` for v of independent signs, drawn anew for each example; over
    class vectors, or input directions where D is below C. The sums are unbiased, their ratio to
    first order. Memory is that of one chunk of examples and one vector, however many there are.

    Args:
      followed_fn: inputs to logits of A; no example may depend on another.
      other_fn: the same of B.
      x: inputs `[B, ...]`, floats.
      key: a PRNG key of the probes, consumed; None: exact, whatever the size.
      mask: `[B]` bool, the examples that count; all by default.
      num_probes: number of random vectors an example, static, at least 2.
      chunk_size: number of examples at once, static; None: all. It changes no draw.

    Raises:
      ValueError: if x holds no floats, the models' logits differ in shape or have a single class,
        or `num_probes` is below 2.

    Source of the estimator: Hutchinson (1990).

    Examples:
      >>> a = lambda x: jnp.stack([x[:, 0], -x[:, 0]], 1)  # looks at the first input
      >>> b = lambda x: jnp.stack([x[:, 0] + x[:, 1], -x[:, 0] - x[:, 1]], 1)  # at both
      >>> x = jnp.zeros((3, 2))
      >>> print(meeting.jacobian_coefficient(a, b, x).estimate)  # B has all of A's slope
      1.0
      >>> print(meeting.jacobian_coefficient(b, a, x).estimate)
      0.5
    """
    num_classes = _num_classes(followed_fn, other_fn, x)
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2 for a standard error, got {num_probes}")
    num_inputs = int(np.prod(x.shape[1:]))
    of_inputs = num_inputs < num_classes
    size = min(num_inputs, num_classes)
    num_examples = x.shape[0]
    keys = None if key is None or size <= num_probes else jax.random.split(key, num_examples)
    is_exact = keys is None
    keys = jnp.zeros(num_examples) if keys is None else keys

    def probes(keys, index):
        if is_exact:
            vector = jnp.zeros(size, x.dtype).at[index].set(1)
            return jnp.broadcast_to(vector, (keys.shape[0], size))
        index_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        draw = lambda key: jax.random.rademacher(key, (size,), x.dtype)  # noqa: E731
        return jax.vmap(draw)(index_keys)

    def sums(x, keys, mask):
        pullers = [_directional(fn, x, of_inputs) for fn in (followed_fn, other_fn)]

        def add(carry, index):
            a, b = (pull(probes(keys, index)) for pull in pullers)
            terms = jnp.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)], -1)
            total, outer = carry
            return (total + terms, outer + terms[:, :, None] * terms[:, None, :]), None

        count = size if is_exact else num_probes
        start = jnp.zeros((x.shape[0], 3), x.dtype), jnp.zeros((x.shape[0], 3, 3), x.dtype)
        (total, outer), _ = lax.scan(add, start, jnp.arange(count))
        if is_exact:
            outer = jnp.zeros_like(outer)
        else:
            mean = total / count
            # The covariance of the mean over probes, which are independent between examples.
            spread = outer / count - mean[:, :, None] * mean[:, None, :]
            total, outer = mean, spread / (count - 1)
        kept = mask[:, None]
        return (
            jnp.where(kept, total, 0).sum(0),
            jnp.where(kept[:, :, None], outer, 0).sum(0),
        )

    mask = jnp.ones(num_examples, bool) if mask is None else mask
    total, covariance = losses.chunked_sum(sums, (x, keys), mask, chunk_size=chunk_size)
    terms = FunctionTerms(*total)
    estimate = terms.product / terms.followed
    slope = jnp.stack([jnp.ones_like(estimate), -estimate, jnp.zeros_like(estimate)])
    variance = slope @ covariance @ slope
    error = jnp.sqrt(jnp.maximum(variance, 0)) / terms.followed
    return JacobianCoefficient(estimate, error, terms)


def _directional(fn: LogitsFn, x: Array, of_inputs: bool) -> Callable[[Array], Array]:
    """Returns a function of vectors `[B, D]` or `[B, C]` to J̃v or vᵀJ̃ of each example `[B, ...]`.

    J̃ is the Jacobian of centred logits.
    """
    centred_fn = lambda x: _centred(fn(x))  # noqa: E731
    if of_inputs:
        _, pushed = jax.linearize(centred_fn, x)
        return lambda vectors: pushed(vectors.reshape(x.shape))
    _, pulled = jax.vjp(centred_fn, x)
    return lambda vectors: pulled(vectors)[0].reshape(x.shape[0], -1)


def _centred(logits: Array) -> Array:
    """Returns logits minus their mean over classes."""
    return logits - logits.mean(-1, keepdims=True)


def _signal_and_noise(terms: FunctionTerms) -> tuple[Array, Array]:
    """Returns s = Σ product and v = ½ Σ (followed + other) − s."""
    signal = terms.product.sum()
    return signal, (terms.followed + terms.other).sum() / 2 - signal


def _num_classes(followed_fn: LogitsFn, other_fn: LogitsFn, x: Array) -> int:
    """Returns C, once inputs and logits of both models are checked."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must hold floats, got {x.dtype}: a Jacobian is a derivative")
    shapes = [jax.eval_shape(fn, x[:1]).shape for fn in (followed_fn, other_fn)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(f"logits of both models must have one shape [B, C], got {shapes}")
    _check_classes(shapes[0][1])
    return shapes[0][1]


def _check_classes(num_classes: int) -> None:
    """Checks that there are two classes or more."""
    if num_classes < 2:
        raise ValueError(
            "a single logit is its own mean over classes: give two, such as stack([-z, z], -1)"
        )
