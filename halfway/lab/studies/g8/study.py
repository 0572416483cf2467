"""G8: with fresh data nothing is memorized; reuse makes κ."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.g8.gap_paths import EVERY, GAP_PATH, by_gradient_descent
from halfway.lab.studies.g8.measure import FRESH, MEMORIZATION, PASSES, pass_steps
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

MARGIN = 0.05
"""Of κ on fresh data."""
SIZES, RATES = (150, 600), (0.0, 0.4, 0.8)
"""n and ρ of the cells."""
FRESH_PART = "fresh data"
PRODUCTS = ("own_own", "own_other", "trace_cov")
FRESH_NOISE = 0.036
NOISE = {150: (0.28, 0.08), 600: (0.4, 0.2)}
"""Planted standard deviations over pairs of κ: on fresh data; after one pass and after 32, by n."""
PLANTED = 0.65
"""κ(32 passes) − κ(1) at effect 1."""


def cells(config: RunConfig) -> dict[str, Condition]:
    """Returns the cells by name; n as data of the program of the larger one."""
    name = config.architectures[0]
    found = {}
    for size, rate in itertools.product(SIZES, RATES):
        own = condition(config, name, noise_rate=rate)
        steps = max(round(PASSES[-1] * SIZES[-1] / own.batch_size), own.probe_steps[-1])
        probes = tuple(step for step in own.probe_steps if step < steps)
        found[f"n = {size}, ρ = {rate:g}"] = dataclasses.replace(
            own, num_examples=size, capacity=SIZES[-1], probe_steps=(*probes, steps)
        )
    return found


def paths(config: RunConfig) -> tuple[Condition, Condition]:
    """Returns what the gap is followed along: gradient descent, and the config's optimizer."""
    own = cells(config)[f"n = {SIZES[0]}, ρ = {RATES[1]:g}"]
    return by_gradient_descent(own), own


