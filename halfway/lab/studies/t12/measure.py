"""What is said to decide transfer, over architectures and weight decays: T12's measurement.

A condition is an architecture with a weight decay. Its θ_A are surrogates, its θ_B targets; S is
the same for all models, and the two halves of one pair never meet.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, losses, populations, sharding, transfer
from halfway.data import Split
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.study import evidence, tables
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Condition, Population
from halfway.types import Array, Key

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


def others(num_pairs: int) -> np.ndarray:
    """Returns `[P, P/2 − 1]` for each pair the others of its set, whose θ_B its θ_A meets."""
    return np.array(
        [[q for q in one if q != p] for one in sets(num_pairs).tolist() for p in one], int
    )


def _slopes(apply_fn: Any, params: Any, x: Array, labels: Array) -> tuple[Array, Array]:
    """Returns margin loss `[B]` of a model and its input gradient `[B, ...]`."""

    def total(z):
        loss = losses.margin(apply_fn(params, z), labels)
        return loss.sum(), loss

    (_, loss), slope = jax.value_and_grad(total, has_aux=True)(x)
    return loss, slope


@functools.partial(sharding.jit, static_argnames=("program", "settings"))
def _attack_program(
    members, x, labels, epsilon, *, program: Condition, settings: tuple[int, float]
):
    """Surrogates, one after the other: attack, matched noise, and what they say of x."""
    apply_fn = program.apply_fn

    def one(member, x, labels, epsilon):
        (key_attack, key_noise), params = member
        attack = attack_of(settings, epsilon)
        logits_fn = functools.partial(apply_fn, params)
        adversarial = attack(logits_fn, key_attack, x, labels).adversarial
        loss, slope = _slopes(apply_fn, params, x, labels)
        return {
            "attack": adversarial,
            "noise": transfer.matched_noise(key_noise, x, adversarial).points,
            "direction": attacks.linf(epsilon).steepest(slope),
            "correct": transfer.evaluate(logits_fn, x, labels).correct,
            # The margin, not the margin loss, over its own mean size.
            "margin": -loss / jnp.abs(loss).mean(),
        }

    spread = sharding.spread(one, at_once=1)
    return spread(members, x, labels, epsilon)


@functools.partial(sharding.jit, static_argnames=("program",))
def _target_program(members, surrogates, rows, x, labels, epsilon, *, program: Condition):
    """Target conditions, one after the other: surrogates' points at the targets `rows [P, Q]`."""
    apply_fn = program.apply_fn

    def one(params, surrogates, rows, x, labels, epsilon):
        threat = attacks.linf(epsilon)
        loss, slope = jax.vmap(lambda p: _slopes(apply_fn, p, x, labels))(params)
        dual = jax.vmap(threat.dual_norm)(slope)

        def meet(surrogate_and_rows):
            surrogate, rows = surrogate_and_rows
            chosen = jax.tree.map(lambda leaf: leaf[rows], params)

            def correct(points):
                logits = jax.vmap(lambda p: apply_fn(p, points))(chosen)
                return logits.argmax(-1) == labels[None]

            both = correct(x) & surrogate["correct"][None]
            score = slope[rows] * surrogate["direction"][None]
            score = score.reshape(*both.shape, -1).sum(-1)
            defined = dual[rows] > 0
            tau = score / jnp.where(defined, dual[rows], 1.0)
            return {
                "num_examples": both.sum(-1),
                "num_fooled": (both & ~correct(surrogate["attack"])).sum(-1),
                "num_by_noise": (both & ~correct(surrogate["noise"])).sum(-1),
                "tau": losses.masked_mean(tau, defined, axis=-1),
            }

        return jax.lax.map(meet, (surrogates, rows)), dual.mean(-1) / jnp.abs(loss).mean(-1)

    spread = sharding.spread(one, at_once=1)
    return spread(members, surrogates, rows, x, labels, epsilon)


def _factors(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns what a condition's surrogates do to the targets of every condition.

    The first population is that of the surrogates, the others are the targets, itself among them.
    Arrays, with a surrogate's pair first: `num_examples` both had right, `num_fooled`,
    `num_by_noise` and `tau` `[P, T, Q]` at the targets of the other pairs of its set, see `others`;
    `margin` `[P, B]` of θ_A over its mean size; `size` `[P]` of θ_B's own input gradients.
    """
    first, *targets = population
    one = first.condition
    rows = first.halves.s.indices[0]
    x, labels = jnp.asarray(pool.images, jnp.float32)[rows], jnp.asarray(pool.labels)[rows]
    epsilon = jnp.float32(config.attack.epsilon)
    keys = jax.vmap(lambda p: jax.random.split(jax.random.fold_in(key, p)))(
        jnp.arange(one.num_pairs)
    )
    surrogates = _attack_program(
        (keys, _side(first, 0)),
        x,
        labels,
        epsilon,
        program=populations.program_of(one),
        settings=settings_of(config),
    )
    margin = np.asarray(surrogates.pop("margin"), np.float32)
    met, sizes = [], []
    for together in _by_program(targets):
        members = jax.tree.map(lambda *v: jnp.stack(v), *(_side(t, 1) for t in together))
        found, size = _target_program(
            members,
            surrogates,
            jnp.asarray(others(one.num_pairs)),
            x,
            labels,
            epsilon,
            program=populations.program_of(together[0].condition),
        )
        met.append({name: np.asarray(value) for name, value in found.items()})
        sizes.append(np.asarray(size))
    arrays: dict[str, np.ndarray] = {
        name: np.concatenate([part[name] for part in met]).swapaxes(0, 1) for name in met[0]
    }
    here = [target.condition for target in targets].index(one)
    arrays |= {"margin": margin, "size": np.concatenate(sizes)[here]}
    totals = {name: value.sum((1, 2)) for name, value in arrays.items() if name.startswith("num_")}
    parts = tables.rows(
        np.array(list(totals.values()), np.float64),
        {"quantity": [f"crossed_{name}" for name in totals], "pair": range(one.num_pairs)},
        condition=one.key,
        surrogate="A",
        budget=float(config.attack.epsilon),
    )
    return Measured(parts, arrays)


def _side(population: Population, side: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, side], population.params)


def _by_program(targets: Sequence[Population]) -> list[list[Population]]:
    """Returns runs of neighbours of one model, which one program takes together."""
    found: list[list[Population]] = []
    for target in targets:
        if found and found[-1][0].condition.model == target.condition.model:
            found[-1].append(target)
        else:
            found.append([target])
    return found


FACTORS = Measurement("factors", 15, _factors)
