"""The start and end of a command: its flags, and a user's mistake as one line and exit code 2."""

import difflib
import errno
import importlib
import logging
import re
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging

from halfway import user_code
from halfway.lab.config import user
from halfway.lab.config.user import LOG, UserError
from halfway.lab.entry import shared
from halfway.lab.runtime import processes, progress, start

_WIDTH = 98
_FIELD = re.compile(r"--?(?:no)?config\.(.+)", re.DOTALL)
_OF_A_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS)
"""Errors that a path of the user's has, wherever it is met: never a fault of ours."""
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a limit on files that leaves no room for what is written."""
OUT_OF_MEMORY = (
    "out of memory: lower --at_once where there are several processes, config.training.batch_size, "
    "config.num_examples, config.num_holdout or config.num_pairs (of transfer, --num_examples), or "
    "choose smaller config.models ({})"
)
NO_THREAD = "no thread can be started: raise `ulimit -u`, and `ulimit -v` where it is set"


def always() -> bool:
    """Returns True: the same command goes on from what is stored."""
    return True


def nothing() -> None:
    """Checks nothing: each flag of the command stands for itself."""


def run(
    name: str,
    values: flags.FlagValues,
    *,
    positional: bool = False,
    check: Callable[[], None] = nothing,
    resumes: Callable[[], bool] = always,
) -> None:
    """Runs a command with the arguments of the process.

    What the command does is imported once its flags are read, which takes seconds.

    Args:
      name: the command: a module of `halfway.lab.flags`, whose docstring is the help, and one of
        `halfway.lab.commands`, whose `main` does the work.
      values: the flags that it takes.
      positional: whether the command takes arguments that are no flags, for `shared.arguments`.
      check: looks at the flags together, and raises a user's error.
      resumes: whether the same command goes on from what is stored, once its flags are read.
    """
    # As `python -m` has it: modules of the user's are found from the console script too.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    # Log lines of `LOG` are for the user; absl's handler would show those of other libraries too.
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(usage(name, values))
        return

    def main() -> None:
        # Until it is imported, a signal ends the process at once (`start.begin`).
        command = importlib.import_module(f"halfway.lab.commands.{name}")
        processes.watch(lambda number: _say_ended(number, resumes))
        processes.listen()
        progress.WATCHDOG.start()
        command.main()

    guard(lambda: call(main, values, sys.argv[1:], positional=positional, check=check), resumes)


def call(
    main: Callable[[], None],
    values: flags.FlagValues,
    arguments: Sequence[str],
    *,
    positional: bool = False,
    check: Callable[[], None] = nothing,
) -> None:
    """Reads the arguments of a command and calls it.

    Args:
      main: the command.
      values: the flags of the command.
      arguments: the arguments, without the program.
      positional: whether the command takes arguments that are no flags.
      check: looks at the flags together, and raises a user's error.

    Raises:
      UserError: for an unknown flag, a value of another type, or an argument that is no flag; and
        where the check or the command raises it.
    """
    parse(values, arguments, positional=positional)
    check()
    main()


def parse(values: flags.FlagValues, arguments: Sequence[str], *, positional: bool = False) -> None:
    """Sets the flags of a command to what its arguments say, the others to their defaults.

    Args:
      values: the flags.
      arguments: the arguments, without the program.
      positional: whether the command takes arguments that are no flags.

    Raises:
      UserError: for an unknown flag, a value of another type, or an argument that is no flag.
    """
    values.unparse_flags()
    try:
        rest = values(["", *_fields_as_flags(values, arguments)])[1:]
    except flags.UnrecognizedFlagError as error:
        names = sorted(name for name in values if name not in shared.HIDDEN)
        close = difflib.get_close_matches(error.flagname, names, n=1)
        there = f"there are --{', --'.join(names)}" if names else "there are none here"
        hint = f"did you mean --{close[0]}?" if close else there
        raise UserError(f"unknown flag --{error.flagname}: {hint}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_explain(str(error), values)) from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}: all options begin with --")
    shared.set_arguments(values, rest)


def _explain(message: str, values: flags.FlagValues) -> str:
    """Returns the rule that a flag's value broke, from absl's "flag --NAME=VALUE: WHY"."""
    match = re.match(r"flag --(\w+)=(.*?): ", message, re.DOTALL)
    if match is None or match[1] not in values:
        return " ".join(message.split())
    parser = values[match[1]].parser
    names = getattr(parser, "enum_values", None)
    rule = f"one of {', '.join(names)}" if names else parser.syntactic_help or "true or false"
    return f"--{match[1]} must be {rule}, got {match[2]!r}"


def _fields_as_flags(values: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Returns arguments in which --config.FIELD=VALUE has become a value of the flag `FIELD`."""
    if shared.FIELD not in values:
        return list(arguments)
    rewritten, words = [], iter(arguments)
    for word in words:
        match = _FIELD.fullmatch(word)
        if word == "--":
            return [*rewritten, word, *words]
        if match is None:
            rewritten.append(word)
            continue
        name, equals, value = match[1].partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise UserError(f"Missing value for --config.{name}")
            value = following
        rewritten.append(f"--{shared.FIELD}={name}={value}")
    return rewritten


