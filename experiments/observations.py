"""What is measured of learning beyond its landscapes: agreement, learning times, barriers."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import landscape_measure, tables
from experiments.conditions import Config
from experiments.gap_paths import gap
from experiments.landscape_measure import Sizes
from experiments.study import Measured, Measurement
from halfway import agreement, classes, halves, placement, populations, ranks, signals, training
from halfway.data import Split, synthetic
from halfway.halves import Sample
from halfway.landscapes import paths
from halfway.pairs import program_of, settings_of
from halfway.populations import Condition, Population
from halfway.types import Array, Key, Params

NUM_PERMUTATIONS = 100
"""Of learning times within a stratum, whose mean is the control of G7."""


def _predictions(population: Population, rows: Array, images: Array) -> np.ndarray:
    """Returns `[P, 2, B]` classes that both models of each pair predict on rows `[P, B]`."""
    apply_fn = population.apply_fn

    def pair(member, images):
        params, rows = member
        logits = jax.vmap(apply_fn, (0, None))(params, images[rows])
        return jnp.argmax(logits, -1)

    run = placement.jit(placement.spread(pair))
    return np.asarray(run((population.params, rows), images))


def _agreement(key: Key, population: Sequence[Population], pool: Split, config: Config) -> Measured:
    """Returns on how many examples of S, labels clean, models of a pair differ and err.

    And one calibration error of the vote of all models on the pool, each voting where it has not
    trained.
    """
    del key, config
    (one,) = population
    condition = one.condition
    images, labels = jnp.asarray(pool.images, jnp.float32), np.asarray(pool.labels)
    rows = np.asarray(one.halves.s.indices)
    seen = _predictions(one, one.halves.s.indices, images)
    counts = {
        "num_disagree": (seen[:, 0] != seen[:, 1]).sum(-1),
        "num_compared": np.full(condition.num_pairs, rows.shape[1]),
    }
    each = {"pair": range(condition.num_pairs)}
    named = {"condition": condition.key, "subset": "holdout"}
    wrong = (seen != labels[rows][:, None]).sum(-1)
    parts = [tables.rows(v, each, quantity=name, **named) for name, v in counts.items()]
    parts.append(
        tables.rows(wrong, each | {"surrogate": tables.HALVES}, quantity="num_wrong", **named)
    )
    every = jnp.broadcast_to(jnp.arange(len(labels)), (condition.num_pairs, len(labels)))
    predictions = _predictions(one, every, images)
    unseen = np.ones(predictions.shape, bool)
    halves = (one.halves.a, one.halves.b)
    for side, half in enumerate(halves):
        for p in range(condition.num_pairs):
            unseen[p, side, np.asarray(half.indices[p])[np.asarray(half.mask[p])]] = False
    finite = one.finite
    votes = agreement.votes(
        predictions[finite].reshape(-1, len(labels)),
        condition.num_classes,
        unseen[finite].reshape(-1, len(labels)),
    )
    error = agreement.class_aggregated_calibration_error(votes, labels) if finite.any() else np.nan
    parts.append(
        tables.rows(np.array([error]), {"quantity": ["calibration_error"]}, condition=condition.key)
    )
    return Measured(tables.concat(parts))


AGREEMENT = Measurement("agreement", 4, _agreement)


def _correct(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns whether a model is right, as labelled, on each example of the own and other half."""
    del key
    return {
        name: jnp.argmax(program.apply_fn(params, images[samples[name].indices]), -1)
        == samples[name].labels
        for name in ("own", "other")
    }


def learning_steps(last: int, number: int = 60) -> tuple[int, ...]:
    """Returns the steps at which learning is looked at: 0, then at most `number`, ever wider."""
    return (0, *np.unique(np.round(np.geomspace(1, last, number)).astype(int)).tolist())


