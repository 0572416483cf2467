"""What an attack on each model of a pair does to both of them, with and without controls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from halfway import losses, transfer
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import MODELS, Context, Pair, Program, Shared
from halfway.lab.measurements.learning import RatioTerms
from halfway.lab.study.records import Measured, Measurement
from halfway.populations import Condition
from halfway.types import Array

POINTS = ("clean", "attack", "noise", "other_example")
"""Clean images, those of the attack, and its two controls of equal norm on each example."""
PERMUTED = tuple(f"{model} permuted" for model in MODELS)
"""Targets that were trained on permuted labels."""


def budgets_of(condition: Condition, config: RunConfig) -> tuple[float, ...]:
    """Returns the budgets of a condition's curve: all without label noise, else the deciding one.

    Args:
      condition: of the population.
      config: of the run.
    """
    if condition.noise_rate > 0:
        return (config.attack.epsilon,)
    return tuple(sorted({config.attack.epsilon, *config.attack.budgets}))


def _matrix(pair: Pair, shared: Shared, program: Program, targets: Any) -> transfer.TransferMatrix:
    """Returns what the attack on each model does on S, labels clean."""
    apply_fn, rows = program.apply_fn, pair.halves.s.indices
    return transfer.transfer_matrix(
        apply_fn,
        pair.params,
        apply_fn,
        targets,
        pair.key,
        shared.images[rows],
        shared.labels[rows],
        attack=program.attack(shared.epsilon),
    )


def _attacked(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns sums over S and outcomes of the attack alone; what nobody reads is not computed."""
    matrix = _matrix(pair, shared, program, pair.params)
    rows = pair.halves.s.indices
    images, labels = shared.images[rows], shared.labels[rows]

    def gradient_norm(params: Any) -> Array:
        total = lambda x: losses.margin(program.apply_fn(params, x), labels).sum()  # noqa: E731
        return jnp.abs(jax.grad(total)(images)).sum()

    rates = [transfer.success(matrix, name) for name in transfer.DENOMINATORS]
    errs = {name: ~matrix.target[name].correct for name in ("attack", "other_example")}
    return {
        "increase": transfer.increase(matrix).sum(-1),
        "num_fooled": jnp.stack([rate.num_fooled for rate in rates]),
        "num_examples": jnp.stack([rate.num_examples for rate in rates]),
        "gradient_norm": jax.vmap(gradient_norm)(pair.params),
        "clean_correct": matrix.target["clean"].correct,
        "clean_loss": matrix.target["clean"].loss,
        "fooled": errs["attack"],
        "fooled_by_other": errs["other_example"],
        "labels": labels,
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns sums over S, labels clean, of what the attack on each model does to both of a pair.

    `increase` of the margin loss (pair, surrogate, target), `num_fooled` of `num_examples` (pair,
    denominator, surrogate, target), and `gradient_norm`, Σ_x ‖∇_x margin‖₁ of the surrogate: the
    dual norm of the attack's, so that ε times it is the increase to first order. All at the budget
    that decides. Of each example, `fooled` and, by another example's perturbation,
    `fooled_by_other` (pair, surrogate, target, example), and `clean_correct`, `clean_loss` (pair,
    model, example).
    """
    arrays = context.over_pairs(_attacked)
    cells = "pair", "denominator", "surrogate", "target"
    outcomes = "pair", "surrogate", "target", "example"
    return context.dataset(
        {
            "increase": (("pair", "surrogate", "target"), arrays["increase"]),
            "num_fooled": (cells, arrays["num_fooled"]),
            "num_examples": (cells, arrays["num_examples"]),
            "gradient_norm": (("pair", "surrogate"), arrays["gradient_norm"]),
        },
        {
            "fooled": (outcomes, arrays["fooled"]),
            "fooled_by_other": (outcomes, arrays["fooled_by_other"]),
            "clean_correct": (("pair", "model", "example"), arrays["clean_correct"]),
            "clean_loss": (("pair", "model", "example"), arrays["clean_loss"].astype(np.float32)),
            "label": (("pair", "example"), arrays["labels"].astype(np.int16)),
        },
        denominator=transfer.DENOMINATORS,
    )


TRANSFER = Measurement("transfer", _measure)


def _controlled(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns sums over S at all points, for the models of the pair and those of its control."""
    targets = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pair.params, pair.extra)
    matrix = _matrix(pair, shared, program, targets)
    rates = [
        [transfer.success(matrix, name, points) for name in transfer.DENOMINATORS]
        for points in POINTS
    ]
    return {
        "increase": jnp.stack([transfer.increase(matrix, name).sum(-1) for name in POINTS[1:]]),
        "num_fooled": jnp.stack([jnp.stack([r.num_fooled for r in row]) for row in rates]),
        "num_examples": jnp.stack([jnp.stack([r.num_examples for r in row]) for row in rates]),
        "matched": jnp.stack([matrix.matched[name].mean(-1) for name in POINTS[2:]]),
    }


