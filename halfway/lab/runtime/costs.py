"""Memory and FLOPs of models and pairs, counted from shapes: nothing is compiled or run."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import losses, models, populations, sharding, trees
from halfway.populations import Condition
from halfway.types import ApplyFn

_BATCH = 8
"""Number of examples whose FLOPs are counted together, to be divided by it."""


class Sizes(NamedTuple):
    """The memory of one model, in bytes.

    Attributes:
      params: the parameters.
      state: the parameters and the state of the optimizer.
      example: what a gradient keeps of an example between forward and backward pass, and what the
        backward pass adds to it.
    """

    params: int
    state: int
    example: int


class Work(NamedTuple):
    """The work of one model, in FLOPs.

    Attributes:
      step: a training step.
      forward: the logits of one example.
      gradient: the part of one example in a gradient by the parameters.
    """

    step: float
    forward: float
    gradient: float


class Memory(NamedTuple):
    """The memory that both models of a pair need while they train, in bytes.

    Attributes:
      held: needed all the time: parameters, the state of the optimizer, all batches, the halves.
      next_state: the next state, beside the state, while steps are taken.
      step: needed for a step: a gradient, and the activations of a batch.
      look: needed for measuring landscapes: gradients of both halves, and activations of examples.
    """

    held: int
    next_state: int
    step: int
    look: int

    @property
    def most(self) -> int:
        """Returns what is held, and the larger of what a step and what looking needs, in bytes."""
        return self.held + max(self.next_state + self.step, self.look)


def sizes_of(condition: Condition, image_shape: Sequence[int]) -> Sizes:
    """Returns the memory of one model of a condition.

    Args:
      condition: the condition, which has the model and the optimizer.
      image_shape: (H, W, D), the shape of an image.
    """
    return _sizes(condition.model, condition.num_classes, condition.optimizer, tuple(image_shape))


def work_of(condition: Condition, image_shape: Sequence[int]) -> Work:
    """Returns the work of one model of a condition, by XLA's count before it compiles.

    Args:
      condition: the condition, which has model, batch, optimizer and the dtype of a step.
      image_shape: (H, W, D), the shape of an image.
    """
    batch = condition.batch_capacity or condition.batch_size
    rest = condition.optimizer, condition.compute_dtype, tuple(image_shape)
    return _work(condition.model, condition.num_classes, batch, *rest)


def model_flops(condition: Condition, image_shape: Sequence[int]) -> float:
    """Returns the FLOPs of training one model to its last step, with measuring its landscapes.

    Args:
      condition: the condition; a `stop_loss` is assumed not to be reached.
      image_shape: (H, W, D), the shape of an image.
    """
    work, num_steps = work_of(condition, image_shape), condition.probe_steps[-1]
    half, holdout = _looked_at(condition.capacity or 0), _looked_at(condition.num_holdout)
    look = work.forward * (2 * half + holdout) + work.gradient * 2 * half
    flops = work.step * num_steps + look * len(condition.probe_steps)
    if condition.stop_loss > 0:
        length = holdout if condition.on_holdout else half
        flops += work.forward * length * (num_steps // populations.STOP_EVERY)
    return flops


def _looked_at(size: int) -> int:
    """Returns the length of a sample with its padding to whole chunks."""
    together = max(1, min(size, losses.CHUNK_SIZE))
    return -(-size // together) * together


def memory_of(condition: Condition, image_shape: Sequence[int]) -> Memory:
    """Returns the memory that a pair of a condition needs while it trains.

    Args:
      condition: the condition.
      image_shape: (H, W, D), the shape of an image.
    """
    sizes = sizes_of(condition, image_shape)
    batch = condition.batch_capacity or condition.batch_size
    capacity, holdout = condition.capacity or 0, condition.num_holdout
    num_models = 1 if sharding.takes_turns() else 2
    model = condition.model, condition.num_classes, tuple(image_shape)

    def at_once(number: int) -> int:
        return min(number, _chunk(*model, number, sharding.backend()) or number)

    # One half after the other.
    together = min(at_once(max(capacity, holdout)), losses.CHUNK_SIZE)
    example = sizes.example + math.prod(image_shape) * 4
    batches = condition.probe_steps[-1] * batch * 2 * 4
    return Memory(
        held=2 * (sizes.state + batches) + _drawn_bytes(condition),
        next_state=2 * sizes.state,
        step=num_models * (sizes.params + at_once(batch) * example),
        look=2 * (2 * sizes.params + together * example),
    )


def _drawn_bytes(condition: Condition) -> int:
    """Returns the bytes of a pair's halves and S, with the labels that its models train on."""
    capacity = condition.capacity or 0
    return (2 * capacity + condition.num_holdout) * (4 + 4 + 1) + 2 * capacity * 4


