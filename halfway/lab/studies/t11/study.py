"""T11: transfer crosses architectures."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.report.elements import Table
from halfway.lab.studies.t11.measure import CROSSING, NAMES, settings
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.protocol import Figure, Headline, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.stats import Crossed

CELLS = tuple(f"{a} to {b}" for a, b in itertools.permutations(NAMES, 2))
"""Surrogate and target of another architecture: the tests."""
PLANTED = 0.05
"""Fooling rate above that of matched noise at effect 1."""
NOISE = {"surrogate": 0.01, "target": 0.01, "cell": 0.015}
"""Planted standard deviations of a fooling rate: over surrogates, targets, and pairs of them.

Those of cells with about the planted rate; cells of higher rates vary more.
"""


class Cells:
    """Sums of the cells between two architectures, `[K, M]`, NaN where models are not independent.

    Those of one pair are not, and neither are they of use where a pair diverged.
    """

    def __init__(self, records: Records):
        reader, self._every = Reader(records), settings(records.config)
        self._finite = {name: reader.finite(one.key) for name, one in self._every.items()}
        self._arrays = {
            name: records.arrays[CROSSING.name, one.key] for name, one in self._every.items()
        }

    def read(self, surrogate: str, target: str, quantity: str) -> np.ndarray:
        """Returns a quantity of a surrogate's architecture against a target's."""
        values = self._arrays[surrogate][quantity]
        if quantity == "own_increase":
            values = np.broadcast_to(values[:, None], (len(values), len(values)))
        else:
            values = values[:, NAMES.index(target)]
        valid = self._finite[surrogate][:, None] & self._finite[target][None]
        return np.where(valid & ~np.eye(*values.shape, dtype=bool), values, np.nan)

    def rate(self, surrogate: str, target: str, *, noise: float = 0.0) -> Crossed:
        """Returns the fooling rate of the attack, minus `noise` times that of matched noise."""
        fooled, control, number = (
            self.read(surrogate, target, q)
            for q in ("num_fooled", "num_fooled_noise", "num_examples")
        )
        return stats.crossed_ratio(fooled - noise * control, number)

    def control(self, surrogate: str, target: str) -> Crossed:
        """Returns the fooling rate of matched noise."""
        return stats.crossed_ratio(
            *(self.read(surrogate, target, q) for q in ("num_fooled_noise", "num_examples"))
        )

    def coefficient(self, surrogate: str, target: str) -> Crossed:
        """Returns M_x."""
        return stats.crossed_ratio(
            *(self.read(surrogate, target, q) for q in ("increase", "own_increase"))
        )


@dataclasses.dataclass(frozen=True)
class T11:
    """In every off-diagonal cell the attack fools more than matched noise does."""

    id: str = "T11"
    claim: str = "Attacks transfer between any two of five architectures."
    controls: tuple[str, ...] = ("random feasible signs on random pixels, matched in l∞ and l2",)
    smallest_effect: str = "a fooling rate .05 above that of matched noise in every cell"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns every architecture trained, and attacks of each on all."""
        every = list(settings(config).values())
        crossings = [
            Request(CROSSING, (one, *(other for other in every if other is not one)))
            for one in every
        ]
        return [*(Request(LEARNING, (one,)) for one in every), *crossings]

    def decide(self, records: Records) -> Outcome:
        """Returns one test for each pair of different architectures."""
        cells, epsilon = Cells(records), float(records.config.attack.epsilon)
        parts = []
        for name in CELLS:
            found = cells.rate(*name.split(" to "), noise=1.0)
            parts.append(
                rules.part(
                    stats.crossed_test(found, 0.0, alternative="greater"),
                    name,
                    f"fooling rate at ε = {epsilon:g} of examples that both had right, minus "
                    "matched noise",
                    "greater",
                    0.0,
                    control="matched noise",
                )
            )
        order = sorted(parts, key=lambda part: part.estimate)
        headlines = [
            self._headline(cells, f"fooling rate, {words}, {part.name}", *part.name.split(" to "))
            for words, part in (("least", order[0]), ("most", order[-1]))
        ]
        return Outcome(tuple(parts), CELLS, tuple(headlines))

    @staticmethod
    def _headline(cells: Cells, label: str, surrogate: str, target: str) -> Headline:
        own, control = cells.rate(surrogate, target), cells.control(surrogate, target)
        return Headline(label, *own[:3], "matched noise", control[:3])

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns the matrix of fooling rates, and that of M_x."""
        cells, reader, config = Cells(records), Reader(records), records.config
        budget = f"ε\u00a0=\u00a0{float(config.attack.epsilon):g}"  # stays in one line
        rates, coefficients, controls = (
            np.array([[fn(a, b)[:3] for b in NAMES] for a in NAMES])
            for fn in (cells.rate, cells.coefficient, cells.control)
        )
        seen = {
            "supported": "Every cell off the diagonal is above noise",
            "refuted": "In some cell off the diagonal noise fools as much or more",
            "inconclusive": "Some cell off the diagonal cannot be told from noise",
        }[verdict.verdict]
        noise = f"{100 * controls[..., 0].min():.1f} to {100 * controls[..., 0].max():.1f} %"
        caption = (
            f"Share of the examples that both models had right which the attack takes from the "
            f"target, with 95 % intervals over surrogates and targets. {seen}; matched noise fools "
            f"{noise}. The diagonal, framed, is described: other models of the same architecture."
        )
        axes = plots.interval_matrix(
            rates, names=NAMES, label=f"share fooled at {budget}, both right before"
        )
        drawn = [Figure("t11_fooling", caption, rules.figure_of(axes), _quality(reader, config))]
        axes = plots.interval_matrix(
            coefficients, names=NAMES, label=f"M_x at {budget}, transfer in margin loss"
        )
        caption = (
            "M_x, the rise of the target's margin loss as a share of the surrogate's own. It "
            "carries the scales of both models' logits: a target of small logits has a small M_x "
            "from everywhere, and a surrogate of small logits a large one to everywhere."
        )
        return [*drawn, Figure("t11_coefficient", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        least = min(verdict.parts, key=lambda part: part.clearance)
        margin = wording.format_estimate(least.estimate, least.low, least.high)
        opening = (
            "We attack models of five architectures, from linear to transformer, and try what "
            f"comes of it on independent models of the four others. Measured: "
            f"{numbers}. The smallest lead over noise of the same size is {margin} ({least.name}); "
            "intervals count that both surrogates and targets could have been others."
        )
        ending = {
            "supported": (
                "In each of the twenty cells the attack fools more than noise does: what it moves "
                "is a property of the images and the task, not of one architecture."
            ),
            "refuted": (
                f"In detail: {verdict.reason}. In that cell the attack would have to fool more "
                "than noise of the same size."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. More models would have to place "
                "the lead over noise of every cell clear of 0."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the twenty cells."""
        return CELLS

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose attacks lead noise by .05 times `effect` in every cell."""
        config = plants.CONFIG
        every = settings(config)
        number = next(iter(every.values())).num_pairs
        size, counted = (number, len(NAMES), number), 0.9 * config.num_holdout
        arrays, parts = {}, {}
        for name, one in every.items():
            lead = np.full(len(NAMES), PLANTED * effect)
            if boundary is not None and boundary.startswith(f"{name} to "):
                lead[NAMES.index(boundary.split(" to ")[1])] = 0.0
            rate = (
                0.01
                + lead[:, None]
                + sum(
                    rng.normal(0, NOISE[which], shape)
                    for which, shape in (
                        ("surrogate", (number, len(NAMES), 1)),
                        ("target", size[1:]),
                        ("cell", size),
                    )
                )
            )
            arrays[CROSSING.name, one.key] = {
                "num_fooled": counted * rate,
                "num_fooled_noise": counted * (0.01 + rng.normal(0, 0.002, size)),
                "num_examples": np.full(size, counted),
                "increase": np.full(size, 300.0) + rng.normal(0, 20, size),
                "own_increase": np.full(number, 1000.0),
            }
            parts[one] = {"finite": np.ones(number)}
        return plants.records(config, parts, arrays)


def _quality(reader: Reader, config: RunConfig) -> Table | None:
    """Returns how good the models are, and how far they are fooled themselves."""
    rows = []
    for name, one in settings(config).items():
        if not (reader.has(one.key, "error") and reader.has(one.key, "num_fooled")):
            return None
        accuracy = [
            1 - reader.losses(one.key, "error", subset)[..., -1] for subset in ("own", "holdout")
        ]
        fooled, number = (
            reader.cube(one.key, q, subset="both_correct") for q in ("num_fooled", "num_examples")
        )
        share = np.where(reader.finite(one.key), fooled / np.maximum(number, 1), np.nan)
        if not all(np.isfinite(values).any() for values in (*accuracy, share)):
            return None
        rows.append([name, *(f"{np.nanmean(values):.3f}" for values in (*accuracy, share))])
    return Table(
        "The models",
        "Means over both models of all pairs; the last column over surrogates.",
        ["architecture", "accuracy on what it trained on", "accuracy on S", "fooled itself"],
        rows,
    )


STUDY = T11()
