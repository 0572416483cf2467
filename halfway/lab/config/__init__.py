"""Settings: a config file and flags as typed data, and the errors of a user."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfway.lab.config.config_file import shipped

__all__ = ["shipped"]


def __getattr__(name: str) -> Any:
    """Imports config files when the first is read: their settings name models, which need JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.config_file"), name)
