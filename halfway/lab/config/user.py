"""What a user hears and hands over: mistakes in one line, log lines, functions of their own."""

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOG = logging.getLogger("halfway.lab")
"""For lines that a user should read; other libraries' loggers stay as quiet as they are."""


class UserError(Exception):
    """What was wrong and what to do, in one line."""


def load_function(flag: str, name: str) -> Callable[..., Any]:
    """Returns the function that `pkg.module:fn` names; the current folder is looked in too.

    Args:
      flag: that names it, for messages.
      name: what it says.

    Raises:
      UserError: if there is none.
    """
    module, colon, function = name.partition(":")
    if not colon or not function:
        raise UserError(f"--{flag}={name} names no function: write pkg.module:fn")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--{flag}={name} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    return found
