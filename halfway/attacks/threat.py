"""Threat models: which perturbations of an input are allowed, and its steepest step.

A threat model is a budget and bounds, which are data, and a norm, which is a tuple of functions and
static: passing another budget to a jitted attack compiles nothing, and budgets can be vmapped. A
new norm is a new `Norm` and a constructor beside `linf`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from halfway.types import Array, Key, is_traced

Bounds = tuple[Any, Any]
"""The smallest and the largest value of a feature, scalars."""


class Norm(NamedTuple):
    """What one norm ‖·‖_p contributes to a threat model; module-level functions, so hashable.

    In all of them `radius` broadcasts against `x`: a scalar or `[B, 1, ..., 1]`.

    Attributes:
      name: of the norm, for people.
      project: `(adversarial, x, radius, bounds) -> [B, ...]`, onto ball ∩ box.
      random_start: `(key, x, radius, bounds) -> [B, ...]`.
      steepest: `(gradient) -> [B, ...]`, s(h) = argmax_{‖s‖_p ≤ 1} ⟨h, s⟩.
      dual: `(gradient) -> [B]`, ‖h‖_q with 1/p + 1/q = 1.
    """

    name: str
    project: Callable[[Array, Array, Array, Bounds], Array]
    random_start: Callable[[Key, Array, Array, Bounds], Array]
    steepest: Callable[[Array], Array]
    dual: Callable[[Array], Array]


@flax.struct.dataclass
class Threat:
    """A threat model ‖x' − x‖_p ≤ ε within bounds; a pytree of its budget and bounds.

    Made by `linf`. Clean inputs are taken to lie within the bounds.

    Attributes:
      epsilon: the budget ε in units of the input, a scalar or one per example `[B]`.
      bounds: smallest and largest value of a feature, scalars.
      norm: static.
    """

    epsilon: Any
    bounds: Bounds
    norm: Norm = flax.struct.field(pytree_node=False)

    def project(self, adversarial: Array, x: Array) -> Array:
        """Returns the nearest feasible points `[B, ...]` in Euclidean distance.

        Bounds hold exactly, the budget to 1 ulp of the result. With ε = 0 it returns x.

        Args:
          adversarial: `[B, ...]`, anywhere.
          x: `[B, ...]`, centres of the balls.
        """
        chex.assert_equal_shape([adversarial, x])
        return self.norm.project(adversarial, x, self.radius(x), self.bounds)

    def random_start(self, key: Key, x: Array) -> Array:
        """Returns points `[B, ...]` drawn uniformly from the balls, then moved into the bounds.

        The move projects onto the bounds, so their faces carry mass. The noise belongs to an
        example's position in the batch: a batch cut short draws the same, a permuted one does not.

        Args:
          key: consumed.
          x: `[B, ...]`, centres of the balls.
        """
        return self.norm.random_start(key, x, self.radius(x), self.bounds)

    def steepest(self, gradient: Array) -> Array:
        """Returns s(h) `[B, ...]`, the direction of norm at most 1 that gains most; 0 where h is 0.

        Args:
          gradient: h, `[B, ...]`.
        """
        return self.norm.steepest(gradient)

    def dual_norm(self, gradient: Array) -> Array:
        """Returns ‖h‖_q `[B]` = ⟨h, s(h)⟩: what a step of length 1 gains to first order.

        Args:
          gradient: h, `[B, ...]`.
        """
        return self.norm.dual(gradient)

    def radius(self, x: Array) -> Array:
        """Returns ε in x's precision, as a scalar or as `[B, 1, ..., 1]` of x's rank.

        Args:
          x: `[B, ...]`.
        """
        epsilon = jnp.asarray(self.epsilon, x.dtype)
        chex.assert_rank(epsilon, {0, 1})
        if epsilon.ndim == 0:
            return epsilon
        chex.assert_shape(epsilon, x.shape[:1])
        return epsilon.reshape((-1,) + (1,) * (x.ndim - 1))


def linf(epsilon: Any, bounds: Bounds = (0.0, 1.0)) -> Threat:
    """Returns the threat model |x'_i − x_i| ≤ ε for every feature i, within bounds.

    Args:
      epsilon: ε ≥ 0, finite, in units of the input: a scalar, traced or not, or one per example
        `[B]`.
      bounds: smallest and largest value of a feature; infinite where there is none.

    Raises:
      ValueError: for a negative, infinite or NaN epsilon, or bounds that are not increasing. Traced
        values are not checked.

    Examples:
      >>> threat = attacks.linf(0.125)
      >>> x = jnp.array([[0.5, 0.95]])
      >>> print(threat.project(x + 0.3, x))  # the budget, and the bounds [0, 1]
      [[0.625 1.   ]]
      >>> print(threat.steepest(jnp.array([[-2.0, 0.0]])))
      [[-1.  0.]]
    """
    return _make(epsilon, bounds, LINF)


def _make(epsilon: Any, bounds: Bounds, norm: Norm) -> Threat:
    if not is_traced(epsilon):
        values = np.asarray(epsilon)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}")
    lower, upper = bounds
    if not (is_traced(lower) or is_traced(upper)) and not np.all(
        np.asarray(lower) < np.asarray(upper)
    ):
        raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {bounds}")
    # Arrays of one type, whatever the caller wrote: 0.1 and jnp.float32(0.1) share a program.
    dtype = jnp.result_type(float)
    return Threat(
        epsilon=jnp.asarray(epsilon, dtype),
        bounds=(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)),
        norm=norm,
    )


def _clip_to_box(x: Array, bounds: Bounds) -> Array:
    lower, upper = (jnp.asarray(bound, x.dtype) for bound in bounds)
    return jnp.clip(x, lower, upper)


def _linf_project(adversarial: Array, x: Array, radius: Array, bounds: Bounds) -> Array:
    # Ball and box are both products of intervals, and x lies in both: clipping twice is exact.
    return _clip_to_box(jnp.clip(adversarial, x - radius, x + radius), bounds)


def _linf_random_start(key: Key, x: Array, radius: Array, bounds: Bounds) -> Array:
    noise = jax.random.uniform(key, x.shape, x.dtype, minval=-1.0, maxval=1.0)
    return _linf_project(x + radius * noise, x, radius, bounds)


def _linf_dual(gradient: Array) -> Array:
    return jnp.sum(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)))


LINF = Norm("linf", _linf_project, _linf_random_start, jnp.sign, _linf_dual)
