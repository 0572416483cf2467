"""The walk of one pair: where it begins, how it advances, and what a probe reads on the way."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import meeting, models, sharding
from halfway.keys import named_key
from halfway.populations import pairs, training
from halfway.populations.pairs import Condition
from halfway.populations.training import Walk
from halfway.types import Array, Key, Params, Sample


class Batches(NamedTuple):
    """The batches of both models of a pair, one for each of T steps.

    Attributes:
      rows: `[2, T, B]` int32, rows of the pool.
      labels: `[2, T, B]` int32, the labels that are trained on.
    """

    rows: Array
    labels: Array


def begin_pair(
    key: Key,
    params: Params,
    drawn: pairs.Drawn,
    settings: Mapping[str, Array],
    *,
    program: Condition,
) -> tuple[Walk, Batches]:
    """Returns the walk of both models of a pair before its first step, and all their batches.

    Args:
      key: the PRNG key of the pair.
      params: initial parameters, leaves `[2, ...]`, from `init_pair`.
      drawn: the halves of the pair, from `sample_pair`.
      settings: data of the condition, from `hyperparameters`.
      program: what shapes the compiled program, from `program_of`.

    Returns:
      the walk, leaves `[2, ...]`, and the batches.
    """
    optimizer = _optimizer(settings, program)
    num_examples, capacity = settings["num_examples"], program.capacity or 0
    batch: dict[str, Any] = {"batch_size": program.batch_size}
    if program.batch_capacity:
        # In a row of that capacity the batch comes first.
        batch = {"batch_size": settings["batch_size"], "batch_capacity": program.batch_capacity}
    if program.on_holdout:
        num_examples = capacity = program.num_holdout
    trunk = _trunk(key, drawn, num_examples, program) if program.trunk_steps else None

    def model(order, params, sample):
        stream = training.index_stream(
            order, num_examples, capacity=capacity, num_steps=program.probe_steps[-1], **batch
        )
        batches = Batches(sample.indices[stream], sample.labels[stream])
        if trunk is not None:
            batches = jax.tree.map(
                lambda together, alone: jnp.concatenate([together, alone[program.trunk_steps :]]),
                trunk,
                batches,
            )
        return training.begin_walk(training.init_state(params, optimizer)), batches

    *_, orders = pairs.split_key(key)
    orders = pairs.share_key(orders, settings["shared_order"])
    return jax.vmap(model)(orders, params, _trained(drawn, program))


def advance_pair(
    walk: Walk,
    batches: Batches,
    drawn: pairs.Drawn,
    images: Array,
    settings: Mapping[str, Array],
    first: Array | int,
    last: Array | int,
    *,
    program: Condition,
) -> Walk:
    """Returns the walk of both models of a pair after the steps `first` to `last` - 1.

    Args:
      walk: the walk after `first` steps, leaves `[2, ...]`.
      batches: the batches of all steps, from `begin_pair`.
      drawn: the halves of the pair, from `sample_pair`.
      images: images `[N, H, W, D]` of the pool.
      settings: data of the condition, from `hyperparameters`.
      first: number of steps taken before, see `training.advance_walk`.
      last: number of steps taken after.
      program: what shapes the compiled program, from `program_of`.
    """
    optimizer, axis = _optimizer(settings, program), sharding.data_axis()
    apply_fn = models.in_precision(program.apply_fn, program.compute_dtype)
    loss_fn = training.DESCENDED[program.loss]
    mask = None
    if program.batch_capacity:
        mask = jnp.arange(program.batch_capacity) < settings["batch_size"]
    if axis is not None:
        mask = jnp.ones(program.batch_size, bool) if mask is None else mask
        mask = sharding.share_mask(mask, axis)

    def model(walk, batches, sample):
        def step(state, i):
            rows, labels = batches.rows[i], batches.labels[i]
            if axis is not None:
                rows, labels = sharding.share(rows, axis), sharding.share(labels, axis)
            x = images[rows]
            return training.train_step(
                apply_fn, optimizer, state, x, labels, mask, loss_fn=loss_fn, axis=axis
            )

        def stop(params):
            mean_losses = training.landscape_losses(
                program.apply_fn, params, images, sample, axis=axis
            )
            return mean_losses["cross_entropy"] <= settings["stop_loss"]

        stop_fn = stop if program.stop_loss else None
        return training.advance_walk(step, walk, first, last, stop_fn=stop_fn)

    return sharding.lift(model)(walk, batches, _trained(drawn, program))


Probe = Callable[[Condition, Key, Params, Mapping[str, Sample], Array], Any]
"""`(program, key, params, samples, images) -> pytree`, of one model: `program` has its `apply_fn`
and nothing of its training, `key` is the same at every step, `samples` are "own" (with the labels
trained on), "other" and "holdout", and `images` are those of the pool. The axis `MODEL` holds both
models of the pair."""
MODEL = "model"
"""The name of the axis of the two models of a pair, for collectives in a probe."""


def look_at_pair(
    key: Key,
    params: Params,
    drawn: pairs.Drawn,
    images: Array,
    *,
    program: Condition,
    probe_fn: Probe,
) -> Any:
    """Returns what a probe reads of both models of a pair, leaves `[2, ...]`.

    Args:
      key: the PRNG key of the pair.
      params: parameters of both models, leaves `[2, ...]`.
      drawn: the halves of the pair, from `sample_pair`.
      images: images `[N, H, W, D]` of the pool.
      program: what shapes the compiled program; the probe gets it.
      probe_fn: the probe, a function of one model.
    """

    def model(probe_key, params, own_half, other_half):
        samples = {"own": own_half, "other": other_half, "holdout": drawn.halves.s}
        return probe_fn(program, probe_key, params, samples, images)

    keys = jax.random.split(named_key(key, "probe"))
    return jax.vmap(model, axis_name=MODEL)(keys, params, *_sides(drawn))


def probe_landscapes(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Any]:
    """Returns landscapes and gradient products of one model, the `Probe` of every training.

    Args:
      program: what shapes the model, for its `apply_fn`.
      key: not used.
      params: parameters of the model.
      samples: "own" (with the labels trained on), "other" and "holdout".
      images: images `[N, H, W, D]` of the pool.

    Returns:
      `landscapes[sample][loss]` and `products[name]`, see `populations.Population`.
    """
    del key
    axis = sharding.data_axis()

    def half(sample):
        return training.losses_and_gradient(program.apply_fn, params, images, sample, axis=axis)

    # One after the other: half the memory of both at once.
    names = ("own", "other")
    halves = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(samples[name] for name in names))
    means, gradients = jax.lax.map(half, halves)
    own_half, other_half = (
        jax.tree.map(lambda leaf, i=i: leaf[i], (means, gradients)) for i in (0, 1)
    )
    holdout = training.landscape_losses(
        program.apply_fn, params, images, samples["holdout"], axis=axis
    )
    return {
        "landscapes": {"own": own_half[0], "other": other_half[0], "holdout": holdout},
        "products": training.inner_products(own_half[1], other_half[1]),
    }


def probe_constants(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, dict[str, Array]]:
    """Returns landscapes of the best constant predictor on the own half, a `Probe`.

    Args:
      program: has the number of classes.
      key: not used.
      params: not used.
      samples: "own" (with the labels trained on), "other" and "holdout".
      images: images `[N, H, W, D]` of the pool.

    Returns:
      `[sample][loss]`, scalars.
    """
    del key, params
    own_half = samples["own"]
    constant = meeting.constant_predictor(own_half.labels, own_half.mask, program.num_classes)
    return {
        name: training.landscape_losses(_constant_fn, constant, images, sample)
        for name, sample in samples.items()
    }


def _sides(drawn: pairs.Drawn) -> tuple[Sample, Sample]:
    """Returns each model's own half, with the labels it trains on, and the other half."""
    own_halves = pairs.stack_halves(drawn.halves)
    other_halves = jax.tree.map(lambda leaf: leaf[::-1], own_halves)
    return own_halves._replace(labels=drawn.trained_labels), other_halves


