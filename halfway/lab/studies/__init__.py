"""One hypothesis a module or folder, each with a `STUDY`; the package is listed to find them."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from halfway.lab.config.user import UserError
from halfway.lab.study.protocol import Study


@functools.cache
def available() -> Mapping[str, Study]:
    """Returns every study by id, in the order of the report: G before T, each by number."""
    listed = [
        importlib.import_module(f"{__name__}.{module.name}").STUDY
        for module in pkgutil.iter_modules(__path__)
    ]
    return MappingProxyType({study.id: study for study in sorted(listed, key=_place)})


def _place(study: Study) -> tuple[str, int]:
    return study.id[0], int(study.id[1:])


def family() -> tuple[tuple[str, str], ...]:
    """Returns id and claim in few words of every hypothesis, in the order of the report.

    Holm's adjustment is over all of them.
    """
    return tuple((name, study.text.short) for name, study in available().items())


def sort_ids(ids: Iterable[str]) -> list[str]:
    """Returns hypotheses in the order of the report."""
    names = list(available())
    return sorted(ids, key=names.index)


def choose(names: Sequence[str]) -> list[Study]:
    """Returns the named studies in the order of the report.

    Args:
      names: ids, or "all" for every study that exists.

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
    return [study for name, study in known.items() if name in wanted or "all" in wanted]
