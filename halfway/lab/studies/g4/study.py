"""G4: halves disagree as often as they err."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.studies.g4.measure import AGREEMENT
from halfway.lab.study import plants, rules, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Headline, Outcome, Records, Request, Verdict
from halfway.lab.study.tables import Reader
from halfway.populations import Condition

NUM_EXAMPLES, NUM_HOLDOUT = 150, 1400
"""n, small enough that models err, and S, large enough to count: at least 1,000."""
PAIRS = 4
"""Times the config's number of pairs: small halves make noisy pairs, and cheap ones."""
MARGINS = (0.9, 1.1)
"""Of disagreement over error."""
CHANCE_SHARE = 0.9
"""The mean error must be below this share of chance, or agreement would say nothing."""
OWN = "all different"
SETTINGS = {
    OWN: {},
    "different data": {"shared_start": True, "shared_order": True},
    "different start": {"overlap": 1.0, "shared_order": True},
    "different order": {"overlap": 1.0, "shared_start": True},
}
"""The four of Jiang et al. 2022; the first decides, the others are described."""
NOISE = (0.0095, 0.011)
"""Planted standard deviations over pairs of error, and of disagreement minus error."""


def setting(config: RunConfig, name: str) -> Condition:
    """Returns the condition of one of `SETTINGS`, of the config's first architecture."""
    own = condition(config, config.architectures[0])
    return dataclasses.replace(
        own,
        num_pairs=PAIRS * own.num_pairs,
        num_examples=NUM_EXAMPLES,
        capacity=NUM_EXAMPLES,
        num_holdout=NUM_HOLDOUT,
        **SETTINGS[name],
    )


