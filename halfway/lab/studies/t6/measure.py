"""Whether a fresh model learns classes from perturbations alone (Ilyas et al. 2019)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses, populations, sharding, transfer, trees
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Key

TARGETS = ("uniform", "shifted")
"""How the labels t are chosen: at random whatever the class c is, or c + 1 mod C."""
INPUTS = ("attack", "noise", "unperturbed")
"""What a fresh model sees: images perturbed towards t, at random by as much, and as they are."""
NUM_EXAMPLES = 2048
"""Of a half that are perturbed and trained on, at most."""


@functools.partial(sharding.jit, static_argnames=("program",))
def _init_program(keys, images, *, program: Condition):
    """Returns fresh models, leaves `[P, 2, ...]`; apart, since random draws compile slowly."""

    def pair(keys, images):
        return jax.lax.map(lambda key: program.module.init(key, images)["params"], keys)

    return sharding.spread(pair, at_once=1)(keys, images)


@functools.partial(sharding.jit, static_argnames=("program", "attack_settings", "num_steps"))
def _program(
    members,
    images,
    labels,
    epsilon,
    settings,
    *,
    program: Condition,
    attack_settings: tuple[int, float],
    num_steps: int,
):
    """Returns what fresh models have learned, `[P, 2, targets, inputs]`, and counts of attacks."""
    apply_fn, num_classes = program.apply_fn, program.num_classes
    optimizer = populations.make_optimizer(
        program.optimizer, settings["learning_rate"], settings["weight_decay"]
    )

    def train(start, stream, targets, inputs, holdout):
        def step(state, i):
            rows = stream[i]
            return populations.train_step(apply_fn, optimizer, state, inputs[rows], targets[rows])

        state = populations.init_state(start, optimizer)
        state, _ = populations.fit(step, lambda params: (), state, probe_steps=(num_steps,))

        def share(x, labels):
            return 1 - losses.error(apply_fn(state.params, x), labels).mean()

        x, y = images[holdout], labels[holdout]
        found = {
            "accuracy": share(x, y),
            "next_accuracy": share(x, (y + 1) % num_classes),
            "own_accuracy": share(inputs, targets),
        }
        alive = trees.is_finite(state.params)
        return {name: jnp.where(alive, value, jnp.nan) for name, value in found.items()}

    def perturb(key, targets, surrogate, x, clean):
        attack: Any = attack_of(attack_settings, epsilon)
        logits_fn = functools.partial(apply_fn, surrogate)
        found = attack(logits_fn, key, x, clean, targets=targets)
        noise = transfer.matched_noise(key, x, found.adversarial)
        elsewhere = targets != clean  # where t is the class already, nothing is to be reached
        counts = {
            "num_hit": (found.success & elsewhere).sum(),
            "num_aimed": elsewhere.sum(),
            "matched": noise.matched.mean(),
        }
        return jnp.stack([found.adversarial, noise.points, x]), counts

    def direction(key, surrogate, start, rows, holdout):
        key_targets, key_perturb, key_order = jax.random.split(key, 3)
        x, clean, size = images[rows], labels[rows], rows.shape[0]
        uniform = jax.random.randint(key_targets, clean.shape, 0, num_classes, clean.dtype)
        targets = jnp.stack([uniform, (clean + 1) % num_classes])
        keys = jax.random.split(key_perturb, len(TARGETS))
        inputs, counts = jax.vmap(perturb, (0, 0, None, None, None))(
            keys, targets, surrogate, x, clean
        )
        stream = populations.index_stream(
            key_order, size, capacity=size, num_steps=num_steps, batch_size=program.batch_size
        )
        # One start and one order of batches for all: they differ by what they see alone.
        each_input = jax.vmap(train, (None, None, None, 0, None))
        each_target = jax.vmap(each_input, (None, None, 0, 0, None))
        return each_target(start, stream, targets, inputs, holdout) | counts

    def pair(member):
        return jax.vmap(direction, (0, 0, 0, 0, None))(*member)

    # Twelve models of a pair at once; perturbed images of all pairs would not fit the memory.
    return sharding.spread(pair, at_once=1)(members)


def _features(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns accuracies on S, labels clean, of fresh models trained on each model's perturbations.

    `feature_accuracy` for the class c, `feature_next_accuracy` for c + 1, `feature_own_accuracy` on
    what they trained on, by the model attacked ("surrogate") and what was seen ("TARGETS, INPUTS");
    by targets `feature_num_hit` of `feature_num_aimed`, perturbed images that the attacked model
    takes for t, of those of another class, and `feature_matched`, the share of random perturbations
    whose norms could be matched.
    """
    (one,) = population
    condition, epsilon = one.condition, float(config.attack.epsilon)
    images = jnp.asarray(pool.images, jnp.float32)
    program = populations.program_of(condition)
    per_pair = jax.vmap(lambda p: jax.random.split(jax.random.fold_in(key, p), (2, 2)))
    keys = per_pair(jnp.arange(condition.num_pairs))
    starts = _init_program(keys[..., 0], images[:1], program=program)
    size = min(condition.num_examples, NUM_EXAMPLES)
    rows = jnp.stack([half.indices[:, :size] for half in (one.halves.a, one.halves.b)], 1)
    found = _program(
        (keys[..., 1], one.params, starts, rows, one.halves.s.indices),
        images,
        jnp.asarray(pool.labels, jnp.int32),
        jnp.float32(epsilon),
        populations.settings_of(condition),
        program=program,
        attack_settings=settings_of(config),
        num_steps=condition.probe_steps[-1],
    )
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    seen = [seen_name(targets, inputs) for targets in TARGETS for inputs in INPUTS]
    parts = []
    for name, values in found.items():
        array = np.asarray(values, np.float64).reshape(condition.num_pairs, 2, -1)
        axes = both | {"subset": seen if array.shape[-1] == len(seen) else TARGETS}
        parts.append(
            tables.rows(
                array, axes, condition=condition.key, budget=epsilon, quantity=f"feature_{name}"
            )
        )
    return Measured(tables.concat(parts))


def seen_name(targets: str, inputs: str) -> str:
    """Returns the subset of records about models that saw such inputs with such labels."""
    return f"{targets}, {inputs}"


FEATURES = Measurement("features", 17, _features)
