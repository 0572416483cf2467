"""The tangent kernel of a model and its spectrum on a pool, which P10 is given.

Where all parameters lie in dense layers, the gradient by a layer is an outer product of what enters
the layer and what is propagated back to it, so that the kernel is made of products of `[N, N]` and
no gradient by the parameters exists.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import get_opaque_trace_state

from halfway import landscapes, sharding, trees
from halfway.losses import CHUNK_SIZE, chunked_sum
from halfway.types import ApplyFn, Array, Key, Params

KernelFn = Callable[[Array, Array], Array]
"""Inputs `[N, ...]` and `[M, ...]` to a kernel `[N, M]`."""


def tangent_kernel(
    apply_fn: ApplyFn,
    params: Params,
    first: Array,
    second: Array | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Array:
    """Returns tr K(x_i, x_j)/C `[N, M]`, the tangent kernel's mean over outputs.

    It is `landscapes.trace_ntk`, made faster for models whose parameters are those of linen's
    `Dense` layers, each called once on `[B, features]`, and are used nowhere else. There the kernel
    is a sum over layers of `(⟨a_i, a_j⟩ + 1) · ⟨b_i, b_j⟩/C`, a what enters the layer (and 1 for
    the bias) and b `[C, features]` the derivatives of all logits by what leaves it. Memory beside
    the result is `M C` times the sum of the layers' widths, and `chunk_size M`. Any other model has
    Jacobians of blocks, which are slow.

    Works under `jit`, `vmap` and `grad`. With ReLU the kernel of a finite network jumps where a
    unit switches. A derivative by x is that between the jumps, so the slope that they add up to in
    a wide network is missing from it; a smooth activation has all of it.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: θ, the parameters of one model.
      first: `[N, ...]`, inputs of the rows.
      second: `[M, ...]`, inputs of the columns; None: those of the rows.
      chunk_size: the number of rows at once; also the examples of a block, for other models.

    Raises:
      ValueError: if `chunk_size` is below 1.

    Source: Jacot et al., arXiv 1806.07572.

    Examples:
      >>> x = jnp.array([[1.0, 2.0], [3.0, -1.0]])
      >>> print(meeting.tangent_kernel(lambda w, x: x @ w, jnp.zeros((2, 3)), x))  # that of x
      [[ 5.  1.]
       [ 1. 10.]]
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    columns = first if second is None else second
    sizes = {min(chunk_size, x.shape[0]) for x in (first, columns)}
    layers, *others = (_dense_layers(apply_fn, params, first, size) for size in sizes)
    if not layers or not all(others):
        return landscapes.trace_ntk(apply_fn, params, first, columns, block_size=chunk_size)

    def factors(x):
        return _factors(apply_fn, params, x, layers)

    of_columns = _map_chunks(factors, columns, chunk_size)

    def rows(x):
        of_rows = factors(x)
        kernel = jnp.zeros((x.shape[0], columns.shape[0]), first.dtype)
        for path, layer in layers.items():
            (inputs, slopes), (other_inputs, other_slopes) = of_rows[path], of_columns[path]
            entering = _products(inputs, other_inputs) + layer.has_bias
            kernel += entering * _products(slopes, other_slopes) / slopes.shape[1]
        return kernel

    return _map_chunks(rows, first, chunk_size)


