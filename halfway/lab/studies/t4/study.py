"""T4: attack directions align before accuracy starts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t4 import figures as drawing
from halfway.lab.studies.t4.measure import ACCURACY, EARLY_DIRECTIONS
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition
from halfway.stats import Decision

TEXT = text.load(__file__)
SLOWER, LAST_STEP = 10, 200
"""By what the config's learning rate is divided, and the step at which training ends."""
STARTED = 0.1
"""The share of its gain below which accuracy has not started, and that alignment must exceed."""
MARGIN, CROSS_ENTROPY = "margin", "cross_entropy"
LABELS = {
    MARGIN: "alignment of input gradients",
    CROSS_ENTROPY: "alignment of cross-entropy gradients",
    ACCURACY: "accuracy",
}
NUM_RESAMPLES = 10_000
SEED = 4
"""Of the resamples of pairs."""
LEVEL = 0.05
"""Of an onset, over all steps together."""


class Curves(NamedTuple):
    """What the rule reads; NaN for pairs that diverged.

    Attributes:
      steps: `[T]`.
      values: `[P, T]` by name, see `LABELS`.
    """

    steps: np.ndarray
    values: Mapping[str, np.ndarray]


def decided_on(config: RunConfig, architecture: str) -> Condition:
    """Returns the condition of an architecture: slow and short training without label noise.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    trained = condition(config, architecture)
    return dataclasses.replace(
        trained, learning_rate=trained.learning_rate / SLOWER, probe_steps=(0, LAST_STEP)
    )


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns the first steps of each architecture at ρ = 0."""
    return [
        Request(measurement, (decided_on(config, architecture),))
        for architecture in config.architectures
        for measurement in (LEARNING, EARLY_DIRECTIONS)
    ]


def curves_of(directions: Measured) -> Curves:
    """Returns the curves of every pair.

    Args:
      directions: of `EARLY_DIRECTIONS`.
    """
    values = {name: directions.read(name, "pair", "step") for name in LABELS}
    return Curves(directions.dataset["step"].values, values)


def last_before_start(accuracy: np.ndarray) -> np.ndarray:
    """Returns t* `[...]`, a place along the curve: the last at and before which it has not started.

    That is, has less than a tenth of its gain from the first step to the last; −1 without a gain.

    Args:
      accuracy: `[..., T]`, mean over pairs.
    """
    gain = accuracy - accuracy[..., :1]
    started = gain >= STARTED * gain[..., -1:]
    return np.where(gain[..., -1] > 0, started.argmax(-1) - 1, -1)


