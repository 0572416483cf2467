"""G5: who meets whom in a network of its own predicts which classes are confused."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from halfway import meeting, plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g5 import likeness
from halfway.lab.studies.g5.measure import CLASSES, CONFUSIONS
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.lab.study.wording import format_estimate
from halfway.populations import Condition

TEXT = text.load(__file__)
DECIDES = "network trained on S"
RELABELLINGS = 1000
"""Of the classes, at random: what correlation the names of classes alone would give."""
SEED = 0
"""Of the relabellings."""


def conditions(config: RunConfig) -> tuple[Condition, Condition]:
    """Returns the condition trained on the halves, and that trained on S alone.

    Args:
      config: of the run.
    """
    trained = condition(config, config.architectures[0])
    return trained, dataclasses.replace(trained, on_holdout=True)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns both trainings, confusions of the first and class matrices of the second."""
    halves, holdout = conditions(config)
    return [
        Request(LEARNING, (halves,)),
        Request(CONFUSIONS, (halves,)),
        Request(LEARNING, (holdout,)),
        Request(CLASSES, (holdout,)),
    ]


class Readings(NamedTuple):
    """Rank correlations over pairs of classes with the confusions of each pair of models, `[P]`.

    Attributes:
      trained: of the kernel of other pairs' networks at the end of training on S.
      start: the same at initialization.
      images: of minus the distance of the classes' mean images.
      relabelled: `[R, P]`, of the trained kernel with its classes relabelled.
      confused: `[P]`, number of confusions; NaN for pairs that diverged.
    """

    trained: np.ndarray
    start: np.ndarray
    images: np.ndarray
    relabelled: np.ndarray
    confused: np.ndarray


def _matrices(classes: Measured, step: int) -> np.ndarray:
    """Returns `[P, 2, C, C]` residual-free matrices."""
    return classes.read("class_matrix", "pair", "model", "class", "other_class", step=step)


def _read(records: Records) -> Readings:
    halves, holdout = conditions(records.config)
    confusions, classes = records.get(CONFUSIONS, halves), records.get(CLASSES, holdout)
    counted = confusions.read("confusion", "pair", "model", "class", "other_class").sum(1)
    # A pair leaves whole, whichever of its networks diverged.
    counts = np.where(classes.finite[:, None], likeness.class_pairs(counted), np.nan)
    last = holdout.probe_steps[-1]
    start, trained = (
        likeness.mean_of_others(likeness.relatedness(_matrices(classes, step)).mean(1))
        for step in (0, last)
    )
    distances = likeness.distances(confusions.read("pixel_product", "class", "other_class"))
    # All three are compared on the same pairs of classes.
    images = np.where(np.isfinite(start + trained), -distances, np.nan)
    rng = np.random.default_rng(SEED)
    of_trained, of_start, of_images = (
        likeness.rank_correlations(values, counts) for values in (trained, start, images)
    )
    return Readings(
        of_trained,
        of_start,
        of_images,
        likeness.relabelled(trained, counts, RELABELLINGS, rng),
        2 * counts.sum(-1),
    )


def decide(records: Records) -> Outcome:
    """Returns one test over pairs, given the classes.

    Of each pair of models: Spearman's correlation of K_cc′/√(K_cc K_c′c′) with the confusions, over
    the pairs of classes, minus that of minus the distance of the classes' mean images. K is the
    residual-free matrix of A and B, in a network trained on the pair's S: normalized, averaged over
    both orders of the classes and both seeds of a pair, and then over all *other* pairs. Confusions
    are counts, labels clean: θ_A on B and θ_B on A, c taken for c′ and c′ for c. Mean images are
    those of the whole pool. A pair in which no example is confused has no correlation, and leaves.
    """
    read = _read(records)
    part = rules.part(
        stats.mean_test(read.trained - read.images, 0.0, alternative="greater"),
        DECIDES,
        "Spearman's r of K and confusions minus that of the likeness of images",
        "greater",
        0.0,
        control="minus the distance of the classes' mean images",
    )
    headlines = (
        rules.headline(
            f"rank correlation with confusions, {DECIDES}",
            stats.mean_test(read.trained, alternative="greater"),
            "likeness of images",
            stats.mean_test(read.images, alternative="greater"),
        ),
        rules.headline(
            "the same, network at initialization",
            stats.mean_test(read.start, alternative="greater"),
        ),
        Headline(
            f"the same, {DECIDES}, its classes relabelled (middle 95 % of {RELABELLINGS:,})",
            *_relabellings(read),
        ),
        _contrast(records),
    )
    nothing = int((read.confused == 0).sum())
    warnings = (f"G5: in {nothing} pairs no example was confused; they were left out.",)
    return Outcome((part,), (DECIDES,), headlines, warnings if nothing else ())