def learned_at(correct: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Returns the first step from which an example is right for good; beyond the last if never.

    Args:
      correct: `[..., T, N]` bool at the steps.
      steps: T, increasing.

    Returns:
      `[..., N]`.
    """
    # Right from t on is right at t and at all that follow.
    stays = np.flip(np.logical_and.accumulate(np.flip(correct, -2), -2), -2)
    first = np.where(stays.any(-2), stays.argmax(-2), len(steps))
    return np.array([*steps, steps[-1] + 1])[first]


def _learning_times(
    key: Key, population: Sequence[Population], pool: Split, config: Config
) -> Measured:
    """Returns rank correlations of when the other model and the own one learn a half's examples.

    For the half of B: θ_A never sees it, θ_B trains on it ("surrogate" A); and the reverse. Within
    class, and where labels are noisy within class and corrupted or not; permuted within the same,
    which is the control; and over all examples together.
    """
    del config
    (one,) = population
    condition = one.condition
    steps = learning_steps(condition.probe_steps[-1])
    seen = populations.observe(condition, pool, _correct, steps=steps)
    own, other = (learned_at(np.asarray(seen[name]), steps) for name in ("own", "other"))
    # θ_A on B beside θ_B on B, and θ_B on A beside θ_A on A.
    times = {"other": other, "own": own[:, ::-1]}
    clean, halves = np.asarray(pool.labels), (one.halves.b, one.halves.a)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    subsets = ("within class", "permuted within class", "all classes")
    values = np.zeros((condition.num_pairs, 2, len(subsets)))
    undefined = np.zeros((condition.num_pairs, 2))
    for p in range(condition.num_pairs):
        for side, half in enumerate(halves):
            valid = np.asarray(half.mask[p])
            labels = np.asarray(half.labels[p])[valid]
            corrupted = labels != clean[np.asarray(half.indices[p])[valid]]
            x, y = (times[name][p, side][valid] for name in ("other", "own"))
            within = ranks.spearman(
                x, y, 2 * labels + corrupted, rng=rng, num_permutations=NUM_PERMUTATIONS
            )
            undefined[p, side] = within.num_undefined
            together = ranks.spearman(x, y).estimate
            values[p, side] = within.estimate, within.permuted.mean(), together
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    named = {"condition": condition.key}
    table = tables.concat(
        [
            tables.rows(values, both | {"subset": subsets}, quantity="rank_correlation", **named),
            tables.rows(undefined, both, quantity="num_undefined_strata", **named),
        ]
    )
    arrays: dict[str, Any] = {f"learned_by_{name}": value for name, value in times.items()}
    arrays["labels"] = np.stack([np.asarray(half.labels) for half in halves], 1)
    return Measured(table, arrays)


LEARNING_TIMES = Measurement("learning_times", 5, _learning_times)


def _barriers(key: Key, population: Sequence[Population], pool: Split, config: Config) -> Measured:
    """Returns barriers on S, labels clean, between θ_A and θ_B, and the curves they come from.

    The first population's pairs as trained ("raw") and with θ_B permuted to match θ_A ("matched"),
    then those of the other populations, from a shared start and from a shared trunk, as trained.
    """
    del config
    first, *others = population
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    sizes = Sizes(num_pairs=first.condition.num_pairs, chunk_size=first.condition.num_holdout)
    ends = {"raw": landscape_measure.ends(first.params)}
    ends["matched"] = landscape_measure.matched_ends(first, key)
    for one in others:
        trunk = one.condition.trunk_steps
        name = f"shared trunk of {trunk} steps" if trunk else "shared start"
        ends[name] = landscape_measure.ends(one.params)
    curves = {
        name: landscape_measure.segment(first, *pair, images, labels, sizes)
        for name, pair in ends.items()
    }
    parts, arrays = [], {}
    each = {"pair": range(first.condition.num_pairs)}
    for name, by_loss in curves.items():
        for loss, values in by_loss.items():
            arrays[f"{loss}.{name}"] = values
            for baseline in paths.BASELINES:
                heights = np.asarray(paths.barrier(jnp.asarray(values), baseline=baseline))
                parts.append(
                    tables.rows(
                        heights, each, condition=first.condition.key, subset=name,
                        quantity=f"barrier_{loss}_{baseline}",
                    )
                )  # fmt: skip
    return Measured(tables.concat(parts), arrays)


BARRIERS = Measurement("barriers", 6, _barriers)


MATRICES = ("residual-free", "full")
LABELS = ("true", "shuffled")


def _class_matrices(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns both meeting matrices of own and other half, by true and by shuffled labels."""
    keys = jax.random.split(key)
    true = samples["own"], samples["other"]
    shuffled = tuple(
        one._replace(labels=halves.permute_labels(k, one))
        for k, one in zip(keys, true, strict=True)
    )
    found = {}
    for labels, parts in zip(LABELS, (true, shuffled), strict=True):
        arguments = (program.apply_fn, params, images, *parts)
        found[f"residual-free.{labels}"] = classes.residual_free_matrix(*arguments)
        found[f"full.{labels}"] = classes.meeting_matrix(*arguments)
    return found


def _classes(key: Key, population: Sequence[Population], pool: Split, config: Config) -> Measured:
    """Returns how much more examples of one class meet than those of two, untrained and trained.

    The population trains on S, so that θ depends on neither half all along its walk. `contrast` is
    mean diagonal minus mean off-diagonal, `size` the mean |entry| that it is a share of.
    """
    del key, config  # labels are shuffled with the pairs' own keys
    (one,) = population
    condition = one.condition
    steps = (0, condition.probe_steps[-1])
    seen = populations.observe(condition, pool, _class_matrices, steps=steps)
    parts, arrays = [], {}
    axes = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES, "step": steps}
    for name, value in seen.items():
        matrices = np.asarray(value)
        arrays[name] = matrices
        contrast, size = classes.contrast_terms(jnp.asarray(matrices))
        for quantity, numbers in (("contrast", contrast), ("size", size)):
            parts.append(
                tables.rows(np.asarray(numbers), axes, condition=condition.key, subset=name,
                            quantity=f"class_{quantity}")
            )  # fmt: skip
    return Measured(tables.concat(parts), arrays)