def mean_tangent_kernel(
    apply_fn: ApplyFn,
    draws: Params,
    first: Array,
    second: Array | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Array:
    """Returns `tangent_kernel` averaged over parameters, such as several initializations.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      draws: parameters of M models along the leading axis, which are taken one after another.
      first: `[N, ...]`, inputs of the rows.
      second: `[N', ...]`, inputs of the columns; None: those of the rows.
      chunk_size: see `tangent_kernel`.

    Returns:
      `[N, N']`.

    Examples:
      >>> x, draws = jnp.eye(2), jnp.array([1.0, 3.0])
      >>> print(meeting.mean_tangent_kernel(lambda w, x: w**2 / 2 * x, draws, x))  # of w² ⟨x, x'⟩/2
      [[2.5 0. ]
       [0.  2.5]]
    """
    number = jax.tree.leaves(draws)[0].shape[0]
    columns = first if second is None else second

    def add(total, params):
        kernel = tangent_kernel(apply_fn, params, first, columns, chunk_size=chunk_size)
        return total + kernel, None

    zeros = jnp.zeros((first.shape[0], columns.shape[0]), first.dtype)
    return lax.scan(add, zeros, draws)[0] / number


class _Layer(NamedTuple):
    """What a call of a dense layer looks like.

    Attributes:
      width: the number of its outputs.
      dtype: their type.
      has_bias: whether it has a bias.
    """

    width: int
    dtype: Any
    has_bias: bool


Path = tuple[str, ...]
"""The names of the modules that a layer lies in, and its own."""


def _run(
    apply_fn: ApplyFn, params: Params, x: Array, watch: Callable[[nn.Dense, Array, Array], Array]
) -> Array:
    """Returns the logits, with `watch(layer, inputs, outputs)` for each dense layer's outputs."""

    def intercept(next_fn, args, kwargs, context):
        outputs = next_fn(*args, **kwargs)
        is_call = isinstance(context.module, nn.Dense) and context.method_name == "__call__"
        if not is_call:
            return outputs
        return watch(context.module, args[0] if args else kwargs["inputs"], outputs)

    # A jitted model would keep what is put in here, for whoever calls it next.
    with nn.intercept_methods(intercept), jax.disable_jit():
        return apply_fn(params, x)


def _dense_layers(apply_fn: ApplyFn, params: Params, x: Array, size: int) -> dict[Path, _Layer]:
    """Returns the dense layers, in order, if they hold all parameters; otherwise nothing.

    Args:
      apply_fn: parameters and inputs to logits.
      params: the parameters, of which shapes are used.
      x: inputs, of which shapes are used.
      size: B, the number of inputs at once.
    """
    layers: dict[Path, _Layer] = {}
    is_complete = False
    batch = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)

    def look(params, x):
        nonlocal is_complete
        leaves = []
        level = get_opaque_trace_state(convention="flax")

        def watch(layer, inputs, outputs):
            held = layer.variables["params"]
            leaves.extend(jax.tree.leaves(held))
            # What enters a layer within control flow cannot be had outside of it.
            is_within_reach = get_opaque_trace_state(convention="flax") == level
            if is_within_reach and inputs.ndim == 2 and inputs.shape[0] == size:
                layers[layer.path] = _Layer(outputs.shape[1], outputs.dtype, "bias" in held)
            return outputs

        logits = _run(apply_fn, params, x, watch)
        # The leaves themselves: one that was scaled or cast on its way has another gradient.
        # A layer that is called twice comes twice.
        ids = sorted(map(id, leaves))
        is_complete = ids == sorted(map(id, jax.tree.leaves(params))) and len(leaves) == sum(
            1 + layer.has_bias for layer in layers.values()
        )
        return logits

    jax.eval_shape(look, params, batch)
    return layers if is_complete else {}


def _factors(
    apply_fn: ApplyFn, params: Params, x: Array, layers: dict[Path, _Layer]
) -> dict[Path, tuple[Array, Array]]:
    """Returns of each layer what enters it, and the logits' slopes by what leaves it.

    They are `[B, features]` and `[B, C, features]`.
    """

    def logits_fn(added):
        entering = {}

        def watch(layer, inputs, outputs):
            entering[layer.path] = inputs
            return outputs + added[layer.path]

        return _run(apply_fn, params, x, watch), entering

    zeros = {
        path: jnp.zeros((x.shape[0], layer.width), layer.dtype) for path, layer in layers.items()
    }
    logits, pull, entering = jax.vjp(logits_fn, zeros, has_aux=True)
    each_class = jnp.eye(logits.shape[1], dtype=logits.dtype)[:, None]
    each_class = jnp.broadcast_to(each_class, (logits.shape[1], *logits.shape))
    (slopes,) = jax.vmap(pull)(each_class)
    return {path: (entering[path], jnp.swapaxes(slopes[path], 0, 1)) for path in layers}


