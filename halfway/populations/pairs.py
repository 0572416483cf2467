"""One pair under one condition: what defines it, its halves and initial models."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import models, storage
from halfway.custom_models import CustomModel
from halfway.keys import named_key
from halfway.populations import halves, training
from halfway.populations.halves import Halves
from halfway.types import ApplyFn, Array, Key, Params, Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What defines a population: two populations of equal conditions are the same.

    Numbers, lists and mappings are made plain and hashable, so that a condition can be written as
    its fields come, and read back from JSON.

    Attributes:
      dataset: a name that `data.load` knows.
      architecture: a short name for the model, for records and figures.
      model: the model's plain config, see `models.build`; kept as sorted (field, value) pairs.
      num_classes: C, the number of classes.
      num_examples: n, the number of examples of each half.
      num_holdout: static length of the holdout sample S.
      probe_steps: numbers of steps at which the landscapes are read; the last ends training.
      num_pairs: P, the number of pairs.
      seed: seed of the whole population; pair p of two conditions with the same seed shares halves,
        noise draws, initializations and the order of its batches.
      subset: the part of the data set that halves are drawn from: "train", or "all" with the test
        split.
      capacity: static length of the halves, at least n; n by default.
      overlap: share of examples in both halves, in [0, 1].
      noise_rate: ρ, the probability that a label is replaced, in [0, 1].
      permuted: whether each model trains on its half's labels permuted within the half (control).
      stratified: whether splits keep class shares.
      shared_start: whether B's initialization is A's.
      shared_order: whether B sees the positions of its half in A's order of batches; with overlap 1
        that is the same data in the same order.
      on_holdout: whether both models train on S, and so on neither half.
      common_holdout: whether S is the same for all pairs, and for all conditions of one seed, pool
        and `num_holdout`: models of different pairs can then be compared on examples that none of
        them has seen. Halves are drawn from what is left.
      trunk_steps: number of first steps that both models take together, as one model from a shared
        start, on batches of both halves; then each walks on by itself.
      optimizer: "adam" or "sgd".
      learning_rate: the learning rate, constant over training.
      weight_decay: decoupled weight decay, which is multiplied by the learning rate.
      batch_size: number of examples of a step.
      batch_capacity: static length of a batch, at least its size, which is then data; 0: the size
        itself is static.
      width: units of each hidden layer of an MLP that are in use, as data; 0: all.
      stop_loss: mean cross-entropy on what a model trains on at which its training is over; 0:
        after the last of `probe_steps`.
      compute_dtype: "float32" or "bfloat16", of what a training step computes. Parameters, the
        optimizer and all that is measured are float32 in either case.
      loss: "cross_entropy", or "squared" for regression on one-hot labels: what training descends.
        Landscapes are measured in `populations.LOSSES` in either case.

    Examples:
      >>> condition = populations.Condition(
      ...     dataset="digits", architecture="mlp", model={"kind": "mlp", "widths": [128]},
      ...     num_classes=10, num_examples=600, num_holdout=597, probe_steps=(0, 700),
      ...     num_pairs=16, seed=0)
      >>> populations.Condition(**condition.to_json()) == condition
      True
      >>> condition.noise_rate, condition.capacity
      (0.0, 600)
    """

    dataset: str
    architecture: str
    model: Any
    num_classes: int
    num_examples: int
    num_holdout: int
    probe_steps: tuple[int, ...]
    num_pairs: int
    seed: int
    subset: str = "train"
    capacity: int | None = None
    overlap: float = 0.0
    noise_rate: float = 0.0
    permuted: bool = False
    stratified: bool = False
    shared_start: bool = False
    shared_order: bool = False
    on_holdout: bool = False
    trunk_steps: int = 0
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    batch_capacity: int = 0
    width: int = 0
    stop_loss: float = 0.0
    common_holdout: bool = False
    compute_dtype: str = "float32"
    loss: str = "cross_entropy"

    def __post_init__(self):
        model = sorted(dict(self.model).items())
        plain: dict[str, Any] = {
            "model": tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in model),
            "probe_steps": tuple(int(step) for step in self.probe_steps),
            "capacity": int(self.num_examples if self.capacity is None else self.capacity),
        }
        for field in dataclasses.fields(self):
            kind: Any = field.type
            if kind in (int, float, bool, str):  # 1 and 1.0 name the same condition
                plain[field.name] = kind(getattr(self, field.name))
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.trunk_steps and (self.on_holdout or not self.shared_start):
            raise ValueError(
                "trunk_steps needs shared_start, since a trunk has one beginning, and on_holdout "
                "has no trunk: it is of both halves"
            )
        if self.trunk_steps and not 0 < self.trunk_steps <= self.probe_steps[-1]:
            raise ValueError(
                f"trunk_steps must lie in [0, {self.probe_steps[-1]}], the steps of training, got "
                f"{self.trunk_steps}"
            )
        if self.width:
            self._check_width()
        models.check_dtype(self.compute_dtype)
        training.check_loss(self.loss)
        if self.trunk_steps and self.batch_capacity:
            raise ValueError("a trunk has batches of one size: batch_capacity must be 0")
        if self.batch_capacity and not 1 <= self.batch_size <= self.batch_capacity:
            raise ValueError(
                f"batch_size must lie in [1, {self.batch_capacity}], batch_capacity, got "
                f"{self.batch_size}"
            )

    def _check_width(self):
        """Checks that the width is that of an MLP and fits its layers."""
        model = dict(self.model)
        if model.get("kind") != "mlp" or model.get("activation") in ("sigmoid", "softplus"):
            raise ValueError(
                "width is of an 'mlp' whose activation is 0 at 0, where masked units stay out of "
                f"it, got {model}"
            )
        largest = min(model.get("widths", models.MLP.widths))
        if not 1 <= self.width <= largest:
            raise ValueError(
                f"width must lie in [1, {largest}], the narrowest layer, got {self.width}"
            )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that identify the condition."""
        return _id(self)

    @property
    def module(self) -> models.nn.Module | CustomModel:
        """The module of the condition, which has `init` and `apply` as linen modules have."""
        return models.build(dict(self.model), num_classes=self.num_classes)

    @property
    def apply_fn(self) -> ApplyFn:
        """`(params, x) -> logits` of the condition's model."""
        module = self.module

        def apply_fn(params: Params, x: Array) -> Array:
            return jnp.asarray(module.apply({"params": params}, x))

        return apply_fn

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a plain dict, which `Condition(**fields)` reads back."""
        return dataclasses.asdict(self) | {"model": dict(self.model)}


@functools.lru_cache(maxsize=4096)
def _id(condition: Condition) -> str:
    """Returns twelve digits of the hash of a condition's fields."""
    fields = dataclasses.asdict(condition)
    # Fields added later count only where they are set: populations stored before keep their ids.
    later = {name: fields.pop(name) for name in _LATER}
    later = {name: value for name, value in later.items() if value not in _UNSET}
    return storage.json_digest(fields | later)[:12]


