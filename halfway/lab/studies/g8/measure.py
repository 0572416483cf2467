"""What κ is made of, on data seen again and on fresh data."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import meeting, populations, sharding
from halfway.data import Split, synthetic
from halfway.lab.config.settings import RunConfig
from halfway.lab.studies.g8.gap_paths import gap
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population, program_of, settings_of
from halfway.types import Array, Key, Params, Sample


def _memorizing(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns what κ is made of: inner products of the halves' gradients, and tr Cov(g) on S."""
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


PASSES = (1, 2, 4, 8, 16, 32)
"""Epochs after which memorization is looked at."""


def pass_steps(condition: Condition) -> tuple[int, ...]:
    """Returns the steps after which a half has been seen `PASSES` times, within training."""
    steps = [round(k * condition.num_examples / condition.batch_size) for k in PASSES]
    return tuple(min(max(1, step), condition.probe_steps[-1]) for step in steps)


def _memorization(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns what κ is made of after each number of passes over the own half."""
    del key, config
    (one,) = population
    condition = one.condition
    steps = pass_steps(condition)
    seen = populations.observe(condition, pool, _memorizing, steps=steps)
    axes = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES, "step": steps}
    parts = [
        tables.rows(np.asarray(value), axes, condition=condition.key, quantity=f"memorized_{name}")
        for name, value in seen.items()
    ]
    return Measured(tables.concat(parts))


MEMORIZATION = Measurement("memorization", 8, _memorization)


FRESH_STEPS = 120
"""Steps on fresh data over which κ is pooled, at least 100."""
FRESH_FACTOR = 8
"""Examples of B, and of what tr Cov(g) is taken from, over those of A."""


@functools.partial(sharding.jit, static_argnames=("program", "shape"))
def _fresh_program(members, distribution, settings, *, program: Condition, shape: tuple[int, ...]):
    """Runs that train on fresh batches: what κ is made of at every step, before it is taken."""
    optimizer = populations.make_optimizer(program.optimizer, settings["learning_rate"])
    apply_fn, size = program.apply_fn, program.batch_size

    def run(key, distribution):
        key_init, key_walk = jax.random.split(key)
        params = program.module.init(key_init, jnp.zeros((1, *shape)))["params"]

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
        return jax.lax.scan(step, state, jax.random.split(key_walk, FRESH_STEPS))[1]

    return sharding.spread(run)(members, distribution)


def _fresh(key: Key, population: Sequence[Population], pool: Split, config: RunConfig) -> Measured:
    """Returns what κ is made of where every batch is fresh, summed over steps, a run for each pair.

    The distribution is a Gaussian mixture of the pool's shape and number of classes, A the batch
    that is next, B eight times as many further examples.
    """
    del config
    (one,) = population
    condition = one.condition
    key_means, key_runs = jax.random.split(key)
    shape = tuple(pool.images.shape[1:])
    distribution = synthetic.gaussian_mixture(
        key_means, num_classes=condition.num_classes, shape=shape
    )
    members = jax.random.split(key_runs, condition.num_pairs)
    seen = _fresh_program(
        members, distribution, settings_of(condition), program=program_of(condition), shape=shape
    )
    names = ("own_own", "own_other", "trace_cov")
    axes = {"pair": range(condition.num_pairs)}
    parts = [
        tables.rows(
            np.asarray(value, np.float64).sum(-1),
            axes,
            condition=condition.key,
            quantity=f"fresh_{name}",
        )
        for name, value in zip(names, seen, strict=True)
    ]
    arrays = {name: np.asarray(value) for name, value in zip(names, seen, strict=True)}
    return Measured(tables.concat(parts), arrays)


FRESH = Measurement("fresh", 9, _fresh)