def _products(left: Array, right: Array) -> Array:
    """Returns the inner products `[N, M]` of `[N, ...]` and `[M, ...]`, in all digits."""
    left, right = (array.reshape(array.shape[0], -1) for array in (left, right))
    return jnp.matmul(left, right.T, precision="highest")


def _map_chunks(fn: Callable[[Array], Any], x: Array, chunk_size: int) -> Any:
    """Returns `fn(x)`, of leaves `[N, ...]`, made for `chunk_size` rows at a time."""
    size = x.shape[0]
    chunk_size = min(chunk_size, size)
    padded = trees.pad_by_first(x, -size % chunk_size)
    chunks = lax.map(fn, padded.reshape(-1, chunk_size, *x.shape[1:]))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], chunks)


class EmpiricalSpectrum(NamedTuple):
    """The spectrum of a kernel on a pool of N examples, which stands for the data.

    Attributes:
      eigenvalues: `[K]`, λ, those of the kernel matrix over N, from the largest; they sum to 1.
      coefficients: `[K, C]`, v, those of the targets on the eigenfunctions.
      weights: `[K, K]`, W_ij = E⟨∇φ_i, ∇φ_j⟩, or None where no directions were asked for.
      eigenfunctions: `[N, K]`, φ_i at the pool's examples, with mean square 1 each.
      scale: the mean of the kernel's diagonal, by which it was divided; a scalar.
    """

    eigenvalues: Array
    coefficients: Array
    weights: Array | None
    eigenfunctions: Array
    scale: Array


def empirical_spectrum(
    kernel_fn: KernelFn,
    key: Key | None,
    x: Array,
    targets: Array,
    *,
    num_directions: int = 16,
    directions: Array | None = None,
    num_modes: int | None = None,
    floor: float = 1e-9,
) -> EmpiricalSpectrum:
    """Returns eigenvalues, target and roughness of a kernel on a pool, for `spectral_law` (P10).

    The kernel is divided by the mean of its diagonal. An eigenfunction is extended beyond the pool
    as `φ_i(x) = (1/(N λ_i)) Σ_m K(x, x_m) φ_i(x_m)`, so that W is made of derivatives of the kernel
    by its first argument. Along directions d with E ddᵀ = I, drawn anew for each example,
    `E (d·∇φ_i)(d·∇φ_j)` over examples and directions is W: an unbiased estimate, whose error falls
    as 1/√(N R). It is not diagonal in general: give `spectral_law` all of it.

    The pool stands for the data, so that n of the law is to be at most a tenth of N. Eigenvalues
    are found in float64 on the host; float32 kernels have them to about 1e-8 of their sum.
    Memory is a few times `N²` and `N K`, and what derivatives of 512 rows of the kernel are made
    of; time is that of the kernel, and for a direction `N² K` beside a derivative's own.

    Not for `jit`: it compiles what it needs.

    Args:
      kernel_fn: inputs `[N, ...]` and `[M, ...]` to a kernel `[N, M]`, such as
        `functools.partial(tangent_kernel, apply_fn, params)`.
      key: a PRNG key, which is consumed; None where no directions are drawn.
      x: `[N, ...]`, the pool's inputs, floats.
      targets: `[N, C]`, such as one-hot labels minus 1/C.
      num_directions: R, the number of directions to draw for each example; 0: no W.
      directions: directions to take instead, `[R, ...]` for all examples or `[R, N, ...]`. √D times
        the D unit vectors give W exactly.
      num_modes: K, the number of largest eigenvalues to keep; None: all N.
      floor: the least eigenvalue, instead of what rounding left; above 0.

    Raises:
      ValueError: if shapes do not fit, an option is out of range, or the kernel is not finite or
        has no positive diagonal.

    Examples:
      >>> x = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> spectrum = meeting.empirical_spectrum(
      ...     lambda a, b: a @ b.T, None, x, x, directions=jnp.sqrt(2.0) * jnp.eye(2), num_modes=2)
      >>> print(spectrum.eigenvalues, jnp.diagonal(spectrum.weights).round(3))  # x₁/√2 and √2 x₂
      [0.8 0.2] [0.5 2. ]
    """
    size = x.shape[0]
    num_modes = size if num_modes is None else num_modes
    _check(key, x, targets, num_directions, directions, num_modes, floor)
    kernel = np.asarray(sharding.alone(kernel_fn)(x, x), np.float64)
    scale = np.trace(kernel) / size
    if not (np.isfinite(kernel).all() and scale > 0):
        raise ValueError(f"the kernel must be finite with a positive diagonal, its mean is {scale}")
    values, vectors = np.linalg.eigh((kernel + kernel.T) / (2 * scale * size))
    values = np.maximum(values[::-1][:num_modes], floor)
    functions = np.sqrt(size) * vectors[:, ::-1][:, :num_modes]
    coefficients = functions.T @ np.asarray(targets, np.float64) / size
    values, coefficients, functions, scale = (
        jnp.asarray(array, x.dtype) for array in (values, coefficients, functions, scale)
    )

    sources = directions
    if sources is None and num_directions > 0 and key is not None:
        sources = jax.random.split(key, num_directions)
    weights = None
    if sources is not None:
        slopes_fn = sharding.alone(_slope_products, static_argnames=("kernel_fn",))
        products = slopes_fn(x, functions, sources, kernel_fn=kernel_fn)
        inverse = 1 / (size * values * scale)
        weights = products * inverse[:, None] * inverse[None]
    return EmpiricalSpectrum(values, coefficients, weights, functions, scale)


