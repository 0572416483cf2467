"""What passes between a user and the program: errors in one line, log lines, named functions."""

import contextlib
import errno
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from halfway import user_code

LOG = logging.getLogger("halfway.lab")
"""The logger of lines that a user should read; loggers of other libraries are left alone."""


class UserError(Exception):
    """A mistake of a user; the message says in one line what was wrong and what to do."""


@contextlib.contextmanager
def writing(place: object, *, resumes: bool = False) -> Iterator[None]:
    """Turns every `OSError` of the block into a user's error.

    Args:
      place: what the block writes to, e.g. a folder or "--workdir=runs/x".
      resumes: whether the same command goes on from the files that are there.

    Raises:
      UserError: for every `OSError`.
    """
    try:
        yield
    except OSError as error:
        advice = "choose another"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space"
            advice += ", and the same command goes on from what is there" if resumes else ""
        reason = error.strerror or error
        raise UserError(f"{place} cannot be written ({reason}): {advice}") from error


def load_function(flag: str, name: str) -> Callable[..., Any]:
    """Returns the function that `pkg.module:fn` names; the current folder is searched too.

    Args:
      flag: the flag that names the function, for messages.
      name: the value of the flag, `pkg.module:fn`.

    Raises:
      UserError: if there is no such function, or its module cannot be imported.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return user_code.find_function(name)
    except user_code.UserCodeError as error:
        raise UserError(f"--{flag}={error}") from error
    finally:
        with contextlib.suppress(ValueError):  # the module may have taken it away
            sys.path.remove(here)


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Turns what a user's code raises in the block, an exit too, into a user's error.

    Args:
      what: the beginning of the line, e.g. "--model=mine:load fails".

    Raises:
      UserError: with file and line; one that the code raises itself is left as it is.
    """
    try:
        with user_code.running(what, passes=(UserError,)):
            yield
    except user_code.UserCodeError as error:
        raise UserError(str(error)) from error
