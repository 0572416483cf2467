"""Gradient estimators of attacks that are meant to transfer: each wraps another one.

Averaging, smoothing or looking ahead makes a gradient less that of one model at one point. Those
that do not evaluate the model at the point itself say so by a loss of NaN, and then only the last
point of a walk can be its best.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from halfway.attacks import base
from halfway.attacks.base import Estimator, GradientEstimate, Objective
from halfway.attacks.threat import Threat
from halfway.types import Array, Key


def normalized(gradient: Array) -> Array:
    """Returns a gradient over its mean absolute value per example; 0 where it is 0.

    That is ‖g‖_1 up to the number of features, as in the code that came with MI-FGSM.

    Args:
      gradient: `[B, ...]`.
    """
    axes = tuple(range(1, gradient.ndim))
    size = jnp.abs(gradient).mean(axes, keepdims=True)
    return gradient / jnp.where(size > 0, size, 1)


def momentum(
    threat: Threat, relative_step: Any, *, decay: float | Array
) -> optax.GradientTransformation:
    """Returns the update rule of momentum attacks: steps along s(g), g ← decay · g + h/mean|h|.

    Args:
      threat: of the norm and the budget.
      relative_step: length of a step as a fraction of ε, a scalar ≥ 0; may be traced.
      decay: μ, 0 for none.

    Source: Dong et al., arXiv 1710.06081 (MI-FGSM).
    """
    return optax.chain(accumulate(decay), base.steps(threat, relative_step))


def accumulate(decay: float | Array) -> optax.GradientTransformation:
    """Returns the update rule `g ← decay · g + normalized(h)` of momentum attacks.

    Args:
      decay: μ, 0 for none.

    Source: Dong et al., arXiv 1710.06081 (MI-FGSM).
    """

    def init(x: Any) -> Array:
        return jnp.zeros_like(x)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Array, Array]:
        del params
        state = decay * state + normalized(gradient)
        return state, state

    return optax.GradientTransformation(init, update)  # pyright: ignore


def look_ahead(inner: Estimator, *, step: Array | float, decay: Array | float) -> Estimator:
    """Returns gradients taken where momentum alone would go: at x + step · decay · g (NI-FGSM).

    g is the momentum of these gradients as `accumulate` keeps it, of the same normalization.

    Args:
      inner: evaluated there.
      step: α, of the walk, a scalar or one per example with trailing axes of 1.
      decay: μ.

    Source: Lin et al., arXiv 1908.06281.
    """

    def init(x: Array) -> Any:
        return inner.init(x), jnp.zeros_like(x)

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        memory, gathered = state
        ahead = inner.estimate(key, memory, x + step * decay * gathered)
        gathered = decay * gathered + normalized(base.finite(ahead.gradient))
        return _elsewhere(ahead)._replace(state=(ahead.state, gathered))

    return Estimator(init, estimate, inner.num_queries)


def diverse_inputs(
    goal: Objective, *, probability: float = 0.5, smallest: float = 0.9
) -> Estimator:
    """Returns gradients of the loss at images that are shrunk and moved at random (DI-FGSM).

    Each image is, with some probability, resized bilinearly to a random share of its side and put
    at a random place on a black canvas of the old size.

    Args:
      goal: what to ascend, of images `[B, H, W, D]`.
      probability: that an image is changed, in [0, 1]; the others are seen as they are.
      smallest: share of the side that images are resized to at least, in (0, 1].

    Raises:
      ValueError: for values outside these ranges.

    Source: Xie et al., arXiv 1803.06978.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest must lie in (0, 1], got {smallest}")

    def change(key: Key, image: Array) -> Array:
        key_size, key_place, key_whether = jax.random.split(key, 3)
        size = jax.random.uniform(key_size, minval=smallest, maxval=1.0)
        sides = jnp.asarray(image.shape[:2], image.dtype)
        place = jax.random.uniform(key_place, (2,)) * (1 - size) * sides
        scale = jnp.broadcast_to(size, (2,))
        moved = jax.image.scale_and_translate(
            image, image.shape, (0, 1), scale, place, "linear", antialias=False
        )
        return jnp.where(jax.random.bernoulli(key_whether, probability), moved, image)

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        assert key is not None, "diverse inputs are random: the walk needs a key"

        def value(x: Array) -> tuple[Array, Array]:
            return goal.value(jax.vmap(change)(jax.random.split(key, x.shape[0]), x))

        changed = base.exact_gradient(goal._replace(value=value))
        return _elsewhere(changed.estimate(None, state, x))

    return Estimator(lambda x: (), estimate, goal.num_queries)


