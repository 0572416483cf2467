"""T6: perturbations are features."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t6.measure import FEATURES, INPUTS, TARGETS
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition
from halfway.stats import Decision

TEXT = text.load(__file__)
UNIFORM, SHIFTED = TARGETS
ATTACK, NOISE, UNPERTURBED = INPUTS
CONTROLS = {NOISE: "random perturbations", UNPERTURBED: "unperturbed images"}
CHANCE = "chance"
LEAKS = {
    UNPERTURBED: "labels leak",
    NOISE: "a perturbation's size, which is another where t is the class already, tells something",
}
"""What it means that a control teaches above chance."""
KINDS = {UNIFORM: "random t", SHIFTED: "t = c + 1"}


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns fresh models of the first architecture at ρ = 0."""
    trained = decided_on(config)
    return [Request(LEARNING, (trained,)), Request(FEATURES, (trained,))]


def accuracy(
    features: Measured, targets: str, inputs: str, quantity: str = "accuracy"
) -> np.ndarray:
    """Returns `[P]` accuracies of fresh models on S, mean of both directions.

    Args:
      features: of `FEATURES`.
      targets: of `TARGETS`, how their labels were chosen.
      inputs: of `INPUTS`, what they saw.
      quantity: "accuracy" for the class c, or "next_accuracy" for c + 1.
    """
    return features.read(quantity, "pair", "surrogate", targets=targets, inputs=inputs).mean(-1)


def _above(values: np.ndarray, threshold: float = 0.0, *, least: float = 0.0) -> Decision:
    """Returns the test of a mean accuracy, or of a difference of two, which is −1 at least."""
    return stats.bounded(stats.mean_test(values, threshold, alternative="greater"), least)


def decide(records: Records) -> Outcome:
    """Returns a paired test for each control, and one against chance; all have to hold."""
    features = records.get(FEATURES, decided_on(records.config))
    chance = 1 / records.config.num_classes
    accuracies = {name: accuracy(features, UNIFORM, name) for name in INPUTS}
    parts = [
        rules.part(
            _above(accuracies[ATTACK] - accuracies[name], least=-1.0),
            label,
            f"accuracy of models trained on perturbations minus on {label}",
            "greater",
            0.0,
            control=label,
        )
        for name, label in CONTROLS.items()
    ]
    parts.append(
        rules.part(
            _above(accuracies[ATTACK], chance),
            CHANCE,
            "accuracy of models trained on perturbations",
            "greater",
            chance,
        )
    )
    headlines = (
        rules.headline(
            "accuracy for the true class",
            _above(accuracies[ATTACK]),
            CONTROLS[UNPERTURBED],
            _above(accuracies[UNPERTURBED]),
        ),
        rules.headline(f"accuracy on {CONTROLS[NOISE]}", _above(accuracies[NOISE])),
        *_shifted(features),
        _reached(features),
    )
    return Outcome(tuple(parts), (parts[0].name,), headlines, _warnings(features, chance))


def _shifted(features: Measured) -> list[Headline]:
    """Returns what images of class c that are all labelled c + 1 teach: c, and c + 1."""
    return [
        rules.headline(
            f"with t = c + 1, accuracy for {label}",
            _above(accuracy(features, SHIFTED, ATTACK, quantity)),
            CONTROLS[UNPERTURBED],
            _above(accuracy(features, SHIFTED, UNPERTURBED, quantity)),
        )
        for label, quantity in (("c", "accuracy"), ("c + 1", "next_accuracy"))
    ]


def _reached(features: Measured) -> Headline:
    """Returns how often the attack reached t, of images of another class."""
    uniform, shifted = (
        stats.fieller(
            *(
                features.read(name, "pair", "surrogate", targets=targets).sum(-1)
                for name in ("num_hit", "num_aimed")
            )
        )
        for targets in TARGETS
    )
    return rules.headline(
        "perturbed images that the attacked model takes for t",
        stats.bounded(uniform),
        KINDS[SHIFTED],
        stats.bounded(shifted),
    )


def _warnings(features: Measured, chance: float) -> tuple[str, ...]:
    """Returns a warning for each control that teaches above chance, and one for the box."""
    warnings = []
    for name, meaning in LEAKS.items():
        leak = _above(accuracy(features, UNIFORM, name), chance)
        if leak.p_value < 0.05:
            level = wording.format_estimate(leak.estimate, leak.low, leak.high)
            warnings.append(
                f"T6: {meaning}: with the same labels {CONTROLS[name]} teach {level}, above chance "
                f"({chance:g})."
            )
    matched = features.read("matched", "pair", "surrogate", targets=UNIFORM)[features.finite]
    share = 1 - matched.mean() if matched.size else 0.0
    if share > 0:
        warnings.append(
            f"T6: the box kept {100 * share:.1f} % of the random perturbations below the attack's "
            "l2 norm."
        )
    return tuple(warnings)


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's accuracies, with a line at chance.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    features = records.get(FEATURES, decided_on(records.config))
    axes = plots.pair_comparison(
        np.array([accuracy(features, targets, ATTACK) for targets in TARGETS]),
        np.array([[accuracy(features, targets, name) for name in CONTROLS] for targets in TARGETS]),
        names=[KINDS[targets] for targets in TARGETS],
        treatment="perturbed towards t",
        control_names=list(CONTROLS.values()),
        xlabel="accuracy for the true class c of clean images that no model has seen",
        threshold=1 / records.config.num_classes,
    )
    return [Figure("t6_features", TEXT.caption("t6_features", verdict), rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns chance, the smallest lead over a control, and whether labels leak."""
    parts = {part.name: part for part in verdict.parts}
    chance = parts.pop(CHANCE)
    least = min(parts.values(), key=lambda part: part.clearance)
    leaks = any(LEAKS[UNPERTURBED] in warning for warning in verdict.warnings)
    return {
        "chance": f"{chance.threshold[0]:g}",
        "lead": wording.format_estimate(least.estimate, least.low, least.high),
        "lead_name": least.name,
        "leak": (
            "Labels leak: unperturbed images with the same labels teach above chance, so that part "
            "of the accuracy is not the perturbations'"
            if leaks
            else "Unperturbed images with the same labels are not above chance: no leak is seen"
        ),
    }


STUDY = Study("T6", TEXT, needs, decide, figures, words, stands_on=("T1",))
