"""T9: boundaries meet, about halfway."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.t9.measure import BOUNDARIES, GRID, KINDS, NUM_SEGMENTS
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Headline, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader

CORRELATION, MIDDLE, LEAD = "same place", "in the middle", "nearer than the example"
HALFWAY = 0.1
"""How far from the middle of a segment a boundary may lie on average."""
FOUND = 0.999
"""The share of segments on which both crossings must be found."""
PLANTED = {CORRELATION: 0.1, MIDDLE: -0.02, LEAD: 0.2}
"""How far each statistic lies beyond its threshold at effect 1."""
NOISE = {CORRELATION: 0.03, MIDDLE: 0.005, LEAD: 0.03}
"""Planted standard deviation over pairs, of what drawing segments does not make by itself."""
SEED = 9
"""Of the permutation that is drawn in the figure; the rule needs none."""


class Terms(NamedTuple):
    """What the rule reads of each pair, `[P]` each; NaN for pairs that diverged.

    Attributes:
      correlation: of t_A and t_B over segments.
      permuted: its mean over all permutations of segments within pairs of classes.
      off: mean |t − ½| of both models.
      own: median l2 distance to a model's own boundary along segments, mean of both models.
      between: median l2 distance between both boundaries.
      lead: median of the difference of the two, mean of both models.
      found: share of segments on which both crossings were found.
    """

    correlation: np.ndarray
    permuted: np.ndarray
    off: np.ndarray
    own: np.ndarray
    between: np.ndarray
    lead: np.ndarray
    found: np.ndarray


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


def terms(arrays: Mapping[str, np.ndarray], finite: np.ndarray) -> Terms:
    """Returns the statistics of each pair.

    A crossing that was not found counts as one at the far end of the segment, and as a boundary
    infinitely far from the other model's: against the claim.

    Args:
      arrays: of the measurement.
      finite: `[P]`; the others become NaN.
    """
    out = np.full((len(Terms._fields), len(finite)), np.nan)
    for p in np.flatnonzero(finite):
        valid = arrays["class_pair"][p] >= 0
        if not valid.any():
            continue
        first, second = arrays["crossing"][p][:, valid].astype(np.float64)
        found = np.isfinite(first) & np.isfinite(second)
        first, second = (np.where(np.isfinite(t), t, 1.0) for t in (first, second))
        distance = arrays["distance"][p][:, valid].astype(np.float64)
        between = np.where(found, arrays["between"][p][valid], 0.0)
        lead = np.where(found, distance - between, -np.inf)
        out[:2, p] = expected_correlation(first, second, arrays["class_pair"][p][valid])
        out[2, p] = np.abs(np.stack([first, second]) - 0.5).mean()
        out[3, p] = np.median(distance, axis=1).mean()
        out[4, p] = np.median(np.where(found, between, np.inf))
        out[5, p], out[6, p] = np.median(lead, axis=1).mean(), found.mean()
    return Terms(*out)


def permute(values: np.ndarray, strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns `[N]` values exchanged at random within strata."""
    out = values.copy()
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        out[rows] = values[rng.permutation(rows)]
    return out