def _trained(drawn: pairs.Drawn, program: Condition) -> Sample:
    """Returns what each model trains on, `[2, N]`."""
    if program.on_holdout:
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), drawn.halves.s)
    return _sides(drawn)[0]


def _optimizer(settings: Mapping[str, Array], program: Condition) -> Any:
    """Returns the optimizer of a condition."""
    return training.make_optimizer(
        program.optimizer, settings["learning_rate"], settings["weight_decay"]
    )


def _trunk(key: Key, drawn: pairs.Drawn, num_examples: Array | int, program: Condition) -> Batches:
    """Returns the batches of the trunk, `[T, B]`, drawn from both halves."""
    capacity = program.capacity or 0
    stream = training.index_stream(
        named_key(key, "trunk"),
        2 * num_examples,
        capacity=2 * capacity,
        num_steps=program.trunk_steps,
        batch_size=program.batch_size,
    )
    # The first n positions are A's, the next n are B's.
    side = (stream >= num_examples).astype(int)
    place = stream - side * num_examples
    both = pairs.stack_halves(drawn.halves)
    return Batches(both.indices[side, place], drawn.trained_labels[side, place])


def _constant_fn(logits: Array, x: Array) -> Array:
    """Returns the same logits for every input, `[B, C]`."""
    return jnp.broadcast_to(logits, (x.shape[0], logits.shape[0]))
