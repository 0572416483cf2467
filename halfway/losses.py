"""Losses per example, unreduced, and the one mean that all of the library takes.

Every loss maps logits `[B, C]` and integer labels `[B]` to `[B]`, is pure, and is safe under `jit`,
`vmap` and `grad`. The loss of an example depends on that example alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from halfway import sharding, trees
from halfway.types import ApplyFn, Array, Params

CHUNK_SIZE = 2048
"""Number of examples that pass through a model at once: a whole half would not fit in memory."""

CACHE: dict[str, int] = {"cpu": 4_000_000}
"""Bytes that a backward pass needs of the forward pass, by backend, beyond which `fitting_chunk`
lets examples take turns; on others they never do.

In chunks of 16 the steps of a CNN on 64 images of 28 x 28 pixels take 70 % of the time, in chunks
of 8 to 32 those of a residual network 82 %. Where all fit, turns cost: 20 % for a CNN on images of
8 x 8 (measured on two cores, 1 MB of second-level cache each).
"""


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the cross-entropy `[B]` in nats: log Σ_c exp z_c − z_y.

    Args:
      logits: `[B, C]`.
      labels: `[B]` integers in [0, C); others give NaN.
    """
    _check(logits, labels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def brier(logits: Array, labels: Array) -> Array:
    """Returns the Brier score `[B]` in [0, 2]: Σ_c (softmax(z)_c − [c = y])².

    The sum runs over all classes, as in Brier (1950): 0 is certain and right, 2 certain and wrong,
    and the uniform prediction has 1 − 1/C.

    Args:
      logits: `[B, C]`.
      labels: `[B]` integers in [0, C).

    Examples:
      >>> print(losses.brier(jnp.zeros((1, 4)), jnp.array([2])))  # uniform over four classes
      [0.75]
    """
    _check(logits, labels)
    difference = jax.nn.softmax(logits) - _is_label(logits, labels)
    return jnp.sum(difference**2, axis=-1)


def squared(logits: Array, labels: Array) -> Array:
    """Returns the squared distance `[B]` of the logits from the label: Σ_c (z_c − [c = y])².

    To train on it is to regress on one-hot labels, as kernel regression does.

    Args:
      logits: `[B, C]`.
      labels: `[B]` integers in [0, C).

    Examples:
      >>> print(losses.squared(jnp.array([[1.0, 0.5, -1.0]]), jnp.array([0])))
      [1.25]
    """
    _check(logits, labels)
    return jnp.sum((logits - _is_label(logits, labels)) ** 2, axis=-1)


def error(logits: Array, labels: Array) -> Array:
    """Returns the misclassification `[B]` as float32: 1 where argmax_c z_c ≠ y, else 0.

    Among tied logits the first class is the prediction. NaN where a logit is NaN: a diverged model
    has no error rate, and this way it shows. The gradient is 0.

    Args:
      logits: `[B, C]`.
      labels: `[B]` integers in [0, C).
    """
    _check(logits, labels)
    wrong = (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32)
    return jnp.where(jnp.isnan(logits).any(axis=-1), jnp.nan, wrong)


def margin(logits: Array, labels: Array) -> Array:
    """Returns the margin loss `[B]`: max_{c ≠ y} z_c − z_y, positive where misclassified.

    It is the negative of the margin. The gradient is +1 at the runner-up and −1 at y, everywhere;
    where runners-up tie, the first of them takes all of it (a subgradient), as in `error`.

    Args:
      logits: `[B, C]`, C ≥ 2.
      labels: `[B]` integers in [0, C).

    Examples:
      >>> print(losses.margin(jnp.array([[2.0, 0.5, 1.0], [2.0, 0.5, 3.0]]), jnp.array([0, 0])))
      [-1.  1.]
    """
    _check(logits, labels)
    chex.assert_axis_dimension_gteq(logits, 1, 2)
    num_classes = logits.shape[1]
    is_label = _is_label(logits, labels)
    others = jax.lax.stop_gradient(jnp.where(is_label, -jnp.inf, logits))
    # Selecting with masks, not `max` and a gather: a seventh to a fifteenth of the time under vmap.
    is_runner_up = jax.nn.one_hot(jnp.argmax(others, axis=-1), num_classes, dtype=bool)
    return jnp.sum(jnp.where(is_runner_up, logits, 0) - jnp.where(is_label, logits, 0), axis=-1)


def logit(logits: Array, labels: Array) -> Array:
    """Returns the negative logit `[B]` of the label: −z_y.

    It has no other class in it, and so is no measure of error. An attack that steers to `targets`
    raises −loss_fn(logits, targets), here the logit of the target itself: its gradient does not
    shrink as the target comes to lead. NaN where a logit is NaN.

    Args:
      logits: `[B, C]`.
      labels: `[B]` integers in [0, C).

    Source: Zhao et al., arXiv 2012.11207.

    Examples:
      >>> print(losses.logit(jnp.array([[2.0, 0.5, 1.0], [2.0, 0.5, 3.0]]), jnp.array([0, 1])))
      [-2.  -0.5]
    """
    _check(logits, labels)
    value = -jnp.sum(jnp.where(_is_label(logits, labels), logits, 0), axis=-1)
    return jnp.where(jnp.isnan(logits).any(axis=-1), jnp.nan, value)


def probability_margin(logits: Array, labels: Array) -> Array:
    """Returns the margin loss `[B]` of the softmax p, in [−1, 1]: max_{c ≠ y} p_c − p_y.

    It is positive where misclassified, as `margin` is; its gradient tends to 0 where a model is
    certain, right or wrong.

    Args:
      logits: `[B, C]`, C ≥ 2.
      labels: `[B]` integers in [0, C).

    Source: Xie et al., arXiv 2411.15210.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.125, 0.375]]))
      >>> print(losses.probability_margin(logits, jnp.array([0])).round(4))
      [-0.125]
    """
    _check(logits, labels)
    return margin(jax.nn.softmax(logits), labels)


def dlr(logits: Array, labels: Array) -> Array:
    """Returns the difference of logits ratio `[B]`: (max_{c ≠ y} z_c − z_y) / (z_π1 − z_π3).

    π sorts the logits from the largest. It is positive where misclassified, and neither a shift nor
    a positive scale of the logits changes it; its gradient flows through the denominator. 0 where
    the three largest logits are equal.

    Args:
      logits: `[B, C]`, C ≥ 3.
      labels: `[B]` integers in [0, C).

    Raises:
      ValueError: if there are fewer than three classes.

    Source: Croce and Hein, arXiv 2003.01690.

    Examples:
      >>> print(losses.dlr(jnp.array([[5.0, 3.0, 1.0], [50.0, 30.0, 10.0]]), jnp.array([0, 0])))
      [-0.5 -0.5]
    """
    _check(logits, labels)
    largest = _largest(logits, 3, "dlr")
    return _over(margin(logits, labels), largest[:, 0] - largest[:, 2])


def targeted_dlr(labels: Array) -> Callable[[Array, Array], Array]:
    """Returns a loss of logits and *targets*: (z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2).

    The loss is small where the target t is ahead of the label y; a targeted attack descends it.
    Invariant and differentiable like `dlr`.

    Args:
      labels: `[B]` integers, the classes y that the attack leads away from.

    Returns:
      `(logits, targets) -> [B]`, with logits `[B, C]` and targets `[B]`.

    Raises:
      ValueError: when called with fewer than four classes.

    Source: Croce and Hein, arXiv 2003.01690.

    Examples:
      >>> loss_fn = losses.targeted_dlr(jnp.array([0]))
      >>> print(loss_fn(jnp.array([[4.0, 2.0, 1.0, 1.0]]), jnp.array([1])))
      [0.6666667]
    """

    def loss_fn(logits: Array, targets: Array) -> Array:
        _check(logits, targets)
        largest = _largest(logits, 4, "targeted_dlr")
        ahead = jnp.where(_is_label(logits, labels), logits, 0).sum(-1)
        behind = jnp.where(_is_label(logits, targets), logits, 0).sum(-1)
        scale = largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3])
        return _over(ahead - behind, scale)

    return loss_fn


