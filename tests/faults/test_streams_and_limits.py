"""Every command where nobody reads, nothing can be printed, or the system grants too little.

A command ends in silence or in one line, as Unix programs do, and what is in files is whole.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import launcher, run_folder

from halfway.lab.commands import __main__ as console
from halfway.lab.runtime import processes, start

ROOT = Path(__file__).resolve().parents[2]
PRINTED = [  # what is done to the streams, the exit code, the start of the one line
    ({1: "broken"}, start.BROKEN_PIPE, ""),
    ({1: "full"}, start.MISTAKE, "error: what is printed cannot be written (No space left"),
    ({1: "closed"}, 0, ""),
    ({1: "closed", 2: "closed"}, 0, ""),
    ({1: "broken", 2: "broken"}, start.BROKEN_PIPE, ""),
    ({1: "full", 2: "full"}, start.MISTAKE, ""),
]


def names(table):
    return ["-".join(f"{number}{state}" for number, state in row[0].items()) for row in table]


def assert_ended(result, code, line):
    assert result.code == code, result
    assert result.err.startswith(line) and result.err.count("\n") == bool(line), result


@pytest.mark.parametrize(("streams", "code", "line"), PRINTED, ids=names(PRINTED))
def test_each_command_prints_where_nothing_can_be_printed(tmp_path, streams, code, line):
    jobs = {}
    for name in console.COMMANDS:
        (tmp_path / name).mkdir()
        jobs[name] = launcher.Job(
            tmp_path / name, "--help", module=f"experiments.{name}", streams=streams
        )
    for job in jobs.values():
        assert_ended(job.wait(), code, line)


@pytest.mark.parametrize("state", ["full", "closed"])
def test_each_command_ends_with_its_code_where_its_mistake_cannot_be_said(tmp_path, state):
    jobs = {}
    for name in console.COMMANDS:
        (tmp_path / name).mkdir()
        jobs[name] = launcher.Job(
            tmp_path / name, "--no_such_flag", module=f"experiments.{name}", streams={2: state}
        )
    for job in jobs.values():
        assert_ended(job.wait(), start.MISTAKE, "")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_folder.make(folder)[0]


DECIDED = [row for row in PRINTED if row[0] in ({1: "broken"}, {1: "full"}, {1: "closed"})]
DECIDED.append(({1: "closed", 2: "closed"}, 0, ""))


def test_the_files_of_a_run_are_whole_whatever_becomes_of_its_words(tmp_path, run):
    """A closed stream must not lend its number to a file, and a lost line not end the work."""
    whole = {path.name: path.read_bytes() for path in [*run.glob("*.json"), *run.glob("*.html")]}
    for streams, code, line in DECIDED:
        for name in ("verdicts.json", "report.html"):
            (run / name).unlink()
        job = launcher.Job(
            tmp_path, f"--workdir={run}", module="experiments.decide", streams=streams
        )
        assert_ended(job.wait(), code, line)
        for name in ("verdicts.json", "config.json"):
            assert (run / name).read_bytes() == whole[name], streams
        assert (run / "report.html").read_bytes().endswith(b"</html>\n"), streams


LIMITS = [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")]


@pytest.mark.parametrize(("name", "words"), LIMITS)
def test_a_limit_that_leaves_no_room_is_said_at_once(tmp_path, name, words):
    """XLA would crash, or wait for ever and hear no signal."""
    for command in ("reproduce", "compare"):
        (tmp_path / command).mkdir()
        job = launcher.Job(
            tmp_path / command,
            "--help",
            module=f"experiments.{command}",
            limits={name: start.LEAST_BYTES[name]},
        )
        assert_ended(job.wait(), start.MISTAKE, f"error: `{words}` leaves ")


WRITES = """
import resource, sys
import numpy as np
from halfway import storage

resource.setrlimit(resource.RLIMIT_FSIZE, (20_480, resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
tree = {f"w{index}": rng.normal(size=(40, 40)) for index in range(80)}
try:
    storage.save_tree("tree", tree, {}, name="facts.json")
except OSError as error:
    print(error.strerror)
"""


def test_a_file_that_may_not_grow_is_one_error_and_no_page_of_threads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("File too large\n", "", 0)
    assert not [*tmp_path.iterdir()]


# Asked to end while it imports


@pytest.mark.parametrize("number", start.SIGNALS)
@pytest.mark.parametrize(
    "program",
    [["halfway.lab.commands", "compare", "a", "b"], ["experiments.compare", "a", "b"]],
    ids=["console", "module"],
)
def test_a_command_that_imports_ends_at_once_and_without_a_traceback(tmp_path, program, number):
    command = [
        sys.executable,
        "-c",
        "import runpy, sys\n"
        f"sys.argv = {program}; runpy.run_module({program[0]!r}, run_name='__main__')",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    ) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "numpy" not in maps.read_text():
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=600)
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert process.returncode == processes.CODES[number], err
    assert err.decode() == f"{how} before it began\n"


def test_what_a_process_was_started_to_ignore_stays_ignored():
    """As `nohup` has it for SIGHUP, and a shell for SIGINT in the background."""
    code = (
        "import signal, sys\n"
        "for n in (signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
        "from halfway.lab.runtime import start\n"
        "start.begin()\n"
        "from halfway.lab.runtime import processes\n"
        "processes.listen()\n"
        "for n in (signal.SIGHUP, signal.SIGINT): signal.raise_signal(n)\n"
        "print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("alive\n", 0), done


# A sweep that is killed

PARENT = """
import os, subprocess, sys
from halfway.lab.runtime import start
child = "from halfway.lab.runtime import start; start.begin(); input(); print('alive', flush=True)"
subprocess.run([sys.executable, "-c", child], env=os.environ | {start.ENDS_WITH: SAID})
"""


@pytest.mark.quick
@pytest.mark.parametrize("said", ["str(os.getpid())", "'1'"])
def test_a_setting_ends_with_the_sweep_that_is_killed(said):
    """It would hold its run; without the variable it lives on, and answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("SAID", said)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (number := children.read_text().strip()):
        time.sleep(0.002)
    status = Path(f"/proc/{number}/status")
    while not re.search(r"SigCgt:\t\S*4\d\d\d\n", status.read_text()):  # it listens to SIGTERM
        time.sleep(0.002)
    process.kill()
    process.wait()
    out, _ = process.communicate("\n")
    assert out == ("" if "getpid" in said else "alive\n")
