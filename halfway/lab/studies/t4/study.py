"""T4: directions of attack align in the first steps, before accuracy."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.t4.measure import ACCURACY, EARLY_DIRECTIONS, steps_of
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

GRADIENT, PERTURBATION = "gradient", "perturbation"
WORDS = {
    GRADIENT: "alignment of input gradients",
    PERTURBATION: "alignment of perturbations",
    ACCURACY: "accuracy",
}
PART = "input gradients"
PLANTED = 2.0
"""Steps by which the alignment is ahead at effect 1."""
NOISE = {GRADIENT: 1.3, PERTURBATION: 1.0, ACCURACY: 0.8}
"""Standard deviations over pairs of the step to half, for `plant`."""
LEVELS = {GRADIENT: (0.01, 0.55), PERTURBATION: (0.18, 0.52), ACCURACY: (0.11, 0.95)}
"""Planted values at step 0 and at the last."""


def half_step(curves: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns the step at which each curve has first come half of its way, `[P]`.

    Linear between steps; NaN where a curve ends no higher than it began, or is not finite.

    Args:
      curves: `[P, T]`, T at least 2.
      steps: `[T]`, increasing.
    """
    gain = curves - curves[:, :1]
    goal = gain[:, -1] / 2
    defined = np.isfinite(gain).all(-1) & (goal > 0)
    after = np.argmax(gain >= goal[:, None], -1)
    after = np.where(defined, after, 1)  # 0 is never it: the gain there is 0
    rows = np.arange(len(curves))
    low, high = gain[rows, after - 1], gain[rows, after]
    share = np.where(defined, goal - low, 0.0) / np.where(defined, high - low, 1.0)
    found = steps[after - 1] + share * (steps[after] - steps[after - 1])
    return np.where(defined, found, np.nan)


def _one(config: RunConfig) -> Condition:
    return condition(config, config.architectures[0])


def read(records: Records) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns steps `[T]`, curves by name `[P, T]`, and their steps to half by name `[P]`.

    Pairs that diverged are NaN.
    """
    key = _one(records.config).key
    arrays, finite = records.arrays[EARLY_DIRECTIONS.name, key], Reader(records).finite(key)
    steps = np.asarray(arrays["step"])
    curves = {name: np.where(finite[:, None], arrays[name], np.nan) for name in WORDS}
    return steps, curves, {name: half_step(curve, steps) for name, curve in curves.items()}


@dataclasses.dataclass(frozen=True)
class T4:
    """The alignment of input gradients is half-way to its final value before accuracy is."""

    id: str = "T4"
    claim: str = "Directions of attack align in the first steps of training, before accuracy comes."
    controls: tuple[str, ...] = (
        "accuracy on the same examples at the same steps",
        "what alignment there is at step 0",
    )
    smallest_effect: str = "the alignment of input gradients half-way 2 steps before accuracy"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns the first steps of the first architecture at ρ = 0."""
        one = _one(config)
        return [Request(LEARNING, (one,)), Request(EARLY_DIRECTIONS, (one,))]

    def decide(self, records: Records) -> Outcome:
        """Returns one paired test: step to half of the alignment minus that of accuracy."""
        steps, curves, halves = read(records)

        def tested(values: np.ndarray) -> stats.Decision:
            return stats.mean_test(values, 0.0, alternative="less")

        part = rules.part(
            tested(halves[GRADIENT] - halves[ACCURACY]),
            PART,
            "step to half of the gain in input-gradient alignment minus step to half of the gain "
            "in accuracy",
            "less",
            0.0,
            control="accuracy",
        )
        headlines = [
            rules.headline(
                f"step to half of the {WORDS[name]}",
                tested(halves[name]),
                "accuracy",
                tested(halves[ACCURACY]),
            )
            for name in (GRADIENT, PERTURBATION)
        ]
        headlines.append(
            rules.headline(
                "perturbations: step to half minus accuracy's",
                tested(halves[PERTURBATION] - halves[ACCURACY]),
            )
        )
        headlines += [
            rules.headline(
                f"{WORDS[name]} at step {steps[-1]}",
                tested(curves[name][:, -1]),
                "at step 0",
                tested(curves[name][:, 0]),
            )
            for name in (GRADIENT, PERTURBATION)
        ]
        return Outcome((part,), (PART,), tuple(headlines), tuple(self._warnings(curves, halves)))

    @staticmethod
    def _warnings(curves: Mapping[str, np.ndarray], halves: Mapping[str, np.ndarray]) -> list[str]:
        found = []
        for name in (GRADIENT, ACCURACY):
            alive = np.isfinite(curves[name]).all(-1)
            without = int((alive & np.isnan(halves[name])).sum())
            if without:
                found.append(
                    f"T4: in {without} of {alive.sum()} pairs the {WORDS[name]} ended no higher "
                    "than it began, and has no step to half; these pairs are left out."
                )
        return found

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns both alignments and accuracy along the first steps, marked where half-way."""
        steps, curves, halves = read(records)
        axes = plots.half_ways(
            steps,
            {WORDS[name]: curve for name, curve in curves.items()},
            {WORDS[name]: half for name, half in halves.items()},
            reference=WORDS[ACCURACY],
        )
        seen = {
            "supported": "The alignment of input gradients is half-way before accuracy",
            "refuted": "Accuracy is half-way before the alignment of input gradients",
            "inconclusive": "Which is half-way first is not settled",
        }[verdict.verdict]
        caption = (
            "Agreement of the two models of a pair on where to attack, and their accuracy, on the "
            f"same unseen examples, counted from step 0. {seen}. Marks: where half of the value at "
            f"step {steps[-1]} is reached, mean over pairs; bands and bars are 95 % intervals."
        )
        return [Figure("t4_first_steps", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        (part,) = verdict.parts
        difference = wording.format_estimate(part.estimate, part.low, part.high)
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines[:2])
        opening = (
            "Two models start from different weights and see different data. At every step of "
            "early training we ask, on examples that neither has seen, how well their input "
            "gradients agree, how well the perturbations of a finished attack agree, and how often "
            "they are right; the limits of the image make perturbations agree from the start, so "
            f"all is counted from step 0. Measured: {numbers}. Input gradients are half-way "
            f"{difference} steps after accuracy (before it where the number is negative)."
        )
        ending = {
            "supported": (
                "The two models agree on where to attack before they know the answer: what is "
                "shared is there before what is learned can be seen in accuracy."
            ),
            "refuted": (
                "The order is reversed: accuracy comes before the models agree on where to attack. "
                "To change this, gradients would have to align in the steps in which accuracy is "
                "still low."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. The difference of the two steps "
                "would have to be clear of 0 over pairs."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the one test."""
        return [PART]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns curves of which the alignments' come half-way 2 `effect` steps before accuracy's.

        A curve has come half-way at the step t_½ of its approach 1 − 2^(−t/t_½).
        """
        config = plants.CONFIG
        ahead = 0.0 if boundary else PLANTED * effect
        steps = np.array(steps_of(_one(config)))
        arrays = {"step": steps}
        for name, (first, last) in LEVELS.items():
            middle = 10.0 - (0.0 if name == ACCURACY else ahead)
            half = middle + rng.normal(0, NOISE[name], (config.num_pairs, 1))
            way = 1 - 2 ** (-steps / half)
            arrays[name] = first + (last - first) * way
        one = _one(config)
        return plants.records(
            config,
            {one: {"finite": np.ones(config.num_pairs)}},
            {(EARLY_DIRECTIONS.name, one.key): arrays},
        )


STUDY = T4()
