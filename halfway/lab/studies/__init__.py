"""One file a hypothesis, each ending in a frozen `STUDY`; the package is listed to find them."""

import importlib
import pkgutil

from halfway.lab.study.family import FAMILY
from halfway.lab.study.protocol import Study


def available() -> dict[str, Study]:
    """Returns every study that exists, by id, in the order of the family."""
    found: dict[str, Study] = {}
    for module in pkgutil.iter_modules(__path__):
        study: Study = importlib.import_module(f"{__name__}.{module.name}").STUDY
        found[study.id] = study
    return {name: found[name] for name, _ in FAMILY if name in found}
