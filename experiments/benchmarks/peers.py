"""Our weights in networks of PyTorch, for peers that take those."""

from typing import Any

import numpy as np

from halfway.types import Params


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
