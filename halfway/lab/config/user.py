"""What passes between a user and the program: errors in one line, log lines, named functions."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from halfway import files, user_code

LOG = logging.getLogger("halfway.lab")
"""The logger of lines that a user should read; loggers of other libraries are left alone."""

DEFAULT_CONFIG = "digits"
"""The config that is taken where a user names none."""


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


def check_folder(what: str, path: Path, *, writes: bool = False) -> None:
    """Checks that a path is a folder, or that one can be made there; nothing is made.

    Args:
      what: the path as the user gave it, e.g. "--workdir=runs/x".
      path: of the folder.
      writes: whether something will be written to it.

    Raises:
      UserError: if something else is in the way, a link leads nowhere, the name is impossible, or
        this user must not read or write there.
    """
    place = _nearest(what, path)
    if not place.is_dir():
        other = "" if place == path else f" ({place} is a file)"
        raise UserError(f"{shortened(what)} is not a folder{other}: choose another")
    _check_access(what, place, writes=writes)


def check_file(what: str, path: Path) -> None:
    """Checks that a file can be written to a path; nothing is made.

    Args:
      what: the path as the user gave it, e.g. "--out=rows.json".
      path: of the file.

    Raises:
      UserError: if a folder is in the way, a link leads nowhere, or the name is impossible.
    """
    place = _nearest(what, path)
    if place == path:
        place = path.parent
        if not path.is_file():
            raise UserError(f"{shortened(what)} is not a file: choose another")
    elif not place.is_dir():
        raise UserError(f"{shortened(what)} is in no folder ({place} is a file): choose another")
    _check_access(what, place, writes=True)


def _check_access(what: str, folder: Path, *, writes: bool) -> None:
    effective = os.access in os.supports_effective_ids
    for mode, verb in ((os.R_OK, "read"), *([(os.W_OK, "written")] if writes else [])):
        if not os.access(folder, mode | os.X_OK, effective_ids=effective):
            is_read_only = mode == os.W_OK and os.statvfs(folder).f_flag & os.ST_RDONLY
            reason = os.strerror(errno.EROFS) if is_read_only else "no permission"
            raise UserError(f"{shortened(what)} cannot be {verb} ({reason}): choose another")


def _nearest(what: str, path: Path) -> Path:
    """Returns what exists of a path and its parents, the path itself before them."""
    for place in (path, *path.parents):
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if place.is_symlink():
                raise UserError(
                    f"{shortened(what)} cannot be used: the link {place} leads to "
                    f"{place.readlink()}, which does not exist; choose another"
                ) from error
        except (OSError, ValueError) as error:  # ValueError: of a zero byte
            raise UserError(
                f"{shortened(what)} cannot be used ({getattr(error, 'strerror', None) or error}): "
                "choose another"
            ) from error
        else:
            return place
    return path


def check_regular(what: str, path: Path) -> None:
    """Checks that nothing but a regular file is at a path; nothing at all is well.

    Args:
      what: the file as the user gave it, e.g. "config file 'mine.py'".
      path: of the file.

    Raises:
      UserError: if a folder, a FIFO or something else is there.
    """
    if path.exists() and not path.is_file():
        kind = files.kind_of(path.stat().st_mode)
        raise UserError(f"{what} is {kind}: a regular file is needed")


_MOST_SHOWN = 160
"""Characters of a path that are shown in a message."""


def shortened(text: str) -> str:
    """Returns a text with its middle left out where it is too long for one line.

    Args:
      text: e.g. a path of a user.
    """
    text = text.replace("\0", "\\0")
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 40]} ... {text[-20:]}"


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


def number(text: str) -> float:
    """Returns the number that a text stands for, such as "0.1" or "8/255".

    Args:
      text: a decimal number, or two decimal numbers with a slash between.

    Raises:
      ValueError: for another text.

    Examples:
      >>> user.number("8/255") == 8 / 255
      True
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by 0") from error
