"""Many pairs trained under one condition, as one program on all devices.

`train` compiles once for each shape (model, capacity, steps, number of pairs); label-noise rate,
overlap, n, learning rate, weight decay and seed are data of that program.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from halfway import halves, meeting, models, placement, training
from halfway.data import Split
from halfway.halves import Halves, Sample
from halfway.types import ApplyFn, Array, Key, Params

_DATA_FIELDS = {
    "noise_rate": 0.0,
    "overlap": 0.0,
    "num_examples": 0,
    "learning_rate": 0.0,
    "weight_decay": 0.0,
    "permuted": False,
    "seed": 0,
    "dataset": "",
    "subset": "",
    "architecture": "",
}
"""Fields that do not shape the compiled program, with the value that stands for all."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """What defines a population: two populations of equal conditions are the same.

    Attributes:
      dataset: a name that `data.load` knows.
      architecture: a short name for the model, for records and figures.
      model: the model's plain config as sorted (field, value) pairs; see `make_condition`.
      num_classes: C.
      subset: of the data set that the halves are drawn from: "train", or "all" with its test split.
      num_examples: n of each half.
      capacity: static length of the halves, at least n.
      num_holdout: static length of S.
      overlap: share of examples in both halves, in [0, 1].
      noise_rate: ρ in [0, 1].
      permuted: whether each model trains on its half's labels permuted within the half (control).
      stratified: whether splits keep class shares.
      optimizer: "adam" or "sgd".
      learning_rate: constant.
      weight_decay: decoupled.
      batch_size: of a step.
      probe_steps: numbers of steps at which the landscapes are read; the last ends training.
      num_pairs: P.
      seed: of the whole population; pair p of two conditions with one seed shares halves, noise
        draws, initializations and the order of its batches.
    """

    dataset: str
    architecture: str
    model: tuple[tuple[str, Any], ...]
    num_classes: int
    subset: str
    num_examples: int
    capacity: int
    num_holdout: int
    overlap: float
    noise_rate: float
    permuted: bool
    stratified: bool
    optimizer: str
    learning_rate: float
    weight_decay: float
    batch_size: int
    probe_steps: tuple[int, ...]
    num_pairs: int
    seed: int

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that identify the condition."""
        return digest(dataclasses.asdict(self))[:12]

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict that `from_json` reads back."""
        return dataclasses.asdict(self) | {"model": dict(self.model)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Condition":
        """Returns the condition that `to_json` wrote, lists made tuples again."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        plain["model"] = _freeze(fields["model"])
        return cls(**plain)


def digest(plain: Any) -> str:
    """Returns the hexadecimal SHA-256 of plain data, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _freeze(model: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in model.items()))


def make_condition(
    *,
    dataset: str,
    architecture: str,
    model: Mapping[str, Any],
    num_classes: int,
    num_examples: int,
    num_holdout: int,
    probe_steps: tuple[int, ...],
    num_pairs: int,
    seed: int,
    subset: str = "train",
    capacity: int | None = None,
    overlap: float = 0.0,
    noise_rate: float = 0.0,
    permuted: bool = False,
    stratified: bool = False,
    optimizer: str = "adam",
    learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    batch_size: int = 64,
) -> Condition:
    """Returns a condition with its defaults filled in; the fields are those of `Condition`."""
    return Condition(
        dataset=dataset,
        architecture=architecture,
        model=_freeze(model),
        num_classes=int(num_classes),
        subset=subset,
        num_examples=int(num_examples),
        capacity=int(num_examples if capacity is None else capacity),
        num_holdout=int(num_holdout),
        overlap=float(overlap),
        noise_rate=float(noise_rate),
        permuted=bool(permuted),
        stratified=bool(stratified),
        optimizer=optimizer,
        learning_rate=float(learning_rate),
        weight_decay=float(weight_decay),
        batch_size=int(batch_size),
        probe_steps=tuple(int(s) for s in probe_steps),
        num_pairs=int(num_pairs),
        seed=int(seed),
    )


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
    """

    condition: Condition = flax.struct.field(pytree_node=False)
    params: Params
    halves: Halves
    trained_labels: Array
    landscapes: dict[str, dict[str, Array]]
    constant: dict[str, dict[str, Array]]
    products: dict[str, Array]

    @property
    def apply_fn(self) -> ApplyFn:
        """`(params, x) -> logits` of the condition's model."""
        return make_apply_fn(self.condition)

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


def make_apply_fn(condition: Condition) -> ApplyFn:
    """Returns `(params, x) -> logits` of a condition's model."""
    module = models.build(dict(condition.model), num_classes=condition.num_classes)

    def apply_fn(params: Params, x: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, x))

    return apply_fn


def train(condition: Condition, pool: Split, *, mesh: Mesh | None = None) -> Population:
    """Returns the population of a condition, trained on all devices of the mesh.

    Args:
      condition: see `Condition`.
      pool: the examples that halves are drawn from.
      mesh: with the axis `member`; all devices by default.

    Raises:
      ValueError: if the halves do not fit into the pool.
    """
    validate(condition, pool)
    out = _train_program(
        pair_keys(condition),
        jnp.asarray(pool.images, jnp.float32),
        jnp.asarray(pool.labels, jnp.int32),
        _settings(condition),
        program=program_of(condition),
        mesh=placement.make_mesh() if mesh is None else mesh,
    )
    return Population(condition=condition, **out)


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
    split = functools.partial(halves.split, **_split_arguments(condition))
    jax.eval_shape(split, key, labels)
    training.make_optimizer(condition.optimizer, condition.learning_rate)
    module = models.build(dict(condition.model), num_classes=condition.num_classes)
    jax.eval_shape(module.init, key, images)