def _measure_controls(context: Context) -> xr.Dataset:
    """Returns sums over S of what the attack and its controls do, at every budget of the curve.

    The populations are the condition and its control with permuted labels, which share S; the
    control's models are further targets. `increase` (pair, budget, points, surrogate, target) of
    the margin loss; `num_fooled` of `num_examples` (pair, budget, points, denominator, surrogate,
    target); `matched` (pair, budget, control, surrogate), the share of examples on which a control
    could be given both norms of the attack.
    """
    population, control = context.populations
    budgets = budgets_of(population.condition, context.config)
    by_budget = [
        context.over_pairs(_controlled, extra=control.params, epsilon=budget) for budget in budgets
    ]
    arrays = {name: np.stack([part[name] for part in by_budget], 1) for name in by_budget[0]}
    # A target that diverged misclassifies everything: that is no success.
    alive = np.where(np.stack([population.finite] * 2 + [control.finite] * 2, -1), 1.0, np.nan)
    cells = "pair", "budget", "points", "denominator", "surrogate", "target"
    rates = {
        name: (cells, arrays[name] * alive[:, None, None, None, None])
        for name in ("num_fooled", "num_examples")
    }
    increase = arrays["increase"] * alive[:, None, None, None]
    return context.dataset(
        rates
        | {
            "increase": (("pair", "budget", "moved", "surrogate", "target"), increase),
            "matched": (("pair", "budget", "control", "surrogate"), arrays["matched"]),
        },
        budget=budgets,
        points=POINTS,
        moved=POINTS[1:],
        control=POINTS[2:],
        denominator=transfer.DENOMINATORS,
        target=(*MODELS, *PERMUTED),
    )


TRANSFER_CONTROLS = Measurement("transfer_controls", _measure_controls)


def both_directions(values: Any, target: str = "other") -> np.ndarray:
    """Returns sums over both directions A→B and B→A, `[...]` of `[..., 2, 2 or 4]`.

    Args:
      values: with surrogate and target as the last axes.
      target: "other" model of the pair, the surrogate's "own" model, or "permuted": the other
        half's model trained on permuted labels.
    """
    places = {"own": (0, 1), "other": (1, 0), "permuted": (3, 2)}[target]
    return values[..., 0, places[0]] + values[..., 1, places[1]]


def coefficient_terms(attacked: Measured) -> RatioTerms:
    """Returns numerators and denominators of M_x: increases of the other and the own margin loss.

    Args:
      attacked: of `TRANSFER`.
    """
    increase = attacked.read("increase", "pair", "surrogate", "target")
    return RatioTerms(both_directions(increase), both_directions(increase, "own"))


def control_terms(
    controlled: Measured, quantity: str, points: str, target: str, **labels: Any
) -> np.ndarray:
    """Returns `[P]` a quantity of `TRANSFER_CONTROLS`, both directions summed.

    Args:
      controlled: of `TRANSFER_CONTROLS`.
      quantity: "increase", "num_fooled" or "num_examples".
      points: of `POINTS`.
      target: see `both_directions`.
      **labels: the budget, and the denominator of a rate.
    """
    where = {"moved" if quantity == "increase" else "points": points} | labels
    return both_directions(
        controlled.read(quantity, "pair", "surrogate", "target", **where), target
    )
