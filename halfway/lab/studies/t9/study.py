"""T9: most of what two boundaries share is beyond the geometry of the data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import MODELS
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t9 import figures as drawing
from halfway.lab.studies.t9.measure import BOUNDARIES, RULES
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
SHARE = 0.5
"""Of the correlation, which must be left once three rules are given."""
PART = "beyond the data"


class BoundaryStatistics(NamedTuple):
    """What the rule reads; NaN for pairs that diverged.

    Attributes:
      correlation: `[P]`, Pearson's r of t_A and t_B over segments.
      partial: `[P]`, the same given the crossings of the rules.
      with_rule: `[3, P]`, r of a model's crossing and that of each rule, mean of both models.
      examples: `[N]`, what each example of the pool adds to the mean of partial − ½ r, to first
        order; NaN for one that ends no segment.
    """

    correlation: np.ndarray
    partial: np.ndarray
    with_rule: np.ndarray
    examples: np.ndarray


class Segments(NamedTuple):
    """The segments of one pair.

    Attributes:
      crossings: `[2, N]`, t of both models; 1 where one was not found.
      rules: `[3, N]`, the same of the rules.
      ends: `[2, N]`, rows of the pool.
    """

    crossings: np.ndarray
    rules: np.ndarray
    ends: np.ndarray


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns boundaries of the first architecture at ρ = 0."""
    trained = decided_on(config)
    return [Request(LEARNING, (trained,)), Request(BOUNDARIES, (trained,))]


def segments_of(boundaries: Measured, pair: int) -> Segments:
    """Returns the segments of a pair that exist.

    Args:
      boundaries: of `BOUNDARIES`.
      pair: its number.
    """
    valid = boundaries.read("class_pair", "pair", "segment")[pair] >= 0
    models = boundaries.read("crossing", "pair", "model", "segment")[pair]
    ruled = np.stack(
        [boundaries.read("rule_crossing", "pair", "segment", rule=rule)[pair] for rule in RULES]
    )
    crossings, of_rules = (
        np.where(np.isfinite(values), values, 1.0)[:, valid].astype(np.float64)
        for values in (models, ruled)
    )
    ends = [boundaries.read(name, "pair", "segment")[pair][valid] for name in ("start", "end")]
    return Segments(crossings, of_rules, np.stack(ends))


