"""T1, a control: an attack on one model moves the other, through what both have learned."""

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
from halfway.populations import Condition

TEXT = text.load(__file__, "control")
LEAD = 0.05
"""By which M_x must exceed that on a target which learned nothing."""
NOTHING = 0.05
"""Below which |M_x| must lie where labels are noise alone."""


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
"""What is done to which target. The last is the null; noise and other examples are described: an
attack beats matched noise even where nothing is shared, since noise off the data lowers the margin
of what is wrong already."""
PERMUTED = "target with permuted labels"


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
    """Returns transfer at every noise rate; ρ = 0 and 1 decide, the others are described."""
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
    """Returns each architecture's lead over permuted labels, and its bound where all is noise.

    `M_x − M_x(permuted)`, both over the own increases, at ρ = 0; and |M_x| at ρ = 1.
    """
    config = records.config
    epsilon = config.attack.epsilon
    parts, headlines, described, warnings = [], [], [], []
    for architecture in config.architectures:
        trained = condition(config, architecture)
        controlled = records.get(TRANSFER_CONTROLS, trained)
        terms = transfer.coefficient_terms(records.get(TRANSFER, trained))
        increases = {
            label: transfer.control_terms(controlled, "increase", *where, budget=epsilon)
            for label, where in COMPARED.items()
        }
        noisy = transfer.coefficient_terms(
            records.get(TRANSFER, _noise_alone(config, architecture))
        )
        parts += [
            rules.part(
                stats.ratio_test(
                    terms.numerators - increases[PERMUTED],
                    terms.denominators,
                    LEAD,
                    alternative="greater",
                ),
                architecture,
                f"M_x minus M_x on a {PERMUTED}",
                "greater",
                LEAD,
                control=PERMUTED,
            ),
            rules.part(
                stats.ratio_equivalence(*noisy, -NOTHING, NOTHING),
                f"{architecture}, noise alone",
                "M_x at ρ = 1",
                "within",
                -NOTHING,
                NOTHING,
            ),
        ]
        name = f"M_x at ε = {epsilon:g} ({architecture})"
        moved = {
            label: stats.fieller(increase, terms.denominators)
            for label, increase in increases.items()
        }
        control = moved.pop(PERMUTED)
        headlines.append(rules.headline(name, stats.fieller(*terms), PERMUTED, control))
        described += [rules.headline(f"{name}, {label}", value) for label, value in moved.items()]
        warnings += _unmatched(controlled, architecture, epsilon)
    headlines += described
    return Outcome(tuple(parts), tuple(config.architectures), tuple(headlines), tuple(warnings))


def _noise_alone(config: RunConfig, architecture: str) -> Condition:
    """Returns the condition whose labels are noise alone, ρ = 1."""
    return condition(config, architecture, noise_rate=1.0)


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
    """Returns the smaller lead over a target that learned nothing."""
    tests = [part for part in verdict.parts if part.kind == "test"]
    least = min(tests, key=lambda part: part.clearance)
    return {
        "least": wording.format_estimate(least.estimate, least.low, least.high),
        "least_name": least.name,
    }


STUDY = Study("T1", TEXT, needs, decide, figures, words, kind="control")