def _largest(logits: Array, number: int, name: str) -> Array:
    """Returns the largest logits `[B, number]`, sorted from the largest."""
    if logits.shape[1] < number:
        raise ValueError(
            f"{name} compares the {number} largest logits, got {logits.shape[1]} classes: use "
            "margin or cross_entropy"
        )
    return lax.top_k(logits, number)[0]


def _over(values: Array, scale: Array) -> Array:
    """Returns values divided by a scale, 0 where the scale is 0."""
    return jnp.where(scale == 0, 0, values / jnp.where(scale == 0, 1, scale))


def masked_mean(values: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Returns the mean of the values under the mask: a masked sum over a count, divided once.

    Values outside the mask do not enter, NaN and infinities included. Where the mask selects
    nothing the mean is 0/0 = NaN, since no number stands for "no data".

    Args:
      values: numbers of any shape.
      mask: booleans, or numbers of which all but 0 select (not weights); broadcast to `values`.
      axis: the axes to reduce; None reduces all of them.

    Examples:
      >>> values, mask = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
      >>> print(losses.masked_mean(values, mask))
      2.0
    """
    selected = jnp.broadcast_to(jnp.asarray(mask).astype(bool), jnp.shape(values))
    total = jnp.sum(jnp.where(selected, values, 0), axis=axis)
    return total / jnp.sum(selected, axis=axis).astype(total.dtype)


def chunked_sum(
    sum_fn: Callable[..., Any],
    arrays: Sequence[Array],
    mask: Array,
    *,
    chunk_size: int | None,
    axis: tuple[str, int] | None = None,
) -> Any:
    """Returns the sum of `sum_fn(*arrays, mask)` over chunks of the examples, in constant memory.

    Args:
      sum_fn: maps arrays `[chunk_size, ...]` and their mask to a pytree of sums over the examples
        under the mask.
      arrays: arrays `[N, ...]` with the examples on their leading axis.
      mask: `[N]` bool, the examples that count.
      chunk_size: number of examples at once; None, or N and more: all of them in a single call.
      axis: name and size of a mesh axis, from `sharding.data_axis`; each device along it
        sums over its part of the examples. None: one device sums over all.

    Raises:
      ValueError: if `chunk_size` is below 1.

    Examples:
      >>> values, mask = jnp.arange(5.0), jnp.array([True, True, True, True, False])
      >>> add = lambda values, mask: jnp.where(mask, values, 0).sum()
      >>> print(losses.chunked_sum(add, [values], mask, chunk_size=2))
      6.0
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if axis is not None:
        arrays = [sharding.share(array, axis) for array in arrays]
        mask = sharding.share_mask(mask, axis)
        return lax.psum(chunked_sum(sum_fn, arrays, mask, chunk_size=chunk_size), axis[0])
    size = mask.shape[0]
    if chunk_size is None or chunk_size >= size:
        return sum_fn(*arrays, mask)
    pad = -size % chunk_size

    def chunked(array):
        return trees.pad_by_first(array, pad).reshape(-1, chunk_size, *array.shape[1:])

    valid = jnp.concatenate([mask.astype(bool), jnp.zeros(pad, bool)]).reshape(-1, chunk_size)
    chunks = (*(chunked(array) for array in arrays), valid)

    def add(total, chunk):
        return jax.tree.map(jnp.add, total, sum_fn(*chunk)), None

    shapes = jax.eval_shape(sum_fn, *jax.tree.map(lambda array: array[0], chunks))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(add, zeros, chunks)[0]


def fitting_chunk(apply_fn: ApplyFn, params: Params, x: Array | jax.ShapeDtypeStruct) -> int | None:
    """Returns how many examples pass through a model at once so that a cache holds them: `CACHE`.

    Args:
      apply_fn: parameters and inputs to logits; those of an example depend on that example alone.
      params: parameters of one model, of which only shapes matter.
      x: inputs `[B, ...]`, of which only the shape matters.

    Returns:
      a number of examples, if possible a divisor of B; None: all, as on an accelerator.
    """
    limit, number = CACHE.get(sharding.backend()), x.shape[0]
    if limit is None or number < 2:
        return None

    def kept(params, x):
        return jax.vjp(lambda params: apply_fn(params, x), params)[1]

    size = trees.num_bytes(jax.eval_shape(kept, params, x)) - trees.num_bytes(params)
    least = -(-size // limit)
    if least <= 1:
        return None
    divisors = (turns for turns in range(least, 2 * least) if number % turns == 0)
    return max(1, -(-number // next(divisors, least)))


def _is_label(logits: Array, labels: Array) -> Array:
    """Returns `[B, C]` bool, true at the label of each example."""
    return jax.nn.one_hot(labels, logits.shape[1], dtype=bool)


def smooth_scalar(value: Any) -> Array:
    """Returns what a loss of parameters returned, if it can have a gradient.

    Args:
      value: of a `loss_fn(params)`.

    Raises:
      ValueError: unless it is a floating-point scalar. A number of errors has no slope.
    """
    array = jnp.asarray(value)
    if array.shape or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn must return a floating-point scalar, got {array.dtype} of shape "
            f"{array.shape}: a slope needs a loss such as the mean cross-entropy"
        )
    return array


def _check(logits: Array, labels: Array) -> None:
    """Checks that logits are floats `[B, C]` and labels integers `[B]`."""
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    chex.assert_type([logits, labels], [float, int])
