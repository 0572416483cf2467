"""Training as pure functions: a step, a stream of batches, and a fit with probes along the way."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from halfway import losses
from halfway.types import ApplyFn, Array, Key, LossFn, Params, Sample

OPTIMIZERS = ("adam", "sgd")
LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "brier": losses.brier,
    "error": losses.error,
}
"""The landscapes that every probe reports, by name."""
DESCENDED: dict[str, LossFn] = {
    "cross_entropy": losses.cross_entropy,
    "squared": losses.squared,
}
"""The losses that training can descend, by name."""
STOP_EVERY = 10
"""Number of steps between two checks of whether training is over."""


class TrainState(NamedTuple):
    """A model in training: its parameters, the optimizer's state and the steps taken."""

    params: Params
    opt_state: Any
    step: Array


def make_optimizer(
    name: str, learning_rate: float | Array, weight_decay: float | Array = 0.0
) -> optax.GradientTransformation:
    """Returns an optimizer; learning rate and decay may be traced, so they are data.

    Args:
      name: "adam" (with decoupled decay) or "sgd".
      learning_rate: the learning rate, constant over training.
      weight_decay: decoupled weight decay, which is multiplied by the learning rate.

    Raises:
      ValueError: for an unknown name.
    """
    if name == "adam":
        return optax.adamw(learning_rate, weight_decay=weight_decay)  # pyright: ignore
    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay),  # pyright: ignore
            optax.sgd(learning_rate),  # pyright: ignore
        )
    raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")


def check_loss(name: str) -> None:
    """Checks that training can descend a loss.

    Args:
      name: of the loss.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in DESCENDED:
        raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(DESCENDED)}")


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step.

    Args:
      params: initial parameters of one model.
      optimizer: an optax transformation.
    """
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def train_step(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Array,
    labels: Array,
    mask: Array | None = None,
    *,
    loss_fn: LossFn = losses.cross_entropy,
    chunk_size: int | None = None,
    axis: tuple[str, int] | None = None,
) -> TrainState:
    """Returns the state after one step on the mean loss of a batch.

    Args:
      apply_fn: parameters and inputs to logits; those of an example depend on that example alone.
      optimizer: an optax transformation.
      state: the state before the step.
      x: inputs `[B, ...]`.
      labels: `[B]` integers.
      mask: `[B]` bool, the examples that count; all by default.
      loss_fn: logits and labels to a loss per example.
      chunk_size: number of examples at once, whose gradients are added up, static; None: as many as
        a cache holds, see `losses.fitting_chunk`.
      axis: name and size of a mesh axis, from `sharding.data_axis`, along which each device has its
        part of the batch; needs the mask. None: the whole batch is here.

    Raises:
      ValueError: if there is an axis, but no mask.
    """
    if axis is not None and mask is None:
        raise ValueError("a batch that is shared out needs its mask: parts are padded")
    mask = jnp.ones(labels.shape, bool) if mask is None else mask

    def sums(x, labels, mask):
        def total(params):
            return jnp.where(mask, loss_fn(apply_fn(params, x), labels), 0).sum()

        return jax.grad(total)(state.params)

    if chunk_size is None:
        chunk_size = losses.fitting_chunk(apply_fn, state.params, x)
    gradient = losses.chunked_sum(sums, (x, labels), mask, chunk_size=chunk_size)
    count = mask.sum()
    if axis is not None:
        gradient, count = lax.psum((gradient, count), axis[0])
    gradient = optax.tree.scale(1 / count, gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)


