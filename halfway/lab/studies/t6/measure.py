"""Whether a fresh model learns classes from perturbations alone (Ilyas et al. 2019)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr

from halfway import losses, populations, transfer, trees
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.records import Measurement
from halfway.types import Array, Key, Params

TARGETS = ("uniform", "shifted")
"""How the labels t are chosen: at random whatever the class c is, or c + 1 mod C."""
INPUTS = ("attack", "noise", "unperturbed")
"""What a fresh model sees: images perturbed towards t, at random by as much, and as they are."""
NUM_EXAMPLES = 2048
"""Of a half that are perturbed and trained on, at most."""


def _fresh(
    start: Params,
    stream: Array,
    targets: Array,
    inputs: Array,
    holdout: tuple[Array, Array],
    *,
    settings: Mapping[str, Array],
    program: Program,
) -> dict[str, Array]:
    """Returns accuracies of a model trained on inputs labelled t, NaN where it diverged.

    Args:
      start: its weights before training.
      stream: `[T, B]`, the batch of each step.
      targets: t `[N]`.
      inputs: `[N, ...]`.
      holdout: images and clean labels of S.
      settings: of training.
      program: of the condition.
    """
    trained, apply_fn = program.condition, program.apply_fn
    optimizer = populations.make_optimizer(
        trained.optimizer, settings["learning_rate"], settings["weight_decay"]
    )

    def step(state, i):
        rows = stream[i]
        return populations.train_step(apply_fn, optimizer, state, inputs[rows], targets[rows])

    state = populations.init_state(start, optimizer)
    state, _ = populations.fit(step, lambda params: (), state, probe_steps=trained.probe_steps)

    def share(images, labels):
        return 1 - losses.error(apply_fn(state.params, images), labels).mean()

    images, labels = holdout
    accuracies = {
        "accuracy": share(images, labels),
        "next_accuracy": share(images, (labels + 1) % trained.num_classes),
        "own_accuracy": share(inputs, targets),
    }
    alive = trees.is_finite(state.params)
    return {name: jnp.where(alive, value, jnp.nan) for name, value in accuracies.items()}


def _perturbed(
    key: Key,
    targets: Array,
    surrogate: Params,
    images: Array,
    labels: Array,
    *,
    epsilon: Array,
    program: Program,
) -> tuple[Array, dict[str, Array]]:
    """Returns what fresh models see, `[inputs, N, ...]`, and how often the attack reached t."""
    attack: Any = program.attack(epsilon)  # with targets, which an `Attack` need not take
    key_attack, key_noise = jax.random.split(key)
    logits_fn = functools.partial(program.apply_fn, surrogate)
    attacked = attack(logits_fn, key_attack, images, labels, targets=targets)
    noise = transfer.matched_noise(key_noise, images, attacked.adversarial)
    elsewhere = targets != labels  # where t is the class already, nothing is to be reached
    counts = {
        "num_hit": (attacked.success & elsewhere).sum(),
        "num_aimed": elsewhere.sum(),
        "matched": noise.matched.mean(),
    }
    return jnp.stack([attacked.adversarial, noise.points, images]), counts


def _pair(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns what fresh models have learned, `[2, targets, inputs]`, and counts `[2, targets]`.

    `pair.extra` are the rows of both halves that are perturbed `[2, N]`, `shared.extra` the
    settings of training.
    """
    trained, holdout = program.condition, pair.halves.s.indices
    of_holdout = shared.images[holdout], shared.labels[holdout]
    fresh = functools.partial(_fresh, settings=shared.extra, program=program)
    perturbed = functools.partial(_perturbed, epsilon=shared.epsilon, program=program)

    def direction(key, surrogate, start, rows):
        key_targets, key_perturb, key_order = jax.random.split(key, 3)
        images, labels, size = shared.images[rows], shared.labels[rows], rows.shape[0]
        uniform = jax.random.randint(
            key_targets, labels.shape, 0, trained.num_classes, labels.dtype
        )
        targets = jnp.stack([uniform, (labels + 1) % trained.num_classes])
        keys = jax.random.split(key_perturb, len(TARGETS))
        inputs, counts = jax.vmap(perturbed, (0, 0, None, None, None))(
            keys, targets, surrogate, images, labels
        )
        stream = populations.index_stream(
            key_order,
            size,
            capacity=size,
            num_steps=trained.probe_steps[-1],
            batch_size=trained.batch_size,
        )
        # One start and one order of batches for all: they differ by what they see alone.
        each_input = jax.vmap(fresh, (None, None, None, 0, None))
        each_target = jax.vmap(each_input, (None, None, 0, 0, None))
        return each_target(start, stream, targets, inputs, of_holdout) | counts

    def init(key):
        return trained.module.init(key, shared.images[:1])["params"]

    key_start, key_run = jax.random.split(pair.key)
    starts = jax.lax.map(init, jax.random.split(key_start))
    return jax.vmap(direction)(jax.random.split(key_run), pair.params, starts, pair.extra)


def _measure(context: Context) -> xr.Dataset:
    """Returns accuracies on S, labels clean, of fresh models trained on each model's perturbations.

    `accuracy` for the class c, `next_accuracy` for c + 1, `own_accuracy` on what they trained on
    (pair, surrogate, targets, inputs), by the model attacked and by what was seen. `num_hit` of
    `num_aimed` (pair, surrogate, targets): perturbed images that the attacked model takes for t, of
    those of another class; and `matched`, the share of random perturbations whose norms could be
    matched.
    """
    halves = context.population.halves
    size = min(context.condition.num_examples, NUM_EXAMPLES)
    # Twelve models of a pair at once; perturbed images of all pairs would not fit the memory.
    arrays = context.over_pairs(
        _pair,
        extra=jnp.stack([half.indices[:, :size] for half in (halves.a, halves.b)], 1),
        shared_extra=populations.hyperparameters(context.condition),
        at_once=1,
        trains=True,
    )
    dims = "pair", "surrogate", "targets", "inputs"
    numbers = {name: (dims[: values.ndim], values) for name, values in arrays.items()}
    return context.dataset(numbers, targets=TARGETS, inputs=INPUTS)


FEATURES = Measurement("features", _measure)
