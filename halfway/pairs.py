"""One pair trained under one condition: pure functions that `populations` maps over many pairs."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from halfway import halves, meeting, models, training
from halfway.halves import Halves, Sample
from halfway.training import TrainState
from halfway.types import ApplyFn, Array, Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What defines a population: two populations of equal conditions are the same.

    Numbers, lists and mappings are made plain and hashable, so that a condition can be written as
    its fields come, and read back from JSON.

    Attributes:
      dataset: a name that `data.load` knows.
      architecture: a short name for the model, for records and figures.
      model: the model's plain config, see `models.build`; kept as sorted (field, value) pairs.
      num_classes: C.
      num_examples: n of each half.
      num_holdout: static length of S.
      probe_steps: numbers of steps at which the landscapes are read; the last ends training.
      num_pairs: P.
      seed: of the whole population; pair p of two conditions with one seed shares halves, noise
        draws, initializations and the order of its batches.
      subset: of the data set that the halves are drawn from: "train", or "all" with its test split.
      capacity: static length of the halves, at least n; n by default.
      overlap: share of examples in both halves, in [0, 1].
      noise_rate: ρ in [0, 1].
      permuted: whether each model trains on its half's labels permuted within the half (control).
      stratified: whether splits keep class shares.
      optimizer: "adam" or "sgd".
      learning_rate: constant.
      weight_decay: decoupled.
      batch_size: of a step.

    Examples:
      >>> condition = pairs.Condition(
      ...     dataset="digits", architecture="mlp", model={"kind": "mlp", "widths": [128]},
      ...     num_classes=10, num_examples=600, num_holdout=597, probe_steps=(0, 700),
      ...     num_pairs=16, seed=0)
      >>> pairs.Condition(**condition.to_json()) == condition
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
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    batch_size: int = 64

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

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that identify the condition."""
        return digest(dataclasses.asdict(self))[:12]

    @property
    def module(self) -> models.nn.Module:
        """The linen module of the condition."""
        return models.build(dict(self.model), num_classes=self.num_classes)

    @property
    def apply_fn(self) -> ApplyFn:
        """`(params, x) -> logits` of the condition's model."""
        module = self.module

        def apply_fn(params: Params, x: Array) -> Array:
            return jnp.asarray(module.apply({"params": params}, x))

        return apply_fn

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict; `Condition(**it)` reads it back."""
        return dataclasses.asdict(self) | {"model": dict(self.model)}


def digest(plain: Any) -> str:
    """Returns the hexadecimal SHA-256 of plain data, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


