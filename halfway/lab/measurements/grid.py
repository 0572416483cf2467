"""Many conditions that differ in all that could move a gap, and measures said to predict it.

A full factorial plan of seven factors of two levels: 128 conditions, 64 for each noise rate. Every
two that differ in one factor alone are there, which granulated rank correlations need.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import landscapes, meeting, populations, sharding
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import evidence, tables
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key, Params, Sample

NUM_PAIRS = 8
"""Of each condition, at most; enough in a grid of 60 conditions or more."""
SMALL_PAIRS = 4
"""The same in a run that counts as no evidence anyhow, which has a quarter of the conditions."""
STOP_LOSS = 0.05
"""Mean cross-entropy on its half at which each model stops, whatever the condition."""
MAX_STEPS = 4000
"""Where a model that has not come there stops too, and is counted."""
EARLY = 20
"""The step at which coherence is measured."""


class Factor(NamedTuple):
    """What is varied: its name, and its two levels as parts of the config's own value."""

    name: str
    levels: tuple[float, float]


FACTORS = (
    Factor("noise_rate", (0.0, 0.2)),
    Factor("num_examples", (0.25, 0.75)),
    Factor("depth", (2, 4)),
    Factor("width", (0.25, 0.5)),
    Factor("learning_rate", (0.5, 2.0)),
    Factor("weight_decay", (0.0, 0.1)),
    Factor("batch_size", (0.25, 1.0)),
)
"""Noise rate, depth and weight decay as they are; the others times what the config has."""
_LEVELS = {factor.name: factor.levels for factor in FACTORS}
_FIXED_WHERE_SMALL = ("depth", "weight_decay")


class Cell(NamedTuple):
    """A condition of the grid with its level, 0 or 1, of each of `FACTORS`."""

    levels: tuple[int, ...]
    condition: Condition


