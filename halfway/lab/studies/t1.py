"""T1: an attack on one model moves the other more than noise does."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING, TRANSFER
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition, control
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader

CONTROLS: dict[str, dict[str, Any]] = {
    "matched noise": {"attack": "noise", "target": "other"},
    "another example's perturbation": {"attack": "other_example", "target": "other"},
    "target with permuted labels": {"attack": "attack", "target": "permuted"},
}
ATTACK = {"attack": "attack", "target": "other"}
NOISE = 0.24
"""Standard deviation over pairs of a mean increase, for `plant`."""


def requests(config: RunConfig, architecture: str, noise_rate: float = 0.0) -> list[Request]:
    """Returns training and transfer of a condition, with its control's models as targets."""
    one = condition(config, architecture, noise_rate=noise_rate)
    permuted = control(config, architecture)
    return [
        Request(LEARNING, (one,)),
        Request(LEARNING, (permuted,)),
        Request(TRANSFER, (one, permuted)),
    ]


def mean_increase(reader: Reader, key: str, budget: float, **which: Any) -> np.ndarray:
    """Returns `[P]` mean increases of the margin loss over examples and both directions."""
    total = reader.directed(key, "increase", budget=budget, **which)
    return total / reader.directed(key, "num_examples", budget=budget, **which)


