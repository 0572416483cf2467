"""Small classifiers as flax.linen modules, built from plain configs.

Every model takes images `[B, H, W, D]` in [0, 1], scales them itself, to [-1, 1] unless it is told
otherwise, and returns logits `[B, C]`. None keeps statistics of a batch, so an example's logits
depend on that example alone.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from halfway import custom_models, sharding
from halfway.custom_models import CustomModel
from halfway.types import ApplyFn, Array, Params

IMAGES_LAST = (("NHWC", "HWIO", "NHWC"), ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)))
"""Channels last, as letters and as places of batch, channels, rows and columns."""


WIDE = 4
"""Number of inputs for each output from which on `contract` turns a layer's kernel on a CPU."""


def contract(
    inputs: Array,
    kernel: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Returns inputs times a kernel, summed over the last axis of one and the first of the other.

    It takes the place of `lax.dot_general` in a layer of one's own, and is that function but on a
    CPU where a layer has many more inputs than outputs, as the last of a classifier. There the
    gradient of the kernel is a product whose rows are short, and takes two to four times as long
    as its transpose: what is computed is the transpose, of a kernel that is turned before.

    Args:
      inputs: `[..., D]`.
      kernel: `[D, F]`.
      dimension_numbers: `(((inputs.ndim - 1,), (0,)), ((), ()))`, as flax calls it; of other axes
        the product is always that of `lax.dot_general`.
      precision, preferred_element_type: as of `lax.dot_general`.

    Returns:
      `[..., F]`.

    Examples:
      >>> import flax.linen
      >>> layer = flax.linen.Dense(10, dot_general=models.contract)
      >>> jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 64)))["params"]["kernel"].shape
      (64, 10)
    """
    product = functools.partial(
        lax.dot_general, precision=precision, preferred_element_type=preferred_element_type
    )
    last = inputs.ndim - 1
    is_layer = kernel.ndim == 2 and dimension_numbers == (((last,), (0,)), ((), ()))
    is_wide = is_layer and kernel.shape[0] >= WIDE * kernel.shape[1]
    if not is_wide or sharding.backend() != "cpu":
        return product(inputs, kernel, dimension_numbers)
    # Without the barrier XLA would turn it back.
    return product(inputs, lax.optimization_barrier(kernel.T), (((last,), (1,)), ((), ())))


NARROW = 16
"""Number of channels up to which `convolve` computes two outputs side by side as one on a CPU.