def index_stream(
    key: Key,
    num_examples: int | Array,
    *,
    capacity: int,
    num_steps: int,
    batch_size: int | Array,
    batch_capacity: int | None = None,
) -> Array:
    """Returns `[num_steps, batch_size]` positions: epochs in a row, each shuffled anew.

    Within an epoch each of the n positions occurs once (without replacement); a batch may straddle
    two epochs. Independent draws instead would leave about e^-k of the examples unused after k
    epochs.

    Args:
      key: a PRNG key, which is consumed.
      num_examples: n, at least 1; may be traced.
      capacity: static upper bound of n.
      num_steps: the number of batches.
      batch_size: the number of positions in a batch; may be traced where `batch_capacity` is given.
      batch_capacity: static length of a row, at least the batch size. Beyond the batch a row holds
        positions that are not part of it.

    Examples:
      >>> stream = populations.index_stream(
      ...     jax.random.key(0), 4, capacity=4, num_steps=4, batch_size=2)
      >>> [sorted(epoch.tolist()) for epoch in stream.reshape(2, 4)]  # each epoch sees all once
      [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    length = batch_size if batch_capacity is None else batch_capacity
    total = num_steps * batch_size
    valid = jnp.arange(capacity) < num_examples

    def epoch(i, stream):
        draws = jax.random.uniform(jax.random.fold_in(key, i), (capacity,))
        order = jnp.argsort(jnp.where(valid, draws, 2.0)).astype(jnp.int32)
        # The invalid tail is written too, and overwritten by the next epoch.
        return lax.dynamic_update_slice(stream, order, (i * num_examples,))

    num_epochs = (total + num_examples - 1) // num_examples
    stream = jnp.zeros((num_steps * length + capacity,), jnp.int32)
    stream = lax.fori_loop(0, num_epochs, epoch, stream)
    if batch_capacity is None:
        return stream[: num_steps * length].reshape(num_steps, length)
    return stream[jnp.arange(num_steps)[:, None] * batch_size + jnp.arange(length)[None]]


class Walk(NamedTuple):
    """Where a model in training is: its state, and whether its training is over."""

    state: TrainState
    stopped: Array


def begin_walk(state: TrainState) -> Walk:
    """Returns the walk before the first step."""
    return Walk(state, jnp.zeros((), bool))


def advance_walk(
    step_fn: Callable[[TrainState, Array], TrainState],
    walk: Walk,
    first: Array | int,
    last: Array | int,
    *,
    stop_fn: Callable[[Params], Array] | None = None,
) -> Walk:
    """Returns a walk after the steps `first` to `last` - 1, fewer where training is over.

    Steps taken in several pieces are the same as in one, bit by bit.

    Args:
      step_fn: a state and the number of the step to the next state.
      walk: the walk after `first` steps.
      first: number of steps taken before; may be traced. With `stop_fn` a multiple of `STOP_EVERY`.
      last: number of steps taken after; may be traced, a multiple of `STOP_EVERY` with `stop_fn`.
      stop_fn: parameters to a bool that says whether training is over, asked after every
        `STOP_EVERY` steps. Mapped over members, each stops by itself and the loop ends with the
        last. None: training goes on to the last step.
    """
    if stop_fn is None:
        # The trip count is not a member's own, so that vmapping keeps a plain loop.
        state = lax.fori_loop(first, last, lambda i, s: step_fn(s, i), walk.state)
        return Walk(state, walk.stopped)

    def goes_on(walk):
        return (walk.state.step < last) & ~walk.stopped

    def several(walk):
        start = walk.state.step
        state = lax.fori_loop(0, STOP_EVERY, lambda i, s: step_fn(s, start + i), walk.state)
        return Walk(state, stop_fn(state.params))

    return lax.while_loop(goes_on, several, walk)


def check_steps(probe_steps: Sequence[int], *, stops: bool = False) -> tuple[int, ...]:
    """Returns the steps at which a walk is read, as plain integers.

    Args:
      probe_steps: numbers of steps, increasing from 0 or more.
      stops: whether training may be over before the last.

    Raises:
      ValueError: if they are empty or do not increase, or if training may be over before the last
        and they are not multiples of `STOP_EVERY`.
    """
    steps = tuple(int(s) for s in probe_steps)
    if not steps or steps[0] < 0 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"probe_steps must increase from 0 or more, got {steps}")
    if stops and any(step % STOP_EVERY for step in steps):
        raise ValueError(f"with stop_fn, probe_steps are multiples of {STOP_EVERY}, got {steps}")
    return steps


def fit(
    step_fn: Callable[[TrainState, Array], TrainState],
    probe_fn: Callable[[Params], Any],
    state: TrainState,
    *,
    probe_steps: Sequence[int],
    stop_fn: Callable[[Params], Array] | None = None,
) -> tuple[TrainState, Any]:
    """Returns the trained state and what the probe returned, `[T, ...]` in each leaf.

    Args:
      step_fn: a state and the number of the step to the next state.
      probe_fn: parameters to a pytree; called at `probe_steps` only.
      state: the state before the first step.
      probe_steps: T numbers of steps taken, increasing from 0 or more; training ends at the last.
      stop_fn: parameters to a bool that says whether training is over, see `advance_walk`. Later
        probes read the parameters at which it stopped; `state.step` says when that was.

    Raises:
      ValueError: if `probe_steps` is empty or does not increase, or with `stop_fn` is not of
        multiples of `STOP_EVERY`.

    Examples:
      >>> def step(state, i):
      ...     return populations.TrainState(state.params * 0.5, (), state.step + 1)
      >>> start = populations.TrainState(jnp.array(8.0), (), jnp.array(0))
      >>> state, walk = populations.fit(step, lambda params: params, start, probe_steps=(0, 1, 3))
      >>> print(state.step, walk)
      3 [8. 4. 1.]
    """
    steps = check_steps(probe_steps, stops=stop_fn is not None)

    def segment(walk, limits):
        walk = advance_walk(step_fn, walk, limits[0], limits[1], stop_fn=stop_fn)
        return walk, probe_fn(walk.state.params)

    walk, observations = lax.scan(
        segment, begin_walk(state), jnp.asarray([(0, *steps[:-1]), steps]).T
    )
    return walk.state, observations


def _loss_sums(logits: Array, labels: Array, mask: Array) -> dict[str, Array]:
    """Returns the sum of every loss in `LOSSES` under a mask."""
    return {
        name: jnp.where(mask, loss_fn(logits, labels), 0).sum() for name, loss_fn in LOSSES.items()
    }


def _at_once(
    apply_fn: ApplyFn, params: Params, images: Array, sample: Sample, chunk_size: int | None
) -> int | None:
    """Returns how many examples of a sample pass through a model at once, at most `chunk_size`."""
    x = jax.ShapeDtypeStruct((*sample.indices.shape, *images.shape[1:]), images.dtype)
    limits = chunk_size, losses.fitting_chunk(apply_fn, params, x)
    return min((limit for limit in limits if limit is not None), default=None)


def losses_and_gradient(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    sample: Sample,
    *,
    chunk_size: int | None = losses.CHUNK_SIZE,
    axis: tuple[str, int] | None = None,
) -> tuple[dict[str, Array], Params]:
    """Returns the mean of every loss in `LOSSES` over a sample, and the gradient of cross-entropy.

    Args:
      apply_fn: parameters and inputs to logits.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      sample: rows of the pool with labels and mask.
      chunk_size: number of examples at once, which bounds the memory; None: all. Fewer where a
        cache holds fewer, see `losses.fitting_chunk`.
      axis: name and size of a mesh axis over which examples are shared out, from
        `sharding.data_axis`. None: one device sums over all.
    """
    chunk_size = _at_once(apply_fn, params, images, sample, chunk_size)

    def sums(rows, labels, mask):
        def total(params):
            loss_sums = _loss_sums(apply_fn(params, images[rows]), labels, mask)
            return loss_sums["cross_entropy"], loss_sums

        gradient, loss_sums = jax.grad(total, has_aux=True)(params)
        return loss_sums, gradient

    totals = losses.chunked_sum(
        sums, (sample.indices, sample.labels), sample.mask, chunk_size=chunk_size, axis=axis
    )
    return optax.tree.scale(1 / sample.mask.sum(), totals)


def landscape_losses(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    sample: Sample,
    *,
    chunk_size: int | None = losses.CHUNK_SIZE,
    axis: tuple[str, int] | None = None,
) -> dict[str, Array]:
    """Returns the mean of every loss in `LOSSES` over a sample, as labelled.

    Args:
      apply_fn: parameters and inputs to logits.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      sample: rows of the pool with labels and mask.
      chunk_size: number of examples at once, as of `losses_and_gradient`.
      axis: name and size of a mesh axis over which examples are shared out, from
        `sharding.data_axis`. None: one device sums over all.
    """
    chunk_size = _at_once(apply_fn, params, images, sample, chunk_size)

    def sums(rows, labels, mask):
        return _loss_sums(apply_fn(params, images[rows]), labels, mask)

    totals = losses.chunked_sum(
        sums, (sample.indices, sample.labels), sample.mask, chunk_size=chunk_size, axis=axis
    )
    return {name: total / sample.mask.sum() for name, total in totals.items()}


def gradient_products(
    apply_fn: ApplyFn,
    params: Params,
    images: Array,
    own_half: Sample,
    other_half: Sample,
    *,
    chunk_size: int | None = losses.CHUNK_SIZE,
    axis: tuple[str, int] | None = None,
) -> dict[str, Array]:
    """Returns the inner products of the two halves' full gradients of cross-entropy.

    Args:
      apply_fn: parameters and inputs to logits.
      params: parameters of one model.
      images: images `[N, H, W, D]` of the pool.
      own_half: the half that the model trains on, with the labels it trains on.
      other_half: of the same pair.
      chunk_size: number of examples at once, as of `losses_and_gradient`.
      axis: name and size of a mesh axis over which examples are shared out, from
        `sharding.data_axis`. None: one device sums over all.

    Returns:
      `own_own` = ‖∇L_A‖², `own_other` = ⟨∇L_A, ∇L_B⟩ and `other_other` = ‖∇L_B‖².
    """
    own_gradient, other_gradient = (
        losses_and_gradient(apply_fn, params, images, sample, chunk_size=chunk_size, axis=axis)[1]
        for sample in (own_half, other_half)
    )
    return inner_products(own_gradient, other_gradient)


def inner_products(own_gradient: Params, other_gradient: Params) -> dict[str, Array]:
    """Returns the inner products of two gradients, named as in `gradient_products`.

    Args:
      own_gradient: of the half that the model trains on.
      other_gradient: of the other half, of the same shapes.

    Returns:
      `own_own` = ‖∇L_A‖², `own_other` = ⟨∇L_A, ∇L_B⟩ and `other_other` = ‖∇L_B‖², scalars.
    """
    both = {
        "own_own": (own_gradient, own_gradient),
        "own_other": (own_gradient, other_gradient),
        "other_other": (other_gradient, other_gradient),
    }
    return {name: jnp.asarray(optax.tree.vdot(u, v)) for name, (u, v) in both.items()}
