"""Gradients of models that defend themselves: by randomness (EOT), by having none (BPDA).

Each makes, of its arguments, what attacks take as `estimator`: a function of the objective. What
has no useful gradient inside a model can also be given one where the model is written, by
`straight_through`; then every attack can be used as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from halfway.attacks import base
from halfway.attacks.base import Estimator, EstimatorOf, GradientEstimate, Objective
from halfway.types import Array, Key, LogitsFn

DrawFn = Callable[[Key, Array], Array]
"""A randomized model: a key and inputs `[B, ...]` to logits `[B, C]`; the key is consumed."""


def eot(draw_fn: DrawFn, *, num_draws: int = 20) -> EstimatorOf:
    """Returns the mean gradient over draws of a randomized model: expectation over transformation.

    Every estimate draws anew, one draw after another. Loss and logits are means over the draws.

    Args:
      draw_fn: a key and inputs to logits; what is random about the model comes from the key.
      num_draws: of each gradient, at least 1, static.

    Raises:
      ValueError: for no draw.

    Source: Athalye et al., arXiv 1707.07397 and 1802.00420.

    Examples:
      A linear model behind Gaussian noise, attacked by its mean gradient:

      >>> def draw_fn(key, x):
      ...     return (x + 0.1 * jax.random.normal(key, x.shape)) @ jnp.array([[1.0, -1.0]] * 2)
      >>> x, labels = jnp.array([[0.1, 0.05]]), jnp.array([0])
      >>> result = attacks.pgd(
      ...     lambda x: draw_fn(jax.random.key(1), x), jax.random.key(0), x, labels,
      ...     threat=attacks.linf(0.5, bounds=(-1.0, 1.0)), estimator=attacks.eot(draw_fn))
      >>> print(result.adversarial)
      [[-0.4  -0.45]]
    """
    base.check_count("num_draws", num_draws)

    def of(goal: Objective) -> Estimator:
        def estimate(key: Key | None, state: tuple[()], x: Array) -> GradientEstimate:
            assert key is not None, "a randomized model is drawn: the walk needs a key"

            def draw(key: Key) -> GradientEstimate:
                def value(x: Array) -> tuple[Array, Array]:
                    logits = draw_fn(key, x)
                    return goal.loss(logits), logits

                drawn = base.exact_gradient(goal._replace(value=value)).estimate(None, (), x)
                return drawn._replace(gradient=base.finite(drawn.gradient))

            def add(total: GradientEstimate, key: Key) -> tuple[GradientEstimate, None]:
                return jax.tree.map(jnp.add, total, draw(key)), None

            keys = jax.random.split(key, num_draws)
            total, _ = lax.scan(add, draw(keys[0]), keys[1:])
            return jax.tree.map(lambda leaf: leaf / num_draws, total)._replace(state=state)

        return Estimator(lambda x: (), estimate, num_draws)

    return of


def bpda(stand_in_fn: LogitsFn) -> EstimatorOf:
    """Returns the gradient of another model in the place of one that has none (BPDA).

    Loss and logits are those of the model that is attacked.

    Args:
      stand_in_fn: `[B, ...]` to logits `[B, C]`, differentiable and close to the model, such as the
        model with a smooth function in the place of a step, or without what it does to its inputs.

    Source: Athalye et al., arXiv 1802.00420.

    Examples:
      >>> def stand_in_fn(x):
      ...     return (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> def logits_fn(x):  # of inputs of eight levels, without a gradient
      ...     return stand_in_fn(jnp.round(8 * x) / 8)
      >>> x, labels = jnp.array([[0.65, 0.6]]), jnp.array([0])
      >>> attack = functools.partial(
      ...     attacks.pgd, logits_fn, jax.random.key(0), x, labels, threat=attacks.linf(0.25))
      >>> attack().success.tolist(), attack(estimator=attacks.bpda(stand_in_fn)).success.tolist()
      ([False], [True])
    """

    def of(goal: Objective) -> Estimator:
        def estimate(key: Key | None, state: tuple[()], x: Array) -> GradientEstimate:
            stand_in = goal._replace(value=lambda x: (goal.loss(logits := stand_in_fn(x)), logits))
            gradient = base.exact_gradient(stand_in).estimate(key, (), x).gradient
            return GradientEstimate(gradient, *goal.value(x), state)

        return Estimator(lambda x: (), estimate, goal.num_queries + 1)

    return of


def straight_through(
    transform: Callable[[Array], Array], stand_in: Callable[[Array], Array] = lambda x: x
) -> Callable[[Array], Array]:
    """Returns a function with the values of one function and the derivatives of another.

    In a model it is BPDA for every attack: `model(straight_through(quantize)(x))`.

    Args:
      transform: gives the values, an array.
      stand_in: gives the derivatives, of the same shape; the identity by default.

    Source: Bengio et al., arXiv 1308.3432; Athalye et al., arXiv 1802.00420.

    Examples:
      >>> steps = attacks.straight_through(jnp.round)
      >>> print(steps(jnp.array([0.4, 1.7])), jax.grad(lambda x: 3 * steps(x))(0.4))
      [0. 2.] 3.0
    """

    def both(x: Array) -> Array:
        smooth = stand_in(x)
        # Exactly the value: the rest is 0.
        return lax.stop_gradient(transform(x)) + (smooth - lax.stop_gradient(smooth))

    return both