_SHARED = ("shared_start", "shared_order")
_LATER = (
    *_SHARED,
    "on_holdout",
    "trunk_steps",
    "batch_capacity",
    "width",
    "stop_loss",
    "common_holdout",
    "compute_dtype",
    "loss",
)
_UNSET = (False, 0, "float32", "cross_entropy")
DATA_FIELDS: dict[str, Any] = {
    "noise_rate": 0.0,
    "overlap": 0.0,
    "num_examples": 0,
    "learning_rate": 0.0,
    "weight_decay": 0.0,
    "permuted": False,
    "shared_start": False,
    "shared_order": False,
    "common_holdout": False,
    "seed": 0,
    "dataset": "",
    "subset": "",
    "architecture": "",
}
"""Fields that shape no compiled program, with the value that stands for all."""
TRAINING_FIELDS: dict[str, Any] = {
    "optimizer": "",
    "batch_size": 0,
    "batch_capacity": 0,
    "probe_steps": (),
    "on_holdout": False,
    "shared_start": False,
    "trunk_steps": 0,
    "stop_loss": 0.0,
    "compute_dtype": "float32",
    "loss": "cross_entropy",
}
"""Fields that shape neither a model nor what is read of it, only its training."""
MODEL_FIELDS: dict[str, Any] = TRAINING_FIELDS | {"model": (), "width": 0}
"""Fields that do not shape the draw of halves."""
SAMPLE_FIELDS: dict[str, Any] = {"capacity": 0, "num_holdout": 0, "stratified": False}
"""Fields that shape the halves alone."""


