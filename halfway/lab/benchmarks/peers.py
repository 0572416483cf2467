"""Our weights in networks of PyTorch, for peers that take those."""

import importlib
from typing import Any

import jax
import numpy as np

from halfway.types import Array, Params

TORCH_NORM = {"linf": "Linf", "l2": "L2"}
"""How torchattacks calls norms."""


def load(*names: str) -> tuple[Any, ...] | str:
    """Returns the modules of peers, or one line that says which is not installed."""
    try:
        return tuple(importlib.import_module(name) for name in names)
    except ImportError as error:
        return f"{error.name} is not installed: pip install -e '.[peers]'"


def to_torch(torch: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Returns images `[B, H, W, D]` and labels `[B]` as PyTorch has them, channels first."""
    images = torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())
    return images, torch.from_numpy(np.array(labels)).long()


def from_torch(images: Any) -> np.ndarray:
    """Returns images `[B, H, W, D]`."""
    return images.detach().numpy().transpose(0, 2, 3, 1)


def call(torch: Any, attack: Any, x: Array, labels: Array) -> np.ndarray:
    """Returns what an attack of torchattacks makes of images `[B, H, W, D]`."""
    return from_torch(attack(*to_torch(torch, x, labels)))


def dense(torch: Any, layer: Params) -> Any:
    """Returns `torch.nn.Linear` with the kernel and bias of one of our dense layers."""
    found = torch.nn.Linear(*layer["kernel"].shape)
    found.weight.data = torch.from_numpy(np.array(layer["kernel"]).T.copy())
    found.bias.data = torch.from_numpy(np.array(layer["bias"]))
    return found


def convolution(torch: Any, layer: Params) -> Any:
    """Returns `torch.nn.Conv2d` with the kernel and bias of a 'same' convolution of ours."""
    height, width, depth, features = layer["kernel"].shape
    found = torch.nn.Conv2d(depth, features, (height, width), padding="same")
    found.weight.data = torch.from_numpy(np.array(layer["kernel"]).transpose(3, 2, 0, 1).copy())
    found.bias.data = torch.from_numpy(np.array(layer["bias"]))
    return found


def network(torch: Any, config: dict[str, Any], params: Params) -> Any:
    """Returns the network in PyTorch with our weights."""
    nn = torch.nn

    class Scale(nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x - 1

    class Channels(nn.Module):
        """Features last, as our dense layer takes them."""

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
    """Returns where PyTorch computes: on the GPU where JAX does, with its precision; else on a CPU.

    JAX multiplies float32 as TF32 on a GPU by default, so PyTorch is allowed to.
    """
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def wait(torch: Any) -> None:
    """Waits for what PyTorch computes on a GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
