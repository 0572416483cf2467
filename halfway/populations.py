"""Many pairs trained under one condition, as one program on all devices.

`train` compiles once for each shape (model, capacity, steps, number of pairs); label-noise rate,
overlap, n, learning rate, weight decay and seed are data of that program, and so are an MLP's width
and the batch size where they are masked, see `Condition`.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from halfway import halves, meeting, pairs, placement, training
from halfway.data import Split
from halfway.halves import Halves, Sample
from halfway.pairs import Condition, program_of, settings_of, split_arguments
from halfway.types import ApplyFn, Array, Key, Params


@flax.struct.dataclass
class Population:
    """The pairs of one condition, trained. Index 0 of the second axis is θ_A, 1 is θ_B.

    Attributes:
      condition: static.
      params: leaves `[P, 2, ...]`.
      halves: A, B and S of each pair, leaves `[P, N]`.
      trained_labels: `[P, 2, N]`, the labels each model trained on; the half's own unless permuted.
      landscapes: `landscapes[sample][loss]` `[P, 2, T]` at the probe steps; sample "own" (with the
        labels trained on), "other" and "holdout" (as labelled); loss as in `training.LOSSES`.
      constant: `constant[sample][loss]` `[P, 2]`, the same for the best constant predictor on the
        own half.
      products: inner products of the halves' gradients `[P, 2, T]`, see
        `training.gradient_products`.
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
        """Returns what each model trained on, with those labels, and the other half as labelled.

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
          loss: of `training.LOSSES`.
        """
        own, other = (
            jnp.concatenate(
                [self.constant[name][loss][..., None], self.landscapes[name][loss]], -1
            ).sum(1)
            for name in ("own", "other")
        )
        return own, other

    @property
    def finite(self) -> np.ndarray:
        """`[P]` bool: whether training and landscapes of both models of a pair stayed finite."""
        tree = (self.params, self.landscapes)
        return np.asarray(jax.vmap(meeting.is_finite)(tree))


def train(condition: Condition, pool: Split, *, mesh: Mesh | None = None) -> Population:
    """Returns the population of a condition, trained on all devices of the mesh.

    Args:
      condition: see `Condition`.
      pool: the examples that halves are drawn from.
      mesh: with the axis `member`; all devices by default.

    Raises:
      ValueError: if the halves do not fit into the pool.
    """
    images = jnp.asarray(pool.images, jnp.float32)
    members, settings, program, mesh = _begin(condition, pool, images, mesh)
    fitted = _fit_program(members, images, settings, program=program, mesh=mesh)
    return Population(condition=condition, **members[2]._asdict(), **fitted)


