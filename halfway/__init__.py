"""Halfway: where two walks downhill meet, in weight space and in input space.

Each room (`ROOMS`) is reached flat, as `meeting.first_law`, and loaded when it is first used.
`halfway.evaluate` is `robustness.evaluate`.
"""

import importlib
from typing import Any

__version__ = "0.3.0"

ROOMS = (
    "attacks",
    "data",
    "input_space",
    "interop",
    "landscapes",
    "losses",
    "meeting",
    "models",
    "plots",
    "populations",
    "robustness",
    "stats",
    "transfer",
)
"""The public surface; deeper paths are nobody's business but ours."""


def __getattr__(name: str) -> Any:
    """Returns a room, or `evaluate`, loaded when it is first used."""
    if name == "evaluate":
        return importlib.import_module(f"{__name__}.robustness").evaluate
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS, "evaluate"})
