"""T5: shared data is not needed."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.measurements.meetings import MEETING
from halfway.lab.studies import t1
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition, control
from halfway.lab.study.protocol import Figure, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""ω, the share of A's examples that B holds too."""
KEPT = 0.8
"""The share of M_x at ω = 1 that must remain at ω = 0."""
STARTS = {"own starts": False, "one start": True}
"""Whether both models of a pair begin at the same weights; the first decides."""
PART = f"ω = 0 against {KEPT:g} of ω = 1"
PLANTED = 0.06
"""How far M_x at ω = 0 exceeds `KEPT` of that at ω = 1, at effect 1."""
LEVEL, NOISE = 0.6, 0.03
"""Planted M_x at ω = 1, and the standard deviation of M_x over pairs."""


def setting(config: RunConfig, overlap: float, shared_start: bool = False) -> Condition:
    """Returns the condition of an overlap and a start, of the config's first architecture."""
    own = condition(config, config.architectures[0])
    return dataclasses.replace(own, overlap=overlap, shared_start=shared_start)


def terms(reader: Reader, config: RunConfig, one: Condition) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` numerators and denominators of M_x at the budget that decides."""
    return t1.coefficient_terms(reader, one.key, config.attack.epsilon)


@dataclasses.dataclass(frozen=True)
class T5:
    """M_x at ω = 0 exceeds .8 of M_x at ω = 1, and T1's controls."""

    id: str = "T5"
    claim: str = "Attacks transfer between models that share no training example."
    controls: tuple[str, ...] = (
        "the same training data, own seeds (overlap 1)",
        "noise, another example's perturbation, a target trained on permuted labels (T1's)",
    )
    smallest_effect: str = (
        "M_x without shared data .06 above .8 of what it is with all data shared, and .5 of margin "
        "loss above each control"
    )

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns T1's transfer at ω = 0, and M_x at the other overlaps and from one start."""
        found = t1.requests(config, config.architectures[0])
        for shared in STARTS.values():
            for overlap in OVERLAPS:
                one = setting(config, overlap, shared)
                if overlap or shared:  # the first of all is T1's
                    found += [Request(LEARNING, (one,)), Request(MEETING, (one,))]
        return found

    def decide(self, records: Records) -> Outcome:
        """Returns the test against ω = 1, and one against each control of T1."""
        reader, config = Reader(records), records.config
        apart, same = (setting(config, overlap) for overlap in (0.0, 1.0))
        num, den = terms(reader, config, apart)
        most, whole = terms(reader, config, same)
        parts = [
            rules.part(
                stats.ratio_difference(
                    num, den, KEPT * most, whole, alternative="greater", paired=True
                ),
                PART,
                f"M_x at ω = 0 minus {KEPT:g} M_x at ω = 1",
                "greater",
                0.0,
                control="overlap 1",
            )
        ]
        for label, which in t1.CONTROLS.items():
            moved = reader.directed(apart.key, "increase", budget=config.attack.epsilon, **which)
            if which["target"] == "permuted":  # that target may have diverged too
                other = control(config, config.architectures[0]).key
                moved = np.where(reader.finite(other), moved, np.nan)
            parts.append(
                rules.part(
                    stats.ratio_test(num - moved, den, 0.0, alternative="greater"),
                    label,
                    f"M_x at ω = 0 minus that of {label}",
                    "greater",
                    0.0,
                    control=label,
                )
            )
        headlines = [
            rules.headline(
                "M_x at ω = 0", stats.fieller(num, den), "at ω = 1", stats.fieller(most, whole)
            )
        ]
        start = [setting(config, overlap, True) for overlap in (0.0, 1.0)]
        if all(reader.has(one.key, "increase") for one in start):
            low, high = (stats.fieller(*terms(reader, config, one)) for one in start)
            headlines.append(
                rules.headline("M_x at ω = 0 from one start", low, "at ω = 1 from one start", high)
            )
        return Outcome(tuple(parts), (PART,), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns M_x against the overlap, with own starts and from one."""
        reader, config = Reader(records), records.config
        middle, low, high = {}, {}, {}
        ends = [o for o in OVERLAPS if reader.has(setting(config, o).key, "increase")]
        for name, shared in STARTS.items():
            every = [setting(config, overlap, shared) for overlap in ends]
            if all(reader.has(one.key, "increase") for one in every):
                found = [rules.triple(stats.fieller(*terms(reader, config, one))) for one in every]
                middle[name], low[name], high[name] = np.array(found).T
        needed = f"{KEPT:g} of M_x at ω = 1"
        middle[needed] = np.full(len(ends), KEPT * next(iter(middle.values()))[-1])
        apart = setting(config, 0.0)
        noise = reader.directed(
            apart.key, "increase", budget=config.attack.epsilon, **t1.CONTROLS["matched noise"]
        )
        share = stats.fieller(noise, terms(reader, config, apart)[1]).estimate
        middle["matched noise at ω = 0"] = np.full(len(ends), share)
        axes = plots.budget_curve(
            ends,
            middle,
            low=low,
            high=high,
            controls=list(middle)[-2:],
            xlabel="ω, share of a half's examples that the other half holds too",
            ylabel="M_x, share of the attack's rise that the other model sees",
        )
        seen = {
            "supported": "Most of the transfer is there without any shared example (left)",
            "refuted": "Without shared examples (left) transfer falls below what was asked, or "
            "below a control",
            "inconclusive": "Whether enough of the transfer is left without shared examples (left) "
            "is not settled",
        }[verdict.verdict]
        caption = (
            f"Transfer between models whose training sets overlap. {seen}. Each set has the same "
            "size; models have starts and orders of their own, or one start. Bands are 95 % "
            f"intervals over pairs; the dashed line is {KEPT:g} of the value at full overlap."
        )
        return [Figure("t5_overlap", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        part = verdict.parts[0]
        margin = wording.format_estimate(part.estimate, part.low, part.high)
        opening = (
            "If attacks transferred because both models saw the same images, they would transfer "
            f"less where the models share none. {numbers}. Without shared data M_x lies {margin} "
            f"above {KEPT:g} of its value with all data shared."
        )
        ending = {
            "supported": (
                "So most of the transfer needs no shared example, and it exceeds every control of "
                "noise: what two models share comes from the world that both samples came from."
            ),
            "refuted": (
                f"In detail: {verdict.reason}. Shared examples matter here; M_x at overlap 0 would "
                f"have to exceed {KEPT:g} of that at overlap 1, and every control."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. More pairs would have to place "
                f"M_x at overlap 0 clear of {KEPT:g} of that at overlap 1, and of every control."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns the comparison with full overlap, and each control."""
        return [PART, *t1.CONTROLS]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose M_x at ω = 0 exceeds .8 of that at ω = 1 by .06 times `effect`."""
        config, own = plants.CONFIG, 3.0
        name = config.architectures[0]
        apart = KEPT * LEVEL + (0.0 if boundary == PART else PLANTED * effect)
        increases = {("attack", "other"): own * apart, ("attack", "own"): own}
        for label, which in t1.CONTROLS.items():
            lead = 0.0 if boundary == label else 0.5 * effect
            increases[which["attack"], which["target"]] = own * apart - lead
        noise = own * NOISE
        whole = {("attack", "other"): own * LEVEL, ("attack", "own"): own}
        parts = {
            setting(config, 0.0): plants.transfer(rng, config, increases, noise),
            setting(config, 1.0): plants.transfer(rng, config, whole, noise),
            control(config, name): {"finite": np.ones(config.num_pairs)},
        }
        return plants.records(config, parts)


STUDY = T5()
