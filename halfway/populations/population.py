"""Many pairs trained under one condition, as one program on all devices.

`train` compiles once for each shape (model, capacity, steps, number of pairs); label-noise rate,
overlap, n, learning rate, weight decay and seed are data of that program, and so are an MLP's width
and the batch size where they are masked, see `Condition`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from halfway import sharding, storage
from halfway.data import Split
from halfway.keys import named_key
from halfway.populations import halves, pairs, training, walks
from halfway.populations.halves import Halves
from halfway.populations.pairs import Condition, hyperparameters, program_of, split_arguments
from halfway.types import ApplyFn, Array, Key, Params, Sample


@flax.struct.dataclass
class Population:
    """The trained pairs of one condition. Index 0 of the second axis is θ_A, 1 is θ_B.

    Attributes:
      condition: what defines the population; static.
      params: parameters at the end of training, leaves `[P, 2, ...]`.
      halves: A, B and S of each pair, leaves `[P, N]`.
      trained_labels: `[P, 2, N]`, the labels each model trained on: those of its half unless they
        are permuted.
      landscapes: `landscapes[sample][loss]` `[P, 2, T]` at the probe steps; sample "own" (with the
        labels trained on), "other" and "holdout" (as labelled); loss as in `populations.LOSSES`.
      constant: `constant[sample][loss]` `[P, 2]`, the same for the best constant predictor on the
        own half.
      products: inner products of the halves' gradients `[P, 2, T]`, see
        `populations.gradient_products`.
      num_steps: `[P, 2]`, steps taken: all, unless `stop_loss` was reached before.
    """

    condition: Condition = flax.struct.field(pytree_node=False)
    params: Params
    halves: Halves
    trained_labels: Array
    landscapes: dict[str, dict[str, Array]]
    constant: dict[str, dict[str, Array]]
    products: dict[str, Array]
    num_steps: Array

    @property
    def apply_fn(self) -> ApplyFn:
        """`(params, x) -> logits` of the condition's model."""
        return self.condition.apply_fn

    def samples(self) -> tuple[Sample, Sample]:
        """Returns the half of each model with the labels trained on, and the other as labelled.

        Leaves are `[P, 2, N]`.
        """
        both = jax.tree.map(lambda a, b: jnp.stack([a, b], 1), self.halves.a, self.halves.b)
        other = jax.tree.map(lambda leaf: leaf[:, ::-1], both)
        return both._replace(labels=self.trained_labels), other

    def walks(self, loss: str = "error") -> tuple[Array, Array]:
        """Returns the own and the other landscape along training, `[P, 1 + T]` each, for D1.

        Both directions of a pair are summed; the first value is the best constant predictor's, from
        which progress is counted.

        Args:
          loss: name of a landscape in `populations.LOSSES`.
        """
        followed, other = (
            jnp.concatenate(
                [self.constant[name][loss][..., None], self.landscapes[name][loss]], -1
            ).sum(1)
            for name in ("own", "other")
        )
        return followed, other

    @property
    def finite(self) -> np.ndarray:
        """`[P]` bool: whether training and landscapes of both models of a pair stayed finite."""
        # On the host, where nothing is compiled for shapes that occur once.
        leaves = jax.tree.leaves(jax.device_get((self.params, self.landscapes)))
        by_leaf = [np.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in leaves]
        return np.all(by_leaf, 0)


