"""Gradient estimators of attacks that are meant to transfer: each wraps another one.

Averaging, smoothing or looking ahead makes a gradient less that of one model at one point. Those
that do not evaluate the model at the point itself say so by a loss of NaN, and then only the last
point of a walk can be its best.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from halfway.attacks import base, image_changes
from halfway.attacks.base import Estimator, GradientEstimate
from halfway.attacks.threat import Threat
from halfway.types import Array, Key, is_traced

Change = Callable[[Key, Array], Array]
"""Key and one example `[...]` to an example of the same shape."""


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


def transformed(inner: Estimator, change: Change, *, num_copies: int = 1) -> Estimator:
    """Returns the mean gradient over random changes of the inputs, by the chain rule.

    It is an estimate of ∇ E[J(change(x))], an expectation over transformations (EOT). Each example
    is changed by itself, by a key that depends on its place in the batch alone. The estimators
    below that change images are short uses of it.

    Args:
      inner: evaluated at the changed inputs; each copy begins from the same state of it, and that
        of the last is kept.
      change: key and one example `[...]` to an example of the same shape; differentiable.
      num_copies: whose gradients are averaged, at least 1, static.

    Raises:
      ValueError: for fewer.

    Source: Athalye et al., arXiv 1707.07397.

    Examples:
      The loss looks at one feature of two; a change that swaps them half of the time shares its
      gradient among them:

      >>> goal = attacks.objective(lambda x: x, jnp.array([0]), losses.logit)
      >>> swap = lambda key, x: jnp.where(jax.random.bernoulli(key), x[::-1], x)
      >>> gradient = attacks.transformed(attacks.exact_gradient(goal), swap, num_copies=500)
      >>> print(gradient.estimate(jax.random.key(0), (), jnp.ones((1, 2))).gradient.round(1))
      [[-0.5 -0.5]]
    """
    base.check_count("num_copies", num_copies)

    def change_each(key: Key, x: Array) -> Array:
        return jax.vmap(change)(base.example_keys(key, len(x)), x)

    return _averaged(inner, change_each, num_copies)


def _averaged(
    inner: Estimator, change: Callable[[Key, Array], Array], num_copies: int
) -> Estimator:
    """Returns the mean gradient over changes of a whole batch: see `transformed`."""

    def estimate(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        assert key is not None, "changes are random: the walk needs a key"

        def add(carry: tuple[Array, Any], key: Key) -> tuple[Any, tuple[Array, Array]]:
            key_change, key_inner = jax.random.split(key)
            changed, pull_back = jax.vjp(functools.partial(change, key_change), x)
            there = inner.estimate(key_inner, state, changed)
            (gradient,) = pull_back(base.finite(there.gradient))
            return (carry[0] + gradient, there.state), (there.loss, there.logits)

        keys = jax.random.split(key, num_copies)
        (total, kept), (losses, logits) = lax.scan(add, (jnp.zeros_like(x), state), keys)
        return _elsewhere(GradientEstimate(total / num_copies, losses[0], logits[0], kept))

    return Estimator(inner.init, estimate, num_copies * inner.num_queries)


def diverse_inputs(
    inner: Estimator, *, probability: float = 0.5, smallest: float = 0.9
) -> Estimator:
    """Returns gradients at images that are shrunk and moved at random (DI-FGSM).

    Each image is, with some probability, resized bilinearly to a random share of its side and put
    at a random place on a black canvas of the old size.

    Args:
      inner: of images `[B, H, W, D]`.
      probability: that an image is changed, in [0, 1]; the others are seen as they are.
      smallest: share of the side that images are resized to at least, in (0, 1].

    Raises:
      ValueError: for values outside these ranges.

    Source: Xie et al., arXiv 1803.06978.
    """
    _check_share("probability", probability)
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest must lie in (0, 1], got {smallest}")
    change = functools.partial(image_changes.shrink, probability=probability, smallest=smallest)
    return transformed(inner, change)


def admixed(
    inner: Estimator, images: Array, *, num_images: int = 3, portion: float = 0.2
) -> Estimator:
    """Returns the mean gradient over images to which a portion of another one is added (Admix).

    The paper's attack is `admixed(scaled_copies(inner), images)`, with images of other classes.

    Args:
      inner: of images `[B, H, W, D]`; scaled copies of it scale what is added too.
      images: `[N, H, W, D]`, the others: each copy of each image draws one of them.
      num_images: copies of an image, at least 1, static.
      portion: of the other image, in [0, 1].

    Raises:
      ValueError: for values outside these ranges, and for images of another form.

    Source: Wang et al., arXiv 2102.00436.
    """
    base.check_count("num_images", num_images)
    _check_share("portion", portion)
    if jnp.ndim(images) != 4 or len(images) == 0:
        raise ValueError(f"images must be at least one image [N, H, W, D], got {jnp.shape(images)}")
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats, as the inputs are, got {images.dtype}")
    change = functools.partial(image_changes.add_another, images=images, portion=portion)
    return transformed(inner, change, num_copies=num_images)


def varied_spectra(
    inner: Estimator, *, num_copies: int = 20, deviation: float = 16 / 255, spread: float = 0.5
) -> Estimator:
    """Returns the mean gradient over images whose spectra are varied at random (SSA).

    A copy is IDCT(DCT(x + ξ) · m) with Gaussian noise ξ and a factor m uniform in [1 − ρ, 1 + ρ]
    for each coefficient; the DCT is that of the height and the width of each channel. Gradients
    follow the chain rule; the code of the authors takes that of the copy for that of the image.

    Args:
      inner: of images `[B, H, W, D]`.
      num_copies: at least 1, static.
      deviation: of the noise, in units of the image, at least 0; the authors take the budget.
      spread: ρ, at least 0.

    Raises:
      ValueError: for values outside these ranges.

    Source: Long et al., arXiv 2207.05382.
    """
    base.check_length("deviation", deviation)
    base.check_length("spread", spread)
    change = functools.partial(image_changes.vary_spectrum, deviation=deviation, spread=spread)
    return transformed(inner, change, num_copies=num_copies)


def shuffled_blocks(
    inner: Estimator, *, num_copies: int = 20, num_blocks: int = 2, degrees: float = 24
) -> Estimator:
    """Returns the mean gradient over images whose blocks are shuffled and turned (BSR).

    An image is cut at random places into `num_blocks` rows and as many columns. The rows of blocks
    change places, the columns do, and each block turns about its middle by an angle of its own.

    Args:
      inner: of images `[B, H, W, D]`.
      num_copies: at least 1, static.
      num_blocks: along each side, at least 1, static; blocks can be empty.
      degrees: that a block turns at most, either way, at least 0; its angle is uniform, where the
        code of the authors draws it from a truncated Gaussian.

    Raises:
      ValueError: for values outside these ranges.

    Source: Wang et al., arXiv 2308.10299.
    """
    base.check_count("num_blocks", num_blocks)
    base.check_length("degrees", degrees)
    change = functools.partial(image_changes.shuffle_blocks, num_blocks=num_blocks, degrees=degrees)
    return transformed(inner, change, num_copies=num_copies)


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


def flat_maxima(
    inner: Estimator,
    *,
    num_neighbours: int = 20,
    radius: Array | float,
    step: Array | float,
    balance: float = 0.5,
) -> Estimator:
    """Returns gradients that lead to flat maxima, by a penalty on their own norm nearby (PGN).

    It is the mean over neighbours x' uniform in a cube of `(1 − δ) ∇J(x') + δ ∇J(x' − step · g)`,
    with g = ∇J(x')/mean|∇J(x')|. To first order that is ∇J − δ step ∇²J g, which climbs J and goes
    down ‖∇J‖_2: two evaluations take the place of a second derivative.

    Args:
      inner: evaluated twice for each neighbour.
      num_neighbours: at least 1, static.
      radius: half of the cube's side, a scalar or one per example with trailing axes of 1; the
        paper takes 3 ε.
      step: how far down the second gradient is taken, likewise, on average over the features; the
        paper takes a step of its walk, ε/10.
      balance: δ, in [0, 1].

    Raises:
      ValueError: for values outside these ranges, and lengths that are negative or not finite.

    Source: Ge et al., arXiv 2306.05225.
    """
    base.check_count("num_neighbours", num_neighbours)
    _check_share("balance", balance)
    for name, length in (("radius", radius), ("step", step)):
        if not is_traced(length) and not np.all(np.isfinite(length) & (np.asarray(length) >= 0)):
            raise ValueError(f"{name} must be finite and at least 0, got {length}")

    def penalized(key: Key | None, state: Any, x: Array) -> GradientEstimate:
        here = inner.estimate(_part(key, 0), state, x)
        gradient = base.finite(here.gradient)
        below = inner.estimate(_part(key, 1), here.state, x - step * normalized(gradient))
        gradient = (1 - balance) * gradient + balance * base.finite(below.gradient)
        return here._replace(gradient=gradient)

    def neighbour(key: Key, x: Array) -> Array:
        def draw(key: Key) -> Array:
            return jax.random.uniform(key, x.shape[1:], x.dtype, -1.0, 1.0)

        return x + radius * jax.vmap(draw)(base.example_keys(key, len(x)))

    return _averaged(
        Estimator(inner.init, penalized, 2 * inner.num_queries), neighbour, num_neighbours
    )


def _check_share(name: str, value: float) -> None:
    """Checks that a share lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _elsewhere(estimate: GradientEstimate) -> GradientEstimate:
    """Returns an estimate without the loss and logits, which are those of another point."""
    loss, logits = (jnp.full_like(values, jnp.nan) for values in (estimate.loss, estimate.logits))
    return estimate._replace(loss=loss, logits=logits)


def _part(key: Key | None, index: Array | int) -> Key | None:
    return None if key is None else jax.random.fold_in(key, index)
