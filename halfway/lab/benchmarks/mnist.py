"""A network trained on MNIST, the same in each run, for suites that attack it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from halfway import data, losses, models
from halfway.lab.runtime import datasets
from halfway.types import Array, LogitsFn, Params

NUM_IMAGES, BATCH_SIZE, LEARNING_RATE = 1000, 128, 1e-3
CNN = {"kind": "cnn", "features": (16, 32), "stride": 1, "pool": 2, "widths": ()}


class Problem(NamedTuple):
    """A trained network and the images that it is attacked on.

    Attributes:
      config: the plain config of the network, which `halfway.models.build` takes.
      params: the parameters of the network.
      images: `[N, 28, 28, 1]`, the first images of the test split.
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
        """A function of images `[B, 28, 28, 1]` that returns logits `[B, 10]`."""
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
    params = _train(train.images, train.labels)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    logits = jax.jit(logits_of(CNN, params))(x)
    accuracy = 1 - float(losses.error(logits, labels).mean())
    return Problem(CNN, params, x, labels, accuracy)


def _train(images: np.ndarray, labels: np.ndarray) -> Params:
    module = models.build(CNN, num_classes=10)
    key_init, key_order = jax.random.split(jax.random.key(0))
    params = module.init(key_init, images[:1])["params"]
    optimizer = optax.adam(LEARNING_RATE)
    num_steps = len(images) // BATCH_SIZE
    order = jax.random.permutation(key_order, len(images))[: num_steps * BATCH_SIZE]

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
    for rows in np.asarray(order).reshape(num_steps, BATCH_SIZE):
        carry = step(carry, images[rows], labels[rows])
    return carry[0]
