"""Synthetic records on which decision rules are tested: known effects, the study's own noise.

Standard deviations over pairs are those of the run on digits (16 pairs), rounded up; they only have
to be realistic, since a rule's size must not depend on them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from halfway.lab.config import config_file
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Records
from halfway.populations import Condition

CONFIG: RunConfig = config_file.load().config
"""The setting that plants have the shape of."""
NOISE = 0.02
"""Standard deviation over pairs of M_θ in error."""


def learning(
    rng: np.random.Generator, config: RunConfig, meeting: float, noise: float = NOISE
) -> dict[str, np.ndarray]:
    """Returns arrays of one condition in which M_θ in error is `meeting` plus noise over pairs.

    Args:
      rng: consumed.
      config: for the number of pairs.
      meeting: expected M_θ.
      noise: its standard deviation over pairs.
    """
    size = (config.num_pairs, 2)
    start_own = rng.normal(0.885, 0.004, size)
    start_other = rng.normal(0.9, 0.006, size)
    own = rng.uniform(0.0, 0.004, size)
    # Both directions of a pair share most of the noise; the mean of the two has all of it.
    gain = meeting + rng.normal(0.0, noise, (config.num_pairs, 1))
    other = start_other - gain * (start_own - own)
    return {
        "error.own": own,
        "error.other": other,
        "constant_error.own": start_own,
        "constant_error.other": start_other,
        "finite": np.ones(config.num_pairs),
    }


def transfer(
    rng: np.random.Generator,
    config: RunConfig,
    increases: Mapping[tuple[str, str], float],
    noise: float,
) -> dict[str, np.ndarray]:
    """Returns arrays of one condition with given mean increases of the targets' margin loss.

    Args:
      rng: consumed.
      config: for pairs, examples and budget.
      increases: mean over examples for (attack, target), target "other", "own" or "permuted".
      noise: standard deviation over pairs of each.
    """
    arrays: dict[str, np.ndarray] = {"finite": np.ones(config.num_pairs)}
    for (attack, target), mean in increases.items():
        values = mean + rng.normal(0.0, noise, (config.num_pairs, 1)) * np.ones(2)
        arrays[f"increase.{attack}.{target}"] = config.num_holdout * values
        counts = np.full((config.num_pairs, 2), float(config.num_holdout))
        arrays[f"num_examples.{attack}.{target}"] = counts
    return arrays


def success(
    rng: np.random.Generator,
    config: RunConfig,
    shares: Mapping[tuple[str, str], float],
    subset: str = "both_correct",
) -> dict[str, np.ndarray]:
    """Returns arrays of one condition with given success rates, at every budget alike.

    Args:
      rng: consumed.
      config: for pairs, examples and budgets.
      shares: fooled among the counted examples for (attack, target), as in `transfer`.
      subset: the denominator; nine tenths of S are counted.
    """
    size, counted = (config.num_pairs, 2), int(0.9 * config.num_holdout)
    budgets = sorted({float(config.attack.epsilon), *map(float, config.attack.budgets)})
    arrays = {}
    for (attack, target), share in shares.items():
        for budget in budgets:
            where = f"{attack}.{target}.{subset}.{budget!r}"
            fooled = rng.binomial(counted, share, size).astype(np.float64)
            arrays[f"num_fooled.{where}"] = fooled
            arrays[f"num_examples.{where}"] = np.full(size, float(counted))
    return arrays


def named(quantity: str, subset: str = "", step: int | None = None) -> str:
    """Returns the name of an array of a quantity, `[P]` or `[P, 2]` by surrogate, in `records`."""
    return f"={quantity}={subset}={'' if step is None else step}"


def records(
    config: RunConfig,
    parts: Mapping[Condition, Mapping[str, np.ndarray]],
    arrays: Mapping[tuple[str, str], Mapping[str, np.ndarray]] | None = None,
) -> Records:
    """Returns records of conditions with arrays named as `learning`, `transfer`, `named` do."""
    names = tuple(
        (one, tuple((name, array.ndim) for name, array in values.items()))
        for one, values in parts.items()
    )
    template = _template(names, float(config.attack.epsilon))
    values = [array.reshape(-1) for one in parts.values() for array in one.values()]
    table = template.assign(value=np.concatenate(values))
    return Records(table, _conditions(tuple(parts)), config, arrays or {})


@functools.lru_cache(maxsize=16)
def _conditions(conditions: tuple[Condition, ...]) -> pd.DataFrame:
    return tables.conditions_table(conditions)


@functools.lru_cache(maxsize=16)
def _template(
    names: tuple[tuple[Condition, tuple[tuple[str, int], ...]], ...], budget: float
) -> pd.DataFrame:
    """Returns the table without its values: the slow part, the same for every draw."""
    frames = []
    for one, keys in names:
        shape = one.num_pairs, one.probe_steps[-1]
        frames += [
            frame.assign(condition=one.key)
            for frame in (_frame(key, num_axes, *shape, budget) for key, num_axes in keys)
        ]
    return tables.concat(frames)


@functools.lru_cache(maxsize=1024)
def _frame(key: str, num_axes: int, num_pairs: int, last_step: int, budget: float) -> pd.DataFrame:
    """Returns the rows of one array of a condition."""
    pairs, blank = {"pair": range(num_pairs)}, np.zeros((num_pairs, 2))
    both = pairs | {"surrogate": tables.HALVES}
    quantity, *rest = key.split(".")
    named: dict[str, Any] = {"quantity": quantity}
    if key.startswith("="):
        _, named["quantity"], subset, step = key.split("=")
        named |= {"subset": subset} if subset else {}
        named |= {"step": int(step)} if step else {}
        axes, values = (both, blank) if num_axes == 2 else (pairs, blank[:, 0])
        return tables.rows(values, axes, **named)
    if quantity == "finite":
        return tables.rows(blank[:, 0], pairs, **named)
    if quantity in ("increase", "num_examples", "num_fooled"):
        _, attack, target, *where = key.split(".", 4)
        subset, at = where if where else ("all", budget)
        named |= {"attack": attack, "budget": float(at), "subset": subset}
        frame = tables.rows(blank, both, **named)
        names_of_target = {
            "other": tables.OTHER,
            "own": {name: name for name in tables.HALVES},
            "permuted": {k: f"{v} permuted" for k, v in tables.OTHER.items()},
        }[target]
        return frame.assign(target=[names_of_target[name] for name in frame["surrogate"]])
    step = None if quantity.startswith("constant") else last_step
    return tables.rows(blank, both, subset=rest[0], step=step, **named)