def program_of(condition: Condition, *, trains: bool = True) -> Condition:
    """Returns the part of a condition that shapes a compiled program, the rest at fixed values.

    Args:
      condition: the condition.
      trains: whether the program trains models. One that only reads them serves all conditions that
        differ in training alone.
    """
    fields = DATA_FIELDS | {
        # With a trunk the start is shared whatever the data say.
        "shared_start": condition.trunk_steps > 0,
        # Only whether these are in use shapes the program.
        "width": min(condition.width, 1),
        "stop_loss": float(condition.stop_loss > 0),
        "batch_size": condition.batch_capacity or condition.batch_size,
        # The steps at which a walk is read do not change the walk.
        "probe_steps": condition.probe_steps[-1:],
    }
    return dataclasses.replace(condition, **fields if trains else fields | TRAINING_FIELDS)


def hyperparameters(condition: Condition) -> dict[str, Array]:
    """Returns the part of a condition that is data of the compiled program, as arrays."""
    names = ("noise_rate", "overlap", "learning_rate", "weight_decay", "stop_loss")
    floats = {name: jnp.float32(getattr(condition, name)) for name in names}
    flags = {n: jnp.bool_(getattr(condition, n)) for n in ("permuted", *_SHARED)}
    integers = ("num_examples", "batch_size", "width")
    return floats | flags | {n: jnp.int32(getattr(condition, n)) for n in integers}


def holdout_key(condition: Condition) -> Key | None:
    """Returns the key that decides S where it is common to all pairs, else None."""
    if not condition.common_holdout:
        return None
    return named_key(jax.random.key(condition.seed), "holdout")


def split_arguments(condition: Condition) -> dict[str, Any]:
    """Returns the keyword arguments of `populations.split` for a condition."""
    names = ("num_examples", "num_classes", "capacity", "num_holdout")
    names += ("overlap", "noise_rate", "stratified")
    return {name: getattr(condition, name) for name in names}


class Drawn(NamedTuple):
    """Halves and S of a pair, and `[2, N]` the labels its models train on."""

    halves: Halves
    trained_labels: Array


def split_key(key: Key) -> tuple[Key, Key, Key, Key]:
    """Returns a pair's keys: of halves, permutations, initial models `[2]` and orders `[2]`."""
    key_split, key_permute, *models_keys = jax.random.split(key, 4)
    per_model = jax.vmap(jax.random.split)(jnp.stack(models_keys))
    return key_split, key_permute, per_model[:, 0], per_model[:, 1]


def share_key(keys: Key, shared: Array) -> Key:
    """Returns the keys `[2]` of two models; where they share, B has that of A.

    Args:
      keys: `[2]`, of A and B.
      shared: scalar bool, whether they share; may be traced.
    """
    return keys[jnp.where(shared, jnp.zeros(2, int), jnp.arange(2))]


def sample_pair(
    key: Key,
    labels: Array,
    settings: Mapping[str, Array],
    common: Key | None = None,
    *,
    program: Condition,
) -> Drawn:
    """Returns the halves of one pair and the labels its models train on.

    Args:
      key: the PRNG key of the pair.
      labels: `[N]` clean labels of the pool.
      settings: data of the condition, from `hyperparameters`.
      common: the PRNG key of an S that is the same for all pairs, from `holdout_key`; None: each
        pair draws its own S.
      program: what shapes the compiled program, from `program_of`.
    """
    key_split, key_permute, *_ = split_key(key)
    arguments: dict[str, Any] = split_arguments(program) | {
        name: settings[name] for name in ("num_examples", "overlap", "noise_rate")
    }
    parts = halves.split(key_split, labels, holdout_key=common, **arguments)
    samples = stack_halves(parts)
    permuted = jax.vmap(halves.permute_labels)(jax.random.split(key_permute), samples)
    return Drawn(parts, jnp.where(settings["permuted"], permuted, samples.labels))


def init_pair(
    key: Key, images: Array, settings: Mapping[str, Array], *, program: Condition
) -> Params:
    """Returns the initial parameters of both models of a pair, leaves `[2, ...]`.

    Args:
      key: the PRNG key of the pair.
      images: images `[B, H, W, D]`, of which only the shape matters.
      settings: data of the condition, from `hyperparameters`.
      program: what shapes the compiled program, from `program_of`.
    """
    _, _, starts, _ = split_key(key)
    starts = share_key(starts, settings["shared_start"])

    def initialize(key):
        params = program.module.init(key, images[:1])["params"]
        return models.narrow(params, settings["width"]) if program.width else params

    return jax.lax.map(initialize, starts)


def stack_halves(parts: Halves) -> Sample:
    """Returns both halves of a pair, leaves `[2, N]`."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), parts.a, parts.b)