def scaled_copies(inner: Estimator, *, num_scales: int = 5) -> Estimator:
    """Returns the mean gradient over copies of the input at scales 1, 1/2, 1/4 and so on.

    Args:
      inner: evaluated at each; what it says of the first is what is said of the point.
      num_scales: of copies, at least 1, static.

    Raises:
      ValueError: for fewer.

    Source: Lin et al., arXiv 1908.06281 (SI-NI-FGSM).
    """
    base.check_count("num_scales", num_scales)

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        first = inner.estimate(_part(key, 0), state, x)

        def add(index: Array, total: Array) -> Array:
            scale = 0.5**index
            copy = inner.estimate(_part(key, index), first.state, scale * x)
            return total + scale * copy.gradient

        total = lax.fori_loop(1, num_scales, add, first.gradient)
        return first._replace(gradient=total / num_scales)

    return Estimator(inner.init, estimate, num_scales * inner.num_queries)


def smoothed(inner: Estimator, *, kernel_size: int = 15, deviation: float = 3.0) -> Estimator:
    """Returns gradients convolved with a Gaussian, each channel by itself (TI-FGSM).

    By symmetry that is the mean gradient over images moved by a few pixels. Beyond the border the
    gradient counts as 0.

    Args:
      inner: of images `[B, H, W, D]`.
      kernel_size: odd, static.
      deviation: of the Gaussian in pixels.

    Raises:
      ValueError: for an even size.

    Source: Dong et al., arXiv 1904.02884.
    """
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}")
    reach = kernel_size // 2
    places = np.arange(kernel_size) - reach
    weights = np.exp(-0.5 * (places / deviation) ** 2)
    weights = weights / weights.sum()

    def smooth(values: Array, axis: int) -> Array:
        # Slices, not a convolution, which would be slow in a loop on a CPU.
        pad = [(0, 0)] * values.ndim
        pad[axis] = (reach, reach)
        padded, length = jnp.pad(values, pad), values.shape[axis]
        parts = [
            weight * lax.slice_in_dim(padded, i, i + length, axis=axis)
            for i, weight in enumerate(weights.astype(np.float32))
            if abs(i - reach) < length
        ]
        return jnp.stack(parts).sum(0)

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        sharp = inner.estimate(key, state, x)
        return sharp._replace(gradient=smooth(smooth(base.finite(sharp.gradient), 1), 2))

    return Estimator(inner.init, estimate, inner.num_queries)


def variance_tuned(
    inner: Estimator, *, num_neighbours: int = 20, radius: Array | float
) -> Estimator:
    """Returns the gradient plus how the last one differed from the mean around its point (VMI).

    `h_t + v_{t−1}`, with `v_t = mean_i ∇J(x_t + r_i) − h_t` over neighbours uniform in a cube.

    Args:
      inner: evaluated at the point and at each neighbour.
      num_neighbours: uniform in the cube, at least 1, static.
      radius: half of the cube's side, a scalar or one per example with trailing axes of 1.

    Raises:
      ValueError: for no neighbour.

    Source: Wang and He, arXiv 2103.15571.
    """
    base.check_count("num_neighbours", num_neighbours)

    def init(x: Array) -> Any:
        return inner.init(x), jnp.zeros_like(x)

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        assert key is not None, "neighbours are random: the walk needs a key"
        memory, variance = state
        here = inner.estimate(_part(key, 0), memory, x)
        gradient = base.finite(here.gradient)

        def add(index: Array, total: Array) -> Array:
            key_move, key_inner = jax.random.split(jax.random.fold_in(key, index))
            move = jax.random.uniform(key_move, x.shape, x.dtype, -1.0, 1.0)
            near = inner.estimate(key_inner, here.state, x + radius * move)
            return total + base.finite(near.gradient)

        total = lax.fori_loop(1, num_neighbours + 1, add, jnp.zeros_like(x))
        state = here.state, total / num_neighbours - gradient
        return here._replace(gradient=gradient + variance, state=state)

    return Estimator(init, estimate, (num_neighbours + 1) * inner.num_queries)


def _elsewhere(estimate: GradientEstimate) -> GradientEstimate:
    """Returns an estimate without the loss and logits, which are those of another point."""
    loss, logits = (jnp.full_like(values, jnp.nan) for values in (estimate.loss, estimate.logits))
    return estimate._replace(loss=loss, logits=logits)


def _part(key: Key | None, index: Array | int) -> Key | None:
    return None if key is None else jax.random.fold_in(key, index)
