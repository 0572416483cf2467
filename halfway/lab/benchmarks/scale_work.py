"""Trainings that the suite `scale` times: the same members, data and batches on all sides."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses, models, populations, sharding
from halfway.lab.benchmarks import mnist, timing
from halfway.types import Array, Params

NUM_IMAGES, BATCH_SIZE, LEARNING_RATE = 1000, 64, 1e-3
NUM_CHECKED, NUM_PIECES, PIECE = 6, 20, 10
"""Both sides are compared after `NUM_CHECKED` steps. Then `NUM_PIECES` times `PIECE` steps are
timed, the sides in turns, so that a busy moment of a shared machine falls on all of them."""
LEAST_PIECES, LONG = 5, 75.0
"""`LEAST_PIECES` are always timed; further pieces until all sides together took `LONG` seconds."""
NUM_TIMED_STEPS = NUM_PIECES * PIECE


class Work(NamedTuple):
    """Members that train.

    Attributes:
      config: the plain config of the model, which `halfway.models.build` takes.
      num_members: M, the number of members.
      side: the side of a square image with one channel, in pixels.
      macs: multiply-adds of each layer for an image in the forward pass.
      target: the largest share of the time of PyTorch's loop that is aimed at.
    """

    config: dict[str, Any]
    num_members: int
    side: int
    macs: tuple[int, ...]
    target: float | None = None

    def operations(self, num_steps: int) -> float:
        """Returns the floating-point operations of steps of all members.

        A multiply-add counts as two. Each layer is passed forward, backward to the weights and,
        except for the first layer, backward to the inputs.

        Args:
          num_steps: the number of steps.
        """
        return 2.0 * (3 * sum(self.macs) - self.macs[0]) * BATCH_SIZE * num_steps * self.num_members


_SMALL = ({"kind": "mlp", "widths": (128, 128)}, 8, (64 * 128, 128 * 128, 128 * 10))
WORKS = {
    "train_cnn_x16": Work(
        mnist.CNN, 16, 28, (28 * 28 * 9 * 16, 14 * 14 * 9 * 16 * 32, 7 * 7 * 32 * 10), 0.7
    ),
    "train_mlp_x16": Work(
        {"kind": "mlp", "widths": (256, 256)}, 16, 28, (784 * 256, 256 * 256, 256 * 10), 0.6
    ),
    "train_small_mlp_x64": Work(_SMALL[0], 64, *_SMALL[1:], 0.15),
}


def small(num_members: int) -> Work:
    """Returns the small MLP with another number of members.

    Args:
      num_members: M, the number of members.
    """
    return Work(_SMALL[0], num_members, *_SMALL[1:])


class Problem(NamedTuple):
    """Members and data, the same for all sides.

    Attributes:
      work: the members.
      images: `[N, H, W, 1]` in [0, 1], of ten classes: the mean of the class and noise.
      labels: `[N]`, their labels.
      rows: `[M, S, B]`, the images of each step's batch, in another order for each member.
      params: the initial parameters, leaves `[M, ...]`.
    """

    work: Work
    images: Array
    labels: Array
    rows: Array
    params: Params


def problem(work: Work) -> Problem:
    """Returns members and data from a fixed seed.

    Args:
      work: the members.
    """
    rng = np.random.default_rng(0)
    side = (work.side, work.side, 1)
    labels = rng.integers(0, 10, NUM_IMAGES)
    means = rng.uniform(0.3, 0.7, (10, *side))
    images = np.clip(means[labels] + 0.2 * rng.standard_normal((NUM_IMAGES, *side)), 0, 1)
    size = (work.num_members, NUM_CHECKED + NUM_TIMED_STEPS, BATCH_SIZE)
    rows = rng.integers(0, NUM_IMAGES, size, dtype=np.int32)
    module = models.build(work.config, num_classes=10)
    first = jnp.asarray(images[:1], jnp.float32)
    keys = jax.random.split(jax.random.key(0), work.num_members)
    init = jax.jit(lambda keys: jax.lax.map(lambda key: module.init(key, first)["params"], keys))
    return Problem(
        work,
        jnp.asarray(images, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(rows),
        init(keys),
    )


class Trainer(NamedTuple):
    """A side of the comparison, which keeps the state of its members.

    Attributes:
      name: the name of the library with its version.
      advance: a function of two numbers that takes the steps from the first number to before the
        last for all members, waits, and returns the seconds.
      losses: a function that returns `[M]`, each member's mean cross-entropy on all images.
      memory: bytes of the compiled step; None where they are not known.
      compile_seconds: seconds until the first step could be taken, without the persistent cache.
    """

    name: str
    advance: Callable[[int, int], float]
    losses: Callable[[], np.ndarray]
    memory: int | None = None
    compile_seconds: float | None = None


def ours(problem: Problem, compute_dtype: str = "float32") -> Trainer:
    """Returns our side, compiled: `populations.train_step` in a loop, spread over the devices.

    Args:
      problem: members and data.
      compute_dtype: the type of forward and backward pass; parameters and Adam are float32.
    """
    module = models.build(problem.work.config, num_classes=10)
    optimizer = populations.make_optimizer("adam", LEARNING_RATE)
    apply_fn = models.in_precision(
        lambda params, x: jnp.asarray(module.apply({"params": params}, x)), compute_dtype
    )

    def steps(member, images, labels, first, last):
        state, rows = member

        def step(i, state):
            return populations.train_step(
                apply_fn, optimizer, state, images[rows[i]], labels[rows[i]]
            )

        return jax.lax.fori_loop(first, last, step, state)

    def mean_loss(params, images, labels):
        return losses.cross_entropy(apply_fn(params, images), labels).mean()

    begin = sharding.jit(sharding.spread(lambda params: populations.init_state(params, optimizer)))
    advance = sharding.spread(steps)
    run, read = sharding.jit(advance), sharding.jit(sharding.spread(mean_loss))
    state, data = begin(problem.params), (problem.images, problem.labels)
    with timing.cold():
        started = time.perf_counter()
        run((state, problem.rows), *data, 0, 0)
        seconds = time.perf_counter() - started
    level = sharding.CPU_LEVEL if jax.default_backend() == "cpu" else None
    options = None if level is None else {"xla_backend_optimization_level": level}
    compiled = (
        jax.jit(advance, compiler_options=options)
        .lower((state, problem.rows), *data, 0, 0)
        .compile()
    )

    def go(first: int, last: int) -> float:
        nonlocal state
        started = time.perf_counter()
        state = run((state, problem.rows), *data, first, last)
        return time.perf_counter() - started

    return Trainer(
        f"halfway, {compute_dtype}",
        go,
        lambda: np.asarray(read(state.params, *data)),
        timing.memory(compiled),
        seconds,
    )


def in_pieces(*turns: Callable[[int], float]) -> list[float]:
    """Returns the seconds of `NUM_TIMED_STEPS` steps of each side, from medians of pieces in turns.

    Args:
      *turns: a function of each side that runs the piece of a given number, from 0, and returns its
        seconds.
    """
    pieces: list[list[float]] = []
    started = time.perf_counter()
    for number in range(NUM_PIECES):
        if number >= LEAST_PIECES and time.perf_counter() - started > LONG:
            break
        pieces.append([turn(number) for turn in turns])
    return [NUM_PIECES * statistics.median(each) for each in zip(*pieces, strict=True)]


def turn(trainer: Trainer) -> Callable[[int], float]:
    """Returns a function that runs the piece of a given number and returns its seconds.

    Args:
      trainer: a trainer that has taken `NUM_CHECKED` steps, so that it is compiled.
    """

    def take(number: int) -> float:
        first = NUM_CHECKED + number * PIECE
        return trainer.advance(first, first + PIECE)

    return take


def check(first: Trainer, other: Trainer) -> float:
    """Returns the largest difference of the losses of two trainers.

    Args:
      first: a trainer that has taken `NUM_CHECKED` steps.
      other: another trainer that has taken them.

    Raises:
      RuntimeError: if the difference is over 1e-3, so that the sides do not train alike.
    """
    difference = float(np.abs(first.losses() - other.losses()).max())
    if not difference <= 1e-3:
        raise RuntimeError(
            f"after {NUM_CHECKED} steps the losses of {first.name} and {other.name} differ by "
            f"{difference:.2g}, more than 1e-3: they do not train alike"
        )
    return difference


_TPU = {"v4": 275e12, "v5 lite": 197e12, "v5e": 197e12, "v5": 459e12, "v6": 918e12}
_PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
    "H100": {"bfloat16": 989e12, "float32": 494e12},
    "H200": {"bfloat16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
    "V100": {"float32": 15.7e12},
} | {f"TPU {name}": {"bfloat16": peak, "float32": peak} for name, peak in _TPU.items()}


def peak(dtype: str) -> float | None:
    """Returns the operations a second that all devices reach by their data sheets.

    For float32 it is the rate of TF32 on a GPU that has it, and of bfloat16 products on a TPU.
    Programs of `sharding.jit` ask for full precision, so that they are far below this rate.

    Args:
      dtype: "bfloat16" or "float32".

    Returns:
      The rate; None where the device is not in the table.
    """
    kind = jax.devices()[0].device_kind
    for name, peaks in _PEAKS.items():
        if name in kind:
            each = peaks.get(dtype)
            return None if each is None else each * jax.device_count()
    return None


def ceiling() -> tuple[Callable[[int], float], float]:
    """Returns a float32 matrix product as a side of `in_pieces`, and its operations.

    It is run in turns with the sides that are compared to it. Operations are those of all devices;
    the cores of a CPU compute one product together.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))

    def take(number: int) -> float:
        del number
        started = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        return time.perf_counter() - started

    return take, 2.0 * size**3 * (1 if on_cpu else jax.device_count())


def compare(*trainers: Trainer) -> tuple[list[float], float]:
    """Returns each trainer's seconds for `NUM_TIMED_STEPS` steps, and the ceiling in operations/s.

    Args:
      *trainers: trainers that have taken `NUM_CHECKED` steps, so that they are compiled.
    """
    take, operations = ceiling()
    *seconds, product = in_pieces(*map(turn, trainers), take)
    return seconds, operations * NUM_PIECES / product


def version(module: Any) -> str:
    """Returns name and version of PyTorch without its build.

    Args:
      module: the module of PyTorch.
    """
    return f"torch {str(module.__version__).partition('+')[0]}"