def terms(reader: Reader, one: Condition, passes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` numerators and denominators of κ after a number of passes (P3)."""
    step = pass_steps(one)[PASSES.index(passes)]
    return _kappa(
        reader.finite(one.key),
        one.num_examples,
        *(
            reader.cube(one.key, f"memorized_{name}", ("pair", "surrogate"), step=step).sum(-1)
            for name in PRODUCTS
        ),
    )


def fresh_terms(reader: Reader, one: Condition) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` numerators and denominators of κ pooled over steps on fresh data."""
    found = (reader.cube(one.key, f"fresh_{name}") for name in PRODUCTS)
    return _kappa(reader.finite(one.key), one.batch_size, *found)


def _kappa(
    finite: np.ndarray,
    size: int,
    own_own: np.ndarray,
    own_other: np.ndarray,
    trace: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    # NaN before any arithmetic: what diverged may hold anything.
    own_own, own_other, trace = (np.where(finite, v, np.nan) for v in (own_own, own_other, trace))
    return trace - size * (own_own - own_other), trace


@dataclasses.dataclass(frozen=True)
class G8:
    """κ is 0 on fresh data, and higher after 32 passes than after one in every cell."""

    id: str = "G8"
    claim: str = "Fresh data memorizes nothing; using data again is what makes memory."
    controls: tuple[str, ...] = ("fresh data at every step", "one pass")
    smallest_effect: str = "κ rising by .65 from one pass to 32, and 0 on fresh data"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns memorization in every cell, fresh data, and the gap along two walks."""
        every = list(cells(config).values())
        reuse = [Request(what, (one,)) for one in every for what in (LEARNING, MEMORIZATION)]
        return [*reuse, Request(FRESH, (every[0],)), Request(GAP_PATH, paths(config))]

    def decide(self, records: Records) -> Outcome:
        """Returns the equivalence on fresh data, and the rise of κ in every cell."""
        reader, every = Reader(records), cells(records.config)
        fresh = fresh_terms(reader, next(iter(every.values())))
        parts = []
        headlines = [rules.headline("κ on fresh data", stats.fieller(*fresh))]
        for name, one in every.items():
            last, first = (terms(reader, one, k) for k in (PASSES[-1], PASSES[0]))
            decision = stats.ratio_difference(
                *last, *first, threshold=0.0, alternative="greater", paired=True
            )
            parts.append(
                rules.part(
                    decision,
                    name,
                    f"κ after {PASSES[-1]} passes minus κ after one",
                    "greater",
                    0.0,
                    control="one pass",
                )
            )
            headlines.append(
                rules.headline(
                    f"κ after {PASSES[-1]} passes ({name})",
                    stats.fieller(*last),
                    "one pass",
                    stats.fieller(*first),
                )
            )
        parts.append(
            rules.part(
                stats.ratio_equivalence(*fresh, -MARGIN, MARGIN),
                FRESH_PART,
                "κ on fresh data, pooled over steps",
                "within",
                -MARGIN,
                MARGIN,
            )
        )
        return Outcome(tuple(parts), tuple(every), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns κ against the number of passes in every cell, and the gap as a sum over steps."""
        reader, every = Reader(records), cells(records.config)
        fresh = stats.fieller(*fresh_terms(reader, next(iter(every.values()))))
        estimates, low, high = {}, {}, {}
        for name, one in every.items():
            try:
                found = [stats.fieller(*terms(reader, one, k)) for k in PASSES]
            except LookupError:  # planted records hold what decides
                found = [stats.fieller(*terms(reader, one, k)) for k in (1, PASSES[-1])]
            estimates[name], low[name], high[name] = np.array([rules.triple(f) for f in found]).T
        number = len(next(iter(estimates.values())))
        axes = plots.memorization(
            PASSES if number == len(PASSES) else (1, PASSES[-1]),
            {n: [v for k, v in estimates.items() if k.startswith(f"n = {n},")] for n in SIZES},
            {n: [v for k, v in low.items() if k.startswith(f"n = {n},")] for n in SIZES},
            {n: [v for k, v in high.items() if k.startswith(f"n = {n},")] for n in SIZES},
            rates=RATES,
            fresh=rules.triple(fresh),
        )
        seen = {
            "supported": "κ is 0 on fresh data and rises with reuse in every cell",
            "refuted": "κ is not 0 on fresh data, or falls with reuse in a cell",
            "inconclusive": "Whether κ is 0 on fresh data and rises everywhere is not settled",
        }[verdict.verdict]
        caption = (
            "κ is the share of the gradient's noise that training has used up: 0 where the half is "
            f"as good as new, 1 where nothing of it is left to fit. {seen}. Bands are 95 % "
            "intervals over pairs; in grey, fresh data at every step."
        )
        drawn = [Figure("g8_memorization", caption, rules.figure_of(axes))]
        if all(reader.has(one.key, "path_gap") for one in paths(records.config)):
            drawn.append(_gap_figure(reader, records.config))
        return drawn

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        # The card lists those of the cells below.
        fresh = wording.format_headline(verdict.headlines[0])
        opening = (
            "A gradient on data that the model has not seen is signal plus noise; training on the "
            "same data again uses the noise up, and that is memory: κ says how much of it is gone. "
            f"Measured: {fresh}; below, κ in every cell."
        )
        ending = {
            "supported": (
                "With fresh data at every step κ stays 0, and with every size and label noise it "
                "grows when the same half is used again: what is memorized is bought by reuse."
            ),
            "refuted": (
                f"In detail: {verdict.reason}. κ would have to be 0 on fresh data, and grow in "
                "every cell. It is a rate, not a size: where wrong labels are still being fitted "
                "it can be small however much has been learned by heart."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. Each rise would have to be clear "
                "of 0, and κ on fresh data within its margins."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns both margins on fresh data, and every cell."""
        return [f"{FRESH_PART}, below", f"{FRESH_PART}, above", *cells(plants.CONFIG)]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records with κ rising by .65 times `effect` in every cell, fresh 0 at effect 1.

        At effect 0 κ of fresh data is at its upper margin.
        """
        config = plants.CONFIG
        shape, parts = (config.num_pairs, 1), {}
        for index, (name, one) in enumerate(cells(config).items()):
            rise = 0.0 if name == boundary else PLANTED * effect
            early, late = NOISE[one.num_examples]
            first = 0.3 + rng.normal(0, early, shape)
            last = 0.3 + rise + rng.normal(0, late, shape)
            values = {"finite": np.ones(config.num_pairs)}
            for passes, kappa in ((PASSES[0], first), (PASSES[-1], last)):
                step = pass_steps(one)[PASSES.index(passes)]
                values |= _made(kappa * np.ones(2), one.num_examples, "memorized", step)
            if index == 0:
                fresh = MARGIN * (1 - effect)
                if boundary in (f"{FRESH_PART}, below", f"{FRESH_PART}, above"):
                    fresh = -MARGIN if boundary.endswith("below") else MARGIN
                kappa = fresh + rng.normal(0, FRESH_NOISE, config.num_pairs)
                values |= _made(kappa, one.batch_size, "fresh", None)
            parts[one] = values
        return plants.records(config, parts)


def _gap_figure(reader: Reader, config: RunConfig) -> Figure:
    """Returns the gap along training beside the sum of what each step adds."""
    names = "gradient descent", f"{config.training.optimizer}, by the path identity"
    found, ends = {}, []
    for name, one in zip(names, paths(config), strict=True):
        gap, summed = (
            reader.cube(one.key, f"path_{which}", ("pair", "surrogate", "step")).mean(1)
            for which in ("gap", "sum")
        )
        found[name] = EVERY * np.arange(gap.shape[-1]), gap, summed
        ends.append(f"{np.nanmean(gap[:, -1]):.2f} and {np.nanmean(summed[:, -1]):.2f}")
    caption = (
        "An identity, not a hypothesis: each full-batch step of gradient descent widens the gap by "
        f"η (1 − κ) tr Cov(g)/n to first order in the step size η (left, n = {SIZES[0]}), and each "
        "step of any optimizer by the slopes of both landscapes along it (right). "
        f"Measured and summed gap at the end: {ends[0]}; {ends[1]}."
    )
    return Figure("g8_gap", caption, rules.figure_of(plots.gap_path(found)))


def _made(kappa: np.ndarray, size: int, prefix: str, step: int | None) -> dict[str, np.ndarray]:
    """Returns inner products and a covariance that make a κ."""
    trace, other = np.full(kappa.shape, 30.0), np.full(kappa.shape, 0.5)
    own = other + (1 - kappa) * trace / size
    made = zip(PRODUCTS, (own, other, trace), strict=True)
    return {plants.named(f"{prefix}_{name}", "", step): value for name, value in made}


STUDY = G8()
