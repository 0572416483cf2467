"""Small classifiers as flax.linen modules, built from plain configs.

Every model takes images `[B, H, W, D]` in [0, 1], scales them to [-1, 1] itself, and returns logits
`[B, C]`. None keeps statistics of a batch, so an example's logits depend on that example alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from halfway.types import Array


def convolve(inputs: Array, kernel: Array, window_strides: Sequence[int], padding: Any, **kwargs):
    """Returns a 2-D convolution as one matrix product over shifted slices of the input.

    XLA's own convolution is 4 to 16 times slower inside a loop on a CPU, and becomes a grouped one
    when a population is vmapped; a matrix product stays a (batched) matrix product.

    Args:
      inputs: `[B, H, W, D]`.
      kernel: `[h, w, D, F]`.
      window_strides: of height and width.
      padding: "SAME", "VALID" or a (low, high) pair for each of height and width.
      **kwargs: the rest of `lax.conv_general_dilated`'s arguments, at their defaults.

    Returns:
      `[B, H', W', F]`.

    Raises:
      ValueError: for dilated or grouped convolutions, which no model here uses.
    """
    dilations = (*(kwargs.get("lhs_dilation") or ()), *(kwargs.get("rhs_dilation") or ()))
    groups = kwargs.get("feature_group_count", 1)
    if any(d != 1 for d in dilations) or groups != 1:
        raise ValueError(f"dilation 1 and one group are supported, got {dilations=}, {groups=}")
    height, width, depth, features = kernel.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (height, width), window_strides, padding)
    inputs = jnp.pad(inputs, ((0, 0), *(tuple(p) for p in padding), (0, 0)))
    sizes = [
        (n - k) // s + 1
        for n, k, s in zip(inputs.shape[1:3], (height, width), window_strides, strict=True)
    ]
    spans = [(m - 1) * s + 1 for m, s in zip(sizes, window_strides, strict=True)]
    slices = [
        inputs[:, i : i + spans[0] : window_strides[0], j : j + spans[1] : window_strides[1]]
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(slices, axis=-1)
    return patches @ kernel.reshape(height * width * depth, features)


def average_pool(x: Array, size: int) -> Array:
    """Returns `size` x `size` average pooling without overlap, rows and columns left over dropped.

    Args:
      x: `[B, H, W, D]`.
      size: of the window; 1 is the identity.
    """
    if size == 1:
        return x
    batch, height, width, depth = x.shape
    height, width = height // size, width // size
    x = x[:, : height * size, : width * size]
    return x.reshape(batch, height, size, width, size, depth).mean((2, 4))


ACTIVATIONS = ("relu", "elu", "gelu", "sigmoid", "silu", "softplus", "tanh")


def _scale(x: Array) -> Array:
    return 2.0 * x - 1.0


class Linear(nn.Module):
    """An affine classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        return nn.Dense(self.num_classes)(_scale(x).reshape(x.shape[0], -1))


class MLP(nn.Module):
    """A multi-layer perceptron."""

    num_classes: int
    widths: tuple[int, ...] = (128, 128)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        x = _scale(x).reshape(x.shape[0], -1)
        for width in self.widths:
            x = getattr(nn, self.activation)(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
    """3 x 3 convolutions, each with the activation and average pooling, then dense layers."""

    num_classes: int
    features: tuple[int, ...] = (16, 32)
    stride: int = 2
    pool: int = 1
    widths: tuple[int, ...] = (64,)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        activation = getattr(nn, self.activation)
        x = _scale(x)
        for features in self.features:
            x = nn.Conv(
                features, (3, 3), (self.stride, self.stride), conv_general_dilated=convolve
            )(x)
            x = average_pool(activation(x), self.pool)
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = activation(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


_KINDS: dict[str, type[nn.Module]] = {"linear": Linear, "mlp": MLP, "cnn": CNN}


def build(config: Mapping[str, Any], *, num_classes: int) -> nn.Module:
    """Returns the linen module that a plain config describes.

    Args:
      config: `kind` ("linear", "mlp" or "cnn") and the module's fields, lists allowed for tuples.
      num_classes: C.

    Raises:
      ValueError: for an unknown kind, field or activation, naming it and those that exist.

    Examples:
      >>> module = models.build({"kind": "mlp", "widths": [32]}, num_classes=10)
      >>> images = jnp.zeros((5, 8, 8, 1))
      >>> params = jax.jit(module.init)(jax.random.key(0), images)
      >>> module.apply(params, images).shape
      (5, 10)
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "kind"}
    kind = config.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"unknown model kind {kind!r}: choose one of {', '.join(_KINDS)}")
    module = _KINDS[kind]
    # flax adds `parent` and `name`.
    known = set(module.__annotations__) - {"num_classes", "parent", "name"}
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown field {name!r} of a {kind!r} model: it has {sorted(known)}")
    if fields.get("activation", "relu") not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {fields['activation']!r}: choose one of {', '.join(ACTIVATIONS)}"
        )
    return module(num_classes=num_classes, **fields)
