"""Distributions with known population quantities, from which fresh examples can be drawn.

Each is a pytree with a pure `sample(key, num_examples)`, which works inside `jit` and `vmap`
(`num_examples` is static), and a constructor that draws its parameters from a key. `mixture` is
also a named data set.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from halfway.data.arrays import Dataset, make_dataset, make_split
from halfway.data.noise import add_label_noise
from halfway.types import ApplyFn, Array, Key, Params


class LinearRegression(NamedTuple):
    """A linear-Gaussian regression: x ~ N(0, I_d), y = ⟨w*, x⟩ + σξ with ξ ~ N(0, 1).

    Its quantities are those of the loss ½(⟨w, x⟩ − y)², whose gradient at one example is
    g = x (⟨w − w*, x⟩ − σξ). Weights may have axes in front: `[..., d]` gives `[...]`.

    Attributes:
      optimum: `[d]`, w*, the weights of least risk.
      noise: scalar, the variance σ² of the noise.
    """

    optimum: Array
    noise: Array | float

    def sample(self, key: Key, num_examples: int) -> tuple[Array, Array]:
        """Returns x `[N, d]` and y `[N]`.

        Args:
          key: a PRNG key, consumed.
          num_examples: N, the number of examples, static.
        """
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (num_examples, self.optimum.shape[0]))
        noise = jax.random.normal(noise_key, (num_examples,))
        return x, x @ self.optimum + jnp.sqrt(self.noise) * noise

    def risk(self, weights: Array) -> Array:
        """Returns the expected loss `[...]`: ½(‖w − w*‖² + σ²)."""
        return (self._distance(weights) + self.noise) / 2

    def mean_gradient(self, weights: Array) -> Array:
        """Returns E g `[..., d]`: w − w*."""
        return weights - jnp.broadcast_to(self.optimum, weights.shape)

    def gradient_variance(self, weights: Array) -> Array:
        """Returns tr Cov(g) `[...]` of one example: (d + 1)‖w − w*‖² + dσ²."""
        dimension = self.optimum.shape[0]
        return (dimension + 1) * self._distance(weights) + dimension * self.noise

    def n_half(self, weights: Array) -> Array:
        """Returns tr Cov(g) / ‖E g‖² `[...]`, the half point of P3: d + 1 + dσ²/‖w − w*‖².

        It is infinite at w*, or NaN at w* where σ = 0.
        """
        dimension = self.optimum.shape[0]
        return dimension + 1 + dimension * self.noise / self._distance(weights)

    def _distance(self, weights: Array) -> Array:
        return jnp.sum(self.mean_gradient(weights) ** 2, axis=-1)


def linear_regression(
    key: Key, dimension: int, *, signal: float | Array = 1.0, noise: float | Array = 1.0
) -> LinearRegression:
    """Returns a linear-Gaussian regression whose w* has a uniformly random direction.

    Args:
      key: a PRNG key, consumed.
      dimension: d, the number of weights, static.
      signal: ‖w*‖².
      noise: σ², the variance of the noise.

    Examples:
      >>> law = data.linear_regression(jax.random.key(0), 10, signal=4.0, noise=2.0)
      >>> f"{law.risk(jnp.zeros(10)):.2f}, {law.n_half(jnp.zeros(10)):.2f}"  # 10 + 1 + 10 · 2/4
      '3.00, 16.00'
    """
    direction = jax.random.normal(key, (dimension,))
    return LinearRegression(direction * jnp.sqrt(signal / jnp.sum(direction**2)), noise)


class Average(NamedTuple):
    """A mean over random draws.

    Attributes:
      estimate: scalar, the mean.
      standard_error: scalar, its standard error.
    """

    estimate: Array
    standard_error: Array


class GaussianMixture(NamedTuple):
    """C equally frequent classes, x ~ N(m_c, σ² I), labels replaced at rate ρ.

    Attributes:
      means: `[C, ...]`, the mean of each class, e.g. `[C, H, W, D]`.
      scale: scalar, σ > 0, the standard deviation of each feature.
      noise_rate: scalar, ρ in [0, 1]: with this probability a label is replaced by a uniform draw
        over all C classes, as in `halfway.data.add_label_noise`.
    """

    means: Array
    scale: Array | float
    noise_rate: Array | float = 0.0

    def sample(self, key: Key, num_examples: int) -> tuple[Array, Array]:
        """Returns x `[N, ...]` and labels `[N]` int32.

        Args:
          key: a PRNG key, consumed.
          num_examples: N, the number of examples, static.
        """
        class_key, x_key, label_key = jax.random.split(key, 3)
        num_classes = self.means.shape[0]
        classes = jax.random.randint(class_key, (num_examples,), 0, num_classes, jnp.int32)
        noise = jax.random.normal(x_key, (num_examples, *self.means.shape[1:]))
        x = self.means[classes] + self.scale * noise
        labels = add_label_noise(label_key, classes, self.noise_rate, num_classes=num_classes)
        return x, labels

    def logits(self, x: Array) -> Array:
        """Returns log P(label = c | x) `[B, C]`, label noise included: the Bayes classifier.

        `P(c | x) = (1 − ρ) softmax_c(−‖x − m_c‖² / 2σ²) + ρ/C`. The most likely class is the same
        at every ρ < 1.

        Args:
          x: `[B, ...]`, the inputs.
        """
        num_classes = self.means.shape[0]
        # Numbers relative to the centre of the means are smaller, and so are rounding errors.
        center = self.means.mean(0, keepdims=True)
        means = (self.means - center).reshape(num_classes, -1)
        x = (x - center).reshape(x.shape[0], -1)
        squares = jnp.sum(means**2, axis=-1)
        scores = (jnp.matmul(x, means.T, precision="highest") - squares[None] / 2) / self.scale**2
        clean = jax.nn.log_softmax(scores)
        rate = jnp.asarray(self.noise_rate)
        return jnp.logaddexp(jnp.log1p(-rate) + clean, jnp.log(rate / num_classes))

    def bayes_error(self) -> Array:
        """Returns the error of the Bayes classifier of two classes, against labels as sampled.

        It is `(1 − ρ) Φ(−‖m_0 − m_1‖ / 2σ) + ρ/2`.

        Raises:
          ValueError: for another number of classes, which has no closed form.
        """
        num_classes = self.means.shape[0]
        if num_classes != 2:
            raise ValueError(
                f"the Bayes error has a closed form for two classes, got {num_classes}: estimate "
                "it by bayes_error_monte_carlo"
            )
        distance = jnp.sqrt(jnp.sum((self.means[0] - self.means[1]) ** 2))
        clean = jax.scipy.stats.norm.cdf(-distance / (2 * self.scale))
        return (1 - self.noise_rate) * clean + self.noise_rate / 2

    def bayes_error_monte_carlo(self, key: Key, num_examples: int) -> Average:
        """Returns the mean of 1 − max_c P(c | x) over draws of x, for any number of classes.

        Its expectation is the error of the Bayes classifier against labels as sampled, and it
        varies less than that classifier's errors do.

        Args:
          key: a PRNG key, consumed.
          num_examples: N ≥ 2, the number of draws, static.
        """
        x, _ = self.sample(key, num_examples)
        errors = 1 - jnp.exp(self.logits(x).max(-1))
        return Average(errors.mean(), errors.std(ddof=1) / jnp.sqrt(num_examples))


def gaussian_mixture(
    key: Key,
    *,
    num_classes: int = 10,
    shape: Sequence[int] = (8, 8, 1),
    separation: float | Array = 4.5,
    scale: float | Array = 0.08,
    center: float | Array = 0.5,
    noise_rate: float | Array = 0.0,
) -> GaussianMixture:
    """Returns a mixture whose means are drawn from a Gaussian around a grey image.

    By default nearly all pixels lie in [0, 1]; none is clipped.

    Args:
      key: a PRNG key, consumed.
      num_classes: C, the number of classes, static.
      shape: the shape of an example, static.
      separation: the root mean square of ‖m_c − m_c'‖ / σ. Two classes at distance 4.5 σ are
        confused at rate Φ(−2.25) = .012.
      scale: σ, the standard deviation of each feature.
      center: the mean of all pixels.
      noise_rate: ρ, the rate of label noise, in [0, 1].

    Examples:
      >>> law = data.gaussian_mixture(jax.random.key(0), num_classes=2, shape=(3,))
      >>> x, labels = jax.jit(law.sample, static_argnums=1)(jax.random.key(1), 5)
      >>> x.shape, law.logits(x).shape
      ((5, 3), (5, 2))
    """
    draws = jax.random.normal(key, (num_classes, *shape))
    spread = separation * scale / jnp.sqrt(2 * np.prod(shape, dtype=float))
    return GaussianMixture(center + spread * draws, scale, noise_rate)


@flax.struct.dataclass
class Teacher:
    """Labels given by a fixed network to random inputs.

    Attributes:
      params: the parameters of the teacher.
      temperature: scalar τ: labels are draws from softmax(logits / τ). None: labels are the argmax.
      apply_fn: a function of parameters and inputs that returns logits `[B, C]`, static.
      shape: the shape of an input, static.
      inputs: "normal" for N(0, I), "uniform" for uniform on [0, 1], static.
    """

    params: Params
    temperature: Array | float | None
    apply_fn: ApplyFn = flax.struct.field(pytree_node=False)
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    inputs: Literal["normal", "uniform"] = flax.struct.field(pytree_node=False, default="normal")

    def sample(self, key: Key, num_examples: int) -> tuple[Array, Array]:
        """Returns x `[N, ...]` and labels `[N]` int32.

        Args:
          key: a PRNG key, consumed.
          num_examples: N, the number of examples, static.

        Raises:
          ValueError: for another kind of inputs.
        """
        x_key, label_key = jax.random.split(key)
        shape = (num_examples, *self.shape)
        if self.inputs == "normal":
            x = jax.random.normal(x_key, shape)
        elif self.inputs == "uniform":
            x = jax.random.uniform(x_key, shape)
        else:
            raise ValueError(f"inputs must be 'normal' or 'uniform', got {self.inputs!r}")
        logits = self.logits(x)
        if self.temperature is None:
            labels = jnp.argmax(logits, axis=-1)
        else:
            labels = jax.random.categorical(label_key, logits)
        return x, labels.astype(jnp.int32)

    def logits(self, x: Array) -> Array:
        """Returns logits `[B, C]` of the Bayes classifier: the teacher's, over the temperature.

        With a temperature their softmax is P(label = c | x); without one the label is certain, and
        only their argmax means something.

        Args:
          x: `[B, ...]`, the inputs.
        """
        logits = self.apply_fn(self.params, x)
        return logits if self.temperature is None else logits / self.temperature


def teacher(
    key: Key,
    *,
    num_classes: int = 10,
    shape: Sequence[int] = (8, 8, 1),
    width: int = 64,
    temperature: float | Array | None = None,
    inputs: Literal["normal", "uniform"] = "normal",
) -> Teacher:
    """Returns a teacher of one hidden layer of tanh units with Gaussian weights.

    Inputs are standardized first. Weights have variance 4/fan-in in the first layer, so that units
    are far from linear, and 1/fan-in in the second. There are no biases: the logits are odd in the
    standardized input, and all classes are about equally frequent. A teacher of another network is
    `Teacher(params, temperature, apply_fn, shape)`.

    Args:
      key: a PRNG key, consumed.
      num_classes: C, the number of classes, static.
      shape: the shape of an input, static.
      width: the width of the hidden layer, static.
      temperature: τ, or None for labels that are the argmax.
      inputs: "normal" or "uniform", static.

    Examples:
      >>> law = data.teacher(jax.random.key(0), shape=(4,), temperature=1.0)
      >>> x, labels = law.sample(jax.random.key(1), 3)
      >>> x.shape, labels.dtype
      ((3, 4), dtype('int32'))
    """
    hidden_key, output_key = jax.random.split(key)
    size = int(np.prod(shape))
    mean, deviation = (0.5, 12**-0.5) if inputs == "uniform" else (0.0, 1.0)
    params = {
        "mean": jnp.asarray(mean),
        "deviation": jnp.asarray(deviation),
        "hidden": jax.random.normal(hidden_key, (size, width)) * 2 / jnp.sqrt(size),
        "output": jax.random.normal(output_key, (width, num_classes)) / jnp.sqrt(width),
    }
    return Teacher(params, temperature, tanh_network, tuple(shape), inputs)


def tanh_network(params: Params, x: Array) -> Array:
    """Returns logits `[B, C]` of the network that `teacher` draws.

    Args:
      params: `mean` and `deviation`, scalars; `hidden` `[D, width]`; `output` `[width, C]`.
      x: `[B, ...]`, the inputs, of D numbers each.
    """
    x = (x.reshape(x.shape[0], -1) - params["mean"]) / params["deviation"]
    chex.assert_axis_dimension(x, 1, params["hidden"].shape[0])
    return jnp.tanh(x @ params["hidden"]) @ params["output"]


# The named data set

MIXTURE_CHECKSUM = "9f05ce3207be37898e348616b1636406f2f719864b3f8283f82a049c23301b18"
"""`Dataset.checksum` of `mixture`, version 1.0.0."""
MIXTURE_VERSION = "1.0.0"

_SEED = 2206
_SCALE = 0.08
_SEPARATION = 4.5
_SHAPE = (8, 8, 1)
_CLASSES = 10
_NUM_TRAIN, _NUM_TEST = 6000, 1000
_LEVELS = 255


def mixture() -> GaussianMixture:
    """Returns the distribution of the named data set `mixture`.

    More examples can be drawn from it, and models compared with its Bayes classifier. It has ten
    classes of 8×8×1 images around grey, σ = .08, classes 4.5 σ apart (root mean square); the
    Bayes error is .071.
    """
    return GaussianMixture(jnp.asarray(_means(np.random.PCG64(_SEED)), jnp.float32), _SCALE)


def load_mixture() -> Dataset:
    """Returns the named data set `mixture`: 6,000 and 1,000 images from the distribution `mixture`.

    It is made without a file and has the same bits on every machine. Pixels are rounded to 255ths,
    which adds 0.02 % to their variance; no pixel reaches 0 or 1, so nothing is clipped.
    """
    bits = np.random.PCG64(_SEED)
    means = _means(bits)
    size = _NUM_TRAIN + _NUM_TEST
    labels = (bits.random_raw(size) % _CLASSES).astype(np.int32)
    images = means[labels] + _SCALE * _normal(bits, (size, *_SHAPE))
    levels = np.rint(_LEVELS * images.clip(0, 1)).astype(np.uint8)
    first = _NUM_TRAIN
    train, test = (
        make_split(levels[part], labels[part], _LEVELS)
        for part in (slice(first), slice(first, None))
    )
    names = [str(label) for label in range(_CLASSES)]
    return make_dataset("mixture", train, test, names, MIXTURE_VERSION)


def _means(bits: np.random.PCG64) -> np.ndarray:
    spread = _SEPARATION * _SCALE / np.sqrt(2 * np.prod(_SHAPE))
    return 0.5 + spread * _normal(bits, (_CLASSES, *_SHAPE))


def _normal(bits: np.random.PCG64, shape: Sequence[int]) -> np.ndarray:
    """Returns normal draws by inversion: NumPy promises the bits of a stream, not its normals."""
    from scipy.special import ndtri

    raw = bits.random_raw(int(np.prod(shape)))
    return ndtri(((raw >> np.uint64(11)) + 0.5) * 2.0**-53).reshape(shape)
