"""The networks that are attacked: two of MNIST and one of CIFAR-10, trained in each run anew."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import data
from halfway.lab.benchmarks import mnist
from halfway.lab.runtime import datasets


class Network(NamedTuple):
    """A network that is attacked.

    Attributes:
      source: the name of its data set.
      config: its plain config, which `halfway.models.build` takes.
      num_epochs: passes over the training split.
      num_attacked: test images, all classified correctly, that it is attacked on.
    """

    source: str
    config: dict[str, Any]
    num_epochs: int
    num_attacked: int


_MLP = {"kind": "mlp", "widths": (256, 256)}
_DEEPER_CNN = {"kind": "cnn", "features": (16, 32, 64), "stride": 1, "pool": 2, "widths": ()}
NETWORKS = {
    "mnist_mlp": Network("mnist", _MLP, 2, 200),
    "mnist_cnn": Network("mnist", mnist.CNN, 1, 200),
    # It takes four times as long for an image.
    "cifar10_cnn": Network("cifar10_jpeg", _DEEPER_CNN, 5, 50),
}


def problem(name: str, data_dir: str | None) -> mnist.Problem | str:
    """Returns a trained network with correctly classified test images, or why there is none.

    Args:
      name: of the network.
      data_dir: the data folder, as the flag gives it.
    """
    network = NETWORKS[name]
    try:
        dataset = data.load(network.source, datasets.folder(data_dir))
    except data.DataError as error:
        return str(error)
    assert dataset.test is not None
    params = mnist.trained(network.config, *dataset.train, network.num_epochs)
    return correct_ones(network.config, params, *dataset.test, network.num_attacked)


def correct_ones(
    config: dict[str, Any], params: Any, images: np.ndarray, labels: np.ndarray, number: int
) -> mnist.Problem:
    """Returns the problem of some images that a network classifies correctly.

    Args:
      config: the plain config of the network, which `halfway.models.build` takes.
      params: its parameters.
      images: `[N, H, W, D]`, of a test split, from which images are drawn.
      labels: `[N]`, their labels.
      number: of images that are drawn.

    Raises:
      ValueError: if fewer than this number are classified correctly.
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
    chosen = order[right[order]][:number]
    if len(chosen) < number:
        raise ValueError(f"{len(chosen)} images are classified correctly, {number} are needed")
    x, y = jnp.asarray(images[chosen]), jnp.asarray(labels[chosen])
    return mnist.Problem(config, params, x, y, float(right.mean()))


def _batches(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(start, labels[start : start + 1000]) for start in range(0, len(labels), 1000)]