def _relabellings(read: Readings) -> tuple[float, float, float]:
    """Returns the mean over relabellings of the mean over pairs, and its middle 95 %."""
    valid = np.isfinite(read.relabelled).all(0)
    if not valid.any():
        return np.nan, np.nan, np.nan
    means = read.relabelled[:, valid].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def _contrast(records: Records) -> Headline:
    """Returns how far one class meets more than two do, at initialization, beside the pixels."""
    halves, holdout = conditions(records.config)
    matrices = _matrices(records.get(CLASSES, holdout), 0)
    contrast, size = (
        np.asarray(terms).sum(1) for terms in meeting.contrast_terms(jnp.asarray(matrices))
    )
    products = records.get(CONFUSIONS, halves).read("pixel_product", "class", "other_class")
    pixels = float(meeting.diagonal_contrast(jnp.asarray(products)))
    measured = rules.headline(
        "(mean diagonal − mean off-diagonal)/mean|entry| of K at initialization",
        stats.fieller(contrast, size),
    )
    return dataclasses.replace(
        measured, control_label="of the pixels alone", control=(pixels, np.nan, np.nan)
    )


def words(verdict: Verdict) -> dict[str, str]:
    """Returns the middle of the relabellings, in words."""
    chance = verdict.headlines[2]
    return {"relabelled": format_estimate(chance.estimate, chance.low, chance.high)}


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's correlations beside their controls, and the mean matrices.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    read = _read(records)
    rows = [
        read.trained - read.images,
        read.trained,
        read.images,
        read.start,
        read.relabelled.mean(0),
    ]
    intervals = [plots.mean_interval(row) for row in rows[:-1]] + [_relabellings(read)]
    axes = plots.pair_comparison(
        rows[0][None],
        np.stack(rows[1:])[None],
        names=records.config.architectures[:1],
        treatment="difference",
        control_names=[
            DECIDES,
            "likeness of images",
            "network at initialization",
            "classes relabelled",
        ],
        xlabel="Spearman's r with the confusions, and the difference that decides",
        intervals=np.array(intervals)[None],
    )
    ends = np.array([intervals[-1][1:], axes.get_xlim()])  # the bar of relabellings is wide
    axes.set_xlim(np.nanmin(ends[:, 0]), np.nanmax(ends[:, 1]))
    caption = TEXT.caption("g5_confusions", verdict)
    drawn = [Figure("g5_confusions", caption, rules.figure_of(axes))]
    return drawn + _drawn_matrices(records, verdict)


def _drawn_matrices(records: Records, verdict: Verdict) -> list[Figure]:
    """Returns the matrix of the network trained on S and that of confusions, means over pairs."""
    halves, holdout = conditions(records.config)
    confusions, classes = records.get(CONFUSIONS, halves), records.get(CLASSES, holdout)
    if not (confusions.finite.any() and classes.finite.any()):
        return []
    matrices = _matrices(classes, holdout.probe_steps[-1])[classes.finite]
    counts = confusions.read("confusion", "pair", "model", "class", "other_class")
    meets = plots.meeting_matrix(
        np.nanmean(matrices, (0, 1)), label="tr K(x, x′)/C, mean over A and B"
    )
    confused = plots.meeting_matrix(
        np.where(np.eye(halves.num_classes), np.nan, np.nanmean(counts, (0, 1))),
        label="examples of the other half, mean number of a model",
    )
    confused.set(xlabel="class that a model takes it for", ylabel="class of the example")
    return [
        Figure(name, TEXT.caption(name, verdict), rules.figure_of(axes))
        for name, axes in (("g5_matrix", meets), ("g5_matrix_confused", confused))
    ]


STUDY = Study("G5", TEXT, needs, decide, figures, words, stands_on=("G1",))