@dataclasses.dataclass(frozen=True)
class T9:
    """corr(t_A, t_B) above its permutation; |t − ½| < .1; boundaries nearer than the example."""

    id: str = "T9"
    claim: str = (
        "On a segment between two examples both models change their minds at the same place, "
        "about halfway."
    )
    controls: tuple[str, ...] = ("segments permuted within pairs of classes",)
    smallest_effect: str = (
        "a correlation .1 above its permutation, a mean distance of .08 from the middle, and "
        "boundaries that lie .2 (l2) nearer to each other than to the example"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns boundaries of the first architecture at ρ = 0."""
        own = condition(config, config.architectures[0])
        return [Request(LEARNING, (own,)), Request(BOUNDARIES, (own,))]

    def _read(self, records: Records) -> tuple[Reader, str, Mapping[str, np.ndarray], np.ndarray]:
        reader = Reader(records)
        key = condition(records.config, records.config.architectures[0]).key
        return reader, key, records.arrays[BOUNDARIES.name, key], reader.finite(key)

    def decide(self, records: Records) -> Outcome:
        """Returns three tests, and the gate that every crossing was found."""
        reader, key, arrays, finite = self._read(records)
        found = terms(arrays, finite)
        mean = functools.partial(stats.mean_test, alternative="greater")
        parts = (
            rules.part(
                mean(found.correlation - found.permuted),
                CORRELATION,
                "corr(t_A, t_B) over segments minus its mean under permutation",
                "greater",
                0.0,
                control=self.controls[0],
            ),
            rules.part(
                stats.mean_test(found.off, HALFWAY, alternative="less"),
                MIDDLE,
                "mean |t − ½| of both models",
                "less",
                HALFWAY,
            ),
            rules.part(
                mean(found.lead),
                LEAD,
                "median over segments of the l2 distance to the boundary minus the distance "
                "between both boundaries",
                "greater",
                0.0,
            ),
            rules.gate(found.found, "crossings", "share of segments that both models cross", FOUND),
        )
        headlines = [
            rules.headline(
                "corr(t_A, t_B)",
                mean(found.correlation),
                "permuted within classes",
                mean(found.permuted),
            ),
            rules.headline("mean |t − ½|", mean(found.off)),
            rules.headline(
                "l2 distance to the boundary along segments",
                mean(found.own),
                "between both boundaries",
                mean(found.between),
            ),
        ]
        headlines += [
            _distance_headline(kind, *(np.where(finite, v, np.nan) for v in values))
            for kind, values in self._distances(reader, key).items()
        ]
        return Outcome(parts, (CORRELATION,), tuple(headlines))

    @staticmethod
    def _distances(reader: Reader, key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns `[P]` medians to the boundary and between boundaries, by kind of direction."""
        if not reader.has(key, "boundary_distance"):
            return {}

        def cube(quantity, kind):
            return reader.cube(key, quantity, ("pair", "surrogate"), subset=kind).mean(-1)

        names = ("boundary_distance", "inter_boundary_distance")
        return {kind: (cube(names[0], kind), cube(names[1], kind)) for kind in KINDS}

    @staticmethod
    def _unbounded(reader: Reader, key: str, finite: np.ndarray) -> str:
        """Returns in words for how many examples random directions hit no boundary."""
        if not reader.has(key, "share_unbounded"):
            return ""
        share = reader.cube(key, "share_unbounded", ("pair", "surrogate"), subset="random")[finite]
        return (
            f"; {100 * share.mean():.0f} % of random directions meet no boundary within the "
            "diagonal of the box and count as infinitely long, the distance between boundaries is "
            "of the others"
        )

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns crossings of both models, distances by kind of direction, and a plane."""
        reader, key, arrays, finite = self._read(records)
        rng = np.random.default_rng(SEED)
        columns = []
        for p in np.flatnonzero(finite):
            rows = (arrays["class_pair"][p] >= 0) & np.isfinite(arrays["crossing"][p]).all(0)
            first, second = arrays["crossing"][p][:, rows]
            columns.append((first, second, permute(second, arrays["class_pair"][p][rows], rng)))
        seen = {
            "supported": "Both change their minds at nearly the same place, near the middle",
            "refuted": "The claim does not hold in every part",
            "inconclusive": "Not every part of the claim is settled",
        }[verdict.verdict]
        axes = plots.crossings(*map(np.concatenate, zip(*columns, strict=True)))
        figures = [
            Figure(
                "t9_crossings",
                "Segments between two examples of two classes, unseen by both models, which have "
                f"both right: the share of the way at which each model leaves the first class. "
                f"{seen}. Darker cells hold more segments, on a logarithmic scale; lines are means "
                "of t_B in tenths of t_A, in grey after exchanging segments within a pair of "
                "classes.",
                rules.figure_of(axes),
            )
        ]
        found, kinds = terms(arrays, finite), self._distances(reader, key)
        rows = {"segment": (found.own, found.between)} | kinds
        own, between = (np.array([v[i][finite] for v in rows.values()]) for i in range(2))
        axes = plots.boundary_distances(own, between, names=list(rows))
        figures.append(
            Figure(
                "t9_distances",
                "How far the boundary of a model lies along a direction, and how far the boundary "
                "of the other model lies from it there. Directions lead to a random example of "
                "another class (segment), to the nearest one (legitimate), to the adversarial "
                "example, or anywhere (random). Each dot is a pair of models: the median over "
                f"examples{self._unbounded(reader, key, finite)}.",
                rules.figure_of(axes),
            )
        )
        if "plane_decision" in arrays:
            figures += self._planes(arrays, finite)
        return figures

    @staticmethod
    def _planes(arrays: Mapping[str, np.ndarray], finite: np.ndarray) -> list[Figure]:
        """Returns what both models of the first pair decide in the plane of three examples."""
        usable = finite & np.isfinite(arrays["plane_corners"]).all((1, 2))
        if not usable.any():
            return []
        p = int(np.argmax(usable))
        corners, classes = arrays["plane_corners"][p], arrays["plane_classes"][p]
        points = {f"a {label}": place for label, place in zip(classes, corners, strict=True)}
        names = ("model A", "model B")
        axes = plots.boundaries(
            arrays["plane_x"][p],
            arrays["plane_y"][p],
            dict(zip(names, arrays["plane_decision"][p], strict=True)),
            points=points,
        )
        caption = (
            "Boundaries of both models of one pair in the plane through three examples of three "
            "classes that neither has seen; regions in grey are those of model A."
        )
        return [Figure("t9_plane", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = [wording.format_headline(h) for h in verdict.headlines]
        opening = (
            "We walk in a straight line from an example of one class to one of another, both new "
            "to both models and both classified correctly, and note the share t of the way at "
            "which each model first changes its mind. If models had boundaries of their own, t_A "
            "would say nothing about t_B beyond what the two classes say. "
            f"{numbers[0]}; {'; '.join(numbers[1:3])}. That boundaries lie nearer to each other "
            "than to the example is weak evidence: it fails only where one model often crosses "
            "before the other has gone half as far."
        )
        ending = {
            "supported": (
                "So boundaries meet: two models trained on different halves draw them at nearly "
                "the same place, about halfway between examples."
            ),
            "refuted": (
                f"That refutes the claim as a whole: {verdict.reason}. Crossings would have to be "
                f"correlated beyond the classes, lie within {HALFWAY:g} of the middle on average, "
                "and nearer to each other than to the example."
            ),
            "inconclusive": (
                f"The run does not settle the claim: {verdict.reason}. Its parts are a correlation "
                f"beyond the classes, a mean distance from the middle below {HALFWAY:g}, and "
                "boundaries nearer to each other than to the example."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the three tests."""
        return [CORRELATION, MIDDLE, LEAD]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns segments with known correlation, distance from the middle, and l2 distances.

        Crossings are normal around the middle, with a part that the classes share; l2 distances do
        not follow from them, so that every part of the rule can be put at its boundary.
        """
        config = plants.CONFIG
        size = {n: step * (0.0 if n == boundary else effect) for n, step in PLANTED.items()}
        num_pairs, num_classes = config.num_pairs, config.num_classes
        num_groups = num_classes * (num_classes - 1) // 2
        shape = (num_pairs, num_groups, NUM_SEGMENTS)
        drawn = {n: rng.normal(size[n], NOISE[n], (num_pairs, 1, 1)) for n in PLANTED}
        # A quarter of the variance is the classes', the same for both models; of the rest the
        # means of few segments take their share.
        within = drawn[CORRELATION] / (0.75 * (1 - 1 / NUM_SEGMENTS))
        classes = 0.5 * rng.normal(size=(num_pairs, num_groups, 1))
        first, noise = rng.normal(size=(2, *shape))
        second = within * first + np.sqrt(1 - within**2) * noise
        crossing = np.stack([classes + np.sqrt(0.75) * part for part in (first, second)], 1)
        crossing *= (HALFWAY + drawn[MIDDLE][:, None]) / np.sqrt(2 / np.pi)
        between = rng.gamma(4.0, 0.1, shape)
        lead = drawn[LEAD][:, None] + rng.normal(0, 0.4, (num_pairs, 2, *shape[1:]))
        distance = between[:, None] + lead
        flat = (num_pairs, -1)
        arrays = {
            "class_pair": np.broadcast_to(np.arange(num_groups)[:, None], shape).reshape(flat),
            "crossing": (0.5 + crossing).reshape(num_pairs, 2, -1),
            "distance": distance.reshape(num_pairs, 2, -1),
            "between": between.reshape(flat),
        }
        one = condition(config, config.architectures[0])
        parts = {"finite": np.ones(num_pairs)}
        names = ("boundary_distance", "inter_boundary_distance", "share_unbounded")
        for kind, values in _PLANTED_DISTANCES.items():
            for name, value in zip(names, values, strict=True):
                spread = rng.lognormal(0, 0.03, (num_pairs, 2))
                parts[plants.named(name, kind)] = value * spread
        arrays |= _planted_planes(num_pairs)
        return plants.records(config, {one: parts}, {(BOUNDARIES.name, one.key): arrays})


_PLANTED_DISTANCES = {
    "legitimate": (1.2, 0.2, 0.0),
    "adversarial": (0.7, 0.4, 0.0),
    "random": (5.6, 1.5, 0.36),
}
"""Median l2 distances to the boundary and between boundaries, and the share without one."""


@functools.lru_cache(maxsize=4)
def _planted_planes(num_pairs: int) -> dict[str, np.ndarray]:
    """Returns planes in which both models tell three examples apart by the nearest."""
    corners = np.array([[0.0, 0.0], [3.0, 0.0], [1.0, 2.5]])
    x, y = (np.linspace(low, high, GRID) for low, high in ((-0.8, 3.8), (-0.8, 3.3)))
    places = np.stack(np.meshgrid(x, y), -1)[:, :, None]
    nearest = ((places - corners) ** 2).sum(-1).argmin(-1)
    one = {
        "decision": np.stack([nearest, nearest]),
        "corners": corners,
        "x": x,
        "y": y,
        "classes": np.arange(3),
    }
    return {f"plane_{n}": np.broadcast_to(v, (num_pairs, *v.shape)) for n, v in one.items()}


def _distance_headline(kind: str, own: np.ndarray, between: np.ndarray) -> Headline:
    """Returns mean medians of one kind of direction; ∞ where that of any pair is."""

    def triple(values):
        if np.isinf(values).any():
            return math.inf, math.nan, math.nan
        return rules.triple(stats.mean_test(values, alternative="greater"))

    estimate, low, high = triple(own)
    label = f"l2 distance to the boundary along {kind} directions"
    return Headline(label, estimate, low, high, "between both boundaries", triple(between))


STUDY = T9()
