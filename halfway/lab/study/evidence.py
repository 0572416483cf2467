"""The kind of evidence a run is: what was looked at before rules and settings were fixed."""

import functools
from typing import Any

from halfway.lab.config import config_file, settings
from halfway.lab.config.settings import RunConfig
from halfway.lab.study.verdict import Evidence

MIN_PAIRS = 16
EXPLORATORY = ("digits", "mixture")
"""Data sets that were looked at before the rules were settled, or that are of our own making."""
FREE = ("seed", "num_pairs", "hypotheses")
"""Fields that a confirmatory run may set: more pairs, other draws, some of the hypotheses."""
OF_THE_DATA = ("dataset", "subset", "num_classes", "num_examples", "num_holdout")
"""Fields that may differ too where the data set is not that of the shipped config."""


def kind(config: RunConfig, min_pairs: int = MIN_PAIRS) -> Evidence:
    """Returns the kind of evidence of a run.

    "none" with fewer than `min_pairs` pairs; "exploratory" on a data set that was looked at before
    the rules were settled, or with settings that no shipped config has; else "confirmatory".

    Args:
      config: of the run.
      min_pairs: that a verdict needs.
    """
    if config.num_pairs < min_pairs:
        return "none"
    if config.dataset in EXPLORATORY or changed(config):
        return "exploratory"
    return "confirmatory"


def changed(config: RunConfig) -> tuple[str, ...]:
    """Returns the fields in which a config differs from the shipped one that it is nearest to.

    What may differ in a confirmatory run is left out: `FREE` and, on another data set than the
    shipped config's, `OF_THE_DATA`.
    """
    ours = settings.leaves(config)
    return min((_differences(ours, shipped) for shipped in _shipped()), key=len)


def _differences(ours: dict[str, Any], shipped: dict[str, Any]) -> tuple[str, ...]:
    free = FREE if ours["dataset"] == shipped["dataset"] else FREE + OF_THE_DATA
    names = sorted({*ours, *shipped} - set(free))
    return tuple(name for name in names if ours.get(name) != shipped.get(name))


@functools.cache
def _shipped() -> tuple[dict[str, Any], ...]:
    shipped = (config_file.load(name).config for name in config_file.shipped_names())
    # One that decides nothing was made for other ends: it vouches for no setting.
    return tuple(settings.leaves(config) for config in shipped if config.hypotheses)
