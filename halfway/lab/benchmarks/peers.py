"""Networks of PyTorch with our weights, for peers that take such networks."""

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from halfway.types import Array, Params

TORCH_NORM = {"linf": "Linf", "l2": "L2"}
"""The names of norms in torchattacks."""


def load(*names: str) -> tuple[Any, ...] | str:
    """Returns the modules of peers, or a line that says which is not installed.

    Args:
      *names: the names of the modules.
    """
    try:
        return tuple(_load(name) for name in names)
    except ImportError as error:
        remedy = ADV_LIB if error.name == "adv_lib" else "-e '.[peers]'"
        return f"{error.name} is not installed: pip install {remedy}"


ADV_LIB = "--no-deps adv-lib==0.2.8"
"""What pip installs as adv-lib: an old build of visdom, which it requires, would be in the way."""


def _load(name: str) -> Any:
    if name != "adv_lib":
        return importlib.import_module(name)
    # It imports them for a perceptual distance and for charts, which no attack here needs.
    with _stand_ins("torchvision", "visdom"):
        importlib.import_module("adv_lib.attacks.auto_pgd")
    return sys.modules[name]


@contextlib.contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Puts empty modules in the place of modules that cannot be imported, for a while."""
    absent = []
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):  # torchvision beside another build of PyTorch
            module = types.ModuleType(name)
            module.__getattr__ = lambda _: None  # type: ignore[method-assign]
            sys.modules[name] = module
            absent.append(name)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def to_torch(torch: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Returns images and labels as tensors of PyTorch, with channels first.

    Args:
      torch: the module of PyTorch.
      x: `[B, H, W, D]`, the images.
      labels: `[B]`, their labels.
    """
    images = torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())
    return images, torch.from_numpy(np.array(labels)).long()


def from_torch(images: Any) -> np.ndarray:
    """Returns images `[B, H, W, D]` as a NumPy array.

    Args:
      images: `[B, D, H, W]`, a tensor of PyTorch.
    """
    return images.detach().numpy().transpose(0, 2, 3, 1)


def call(torch: Any, attack: Any, x: Array, labels: Array) -> np.ndarray:
    """Returns the perturbed images `[B, H, W, D]` of an attack of torchattacks.

    Args:
      torch: the module of PyTorch.
      attack: the attack.
      x: `[B, H, W, D]`, the images.
      labels: `[B]`, their labels.
    """
    return from_torch(attack(*to_torch(torch, x, labels)))


def dense(torch: Any, layer: Params) -> Any:
    """Returns a `torch.nn.Linear` with the weights of a dense layer of ours.

    Args:
      torch: the module of PyTorch.
      layer: kernel and bias of the layer.
    """
    linear = torch.nn.Linear(*layer["kernel"].shape)
    linear.weight.data = torch.from_numpy(np.array(layer["kernel"]).T.copy())
    linear.bias.data = torch.from_numpy(np.array(layer["bias"]))
    return linear


def convolution(torch: Any, layer: Params) -> Any:
    """Returns a `torch.nn.Conv2d` with the weights of a 'same' convolution of ours.

    Args:
      torch: the module of PyTorch.
      layer: kernel and bias of the layer.
    """
    height, width, depth, features = layer["kernel"].shape
    conv = torch.nn.Conv2d(depth, features, (height, width), padding="same")
    conv.weight.data = torch.from_numpy(np.array(layer["kernel"]).transpose(3, 2, 0, 1).copy())
    conv.bias.data = torch.from_numpy(np.array(layer["bias"]))
    return conv


def network(torch: Any, config: dict[str, Any], params: Params) -> Any:
    """Returns a network of PyTorch with our weights.

    Args:
      torch: the module of PyTorch.
      config: the plain config of the network, which `halfway.models.build` takes.
      params: the parameters of the network.
    """
    nn = torch.nn

    class Scale(nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x - 1

    class Channels(nn.Module):
        """Moves features last, as our dense layer takes them."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1)

    layers: list[Any] = [Scale()]
    if config["kind"] == "cnn":
        for index in range(len(config["features"])):
            layers += [
                convolution(torch, params[f"Conv_{index}"]),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        layers += [Channels(), nn.Flatten(), dense(torch, params["Dense_0"])]
        return nn.Sequential(*layers)
    layers.append(nn.Flatten())
    number = len(config["widths"])
    for index in range(number + 1):
        layers.append(dense(torch, params[f"Dense_{index}"]))
        if index < number:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def device(torch: Any) -> Any:
    """Returns the device of PyTorch: the GPU where JAX computes on it, else a CPU.

    JAX multiplies float32 as TF32 on a GPU by default, so PyTorch is allowed to do so.

    Args:
      torch: the module of PyTorch.
    """
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def wait(torch: Any) -> None:
    """Waits until PyTorch has computed everything on a GPU.

    Args:
      torch: the module of PyTorch.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
