"""T9: boundaries meet, about halfway."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import MODELS
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.t9 import figures as drawing
from halfway.lab.studies.t9.measure import BOUNDARIES, KINDS
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Headline, Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
CORRELATION, MIDDLE, LEAD = "same place", "in the middle", "nearer than the example"
HALFWAY = 0.1
"""How far from the middle of a segment a boundary may lie on average."""
FOUND = 0.999
"""The share of segments on which both crossings must be found."""
SEED = 9
"""Of the permutation that is drawn in the figure; the rule needs none."""


class BoundaryStatistics(NamedTuple):
    """What the rule reads of each pair, `[P]` each; NaN for pairs that diverged.

    Attributes:
      correlation: of t_A and t_B over segments.
      permuted: its mean over all permutations of segments within pairs of classes.
      off: mean |t − ½| of both models.
      own_distance: median l2 distance to a model's own boundary along segments, mean of both
        models.
      between: median l2 distance between both boundaries.
      lead: median of the difference of the two, mean of both models.
      crossed: share of segments on which both crossings were found.
    """

    correlation: np.ndarray
    permuted: np.ndarray
    off: np.ndarray
    own_distance: np.ndarray
    between: np.ndarray
    lead: np.ndarray
    crossed: np.ndarray


def decided_on(config: RunConfig) -> Condition:
    """Returns the condition that decides: the first architecture without label noise."""
    return condition(config, config.architectures[0])


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns boundaries of the first architecture at ρ = 0."""
    trained = decided_on(config)
    return [Request(LEARNING, (trained,)), Request(BOUNDARIES, (trained,))]


def expected_correlation(x: np.ndarray, y: np.ndarray, strata: np.ndarray) -> tuple[float, float]:
    """Returns Pearson's correlation, and its mean over all permutations of y within strata.

    A permutation leaves means and variances as they are, and on average replaces each y by the
    mean of its stratum: so the mean is exact, without drawing. NaN where one does not vary.

    Args:
      x, y: `[N]`.
      strata: `[N]` integers.
    """
    if len(x) < 2:
        return math.nan, math.nan
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    if not size > 0:
        return math.nan, math.nan
    _, group = np.unique(strata, return_inverse=True)
    sums = [np.bincount(group, weights=values) for values in (x, y)]
    return float(x @ y) / size, float(sums[0] @ (sums[1] / np.bincount(group))) / size


def boundary_statistics(boundaries: Measured) -> BoundaryStatistics:
    """Returns the statistics of each pair.

    A crossing that was not found counts as one at the far end of the segment, and as a boundary
    infinitely far from the other model's: against the claim.

    Args:
      boundaries: of `BOUNDARIES`.
    """
    classes, between = (
        boundaries.read(name, "pair", "segment") for name in ("class_pair", "between")
    )
    crossings, distances = (
        boundaries.read(name, "pair", "model", "segment").astype(np.float64)
        for name in ("crossing", "distance")
    )
    values = np.full((len(BoundaryStatistics._fields), len(classes)), np.nan)
    for p in np.flatnonzero(boundaries.finite):
        valid = classes[p] >= 0
        if not valid.any():
            continue
        crossed = np.isfinite(crossings[p][:, valid]).all(0)
        first, second = np.where(np.isfinite(crossings[p]), crossings[p], 1.0)[:, valid]
        distance = distances[p][:, valid]
        apart = np.where(crossed, between[p][valid], 0.0)
        lead = np.where(crossed, distance - apart, -np.inf)
        values[:2, p] = expected_correlation(first, second, classes[p][valid])
        values[2, p] = np.abs(np.stack([first, second]) - 0.5).mean()
        values[3, p] = np.median(distance, axis=1).mean()
        values[4, p] = np.median(np.where(crossed, apart, np.inf))
        values[5, p], values[6, p] = np.median(lead, axis=1).mean(), crossed.mean()
    return BoundaryStatistics(*values)


