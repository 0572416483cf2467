"""T4: directions of attack align in the first steps, before accuracy."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t4 import figures as drawing
from halfway.lab.studies.t4.measure import ACCURACY, EARLY_DIRECTIONS
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
GRADIENT, PERTURBATION = "gradient", "perturbation"
LABELS = {
    GRADIENT: "alignment of input gradients",
    PERTURBATION: "alignment of perturbations",
    ACCURACY: "accuracy",
}
PART = "input gradients"


class Curves(NamedTuple):
    """What the rule reads; NaN for pairs that diverged.

    Attributes:
      steps: `[T]`.
      values: `[P, T]` by name, see `LABELS`.
      half_steps: `[P]` by name, see `half_step`.
    """

    steps: np.ndarray
    values: Mapping[str, np.ndarray]
    half_steps: Mapping[str, np.ndarray]


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns the first steps of the first architecture at ρ = 0."""
    trained = decided_on(config)
    return [Request(LEARNING, (trained,)), Request(EARLY_DIRECTIONS, (trained,))]


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
    after = np.where(defined, after, 1)  # never 0 where it is defined: the gain there is 0
    rows = np.arange(len(curves))
    low, high = gain[rows, after - 1], gain[rows, after]
    share = np.where(defined, goal - low, 0.0) / np.where(defined, high - low, 1.0)
    crossed = steps[after - 1] + share * (steps[after] - steps[after - 1])
    return np.where(defined, crossed, np.nan)


def curves_of(directions: Measured) -> Curves:
    """Returns the curves of every pair, and when each has come half of its way.

    Args:
      directions: of `EARLY_DIRECTIONS`.
    """
    steps = directions.dataset["step"].values
    values = {name: directions.read(name, "pair", "step") for name in LABELS}
    return Curves(steps, values, {name: half_step(curve, steps) for name, curve in values.items()})


def decide(records: Records) -> Outcome:
    """Returns one paired test: step to half of the alignment minus that of accuracy."""
    curves = curves_of(records.get(EARLY_DIRECTIONS, decided_on(records.config)))
    half_steps, values = curves.half_steps, curves.values
    mean = functools.partial(stats.mean_test, threshold=0.0, alternative="less")
    part = rules.part(
        mean(half_steps[GRADIENT] - half_steps[ACCURACY]),
        PART,
        "step to half of the gain in input-gradient alignment minus step to half of the gain in "
        "accuracy",
        "less",
        0.0,
        control="accuracy",
    )
    headlines = [
        rules.headline(
            f"step to half of the {LABELS[name]}",
            mean(half_steps[name]),
            "accuracy",
            mean(half_steps[ACCURACY]),
        )
        for name in (GRADIENT, PERTURBATION)
    ]
    headlines.append(
        rules.headline(
            "perturbations: step to half minus accuracy's",
            mean(half_steps[PERTURBATION] - half_steps[ACCURACY]),
        )
    )
    headlines += [
        rules.headline(
            f"{LABELS[name]} at step {curves.steps[-1]}",
            mean(values[name][:, -1]),
            "at step 0",
            mean(values[name][:, 0]),
        )
        for name in (GRADIENT, PERTURBATION)
    ]
    return Outcome((part,), (PART,), tuple(headlines), tuple(_without_gain(curves)))


def _without_gain(curves: Curves) -> list[str]:
    """Returns a warning for each curve that some pairs have no step to half of."""
    warnings = []
    for name in (GRADIENT, ACCURACY):
        finite = np.isfinite(curves.values[name]).all(-1)
        number = int((finite & np.isnan(curves.half_steps[name])).sum())
        if number:
            warnings.append(
                f"T4: in {number} of {finite.sum()} pairs the {LABELS[name]} ended no higher than "
                "it began, and has no step to half; these pairs are left out."
            )
    return warnings


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns both alignments and accuracy along the first steps, marked where half-way.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    curves = curves_of(records.get(EARLY_DIRECTIONS, decided_on(records.config)))
    axes = drawing.half_ways(
        curves.steps,
        {LABELS[name]: curve for name, curve in curves.values.items()},
        {LABELS[name]: half for name, half in curves.half_steps.items()},
        reference=LABELS[ACCURACY],
    )
    caption = TEXT.caption("t4_first_steps", verdict, last_step=curves.steps[-1])
    return [Figure("t4_first_steps", caption, rules.figure_of(axes))]


STUDY = Study("T4", TEXT, needs, decide, figures, stands_on=("T1",))