def residuals(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Returns values `[M, N]` minus their least-squares fit by an intercept and given `[R, N]`.

    Args:
      values: what is fitted.
      given: what it is fitted by; with no row, the mean is subtracted.
    """
    design = np.concatenate([np.ones((1, values.shape[1])), given]).T
    fitted, *_ = np.linalg.lstsq(design, values.T, rcond=None)
    return values - (design @ fitted).T


def correlation(values: np.ndarray, given: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the partial correlation of two quantities and `[N]` what each entry adds to it.

    NaN where fewer entries are there than it takes, or one of the two is fitted exactly.

    Args:
      values: `[2, N]`.
      given: `[R, N]`; with no row this is Pearson's correlation.

    Formula: with residuals u, v of mean square 1, r = mean(u v) and the influence
    `u v − r (u² + v²)/2`: to first order the fits do not matter.
    """
    left = residuals(values, given)
    size = np.sqrt((left**2).mean(-1, keepdims=True)) if left.size else np.zeros((2, 1))
    scale = np.abs(values).max(-1, initial=0.0)[:, None]
    if values.shape[1] < len(given) + 3 or not (size > 1e-9 * scale).all():
        return np.nan, np.full(values.shape[1], np.nan)
    first, second = left / size
    r = float((first * second).mean())
    return r, first * second - r * (first**2 + second**2) / 2


def boundary_statistics(boundaries: Measured) -> BoundaryStatistics:
    """Returns the statistics of each pair, and what each example adds.

    A crossing that was not found counts as one at the far end of the segment.

    Args:
      boundaries: of `BOUNDARIES`.
    """
    num_pairs = len(boundaries.finite)
    num_rows = 1 + max(
        int(boundaries.read(name, "pair", "segment").max(initial=0)) for name in ("start", "end")
    )
    values, with_rule = np.full((2, num_pairs), np.nan), np.full((len(RULES), num_pairs), np.nan)
    examples, ended = np.zeros(num_rows), np.zeros(num_rows, bool)
    for p in np.flatnonzero(boundaries.finite):
        crossings, of_rules, ends = segments_of(boundaries, int(p))
        nothing = of_rules[:0]
        (r, influence), (partial, influence_left) = (
            correlation(crossings, given) for given in (nothing, of_rules)
        )
        if not np.isfinite(r - partial):
            continue
        values[:, p] = r, partial
        with_rule[:, p] = [
            np.mean([correlation(np.stack([model, rule]), nothing)[0] for model in crossings])
            for rule in of_rules
        ]
        added = (influence_left - SHARE * influence) / influence.size
        for rows in ends:
            np.add.at(examples, rows, added)
            ended[rows] = True
    # The mean over pairs is of those that count.
    examples = examples / max(1, int(np.isfinite(values[0]).sum()))
    correlations, partials = values
    added = np.where(ended, examples, np.nan)
    return BoundaryStatistics(correlations, partials, with_rule, added)


def decide(records: Records) -> Outcome:
    """Returns one test: the partial correlation minus half of the correlation.

    Both are of one pair and over all of its segments together; the mean over pairs is tested by a t
    over pairs *and* examples: the squared errors that draws of either make are added, since the
    samples S of pairs overlap. A crossing of a rule counts as 0 where the rule has the start wrong
    and as 1 where it never leaves its class. A pair with fewer than six segments, or with crossings
    that the rules give exactly, has no partial correlation and is left out.
    """
    read = boundary_statistics(records.get(BOUNDARIES, decided_on(records.config)))
    part = rules.part(
        stats.two_way_test(
            read.partial - SHARE * read.correlation, read.examples, alternative="greater"
        ),
        PART,
        "partial corr(t_A, t_B) given three rules fitted on S, minus half of corr(t_A, t_B)",
        "greater",
        0.0,
        control=TEXT.controls[0],
    )

    def mean(values: np.ndarray):
        return stats.bounded(stats.mean_test(values, alternative="greater"), -1.0)

    headlines = [
        rules.headline(
            "corr(t_A, t_B) over segments",
            mean(read.correlation),
            "given three rules",
            mean(read.partial),
        )
    ]
    headlines += [
        rules.headline(f"correlation of a model's crossings with those of the {rule}", mean(values))
        for rule, values in zip(RULES, read.with_rule, strict=True)
    ]
    return Outcome((part,), (PART,), tuple(headlines))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns crossings of both models, what is left of their correlation, and a plane.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    boundaries = records.get(BOUNDARIES, decided_on(records.config))
    pairs = [segments_of(boundaries, int(p)) for p in np.flatnonzero(boundaries.finite)]
    predicted = [
        segments.crossings[1] - residuals(segments.crossings[1:], segments.rules)[0]
        for segments in pairs
    ]
    first, second = np.concatenate([segments.crossings for segments in pairs], 1)
    axes = drawing.crossings(first, second, np.concatenate(predicted))
    drawn = [Figure("t9_crossings", TEXT.caption("t9_crossings", verdict), rules.figure_of(axes))]
    read = boundary_statistics(boundaries)
    axes = plots.pair_comparison(
        read.partial,
        np.stack([SHARE * read.correlation, read.correlation]),
        names=[records.config.architectures[0]],
        treatment="given the rules",
        control_names=["half of the correlation", "the correlation"],
        xlabel="r, correlation of t_A and t_B over segments",
    )
    caption = TEXT.caption("t9_correlations", verdict)
    drawn.append(Figure("t9_correlations", caption, rules.figure_of(axes)))
    corners = boundaries.read("plane_corners", "pair", "corner", "axis")
    usable = boundaries.finite & np.isfinite(corners).all((1, 2))
    if usable.any():
        axes = _plane(boundaries, int(np.argmax(usable)))
        caption = TEXT.caption("t9_plane", verdict)
        drawn.append(Figure("t9_plane", caption, rules.figure_of(axes)))
    return drawn


def _plane(boundaries: Measured, pair: int):
    """Returns axes with what both models of a pair decide in the plane of three examples."""
    read = {
        name: boundaries[f"plane_{name}"].values[pair]
        for name in ("corners", "classes", "x", "y", "decision")
    }
    points = {
        f"a {label}": place for label, place in zip(read["classes"], read["corners"], strict=True)
    }
    names = [f"model {name}" for name in MODELS]
    decisions = dict(zip(names, read["decision"], strict=True))
    return drawing.boundaries(read["x"], read["y"], decisions, points=points)


STUDY = Study("T9", TEXT, needs, decide, figures, stands_on=("T1",))