def share_before_start(alignment: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Returns `[...]` the share of the alignment's gain at t*; NaN without a gain of either.

    Args:
      alignment: `[..., T]`, mean over pairs.
      accuracy: `[..., T]`, likewise.
    """
    place = last_before_start(accuracy)
    gain = alignment - alignment[..., :1]
    reached = np.take_along_axis(gain, np.maximum(place, 0)[..., None], -1)[..., 0]
    defined = (place >= 0) & (gain[..., -1] > 0)
    return np.where(defined, reached / np.where(defined, gain[..., -1], 1.0), np.nan)


def _tested(curves: Curves, name: str) -> Decision:
    """Returns the share of an alignment's gain at t* with its test against `STARTED`."""
    alignment, accuracy = curves.values[name], curves.values[ACCURACY]
    valid = stats.valid_pairs(alignment.T, accuracy.T)
    num_pairs, total = int(valid.sum()), len(valid)

    def share(weights: np.ndarray) -> np.ndarray:
        return share_before_start(
            *(stats.weighted_ratio(weights, curve.T, 1.0) for curve in (alignment, accuracy))
        )

    undecided = Decision(0.0, -math.inf, math.inf, 1.0, 1.0, num_pairs, total - num_pairs)
    if num_pairs < 2:
        return undecided
    estimate = float(share(valid[None].astype(float))[0])
    rng = np.random.default_rng(SEED)
    draws = stats.pair_bootstrap(share, total, rng, num_draws=NUM_RESAMPLES, valid=valid)
    error = float(draws.std(ddof=1))
    if not (math.isfinite(estimate) and error > 0):  # undefined here or in a resample
        return undecided._replace(estimate=estimate if math.isfinite(estimate) else 0.0)
    half = float(special.stdtrit(num_pairs - 1, 0.975)) * error
    t = (estimate - STARTED) / error
    p_value, p_reverse = (float(special.stdtr(num_pairs - 1, side)) for side in (-t, t))
    return Decision(estimate, estimate - half, estimate + half, p_value, p_reverse, *undecided[5:])


def onset(curves: Curves, name: str) -> float:
    """Returns the first step at which a curve is significantly above step 0; NaN without one.

    Args:
      curves: of `curves_of`.
      name: of the curve. The test is a one-sided t over pairs, Bonferroni over the steps.
    """
    gain = curves.values[name] - curves.values[name][:, :1]
    for step, column in zip(curves.steps[1:], gain.T[1:], strict=True):
        if stats.mean_test(column, alternative="greater").p_value < LEVEL / len(curves.steps):
            return float(step)
    return math.nan


def _by_architecture(records: Records) -> dict[str, Curves]:
    config = records.config
    return {
        name: curves_of(records.get(EARLY_DIRECTIONS, decided_on(config, name)))
        for name in config.architectures
    }


def decide(records: Records) -> Outcome:
    """Returns for each architecture the share of the alignment's gain reached before accuracy's.

    Alignment is that of one pair over the examples of S, accuracy the mean of both models; curves
    are means over pairs. Pairs are resampled 10,000 times, t* is found again in each resample, and
    the standard deviation of the share over resamples is the standard error of a t with P − 1
    degrees of freedom: percentiles of 16 pairs are too narrow. Where a gain is not positive, in the
    data or in a resample, nothing is decided.
    """
    parts, headlines, described = [], [], []
    for architecture, curves in _by_architecture(records).items():
        decision = _tested(curves, MARGIN)
        parts.append(
            rules.part(
                decision,
                architecture,
                f"part of the gain of the {LABELS[MARGIN]} that is reached at t*, the last step "
                f"before accuracy has {STARTED:g} of its gain",
                "greater",
                STARTED,
                control=TEXT.controls[0],
            )
        )
        headlines.append(
            rules.headline(f"part of the alignment's gain at t* ({architecture})", decision)
        )
        described += _described(curves, architecture)
    names = tuple(records.config.architectures)
    return Outcome(tuple(parts), names, (*headlines, *described))


def _described(curves: Curves, architecture: str) -> list[Headline]:
    """Returns t*, the part by cross-entropy, onsets, and alignment at the end and at step 0."""
    nothing = math.nan, math.nan
    valid = stats.valid_pairs(*(curve.T for curve in curves.values.values()))
    place = -1
    if valid.any():
        place = int(last_before_start(curves.values[ACCURACY][valid].mean(0)))
    step = float(curves.steps[place]) if place >= 0 else math.nan
    aligned = curves.values[MARGIN]
    return [
        Headline(f"step t* ({architecture})", step, *nothing),
        rules.headline(
            f"part of the gain at t* with cross-entropy ({architecture})",
            _tested(curves, CROSS_ENTROPY),
        ),
        Headline(
            f"onset of the {LABELS[MARGIN]} ({architecture}), step",
            onset(curves, MARGIN),
            *nothing,
            control_label=LABELS[ACCURACY],
            control=(onset(curves, ACCURACY), *nothing),
        ),
        rules.headline(
            f"{LABELS[MARGIN]} at step {curves.steps[-1]} ({architecture})",
            stats.mean_test(aligned[:, -1], alternative="greater"),
            "at step 0",
            stats.mean_test(aligned[:, 0], alternative="greater"),
        ),
    ]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns for each architecture alignment and accuracy along the first steps, marked at t*.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    drawn = []
    for architecture, curves in _by_architecture(records).items():
        axes = drawing.early_gains(
            curves.steps,
            {LABELS[name]: curve for name, curve in curves.values.items()},
            reference=LABELS[ACCURACY],
            threshold=STARTED,
        )
        caption = TEXT.caption(
            "t4_first_steps", verdict, architecture=architecture, **words(verdict)
        )
        drawn.append(Figure(f"t4_first_steps_{architecture}", caption, rules.figure_of(axes)))
    return drawn


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the part of each architecture, what counts as started, and the last step."""
    shares = verdict.headlines[: len(verdict.parts)]
    return {
        "shares": "; ".join(map(wording.format_headline, shares)),
        "started": f"{STARTED:g}",
        "last_step": str(LAST_STEP),
        "slower": str(SLOWER),
    }


STUDY = Study("T4", TEXT, needs, decide, figures, words, stands_on=("T1",))
