"""From a config to the conditions that studies ask for."""

import dataclasses
from typing import Any

from halfway import populations
from halfway.lab.config.settings import RunConfig
from halfway.populations import Condition


def condition(
    config: RunConfig, architecture: str, *, noise_rate: float = 0.0, permuted: bool = False
) -> Condition:
    """Returns a condition of the config, at its own n and without overlap.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
      noise_rate: ρ.
      permuted: whether models train on permuted labels (the control of G1 and T1).
    """
    fields: dict[str, Any] = dataclasses.asdict(config.training)
    return populations.Condition(
        dataset=config.dataset,
        subset=config.subset,
        architecture=architecture,
        model=config.models[architecture],
        num_classes=config.num_classes,
        num_examples=config.num_examples,
        num_holdout=config.num_holdout,
        num_pairs=config.num_pairs,
        seed=config.seed,
        noise_rate=noise_rate,
        permuted=permuted,
        **fields,
    )


def control(config: RunConfig, architecture: str) -> Condition:
    """Returns the control with permuted labels: same halves, seeds and batches, no label noise.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    return condition(config, architecture, permuted=True)


def order(config: RunConfig, condition: Condition) -> tuple[Any, ...]:
    """Returns what conditions are sorted by in tables: architecture, control last, noise rate.

    Architectures come in the config's order, those that are a study's own after them.

    Args:
      config: of the run.
      condition: to be placed.
    """
    names = [*config.architectures, condition.architecture]
    place = names.index(condition.architecture)
    return place, condition.architecture, condition.permuted, condition.noise_rate, condition.id
