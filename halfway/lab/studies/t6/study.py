"""T6: perturbations are features."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.t6.measure import FEATURES, INPUTS, TARGETS, seen_name
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Headline, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition
from halfway.stats import Decision

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
PLANTED = 0.05
"""Accuracy above each control and above chance at effect 1."""
SPREAD = {ATTACK: 0.03, NOISE: 0.02, UNPERTURBED: 0.025}
"""Standard deviations over pairs of the accuracies, for `plant`."""


def _one(config: RunConfig) -> Condition:
    return condition(config, config.architectures[0])


def accuracy(
    reader: Reader, key: str, targets: str, inputs: str, quantity: str = "feature_accuracy"
) -> np.ndarray:
    """Returns `[P]` accuracies of fresh models on S, mean of both directions.

    NaN for pairs that diverged.
    """
    both = reader.cube(key, quantity, ("pair", "surrogate"), subset=seen_name(targets, inputs))
    return np.where(reader.finite(key)[:, None], both, np.nan).mean(-1)


def _above(values: np.ndarray, threshold: float = 0.0) -> Decision:
    return stats.mean_test(values, threshold, alternative="greater")


@dataclasses.dataclass(frozen=True)
class T6:
    """Fresh models trained on perturbed images, labels at random, exceed controls and chance."""

    id: str = "T6"
    claim: str = "Perturbations are features: a fresh model learns the true classes from them."
    controls: tuple[str, ...] = (
        "random perturbations of the same l∞ and l2 norms, with the same labels",
        "the same labels on unperturbed images (leakage)",
        "chance, 1/C",
    )
    smallest_effect: str = "an accuracy .05 above each control and above chance"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns fresh models of the first architecture at ρ = 0."""
        one = _one(config)
        return [Request(LEARNING, (one,)), Request(FEATURES, (one,))]

    def decide(self, records: Records) -> Outcome:
        """Returns a paired test for each control, and one against chance; all have to hold."""
        reader, config = Reader(records), records.config
        key, chance = _one(config).key, 1 / config.num_classes
        seen = {name: accuracy(reader, key, UNIFORM, name) for name in INPUTS}
        parts = [
            rules.part(
                _above(seen[ATTACK] - seen[name]),
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
                _above(seen[ATTACK], chance),
                CHANCE,
                "accuracy of models trained on perturbations",
                "greater",
                chance,
            )
        )
        headlines = [
            rules.headline(
                "accuracy for the true class",
                _above(seen[ATTACK]),
                CONTROLS[UNPERTURBED],
                _above(seen[UNPERTURBED]),
            ),
            rules.headline(f"accuracy on {CONTROLS[NOISE]}", _above(seen[NOISE])),
            *self._described(reader, key),
        ]
        return Outcome(
            tuple(parts), (parts[0].name,), tuple(headlines), self._warnings(reader, key, chance)
        )

    @staticmethod
    def _described(reader: Reader, key: str) -> list[Headline]:
        found = []
        if reader.has(key, "feature_next_accuracy"):
            found += [
                rules.headline(
                    f"with t = c + 1, accuracy for {of}",
                    *(
                        _above(accuracy(reader, key, SHIFTED, ATTACK, quantity)),
                        CONTROLS[UNPERTURBED],
                        _above(accuracy(reader, key, SHIFTED, UNPERTURBED, quantity)),
                    ),
                )
                for of, quantity in (("c", "feature_accuracy"), ("c + 1", "feature_next_accuracy"))
            ]
        if reader.has(key, "feature_num_hit"):
            rates = [
                stats.fieller(
                    *(
                        np.where(
                            reader.finite(key),
                            reader.cube(
                                key, f"feature_{name}", ("pair", "surrogate"), subset=kind
                            ).sum(-1),
                            np.nan,
                        )
                        for name in ("num_hit", "num_aimed")
                    )
                )
                for kind in TARGETS
            ]
            found.append(
                rules.headline(
                    "perturbed images that the attacked model takes for t",
                    rates[0],
                    "t = c + 1",
                    rates[1],
                )
            )
        return found

    @staticmethod
    def _warnings(reader: Reader, key: str, chance: float) -> tuple[str, ...]:
        found = []
        for name, why in LEAKS.items():
            leak = _above(accuracy(reader, key, UNIFORM, name), chance)
            if leak.p_value < 0.05:
                level = wording.format_estimate(leak.estimate, leak.low, leak.high)
                found.append(
                    f"T6: {why}: with the same labels {CONTROLS[name]} teach {level}, above chance "
                    f"({chance:g})."
                )
        if reader.has(key, "feature_matched"):
            both = reader.cube(key, "feature_matched", ("pair", "surrogate"), subset=UNIFORM)
            share = 1 - both[reader.finite(key)].mean() if reader.finite(key).any() else 0.0
            if share > 0:
                found.append(
                    f"T6: the box kept {100 * share:.1f} % of the random perturbations below the "
                    "attack's l2 norm."
                )
        return tuple(found)

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns every pair's three accuracies, with a line at chance."""
        reader, config = Reader(records), records.config
        key, chance = _one(config).key, 1 / config.num_classes
        kinds = TARGETS if reader.has(key, "feature_next_accuracy") else (UNIFORM,)
        axes = plots.pair_comparison(
            np.array([accuracy(reader, key, kind, ATTACK) for kind in kinds]),
            np.array([[accuracy(reader, key, kind, name) for name in CONTROLS] for kind in kinds]),
            names=[KINDS[kind] for kind in kinds],
            treatment="perturbed towards t",
            control_names=list(CONTROLS.values()),
            xlabel="accuracy for the true class c of clean images that no model has seen",
            threshold=chance,
        )
        seen = {
            "supported": "Perturbations teach more than both controls and chance",
            "refuted": "Perturbations teach less than a control or than chance",
            "inconclusive": "What perturbations teach cannot be told from a control or from chance",
        }[verdict.verdict]
        shifted = (
            " Below, every image of class c is labelled c + 1: what unperturbed images teach is "
            "c + 1, and only perturbations point to c."
            if len(kinds) > 1
            else ""
        )
        caption = (
            "Fresh models are trained on images perturbed towards t and labelled t, so that what "
            f"an image shows says nothing about its label. Each dot is a pair. {seen}. The dashed "
            f"line is chance; in grey, the same labels on the controls.{shifted}"
        )
        return [Figure("t6_features", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines[:2])
        parts = {part.name: part for part in verdict.parts}
        tests = [part for part in verdict.parts if part.name != CHANCE]
        least = min(tests, key=lambda part: part.clearance)
        lead = wording.format_estimate(least.estimate, least.low, least.high)
        leaks = any("labels leak" in warning for warning in verdict.warnings)
        opening = (
            "We draw a label t for every image at random, whatever the image shows, perturb the "
            "image so that a trained model leans towards t, and train a fresh model on these "
            "images with these labels. To a person the labels are arbitrary; a model can learn "
            f"from the perturbations alone. On clean images: {numbers}. Chance is "
            f"{parts[CHANCE].threshold[0]:g}; the smallest lead over a control is {lead} "
            f"({least.name}). "
        )
        opening += (
            "Labels leak: unperturbed images with the same labels teach above chance, so that part "
            "of the accuracy is not the perturbations'."
            if leaks
            else "Unperturbed images with the same labels are not above chance: no leak is seen."
        )
        ending = {
            "supported": (
                "A model that has seen only such labels classifies clean images: perturbations "
                "carry what the classes look like to a network."
            ),
            "refuted": (
                f"The reverse holds: {verdict.reason}. Perturbations would have to teach more than "
                "random ones, than unperturbed images, and than chance."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The accuracy would have to be "
                "clear of both controls and of chance."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns both controls and chance."""
        return [*CONTROLS.values(), CHANCE]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns accuracies that exceed chance and controls by .05 times `effect`."""
        config = plants.CONFIG
        chance, lead = 1 / config.num_classes, PLANTED * effect
        attacked = chance + (0.0 if boundary == CHANCE else lead)
        values = {"finite": np.ones(config.num_pairs)}
        for name in INPUTS:
            control = name in CONTROLS and CONTROLS[name] != boundary
            level = attacked - (lead if control else 0.0)
            noise = rng.normal(0, SPREAD[name], (config.num_pairs, 1)) * np.ones(2)
            values[plants.named("feature_accuracy", seen_name(UNIFORM, name))] = level + noise
        return plants.records(config, {_one(config): values})


STUDY = T6()