A matrix product of so few columns is slow. With two, a third of the factors are 0; a first layer of
16 channels takes half of the time (measured on images of 28 x 28 x 1 and 32 x 32 x 3).
"""


def convolve(
    inputs: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Returns a 2-D convolution, by default as one matrix product over shifted slices of the input.

    XLA's own convolution is 4 to 16 times slower inside a loop on a CPU, and becomes a grouped one
    when a population is vmapped; a matrix product stays a (batched) matrix product. On a TPU it is
    XLA's own: there slices of a few channels are padded to 128, so that by its compiler's estimate
    gradients of two small residual networks take 65 times the bytes.

    It takes the place of `lax.conv_general_dilated` in a network of one's own, of flax or not:
    `nn.Conv(16, (3, 3), conv_general_dilated=models.convolve)`.

    Args:
      inputs: `[B, H, W, D]`.
      kernel: `[h, w, D, F]`.
      window_strides: steps of the window in height and width, in pixels.
      padding: "SAME", "VALID" or a (low, high) pair for each of height and width.
      lhs_dilation, rhs_dilation: of inputs and kernel; None or ones.
      dimension_numbers: None or those of channels last, `("NHWC", "HWIO", "NHWC")`.
      feature_group_count, batch_group_count: 1.
      precision, preferred_element_type: of the product, as of `jnp.matmul`.

    Returns:
      `[B, H', W', F]`.

    Raises:
      ValueError: for inputs and kernels of other ranks or with other channels, for dilated or
        grouped convolutions, and for channels that do not come last.
    """
    dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    groups = (feature_group_count, batch_group_count)
    if any(d != 1 for d in dilations) or groups != (1, 1):
        raise ValueError(f"dilation 1 and one group are supported, got {dilations=}, {groups=}")
    if dimension_numbers is not None and tuple(dimension_numbers) not in IMAGES_LAST:
        raise ValueError(f"channels come last, NHWC and HWIO, got {dimension_numbers=}")
    if inputs.ndim != 4 or kernel.ndim != 4 or inputs.shape[3] != kernel.shape[2]:
        raise ValueError(
            "inputs must be [B, H, W, D] and the kernel [h, w, D, F], got "
            f"{inputs.shape} and {kernel.shape}"
        )
    height, width, _, features = kernel.shape
    if sharding.backend() == "tpu":
        return lax.conv_general_dilated(
            inputs,
            kernel,
            window_strides,
            padding,
            dimension_numbers=IMAGES_LAST[0],
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (height, width), window_strides, padding)
    sizes = [
        (n + sum(p) - k) // s + 1
        for n, p, k, s in zip(
            inputs.shape[1:3], padding, (height, width), window_strides, strict=True
        )
    ]
    inputs = jnp.pad(inputs, ((0, 0), *(tuple(p) for p in padding), (0, 0)))
    is_narrow = features <= NARROW and width > 1 and sizes[1] % 2 == 0
    # With larger steps more of the factors are 0, which only few channels make up for.
    is_narrow &= window_strides[1] == 1 or inputs.shape[3] <= NARROW // 4
    num_columns = 2 if is_narrow and sharding.backend() == "cpu" else 1
    patches = _patches(inputs, (height, width), sizes, window_strides, num_columns)
    kernel = _widen(kernel, window_strides[1], num_columns)
    # As plain matrices: the gradient of a first layer's kernel takes a third of the time.
    flat = contract(
        patches.reshape(-1, kernel.shape[0]),
        kernel,
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return flat.reshape(inputs.shape[0], *sizes, features)


def _patches(
    inputs: Array,
    window: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    num_columns: int,
) -> Array:
    """Returns what outputs see of padded inputs, `[B, H', W' / num_columns, h * span * D]`.

    Args:
      inputs: `[B, H, W, D]`, padded.
      window: height h and width w of the kernel.
      sizes: height H' and width W' of the output.
      strides: steps of the window in height and width, in pixels.
      num_columns: number of outputs side by side, a divisor of W', that share a patch; `span` is
        the width of all their windows together.
    """
    batch, _, _, depth = inputs.shape
    num_patches, step = sizes[1] // num_columns, num_columns * strides[1]
    length, span = num_patches * step, step - strides[1] + window[1]
    pieces = []
    for i in range(window[0]):
        rows = inputs[:, i : i + (sizes[0] - 1) * strides[0] + 1 : strides[0]]
        for j in range(0, span, step):
            # What a patch has of `step` columns is one run in memory.
            columns = rows[:, :, j : j + length]
            short = length - columns.shape[2]
            columns = jnp.pad(columns, ((0, 0), (0, 0), (0, short), (0, 0)))
            runs = columns.reshape(batch, sizes[0], num_patches, step * depth)
            pieces.append(runs[..., : min(step, span - j) * depth])
    return jnp.concatenate(pieces, axis=-1)


def _widen(kernel: Array, stride: int, num_columns: int) -> Array:
    """Returns a kernel `[h, w, D, F]` as the matrix of outputs side by side.

    It is `[h * span * D, num_columns * F]`; each output has the kernel at its place, else 0.
    """
    spare = (num_columns - 1) * stride
    kernels = [
        jnp.pad(kernel, ((0, 0), (stride * i, spare - stride * i), (0, 0), (0, 0)))
        for i in range(num_columns)
    ]
    return jnp.stack(kernels, 3).reshape(-1, num_columns * kernel.shape[3])


def average_pool(x: Array, size: int) -> Array:
    """Returns averages over windows of `size` x `size` pixels that do not overlap.

    Rows and columns that fill no window are dropped.

    Args:
      x: `[B, H, W, D]`.
      size: height and width of a window in pixels; 1 is the identity.
    """
    if size == 1:
        return x
    batch, height, width, depth = x.shape
    height, width = height // size, width // size
    x = x[:, : height * size, : width * size]
    return _mean_of_windows(x.reshape(batch, height, size, width, size, depth))


@jax.custom_jvp
def _mean_of_windows(x: Array) -> Array:
    """Returns the mean `[B, H, W, D]` over axes 2 and 4: a sum of slices, which XLA vectorizes."""
    _, _, height, _, width, _ = x.shape
    total = sum(x[:, :, i, :, j] for i in range(height) for j in range(width))
    return jnp.asarray(total) / (height * width)


@_mean_of_windows.defjvp
def _tangent_of_means(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Returns the mean and its tangent, taken as one reduction: its transpose is a broadcast."""
    return _mean_of_windows(primals[0]), tangents[0].mean((2, 4))


ACTIVATIONS = ("relu", "elu", "gelu", "sigmoid", "silu", "softplus", "tanh")


_dense = functools.partial(nn.Dense, dot_general=contract)
"""A dense layer of this project's networks."""


def _scale(x: Array) -> Array:
    """Returns images in [0, 1] scaled to [-1, 1]."""
    return 2.0 * x - 1.0


class Linear(nn.Module):
    """An affine classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        return _dense(self.num_classes)(_scale(x).reshape(x.shape[0], -1))


class MLP(nn.Module):
    """A multi-layer perceptron of inputs (x − mean) / std, [-1, 1] by default."""

    num_classes: int
    widths: tuple[int, ...] = (128, 128)
    activation: str = "relu"
    mean: float = 0.5
    std: float = 0.5

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        x = ((x - self.mean) / self.std).reshape(x.shape[0], -1)
        for width in self.widths:
            x = getattr(nn, self.activation)(_dense(width)(x))
        return _dense(self.num_classes)(x)


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
            x = activation(_dense(width)(x))
        return _dense(self.num_classes)(x)


class Residual(nn.Module):
    """A pre-activation residual network; normalization is over the channels of each position.

    A stem of one convolution, then a stage for each of `features`; from the second on, a stage
    halves height and width, and a 1 x 1 convolution carries the stream into it. Layer normalization
    needs no statistics of a batch, and commutes with permutations of the channels.
    """

    num_classes: int
    features: tuple[int, ...] = (16, 32)
    blocks: int = 1
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        activation = getattr(nn, self.activation)

        def conv(name: str, features: int, size: int = 3, stride: int = 1) -> nn.Conv:
            return nn.Conv(
                features,
                (size, size),
                (stride, stride),
                use_bias=False,
                name=name,
                conv_general_dilated=convolve,
            )

        x = conv("stem", self.features[0])(_scale(x))
        for stage, features in enumerate(self.features):
            for block in range(self.blocks):
                name = f"stage{stage}_block{block}"
                enters = stage > 0 and block == 0
                stride = 2 if enters else 1
                hidden = activation(nn.LayerNorm(name=f"{name}_norm0")(x))
                hidden = conv(f"{name}_conv0", features, 3, stride)(hidden)
                hidden = activation(nn.LayerNorm(name=f"{name}_norm1")(hidden))
                hidden = conv(f"{name}_conv1", features)(hidden)
                stream = conv(f"{name}_shortcut", features, 1, stride)(x) if enters else x
                x = stream + hidden
        x = activation(nn.LayerNorm(name="norm")(x)).mean((1, 2))
        return _dense(self.num_classes, name="head")(x)


class VisionTransformer(nn.Module):
    """A pre-normalization transformer on patches, with learned positions and mean pooling.

    A patch has `patch` pixels a side; along an axis of one pixel, as a signal has, one.
    """

    num_classes: int
    patch: int = 2
    width: int = 32
    depth: int = 2
    heads: int = 2
    hidden: int = 64
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # noqa: D102
        batch, height, width, depth = x.shape
        tall, wide = min(self.patch, height), min(self.patch, width)
        if height % tall or width % wide:
            raise ValueError(
                f"images of {height} x {width} do not divide into patches of {self.patch} pixels: "
                "choose a `patch` that divides both"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        rows, columns = height // tall, width // wide
        x = _scale(x).reshape(batch, rows, tall, columns, wide, depth)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        x = _dense(self.width, name="embed")(x)
        shape = (rows * columns, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), shape)[None]
        for block in range(self.depth):
            name = f"block{block}"
            normed = nn.LayerNorm(name=f"{name}_norm0")(x)
            attention = nn.MultiHeadDotProductAttention(self.heads, name=f"{name}_attention")
            x = x + attention(normed)
            hidden = _dense(self.hidden, name=f"{name}_dense0")(
                nn.LayerNorm(name=f"{name}_norm1")(x)
            )
            hidden = getattr(nn, self.activation)(hidden)
            x = x + _dense(self.width, name=f"{name}_dense1")(hidden)
        x = nn.LayerNorm(name="norm")(x).mean(1)
        return _dense(self.num_classes, name="head")(x)


def narrow(params: Params, width: int | Array) -> Params:
    """Returns initial parameters of an MLP of which only `width` units of each hidden layer work.

    The other units have weights of 0, in and out. For activations with f(0) = 0 they pass nothing
    forward and nothing back, so that any optimizer that does not move where the gradient is 0 keeps
    them at 0. Kernels are rescaled to the variance 1/fan-in of the narrower network. In this way
    networks of many widths are one program.

    Args:
      params: parameters of an `MLP`, freshly initialized: "Dense_0", ..., the last of which is the
        output layer.
      width: the number of units, at least 1 and at most that of the narrowest layer; may be traced.

    Raises:
      ValueError: if the parameters are not those of an MLP with a hidden layer.
    """
    names = [f"Dense_{i}" for i in range(len(params))]
    if len(names) < 2 or set(names) != set(params):
        raise ValueError(f"only an MLP with a hidden layer is narrowed, got layers {list(params)}")
    narrowed = {}
    for index, name in enumerate(names):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        fan_in, fan_out = kernel.shape
        if index > 0:
            used = jnp.arange(fan_in)[:, None] < width
            kernel = jnp.where(used, kernel * jnp.sqrt(fan_in / jnp.float32(width)), 0)
        if index < len(names) - 1:
            used = jnp.arange(fan_out) < width
            kernel, bias = jnp.where(used[None], kernel, 0), jnp.where(used, bias, 0)
        narrowed[name] = {"kernel": kernel, "bias": bias}
    return narrowed


_KINDS: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "cnn": CNN,
    "residual": Residual,
    "transformer": VisionTransformer,
}


def fields_of(kind: str) -> dict[str, Any]:
    """Returns the fields of a kind of model and their types, C left out.

    Args:
      kind: "linear", "mlp", "cnn", "residual", "transformer", or a user's `pkg.module:build`.

    Raises:
      ValueError: for an unknown kind.
    """
    if custom_models.is_custom(kind):
        return custom_models.fields_of(kind)
    if kind not in _KINDS:
        raise ValueError(
            f"unknown model kind {kind!r}: choose one of {', '.join(_KINDS)}, or pkg.module:build"
        )
    # flax adds `parent` and `name`.
    added = ("num_classes", "parent", "name")
    annotations = _KINDS[kind].__annotations__.items()
    return {name: declared for name, declared in annotations if name not in added}


def build(config: Mapping[str, Any], *, num_classes: int) -> nn.Module | CustomModel:
    """Returns the module that a plain config describes: `init` and `apply` as linen modules have.

    Args:
      config: `kind` ("linear", "mlp", "cnn", "residual", "transformer", or a user's
        `pkg.module:build`, see `custom_models`) and the module's fields, lists allowed for tuples.
      num_classes: C, the number of classes.

    Raises:
      ValueError: for an unknown kind, field or activation, naming it and those that exist, and for
        what `custom_models.build` refuses.

    Examples:
      >>> module = models.build({"kind": "mlp", "widths": [32]}, num_classes=10)
      >>> images = jnp.zeros((5, 8, 8, 1))
      >>> params = jax.jit(module.init)(jax.random.key(0), images)
      >>> module.apply(params, images).shape
      (5, 10)
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "kind"}
    kind = str(config.get("kind"))
    known = fields_of(kind)
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown field {name!r} of a {kind!r} model: it has {sorted(known)}")
    if custom_models.is_custom(kind):
        return custom_models.build(kind, fields, num_classes=num_classes)
    if fields.get("activation", "relu") not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {fields['activation']!r}: choose one of {', '.join(ACTIVATIONS)}"
        )
    return _KINDS[kind](num_classes=num_classes, **fields)


