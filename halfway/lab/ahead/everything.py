"""Every program of every study, attack and landscape at a tiny size, compiled ahead of time."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, losses, models, sharding
from halfway.data import Split
from halfway.lab import studies
from halfway.lab.ahead import PROGRAM_KINDS, programs
from halfway.lab.ahead.recording import Recorder
from halfway.lab.config.place import Place
from halfway.lab.config.settings import RunConfig
from halfway.lab.runtime.devices import Hardware, lay_out
from halfway.lab.study.conditions import condition
from halfway.lab.user_models import loading
from halfway.types import Array

REASONS: Mapping[str, str] = {}
"""Why a program does not compile, by its name: whatever else fails is a fault."""
MODELS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"kind": "mlp", "widths": (32,)},
    "cnn": {"kind": "cnn", "features": (4, 8), "stride": 2, "widths": (16,)},
    "residual": {"kind": "residual", "features": (4, 8), "blocks": 1},
    "transformer": {"kind": "transformer"},
}
"""A small model of each kind that configs name."""

WITHOUT_THREAT: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "boundary": ({},),
    "carlini_wagner": ({},),
    "ddn": ({},),
    "deepfool": ({"norm": "l2"}, {"norm": "linf"}),
    "fab": ({"norm": "l2"}, {"norm": "linf"}, {"norm": "l1"}),
    "fmn": ({"norm": "l2"}, {"norm": "linf"}, {"norm": "l1"}),
    "hop_skip_jump": ({"norm": "l2"}, {"norm": "linf"}),
    "sigma_zero": ({},),
    "sparse_rs": ({"num_pixels": 3},),
    "sparse_tabu": ({},),
    "spatial": ({},),
}
"""The attacks on a `logits_fn` that an evaluation does not take, with the options of each program.

`universal` and `svre` have programs of their own.
"""


def compile_all(
    record: Recorder,
    hardware: Hardware,
    config: RunConfig,
    pool: Split,
    *,
    parts: tuple[str, ...] = PROGRAM_KINDS,
    only: tuple[str, ...] = ("all",),
) -> None:
    """Compiles all programs for a slice, in both dtypes of a training step.

    Args:
      record: takes the programs.
      hardware: the slice.
      config: the settings of a run, of a tiny size.
      pool: the examples that halves are drawn from.
      parts: of `PROGRAM_KINDS`.
      only: names of studies, or "all".
    """
    chosen = studies.choose(list(only))
    for dtype in models.DTYPES:
        record.dtype = dtype
        training = dataclasses.replace(config.training, compute_dtype=dtype)
        rounded = dataclasses.replace(config, training=training)
        unsuitable = studies.unsuitable(chosen, rounded)
        suitable = [study for study in chosen if study.id not in unsuitable]
        with sharding.use(lay_out(Place(), [condition(rounded, "mlp")], pool, hardware)):
            if "studies" in parts:
                programs.of_run(record, rounded, suitable, pool)
            if "models" in parts:
                _models(record, rounded, pool)
            if dtype != models.DTYPES[0]:
                continue  # nothing else has a training step
            if "landscapes" in parts:
                _landscapes(record, rounded, pool)
            if "attacks" in parts:
                _attacks(record, rounded, pool)


def _landscapes(record: Recorder, config: RunConfig, pool: Split) -> None:
    """Compiles the landscapes of a run, and those of three models that a user brings."""
    trained = condition(config, "mlp")
    programs.of_landscapes(record, trained, pool, config.landscape)
    images, labels = jnp.asarray(pool.images[:64]), jnp.asarray(pool.labels[:64])
    starts = jax.vmap(trained.module.init, (0, None))(
        jax.random.split(jax.random.key(0), 3), images[:1]
    )
    members = [jax.tree.map(lambda leaf, i=i: leaf[i], starts["params"]) for i in range(3)]

    def loss_fn(params: Any) -> Array:
        return losses.cross_entropy(trained.apply_fn(params, images), labels).mean()

    programs.of_user_landscapes(record, loss_fn, members, config.landscape)


def _models(record: Recorder, config: RunConfig, pool: Split) -> None:
    """Compiles the training of a model of each kind, G1 on it."""
    for name, model in MODELS.items():
        config_here = dataclasses.replace(config, architectures=(name,), models={name: model})
        programs.of_run(record, config_here, studies.choose(["G1"]), pool)


def _attacks(record: Recorder, config: RunConfig, pool: Split) -> None:
    """Compiles every attack on a small CNN, an evaluation and a transfer grid."""
    shape = pool.images.shape[1:]
    module = models.build(dict(MODELS["cnn"]), num_classes=config.num_classes)
    params = module.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    model = functools.partial(_logits, module, params)
    images, labels = np.asarray(pool.images[:64], np.float32), np.asarray(pool.labels[:64])
    threats = [attacks.linf(0.1), attacks.l2(1.0), attacks.l1(5.0)]
    fns = loading.named_attacks(loading.attack_names())
    for threat in threats:
        programs.of_evaluation(record, model, images, threats=[threat], attacks=fns)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    apply_fn = functools.partial(_logits, module)
    examples = jax.random.key(0), jnp.asarray(images), jnp.asarray(labels)
    for name, variants in WITHOUT_THREAT.items():
        for options in variants:
            attack = functools.partial(getattr(attacks, name), model, **options)
            programs.of_attack(record, attack, *examples)
    universal = functools.partial(attacks.universal, model, threat=threats[0])
    programs.of_attack(record, universal, *examples)
    svre = functools.partial(attacks.svre, apply_fn, threat=threats[0])
    programs.of_attack(record, svre, *examples, params=stacked)
    group = {"cnn": (apply_fn, stacked)}
    programs.of_transfer(
        record,
        group,
        group,
        x=images,
        labels=labels,
        attack_fns=loading.choose_attacks(["pgd", "mi_fgsm"], None),
        budgets=[0.1],
    )


def _logits(module: Any, params: Any, x: Array) -> Array:
    return module.apply({"params": params}, x)
