"""D2: n_half, the gradient noise scale, at steps of training, of the MLP and the CNN."""

import math
from collections.abc import Sequence

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.studies.d2 import figures as drawing
from halfway.lab.studies.d2.measure import HALVES, NOISE, steps_of
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study, Table
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition

TEXT = text.load(__file__, "description")
HALF_WORDS = {"own": "half trained on", "other": "other half"}
Curve = dict[int, tuple[float, float, float]]
"""Steps to n_half with the ends of its 95 % interval."""


def conditions(config: RunConfig) -> dict[str, Condition]:
    """Returns the condition without label noise of each architecture.

    Args:
      config: of the run.
    """
    return {name: condition(config, name) for name in config.architectures}


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns signal and noise along training of every architecture."""
    return [Request(NOISE, (trained,)) for trained in conditions(config).values()]


def decide(records: Records) -> Outcome:
    """Returns n_half = tr Cov(g)/‖E g‖², a ratio of sums over pairs and models, at every step.

    It is undefined where the estimate of the signal is not positive, as on a half that is fitted.
    """
    headlines, counts = [], []
    for name, trained in conditions(records.config).items():
        measured = records.get(NOISE, trained)
        counts.append(int(measured.finite.sum()))
        for half in HALVES:
            for step in steps_of(trained):
                noise, signal = (
                    measured.read(each, "pair", "model", half=half, step=step).sum(-1)
                    for each in ("noise", "signal")
                )
                label = f"n_half, {name}, {HALF_WORDS[half]}, step {step}"
                estimate = stats.fieller(noise, signal)
                if estimate.estimate <= 0:
                    estimate = estimate._replace(estimate=math.nan, low=-math.inf, high=math.inf)
                headlines.append(rules.headline(label, estimate))
    return Outcome((), (), tuple(headlines), num_pairs=min(counts))


def curves(headlines: Sequence[Headline]) -> dict[tuple[str, str], Curve]:
    """Returns n_half by step, for each architecture and half in words.

    Args:
      headlines: of D2.
    """
    by_place: dict[tuple[str, str], Curve] = {}
    for headline in headlines:
        _, architecture, half, step = headline.label.split(", ")
        curve = by_place.setdefault((architecture, half), {})
        values = headline.estimate, headline.low, headline.high
        curve[int(step.removeprefix("step "))] = values
    return by_place


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns n_half along training, of both halves.

    Args:
      records: the measurements of the run.
      verdict: what was described.
    """
    by_place = curves(verdict.headlines)
    axes = drawing.along_training(by_place, batch_size=records.config.training.batch_size)
    steps = list(dict.fromkeys(step for curve in by_place.values() for step in curve))
    rows = [
        [
            ", ".join(place),
            *(format_estimate(*curve[step]) if step in curve else "–" for step in steps),
        ]
        for place, curve in by_place.items()
    ]
    columns = ["n_half after", *(f"{step} steps" for step in steps)]
    caption = TEXT.caption("d2_noise_scale", verdict)
    return [
        Figure(
            "d2_noise_scale",
            caption,
            rules.figure_of(axes),
            Table("Gradient noise scale", "", columns, rows),
        )
    ]


def words(verdict: Verdict) -> dict[str, str]:
    """Returns the first and the last value on unseen examples, of each architecture."""
    ends = []
    for (architecture, half), curve in curves(verdict.headlines).items():
        if half == HALF_WORDS["other"]:
            shown = [format_estimate(*curve[step]) for step in (min(curve), max(curve))]
            ends.append(f"{architecture}: {shown[0]} before the first step, {shown[1]} at the end")
    return {"ends": "; ".join(ends)}


def mean_over_training(curve: Curve) -> float:
    """Returns the mean of n_half over the steps looked at after the first; NaN where one is.

    Args:
      curve: see `Curve`.
    """
    values = [curve[step][0] for step in sorted(curve)[1:]]
    return float(np.mean(values)) if values else math.nan


STUDY = Study("D2", TEXT, needs, decide, figures, words, kind="description")
