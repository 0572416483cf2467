"""Benchmarks: each suite is a module of this folder with `rows(data_dir) -> list of Row`."""

import importlib
import pkgutil
from types import ModuleType


def available() -> dict[str, ModuleType]:
    """Returns the modules of the suites by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "rows")}