def observe(
    condition: Condition,
    pool: Split,
    probe_fn: pairs.Probe,
    *,
    steps: Sequence[int],
    num_pairs: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Returns what a probe sees along the walks of a population, which `train` does not keep.

    The pairs are trained again, with the same draws.

    Args:
      condition: of the population.
      pool: the examples that halves are drawn from.
      probe_fn: of one model, see `pairs.Probe`; a function of a module, since a new one at each
        call is compiled at each call.
      steps: T numbers of steps, increasing, 0 to the last of `condition.probe_steps`.
      num_pairs: P, the first of the condition's; all by default.
      mesh: with the axis `member`; all devices by default.

    Returns:
      `[P, 2, T, ...]` in each leaf of what the probe returns.

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
    members, settings, program, mesh = _begin(condition, pool, images, mesh)
    return _observe_program(
        members, images, settings, program=program, mesh=mesh, steps=steps, probe_fn=probe_fn
    )


def retrace(
    condition: Condition,
    pool: Split,
    *,
    steps: Sequence[int],
    num_pairs: int,
    mesh: Mesh | None = None,
) -> Params:
    """Returns the walks of a population's first pairs, leaves `[P, 2, T, ...]`.

    θ_0 is the walk at step 0, θ_A and θ_B its ends. Memory is that of 2 P T models; `observe` reads
    along the way without it.

    Args:
      condition: of the population.
      pool: the examples that halves are drawn from.
      steps: T numbers of steps, increasing, 0 to the last of `condition.probe_steps`.
      num_pairs: P, at most the condition's.
      mesh: with the axis `member`; all devices by default.

    Raises:
      ValueError: if the steps reach beyond training, or there are not that many pairs.
    """
    return observe(condition, pool, _parameters, steps=steps, num_pairs=num_pairs, mesh=mesh)


def _parameters(
    program: Condition, key: Key, params: Params, samples: Any, images: Array
) -> Params:
    del program, key, samples, images
    return params


def _begin(
    condition: Condition, pool: Split, images: Array, mesh: Mesh | None
) -> tuple[tuple[Key, Params, pairs.Drawn], dict[str, Array], Condition, Mesh]:
    """Returns every pair's key, initial parameters and halves, and what a program is made from."""
    validate(condition, pool)
    labels = jnp.asarray(pool.labels, jnp.int32)
    keys, settings, program = pair_keys(condition), settings_of(condition), program_of(condition)
    mesh = placement.make_mesh() if mesh is None else mesh
    # Three programs, because random draws take long to compile: that of the halves serves every
    # architecture, and apart from the loop they are not compiled into each place of their use.
    shape = dataclasses.replace(program, **pairs.MODEL_FIELDS)
    common = pairs.holdout_key(condition)
    drawn = _draw_program(keys, labels, settings, common, program=shape, mesh=mesh)
    params = _init_program(keys, images[:1], settings, program=program, mesh=mesh)
    return (keys, params, drawn), settings, program, mesh


def validate(condition: Condition, pool: Split) -> None:
    """Checks a condition against a pool without training anything.

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
    """Returns `[P]` keys; those of pair p do not depend on the number of pairs."""
    root = jax.random.key(condition.seed)
    return jax.vmap(lambda p: jax.random.fold_in(root, p))(jnp.arange(condition.num_pairs))


@functools.partial(placement.jit, static_argnames=("program", "mesh"))
def _draw_program(keys, labels, settings, common, *, program: Condition, mesh: Mesh):
    pair_fn = functools.partial(pairs.draw, program=program)
    return placement.spread(pair_fn, mesh=mesh)(keys, labels, settings, common)


@functools.partial(placement.jit, static_argnames=("program", "mesh"))
def _init_program(keys, images, settings, *, program: Condition, mesh: Mesh):
    pair_fn = functools.partial(pairs.init, program=program)
    return placement.spread(pair_fn, mesh=mesh, vectorized=False)(keys, images, settings)


@functools.partial(placement.jit, static_argnames=("program", "mesh"))
def _fit_program(members, images, settings, *, program: Condition, mesh: Mesh):
    def pair_fn(member, images, settings):
        key, params, drawn = member
        return pairs.fit(key, params, drawn, images, settings, program=program)

    return placement.spread(pair_fn, mesh=mesh)(members, images, settings)


@functools.partial(placement.jit, static_argnames=("program", "mesh", "steps", "probe_fn"))
def _observe_program(
    members,
    images,
    settings,
    *,
    program: Condition,
    mesh: Mesh,
    steps: tuple[int, ...],
    probe_fn: pairs.Probe,
):
    def pair_fn(member, images, settings):
        key, params, drawn = member
        return pairs.observe(
            key, params, drawn, images, settings, program=program, steps=steps, probe_fn=probe_fn
        )

    return placement.spread(pair_fn, mesh=mesh)(members, images, settings)


def save(path: str | Path, population: Population) -> None:
    """Writes a population as an Orbax checkpoint with its condition beside it, whole or not at all.

    Args:
      path: a folder, replaced where it exists.
      population: to be saved.

    Raises:
      OSError: if the folder cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # Arrays of the host: a file that says nothing about devices loads on any number of them.
    ocp.save(str(partial / "arrays"), jax.device_get(_to_tree(population)))
    (partial / "condition.json").write_text(json.dumps(population.condition.to_json(), indent=2))
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def load(path: str | Path) -> Population:
    """Returns the population that `save` wrote.

    Args:
      path: the folder.

    Raises:
      FileNotFoundError: if there is none.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    if not (path / "condition.json").exists():
        raise FileNotFoundError(f"no population at {path}")
    condition = Condition(**json.loads((path / "condition.json").read_text()))
    tree = ocp.load(str(path / "arrays"))
    return _from_tree(condition, tree)


def _to_tree(population: Population) -> dict[str, Any]:
    tree = {
        field.name: getattr(population, field.name)
        for field in dataclasses.fields(population)
        if field.name != "condition"
    }
    sampled = {name: sample._asdict() for name, sample in population.halves._asdict().items()}
    return tree | {"halves": sampled}


def _from_tree(condition: Condition, tree: dict[str, Any]) -> Population:
    tree = jax.tree.map(jnp.asarray, tree)
    parts = Halves(**{name: Sample(**sample) for name, sample in tree["halves"].items()})
    fields: dict[str, Any] = tree | {"halves": parts}
    return Population(condition=condition, **fields)