PIECE = 100
"""Number of training steps between two calls of `on_piece`, which may store the progress."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the training of a population is.

    Attributes:
      num_steps: number of steps taken.
      walk: the walk after these steps, leaves `[P, 2, ...]`.
      observations: what a probe read at each probe step so far, leaves `[P, 2, ...]`.
    """

    num_steps: int
    walk: training.Walk
    observations: tuple[Any, ...]

    def to_tree(self) -> dict[str, Any]:
        """Returns nested dicts of NumPy arrays, on every process; all must call it together."""
        walk, observations = jax.device_get(
            sharding.local((jax.tree.leaves(self.walk), self.observations))
        )
        return {
            "num_steps": np.int64(self.num_steps),
            "walk": {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(walk)},
            "seen": {
                f"{i:05d}": jax.tree.map(np.asarray, observation)
                for i, observation in enumerate(observations)
            },
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], start: training.Walk) -> "Progress":
        """Returns the progress that `to_tree` wrote out.

        Args:
          tree: nested dicts of arrays, as `to_tree` returns them.
          start: the walk of the same condition before its first step.

        Raises:
          ValueError: if the tree is of another condition.
        """
        leaves, structure = jax.tree.flatten(start)
        stored = [tree["walk"][name] for name in sorted(tree["walk"])]
        if len(stored) != len(leaves) or any(
            a.shape != b.shape or a.dtype != b.dtype for a, b in zip(stored, leaves, strict=True)
        ):
            raise ValueError("what was kept of a training is of another condition")
        walk = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in stored])
        observations = tuple(tree.get("seen", {})[name] for name in sorted(tree.get("seen", {})))
        return cls(int(tree["num_steps"]), walk, observations)


def train(
    condition: Condition,
    pool: Split,
    *,
    resume: Mapping[str, Any] | None = None,
    on_piece: Callable[[Progress], None] | None = None,
) -> Population:
    """Returns the population of a condition, trained on all devices of the layout in force.

    Args:
      condition: what defines the population.
      pool: the examples that halves are drawn from.
      resume: the progress to go on from, `Progress.to_tree` of the same condition; None: from the
        start. On the same layout the result is the same, bit by bit, as without interruption.
      on_piece: called with the progress after every `PIECE` steps and before every probe.

    Raises:
      ValueError: if the halves do not fit into the pool, or `resume` is of another condition.
    """
    images = jnp.asarray(pool.images, jnp.float32)
    members, settings, program = _begin(condition, pool, images)
    walk, observations = _follow(
        members,
        images,
        settings,
        program,
        condition.probe_steps,
        walks.probe_landscapes,
        resume=resume,
        on_piece=on_piece,
    )
    keys, _, drawn = members
    params = walk.state.params
    shape = dataclasses.replace(program, **pairs.MODEL_FIELDS)
    nothing = jnp.zeros((condition.num_pairs, 2))  # constants are of no model
    constant = _look_program(
        keys, drawn, nothing, images, program=shape, probe_fn=walks.probe_constants
    )
    fields = drawn._asdict() | observations | {"params": params, "num_steps": walk.state.step}
    return Population(condition=condition, **sharding.local(fields | {"constant": constant}))


def observe(
    condition: Condition,
    pool: Split,
    probe_fn: walks.Probe,
    *,
    steps: Sequence[int],
    num_pairs: int | None = None,
) -> Any:
    """Returns what a probe reads along the walks of a population, which `train` does not keep.

    The pairs are trained again, with the same draws.

    Args:
      condition: the condition of the population.
      pool: the examples that halves are drawn from.
      probe_fn: the probe, a function of one model, see `Probe`. Define it at the top of a module: a
        function made anew for each call is compiled for each call.
      steps: T numbers of steps, increasing, 0 to the last of `condition.probe_steps`.
      num_pairs: P, the number of pairs, the first ones of the condition; all by default.

    Returns:
      the pytree that the probe returns, leaves `[P, 2, T, ...]`.

    Raises:
      ValueError: if the steps reach beyond training, or there are not that many pairs.
    """
    steps, last = tuple(int(step) for step in steps), condition.probe_steps[-1]
    num_pairs = condition.num_pairs if num_pairs is None else num_pairs
    if not steps or steps[-1] > last:
        raise ValueError(f"steps of a walk lie in [0, {last}], the end of training, got {steps}")
    if not 1 <= num_pairs <= condition.num_pairs:
        raise ValueError(f"num_pairs must lie in [1, {condition.num_pairs}], got {num_pairs}")
    # The keys of a pair do not depend on how many there are.
    condition = dataclasses.replace(condition, num_pairs=num_pairs)
    images = jnp.asarray(pool.images, jnp.float32)
    members, settings, program = _begin(condition, pool, images)
    return sharding.local(_follow(members, images, settings, program, steps, probe_fn)[1])


