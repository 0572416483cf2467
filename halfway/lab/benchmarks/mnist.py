"""A network trained on MNIST, the same in each run, for suites that attack it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from halfway import data, losses, models, sharding
from halfway.attacks import AttackResult
from halfway.lab.runtime import datasets
from halfway.types import Array, Key, LogitsFn, Params

NUM_IMAGES, BATCH_SIZE, LEARNING_RATE = 1000, 128, 1e-3
NUM_AT_ONCE = 25
"""Number of images attacked at once, a divisor of the number of all images."""
CNN = {"kind": "cnn", "features": (16, 32), "stride": 1, "pool": 2, "widths": ()}


class Problem(NamedTuple):
    """A trained network and the images that it is attacked on.

    Attributes:
      config: the plain config of the network, which `halfway.models.build` takes.
      params: the parameters of the network.
      images: `[N, H, W, D]`, images of the test split.
      labels: `[N]`, their labels.
      accuracy: the accuracy of the network on these images, in [0, 1].
    """

    config: dict[str, Any]
    params: Params
    images: Array
    labels: Array
    accuracy: float

    @property
    def logits_fn(self) -> LogitsFn:
        """A function of images `[B, H, W, D]` that returns logits `[B, 10]`."""
        return logits_of(self.config, self.params)


def logits_of(config: dict[str, Any], params: Params) -> LogitsFn:
    """Returns a network as a function of images that returns logits.

    Args:
      config: the plain config of the network, which `halfway.models.build` takes.
      params: the parameters of the network.
    """
    module = models.build(config, num_classes=10)
    return lambda x: jnp.asarray(module.apply({"params": params}, x))


def problem(data_dir: str | None) -> Problem | str:
    """Returns the network after one pass over the training split, or why there is none.

    Args:
      data_dir: the data folder, as the flag gives it.
    """
    try:
        dataset = data.load("mnist", datasets.folder(data_dir))
    except data.DataError as error:
        return str(error)
    assert dataset.test is not None
    train, x, labels = dataset.train, *(a[:NUM_IMAGES] for a in dataset.test)
    params = trained(CNN, train.images, train.labels)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    logits = jax.jit(logits_of(CNN, params))(x)
    accuracy = 1 - float(losses.error(logits, labels).mean())
    return Problem(CNN, params, x, labels, accuracy)


def trained(
    config: dict[str, Any], images: np.ndarray, labels: np.ndarray, num_epochs: int = 1
) -> Params:
    """Returns the parameters of a network after some passes over a training split, by Adam.

    Args:
      config: the plain config of the network, which `halfway.models.build` takes.
      images: `[N, H, W, D]`, the training images.
      labels: `[N]`, their labels.
      num_epochs: passes, each in an order of its own.
    """
    module = models.build(config, num_classes=10)
    key_init, key_order = jax.random.split(jax.random.key(0))
    params = module.init(key_init, images[:1])["params"]
    optimizer = optax.adam(LEARNING_RATE)
    num_steps = len(images) // BATCH_SIZE

    def loss(params: Params, x: Array, labels: Array) -> Array:
        logits = jnp.asarray(module.apply({"params": params}, x))
        return losses.cross_entropy(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0,))
    def step(carry: tuple[Params, Any], x: Array, labels: Array) -> tuple[Params, Any]:
        params, state = carry
        gradient = jax.grad(loss)(params, x, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    carry = (params, optimizer.init(params))
    for epoch in range(num_epochs):
        key = jax.random.fold_in(key_order, epoch) if epoch else key_order
        order = jax.random.permutation(key, len(images))[: num_steps * BATCH_SIZE]
        for rows in np.asarray(order).reshape(num_steps, BATCH_SIZE):
            carry = step(carry, images[rows], labels[rows])
    return carry[0]


def in_chunks(
    problem: Problem, attack: Callable[[Key, Array, Array], AttackResult]
) -> Callable[..., Array]:
    """Returns a compiled program that perturbs all images, chunks spread over the devices.

    Chunks have `NUM_AT_ONCE` images.

    Args:
      problem: the network and its images.
      attack: a key, images and labels to a result.

    Returns:
      A function without arguments, to the perturbed images `[N, H, W, D]`.
    """
    split = lambda a: a.reshape(-1, NUM_AT_ONCE, *a.shape[1:])  # noqa: E731
    keys = jax.random.split(jax.random.key(0), len(problem.labels) // NUM_AT_ONCE)
    part = lambda chunk: attack(*chunk).adversarial  # noqa: E731
    chunks = (keys, split(problem.images), split(problem.labels))
    program = jax.jit(sharding.spread(part, at_once=1)).lower(chunks).compile()
    return lambda: program(chunks).reshape(problem.images.shape)