CLASSES = Measurement("classes", 7, _classes)


def _memorizing(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Array]:
    """Returns what κ is made of: inner products of the halves' gradients, and tr Cov(g) on S."""
    del key
    products = training.gradient_products(
        program.apply_fn, params, images, samples["own"], samples["other"]
    )
    holdout = samples["holdout"]
    scale = signals.noise_scale(
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
    key: Key, population: Sequence[Population], pool: Split, config: Config
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


@functools.partial(placement.jit, static_argnames=("program", "shape"))
def _fresh_program(members, distribution, settings, *, program: Condition, shape: tuple[int, ...]):
    """Runs that train on fresh batches: what κ is made of at every step, before it is taken."""
    optimizer = training.make_optimizer(program.optimizer, settings["learning_rate"])
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
            products = training.gradient_products(apply_fn, state.params, images, a, b)
            scale = signals.noise_scale(apply_fn, state.params, images[size:], labels[size:])
            state = training.train_step(apply_fn, optimizer, state, images[:size], labels[:size])
            return state, (products["own_own"], products["own_other"], scale.noise)

        state = training.init(params, optimizer)
        return jax.lax.scan(step, state, jax.random.split(key_walk, FRESH_STEPS))[1]

    return placement.spread(run)(members, distribution)


def _fresh(key: Key, population: Sequence[Population], pool: Split, config: Config) -> Measured:
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
        tables.rows(np.asarray(value, np.float64).sum(-1), axes, condition=condition.key,
                    quantity=f"fresh_{name}")
        for name, value in zip(names, seen, strict=True)
    ]  # fmt: skip
    arrays = {name: np.asarray(value) for name, value in zip(names, seen, strict=True)}
    return Measured(tables.concat(parts), arrays)


FRESH = Measurement("fresh", 9, _fresh)
