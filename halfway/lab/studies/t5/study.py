"""T5: shared data is not needed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements import transfer
from halfway.lab.measurements.learning import LEARNING, RatioTerms
from halfway.lab.measurements.transfer import TRANSFER, TRANSFER_CONTROLS
from halfway.lab.studies.t1 import study as t1
from halfway.lab.study import rules, text, wording
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""ω, the share of A's examples that B holds too."""
KEPT = 0.8
"""The share of M_x at ω = 1 that must remain at ω = 0."""
STARTS = {"own starts": False, "one start": True}
"""Whether both models of a pair begin at the same weights; the first decides."""
PART = f"ω = 0 against {KEPT:g} of ω = 1"


def setting(config: RunConfig, overlap: float, shared_start: bool = False) -> Condition:
    """Returns the condition of an overlap and a start, of the config's first architecture.

    Args:
      config: of the run.
      overlap: ω.
      shared_start: whether both models of a pair begin at the same weights.
    """
    base = condition(config, config.architectures[0])
    return dataclasses.replace(base, overlap=overlap, shared_start=shared_start)


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns T1's transfer at ω = 0, and transfer at the other overlaps and from one start."""
    requests = t1.requests(config, config.architectures[0])
    for shared in STARTS.values():
        for overlap in OVERLAPS:
            if overlap or shared:  # the first of all is T1's
                trained = setting(config, overlap, shared)
                requests += [Request(LEARNING, (trained,)), Request(TRANSFER, (trained,))]
    return requests


def _terms(records: Records, trained: Condition) -> RatioTerms:
    """Returns numerators and denominators `[P]` of M_x at the budget that decides."""
    return transfer.coefficient_terms(records.get(TRANSFER, trained))


def decide(records: Records) -> Outcome:
    """Returns the test against ω = 1, and one against each control of T1."""
    config = records.config
    apart, same = (setting(config, overlap) for overlap in (0.0, 1.0))
    rise, progress = _terms(records, apart)
    whole = _terms(records, same)
    parts = [
        rules.part(
            stats.ratio_difference(
                rise,
                progress,
                KEPT * whole.numerators,
                whole.denominators,
                alternative="greater",
                paired=True,
            ),
            PART,
            f"M_x at ω = 0 minus {KEPT:g} M_x at ω = 1",
            "greater",
            0.0,
            control="overlap 1",
        )
    ]
    controlled = records.get(TRANSFER_CONTROLS, apart)
    for label, where in t1.COMPARED.items():
        moved = transfer.control_terms(controlled, "increase", *where, budget=config.attack.epsilon)
        parts.append(
            rules.part(
                stats.ratio_test(rise - moved, progress, 0.0, alternative="greater"),
                label,
                f"M_x at ω = 0 minus that of {label}",
                "greater",
                0.0,
                control=label,
            )
        )
    headlines = [
        rules.headline(
            "M_x at ω = 0", stats.fieller(rise, progress), "at ω = 1", stats.fieller(*whole)
        )
    ]
    from_one_start = [setting(config, overlap, True) for overlap in (0.0, 1.0)]
    if all(records.has(TRANSFER, trained) for trained in from_one_start):
        least, most = (stats.fieller(*_terms(records, trained)) for trained in from_one_start)
        headlines.append(
            rules.headline("M_x at ω = 0 from one start", least, "at ω = 1 from one start", most)
        )
    return Outcome(tuple(parts), (PART,), tuple(headlines))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns M_x against the overlap, with own starts and from one.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    overlaps = [o for o in OVERLAPS if records.has(TRANSFER, setting(config, o))]
    middle, low, high = {}, {}, {}
    for name, shared in STARTS.items():
        settings = [setting(config, overlap, shared) for overlap in overlaps]
        if all(records.has(TRANSFER, trained) for trained in settings):
            estimates = [
                rules.triple(stats.fieller(*_terms(records, trained))) for trained in settings
            ]
            middle[name], low[name], high[name] = np.array(estimates).T
    apart = setting(config, 0.0)
    noise = transfer.control_terms(
        records.get(TRANSFER_CONTROLS, apart),
        "increase",
        *t1.COMPARED["matched noise"],
        budget=config.attack.epsilon,
    )
    share = stats.fieller(noise, _terms(records, apart).denominators).estimate
    references = {
        f"{KEPT:g} of M_x at ω = 1": KEPT * middle["own starts"][-1],
        "matched noise at ω = 0": share,
    }
    lines = {name: np.full(len(overlaps), level) for name, level in references.items()}
    axes = plots.budget_curve(
        overlaps,
        middle | lines,
        low=low,
        high=high,
        controls=list(references),
        xlabel="ω, share of a half's examples that the other half holds too",
        ylabel="M_x, share of the attack's rise that the other model sees",
    )
    caption = TEXT.caption("t5_overlap", verdict, **words(verdict))
    return [Figure("t5_overlap", caption, rules.figure_of(axes))]


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the share that must remain, and how far M_x without shared data lies above it."""
    part = next(part for part in verdict.parts if part.name == PART)
    lead = wording.format_estimate(part.estimate, part.low, part.high)
    return {"kept": f"{KEPT:g}", "lead": lead}


STUDY = Study("T5", TEXT, needs, decide, figures, words, stands_on=("T1",))
