"""Distributions with known answers, for fresh examples at every step; one as a named data set.

Each has `sample(key, num_examples)`, pure and usable within `jit` and `vmap` with `num_examples`
static: inputs `[N, ...]` and what belongs to them `[N]`. They are pytrees, so that their parameters
may be traced, differentiated and stacked.

`data.load("synthetic_mixture")` holds 6,000 train and 1,000 test draws of `standard_mixture()`, the
same in every process: NumPy draws them, because XLA's last bits depend on the machine. Unlike those
of a photographed pool its halves are independent draws. No image of it leaves [0, 1], so that
nothing was clipped and `standard_mixture().logits` is its exact posterior.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halfway import halves, models
from halfway.data.arrays import Dataset, Split, make_dataset
from halfway.types import ApplyFn, Array, Key, Params, is_traced


class Regression(NamedTuple):
    """The linear-Gaussian model: x ~ N(0, I_d), y = ⟨w*, x⟩ + σξ (`halfway.theory`).

    The loss of weights w at an example is ½(⟨w, x⟩ − y)², its gradient `g = x(⟨w − w*, x⟩ − σξ)`.
    Methods take one w and lift with `vmap`; δ = w − w*.

    Attributes:
      weights: `[D]`, w*.
      noise: scalar, σ² ≥ 0.
    """

    weights: Array
    noise: float | Array

    def sample(self, key: Key, num_examples: int) -> tuple[Array, Array]:
        """Returns x `[N, D]` and y `[N]`.

        Args:
          key: consumed.
          num_examples: N, static.
        """
        key_x, key_noise = jax.random.split(key)
        (dimension,), dtype = self.weights.shape, self.weights.dtype
        x = jax.random.normal(key_x, (num_examples, dimension), dtype)
        draws = jax.random.normal(key_noise, (num_examples,), dtype)
        clean = jnp.matmul(x, self.weights, precision="highest")
        return x, clean + jnp.sqrt(jnp.asarray(self.noise, dtype)) * draws

    def risk(self, weights: Array) -> Array:
        """Returns the expected loss, `½(‖δ‖² + σ²)`.

        Args:
          weights: w `[D]`.
        """
        return (self._squared_distance(weights) + self.noise) / 2

    def mean_gradient(self, weights: Array) -> Array:
        """Returns E g = δ, `[D]`.

        Args:
          weights: w `[D]`.
        """
        return weights - self.weights

    def gradient_noise(self, weights: Array) -> Array:
        """Returns `tr Cov(g) = (d + 1)‖δ‖² + d σ²`, from `E‖x‖²⟨δ, x⟩² = (d + 2)‖δ‖²`.

        Args:
          weights: w `[D]`.
        """
        dimension = self.weights.size
        return (dimension + 1) * self._squared_distance(weights) + dimension * self.noise

    def n_half(self, weights: Array) -> Array:
        """Returns tr Cov(g) / ‖E g‖², the number of examples at which signal equals noise (P3).

        It is d + 1 without noise, and infinite at w* with noise: what is left there is noise alone.

        Args:
          weights: w `[D]`.

        Examples:
          >>> model = synthetic.Regression(jnp.array([1.0, 0.0, 0.0]), noise=2.0)
          >>> print(model.n_half(jnp.zeros(3)))  # (4·1 + 3·2) / 1
          10.0
        """
        return self.gradient_noise(weights) / self._squared_distance(weights)

    def _squared_distance(self, weights: Array) -> Array:
        return (self.mean_gradient(weights) ** 2).sum()


def regression(
    key: Key, dimension: int, *, signal: float | Array = 1.0, noise: float | Array = 1.0
) -> Regression:
    """Returns a linear-Gaussian model whose w* has a uniform direction and squared length `signal`.

    Args:
      key: consumed.
      dimension: d, static.
      signal: ‖w*‖² ≥ 0.
      noise: σ² ≥ 0.

    Raises:
      ValueError: for concrete arguments out of range.
    """
    _check(dimension, dimension >= 1, "dimension must be at least 1")
    _check(signal, signal >= 0, "signal must be at least 0")
    _check(noise, noise >= 0, "noise must be at least 0")
    direction = jax.random.normal(key, (dimension,))
    direction = direction / jnp.linalg.norm(direction)
    return Regression(jnp.sqrt(jnp.asarray(signal, direction.dtype)) * direction, noise)


class Mixture(NamedTuple):
    """C classes, equally frequent, of isotropic Gaussians: x ~ N(m_c, σ² I); labels may be noisy.

    Attributes:
      means: `[C, ...]` m_c, of any shape of input, e.g. `[C, H, W, D]`.
      deviation: scalar, σ > 0.
      noise_rate: scalar, ρ: the probability that a label is a uniform draw over all C instead.
    """

    means: Array
    deviation: float | Array
    noise_rate: float | Array = 0.0

    def sample(self, key: Key, num_examples: int) -> tuple[Array, Array]:
        """Returns x `[N, ...]`, not clipped to anything, and labels `[N]` int32 as labelled.

        Args:
          key: consumed.
          num_examples: N, static.
        """
        key_class, key_x, key_label = jax.random.split(key, 3)
        num_classes = self.means.shape[0]
        clean = jax.random.randint(key_class, (num_examples,), 0, num_classes, jnp.int32)
        shape = (num_examples, *self.means.shape[1:])
        draws = jax.random.normal(key_x, shape, self.means.dtype)
        labels = halves.add_label_noise(key_label, clean, self.noise_rate, num_classes=num_classes)
        return self.means[clean] + self.deviation * draws, labels

    def logits(self, x: Array) -> Array:
        """Returns the exact log posterior `[B, C]` of the label as labelled: Bayes' classifier.

        `log((1 − ρ) p_c + ρ/C)` with `p_c ∝ exp(−‖x − m_c‖² / 2σ²)`; affine in x but for a constant
        over classes where ρ = 0. For the clean classes: `mixture._replace(noise_rate=0.0).logits`.

        Args:
          x: `[B, ...]`.

        Examples:
          >>> mixture = synthetic.Mixture(jnp.array([[-1.0], [1.0]]), deviation=1.0)
          >>> print(jnp.exp(mixture.logits(jnp.zeros((1, 1)))).round(3))  # halfway between
          [[0.5 0.5]]
        """
        num_classes = self.means.shape[0]
        flat = self.means.reshape(num_classes, -1)
        # Without the common part of the means, which only costs digits.
        centre = flat.mean(0)
        flat = flat - centre[None]
        shifted = x.reshape(x.shape[0], -1) - centre[None]
        scores = jnp.matmul(shifted, flat.T, precision="highest") - (flat**2).sum(1)[None] / 2
        clean = jax.nn.log_softmax(scores / self.deviation**2)
        rate = jnp.asarray(self.noise_rate, clean.dtype)
        return jnp.logaddexp(clean + jnp.log1p(-rate), jnp.log(rate / num_classes))

    def bayes_error(self) -> Array:
        """Returns the smallest expected error against labels as labelled, exact, for two classes.

        `(1 − ρ) Φ(−‖m_0 − m_1‖ / 2σ) + ρ/2`.

        Raises:
          ValueError: for another number of classes, where no closed form is known.

        Examples:
          >>> mixture = synthetic.Mixture(jnp.array([[-1.0], [1.0]]), deviation=1.0)
          >>> print(f"{mixture.bayes_error():.4f}")  # Φ(−1)
          0.1587
        """
        if self.means.shape[0] != 2:
            raise ValueError(
                f"bayes_error is known for two classes, got {self.means.shape[0]}: use "
                "bayes_error_monte_carlo"
            )
        distance = jnp.sqrt(((self.means[0] - self.means[1]) ** 2).sum())
        clean = jax.scipy.stats.norm.cdf(-distance / (2 * self.deviation))
        return (1 - self.noise_rate) * clean + self.noise_rate / 2

    def bayes_error_monte_carlo(
        self, key: Key, *, num_samples: int, chunk_size: int = 1000
    ) -> tuple[Array, Array]:
        """Returns an unbiased estimate of the Bayes error, any C, and its standard error.

        The mean of 1 − max_c P(c | x), which varies less than errors do.

        Args:
          key: consumed.
          num_samples: at least 2, static.
          chunk_size: samples in memory at once.

        Raises:
          ValueError: for fewer than 2 samples.
        """
        if num_samples < 2:
            raise ValueError(f"a standard error needs at least 2 samples, got {num_samples}")

        def doubt(key):
            x, _ = self.sample(key, 1)
            return 1 - jnp.exp(self.logits(x).max())

        keys = jax.random.split(key, num_samples)
        doubts = lax.map(doubt, keys, batch_size=min(chunk_size, num_samples))
        return doubts.mean(), doubts.std(ddof=1) / jnp.sqrt(num_samples)


SEPARATION, DEVIATION = 6.0, 0.08
"""By default the means of two classes are 6 σ apart, and pixels are far from the ends of [0, 1]."""


def mixture(
    key: Key,
    shape: Sequence[int] = (8, 8, 1),
    *,
    num_classes: int = 10,
    separation: float | Array = SEPARATION,
    deviation: float | Array = DEVIATION,
    noise_rate: float | Array = 0.0,
) -> Mixture:
    """Returns a mixture around ½: the means lie in random directions at equal distance from it.

    Two means are about `separation` σ apart (exactly so where their directions are orthogonal, as
    they nearly are in many dimensions). With the defaults a pixel leaves [0, 1] less than once in
    10⁷, so that attacks within this box meet the whole distribution; a larger σ, or fewer pixels,
    takes more of it outside, where nothing is clipped either.

    Args:
      key: consumed.
      shape: of one input, static.
      num_classes: C ≥ 2, static.
      separation: in units of σ, ≥ 0.
      deviation: σ > 0.
      noise_rate: ρ in [0, 1].

    Raises:
      ValueError: for concrete arguments out of range.
    """
    _check(num_classes, num_classes >= 2, "num_classes must be at least 2")
    _check(separation, separation >= 0, "separation must be at least 0")
    _check(deviation, deviation > 0, "deviation must be positive")
    _check(noise_rate, (noise_rate >= 0) & (noise_rate <= 1), "noise_rate must lie in [0, 1]")
    draws = jax.random.normal(key, (num_classes, *shape))
    return Mixture(_means(draws, separation * deviation), deviation, noise_rate)


def _means(draws: Any, distance: float | Array) -> Any:
    """Returns `[C, ...]` means about `distance` apart from Gaussian draws, of NumPy or of JAX."""
    norms = ((draws**2).sum(tuple(range(1, draws.ndim)), keepdims=True)) ** 0.5
    return 0.5 + distance / 2**0.5 * draws / norms


@flax.struct.dataclass
class Teacher:
    """Inputs of independent pixels, labelled by a fixed network.

    Attributes:
      apply_fn: `(params, x [B, ...]) -> logits [B, C]`; static.
      params: of the network.
      shape: of one input; static.
      inputs: "uniform" in [0, 1) or "normal", N(0, 1), each pixel; static.
      temperature: scalar > 0: labels are drawn from softmax(logits / temperature); None: the
        largest logit is the label, and the Bayes error is 0.
    """

    apply_fn: ApplyFn = flax.struct.field(pytree_node=False)
    params: Params
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    inputs: Literal["uniform", "normal"] = flax.struct.field(pytree_node=False, default="uniform")
    temperature: float | Array | None = None

    def sample(self, key: Key, num_examples: int) -> tuple[Array, Array]:
        """Returns x `[N, ...]` and labels `[N]` int32.

        Args:
          key: consumed.
          num_examples: N, static.
        """
        key_x, key_label = jax.random.split(key)
        draw = jax.random.uniform if self.inputs == "uniform" else jax.random.normal
        x = draw(key_x, (num_examples, *self.shape))
        logits = self.logits(x)
        if self.temperature is None:
            return x, logits.argmax(-1).astype(jnp.int32)
        return x, jax.random.categorical(key_label, logits).astype(jnp.int32)

    def logits(self, x: Array) -> Array:
        """Returns the teacher's logits `[B, C]`, over the temperature where there is one.

        Their softmax is then the exact posterior, and their argmax is Bayes' classifier always.

        Args:
          x: `[B, ...]`.
        """
        logits = self.apply_fn(self.params, x)
        return logits if self.temperature is None else logits / self.temperature


def teacher(
    key: Key,
    shape: Sequence[int] = (8, 8, 1),
    *,
    num_classes: int = 10,
    model: Mapping[str, Any] | None = None,
    inputs: Literal["uniform", "normal"] = "uniform",
    temperature: float | Array | None = None,
) -> Teacher:
    """Returns a teacher at random initialization.

    By default a tanh network without biases to speak of, odd about the middle of [0, 1], so that on
    uniform inputs no logit has a mean of its own and each class is the largest often enough. With
    "normal" inputs the network's own scaling of [0, 1] to [−1, 1] favours some classes. Its logits
    vary by about ½: temperatures below .1 make labels nearly certain.

    Args:
      key: consumed.
      shape: of one input, static; `[H, W, D]` for models of the library.
      num_classes: C ≥ 2, static.
      model: plain config, see `models.build`; an MLP with one layer of 64 tanh units by default.
      inputs: "uniform" or "normal".
      temperature: > 0, or None for the largest logit.

    Raises:
      ValueError: for an unknown kind of inputs or model, or concrete arguments out of range.

    Examples:
      >>> source = synthetic.teacher(jax.random.key(0), num_classes=3)
      >>> x, labels = source.sample(jax.random.key(1), 100)
      >>> x.shape, sorted(set(labels.tolist()))
      ((100, 8, 8, 1), [0, 1, 2])
    """
    _check(num_classes, num_classes >= 2, "num_classes must be at least 2")
    if temperature is not None:
        _check(temperature, temperature > 0, "temperature must be positive")
    if inputs not in ("uniform", "normal"):
        raise ValueError(f"unknown inputs {inputs!r}: choose uniform or normal")
    config = {"kind": "mlp", "widths": (64,), "activation": "tanh"} if model is None else model
    module = models.build(config, num_classes=num_classes)
    params = jax.jit(module.init)(key, jnp.zeros((1, *shape)))
    return Teacher(module.apply, params, tuple(shape), inputs, temperature)  # type: ignore[arg-type]


def _check(value: Any, allowed: Any, rule: str) -> None:
    if not is_traced(value) and not np.all(np.asarray(allowed)):
        raise ValueError(f"{rule}, got {value}")


# The named data set

MIXTURE_SEED = 2206
"""Seeds NumPy's `default_rng`: the means of `standard_mixture`, then the two splits."""
_SHAPE, _NUM_CLASSES, _SIZES = (8, 8, 1), 10, (6_000, 1_000)


