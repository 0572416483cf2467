"""Models of other libraries as functions of JAX: PyTorch with its gradients, scikit-learn without.

The model runs on the host, where its library is, and JAX calls it. A program with such a call runs
on one device: where several take part it would wait for ever.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway.types import Array, LogitsFn

ON_HOST = "runs_on_host"
"""Attribute of functions whose programs call the host."""


def torch_logits(module: Any, *, channels_first: bool = True) -> LogitsFn:
    """Returns a function of JAX from images to the logits of a PyTorch module, with its gradient.

    It works under `jit`, `grad` (once) and `vmap`; all of a batch goes to the module at once.

    Args:
      module: a `torch.nn.Module` in evaluation, from images `[B, D, H, W]` to logits `[B, C]`.
      channels_first: whether the module takes channels before height and width, as PyTorch's do;
        images come as `[B, H, W, D]`. Inputs of another rank are handed over as they are.

    Raises:
      ImportError: if PyTorch is not installed.
      ValueError: if this is no module, or it is in training.
    """
    torch, device = _torch_of(module)
    tensor = functools.partial(_tensor, torch, device, channels_first=channels_first)

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(tensor(x)).float().cpu().numpy()

    def backward(x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        images = tensor(x).detach().requires_grad_()
        weights = torch.from_numpy(np.array(cotangent, np.float32)).to(device)
        (gradient,) = torch.autograd.grad(module(images), images, weights)
        if channels_first and gradient.ndim == 4:
            gradient = gradient.permute(0, 2, 3, 1)
        return gradient.float().cpu().numpy()

    return _function(forward, backward)


def torch_loss(
    module: Any, images: Any, labels: Any, *, channels_first: bool = True
) -> tuple[Callable[[Mapping[str, Array]], Array], dict[str, np.ndarray]]:
    """Returns the loss of a PyTorch module as a function of its parameters, and these.

    It is the mean cross-entropy on some images, with first and second derivatives: for landscapes.
    It works under `jit`, `grad`, products of the Hessian with vectors, and `vmap` as a loop.

    Args:
      module: a `torch.nn.Module` in evaluation, from images to logits, as of `torch_logits`.
      images: `[N, H, W, D]`.
      labels: `[N]` integers.
      channels_first: as of `torch_logits`.

    Returns:
      The function, of parameters by name, and the parameters as they are. Tensors of two axes and
      more have their first axis, that of outputs, last, where tensors of JAX have it.

    Raises:
      ImportError: if PyTorch is not installed.
      ValueError: if this is no module, or it is in training.
    """
    torch, device = _torch_of(module)
    inputs = _tensor(torch, device, images, channels_first)
    targets = torch.from_numpy(np.array(labels, np.int64)).to(device)
    tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
    names = sorted(tensors)  # the order of a dict in JAX

    def value(*given: Any) -> Any:
        logits = torch.func.functional_call(module, dict(zip(names, given, strict=True)), (inputs,))
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    def to_torch(array: Any) -> Any:
        array = np.array(array, np.float32)
        first = np.moveaxis(array, -1, 0) if array.ndim > 1 else array
        return torch.from_numpy(np.ascontiguousarray(first)).to(device)

    def to_jax(tensor: Any) -> np.ndarray:
        array = tensor.detach().float().cpu().numpy()
        return np.ascontiguousarray(np.moveaxis(array, 0, -1) if array.ndim > 1 else array)

    def slopes(arrays: Sequence[Any], create_graph: bool) -> tuple[list[Any], tuple[Any, ...]]:
        at = [to_torch(array).requires_grad_() for array in arrays]
        return at, torch.autograd.grad(value(*at), at, create_graph=create_graph)

    def host_value(arrays: Sequence[Any]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(value(*map(to_torch, arrays)).item(), np.float32)

    def host_gradient(arrays: Sequence[Any]) -> list[np.ndarray]:
        return list(map(to_jax, slopes(arrays, create_graph=False)[1]))

    def host_product(arrays: Sequence[Any], tangents: Sequence[Any]) -> list[np.ndarray]:
        at, gradient = slopes(arrays, create_graph=True)
        along = sum((g * to_torch(t)).sum() for g, t in zip(gradient, tangents, strict=True))
        # Of a piecewise linear network some parameters have no second derivative.
        parts = torch.autograd.grad(along, at, allow_unused=True, materialize_grads=True)
        return list(map(to_jax, parts))

    params = {name: to_jax(tensors[name]) for name in names}
    shapes = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in params.values()]
    call = functools.partial(jax.pure_callback, vmap_method="sequential")

    @jax.custom_jvp
    def slope(arrays: list[Array]) -> list[Array]:
        return call(host_gradient, shapes, arrays)

    @slope.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return slope(*primals), call(host_product, shapes, *primals, *tangents)

    @jax.custom_jvp
    def height(arrays: list[Array]) -> Array:
        return call(host_value, jax.ShapeDtypeStruct((), jnp.float32), arrays)

    @height.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        parts = zip(slope(*primals), *tangents, strict=True)
        return height(*primals), sum(jnp.vdot(part, tangent) for part, tangent in parts)

    def loss_fn(params: Mapping[str, Array]) -> Array:
        return height([jnp.asarray(params[name], jnp.float32) for name in names])

    setattr(loss_fn, ON_HOST, True)
    return loss_fn, params


def _torch_of(module: Any) -> tuple[Any, Any]:
    """Returns PyTorch and the device of a module's parameters.

    Raises:
      ImportError: if PyTorch is not installed.
      ValueError: if this is no module, or it is in training.
    """
    torch: Any = importlib.import_module("torch")  # of an extra
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if module.training:
        raise ValueError("the module is in training: call module.eval() first")
    parameter = next(iter(module.parameters()), None)
    return torch, torch.device("cpu") if parameter is None else parameter.device


def _tensor(torch: Any, device: Any, x: Any, channels_first: bool) -> Any:
    """Returns images of JAX as a tensor, channels first where the module takes them so."""
    images = torch.from_numpy(np.array(x, np.float32)).to(device)
    return images.permute(0, 3, 1, 2) if channels_first and images.ndim == 4 else images


def sklearn_logits(classifier: Any) -> LogitsFn:
    """Returns a function of JAX from inputs to the logits of a scikit-learn classifier.

    It has no gradient: for black-box attacks, such as `attacks.square`. Logits are what
    `decision_function` says, of two classes its two signs, or else the logarithms of
    `predict_proba`.

    Args:
      classifier: fitted on rows of flat inputs, with classes 0 to C − 1.

    Raises:
      ValueError: if the classes are others, or it has neither method.
    """
    classes = np.asarray(classifier.classes_)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(f"classes must be 0 to C − 1, got {classes.tolist()}")
    decides = hasattr(classifier, "decision_function")
    if not decides and not hasattr(classifier, "predict_proba"):
        raise ValueError("the classifier has neither decision_function nor predict_proba")

    def forward(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1)
        if not decides:
            return np.log(np.maximum(classifier.predict_proba(rows), 1e-30)).astype(np.float32)
        values = np.asarray(classifier.decision_function(rows), np.float32)
        return np.stack([-values, values], -1) if values.ndim == 1 else values

    return _function(forward, None)


def _function(
    forward: Callable[[np.ndarray], np.ndarray],
    backward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
) -> LogitsFn:
    """Returns a function of JAX that calls the host, with a derivative where there is one."""
    classes: dict[tuple[int, ...], int] = {}

    def number(shape: tuple[int, ...]) -> int:
        if shape not in classes:
            classes[shape] = forward(np.zeros((1, *shape), np.float32)).shape[-1]
        return classes[shape]

    def call(x: Array) -> Array:
        shape = jax.ShapeDtypeStruct((x.shape[0], number(x.shape[1:])), jnp.float32)
        looked = functools.partial(_flat, forward, (x.ndim,))
        return jax.pure_callback(looked, shape, x, vmap_method="expand_dims")

    def ahead(x: Array) -> tuple[Array, Array]:
        return call(x), x

    def back(x: Array, cotangent: Array) -> tuple[Array]:
        assert backward is not None
        shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        looked = functools.partial(_flat, backward, (x.ndim, cotangent.ndim))
        return (jax.pure_callback(looked, shape, x, cotangent, vmap_method="expand_dims"),)

    on_host = call
    if backward is not None:
        on_host = jax.custom_vjp(call)
        on_host.defvjp(ahead, back)

    def logits_fn(x: Array) -> Array:
        return on_host(x.astype(jnp.float32))

    setattr(logits_fn, ON_HOST, True)
    return logits_fn


def _flat(fn: Callable[..., np.ndarray], ranks: tuple[int, ...], *arrays: Any) -> np.ndarray:
    """Returns what a function of a batch says of arrays with more axes in front, of `vmap`.

    Args:
      fn: of arrays `[B, ...]`.
      ranks: number of axes that the function takes of each array.
      *arrays: with more axes in front, of length 1 where an array is not mapped.
    """
    whole = [np.asarray(array) for array in arrays]
    leads = [array.shape[: array.ndim - rank] for array, rank in zip(whole, ranks, strict=True)]
    lead = np.broadcast_shapes(*leads)
    flat = []
    for array, rank in zip(whole, ranks, strict=True):
        inner = array.shape[array.ndim - rank :]
        flat.append(np.broadcast_to(array, (*lead, *inner)).reshape(-1, *inner[1:]))
    made = np.asarray(fn(*flat), np.float32)
    return made.reshape(*lead, -1, *made.shape[1:])
