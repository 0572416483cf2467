"""What published attacks on one surrogate, and on several together, do to independent targets."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import attacks
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import crossed
from halfway.lab.measurements.context import Context, MemberFn, Program, Shared
from halfway.lab.measurements.crossed import SURROGATE, TARGET
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Params

NUM_MODELS = 16
"""Surrogates and targets of each architecture, at most."""
TOGETHER = 4
"""Surrogates that an ensemble has, at most."""
AT_ONCE = 4
"""Surrogates of a device that are attacked at once."""
NUM_STEPS = 10
"""Of each attack that takes steps, of a tenth of the budget each, as in the surveys."""


class Way(NamedTuple):
    """How surrogates are attacked: by which attack, how many together, to a class or away from one.

    Attributes:
      attack: with its options, but for the threat model, or None for SVRE, which takes the models.
      is_joint: whether `TOGETHER` surrogates are attacked as one, the mean of their logits.
      is_targeted: whether to a class drawn at random.
    """

    attack: Callable[..., attacks.AttackResult] | None
    is_joint: bool = False
    is_targeted: bool = False


def _stepped(attack: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return functools.partial(attack, num_steps=NUM_STEPS, **options)


_MOMENTUM = _stepped(attacks.mi_fgsm)
WAYS: dict[str, Way] = {
    "I-FGSM": Way(_stepped(attacks.bim)),
    "FGSM": Way(attacks.fgsm),
    "MI-FGSM": Way(_MOMENTUM),
    # A Gaussian of 5 pixels: that of 15 is made for images of 299.
    "TIM": Way(_stepped(attacks.ti_fgsm, decay=1.0, kernel_size=5, deviation=1.0)),
    "NI-FGSM": Way(_stepped(attacks.ni_fgsm)),
    "SIM": Way(_stepped(attacks.si_fgsm)),
    "VMI-FGSM": Way(_stepped(attacks.vmi_fgsm)),
    "DIM": Way(_stepped(attacks.di_fgsm, decay=1.0)),
    "MI-FGSM, targeted": Way(_MOMENTUM, is_targeted=True),
    "ensemble": Way(_MOMENTUM, is_joint=True),
    "ensemble, SVRE": Way(None, is_joint=True),
    "ensemble, targeted": Way(_MOMENTUM, is_joint=True, is_targeted=True),
}
"""By name. All but SVRE see the gradient of cross-entropy; the momentum is that of MI-FGSM."""
ALONE = tuple(name for name, way in WAYS.items() if not way.is_joint)
JOINT = tuple(name for name, way in WAYS.items() if way.is_joint)


def compared_on(config: RunConfig) -> dict[str, Condition]:
    """Returns the condition of each architecture; no model has seen S, the same for all.

    Args:
      config: of the run; its first architecture gives the surrogates.
    """
    number = min(NUM_MODELS, config.num_pairs)
    return {
        name: crossed.common_condition(config, number, architecture=name, model=config.models[name])
        for name in config.architectures
    }


def ensemble_size(num_pairs: int) -> int:
    """Returns how many surrogates are attacked together: so many that two blocks are left.

    Args:
      num_pairs: P, the number of surrogates.
    """
    return max(1, min(TOGETHER, num_pairs // 2))


@functools.cache  # a new function would be compiled again
def _attack_fn(name: str) -> MemberFn:
    """Returns the attack of a name on one block of surrogates."""
    way = WAYS[name]

    def attack_block(member: Any, shared: Shared, program: Program) -> Array:
        key, block = member
        rows, goals = shared.extra
        x, labels = shared.images[rows], shared.labels[rows]
        options: dict[str, Any] = {"threat": attacks.linf(shared.epsilon)}
        if way.is_targeted:
            options["targets"] = goals
        if way.attack is None:
            options |= {"params": block, "num_steps": NUM_STEPS}
            return attacks.svre(program.apply_fn, key, x, labels, **options).adversarial
        logits_fn, loss_fn = attacks.ensemble(program.apply_fn, block, "logits")
        made = way.attack(logits_fn, key, x, labels, loss_fn=loss_fn, **options)
        return made.adversarial

    return attack_block


def _goals(context: Context, rows: Array) -> Array:
    """Returns a class for each example that is not its label, drawn at random."""
    number = context.condition.num_classes
    away = jax.random.randint(named_key(context.key, "goals"), rows.shape, 1, number)
    return (context.shared.labels[rows] + away) % number


def _points(context: Context, name: str, surrogates: Params, goals: Array) -> Array:
    """Returns what an attack makes of S on each block of surrogates, `[R, B, ...]`."""
    size = ensemble_size(context.condition.num_pairs) if WAYS[name].is_joint else 1
    blocks = crossed.blocks(surrogates, size)
    number = len(jax.tree.leaves(blocks)[0])
    keys = jax.random.split(named_key(context.key, name), number)
    extra = crossed.example_rows(context), goals
    return jnp.asarray(
        context.over_members(_attack_fn(name), (keys, blocks), shared_extra=extra, at_once=AT_ONCE)
    )


def _measure(context: Context) -> xr.Dataset:
    """Returns the classes that targets θ_B see at the points that attacks on surrogates θ_A find.

    Surrogates are of the first population, targets of all of them. `predicted` (alone, pair,
    architecture, target, example) of attacks on one surrogate and `predicted_joint` (joint, block,
    architecture, target, example) of those on several; `clean` (architecture, target, example) of
    the images as they are, `label` and `goal` (example), the class that targeted attacks steer to,
    and `target_finite` (architecture, target). Models of one pair are not independent: who reads
    leaves out equal pairs, and blocks that the target's pair is in.
    """
    surrogates = crossed.side(context.population.params, SURROGATE)
    rows = crossed.example_rows(context)
    goals = _goals(context, rows)
    clean = context.shared.images[rows][None]
    names = [population.condition.architecture for population in context.populations]

    predicted: dict[str, np.ndarray] = {}
    as_they_are = None
    for name in WAYS:
        sets = jnp.concatenate([clean, _points(context, name, surrogates, goals)])
        classes = [
            crossed.evaluate(
                context, crossed.side(each.params, TARGET), sets, each.condition
            ).predicted
            for each in context.populations
        ]
        at_points = np.stack(classes)  # architecture, target, clean and blocks, example
        as_they_are = at_points[:, :, 0]
        predicted[name] = np.moveaxis(at_points[:, :, 1:], 2, 0)
    outcomes = {
        "predicted": (
            ("alone", "pair", "architecture", "target", "example"),
            np.stack([predicted[name] for name in ALONE]),
        ),
        "predicted_joint": (
            ("joint", "block", "architecture", "target", "example"),
            np.stack([predicted[name] for name in JOINT]),
        ),
        "clean": (("architecture", "target", "example"), as_they_are),
        "label": (("example",), np.asarray(context.shared.labels[rows], np.int16)),
        "goal": (("example",), np.asarray(goals, np.int16)),
        "target_finite": (
            ("architecture", "target"),
            np.stack([population.finite for population in context.populations]),
        ),
    }
    return context.dataset(
        {},
        outcomes,
        alone=ALONE,
        joint=JOINT,
        architecture=names,
        target=np.arange(context.condition.num_pairs),
    )


ATTACKS = Measurement("published_attacks", _measure)
