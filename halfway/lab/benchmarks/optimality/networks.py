"""The networks that are attacked: two of MNIST and one of CIFAR-10, trained in each run anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import data
from halfway.lab.benchmarks import mnist
from halfway.lab.runtime import datasets

NUM_ATTACKED = 200
"""Test images, all classified correctly, that a network is attacked on."""
_MLP = {"kind": "mlp", "widths": (256, 256)}
_DEEPER_CNN = {"kind": "cnn", "features": (16, 32, 64), "stride": 1, "pool": 2, "widths": ()}
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "mnist_mlp": ("mnist", _MLP, 2),
    "mnist_cnn": ("mnist", mnist.CNN, 1),
    "cifar10_cnn": ("cifar10_jpeg", _DEEPER_CNN, 5),
}
"""Data set, config and passes over the training split by the name of a network."""


def problem(name: str, data_dir: str | None) -> mnist.Problem | str:
    """Returns a trained network with correctly classified test images, or why there is none.

    Args:
      name: of the network.
      data_dir: the data folder, as the flag gives it.
    """
    source, config, num_epochs = NETWORKS[name]
    try:
        dataset = data.load(source, datasets.folder(data_dir))
    except data.DataError as error:
        return str(error)
    assert dataset.test is not None
    params = mnist.trained(config, *dataset.train, num_epochs)
    return correct_ones(config, params, *dataset.test)


def correct_ones(
    config: dict[str, Any], params: Any, images: np.ndarray, labels: np.ndarray
) -> mnist.Problem:
    """Returns the problem of some images that a network classifies correctly.

    Args:
      config: the plain config of the network, which `halfway.models.build` takes.
      params: its parameters.
      images: `[N, H, W, D]`, of a test split, from which images are drawn.
      labels: `[N]`, their labels.

    Raises:
      ValueError: if fewer than `NUM_ATTACKED` are classified correctly.
    """
    program = jax.jit(mnist.logits_of(config, params))
    right = np.concatenate(
        [
            np.asarray(program(images[start : start + 1000]).argmax(-1)) == batch
            for start, batch in _batches(labels)
        ]
    )
    # Splits may be sorted by class.
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = order[right[order]][:NUM_ATTACKED]
    if len(chosen) < NUM_ATTACKED:
        raise ValueError(
            f"{len(chosen)} images are classified correctly, {NUM_ATTACKED} are needed"
        )
    x, y = jnp.asarray(images[chosen]), jnp.asarray(labels[chosen])
    return mnist.Problem(config, params, x, y, float(right.mean()))


def _batches(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(start, labels[start : start + 1000]) for start in range(0, len(labels), 1000)]