def terms(reader: Reader, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[P]` shares of S on which the models differ, and on which one errs, on average."""
    finite = reader.finite(key)
    # NaN before any arithmetic: what diverged may hold anything.
    compared, differ, wrong = (
        np.where(finite, values, np.nan)
        for values in (
            reader.cube(key, "num_compared", subset="holdout"),
            reader.cube(key, "num_disagree", subset="holdout"),
            reader.cube(key, "num_wrong", ("pair", "surrogate"), subset="holdout").mean(-1),
        )
    )
    return differ / compared, wrong / compared


@dataclasses.dataclass(frozen=True)
class G4:
    """Disagreement of θ_A and θ_B on S is their error on S, to a tenth."""

    id: str = "G4"
    claim: str = "Two models trained on two halves disagree as often as each of them errs."
    controls: tuple[str, ...] = (
        "the same data, start or order of batches (Jiang et al. 2022: equal to a few percent)",
    )
    smallest_effect: str = "disagreement equal to the error to 1 %, told from 10 % off"

    def needs(self, config: RunConfig) -> Sequence[Request]:
        """Returns training and agreement in the four settings."""
        every = [setting(config, name) for name in SETTINGS]
        return [Request(what, (one,)) for one in every for what in (LEARNING, AGREEMENT)]

    def decide(self, records: Records) -> Outcome:
        """Returns the equivalence of disagreement and error, and the gate on the error."""
        reader, config = Reader(records), records.config
        key = setting(config, OWN).key
        differ, wrong = terms(reader, key)
        parts = [
            rules.part(
                stats.ratio_equivalence(differ, wrong, *MARGINS),
                OWN,
                "disagreement over error on S, labels clean",
                "within",
                *MARGINS,
            ),
            rules.gate(
                1 - wrong,
                "error below chance",
                "mean accuracy on S",
                1 - CHANCE_SHARE * (1 - 1 / config.num_classes),
            ),
        ]
        levels = [stats.mean_test(v, alternative="greater") for v in (differ, wrong)]
        headlines = [
            Headline(
                f"disagreement on S ({OWN})",
                *rules.triple(levels[0]),
                "error",
                rules.triple(levels[1]),
            )
        ]
        headlines += [
            rules.headline(
                f"disagreement over error, {name}",
                stats.fieller(*terms(reader, setting(config, name).key)),
            )
            for name in list(SETTINGS)[1:]
            if reader.has(setting(config, name).key, "num_wrong")
        ]
        if reader.has(key, "calibration_error"):
            calibration = float(reader.cube(key, "calibration_error", ()))
            # A theorem: it bounds |disagreement − error| of the same votes, and is no evidence.
            headlines.append(
                Headline(
                    "class-aggregated calibration error of all models' vote on the pool",
                    calibration,
                    math.nan,
                    math.nan,
                )
            )
        return Outcome(tuple(parts), (OWN,), tuple(headlines))

    def draw(self, records: Records, verdict: Verdict) -> Sequence[Figure]:
        """Returns disagreement against error of every pair, in each setting."""
        reader, config = Reader(records), records.config
        names = [n for n in SETTINGS if reader.has(setting(config, n).key, "num_wrong")]
        both = [terms(reader, setting(config, name).key) for name in names]
        axes = plots.agreement(
            {name: wrong for name, (_, wrong) in zip(names, both, strict=True)},
            {name: differ for name, (differ, _) in zip(names, both, strict=True)},
            margins=MARGINS,
        )
        seen = {
            "supported": "The pairs of the first setting lie on the line",
            "refuted": "The pairs of the first setting lie beside the line",
            "inconclusive": "Whether the pairs of the first setting lie on the line is not settled",
        }[verdict.verdict]
        caption = (
            "Each dot is a pair: how often its models differ on S against how often they err. "
            f"{seen}, which is equality; the band is a tenth on either side. Settings in grey, "
            "which share the data, the start or the order of batches, are described only."
        )
        return [Figure("g4_agreement", caption, rules.figure_of(axes))]

    def explain(self, verdict: Verdict) -> str:
        """Returns the result in plain words."""
        numbers = "; ".join(wording.format_headline(h) for h in verdict.headlines)
        part = verdict.parts[0]
        ratio = wording.format_estimate(part.estimate, part.low, part.high)
        opening = (
            "Two models that were trained on different halves are shown images that neither has "
            "seen. We count how often they differ, which needs no labels, and how often they err, "
            f"which does. Disagreement over error is {ratio}. {numbers}."
        )
        ending = {
            "supported": (
                "The two are equal to a tenth: how often two halves fail to meet says how far "
                "each is from the truth, without a label."
            ),
            "refuted": (
                "The two differ by more than a tenth, so disagreement is no estimate of the error "
                "here: below 1, models share mistakes that neither can see in the other; above 1, "
                "they err in ways of their own. Their vote would have to be calibrated."
            ),
            "inconclusive": (
                f"The run does not settle it: {verdict.reason}. More pairs would have to place the "
                "ratio on one side of the margin."
            ),
        }[verdict.verdict]
        return f"{opening} {ending}"

    def boundaries(self) -> Sequence[str]:
        """Returns both margins of the equivalence."""
        return [f"{OWN}, below", f"{OWN}, above"]

    def plant(
        self, rng: np.random.Generator, effect: float, boundary: str | None = None
    ) -> Records:
        """Returns records whose disagreement is .99 of the error at effect 1, .9 at 0."""
        config = plants.CONFIG
        ratio = MARGINS[0] + 0.09 * effect
        if boundary is not None:
            ratio = MARGINS[boundary == f"{OWN}, above"]
        one, size = setting(config, OWN), float(NUM_HOLDOUT)
        wrong = rng.normal(0.08, NOISE[0], one.num_pairs)
        differ = ratio * wrong + rng.normal(0, NOISE[1], one.num_pairs)
        apart = rng.normal(0, 0.004, one.num_pairs)
        both = np.stack([wrong + apart, wrong - apart], 1)
        values = {
            "finite": np.ones(one.num_pairs),
            plants.named("num_compared", "holdout"): np.full(one.num_pairs, size),
            plants.named("num_disagree", "holdout"): size * differ,
            plants.named("num_wrong", "holdout"): size * both,
        }
        return plants.records(config, {one: values})


STUDY = G4()
