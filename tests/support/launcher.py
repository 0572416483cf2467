"""Entry points in processes of their own, forked from one that has imported everything."""

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

from support.commands import PATIENCE, Result

from halfway import sharding
from halfway.lab.commands import __main__ as console
from halfway.lab.runtime import datasets, progress

CACHE = os.environ["HALFWAY_TEST_CACHE"]
_CONTEXT = multiprocessing.get_context("forkserver")
# Modules, not JAX's backend: that and all of our state begin in the child.
_COMMANDS = [f"halfway.lab.commands.{name}" for name in console.COMMANDS]
_CONTEXT.set_forkserver_preload([*_COMMANDS, "orbax.checkpoint"])
SMALL = f"--config={Path(__file__).with_name('small_config.py')}"
FOLDERS = (f"--compilation_cache={CACHE}/jax", f"--data_dir={CACHE}/data")


class Job:
    """`python -m MODULE ARGUMENTS` in a process, its output in files of a folder.

    Several may run at once, started and waited for by one thread: multiprocessing needs that.
    `streams` says of 1 and 2 whether they are "closed", "full", or a pipe that is "broken";
    `limits` has bytes by the name of a limit of the system.
    """

    def __init__(
        self,
        folder,
        *arguments,
        module="experiments.reproduce",
        cwd=None,
        env=None,
        streams=None,
        limits=None,
    ):
        self.out, self.err = Path(folder) / "out", Path(folder) / "err"
        for path in (self.out, self.err):  # it may be killed before it opens them
            path.touch()
        self._process = _CONTEXT.Process(
            target=_child,
            args=(module, arguments, str(cwd or folder), env or {}, str(self.out), str(self.err)),
            kwargs={"streams": streams or {}, "limits": limits or {}},
        )
        self._process.start()

    def wait(self, timeout=300):
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {timeout} s: {self._result()}")
        return self._result()

    def signal_once(self, condition, number=signal.SIGKILL):
        """Sends a signal as soon as the condition holds; whether the process still ran."""
        while not condition():
            if self._process.exitcode is not None:
                return False
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
        return True

    def _result(self):
        return Result(self._process.exitcode, self.out.read_text(), self.err.read_text())


def _disturb(number, state):
    """Does to a stream of this process what a shell can do to it before it starts."""
    if state == "closed":
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)  # as Python has it then
        return
    if state == "full":
        handle = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, handle = os.pipe()
        os.close(reading)
    os.dup2(handle, number)
    os.close(handle)


def run(folder, *arguments, **options):
    return Job(folder, *arguments, **options).wait()


def _child(module, arguments, cwd, env, out, err, streams, limits):
    os.chdir(cwd)
    for name, value in env.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, stream.fileno())
    for number, state in streams.items():
        _disturb(number, state)
    for name, limit in limits.items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    datasets.PATIENCE = progress.BEAT_SECONDS = PATIENCE
    if "--xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", ""):
        sharding.CPU_LEVEL = None  # as in conftest.py: the same programs, the same last bits
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
