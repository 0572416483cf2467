"""Signal and noise of vectors drawn from one law: gradients of examples, or of models (P3, P4).

The signal is ‖E g‖², what all vectors share; the noise is tr Cov(g), what each has of its own. Both
have unbiased estimators, but their ratio has none: over pairs or draws of θ it is a ratio of sums,
and its interval is `stats.fieller(noise, signal)`. The ratio is the constant of a law in `laws`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from halfway import losses, sharding
from halfway.types import ApplyFn, Array, LossFn, Params


class NoiseScale(NamedTuple):
    """Signal and noise of per-example gradients at one θ; scalars.

    Attributes:
      signal: ‖E g‖², unbiased: from pairs of different examples only, and so possibly below 0.
      noise: tr Cov(g), unbiased.
      n_half: noise / signal, the gradient noise scale; a ratio, so biased.
      standard_error: that of `n_half`, by the delta method with a jackknife over blocks.
    """

    signal: Array
    noise: Array
    n_half: Array
    standard_error: Array


class EnsembleNoise(NamedTuple):
    """Signal and noise of the vectors that an ensemble has at each example, or in each class.

    Attributes:
      signal: `[B]` or `[C]`, ‖E h‖², unbiased over draws of the models.
      noise: `[B]` or `[C]`, tr Cov(h), unbiased.
      k_half: Σ noise / Σ signal of all examples together, a scalar, of each class, `[C]`, or of
        each example, `[B]`.
    """

    signal: Array
    noise: Array
    k_half: Array


def unbiased_signal(num_vectors: Array | int, whole: Array, squares: Array) -> tuple[Array, Array]:
    """Returns (signal, noise) of N vectors from ‖Σ g‖² and Σ ‖g‖², elementwise.

    `signal = (‖Σ g‖² − Σ ‖g‖²)/(N(N−1))` is the mean ⟨g_i, g_j⟩ over pairs i ≠ j, `noise =
    (Σ ‖g‖² − ‖Σ g‖²/N)/(N−1)` the trace of the sample covariance.

    Args:
      num_vectors: N, the number of vectors; below 2 both results are NaN or infinite.
      whole: ‖Σ g‖².
      squares: Σ ‖g‖².

    Examples:
      >>> signal, noise = meeting.unbiased_signal(2, jnp.array(16.0), jnp.array(10.0))  # of 1 and 3
      >>> print(signal, noise)
      3.0 2.0
    """
    # Divided twice: the square of 50,000 is no int32.
    signal = (whole - squares) / num_vectors / (num_vectors - 1)
    return signal, (squares - whole / num_vectors) / (num_vectors - 1)


def leaves_by_layer(tree: Params) -> dict[str, Any]:
    """Returns the entries at the top of a pytree by name: the layers, for parameters of linen.

    Args:
      tree: a pytree; an array is one layer without a name.

    Examples:
      >>> meeting.leaves_by_layer({"a": [1, 2], "b": {"w": 3}})
      {'a': [1, 2], 'b': {'w': 3}}
    """
    entries, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    return {
        jax.tree_util.keystr(path, simple=True): entry
        for path, entry in entries
        if jax.tree.leaves(entry)
    }


def noise_scale(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    labels: Array,
    mask: Array | None = None,
    *,
    loss_fn: LossFn = losses.cross_entropy,
    num_blocks: int = 16,
    chunk_size: int | None = None,
) -> NoiseScale:
    """Returns signal, noise and n_half of per-example gradients at one θ (P3).

    Both are estimated by `unbiased_signal`. Memory is `(num_blocks + chunk_size) D`, D the number
    of parameters, whatever N is. At several θ call it under `lax.map` and give `signal` and `noise`
    `[P]` to `stats.fieller(noise, signal)`.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: θ, chosen without looking at x.
      x: inputs `[N, ...]`.
      labels: `[N]` integers.
      mask: `[N]` bool, the examples that count (as in `types.Sample`); all by default. With fewer
        than two of them nothing is finite, with fewer than three the error is not.
      loss_fn: logits and labels to a loss per example.
      num_blocks: number of blocks of the jackknife, static. Example i is in block i mod num_blocks;
        the standard error has itself a relative error of about 1/√(2 num_blocks).
      chunk_size: number of examples whose gradients are held at once, static. None: 1 on a CPU,
        whose cache more of them exceed, and 64 elsewhere.

    Raises:
      ValueError: if `num_blocks` is below 2 or `chunk_size` below 1.

    Source: McCandlish et al., arXiv 1812.06162, where n_half is B_simple.

    Examples:
      >>> square = lambda z, y: 0.5 * (z[:, 0] - y) ** 2  # of a constant w: gradients are w − y
      >>> scale = meeting.noise_scale(
      ...     lambda w, x: x * w, jnp.array(1.0), jnp.ones((3, 1)), jnp.array([-1.0, -2.0, -3.0]),
      ...     loss_fn=square)
      >>> print(f"{scale.noise:.3f} {scale.signal:.3f}")  # the variance, and 3² − 1/3
      1.000 8.667
    """
    parts, used = _parts(apply_fn, params, x, labels, mask, loss_fn, num_blocks, chunk_size)
    return _finish(jax.tree.map(lambda *layer: sum(layer), *parts.values()), used)


def noise_scale_by_layer(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    labels: Array,
    mask: Array | None = None,
    *,
    loss_fn: LossFn = losses.cross_entropy,
    num_blocks: int = 16,
    chunk_size: int | None = None,
) -> dict[str, NoiseScale]:
    """Returns the noise scale of each layer; signals and noises sum to those of `noise_scale`.

    Args:
      apply_fn: parameters and inputs to logits; no example may depend on another.
      params: θ, chosen without looking at x.
      x: inputs `[N, ...]`.
      labels: `[N]` integers.
      mask: `[N]` bool, the examples that count; all by default.
      loss_fn: logits and labels to a loss per example.
      num_blocks: number of blocks of the jackknife, static.
      chunk_size: number of examples whose gradients are held at once, static. None: 1 on a CPU,
        whose cache more of them exceed, and 64 elsewhere.

    Returns:
      the noise scale by name of the layer, see `leaves_by_layer`.

    Raises:
      ValueError: if `num_blocks` is below 2 or `chunk_size` below 1.
    """
    parts, used = _parts(apply_fn, params, x, labels, mask, loss_fn, num_blocks, chunk_size)
    return {name: _finish(part, used) for name, part in parts.items()}


def noise_scale_from_batches(
    norm_small: Array, norm_big: Array, *, small: int, big: int
) -> tuple[Array, Array]:
    """Returns (signal, noise) from squared norms of gradients of two batch sizes, unbiased (P3).

    `signal = (b₂ g₂ − b₁ g₁)/(b₂ − b₁)`, `noise = (g₁ − g₂)/(1/b₁ − 1/b₂)`, elementwise. No
    gradient of a single example is needed. Both results are noisy; n_half is the ratio of means.

    Args:
      norm_small: `[...]`, g₁ = ‖gradient of b₁ examples‖².
      norm_big: `[...]`, g₂ = ‖gradient of b₂ examples‖², which may include the b₁ others.
      small: b₁, the smaller batch size.
      big: b₂, the larger batch size.

    Raises:
      ValueError: unless 1 <= b₁ < b₂.

    Source: McCandlish et al., arXiv 1812.06162, appendix A.1.

    Examples:
      >>> signal, noise = meeting.noise_scale_from_batches(
      ...     jnp.array(1 + 12 / 4), jnp.array(1 + 12 / 12), small=4, big=12)
      >>> print(f"{signal:.3f} {noise:.3f}")
      1.000 12.000
    """
    if not 1 <= small < big:
        raise ValueError(f"batch sizes must satisfy 1 <= small < big, got {small} and {big}")
    signal = (big * norm_big - small * norm_small) / (big - small)
    return signal, (norm_small - norm_big) / (1 / small - 1 / big)


def ensemble_noise(gradients: Array) -> EnsembleNoise:
    """Returns signal, noise and k_half of an ensemble's vectors, such as input gradients (P4).

    k_half is pooled, `Σ_x tr Cov(h) / Σ_x ‖E h‖²`: means over examples of `noise / signal` do not
    obey the law. The models are independent draws from one law. The replicates of `stats.fieller`
    are independent ensembles, with `noise.sum()` and `signal.sum()` of each.

    Args:
      gradients: vectors `[M, B, ...]` of M ≥ 2 models at B examples.

    Returns:
      `signal` and `noise` `[B]`, `k_half` scalar.

    Raises:
      ValueError: if there are fewer than two models.

    Examples:
      >>> ensemble = meeting.ensemble_noise(jnp.array([[[2.0, 1.0]], [[2.0, -1.0]]]))
      >>> print(ensemble.signal, ensemble.noise, f"{ensemble.k_half:.3f}")
      [3.] [2.] 0.667
    """
    num_models, num_examples = gradients.shape[:2]
    if num_models < 2:
        raise ValueError(f"an ensemble has at least two models, got {num_models}")
    flat = gradients.reshape(num_models, num_examples, -1)
    signal, noise = unbiased_signal(num_models, (flat.sum(0) ** 2).sum(-1), (flat**2).sum((0, 2)))
    return EnsembleNoise(signal, noise, noise.sum() / signal.sum())


def noise_by_class(ensemble: EnsembleNoise, labels: Array, *, num_classes: int) -> EnsembleNoise:
    """Returns signal, noise and k_half `[C]` pooled within each class; k_half is NaN where empty.

    Args:
      ensemble: signal and noise of each example `[B]`, from `ensemble_noise`.
      labels: `[B]` integers in [0, C).
      num_classes: C, the number of classes.
    """
    signal, noise = (
        jax.ops.segment_sum(values, labels, num_classes)
        for values in (ensemble.signal, ensemble.noise)
    )
    return EnsembleNoise(signal, noise, noise / signal)


def noise_by_example(ensemble: EnsembleNoise) -> EnsembleNoise:
    """Returns the same with the k_half of each example `[B]`, infinite where the signal is ≤ 0.

    It is a ratio of two noisy numbers and biased, good for ranks and pictures only. The law holds
    for sums.

    Args:
      ensemble: signal and noise of each example `[B]`, from `ensemble_noise`.

    Examples:
      >>> shared, opposed = jnp.array([[2.0, 1.0], [2.0, -1.0]]), jnp.array([[1.0], [-1.0]])
      >>> h = jnp.stack([shared, jnp.tile(opposed, 2)], 1)  # of two models at two examples
      >>> ensemble = meeting.ensemble_noise(h)
      >>> print(meeting.noise_by_example(ensemble).k_half)
      [0.6666667       inf]
    """
    signal = jnp.where(ensemble.signal > 0, ensemble.signal, 0)
    return ensemble._replace(k_half=ensemble.noise / signal)


class _Part(NamedTuple):
    """Signal and noise of a layer, and the same without each of the R blocks `[R]`."""

    signal: Array
    noise: Array
    signal_without: Array
    noise_without: Array


def _parts(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    labels: Array,
    mask: Array | None,
    loss_fn: LossFn,
    num_blocks: int,
    chunk_size: int | None,
) -> tuple[dict[str, _Part], Array]:
    """Returns what `_finish` needs of each layer, and which blocks have examples `[R]`."""
    if num_blocks < 2:
        raise ValueError(f"num_blocks must be at least 2, got {num_blocks}")
    if chunk_size is None:
        chunk_size = 1 if sharding.backend() == "cpu" else 64
    size = x.shape[0]
    # Interleaved, so that padding at the end is spread over all blocks.
    rows = jnp.arange(-(-size // num_blocks) * num_blocks).reshape(-1, num_blocks).T
    valid = rows < size
    rows = jnp.where(valid, rows, 0)
    valid = valid if mask is None else valid & mask.astype(bool)[rows]

    def gradient(example, label):
        return jax.grad(lambda p: loss_fn(apply_fn(p, example[None]), label[None])[0])(params)

    def sums(rows, valid):
        def select(leaf):
            return jnp.where(valid.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

        each = jax.tree.map(select, jax.vmap(gradient)(x[rows], labels[rows]))
        return jax.tree.map(lambda g: g.sum(0), each), jax.tree.map(lambda g: (g**2).sum(), each)

    def block(rows_and_valid):
        rows, valid = rows_and_valid
        return losses.chunked_sum(sums, (rows,), valid, chunk_size=chunk_size)

    totals, squares = lax.map(block, (rows, valid))
    counts = valid.sum(1)

    def part(total, square):
        of_blocks = [leaf.reshape(num_blocks, -1) for leaf in jax.tree.leaves(total)]
        cross = jnp.stack([(leaf * leaf.sum(0, keepdims=True)).sum(1) for leaf in of_blocks]).sum(0)
        block_squares = jnp.stack([(leaf**2).sum(1) for leaf in of_blocks]).sum(0)
        square = jnp.stack(jax.tree.leaves(square)).sum(0)
        whole, without = cross.sum(), cross.sum() - 2 * cross + block_squares
        return _Part(
            *unbiased_signal(counts.sum(), whole, square.sum()),
            *unbiased_signal(counts.sum() - counts, without, square.sum() - square),
        )

    of_layer = leaves_by_layer(squares)
    parts = {name: part(total, of_layer[name]) for name, total in leaves_by_layer(totals).items()}
    return parts, counts > 0


def _finish(part: _Part, used: Array) -> NoiseScale:
    """Returns the noise scale of a layer, with its standard error over the blocks in use."""
    signal, noise, signal_without, noise_without = part
    n_half = noise / signal
    # Linearized first: the ratio without a block could have a denominator near 0.
    number = used.sum()
    z = jnp.where(used, noise_without - n_half * signal_without, 0)
    spread = jnp.where(used, (z - z.sum() / number) ** 2, 0).sum()
    error = jnp.sqrt(spread * (number - 1) / number) / jnp.abs(signal)
    return NoiseScale(signal, noise, n_half, error)
