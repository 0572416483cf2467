"""What κ is made of, on data seen again and on fresh data."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import meeting, populations
from halfway.data import synthetic
from halfway.keys import named_key
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.studies.g8.gap_paths import gap
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

PRODUCTS = ("own_own", "own_other", "trace_cov")
"""What κ is made of: ‖g_A‖², ⟨g_A, g_B⟩ and tr Cov(g)."""
PASSES = (1, 2, 4, 8, 16, 32)
"""Epochs after which memorization is looked at."""


def pass_steps(condition: Condition) -> tuple[int, ...]:
    """Returns the steps after which a half has been seen `PASSES` times, within training."""
    steps = [round(k * condition.num_examples / condition.batch_size) for k in PASSES]
    return tuple(min(max(1, step), condition.probe_steps[-1]) for step in steps)


def _memorizing(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns `PRODUCTS`, the covariance being that on S, and the gap in cross-entropy: a probe."""
    del key
    products = populations.gradient_products(
        program.apply_fn, params, images, samples["own"], samples["other"]
    )
    holdout = samples["holdout"]
    scale = meeting.noise_scale(
        program.apply_fn, params, images[holdout.indices], holdout.labels, holdout.mask
    )
    return {
        "own_own": products["own_own"],
        "own_other": products["own_other"],
        "trace_cov": scale.noise,
        "gap": gap(program, params, samples, images),
    }


def _measure_memorization(context: Context) -> xr.Dataset:
    """Returns what κ is made of after each number of passes over the own half.

    `PRODUCTS` and `gap`, that in cross-entropy (pair, model, passes).
    """
    watched = context.along_training(_memorizing, pass_steps(context.condition))
    dims = "pair", "model", "passes"
    return context.dataset({name: (dims, v) for name, v in watched.items()}, passes=PASSES)


MEMORIZATION = Measurement("memorization", _measure_memorization)


FRESH_STEPS = 120
"""Steps on fresh data over which κ is pooled, at least 100."""
FRESH_FACTOR = 8
"""Examples of B, and of what tr Cov(g) is taken from, over those of A."""


def _fresh(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns `PRODUCTS` `[T]` of a model that trains on fresh batches, before each of T steps.

    `pair.extra` are the keys of the steps `[T]`, `shared.extra` the distribution of the data and
    the learning rate. The pair's models and halves are not looked at.
    """
    distribution, learning_rate = shared.extra
    optimizer = populations.make_optimizer(program.condition.optimizer, learning_rate)
    apply_fn, size = program.apply_fn, program.condition.batch_size
    example = jnp.zeros((1, *shared.images.shape[1:]))
    params = program.condition.module.init(pair.key, example)["params"]

    def step(state, key):
        key_a, key_b = jax.random.split(key)
        images, labels = (
            jnp.concatenate(parts)
            for parts in zip(
                distribution.sample(key_a, size),
                distribution.sample(key_b, FRESH_FACTOR * size),
                strict=True,
            )
        )
        rows = jnp.arange(images.shape[0])
        a, b = (
            Sample(rows[part], labels[part], jnp.ones(labels[part].shape, bool))
            for part in (slice(size), slice(size, None))
        )
        products = populations.gradient_products(apply_fn, state.params, images, a, b)
        scale = meeting.noise_scale(apply_fn, state.params, images[size:], labels[size:])
        state = populations.train_step(apply_fn, optimizer, state, images[:size], labels[:size])
        return state, (products["own_own"], products["own_other"], scale.noise)

    state = populations.init_state(params, optimizer)
    _, values = jax.lax.scan(step, state, pair.extra)
    return dict(zip(PRODUCTS, values, strict=True))


def _measure_fresh(context: Context) -> xr.Dataset:
    """Returns what κ is made of where every batch is fresh, in a run for each pair.

    `PRODUCTS` (pair, step). The distribution is a Gaussian mixture of the pool's shape and number
    of classes, A the batch that is next, B eight times as many further examples.
    """
    condition = context.condition
    distribution = synthetic.gaussian_mixture(
        named_key(context.key, "distribution"),
        num_classes=condition.num_classes,
        shape=context.pool.images.shape[1:],
    )
    keys = jax.vmap(lambda key: jax.random.split(key, FRESH_STEPS))(context.pair_keys("steps"))
    extra = distribution, jnp.float32(condition.learning_rate)
    arrays = context.over_pairs(_fresh, extra=keys, shared_extra=extra, trains=True)
    numbers = {name: (("pair", "step"), values) for name, values in arrays.items()}
    return context.dataset(numbers, step=np.arange(FRESH_STEPS))


FRESH = Measurement("fresh", _measure_fresh)
