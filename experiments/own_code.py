"""Functions that a user names on the command line."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.errors import UserError


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