def cells(config: RunConfig) -> list[Cell]:
    """Returns the grid's conditions, those of one noise rate and depth next to each other.

    They are MLPs, since width and depth are theirs, half as wide as the config's first one. With
    fewer pairs than evidence takes, depth and weight decay stay at their first level.

    Args:
      config: of the run.

    Raises:
      ValueError: if no architecture of the config is an MLP.
    """
    widths = [m["widths"] for m in config.models.values() if m["kind"] == "mlp" and m.get("widths")]
    if not widths:
        raise ValueError(
            "the grid of G3 is of MLPs: config.models must have one with a hidden layer"
        )
    base = condition(config, config.architectures[0])
    small = base.num_pairs < evidence.MIN_PAIRS
    full = widths[0][0]
    found = []
    choices = [(0,) if small and f.name in _FIXED_WHERE_SMALL else (0, 1) for f in FACTORS]
    for levels in itertools.product(*choices):
        at = {f.name: f.levels[level] for f, level in zip(FACTORS, levels, strict=True)}
        one = dataclasses.replace(
            base,
            architecture=f"mlp of depth {at['depth']:g}",
            model={"kind": "mlp", "widths": (full // 2,) * int(at["depth"])},
            num_pairs=min(SMALL_PAIRS if small else NUM_PAIRS, base.num_pairs),
            noise_rate=at["noise_rate"],
            num_examples=round(at["num_examples"] * base.num_examples),
            capacity=round(max(_LEVELS["num_examples"]) * base.num_examples),
            width=max(1, round(at["width"] * full)),
            learning_rate=at["learning_rate"] * base.learning_rate,
            weight_decay=at["weight_decay"],
            batch_size=max(1, round(at["batch_size"] * base.batch_size)),
            batch_capacity=base.batch_size,
            probe_steps=(0, EARLY, MAX_STEPS),
            stop_loss=STOP_LOSS,
        )
        found.append(Cell(levels, one))
    return found


RIVALS = {
    "parameter_norm": "parameter norm",
    "distance": "distance from initialization",
    "log_frobenius_product": "product of Frobenius norms",
    "log_spectral_product": "product of spectral norms",
    "early_loss": "training loss at step 20",
    "path_norm": "path norm",
    "margin": "margin, lower tenth",
    "margin_over_norms": "margin over spectral norms",
    "gradient_norm": "gradient norm",
    "sharpness": "sharpness, largest curvature",
    "worst_case": "sharpness, worst case nearby",
    "flatness": "PAC-Bayes flatness",
}
"""Measures of a trained model, or of its early training, that are said to predict its gap."""
_RADIUS = 0.05
"""Of the ball of `worst_case`, as a share of ‖θ‖."""


def _early(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Any]:
    """Returns signal, noise and loss of the own half, and the parameters."""
    del key
    own = samples["own"]
    x = images[own.indices]
    scale = meeting.noise_scale(program.apply_fn, params, x, own.labels, own.mask)
    found = populations.landscape_losses(program.apply_fn, params, images, own)
    return {
        "early_signal": scale.signal,
        "early_noise": scale.noise,
        "early_loss": found["cross_entropy"],
        "params": params,
    }


@functools.partial(sharding.jit, static_argnames=("program",))
def _complexity_program(members, images, *, program: Condition):
    apply_fn = program.apply_fn

    def one(key, params, start, sample):
        def loss_fn(params):
            return populations.landscape_losses(apply_fn, params, images, sample)["cross_entropy"]

        keys = jax.random.split(key, 3)
        norm = landscapes.parameter_norm(params)
        spectral = landscapes.log_spectral_product(params)
        margin = landscapes.margin_quantile(
            apply_fn(params, images[sample.indices]), sample.labels, sample.mask
        )
        return {
            "parameter_norm": norm,
            "distance": landscapes.parameter_distance(params, start),
            "log_frobenius_product": landscapes.log_frobenius_product(params),
            "log_spectral_product": spectral,
            "path_norm": landscapes.path_norm(apply_fn, params, jnp.ones_like(images[:1])),
            "margin": margin,
            # Of its sign, and monotone in the bound where it is positive.
            "margin_over_norms": margin * jnp.exp(-spectral),
            "gradient_norm": landscapes.parameter_norm(jax.grad(loss_fn)(params)),
            "sharpness": landscapes.sharpness(loss_fn, params, keys[0]),
            "worst_case": landscapes.worst_case_sharpness(
                loss_fn, params, keys[1], radius=_RADIUS * norm, num_steps=10
            ),
            "flatness": landscapes.flatness(loss_fn, params, keys[2]),
        }

    return sharding.spread(lambda member: jax.vmap(one)(*member))(members)


def _complexity(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns what is told of each model inside its own half: coherence early, measures at the end.

    `early_signal` and `early_noise` are those of P3 at step `EARLY`; `num_steps` is where the model
    stopped, `reached` whether at the loss that all were to come to.
    """
    del config
    (one,) = population
    condition = one.condition
    seen = populations.observe(condition, pool, _early, steps=(0, EARLY))
    start = jax.tree.map(lambda leaf: leaf[:, :, 0], seen.pop("params"))
    own, _ = one.samples()
    keys = jax.random.split(key, (condition.num_pairs, 2))
    images = jnp.asarray(pool.images, jnp.float32)
    members = (keys, one.params, start, own)
    values = _complexity_program(members, images, program=populations.program_of(condition))
    values |= {name: value[..., 1] for name, value in seen.items()}
    final = one.landscapes["own"]["cross_entropy"][..., -1]
    values |= {"num_steps": one.num_steps, "reached": final <= condition.stop_loss}
    both = {"pair": range(condition.num_pairs), "surrogate": tables.HALVES}
    named = {"condition": condition.key, "subset": "own"}
    axes = {"quantity": tuple(values)} | both
    return Measured(tables.rows(np.array(list(values.values())), axes, **named))


COMPLEXITY = Measurement("complexity", 12, _complexity)
