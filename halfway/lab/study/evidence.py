"""The kind of evidence a run is: what was looked at before rules and settings were fixed."""

import functools
from typing import Any

from halfway.lab.config import config_file, settings
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import registration
from halfway.lab.study.protocol import Study
from halfway.lab.study.verdict import Evidence

MIN_PAIRS = 16
FREE = ("seed", "num_pairs", "hypotheses")
"""Fields that do not make the settings others: draws, more pairs, some of the hypotheses."""


def kind(config: RunConfig, study: Study | None = None) -> Evidence:
    """Returns the kind of evidence of a run, or of one study of it.

    - "none": fewer than 16 pairs.
    - "confirmatory": rule and config are those of the lock, the data set played no part in settling
      them, seed and number of pairs are the shipped ones.
    - "replication": the same with another seed or more pairs.
    - "exploratory": everything else.

    Args:
      config: of the run.
      study: whose verdict it is; None: what studies can be at best.
    """
    if config.num_pairs < MIN_PAIRS:
        return "none"
    name = nearest(config)
    shipped = _shipped()[name]
    if (
        config.dataset in registration.LOOKED_AT
        or changed(config)
        or config.num_pairs < shipped["num_pairs"]
        or not registration.is_config_locked(name)
    ):
        return "exploratory"
    if study is not None and (
        not registration.is_locked(study) or registration.was_seen(study, config.dataset)
    ):
        return "exploratory"
    ours = settings.leaves(config)
    same = all(ours[field] == shipped[field] for field in ("seed", "num_pairs"))
    return "confirmatory" if same else "replication"


def changed(config: RunConfig) -> tuple[str, ...]:
    """Returns the fields in which a config differs from the shipped one that it is nearest to.

    `FREE` fields are left out.
    """
    return _differences(settings.leaves(config), _shipped()[nearest(config)])


def nearest(config: RunConfig) -> str:
    """Returns the name of the shipped config that a config differs least from."""
    ours = settings.leaves(config)
    return min(_shipped(), key=lambda name: len(_differences(ours, _shipped()[name])))


def _differences(ours: dict[str, Any], shipped: dict[str, Any]) -> tuple[str, ...]:
    names = sorted({*ours, *shipped} - set(FREE))
    return tuple(name for name in names if ours.get(name) != shipped.get(name))


@functools.cache
def _shipped() -> dict[str, dict[str, Any]]:
    shipped = {name: config_file.load(name).config for name in config_file.shipped_names()}
    # One that decides nothing was made for other ends: it vouches for no setting.
    return {name: settings.leaves(config) for name, config in shipped.items() if config.hypotheses}
