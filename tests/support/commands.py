"""Commands called in this process, as a shell would call them in a folder."""

import contextlib
import importlib
import io
import logging
import re
import signal
import sys
from typing import NamedTuple

import pytest

from halfway.lab.config.user import LOG
from halfway.lab.entry import launch
from halfway.lab.runtime import datasets, processes

PATIENCE = 3600.0
"""Seconds of reading after which a line says that data are read: never, on a slow machine too."""


class Result(NamedTuple):
    """The end of a command.

    Attributes:
      code: the exit code.
      out: what was printed.
      err: log lines and errors.
    """

    code: int
    out: str
    err: str

    @property
    def complaint(self):
        """The one line of a user's mistake, after checking that there is nothing else."""
        assert self.code == 2, self
        assert self.out == "", self
        assert re.fullmatch(r"error: [^\n]{10,600}\n", self.err), self
        return self.err


def main(name, *arguments, positional=False):
    """Calls a command from its flags on; a mistake of its user is raised.

    Args:
      name: the command, e.g. "reproduce".
      *arguments: its arguments.
      positional: whether it takes arguments that are no flags.
    """
    flags = flags_of(name)
    command = importlib.import_module(f"halfway.lab.commands.{name}")
    check = getattr(flags, "check", launch.nothing)
    launch.call(command.main, flags.FLAGS, arguments, positional=positional, check=check)


def flags_of(name):
    """The module of a command's flags."""
    return importlib.import_module(f"halfway.lab.flags.{name}")


def call(folder, name, *arguments, positional=False):
    """Call a command from its flags to its exit code; what it set in the process is put back.

    Programs that an earlier call compiled are used again, and no process is started.

    Args:
      folder: the current folder of the command.
      name: the command, e.g. "reproduce".
      *arguments: its arguments.
      positional: whether it takes arguments that are no flags.
    """
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handled = {number: signal.getsignal(number) for number in processes.CODES}
    level, code = LOG.level, 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"halfway {name}", *arguments])
        patch.setattr(processes, "_state", processes._State())
        patch.setattr(datasets, "PATIENCE", PATIENCE)
        patch.setattr(LOG, "handlers", [handler])
        patch.setattr(LOG, "propagate", False)
        LOG.setLevel(logging.INFO)
        processes.listen()
        try:
            launch.guard(
                lambda: main(name, *arguments, positional=positional),
                getattr(flags_of(name), "resumes", launch.always),
            )
        except SystemExit as end:
            code = end.code
        finally:
            LOG.setLevel(level)
            for number, answer in handled.items():
                signal.signal(number, answer)
    return Result(code, out.getvalue(), err.getvalue())