def coefficient_terms(reader: Reader, key: str, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` numerators and denominators of M_x: increases of the other and the own loss."""
    other, own = (
        reader.directed(key, "increase", budget=budget, attack="attack", target=target)
        for target in ("other", "own")
    )
    return other, own


@dataclasses.dataclass(frozen=True)
class T1:
    """The target's margin loss rises more under the attack than under each of three controls."""

    id: str = "T1"
    claim: str = "An attack on one model moves the other more than noise of the same size does."
    controls: tuple[str, ...] = (
        "random feasible signs on random pixels, matched in l∞ and l2",
        "another example's perturbation, rescaled",
        "a target trained on permuted labels",
    )
    smallest_effect: str = "a mean increase of margin loss of .5 above each control"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns transfer at every noise rate; ρ = 0 decides, the others are described."""
        every = (
            request
            for name in config.architectures
            for rate in config.noise_rates
            for request in requests(config, name, float(rate))
        )
        return list(dict.fromkeys(every))  # the control is asked for once

    def decide(self, records: Records) -> Outcome:
        """Returns one paired test for each control and architecture, at ρ = 0."""
        reader, config = Reader(records), records.config
        epsilon = float(config.attack.epsilon)
        parts, headlines, warnings = [], [], []
        for name in config.architectures:
            key = condition(config, name).key
            attacked = mean_increase(reader, key, epsilon, **ATTACK)
            for label, which in CONTROLS.items():
                difference = attacked - self._control(reader, config, name, which)
                decision = stats.mean_test(difference, 0.0, alternative="greater")
                statistic = f"mean increase of B's margin loss under A's attack minus {label}"
                parts.append(
                    rules.part(
                        decision, f"{name}, {label}", statistic, "greater", 0.0, control=label
                    )
                )
            terms = coefficient_terms(reader, key, epsilon)
            noise = reader.directed(key, "increase", budget=epsilon, **CONTROLS["matched noise"])
            headlines.append(
                rules.headline(
                    f"M_x at ε = {epsilon:g} ({name})",
                    stats.fieller(*terms),
                    "matched noise",
                    stats.fieller(noise, terms[1]),
                )
            )
            warnings += self._unmatched(reader, key, name, epsilon)
        first = next(iter(CONTROLS))
        names = tuple(f"{name}, {first}" for name in config.architectures)
        return Outcome(tuple(parts), names, tuple(headlines), tuple(warnings))

    @staticmethod
    def _control(reader: Reader, config: RunConfig, name: str, which: dict[str, Any]) -> np.ndarray:
        key, epsilon = condition(config, name).key, float(config.attack.epsilon)
        values = mean_increase(reader, key, epsilon, **which)
        if which["target"] == "permuted":  # that target may have diverged too
            values = np.where(reader.finite(control(config, name).key), values, np.nan)
        return values

    @staticmethod
    def _unmatched(reader: Reader, key: str, name: str, epsilon: float) -> list[str]:
        if not reader.has(key, "matched"):
            return []
        found = []
        for attack, label in (("noise", "noise"), ("other_example", "another example")):
            share = 1 - np.nanmean(
                reader.cube(key, "matched", ("pair", "surrogate"), attack=attack, budget=epsilon)
            )
            if share > 0:
                found.append(
                    f"T1, {name}: the box kept {100 * share:.1f} % of the perturbations of the "
                    f"control '{label}' below the attack's l2 norm."
                )
        return found

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's increase beside its controls, and success against the budget."""
        reader, config = Reader(records), records.config
        epsilon = float(config.attack.epsilon)
        values, controls = [], []
        for name in config.architectures:
            key = condition(config, name).key
            values.append(mean_increase(reader, key, epsilon, **ATTACK))
            controls.append(
                [self._control(reader, config, name, which) for which in CONTROLS.values()]
            )
        axes = plots.pair_comparison(
            np.array(values),
            np.array(controls),
            names=config.architectures,
            treatment="attack on the other model",
            control_names=list(CONTROLS),
            xlabel=f"mean increase of the target's margin loss at ε = {epsilon:g}",
        )
        seen = {
            "supported": "The attack moves the target more than every control",
            "refuted": "A control moves the target more than the attack",
            "inconclusive": "The attack cannot be told from every control",
        }[verdict.verdict]
        caption = (
            f"Each dot is a pair, both directions. {seen}. Controls, in grey, have the same l2 "
            "norm on each example, or the same perturbation on a target that learned nothing."
        )
        figures = [Figure("t1_controls", caption, rules.figure_of(axes))]
        return [*figures, self._curve(reader, config)]

    def _curve(self, reader: Reader, config: RunConfig) -> Figure:
        name = config.architectures[0]
        key = condition(config, name).key
        budgets = sorted({float(config.attack.epsilon), *map(float, config.attack.budgets)})
        lines = {
            "on the surrogate itself": {"attack": "attack", "target": "own"},
            "on the other model": ATTACK,
            "matched noise": CONTROLS["matched noise"],
            "another example's": CONTROLS["another example's perturbation"],
        }
        middle, low, high = {}, {}, {}
        for label, which in lines.items():
            estimates = [
                rules.triple(
                    stats.fieller(
                        *(
                            reader.directed(key, q, budget=e, subset="both_correct", **which)
                            for q in ("num_fooled", "num_examples")
                        )
                    )
                )
                for e in budgets
            ]
            middle[label], low[label], high[label] = np.array(estimates).T
        axes = plots.budget_curve(
            budgets,
            middle,
            low=low,
            high=high,
            controls=("matched noise", "another example's"),
            decides=float(config.attack.epsilon),
            ylabel="share fooled, of those that\nboth models had right",
        )
        caption = (
            f"Success against the budget ({name}, no label noise), among examples that both models "
            "classify correctly when clean; bands are 95 % intervals over pairs. The broad line "
            "marks the budget that decides."
        )
        return Figure("t1_budgets", caption, rules.figure_of(axes))

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        tests = [part for part in verdict.parts if part.kind != "gate"]
        least = min(tests, key=lambda part: part.clearance)
        margin = wording.format_estimate(least.estimate, least.low, least.high)
        opening = (
            "We perturb images so that one model errs, without looking at the other, and ask how "
            "far the other's margin loss rises: M_x is that rise as a share of the first model's. "
            f"{numbers}. The smallest lead over a control is {margin} ({least.name})."
        )
        ending = {
            "supported": (
                "The attack moves the other model more than noise of the same size, more than a "
                "perturbation made for another image, and more than it moves a model that learned "
                "nothing: what moves it is shared, and belongs to the image."
            ),
            "refuted": (
                "A control moves the target more than the attack does, so the attack's effect on "
                f"the other model is not special: {verdict.reason}. It would have to exceed every "
                "control."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The lead over every control would "
                "have to be clear of 0."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns each control of each architecture."""
        return [f"{name}, {label}" for name in plants.CONFIG.architectures for label in CONTROLS]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose attack leads every control by .5 times `effect`."""
        config = plants.CONFIG
        parts = {}
        for name in config.architectures:
            increases = {("attack", "other"): 1.0, ("attack", "own"): 3.0}
            for label, which in CONTROLS.items():
                lead = 0.0 if boundary == f"{name}, {label}" else 0.5 * effect
                increases[which["attack"], which["target"]] = 1.0 - lead
            arrays = plants.transfer(rng, config, increases, NOISE)
            if name == config.architectures[0]:  # the curve of `draw`
                shares = {("attack", "own"): 0.5, ("attack", "other"): 0.16}
                shares |= {("noise", "other"): 0.01, ("other_example", "other"): 0.06}
                arrays |= plants.success(rng, config, shares)
            parts[condition(config, name)] = arrays
            parts[control(config, name)] = {"finite": np.ones(config.num_pairs)}
        return plants.records(config, parts)


STUDY = T1()