def decide(records: Records) -> Outcome:
    """Returns three tests, and the gate that every crossing was found."""
    boundaries = records.get(BOUNDARIES, decided_on(records.config))
    read = boundary_statistics(boundaries)
    mean = functools.partial(stats.mean_test, alternative="greater")
    parts = (
        rules.part(
            mean(read.correlation - read.permuted),
            CORRELATION,
            "corr(t_A, t_B) over segments minus its mean under permutation",
            "greater",
            0.0,
            control=TEXT.controls[0],
        ),
        rules.part(
            stats.mean_test(read.off, HALFWAY, alternative="less"),
            MIDDLE,
            "mean |t − ½| of both models",
            "less",
            HALFWAY,
        ),
        rules.part(
            mean(read.lead),
            LEAD,
            "median over segments of the l2 distance to the boundary minus the distance between "
            "both boundaries",
            "greater",
            0.0,
        ),
        rules.gate(
            read.crossed,
            "crossings",
            "share of segments that both models cross",
            FOUND,
            bounds=(0, 1),
        ),
    )
    headlines = [
        rules.headline(
            "corr(t_A, t_B)", mean(read.correlation), "permuted within classes", mean(read.permuted)
        ),
        rules.headline("mean |t − ½|", mean(read.off)),
        rules.headline(
            "l2 distance to the boundary along segments",
            mean(read.own_distance),
            "between both boundaries",
            mean(read.between),
        ),
    ]
    headlines += [_headline(kind, *medians) for kind, medians in _by_kind(boundaries).items()]
    return Outcome(parts, (CORRELATION,), tuple(headlines))


def _by_kind(boundaries: Measured) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns `[P]` medians to the boundary and between boundaries, by kind of direction."""
    names = "boundary_distance", "inter_boundary_distance"

    def read(name: str, kind: str) -> np.ndarray:
        return boundaries.read(name, "pair", "model", kind=kind).mean(-1)

    return {kind: (read(names[0], kind), read(names[1], kind)) for kind in KINDS}


def _headline(kind: str, to_boundary: np.ndarray, between: np.ndarray) -> Headline:
    """Returns mean medians of one kind of direction; ∞ where that of any pair is."""

    def triple(values: np.ndarray) -> tuple[float, float, float]:
        if np.isinf(values).any():
            return math.inf, math.nan, math.nan
        return rules.triple(stats.mean_test(values, alternative="greater"))

    label = f"l2 distance to the boundary along {kind} directions"
    return Headline(label, *triple(to_boundary), "between both boundaries", triple(between))


def _unbounded(boundaries: Measured) -> str:
    """Returns in words for how many examples random directions hit no boundary."""
    share = boundaries.read("share_unbounded", "pair", "model", kind="random")
    return (
        f"; {100 * np.nanmean(share):.0f} % of random directions meet no boundary within the "
        "diagonal of the box and count as infinitely long, the distance between boundaries is of "
        "the others"
    )


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns crossings of both models, distances by kind of direction, and a plane.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    boundaries = records.get(BOUNDARIES, decided_on(records.config))
    finite = boundaries.finite
    axes = drawing.crossings(*_segments(boundaries))
    drawn = [Figure("t9_crossings", TEXT.caption("t9_crossings", verdict), rules.figure_of(axes))]
    read = boundary_statistics(boundaries)
    rows = {"segment": (read.own_distance, read.between)} | _by_kind(boundaries)
    to_boundary, between = (np.array([row[i][finite] for row in rows.values()]) for i in range(2))
    axes = drawing.boundary_distances(to_boundary, between, names=list(rows))
    caption = TEXT.caption("t9_distances", verdict, unbounded=_unbounded(boundaries))
    drawn.append(Figure("t9_distances", caption, rules.figure_of(axes)))
    corners = boundaries.read("plane_corners", "pair", "corner", "axis")
    usable = finite & np.isfinite(corners).all((1, 2))
    if usable.any():
        axes = _plane(boundaries, int(np.argmax(usable)))
        caption = TEXT.caption("t9_plane", verdict)
        drawn.append(Figure("t9_plane", caption, rules.figure_of(axes)))
    return drawn


def _segments(boundaries: Measured) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns t_A, t_B, and t_B exchanged within pairs of classes, of all segments together."""
    rng = np.random.default_rng(SEED)
    classes = boundaries.read("class_pair", "pair", "segment")
    crossings = boundaries.read("crossing", "pair", "model", "segment")
    columns = []
    for p in np.flatnonzero(boundaries.finite):
        valid = (classes[p] >= 0) & np.isfinite(crossings[p]).all(0)
        first, second = crossings[p][:, valid]
        columns.append((first, second, permute(second, classes[p][valid], rng)))
    first, second, permuted = map(np.concatenate, zip(*columns, strict=True))
    return first, second, permuted


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


def permute(values: np.ndarray, strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns `[N]` values exchanged at random within strata.

    Args:
      values: `[N]`.
      strata: `[N]`, the stratum of each value.
      rng: draws the permutation.
    """
    out = values.copy()
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        out[rows] = values[rng.permutation(rows)]
    return out


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns what counts as the middle."""
    del verdict
    return {"halfway": f"{HALFWAY:g}"}


STUDY = Study("T9", TEXT, needs, decide, figures, words, stands_on=("T1",))