def _follow(
    members: tuple[Key, Params, pairs.Drawn],
    images: Array,
    settings: dict[str, Array],
    program: Condition,
    steps: Sequence[int],
    probe_fn: walks.Probe,
    *,
    resume: Mapping[str, Any] | None = None,
    on_piece: Callable[[Progress], None] | None = None,
) -> tuple[training.Walk, Any]:
    """Returns the walk at the last of some steps, and what a probe read at each `[P, 2, T, ...]`.

    The loop runs on the host: one program takes a piece of the walk, another reads it, however many
    pieces and steps there are. So all observations of a training share the program that trains.
    """
    steps = training.check_steps(steps, stops=program.stop_loss > 0)
    walk, batches = _start_program(members, settings, program=program)
    keys, _, drawn = members

    shape = program_of(program, trains=False)

    def see(params):
        return _look_program(keys, drawn, params, images, program=shape, probe_fn=probe_fn)

    progress = Progress(0, walk, ()) if resume is None else Progress.from_tree(resume, walk)
    for index, step in enumerate(steps):
        while progress.num_steps < step:
            last = min(step, progress.num_steps + PIECE)
            walk = _advance_program(
                (progress.walk, batches, drawn),
                images,
                settings,
                progress.num_steps,
                last,
                program=program,
            )
            progress = Progress(last, walk, progress.observations)
            if on_piece is not None:
                on_piece(progress)
        if index >= len(progress.observations):
            observation = see(progress.walk.state.params)
            progress = dataclasses.replace(
                progress, observations=(*progress.observations, observation)
            )
    # Stacked on the host: a program that stacks hundreds of arrays takes long to compile.
    observations = jax.device_get(sharding.local(progress.observations))
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves, 2)), *observations)
    return progress.walk, stacked


def retrace(
    condition: Condition,
    pool: Split,
    *,
    steps: Sequence[int],
    num_pairs: int,
) -> Params:
    """Returns the walks of a population's first pairs, leaves `[P, 2, T, ...]`.

    θ_0 is the walk at step 0, θ_A and θ_B are its ends. The result has the memory of 2 P T models;
    `observe` reads along the walk without it.

    Args:
      condition: the condition of the population.
      pool: the examples that halves are drawn from.
      steps: T numbers of steps, increasing, 0 to the last of `condition.probe_steps`.
      num_pairs: P, the number of pairs, at most that of the condition.

    Raises:
      ValueError: if the steps reach beyond training, or there are not that many pairs.
    """
    return observe(condition, pool, _parameters, steps=steps, num_pairs=num_pairs)


def _parameters(
    program: Condition, key: Key, params: Params, samples: Any, images: Array
) -> Params:
    """Returns the parameters of one model, a `Probe`."""
    del program, key, samples, images
    return params


def _begin(
    condition: Condition, pool: Split, images: Array
) -> tuple[tuple[Key, Params, pairs.Drawn], dict[str, Array], Condition]:
    """Returns key, initial parameters and halves of every pair, the settings and the program."""
    validate(condition, pool)
    labels = jnp.asarray(pool.labels, jnp.int32)
    keys, settings, program = (
        pair_keys(condition),
        hyperparameters(condition),
        program_of(condition),
    )
    # Random draws take long to compile: halves have a program of their own, which serves every
    # architecture.
    shape = dataclasses.replace(program, **pairs.MODEL_FIELDS)
    common = pairs.holdout_key(condition)
    drawn = _draw_program(keys, labels, settings, common, program=shape)
    shape = dataclasses.replace(program, **pairs.TRAINING_FIELDS | pairs.SAMPLE_FIELDS)
    params = _init_program(keys, images[:1], settings, program=shape)
    return (keys, params, drawn), settings, program