DATA_FIELDS: dict[str, Any] = {
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
"""Fields that shape no compiled program, with the value that stands for all."""
MODEL_FIELDS: dict[str, Any] = {
    "model": (),
    "optimizer": "",
    "batch_size": 0,
    "probe_steps": (),
}
"""Fields that do not shape the draw of halves."""


def program_of(condition: Condition) -> Condition:
    """Returns the part of a condition that shapes a compiled program, the rest at fixed values."""
    return dataclasses.replace(condition, **DATA_FIELDS)


def settings_of(condition: Condition) -> dict[str, Array]:
    """Returns the part of a condition that is data of the compiled program, as arrays."""
    names = ("noise_rate", "overlap", "learning_rate", "weight_decay")
    floats = {name: jnp.float32(getattr(condition, name)) for name in names}
    return floats | {
        "num_examples": jnp.int32(condition.num_examples),
        "permuted": jnp.bool_(condition.permuted),
    }


def split_arguments(condition: Condition) -> dict[str, Any]:
    """Returns the keyword arguments of `halves.split` for a condition."""
    names = ("num_examples", "num_classes", "capacity", "num_holdout")
    names += ("overlap", "noise_rate", "stratified")
    return {name: getattr(condition, name) for name in names}


class Drawn(NamedTuple):
    """Halves and S of a pair, and `[2, N]` the labels its models train on."""

    halves: Halves
    trained_labels: Array


def _keys(key: Key) -> tuple[Key, Key, Key, Key]:
    """Returns what a pair's key is split into: for halves, permutation, inits and orders."""
    key_split, key_permute, *models_keys = jax.random.split(key, 4)
    per_model = jax.vmap(jax.random.split)(jnp.stack(models_keys))
    return key_split, key_permute, per_model[:, 0], per_model[:, 1]


def draw(key: Key, labels: Array, settings: Mapping[str, Array], *, program: Condition) -> Drawn:
    """Returns the halves of one pair and the labels its models train on.

    Args:
      key: of the pair.
      labels: `[N]` of the pool, clean.
      settings: see `settings_of`.
      program: see `program_of`.
    """
    key_split, key_permute, *_ = _keys(key)
    arguments: dict[str, Any] = split_arguments(program) | {
        name: settings[name] for name in ("num_examples", "overlap", "noise_rate")
    }
    parts = halves.split(key_split, labels, **arguments)
    own = _stack(parts)
    permuted = jax.vmap(halves.permute_labels)(jax.random.split(key_permute), own)
    return Drawn(parts, jnp.where(settings["permuted"], permuted, own.labels))


def init(key: Key, images: Array, *, program: Condition) -> Params:
    """Returns the initial parameters of both models of a pair, leaves `[2, ...]`.

    Args:
      key: of the pair.
      images: `[B, H, W, D]`, for their shape.
      program: see `program_of`.
    """
    _, _, keys, _ = _keys(key)
    return jax.lax.map(lambda key: program.module.init(key, images[:1])["params"], keys)


def fit(
    key: Key,
    params: Params,
    drawn: Drawn,
    images: Array,
    settings: Mapping[str, Array],
    *,
    program: Condition,
) -> dict[str, Any]:
    """Returns both models of a pair trained: parameters and what was read along the way.

    Args:
      key: of the pair.
      params: leaves `[2, ...]`, from `init`.
      drawn: from `draw`.
      images: `[N, H, W, D]` of the pool.
      settings: see `settings_of`.
      program: see `program_of`.

    Returns:
      `params`, `landscapes`, `constant` and `products` as in `populations.Population`, without the
      leading axis.
    """
    *_, keys = _keys(key)
    own = _stack(drawn.halves)
    other = jax.tree.map(lambda leaf: leaf[::-1], own)
    trained = own._replace(labels=drawn.trained_labels)

    def model(key, params, trained, other):
        samples = {"own": trained, "other": other, "holdout": drawn.halves.s}
        return _fit_model(key, params, images, samples, settings, program)

    return jax.vmap(model)(keys, params, trained, other)


def retrace(
    key: Key,
    params: Params,
    drawn: Drawn,
    images: Array,
    settings: Mapping[str, Array],
    *,
    program: Condition,
    steps: tuple[int, ...],
) -> Params:
    """Returns the walks of both models of a pair, leaves `[2, T, ...]`, by training them again.

    Args:
      key: of the pair.
      params: leaves `[2, ...]`, from `init`.
      drawn: from `draw`.
      images: `[N, H, W, D]` of the pool.
      settings: see `settings_of`.
      program: see `program_of`; its last probe ends training.
      steps: T numbers of steps, increasing, up to the last probe.
    """
    *_, keys = _keys(key)
    trained = _stack(drawn.halves)._replace(labels=drawn.trained_labels)

    def model(key, params, trained):
        step, state = _training(key, params, images, trained, settings, program)
        return training.fit(step, lambda params: params, state, probe_steps=steps)[1]

    return jax.vmap(model)(keys, params, trained)


def train_pair(
    key: Key, images: Array, labels: Array, settings: Mapping[str, Array], *, program: Condition
) -> dict[str, Any]:
    """Returns one trained pair: the fields of `populations.Population` without the leading axis.

    Args:
      key: consumed.
      images: `[N, H, W, D]` of the pool.
      labels: `[N]`, clean.
      settings: see `settings_of`.
      program: see `program_of`.
    """
    drawn = draw(key, labels, settings, program=program)
    params = init(key, images, program=program)
    return drawn._asdict() | fit(key, params, drawn, images, settings, program=program)


def _stack(parts: Halves) -> Sample:
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), parts.a, parts.b)


def _fit_model(
    key: Key,
    params: Params,
    images: Array,
    samples: Mapping[str, Sample],
    settings: Mapping[str, Array],
    program: Condition,
) -> dict[str, Any]:
    apply_fn, own = program.apply_fn, samples["own"]
    step, state = _training(key, params, images, own, settings, program)

    def probe(params):
        landscapes = {
            name: training.landscape_losses(apply_fn, params, images, sample)
            for name, sample in samples.items()
        }
        products = training.gradient_products(apply_fn, params, images, own, samples["other"])
        return landscapes, products

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


def _training(
    key: Key,
    params: Params,
    images: Array,
    own: Sample,
    settings: Mapping[str, Array],
    program: Condition,
) -> tuple[Callable[[TrainState, Array], TrainState], TrainState]:
    """Returns the step of a model's training, and its state before the first."""
    apply_fn = program.apply_fn
    optimizer = training.make_optimizer(
        program.optimizer, settings["learning_rate"], settings["weight_decay"]
    )
    stream = training.index_stream(
        key,
        settings["num_examples"],
        capacity=program.capacity or 0,
        num_steps=program.probe_steps[-1],
        batch_size=program.batch_size,
    )
    rows, batch_labels = own.indices[stream], own.labels[stream]

    def step(state, i):
        return training.train_step(apply_fn, optimizer, state, images[rows[i]], batch_labels[i])

    return step, training.init(params, optimizer)


def _constant_fn(logits: Array, x: Array) -> Array:
    return jnp.broadcast_to(logits, (x.shape[0], logits.shape[0]))
