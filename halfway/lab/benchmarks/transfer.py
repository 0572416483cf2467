"""Transfer: a matrix of 64 surrogates and 64 targets with its controls, compilation included.

With --compilation_cache=off nothing is compiled before.
"""

import functools
import resource
import sys
import time

import jax
import jax.numpy as jnp

from halfway import attacks, losses, models, transfer
from halfway.lab.benchmarks import timing
from halfway.lab.benchmarks.timing import Row
from halfway.types import Array, Key, Params

NUM_MODELS, NUM_IMAGES, SIDE, WIDTH = 64, 1000, 28, 256
NUM_STEPS, EPSILON, LIMIT = 20, 0.1, 120.0
"""`LIMIT` is the seconds that the matrix may take."""


def rows(data_dir: str | None = None) -> list[Row]:
    """Returns the rows of the suite; it needs no data folder."""
    del data_dir
    ceiling = timing.ceiling()
    module = models.build({"kind": "mlp", "widths": (WIDTH,)}, num_classes=10)
    key_data, key_labels, *keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.uniform(key_data, (NUM_IMAGES, SIDE, SIDE, 1))
    labels = jax.random.randint(key_labels, (NUM_IMAGES,), 0, 10)

    def apply_fn(params: Params, x: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, x))

    def draw(key: Key) -> Params:
        keys = jax.random.split(key, NUM_MODELS)
        return jax.vmap(lambda k: module.init(k, images[:1])["params"])(keys)

    surrogates, targets = (jax.block_until_ready(jax.jit(draw)(key)) for key in keys)
    attack = functools.partial(attacks.pgd, loss_fn=losses.margin, num_steps=NUM_STEPS)
    started = time.perf_counter()
    grid = transfer.transfer_grid(
        {"surrogate": (apply_fn, surrogates)},
        {"target": (apply_fn, targets)},
        jax.random.key(1),
        images,
        labels,
        attack_fns={"pgd": attack},
        budgets=[EPSILON],
    )
    seconds = time.perf_counter() - started
    (cell,) = grid.cells.values()
    rate = transfer.success(cell, "target_correct")
    fooled = float(rate.num_fooled.sum() / max(1, int(rate.num_examples.sum())))
    # In forward passes, where a gradient counts as three: each surrogate evaluates the ends of the
    # attack and four kinds of points, each target the clean images and three kinds of points of
    # every surrogate.
    per_image = NUM_MODELS * (3 * NUM_STEPS + 5) + NUM_MODELS * (3 * NUM_MODELS + 1)
    operations = 2 * (SIDE**2 * WIDTH + WIDTH * 10) * NUM_IMAGES * per_image
    return [
        Row(
            f"transfer_{NUM_MODELS}x{NUM_MODELS}_mlp_cold",
            seconds,
            ratio=seconds / LIMIT,
            target=1.0,
            ceiling_share=operations / seconds / ceiling,
            peak_memory_bytes=_peak(),
            note=f"{NUM_IMAGES} images, PGD-{NUM_STEPS} and two controls; memory: the process's "
            f"peak; {fooled:.1%} fooled; ratio to {LIMIT:.0f} s",
        )
    ]


def _peak() -> int:
    """Returns the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
