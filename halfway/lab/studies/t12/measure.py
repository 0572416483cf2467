"""What is said to decide transfer, over architectures and weight decays: T12's measurement.

A condition is an architecture with a weight decay. Its θ_A are surrogates, its θ_B targets; S is
the same for all models, and the two halves of one pair never meet.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import attacks, losses, transfer
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.measurements.crossed import SURROGATE, TARGET, side
from halfway.lab.study import evidence
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measurement
from halfway.populations import Condition, Population
from halfway.types import ApplyFn, Array, Params

NUM_PAIRS = 6
"""Of a condition, in two sets: one for what predicts, one for what is predicted."""
EXPONENTS, SMALL_EXPONENTS = tuple(range(-3, 5)), (-3, 0, 3)
"""A weight is forgotten within 2^−k of the length of training: from eight times it to a 16th."""


class Unit(NamedTuple):
    """A condition: its architecture's place among the four, and what it is trained with."""

    architecture: int
    condition: Condition


def architectures(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Returns four models by name: linear, the config's first MLP, one twice as deep, its CNN.

    The deeper MLP is half as wide; where the config has no MLP or CNN, those of digits stand in.

    Args:
      config: of the run.
    """
    known = list(config.models.values())
    mlp = {"kind": "mlp", "widths": (128, 128)}
    mlp = next((m for m in known if m["kind"] == "mlp" and len(m["widths"])), mlp)
    cnn = {"kind": "cnn", "features": (16, 32), "stride": 2, "widths": (64,)}
    cnn = next((m for m in known if m["kind"] == "cnn"), cnn)
    deep = mlp | {"widths": tuple(max(1, w // 2) for w in mlp["widths"] for _ in range(2))}
    return {"linear": {"kind": "linear"}, "mlp": mlp, "deep mlp": deep, "cnn": cnn}


def units(config: RunConfig) -> list[Unit]:
    """Returns every architecture with every weight decay, decays of one next to each other.

    With a learning rate η, T steps and decoupled decay λ a weight loses a share η λ a step: what a
    step has done is forgotten after 1/(η λ) more of them. λ = 2^k/(η T) runs from a decay that
    training hardly feels (an eighth of a weight lost in all of it) to one that remembers a 16th of
    training, in steps of a factor of 2; fewer of them in a run that counts as no evidence anyhow.

    Args:
      config: of the run.
    """
    base = condition(config, config.architectures[0])
    small = base.num_pairs < evidence.MIN_PAIRS
    last = base.probe_steps[-1]
    return [
        Unit(
            place,
            dataclasses.replace(
                base,
                architecture=name,
                model=model,
                num_pairs=NUM_PAIRS,
                weight_decay=2.0**k / (base.learning_rate * last),
                probe_steps=(0, last),
                common_holdout=True,
            ),
        )
        for place, (name, model) in enumerate(architectures(config).items())
        for k in (SMALL_EXPONENTS if small else EXPONENTS)
    ]


def sets(num_pairs: int) -> np.ndarray:
    """Returns `[2, P/2]` pairs: what is measured on the one set is never compared with itself."""
    return np.arange(num_pairs).reshape(2, -1)


def partners(num_pairs: int) -> np.ndarray:
    """Returns `[P, P/2 − 1]` for each pair the others of its set, whose θ_B its θ_A meets."""
    return np.array(
        [[q for q in pairs if q != p] for pairs in sets(num_pairs).tolist() for p in pairs], int
    )


def _slopes(apply_fn: ApplyFn, params: Params, x: Array, labels: Array) -> tuple[Array, Array]:
    """Returns margin loss `[B]` of a model and its input gradient `[B, ...]`."""

    def total(points):
        loss = losses.margin(apply_fn(params, points), labels)
        return loss.sum(), loss

    (_, loss), slope = jax.value_and_grad(total, has_aux=True)(x)
    return loss, slope


def _surrogate(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns what θ_A makes of S and how sure it is of it, and how steep θ_B is there."""
    key_attack, key_noise = jax.random.split(pair.key)
    rows, threat = pair.halves.s.indices, attacks.linf(shared.epsilon)
    x, labels = shared.images[rows], shared.labels[rows]
    surrogate, target = (
        jax.tree.map(lambda leaf, place=place: leaf[place], pair.params)
        for place in (SURROGATE, TARGET)
    )
    logits_fn = functools.partial(program.apply_fn, surrogate)
    adversarial = program.attack(shared.epsilon)(logits_fn, key_attack, x, labels).adversarial
    loss, slope = _slopes(program.apply_fn, surrogate, x, labels)
    target_loss, target_slope = _slopes(program.apply_fn, target, x, labels)
    return {
        "attack": adversarial,
        "noise": transfer.matched_noise(key_noise, x, adversarial).points,
        "direction": threat.steepest(slope),
        "correct": transfer.evaluate(logits_fn, x, labels).correct,
        # The margin, not the margin loss, over its own mean size.
        "margin": -loss / jnp.abs(loss).mean(),
        "size": threat.dual_norm(target_slope).mean() / jnp.abs(target_loss).mean(),
    }


class Target(NamedTuple):
    """A model that is attacked: its parameters, and the pairs `[Q]` whose surrogates it meets."""

    params: Params
    partners: Array


class Met(NamedTuple):
    """What all targets see: S, rows `[B]` of the pool, and points of the surrogates `[P, B, ...]`.

    Attributes:
      rows: of S.
      surrogates: what `_surrogate` gives.
    """

    rows: Array
    surrogates: Mapping[str, Any]


def _target(target: Target, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns what each surrogate does to a target, `[Q]` each; `shared.extra` is a `Met`."""
    rows, surrogates = shared.extra
    x, labels = shared.images[rows], shared.labels[rows]
    _, slope = _slopes(program.apply_fn, target.params, x, labels)
    dual = attacks.linf(shared.epsilon).dual_norm(slope)
    defined = dual > 0

    def correct(points):
        return program.apply_fn(target.params, points).argmax(-1) == labels

    clean = correct(x)

    def meet(surrogate):
        both = clean & surrogate["correct"]
        score = (slope * surrogate["direction"]).reshape(len(x), -1).sum(-1)
        return {
            "num_examples": both.sum(),
            "num_fooled": (both & ~correct(surrogate["attack"])).sum(),
            "num_by_noise": (both & ~correct(surrogate["noise"])).sum(),
            "tau": losses.masked_mean(score / jnp.where(defined, dual, 1.0), defined, axis=-1),
        }

    return jax.lax.map(meet, jax.tree.map(lambda leaf: leaf[target.partners], surrogates))


def _measure(context: Context) -> xr.Dataset:
    """Returns what a condition's surrogates do to the targets of every condition.

    The first population is that of the surrogates, the others are the targets, itself among them.
    `num_examples` both had right, `num_fooled`, `num_by_noise` and `tau` (pair, target_condition,
    partner), the pair being the surrogate's and its target that of `partners`; `size` (pair) of
    θ_B's own input gradients. Of each example, `margin` (pair, example) of θ_A over its mean size.
    """
    first, *targets = context.populations
    num_pairs = first.condition.num_pairs
    surrogates = context.over_pairs(_surrogate, at_once=1)
    margin, size = surrogates.pop("margin"), surrogates.pop("size")
    met = Met(first.halves.s.indices[0], surrogates)
    meets = partners(num_pairs)
    parts = []
    for together in _by_program(targets):
        models = [side(target.params, TARGET) for target in together]
        members = Target(
            jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *models),
            jnp.asarray(np.tile(meets, (len(together), 1))),
        )
        arrays = context.over_members(
            _target,
            members,
            condition=together[0].condition,
            shared_extra=met,
            at_once=num_pairs,
        )
        parts.append({k: v.reshape(-1, *meets.shape) for k, v in arrays.items()})
    numbers: dict[str, Any] = {
        name: (
            ("pair", "target_condition", "partner"),
            _of_surrogates(np.concatenate([part[name] for part in parts]), meets),
        )
        for name in parts[0]
    }
    numbers["size"] = ("pair",), size
    outcomes = {"margin": (("pair", "example"), margin.astype(np.float32))}
    names = [target.condition.id for target in targets]
    return context.dataset(numbers, outcomes, target_condition=names)


def _of_surrogates(values: np.ndarray, meets: np.ndarray) -> np.ndarray:
    """Returns `[P, T, Q]` with the surrogate's pair first, of `[T, P, Q]` with the target's.

    Args:
      values: of T conditions, a target's pair, and the surrogates that it meets.
      meets: `[P, Q]`, see `partners`: the surrogates of a target, and so the targets of a
        surrogate.
    """
    pairs = np.arange(len(meets))[:, None, None]
    place = (meets[meets] == pairs).argmax(-1)  # of a surrogate among those of its target
    return values[:, meets, place].swapaxes(0, 1)


def _by_program(targets: Sequence[Population]) -> list[list[Population]]:
    """Returns runs of neighbours of one model, which one program takes together."""
    runs: list[list[Population]] = []
    for target in targets:
        if runs and runs[-1][0].condition.model == target.condition.model:
            runs[-1].append(target)
        else:
            runs.append([target])
    return runs


TRANSFER_FACTORS = Measurement("transfer_factors", _measure)