def validate(condition: Condition, pool: Split) -> None:
    """Checks a condition against a pool without training anything.

    Args:
      condition: the condition to check.
      pool: the examples that halves are drawn from.

    Raises:
      ValueError: if the halves do not fit into the pool, a rate is out of range, or the model
        cannot be built or applied to the pool's images.
    """
    labels = jax.ShapeDtypeStruct(pool.labels.shape, jnp.int32)
    images = jax.ShapeDtypeStruct((1, *pool.images.shape[1:]), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Sizes and rates are data when training; here they are still numbers and can be refused.
    split = functools.partial(halves.split, **split_arguments(condition))
    jax.eval_shape(split, key, labels)
    training.make_optimizer(condition.optimizer, condition.learning_rate)
    jax.eval_shape(condition.module.init, key, images)


def pair_keys(condition: Condition) -> Key:
    """Returns the keys `[P]` of all pairs; that of a pair does not depend on their number."""
    root = named_key(jax.random.key(condition.seed), "pairs")
    return jax.vmap(lambda p: jax.random.fold_in(root, p))(jnp.arange(condition.num_pairs))


# None of these gathers what other processes hold: the walk stays where it is.
_program = functools.partial(sharding.jit, gather=False)


@functools.partial(_program, static_argnames=("program",), brief=True)
def _draw_program(keys, labels, settings, common, *, program: Condition):
    pair_fn = functools.partial(pairs.sample_pair, program=program)
    return sharding.spread(pair_fn, by_data=True)(keys, labels, settings, common)


@functools.partial(_program, static_argnames=("program",), brief=True)
def _init_program(keys, images, settings, *, program: Condition):
    pair_fn = functools.partial(pairs.init_pair, program=program)
    return sharding.spread(pair_fn, at_once=1, by_data=True)(keys, images, settings)


@functools.partial(_program, static_argnames=("program",))
def _start_program(members, settings, *, program: Condition):
    def pair_fn(member, settings):
        key, params, drawn = member
        return walks.begin_pair(key, params, drawn, settings, program=program)

    return sharding.spread(pair_fn, by_data=True)(members, settings)


@functools.partial(_program, static_argnames=("program",), hot=True)
def _advance_program(members, images, settings, first, last, *, program: Condition):
    def pair_fn(member, *shared):
        walk, batches, drawn = member
        return walks.advance_pair(walk, batches, drawn, *shared, program=program)

    return sharding.spread(pair_fn, by_data=True)(members, images, settings, first, last)


@functools.partial(_program, static_argnames=("program", "probe_fn"))
def _look_program(keys, drawn, params, images, *, program: Condition, probe_fn: walks.Probe):
    def pair_fn(member, images):
        key, drawn, params = member
        return walks.look_at_pair(key, params, drawn, images, program=program, probe_fn=probe_fn)

    return sharding.spread(pair_fn, by_data=True)((keys, drawn, params), images)


_CONDITION = "condition.json"


def save(
    path: str | Path, population: Population, *, origin: Mapping[str, Any] | None = None
) -> None:
    """Writes a population as an Orbax checkpoint with its condition beside it, whole or not at all.

    Args:
      path: a folder, replaced where it exists.
      population: the population to save.
      origin: plain data that says what it was made from besides its condition, e.g. the checksum of
        the data set.

    Raises:
      OSError: if the folder cannot be written.
    """
    fields = population.condition.to_json()
    storage.save_tree(path, _to_tree(population), fields, name=_CONDITION, origin=origin)


def load(path: str | Path, *, origin: Mapping[str, Any] | None = None) -> Population:
    """Returns the population that `save` wrote.

    Args:
      path: the folder.
      origin: what it must have been made from; None: anything. See `storage.load_tree`.

    Raises:
      FileNotFoundError: if nothing is stored there.
      Exception: of one kind or another, if the folder is damaged or of another origin.
    """
    tree, fields = storage.load_tree(path, name=_CONDITION, origin=origin)
    return _from_tree(Condition(**fields), tree)


def _to_tree(population: Population) -> dict[str, Any]:
    """Returns a population as nested dicts of arrays, without its condition."""
    tree = {
        field.name: getattr(population, field.name)
        for field in dataclasses.fields(population)
        if field.name != "condition"
    }
    sampled = {name: sample._asdict() for name, sample in population.halves._asdict().items()}
    return tree | {"halves": sampled}


def _from_tree(condition: Condition, tree: dict[str, Any]) -> Population:
    """Returns the population of which `_to_tree` made nested dicts."""
    tree = jax.tree.map(jnp.asarray, tree)
    parts = Halves(**{name: Sample(**sample) for name, sample in tree["halves"].items()})
    fields: dict[str, Any] = tree | {"halves": parts}
    return Population(condition=condition, **fields)