def standard_mixture() -> Mixture:
    """Returns the mixture that `synthetic_mixture` holds draws of, for fresh ones and its posterior.

    Ten classes of 8×8×1 images with `mixture`'s defaults. Its Bayes error is near 1 %.
    """
    means, _ = _standard_draws()
    return Mixture(jnp.asarray(means, jnp.float32), DEVIATION)


def load_mixture(data_dir: object = None) -> Dataset:
    """Returns `synthetic_mixture`; see `halfway.data.load`.

    Args:
      data_dir: not used: there are no files.
    """
    del data_dir
    _, splits = _standard_draws()
    names = tuple(str(label) for label in range(_NUM_CLASSES))
    copies = (Split(*(array.copy() for array in split)) for split in splits)
    return make_dataset("synthetic_mixture", *copies, class_names=names, version="1.0.0")


@functools.cache
def _standard_draws() -> tuple[np.ndarray, tuple[Split, ...]]:
    """Returns the means and the splits, drawn in this order from one stream."""
    rng = np.random.default_rng(MIXTURE_SEED)
    means = _means(rng.standard_normal((_NUM_CLASSES, *_SHAPE)), SEPARATION * DEVIATION)
    splits = []
    for size in _SIZES:
        labels = rng.integers(_NUM_CLASSES, size=size).astype(np.int32)
        images = means[labels] + DEVIATION * rng.standard_normal((size, *_SHAPE))
        splits.append(Split(images.astype(np.float32), labels))
    return means, tuple(splits)
