"""T1: an attack on one model moves the other more than noise does."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import transfer
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.measurements.transfer import TRANSFER, TRANSFER_CONTROLS
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition, control
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict

TEXT = text.load(__file__)


class Points(NamedTuple):
    """Perturbed points, and the target that sees them."""

    points: str
    target: str


ATTACK = Points("attack", "other")
COMPARED = {
    "matched noise": Points("noise", "other"),
    "another example's perturbation": Points("other_example", "other"),
    "target with permuted labels": Points("attack", "permuted"),
}
"""The controls: what is done to which target."""


def requests(config: RunConfig, architecture: str, noise_rate: float = 0.0) -> list[Request]:
    """Returns training and transfer of a condition, with its control's models as targets.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
      noise_rate: ρ.
    """
    trained = condition(config, architecture, noise_rate=noise_rate)
    permuted = control(config, architecture)
    return [
        Request(LEARNING, (trained,)),
        Request(LEARNING, (permuted,)),
        Request(TRANSFER, (trained,)),
        Request(TRANSFER_CONTROLS, (trained, permuted)),
    ]


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns transfer at every noise rate; ρ = 0 decides, the others are described."""
    wanted = (
        request
        for architecture in config.architectures
        for rate in config.noise_rates
        for request in requests(config, architecture, rate)
    )
    return list(dict.fromkeys(wanted))  # the control is asked for once


def mean_increase(controlled: Measured, where: Points, budget: float) -> np.ndarray:
    """Returns `[P]` mean increases of the margin loss over examples and both directions.

    Args:
      controlled: of `TRANSFER_CONTROLS`.
      where: the points and the target.
      budget: ε of the attack.
    """
    total = transfer.control_terms(controlled, "increase", *where, budget=budget)
    number = transfer.control_terms(
        controlled, "num_examples", *where, budget=budget, denominator="all"
    )
    return total / number


def decide(records: Records) -> Outcome:
    """Returns one paired test for each control and architecture, at ρ = 0."""
    config = records.config
    epsilon = config.attack.epsilon
    parts, headlines, warnings = [], [], []
    for architecture in config.architectures:
        trained = condition(config, architecture)
        controlled = records.get(TRANSFER_CONTROLS, trained)
        attacked = mean_increase(controlled, ATTACK, epsilon)
        for label, where in COMPARED.items():
            difference = attacked - mean_increase(controlled, where, epsilon)
            parts.append(
                rules.part(
                    stats.mean_test(difference, 0.0, alternative="greater"),
                    f"{architecture}, {label}",
                    f"mean increase of B's margin loss under A's attack minus {label}",
                    "greater",
                    0.0,
                    control=label,
                )
            )
        terms = transfer.coefficient_terms(records.get(TRANSFER, trained))
        noise = transfer.control_terms(
            controlled, "increase", *COMPARED["matched noise"], budget=epsilon
        )
        headlines.append(
            rules.headline(
                f"M_x at ε = {epsilon:g} ({architecture})",
                stats.fieller(*terms),
                "matched noise",
                stats.fieller(noise, terms.denominators),
            )
        )
        warnings += _unmatched(controlled, architecture, epsilon)
    first = tuple(f"{name}, {next(iter(COMPARED))}" for name in config.architectures)
    return Outcome(tuple(parts), first, tuple(headlines), tuple(warnings))


def _unmatched(controlled: Measured, architecture: str, budget: float) -> list[str]:
    """Returns a warning for each control whose norms the box did not always allow."""
    warnings = []
    for name, label in (("noise", "noise"), ("other_example", "another example")):
        matched = controlled.read("matched", "pair", "surrogate", control=name, budget=budget)
        finite = matched[controlled.finite]
        share = 1 - finite.mean() if finite.size else 0.0
        if share > 0:
            warnings.append(
                f"T1, {architecture}: the box kept {100 * share:.1f} % of the perturbations of the "
                f"control '{label}' below the attack's l2 norm."
            )
    return warnings


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's increase beside its controls, and success against the budget.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    epsilon = config.attack.epsilon
    measured = [
        records.get(TRANSFER_CONTROLS, condition(config, name)) for name in config.architectures
    ]
    axes = plots.pair_comparison(
        np.array([mean_increase(controlled, ATTACK, epsilon) for controlled in measured]),
        np.array(
            [[mean_increase(c, where, epsilon) for where in COMPARED.values()] for c in measured]
        ),
        names=config.architectures,
        treatment="attack on the other model",
        control_names=list(COMPARED),
        xlabel=f"mean increase of the target's margin loss at ε = {epsilon:g}",
    )
    caption = TEXT.caption("t1_controls", verdict)
    return [
        Figure("t1_controls", caption, rules.figure_of(axes)),
        _curve(measured[0], config, verdict),
    ]


def _curve(controlled: Measured, config: RunConfig, verdict: Verdict) -> Figure:
    """Returns success of the first architecture against the budget, with two controls."""
    budgets = controlled.dataset["budget"].values.tolist()
    lines = {
        "on the surrogate itself": Points("attack", "own"),
        "on the other model": ATTACK,
        "matched noise": COMPARED["matched noise"],
        "another example's": COMPARED["another example's perturbation"],
    }
    middle, low, high = {}, {}, {}
    for label, where in lines.items():
        estimates = []
        for budget in budgets:
            labels = {"budget": budget, "denominator": "both_correct"}
            fooled, number = (
                transfer.control_terms(controlled, quantity, *where, **labels)
                for quantity in ("num_fooled", "num_examples")
            )
            estimates.append(rules.triple(stats.bounded(stats.fieller(fooled, number))))
        middle[label], low[label], high[label] = np.array(estimates).T
    axes = plots.budget_curve(
        budgets,
        middle,
        low=low,
        high=high,
        controls=("matched noise", "another example's"),
        decides=config.attack.epsilon,
        ylabel="share fooled, of those that\nboth models had right",
    )
    caption = TEXT.caption("t1_budgets", verdict, architecture=config.architectures[0])
    return Figure("t1_budgets", caption, rules.figure_of(axes))


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the smallest lead over a control."""
    tests = [part for part in verdict.parts if part.kind != "gate"]
    least = min(tests, key=lambda part: part.clearance)
    return {
        "least": wording.format_estimate(least.estimate, least.low, least.high),
        "least_name": least.name,
    }


STUDY = Study("T1", TEXT, needs, decide, figures, words)
