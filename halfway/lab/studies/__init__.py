"""One file a hypothesis, each ending in a frozen `STUDY`; the package is listed to find them."""

import importlib
import pkgutil
from collections.abc import Sequence

from halfway.lab.config.user import UserError
from halfway.lab.study.family import FAMILY
from halfway.lab.study.protocol import Study


def available() -> dict[str, Study]:
    """Returns every study that exists, by id, in the order of the family."""
    found: dict[str, Study] = {}
    for module in pkgutil.iter_modules(__path__):
        study: Study = importlib.import_module(f"{__name__}.{module.name}").STUDY
        found[study.id] = study
    return {name: found[name] for name, _ in FAMILY if name in found}


def choose(names: Sequence[str]) -> list[Study]:
    """Returns the named studies in the order of the family.

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
