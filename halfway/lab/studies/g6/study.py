"""G6: θ_A and θ_B meet in the middle after permutation matching."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from halfway import plots, stats
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.studies.g6.measure import BARRIERS, MATCHED, RAW, path_name
from halfway.lab.study import rules, text
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Figure, Study
from halfway.lab.study.records import Measured, Records, Request
from halfway.lab.study.verdict import Outcome, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
LEVEL = 0.02
"""An error barrier below this is none (as in Frankle et al.)."""
TRUNK_STEPS = 50
"""Steps on both halves together, before the models of a shared trunk part."""
LOW, GAIN = "matched", "raw minus matched"
LABELS = {"error": "error on S", "cross_entropy": "cross-entropy on S, nats"}
"""Losses that are drawn along the paths."""


def compared(config: RunConfig) -> tuple[Condition, Condition, Condition]:
    """Returns the condition that decides, and those of a shared start and of a shared trunk."""
    trained = condition(config, config.architectures[0])
    trunk = min(TRUNK_STEPS, trained.probe_steps[-1])
    return (
        trained,
        dataclasses.replace(trained, shared_start=True),
        dataclasses.replace(trained, shared_start=True, trunk_steps=trunk),
    )


def described(config: RunConfig) -> tuple[str, ...]:
    """Returns the names of the paths that are described and decide nothing."""
    return tuple(map(path_name, compared(config)[1:]))


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training of all three conditions, and the barriers between their models."""
    conditions = compared(config)
    return [
        *(Request(LEARNING, (trained,)) for trained in conditions),
        Request(BARRIERS, conditions),
    ]


def barrier(barriers: Measured, path: str) -> np.ndarray:
    """Returns `[P]` error barriers of a path, above the line between its ends.

    Args:
      barriers: of `BARRIERS`.
      path: its name, such as `RAW` or `MATCHED`.
    """
    return barriers.read("barrier", path=path, loss="error", baseline="linear")


def decide(records: Records) -> Outcome:
    """Returns the matched barrier below its level, and the raw one above the matched."""
    config = records.config
    barriers = records.get(BARRIERS, compared(config)[0])
    raw, matched = (barrier(barriers, path) for path in (RAW, MATCHED))
    parts = (
        rules.part(
            stats.mean_test(matched, LEVEL, alternative="less"),
            LOW,
            "error barrier on S of the matched segment, above the line between its ends",
            "less",
            LEVEL,
        ),
        rules.part(
            stats.mean_test(raw - matched, 0.0, alternative="greater"),
            GAIN,
            "error barrier on S as trained minus matched",
            "greater",
            0.0,
            control=RAW,
        ),
    )
    levels = [stats.mean_test(heights, alternative="greater") for heights in (matched, raw)]
    headlines = [rules.headline("error barrier, matched", levels[0], RAW, levels[1])]
    headlines += [
        rules.headline(
            f"error barrier, {path}",
            stats.mean_test(barrier(barriers, path), alternative="greater"),
        )
        for path in described(config)
    ]
    return Outcome(parts, (LOW,), tuple(headlines))


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's barriers, and error and cross-entropy along the paths.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    barriers = records.get(BARRIERS, compared(config)[0])
    axes = plots.pair_comparison(
        barrier(barriers, MATCHED)[None],
        barrier(barriers, RAW)[None, None],
        names=config.architectures[:1],
        treatment=MATCHED,
        control_names=[RAW],
        xlabel="error barrier on S, above the line between the ends",
    )
    caption = TEXT.caption("g6_heights", verdict, **words(verdict))
    drawn = [Figure("g6_heights", caption, rules.figure_of(axes))]
    for loss, label in LABELS.items():
        curves = {
            path: barriers.read("curve", "pair", "t", path=path, loss=loss)
            for path in (MATCHED, RAW, *described(config))
        }
        lines = {
            path: values for path, values in curves.items() if np.isfinite(values).all(-1).any()
        }
        if lines:
            axes = plots.barriers(lines, control=RAW, ylabel=label)
            caption = TEXT.caption("g6_segment", verdict, quantity=label)
            drawn.append(Figure(f"g6_segment_{loss}", caption, rules.figure_of(axes)))
    return drawn


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the level below which a barrier counts as none."""
    del verdict
    return {"level": f"{LEVEL:g}"}


STUDY = Study("G6", TEXT, needs, decide, figures, words, stands_on=("G1",))
