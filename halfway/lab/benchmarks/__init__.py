"""Benchmarks: one file a suite, each with `rows(data_dir) -> list of Row`; the folder is listed."""

import importlib
import pkgutil
from types import ModuleType


def available() -> dict[str, ModuleType]:
    """Returns the suites by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "rows")}