def kept_bytes(condition: Condition, image_shape: Sequence[int]) -> int:
    """Returns the bytes of a trained population: parameters, halves, and curves of landscapes.

    Args:
      condition: the condition.
      image_shape: (H, W, D), the shape of an image.
    """
    curve_bytes = len(condition.probe_steps) * (3 * len(populations.LOSSES) + 3) * 4
    params = sizes_of(condition, image_shape).params
    return condition.num_pairs * (2 * (params + curve_bytes) + _drawn_bytes(condition))


@functools.lru_cache(maxsize=1024)
def _sizes(model: Any, num_classes: int, optimizer: str, image_shape: tuple[int, ...]) -> Sizes:
    apply_fn, state = _shapes(model, num_classes, optimizer, image_shape)

    def residuals(number: int) -> list[int]:
        # The function that `jax.vjp` returns is a pytree of what the backward pass needs.
        def backward(params, x, labels):
            return jax.vjp(lambda params: _total(apply_fn, params, x, labels), params)[1]

        residual_shapes = jax.eval_shape(backward, state.params, *_examples(number, image_shape))
        return [trees.num_bytes(leaf) for leaf in jax.tree.leaves(residual_shapes)]

    # Residuals that do not grow with the number of examples are parameters. The backward pass adds
    # about as much as the largest residual.
    bytes_of_1, bytes_of_2 = residuals(1), residuals(2)
    example = sum(bytes_of_2) - sum(bytes_of_1) + max(bytes_of_2) - max(bytes_of_1)
    return Sizes(trees.num_bytes(state.params), trees.num_bytes(state), example)


@functools.lru_cache(maxsize=1024)
def _chunk(
    model: Any, num_classes: int, image_shape: tuple[int, ...], number: int, backend: str
) -> int | None:
    del backend  # which decides; known to `fitting_chunk` by itself
    apply_fn, state = _shapes(model, num_classes, "sgd", image_shape)
    return losses.fitting_chunk(apply_fn, state.params, _examples(number, image_shape)[0])


@functools.lru_cache(maxsize=1024)
def _work(
    model: Any,
    num_classes: int,
    batch_size: int,
    optimizer: str,
    compute_dtype: str,
    image_shape: tuple[int, ...],
) -> Work:
    apply_fn, state = _shapes(model, num_classes, optimizer, image_shape)
    rounded = models.in_precision(apply_fn, compute_dtype)
    # At once: of examples that take turns one turn would be counted.
    step = functools.partial(
        populations.train_step,
        rounded,
        populations.make_optimizer(optimizer, 1e-3),
        chunk_size=batch_size,
    )
    gradient = jax.grad(functools.partial(_total, apply_fn))

    def flops(fn: Any, *shapes: Any) -> float:
        with jax.default_device(_counting_device()):
            analysis: Any = jax.jit(fn).lower(*shapes).cost_analysis()
        return float(analysis["flops"])

    few = _examples(_BATCH, image_shape)
    return Work(
        flops(step, state, *_examples(batch_size, image_shape)),
        flops(apply_fn, state.params, few[0]) / _BATCH,
        flops(gradient, state.params, *few) / _BATCH,
    )


def _counting_device() -> Any:
    """Returns a CPU, None where there is none: accelerators need not count before they compile."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _shapes(
    model: Any, num_classes: int, optimizer: str, image_shape: tuple[int, ...]
) -> tuple[ApplyFn, Any]:
    """Returns `(params, x) -> logits` of a model, and the shapes of its `TrainState`."""
    module = models.build(dict(model), num_classes=num_classes)

    def apply_fn(params, x):
        return jnp.asarray(module.apply({"params": params}, x))

    def begin(key, x):
        params = module.init(key, x)["params"]
        return populations.init_state(params, populations.make_optimizer(optimizer, 1e-3))

    key = jax.eval_shape(lambda: jax.random.key(0))
    return apply_fn, jax.eval_shape(begin, key, _examples(1, image_shape)[0])


def _examples(number: int, image_shape: tuple[int, ...]) -> tuple[Any, Any]:
    images = jax.ShapeDtypeStruct((number, *image_shape), jnp.float32)
    return images, jax.ShapeDtypeStruct((number,), jnp.int32)


def _total(apply_fn: ApplyFn, params: Any, x: Any, labels: Any) -> Any:
    return losses.cross_entropy(apply_fn(params, x), labels).sum()