def pair_keys(condition: Condition) -> Key:
    """Returns `[P]` keys; those of pair p do not depend on the number of pairs."""
    root = jax.random.key(condition.seed)
    return jax.vmap(lambda p: jax.random.fold_in(root, p))(jnp.arange(condition.num_pairs))


def program_of(condition: Condition) -> Condition:
    """Returns the part of a condition that shapes a compiled program, the rest at fixed values."""
    return dataclasses.replace(condition, **_DATA_FIELDS)


def _settings(condition: Condition) -> dict[str, Array]:
    names = ("noise_rate", "overlap", "learning_rate", "weight_decay")
    floats = {name: jnp.float32(getattr(condition, name)) for name in names}
    return floats | {
        "num_examples": jnp.int32(condition.num_examples),
        "permuted": jnp.bool_(condition.permuted),
    }


def _split_arguments(condition: Condition) -> dict[str, Any]:
    names = ("num_examples", "num_classes", "capacity", "num_holdout")
    names += ("overlap", "noise_rate", "stratified")
    return {name: getattr(condition, name) for name in names}


@functools.partial(jax.jit, static_argnames=("program", "mesh"))
def _train_program(keys, images, labels, settings, *, program: Condition, mesh: Mesh):
    pair_fn = functools.partial(train_pair, program=program)
    return placement.spread(pair_fn, mesh=mesh)(keys, images, labels, settings)


def train_pair(
    key: Key, images: Array, labels: Array, settings: Mapping[str, Array], *, program: Condition
) -> dict[str, Any]:
    """Returns one trained pair: the fields of `Population` without the leading axis.

    Args:
      key: consumed.
      images: `[N, H, W, D]` of the pool.
      labels: `[N]`, clean.
      settings: the condition's fields that are data: `noise_rate`, `overlap`, `learning_rate`,
        `weight_decay`, `num_examples`, `permuted`.
      program: the condition's fields that are shape.
    """
    key_split, key_permute, *keys_model = jax.random.split(key, 4)
    arguments: dict[str, Any] = _split_arguments(program) | {
        name: settings[name] for name in ("num_examples", "overlap", "noise_rate")
    }
    parts = halves.split(key_split, labels, **arguments)
    own = jax.tree.map(lambda a, b: jnp.stack([a, b]), parts.a, parts.b)
    other = jax.tree.map(lambda leaf: leaf[::-1], own)
    permuted = jax.vmap(halves.permute_labels)(jax.random.split(key_permute), own)
    trained = own._replace(labels=jnp.where(settings["permuted"], permuted, own.labels))

    def model(key, trained, other):
        return _train_model(key, images, trained, other, parts.s, settings, program)

    out = jax.vmap(model)(jnp.stack(keys_model), trained, other)
    return out | {"halves": parts, "trained_labels": trained.labels}


def _train_model(
    key: Key,
    images: Array,
    own: Sample,
    other: Sample,
    holdout: Sample,
    settings: Mapping[str, Array],
    program: Condition,
) -> dict[str, Any]:
    key_init, key_order = jax.random.split(key)
    module = models.build(dict(program.model), num_classes=program.num_classes)
    apply_fn = make_apply_fn(program)
    optimizer = training.make_optimizer(
        program.optimizer, settings["learning_rate"], settings["weight_decay"]
    )

    stream = training.index_stream(
        key_order,
        settings["num_examples"],
        capacity=program.capacity,
        num_steps=program.probe_steps[-1],
        batch_size=program.batch_size,
    )
    rows, batch_labels = own.indices[stream], own.labels[stream]
    samples = {"own": own, "other": other, "holdout": holdout}

    def step(state, i):
        return training.train_step(apply_fn, optimizer, state, images[rows[i]], batch_labels[i])

    def probe(params):
        landscapes = {
            name: training.landscape_losses(apply_fn, params, images, sample)
            for name, sample in samples.items()
        }
        return landscapes, training.gradient_products(apply_fn, params, images, own, other)

    params = module.init(key_init, images[:1])["params"]
    state = training.init(params, optimizer)
    state, (landscapes, products) = training.fit(
        step, probe, state, probe_steps=program.probe_steps
    )
    constant = meeting.constant_predictor(own.labels, own.mask, program.num_classes)
    constant_losses = {
        name: training.landscape_losses(_constant_fn, constant, images, sample)
        for name, sample in samples.items()
    }
    return {
        "params": state.params,
        "landscapes": landscapes,
        "constant": constant_losses,
        "products": products,
    }


def _constant_fn(logits: Array, x: Array) -> Array:
    return jnp.broadcast_to(logits, (x.shape[0], logits.shape[0]))


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
    condition = Condition.from_json(json.loads((path / "condition.json").read_text()))
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