def guard(command: Callable[[], None], resumes: Callable[[], bool] = always) -> None:
    """Calls a command, and ends the process with one line for an error that a user can mend.

    Args:
      command: the command, a function without arguments.
      resumes: whether the same command goes on from what is stored.
    """
    try:
        command()
    except UserError as error:
        _fail(error)
    except OSError as error:
        if error.errno in _OF_A_DISK:
            place = f"{user.shortened(str(error.filename))}: " if error.filename else ""
            _fail(
                UserError(
                    f"{place}what is written has no room ({error.strerror}): free some space; "
                    f"{_what_next(resumes)}"
                )
            )
        if error.errno not in _OF_A_PATH or not error.filename:
            _abandon()
            raise
        path = user.shortened(str(error.filename))
        _fail(UserError(f"{path} cannot be used ({error.strerror}): choose another place"))
    except KeyboardInterrupt:
        _end(signal.SIGINT, resumes)
    except processes.Terminated as asked:
        _end(asked.number, resumes)
    except start.OutputLost as lost:
        processes.abandon(lost.code)
        raise
    except (*_errors_of_programs(), ValueError, MemoryError) as error:
        # What is raised in a callback comes as an error of the program that called.
        if "KeyboardInterrupt" in str(error):
            _end(signal.SIGINT, resumes)
        if processes.count() == 1 and processes.is_ending():
            _end(processes.Terminated().number, resumes)
        if processes.lost(error):
            processes.leave()
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            _fail_for_user_code(error)
            _abandon()
            raise
        _fail(UserError(OUT_OF_MEMORY.format(" ".join(str(error).split())[:200])))
    except (Exception, SystemExit) as error:
        _fail_for_user_code(error)
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            _fail(UserError(NO_THREAD))
        if not isinstance(error, SystemExit):
            _abandon()
        raise


def _errors_of_programs() -> tuple[type[Exception], ...]:
    """Returns what compiled programs raise: nothing, where JAX is not imported."""
    if "jax" not in sys.modules:
        return ()
    import jax

    return (jax.errors.JaxRuntimeError,)


def _fail_for_user_code(error: BaseException) -> None:
    """Ends with one line, where an error or an exit comes from the code that a flag named."""
    if user_code.is_of_user(error):
        _fail(UserError(f"code of yours fails: {user_code.reason(error)}"))


def _end(number: int, resumes: Callable[[], bool]) -> NoReturn:
    """Ends the process that was asked to end, with the code of its signal."""
    code = processes.CODES[number]
    processes.reacts(code)
    if number == signal.SIGINT or processes.is_first():
        _say_ended(number, resumes)
    if number == signal.SIGINT:
        processes.abandon(code)
    sys.exit(code)


def _say_ended(number: int, resumes: Callable[[], bool]) -> None:
    """Writes how the process was ended, and what the same command would do."""
    how = "interrupted" if number == signal.SIGINT else "terminated"
    print(f"{how}: {_what_next(resumes)}", file=sys.stderr)


def _what_next(resumes: Callable[[], bool]) -> str:
    """Returns what the same command would do."""
    if resumes():
        return "the same command goes on from here"
    return "nothing was kept, the same command begins anew"


def _abandon() -> None:
    """Ends this process after a fault with a traceback, if the run has several processes."""
    if processes.count() > 1:
        traceback.print_exc()
        processes.abandon(1)


def _fail(error: UserError) -> None:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    processes.abandon(start.MISTAKE)
    sys.exit(start.MISTAKE)


def usage(name: str, values: flags.FlagValues) -> str:
    """Returns the text of --help: the docstring of the module of a command's flags, and the flags.

    Args:
      name: the command.
      values: the flags of the command.
    """
    doc = (importlib.import_module(f"halfway.lab.flags.{name}").__doc__ or "").strip()
    shown = [values[name] for name in values if name not in shared.HIDDEN]
    names = [f"--{flag.name}" for flag in shown]
    width = max(map(len, names), default=0) + 2
    lines = []
    for name, flag in zip(names, shown, strict=True):
        words = flag.help or ""
        if flag.default not in (None, False, ""):
            words += f" (default {flag.default_as_str})".replace("'", "")
        first, *rest = textwrap.wrap(words, _WIDTH - width) or [""]
        lines.append(f"{name.ljust(width)}{first}")
        lines += [f"{' ' * width}{line}" for line in rest]
    return "\n".join([doc, "", *lines])


def command_line() -> str:
    """Returns the command of this process as it can be pasted into a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = sys.argv[0]
    if not program.startswith("halfway "):
        program = f"python -m {spec.name}" if spec else f"python {shlex.quote(program)}"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])
