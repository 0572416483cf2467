"""Halfway: where two walks downhill meet, in weight space and in input space.

Each room (`ROOMS`) is reached flat, as `meeting.first_law`, and loaded when it is first used.
"""

import importlib
from types import ModuleType

__version__ = "0.3.0"

ROOMS = (
    "attacks",
    "data",
    "input_space",
    "landscapes",
    "losses",
    "meeting",
    "models",
    "plots",
    "populations",
    "stats",
    "transfer",
)
"""The public surface; deeper paths are nobody's business but ours."""


def __getattr__(name: str) -> ModuleType:
    """Returns a room, loaded when it is first used."""
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS})
