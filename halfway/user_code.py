"""Calls a user's code: what is wrong with it is one line with its file and line number.

To import a module or to call its functions is to run somebody else's code, with the rights of
whoever runs it. It may raise anything, and may end the program: neither may pass for our own end.
"""

import contextlib
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_LONGEST = 300
"""Characters of somebody else's message that are shown."""
_PACKAGE = str(Path(__file__).parent) + os.sep
_INSTALLED = tuple(
    sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PASSED_ON = (MemoryError, GeneratorExit, KeyboardInterrupt)


_places: set[str] = set()
"""Files of users' functions and configs that flags have named."""


class UserCodeError(ValueError):
    """A user's code cannot be run; the message says in one line what is wrong, and where."""


def find_function(name: str) -> Callable[..., Any]:
    """Returns the function that `pkg.module:fn` names, after importing its module.

    Args:
      name: a module, a colon, and the name of something callable in it.

    Raises:
      UserCodeError: if it is no such name, the module cannot be imported, it is Python's own, or
        what it has of that name is not callable.
    """
    place, colon, function = name.partition(":")
    words = [*place.split("."), function]
    if not colon or not all(word.isidentifier() for word in words) or function.startswith("__"):
        raise UserCodeError(f"{name} names no function: write pkg.module:fn")
    with running(f"{name} cannot be imported"):
        module = importlib.import_module(place)
        fn = getattr(module, function, None)
    if _is_of_python(module):
        raise UserCodeError(f"{name} cannot be imported: {place} is Python's own, not a user's")
    where = getattr(module, "__file__", None)
    if fn is None:
        raise UserCodeError(
            f"{name} cannot be imported: {place} has no {function!r}; it has "
            f"{', '.join(_functions(module)) or 'no function'} ({where})"
        )
    if not callable(fn):
        kind = type(fn).__name__
        raise UserCodeError(f"{name} is no function: {function!r} of {where} is of type {kind}")
    home = sys.modules.get(str(getattr(fn, "__module__", "")))
    if (inspect.isroutine(fn) or isinstance(fn, type)) and home and _is_of_python(home):
        raise UserCodeError(f"{name} is of Python's own {home.__name__}: name a function of yours")
    remember(str(where))
    return fn


def remember(path: str | os.PathLike[str]) -> None:
    """Keeps in mind that a file holds a user's code, for `is_of_user`.

    Args:
      path: the path of the file.
    """
    _places.add(os.path.abspath(path))  # noqa: PTH100 (links are not followed)


def is_of_user(error: BaseException) -> bool:
    """Returns whether an error passed through a file that a flag named.

    Args:
      error: what was raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return not _places.isdisjoint(os.path.abspath(frame.filename) for frame in frames)  # noqa: PTH100


def _is_of_python(module: ModuleType) -> bool:
    """Returns whether a module is built into Python or of its standard library."""
    path = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or path is None:
        return module.__name__ in sys.stdlib_module_names
    standard, others = _INSTALLED[:2], _INSTALLED[2:]
    return path.startswith(standard) and not path.startswith(others)


def _functions(module: ModuleType) -> list[str]:
    """Returns the names of a module's public functions and classes, ten at most."""
    callables = {name: value for name, value in vars(module).items() if callable(value)}
    home = module.__name__
    names = [name for name, value in callables.items() if getattr(value, "__module__", "") == home]
    return sorted(name for name in names if not name.startswith("_"))[:10]


@contextlib.contextmanager
def running(what: str, *, passes: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turns what a user's code raises in the block, an exit too, into one line.

    Args:
      what: the beginning of the line, e.g. "--model=mine:load fails".
      passes: exceptions that are left as they are, beside a lack of memory and Ctrl-C.

    Raises:
      UserCodeError: for every other exception, and for `sys.exit`.
    """
    try:
        yield
    except (*_PASSED_ON, *passes):
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Returns kind and message of an error of a user's code in one line, with file and line.

    Args:
      error: what was raised.
    """
    words = " ".join(str(error).split())
    if isinstance(error, UserCodeError):
        return words
    if isinstance(error, SystemExit):
        words = f"it ends the program, with code {error.code!r}"
    elif isinstance(error, SyntaxError):
        words = f"SyntaxError: {error.msg}"
    else:
        words = f"{type(error).__name__}: {words}" if words else type(error).__name__
    words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."
    where = place(error)
    return f"{words} ({where[0]}, line {where[1]})" if where else words


def place(error: BaseException) -> tuple[str, int] | None:
    """Returns file and line of the user's code that an error comes from; None if it is of none.

    Args:
      error: what was raised.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return error.filename, error.lineno or 1
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = os.path.abspath(frame.filename)  # noqa: PTH100 (no file need be there)
        if not path.startswith((_PACKAGE, *_INSTALLED)) and Path(path).is_file():
            return frame.filename, frame.lineno or 1
    return None