DTYPES = ("float32", "bfloat16")
"""Names of the types that a training step may compute in."""


def check_dtype(name: str) -> None:
    """Checks the name of a type that training computes in.

    Raises:
      ValueError: if it is none of `DTYPES`.
    """
    if name not in DTYPES:
        raise ValueError(f"compute_dtype must be {' or '.join(DTYPES)}, got {name!r}")


def in_precision(apply_fn: ApplyFn, compute_dtype: str) -> ApplyFn:
    """Returns a model that computes in another type; parameters, logits and gradients stay float32.

    Sums of layer normalization stay float32 too, as flax takes them.

    Args:
      apply_fn: parameters and inputs to logits.
      compute_dtype: "float32", which changes nothing, or "bfloat16".

    Raises:
      ValueError: for another type.

    Examples:
      >>> rounded = models.in_precision(lambda w, x: x @ w, "bfloat16")
      >>> rounded(jnp.full((1, 1), 1.001), jnp.ones((1, 1))).item()
      1.0
    """
    check_dtype(compute_dtype)
    if compute_dtype == "float32":
        return apply_fn

    def lower(leaf: Array) -> Array:
        return jnp.asarray(leaf, compute_dtype)

    def rounded(params: Params, x: Array) -> Array:
        return apply_fn(jax.tree.map(lower, params), lower(x)).astype(jnp.float32)

    return rounded