_ROWS_AT_ONCE = 512
"""Rows of the kernel whose derivatives are held at a time."""


def _slope_products(x: Array, functions: Array, sources: Array, *, kernel_fn: KernelFn) -> Array:
    """Returns the mean of GᵀG/N `[K, K]`, G = ∂_d K(x, x_m) φ(x_m) `[N, K]`, over directions d.

    Sources are directions, or keys to draw them with. What the derivative along every direction is
    made of is computed once for some rows of the kernel, which depend on no other.
    """
    size = x.shape[0]

    def sums(rows, valid):
        _, slopes_fn = jax.linearize(lambda first: kernel_fn(first, x), x[rows])

        def add(total, source):
            is_key = jnp.issubdtype(source.dtype, jax.dtypes.prng_key)
            direction = jax.random.normal(source, x.shape, x.dtype) if is_key else source
            direction = jnp.broadcast_to(direction, x.shape).astype(x.dtype)[rows]
            # Rows that pad move along nothing, and so add nothing.
            direction = direction * valid.reshape(-1, *(1,) * (x.ndim - 1))
            slopes = jnp.matmul(slopes_fn(direction), functions, precision="highest")
            return total + jnp.matmul(slopes.T, slopes, precision="highest"), None

        zeros = jnp.zeros((functions.shape[1],) * 2, x.dtype)
        return lax.scan(add, zeros, sources)[0]

    num_chunks = -(-size // _ROWS_AT_ONCE)
    num_rows = -(-size // num_chunks)
    total = chunked_sum(sums, [jnp.arange(size)], jnp.ones(size, bool), chunk_size=num_rows)
    return total / (sources.shape[0] * size)


def _check(
    key: Key | None,
    x: Array,
    targets: Array,
    num_directions: int,
    directions: Array | None,
    num_modes: int,
    floor: float,
) -> None:
    """Checks the arguments of `empirical_spectrum`."""
    size = x.shape[0]
    if targets.ndim != 2 or targets.shape[0] != size:
        raise ValueError(f"targets must have shape [{size}, C], got {targets.shape}")
    if not 1 <= num_modes <= size:
        raise ValueError(f"num_modes must be in [1, {size}], got {num_modes}")
    if not 0 < floor < np.inf:
        raise ValueError(f"floor must be finite and above 0, got {floor}")
    if directions is not None:
        shapes = x.shape[1:], x.shape
        if not directions.shape or directions.shape[1:] not in shapes or not directions.shape[0]:
            raise ValueError(
                f"directions must have shape [R, *{shapes[0]}] or [R, *{shapes[1]}], got "
                f"{directions.shape}"
            )
    elif num_directions < 0:
        raise ValueError(f"num_directions must be at least 0, got {num_directions}")
    elif num_directions and key is None:
        raise ValueError("a key is needed to draw directions: give one, or num_directions=0")
