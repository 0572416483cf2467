"""G6: how much of what separates θ_A and θ_B is the naming of units."""

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
from halfway.lab.study.verdict import Headline, Outcome, PartResult, Verdict
from halfway.populations import Condition

TEXT = text.load(__file__)
SHARE = 0.5
"""Of the barrier as trained: less is left once units are matched."""
TRAINED = 0.9
"""Of the error of chance: the mean error of the ends lies below, or there is nothing to lose."""
NONE = 0.02
"""Of what the models have learned: a barrier below this share of it counts as none. Described."""
TRUNK_STEPS = 50
"""Steps on both halves together, before the models of a shared trunk part."""
HALF_RAW = "half of as trained"
LABELS = {"error": "error on S", "cross_entropy": "cross-entropy on S, nats"}
"""Losses that are drawn along the paths."""


def compared(config: RunConfig, architecture: str) -> tuple[Condition, ...]:
    """Returns the condition that decides and, of the first architecture, what is described.

    Those are models of a shared start, and of a shared trunk.

    Args:
      config: of the run.
      architecture: one of `config.architectures`.
    """
    trained = condition(config, architecture)
    if architecture != config.architectures[0]:
        return (trained,)
    trunk = min(TRUNK_STEPS, trained.probe_steps[-1])
    return (
        trained,
        dataclasses.replace(trained, shared_start=True),
        dataclasses.replace(trained, shared_start=True, trunk_steps=trunk),
    )


def described(config: RunConfig) -> tuple[str, ...]:
    """Returns the names of the first architecture's paths that decide nothing."""
    return tuple(map(path_name, compared(config, config.architectures[0])[1:]))


def needs(config: RunConfig) -> Sequence[Request]:
    """Returns training of all conditions, and the barriers between their models."""
    by_architecture = [compared(config, name) for name in config.architectures]
    return [
        *(Request(LEARNING, (trained,)) for group in by_architecture for trained in group),
        *(Request(BARRIERS, group) for group in by_architecture),
    ]


def barrier(barriers: Measured, path: str) -> np.ndarray:
    """Returns `[P]` error barriers of a path, above the line between its ends.

    Args:
      barriers: of `BARRIERS`.
      path: its name, such as `RAW` or `MATCHED`.
    """
    return barriers.read("barrier", path=path, loss="error", baseline="linear")


def end_error(barriers: Measured) -> np.ndarray:
    """Returns `[P]` errors on S, labels clean, the mean of θ_A and θ_B.

    Args:
      barriers: of `BARRIERS`.
    """
    curve = barriers.read("curve", "pair", "t", path=RAW, loss="error")
    return curve[:, [0, -1]].mean(-1)


def decide(records: Records) -> Outcome:
    """Returns, for each architecture, what is left of the barrier, and whether models learned.

    `Σ barrier_matched − ½ Σ barrier_raw < 0` as a t-test of the mean over pairs of the difference.
    The gate is on the mean over pairs of the ends' error as a share of chance's, both on S. What is
    left of the learned, barrier/(chance − error), is a ratio of sums over pairs.
    """
    config = records.config
    tests, gates, headlines = [], [], []
    for architecture in config.architectures:
        barriers = records.get(BARRIERS, compared(config, architecture)[0])
        raw, matched = (barrier(barriers, path) for path in (RAW, MATCHED))
        tests.append(
            rules.part(
                stats.mean_test(matched - SHARE * raw, 0.0, alternative="less"),
                architecture,
                "error barrier on S once matched minus half of that as trained",
                "less",
                0.0,
                control=HALF_RAW,
            )
        )
        error, chance = end_error(barriers), barriers.read("chance")
        gates.append(_trained(error / chance, architecture))
        headlines += _headlines(matched, raw, chance - error, architecture)
    first = records.get(BARRIERS, compared(config, config.architectures[0])[0])
    headlines += [
        rules.headline(
            f"error barrier, {path}",
            stats.mean_test(barrier(first, path), alternative="greater"),
        )
        for path in described(config)
    ]
    return Outcome((*tests, *gates), tuple(config.architectures), tuple(headlines))


def _trained(share: np.ndarray, architecture: str) -> PartResult:
    """Returns the gate: the ends' error `[P]`, as a share of chance's, lies below `TRAINED`."""
    statistic = "error of the ends on S, as a share of that of chance"
    name = f"{architecture}, learned"
    return rules.gate(share, name, statistic, TRAINED, alternative="less")


def _headlines(
    matched: np.ndarray, raw: np.ndarray, learned: np.ndarray, architecture: str
) -> list[Headline]:
    """Returns the barriers `[P]` of an architecture, and their share of what was learned `[P]`."""
    heights = [stats.mean_test(values, alternative="greater") for values in (matched, raw)]
    shares = [stats.fieller(values, learned) for values in (matched, raw)]
    share = "barrier over (chance − error)"
    return [
        rules.headline(f"error barrier, matched ({architecture})", heights[0], RAW, heights[1]),
        rules.headline(f"{share}, matched ({architecture})", shares[0], RAW, shares[1]),
    ]


def figures(records: Records, verdict: Verdict) -> Sequence[Figure]:
    """Returns every pair's barriers, and error and cross-entropy along the paths.

    Args:
      records: the measurements of the run.
      verdict: what the rule decided.
    """
    config = records.config
    by_architecture = {
        name: records.get(BARRIERS, compared(config, name)[0]) for name in config.architectures
    }
    raw = np.array([barrier(barriers, RAW) for barriers in by_architecture.values()])
    axes = plots.pair_comparison(
        np.array([barrier(barriers, MATCHED) for barriers in by_architecture.values()]),
        np.stack([SHARE * raw, raw], 1),
        names=config.architectures,
        treatment=MATCHED,
        control_names=[HALF_RAW, RAW],
        xlabel="error barrier on S, above the line between the ends",
        threshold=None,  # half of as trained is in grey
    )
    caption = TEXT.caption("g6_heights", verdict, **words(verdict))
    drawn = [Figure("g6_heights", caption, rules.figure_of(axes))]
    for architecture, barriers in by_architecture.items():
        drawn += _segments(config, verdict, architecture, barriers)
    return drawn


def _segments(
    config: RunConfig, verdict: Verdict, architecture: str, barriers: Measured
) -> list[Figure]:
    """Returns error along the paths of an architecture; of the first, cross-entropy too."""
    first = architecture == config.architectures[0]
    paths = (MATCHED, RAW, *(described(config) if first else ()))
    drawn = []
    for loss, label in LABELS.items():
        curves = {path: barriers.read("curve", "pair", "t", path=path, loss=loss) for path in paths}
        lines = {
            path: values for path, values in curves.items() if np.isfinite(values).all(-1).any()
        }
        if not lines or not (first or loss == "error"):
            continue
        axes = plots.barriers(lines, control=RAW, ylabel=f"{label} ({architecture})")
        caption = TEXT.caption("g6_segment", verdict, quantity=label, architecture=architecture)
        name = f"g6_segment_{loss}" + ("" if first else f"_{architecture}")
        drawn.append(Figure(name, caption, rules.figure_of(axes)))
    return drawn


def words(verdict: Verdict) -> Mapping[str, str]:
    """Returns the share of what was learned below which a barrier counts as none."""
    del verdict
    return {"none": f"{100 * NONE:g} %"}


STUDY = Study("G6", TEXT, needs, decide, figures, words, stands_on=("G1",))
