"""What kernel regression would share, from kernels on the pool: T13's measurement."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import meeting
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import grid
from halfway.lab.measurements.context import Context
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array

SIZES = (75, 150, 300)
"""n of each half, of those at most a tenth of the images that two halves and S take."""
SHARE_OF_IMAGES = 10
RATES = (0.0, 0.4)
WIDER = 4
"""How much wider than the config's MLP."""
LOSSES = ("cross_entropy", "squared")
"""What training descends; the first, as the config has it, decides."""
NUM_IMAGES, NUM_STARTS, RIDGE = 4000, 8, 1e-6
"""Images that stand for the data at most; initializations that the kernel is averaged over; and δ,
where the kernel's mean diagonal is 1."""
TANGENT, DISTANCE = "tangent kernel", "kernel of distances"
KERNELS = (TANGENT, DISTANCE)


def sizes(config: RunConfig) -> tuple[int, ...]:
    """Returns n of each half: of `SIZES` what a tenth of the images allows, else the least.

    The images stand for the data, so that few of them may be trained on; a pool has at least two
    halves and S.

    Args:
      config: of the run.
    """
    largest = (2 * config.num_examples + config.num_holdout) / SHARE_OF_IMAGES
    return tuple(size for size in SIZES if size <= largest) or SIZES[:1]


def setting(config: RunConfig, num_examples: int, noise_rate: float, loss: str) -> Condition:
    """Returns the condition of a size, a noise rate and a loss: a wide MLP.

    Args:
      config: of the run.
      num_examples: of `sizes`.
      noise_rate: of `RATES`.
      loss: of `LOSSES`.

    Raises:
      ValueError: if no architecture of the config is an MLP with a hidden layer.
    """
    base = grid.design(config).bases[grid.MLP]
    model = dict(base.model)
    widths = tuple(WIDER * width for width in model["widths"])
    return dataclasses.replace(
        base,
        architecture=f"{base.architecture} ×{WIDER} wide",
        model=model | {"widths": widths},
        num_examples=num_examples,
        capacity=max(sizes(config)),
        noise_rate=noise_rate,
        loss=loss,
    )


def _distance_kernel(median: Array, first: Array, second: Array) -> Array:
    """Returns exp(−‖x − x′‖²/median) `[N, M]`."""
    first, second = (x.reshape(len(x), -1) for x in (first, second))
    squares = jnp.square(first).sum(1)[:, None] + jnp.square(second).sum(1)[None]
    return jnp.exp(-(squares - 2 * first @ second.T) / median)


def _measure(context: Context) -> xr.Dataset:
    """Returns what P10 says of two kernels for every size and noise rate.

    `predicted` and `predicted_slopes` (kernel, num_examples, noise_rate), μ_f and μ_J. No
    population is read: the condition says which network, and where this is stored.
    """
    condition, pool = context.condition, context.pool
    number = min(NUM_IMAGES, len(pool.labels))
    keys = {name: named_key(context.key, name) for name in ("images", "starts", "directions")}
    rows = jax.random.choice(keys["images"], len(pool.labels), (number,), replace=False)
    x = jnp.asarray(pool.images, jnp.float32)[rows]
    labels = jnp.asarray(pool.labels, jnp.int32)[rows]
    num_classes = condition.num_classes
    targets = jax.nn.one_hot(labels, num_classes) - 1 / num_classes
    init = lambda key: condition.module.init(key, x[:1])["params"]  # noqa: E731
    starts = jax.jit(jax.vmap(init))(jax.random.split(keys["starts"], NUM_STARTS))
    flat = np.asarray(x, np.float64).reshape(number, -1)
    median = _median_square(flat)
    kernels = {
        TANGENT: functools.partial(meeting.mean_tangent_kernel, condition.apply_fn, starts),
        DISTANCE: functools.partial(_distance_kernel, jnp.float32(median)),
    }
    numbers = sizes(context.config)
    predicted = np.array(
        [
            _predict(kernel_fn, keys["directions"], x, targets, numbers)
            for kernel_fn in kernels.values()
        ]
    )
    cells = "kernel", "num_examples", "noise_rate"
    return context.dataset(
        {
            "predicted": (cells, predicted[..., 0]),
            "predicted_slopes": (cells, predicted[..., 1]),
        },
        kernel=KERNELS,
        num_examples=numbers,
        noise_rate=RATES,
    )


def _median_square(flat: np.ndarray) -> float:
    """Returns the median squared distance of two different images, of the first thousand."""
    few = flat[:1000]
    squares = (few**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * few @ few.T
    return float(np.median(distances[~np.eye(len(few), dtype=bool)]))


def _predict(kernel_fn, key, x: Array, targets: Array, numbers: tuple[int, ...]) -> np.ndarray:
    """Returns μ_f and μ_J `[sizes, rates, 2]` by P10 with the spectrum on the images."""
    spectrum = meeting.empirical_spectrum(kernel_fn, key, x, targets)
    values = np.zeros((len(numbers), len(RATES), 2))
    for row, num_examples in enumerate(numbers):
        for column, rate in enumerate(RATES):
            coefficients, noise = meeting.label_noise_terms(
                spectrum.coefficients, rate, targets.shape[1]
            )
            law = meeting.spectral_law(
                spectrum.eigenvalues,
                coefficients,
                num_examples,
                ridge=RIDGE,
                noise=noise,
                weights=spectrum.weights,
            )
            values[row, column] = law.function_coefficient, law.input_coefficient
    return values


SPECTRA = Measurement("tangent_spectra", _measure)
