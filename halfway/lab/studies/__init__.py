"""One study a module or folder, each with a `STUDY`; the package is listed to find them."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from halfway import custom_models, models
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import UserError
from halfway.lab.study.protocol import Study
from halfway.lab.study.verdict import Listed


@functools.cache
def available() -> Mapping[str, Study]:
    """Returns every study by id, in the order of the report: G, T, V and D, each by number."""
    listed = [
        importlib.import_module(f"{__name__}.{module.name}").STUDY
        for module in pkgutil.iter_modules(__path__)
    ]
    return MappingProxyType({study.id: study for study in sorted(listed, key=_place)})


_LETTERS = "GTVD"
"""Halves, models, verifications, descriptions."""


def _place(study: Study) -> tuple[int, int]:
    return _LETTERS.index(study.id[0]), int(study.id[1:])


def listed() -> tuple[Listed, ...]:
    """Returns id, claim in few words and kind of every study, in the order of the report."""
    return tuple(study.listed for study in available().values())


def family_size() -> int:
    """Returns the number of hypotheses, over all of which Holm's adjustment runs."""
    return sum(study.kind == "hypothesis" for study in available().values())


def sort_ids(ids: Iterable[str]) -> list[str]:
    """Returns studies in the order of the report."""
    names = list(available())
    return sorted(ids, key=names.index)


def choose(names: Sequence[str]) -> list[Study]:
    """Returns the named studies, and those they stand on, in the order of the report.

    Args:
      names: ids, or "all" for every study that decides: descriptions are named.

    Raises:
      UserError: for an unknown name, or none.
    """
    known = available()
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise UserError("no hypothesis is named: e.g. --only=G1,T1 or --only=all")
    for name in wanted:
        if name not in known and name != "all":
            near = f"did you mean {name.upper()}? " if name.upper() in known else ""
            raise UserError(
                f"unknown hypothesis {name!r}: {near}there are {', '.join(known)}, or 'all'"
            )
    deciding = [name for name, study in known.items() if study.kind != "description"]
    chosen = [name for name in wanted if name != "all"] + deciding * ("all" in wanted)
    below = {name for chosen_name in chosen for name in known[chosen_name].stands_on}
    return [study for name, study in known.items() if name in {*chosen, *below}]


_OF_BUILT_IN = {
    **dict.fromkeys(
        ("G3", "T3", "T12", "D1"),
        "the changes that it compares are of width, depth and activation of a built-in MLP and CNN",
    ),
    "T11": "the architectures that it compares are built in",
    "T13": "it widens a built-in MLP",
}
"""Studies that train built-in models whatever the config's architectures are, and why."""


def unsuitable(chosen: Sequence[Study], config: RunConfig) -> dict[str, str]:
    """Returns the studies that a user's own architectures cannot answer, each with the reason.

    Args:
      chosen: the studies.
      config: the settings of the run.
    """
    custom = {
        name: models.build(config.models[name], num_classes=config.num_classes)
        for name in config.architectures
        if custom_models.is_custom(str(config.models[name]["kind"]))
    }
    reasons = {}
    nameless = [
        name for name, module in custom.items() if not getattr(module, "permutations", None)
    ]
    if nameless:
        reasons["G6"] = f"{nameless[0]} declares no permutations of its hidden units"
    if custom and len(custom) == len(config.architectures):
        reasons |= _OF_BUILT_IN
    return {study.id: reasons[study.id] for study in chosen if study.id in reasons}
