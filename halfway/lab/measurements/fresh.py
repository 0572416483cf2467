"""What κ is made of (P3), and κ where every batch is fresh, so that nothing can be memorized."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import meeting, populations
from halfway.data import synthetic
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.measurements.learning import RatioTerms
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured, Measurement
from halfway.populations import Condition
from halfway.types import Array, Sample

PRODUCTS = ("own_own", "own_other", "trace_cov")
"""What κ is made of: ‖g_A‖², ⟨g_A, g_B⟩ and tr Cov(g)."""
MOST_STEPS = 120
"""Steps on fresh data over which κ is pooled; fewer where the data set has no more batches."""
ENOUGH = 100
"""Batches that a data set must have to be the fresh data itself."""
HELD_OUT = 32
"""Batches that B has as many examples as; tr Cov(g) is taken from each of them in turn."""


def fresh_condition(config: RunConfig) -> Condition:
    """Returns the condition whose model, optimizer and batch size runs on fresh data have.

    Args:
      config: of the run.
    """
    return condition(config, config.architectures[0])


def kappa_terms(
    size: int, own_own: np.ndarray, own_other: np.ndarray, trace_cov: np.ndarray
) -> RatioTerms:
    """Returns the terms of κ = 1 − n (‖g_A‖² − ⟨g_A, g_B⟩)/tr Cov(g) (P3).

    Args:
      size: n, examples of A.
      own_own, own_other, trace_cov: `[P]`, see `PRODUCTS`.
    """
    return RatioTerms(trace_cov - size * (own_own - own_other), trace_cov)


def fresh_terms(fresh: Measured, batch_size: int) -> RatioTerms:
    """Returns numerators and denominators `[P]` of κ on fresh data, summed over steps.

    Args:
      fresh: of `FRESH`.
      batch_size: of the batches, the n of κ.
    """
    sums = (fresh.read(name, "pair", "step").sum(-1) for name in PRODUCTS)
    return kappa_terms(batch_size, *sums)


def num_batches(pool_size: int, batch_size: int) -> int:
    """Returns how many fresh batches a pool has beside B; 0 where it is too small to be used.

    Args:
      pool_size: examples of the pool.
      batch_size: n, examples of a batch.
    """
    if pool_size < ENOUGH * batch_size:
        return 0
    return min(MOST_STEPS, pool_size // batch_size - HELD_OUT)


def _fresh(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns `PRODUCTS` `[T]` of a model that trains on fresh batches, before each of T steps.

    `pair.extra` are the keys of the steps `[T]`; `shared.extra` the learning rate and the
    distribution of the data, None for the pool. The pair's models and halves are not looked at.
    """
    learning_rate, distribution = shared.extra
    apply_fn, size = program.apply_fn, program.condition.batch_size
    optimizer = populations.make_optimizer(program.condition.optimizer, learning_rate)
    key_start, key_order = jax.random.split(pair.key)
    num_steps = pair.extra.shape[0]
    if distribution is None:
        order = jax.random.permutation(key_order, shared.labels.shape[0])
        held, rest = jnp.split(order[: (HELD_OUT + num_steps) * size], [HELD_OUT * size])
        others = shared.images[held], shared.labels[held]
        batches = rest.reshape(num_steps, size)
    else:
        others = distribution.sample(key_order, HELD_OUT * size)
        batches = pair.extra
    blocks = [part.reshape(HELD_OUT, size, *part.shape[1:]) for part in others]

    def step(state, now):
        index, batch = now
        images, labels = (
            (shared.images[batch], shared.labels[batch])
            if distribution is None
            else distribution.sample(batch, size)
        )
        both = jnp.concatenate([images, others[0]])
        rows = jnp.arange(both.shape[0])
        a, b = (
            Sample(rows[part], part_labels, jnp.ones(part_labels.shape, bool))
            for part, part_labels in ((slice(size), labels), (slice(size, None), others[1]))
        )
        products = populations.gradient_products(apply_fn, state.params, both, a, b)
        scale = meeting.noise_scale(
            apply_fn, state.params, *(part[index % HELD_OUT] for part in blocks)
        )
        state = populations.train_step(apply_fn, optimizer, state, images, labels)
        return state, (products["own_own"], products["own_other"], scale.noise)

    params = program.condition.module.init(key_start, shared.images[:1])["params"]
    state = populations.init_state(params, optimizer)
    _, values = jax.lax.scan(step, state, (jnp.arange(num_steps), batches))
    return dict(zip(PRODUCTS, values, strict=True))


def _measure(context: Context) -> xr.Dataset:
    """Returns what κ is made of where every batch is fresh, in a run for each pair.

    `PRODUCTS` (pair, step), A the batch that is next, B as many further examples as `HELD_OUT`
    batches have, drawn once for a run and never trained on; tr Cov(g) is that of a part of B, the
    next one at each step. The data are the pool where it has `ENOUGH` batches (`of_pool` is 1),
    every example met once at most; else a Gaussian mixture of its shape and number of classes.
    """
    condition = context.condition
    number = num_batches(len(context.pool.labels), condition.batch_size)
    distribution = None
    if not number:
        distribution = synthetic.gaussian_mixture(
            named_key(context.key, "distribution"),
            num_classes=condition.num_classes,
            shape=context.pool.images.shape[1:],
        )
    num_steps = number or MOST_STEPS
    keys = jax.vmap(lambda key: jax.random.split(key, num_steps))(context.pair_keys("steps"))
    extra = jnp.float32(condition.learning_rate), distribution
    arrays = context.over_pairs(_fresh, extra=keys, shared_extra=extra, trains=True)
    walks = {name: (("pair", "step"), values) for name, values in arrays.items()}
    return context.dataset(walks | {"of_pool": ((), number > 0)}, step=np.arange(num_steps))


FRESH = Measurement("fresh_batches", _measure)
