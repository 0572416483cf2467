"""The walk of one pair in pieces: where it begins, how it goes on, what is seen on the way."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import meeting, models, sharding
from halfway.populations import pairs, training
from halfway.populations.pairs import Condition
from halfway.populations.training import Walk
from halfway.types import Array, Key, Params, Sample


class Batches(NamedTuple):
    """What both models of a pair see at each step.

    Attributes:
      rows: `[2, T, B]` of the pool.
      labels: `[2, T, B]` that they are trained on.
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
    """Returns where both models of a pair begin, leaves `[2, ...]`, and all their batches.

    Args:
      key: of the pair.
      params: leaves `[2, ...]`, from `init`.
      drawn: from `draw`.
      settings: see `settings_of`.
      program: see `program_of`.
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
    """Returns where both models of a pair are after the steps `first` to `last` - 1.

    Args:
      walk: after `first` steps, leaves `[2, ...]`.
      batches: from `begin`.
      drawn: from `draw`.
      images: `[N, H, W, D]` of the pool.
      settings: see `settings_of`.
      first, last: see `training.advance_walk`.
      program: see `program_of`.
    """
    optimizer, axis = _optimizer(settings, program), sharding.data_axis()
    apply_fn = models.in_precision(program.apply_fn, program.compute_dtype)
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
            return training.train_step(
                apply_fn, optimizer, state, images[rows], labels, mask, axis=axis
            )

        def stop(params):
            found = training.landscape_losses(program.apply_fn, params, images, sample, axis=axis)
            return found["cross_entropy"] <= settings["stop_loss"]

        stop_fn = stop if program.stop_loss else None
        return training.advance_walk(step, walk, first, last, stop_fn=stop_fn)

    return jax.vmap(model)(walk, batches, _trained(drawn, program))


Probe = Callable[[Condition, Key, Params, Mapping[str, Sample], Array], Any]
"""`(program, key, params, samples, images) -> pytree`, of one model: `program` has its `apply_fn`,
`key` is the same at every step, `samples` are "own" (with the labels trained on), "other" and
"holdout", `images` those of the pool. The other model of the pair is on the axis `MODEL`."""
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
    """Returns what a probe sees of both models of a pair, leaves `[2, ...]`.

    Args:
      key: of the pair.
      params: leaves `[2, ...]`.
      drawn: from `draw`.
      images: `[N, H, W, D]` of the pool.
      program: see `program_of`.
      probe_fn: what to look at.
    """

    def model(probe_key, params, own, other):
        samples = {"own": own, "other": other, "holdout": drawn.halves.s}
        return probe_fn(program, probe_key, params, samples, images)

    keys = jax.random.split(jax.random.fold_in(key, _PROBE))
    return jax.vmap(model, axis_name=MODEL)(keys, params, *_sides(drawn))


def probe_landscapes(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Any]:
    """Returns what is read along every training, a `Probe`: landscapes and gradient products.

    Args:
      program, key, params, samples, images: see `Probe`.

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
    found, gradients = jax.lax.map(half, halves)
    own, other = (jax.tree.map(lambda leaf, i=i: leaf[i], (found, gradients)) for i in (0, 1))
    holdout = training.landscape_losses(
        program.apply_fn, params, images, samples["holdout"], axis=axis
    )
    return {
        "landscapes": {"own": own[0], "other": other[0], "holdout": holdout},
        "products": training.inner_products(own[1], other[1]),
    }


def probe_constants(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, dict[str, Array]]:
    """Returns landscapes of the best constant predictor on the own half, a `Probe`.

    Args:
      program, key, params, samples, images: see `Probe`.
    """
    del key, params
    own = samples["own"]
    constant = meeting.constant_predictor(own.labels, own.mask, program.num_classes)
    return {
        name: training.landscape_losses(_constant_fn, constant, images, sample)
        for name, sample in samples.items()
    }


def train_pair(
    key: Key,
    images: Array,
    labels: Array,
    settings: Mapping[str, Array],
    *,
    program: Condition,
    probe_steps: Sequence[int],
) -> dict[str, Any]:
    """Returns one trained pair: the fields of `populations.Population` without the leading axis.

    Args:
      key: consumed.
      images: `[N, H, W, D]` of the pool.
      labels: `[N]`, clean.
      settings: see `settings_of`.
      program: see `program_of`.
      probe_steps: T, the last of them the program's.
    """
    steps = training.check_steps(probe_steps, stops=program.stop_loss > 0)
    drawn = pairs.draw_pair(key, labels, settings, program=program)
    params = pairs.init_pair(key, images, settings, program=program)
    walk, batches = begin_pair(key, params, drawn, settings, program=program)
    see = functools.partial(look_at_pair, key, drawn=drawn, images=images, program=program)

    def segment(walk, limits):
        walk = advance_pair(walk, batches, drawn, images, settings, *limits, program=program)
        return walk, see(walk.state.params, probe_fn=probe_landscapes)

    walk, seen = jax.lax.scan(segment, walk, jnp.asarray([(0, *steps[:-1]), steps]).T)
    return drawn._asdict() | {
        "params": walk.state.params,
        "num_steps": walk.state.step,
        "constant": see(walk.state.params, probe_fn=probe_constants),
        **jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), seen),
    }


def _sides(drawn: pairs.Drawn) -> tuple[Sample, Sample]:
    """Returns each model's own half, with the labels it trains on, and the other half."""
    own = pairs.stack_halves(drawn.halves)
    other = jax.tree.map(lambda leaf: leaf[::-1], own)
    return own._replace(labels=drawn.trained_labels), other


def _trained(drawn: pairs.Drawn, program: Condition) -> Sample:
    """Returns what each model trains on, `[2, N]`."""
    if program.on_holdout:
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), drawn.halves.s)
    return _sides(drawn)[0]


def _optimizer(settings: Mapping[str, Array], program: Condition) -> Any:
    return training.make_optimizer(
        program.optimizer, settings["learning_rate"], settings["weight_decay"]
    )


_TRUNK, _PROBE = 4, 5
"""Folded into a pair's key, beyond the keys that it is split into."""


def _trunk(key: Key, drawn: pairs.Drawn, num_examples: Array | int, program: Condition) -> Batches:
    """Returns the batches of both halves that the trunk sees, `[T, B]`."""
    capacity = program.capacity or 0
    stream = training.index_stream(
        jax.random.fold_in(key, _TRUNK),
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
    return jnp.broadcast_to(logits, (x.shape[0], logits.shape[0]))
