"""One run on any devices and processes, killed at any moment, on a disk that fills: same numbers.

One launch of two processes and one kill are tested with every change, their many kinds by night.
What is compared with an undisturbed run is equal bit by bit on the same devices; on others, effects
within 2e-3.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from support import commands, launcher
from support.run_folder import assert_same, read

from halfway.lab.runtime import processes

pytestmark = pytest.mark.usefixtures("without_pages")  # in this process
SMALL = (f"{launcher.SMALL}:g1", *launcher.FOLDERS)
# A piece of training, and so a chance of a checkpoint, every two steps; the same programs.
SMALL_PIECES = (
    *SMALL,
    f"--config.training.probe_steps={(*range(0, 21, 2),)}".replace(" ", ""),
    "--checkpoint_every=0",
)
TINY = ("--config=configs/digits.py:tiny", *launcher.FOLDERS)
# A piece of training, and so a chance of a checkpoint, every ten steps; the same programs.
PIECES = (
    *TINY,
    f"--config.training.probe_steps={(*range(0, 101, 10),)}".replace(" ", ""),
    "--checkpoint_every=0",
)
# With attacks.
ATTACKED = (*PIECES, "--only=G1,T1", "--config.noise_rates=(0.0,0.4,1.0)")
# As in conftest.py, but for the number of devices.
LEVEL = re.sub(r"\S*device_count=\d+", "", os.environ["XLA_FLAGS"]).strip()


def devices(number):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={number} {LEVEL}"}


def assert_close(first, second):
    """The same records but for the last bits, the same verdicts, and effects within 2e-3."""
    a, b = (read(folder, "records.parquet") for folder in (first, second))
    pd.testing.assert_frame_equal(a.drop(columns="value"), b.drop(columns="value"))
    assert np.isclose(a["value"], b["value"], rtol=1e-2, atol=1e-2).mean() > 0.99
    for v, w in zip(read(first, "verdicts.json"), read(second, "verdicts.json"), strict=True):
        assert (v["id"], v["verdict"], v["num_pairs"]) == (w["id"], w["verdict"], w["num_pairs"])
        assert v["effect"] == pytest.approx(w["effect"], abs=2e-3)
        assert v["interval"] == pytest.approx(w["interval"], abs=5e-3)


def assert_nothing_is_left(work):
    assert not [str(path) for path in work.rglob("*") if "partial" in path.name]
    assert not [*work.glob("checkpoints/*")]


def stored(work):
    """Keys of the populations that are stored."""
    paths = work.glob("populations/*/condition.json")
    return {path.parent.name for path in paths if path.parent.suffix != ".partial"}


def reached(work):
    """How many populations are stored, and the last step that is kept of the next one's training.

    That is 0 where nothing is kept.
    """
    keys = stored(work)
    steps = [
        int(path.name)
        for path in work.glob("checkpoints/*/*")
        if path.name.isdecimal() and path.parent.name not in keys
    ]
    return len(keys), max(steps, default=0)


def start_two(folder, work, *arguments):
    """Two processes of one run, of one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = []
    for index in range(2):
        (folder / f"{index}").mkdir(parents=True)
        flags = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
        flags += (f"--process_id={index}", f"--workdir={work}", *arguments)
        flags += ("--mesh=member:2",)
        jobs.append(launcher.Job(folder / f"{index}", *flags, env={"XLA_FLAGS": LEVEL}))
    return jobs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(*arguments)` is the folder of a run that nobody disturbed, made once."""
    made = {}

    def run(*arguments):
        if arguments not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            result = commands.call(folder, "reproduce", *arguments, "--workdir=run")
            assert result.code == 0, result.err
            made[arguments] = folder / "run"
        return made[arguments]

    return run


# From a shell


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("reproduce", ["--onyl=G1"], "did you mean --only"),
        ("decide", [], "--workdir is needed"),
    ],
)
def test_a_mistake_in_a_shell_is_one_line_and_exit_code_2(tmp_path, command, arguments, words):
    (tmp_path / "cwd").mkdir()
    module = f"experiments.{command}"
    result = launcher.run(tmp_path, *arguments, cwd=tmp_path / "cwd", module=module)
    assert words in result.complaint
    assert not any((tmp_path / "cwd").iterdir())


# On other devices and processes


def assert_layout(work, layout):
    size = int(np.prod([int(n) for n in re.findall(r"\d+", layout)]))
    assert read(work, "config.json")["num_devices"] == size
    assert read(work, "run.json")["environment"]["layout"] == f"mesh {layout}"


@pytest.mark.parametrize(
    ("mesh", "layout"), [("member:1", "member:1,data:1"), ("data:2", "member:1,data:2")]
)
def test_the_same_on_another_mesh(undisturbed, tmp_path, mesh, layout):
    result = commands.call(tmp_path, "reproduce", *SMALL, "--workdir=run", f"--mesh={mesh}")
    assert result.code == 0, result.err
    assert_layout(tmp_path / "run", layout)
    assert_close(tmp_path / "run", undisturbed(*SMALL))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "mesh", "layout"),
    [
        (8, None, "member:4,data:2"),  # four pairs
        (4, "member:2,data:2", "member:2,data:2"),
    ],
)
def test_the_same_on_other_devices(undisturbed, tmp_path, number, mesh, layout):
    arguments = [] if mesh is None else [f"--mesh={mesh}"]
    result = launcher.run(tmp_path, *TINY, "--workdir=run", *arguments, env=devices(number))
    assert result.code == 0, result.err
    assert_layout(tmp_path / "run", layout)
    assert_close(tmp_path / "run", undisturbed(*TINY))


def test_the_same_in_two_processes(undisturbed, tmp_path):
    work = tmp_path / "run"
    first, second = (job.wait() for job in start_two(tmp_path, work, *SMALL))
    assert first.code == 0 and second.code == 0, (first.err, second.err)
    assert "4/4 done" in first.err and "G1" in first.out and "report.html" in first.out
    # The first alone talks. Gloo says on both that it is there.
    assert second.err == "" and "G1" not in second.out
    assert read(work, "config.json")["num_devices"] == 2
    layout = read(work, "run.json")["environment"]["layout"]
    assert layout == "mesh member:2,data:1, 2 processes"
    assert_close(work, undisturbed(*SMALL))
    assert_nothing_is_left(work)


# Killed


def test_killed_in_training_and_taken_up_again(undisturbed, tmp_path):
    work = tmp_path / "run"
    job = launcher.Job(tmp_path, *SMALL_PIECES, "--workdir=run")
    assert job.signal_once(lambda: reached(work) >= (0, 4), signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    _, step = reached(work)
    result = commands.call(tmp_path, "reproduce", *SMALL_PIECES, "--workdir=run")
    assert result.code == 0, result.err
    assert f"goes on from step {step} of 20" in result.err
    assert_same(work, undisturbed(*SMALL_PIECES))
    assert_nothing_is_left(work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated_in_training_and_taken_up_on_another_number_of_devices(
    undisturbed, tmp_path, monkeypatch, number
):
    work = tmp_path / "run"
    is_ending, num_calls = processes.is_ending, 0

    def terminated():
        """This process is told to end while the third piece is trained."""
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:  # the first asks before training
            os.kill(os.getpid(), number)
        return is_ending()

    with monkeypatch.context() as patch:
        patch.setattr(processes, "is_ending", terminated)
        result = commands.call(tmp_path, "reproduce", *SMALL_PIECES, "--workdir=run")
    assert result.code == processes.CODES[number], result
    assert result.err.endswith("terminated: the same command goes on from here\n")
    assert "Traceback" not in result.err
    assert reached(work) == (0, 6)
    result = commands.call(tmp_path, "reproduce", *SMALL_PIECES, "--workdir=run", "--mesh=member:1")
    assert result.code == 0, result.err
    assert "goes on from step 6 of 20" in result.err
    assert "begun on 2 devices and goes on on 1" in result.err
    assert read(work, "config.json")["num_devices"] == 2
    assert_close(work, undisturbed(*SMALL_PIECES))
    assert_nothing_is_left(work)


@pytest.mark.slow
def test_killed_at_every_stage_and_taken_up_again(undisturbed, tmp_path):
    work = tmp_path / "run"
    told = [tmp_path / str(i) for i in range(11)]
    dice = random.Random(0)

    def late(condition, seconds):
        """The condition held, and up to so many seconds have passed."""

        def check():
            if not condition():
                return False
            time.sleep(dice.uniform(0, seconds))
            return True

        return check

    def resumed(index):
        # Not while it still imports: Python itself would answer then.
        return "resumed" in (told[index] / "err").read_text()

    def measured(name):
        return len([*work.glob(f"measurements/{name}-*.npz")])

    moments = [
        (lambda: (work / "config.json").exists(), signal.SIGKILL),
        (lambda: any(work.glob("checkpoints/*/*.partial")), signal.SIGKILL),
        (late(lambda: reached(work) >= (0, 20), 0.2), signal.SIGKILL),
        (lambda: resumed(3) and reached(work) >= (0, 60), signal.SIGTERM),
        (lambda: any(work.glob("populations/*.partial")), signal.SIGKILL),
        (lambda: stored(work) and resumed(5), signal.SIGINT),
        (late(lambda: len(stored(work)) >= 2, 0.5), signal.SIGKILL),
        (late(lambda: measured("learning") == 4, 0.5), signal.SIGKILL),
        (late(lambda: measured("transfer") >= 1, 0.5), signal.SIGKILL),
        (lambda: (work / "records.parquet").exists(), signal.SIGKILL),
        (lambda: any(work.glob("figures/*")), signal.SIGKILL),
    ]
    num_taken_up = 0
    for output, (condition, number) in zip(told, moments, strict=True):
        output.mkdir()
        (output / "err").touch()
        num_stored, step = reached(work)
        job = launcher.Job(output, *ATTACKED, f"--workdir={work}")
        assert job.signal_once(condition, number)
        result = job.wait()
        if number == signal.SIGINT:
            assert result.code == 130
            assert result.err.endswith("interrupted: the same command goes on from here\n")
            assert "Traceback" not in result.err
        elif number == signal.SIGTERM:
            assert result.code == 143
            assert result.err.endswith("terminated: the same command goes on from here\n")
        else:
            assert result.code == -number
        if "resumed" in result.err:  # it may be killed before it says so
            assert f"resumed {num_stored} of 4 populations" in result.err
        if "goes on from step" in result.err:
            assert f"goes on from step {step} of 100" in result.err
            num_taken_up += 1
    assert num_taken_up >= 2
    populations = {path: path.stat().st_mtime_ns for path in work.glob("populations/*")}
    result = launcher.run(tmp_path, *ATTACKED, "--workdir=run")
    assert result.code == 0, result.err
    assert "resumed 4 of 4 populations\n" in result.err and "train" not in result.err
    assert populations == {path: path.stat().st_mtime_ns for path in work.glob("populations/*")}
    assert_same(work, undisturbed(*ATTACKED))
    assert_nothing_is_left(work)


LOST = "another process of this run ended"


def assert_noticed(result):
    """It ended because the other one did: it says so, or JAX does where that notices first."""
    assert result.code in (3, -signal.SIGABRT), result.err
    assert f"error: {LOST}" in result.err or "distributed service" in result.err, result.err


@pytest.mark.slow
def test_two_processes_end_together_and_one_takes_up_their_run(undisturbed, tmp_path):
    work = tmp_path / "run"

    def disturbed(name, *signals):
        """Sends each process its signal, if any, in training, once it is further than before."""
        before = reached(work)
        both = start_two(tmp_path / name, work, *PIECES)
        assert both[0].signal_once(lambda: reached(work) > before and reached(work)[1], 0)
        for job, number in zip(both, signals, strict=True):
            job.signal_once(lambda: True, number)
        first, second = (job.wait() for job in both)
        assert reached(work)[1], (first, second)
        if before[1]:
            assert f"goes on from step {before[1]} of 100" in first.err
        return first, second

    first, second = disturbed("asked", signal.SIGTERM, signal.SIGTERM)
    assert (first.code, second.code) == (143, 143), (first.err, second.err)
    assert "terminated: the same command goes on from here" in first.err
    assert "Traceback" not in first.err + second.err and LOST not in first.err + second.err

    first, second = disturbed("killed", 0, signal.SIGKILL)
    assert second.code == -signal.SIGKILL
    assert_noticed(first)

    _, step = reached(work)
    result = launcher.run(tmp_path, *PIECES, "--workdir=run")
    assert result.code == 0, result.err
    assert f"goes on from step {step} of 100" in result.err
    assert_close(work, undisturbed(*PIECES))
    assert_nothing_is_left(work)


@pytest.mark.slow
def test_two_processes_of_which_one_is_interrupted(tmp_path):
    work = tmp_path / "run"
    first, second = start_two(tmp_path, work, *PIECES)
    assert first.signal_once(lambda: reached(work)[1], 0)
    second.signal_once(lambda: True, signal.SIGINT)
    first, second = first.wait(), second.wait()
    assert second.code == 130 and "interrupted" in second.err
    assert_noticed(first)
    assert reached(work)[1]


# A disk that fills


@contextlib.contextmanager
def disk(folder, size):
    """Mounts a file system of a size; `change(options)` of it mounts it anew."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = mount(f"size={size}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield lambda options: mount(f"remount,{options}").check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_or_read_only_and_then_is_not(undisturbed, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    work = folder / "run"
    arguments = (*SMALL_PIECES, f"--workdir={work}")
    with disk(folder, "400k") as change:

        def complaint():
            result = commands.call(tmp_path, "reproduce", *arguments)
            lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
            assert result.code == 2 and len(lines) == 1, result
            assert "Traceback" not in result.err
            assert f"--workdir={work} cannot be written" in lines[0]
            return lines[0]

        assert "(No space left on device): free some space" in complaint()
        _, step = reached(work)  # one checkpoint has room
        assert step >= 2
        change("ro")
        assert "(Read-only file system): choose another" in complaint()
        change("rw,size=64m")
        result = commands.call(tmp_path, "reproduce", *arguments)
        assert result.code == 0, result.err
        assert f"goes on from step {step} of 20" in result.err
        assert_same(work, undisturbed(*SMALL_PIECES))
        assert_nothing_is_left(work)
