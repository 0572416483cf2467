"""Several processes of one run: how they start, what they share, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway.lab.config.user import UserError
from halfway.lab.runtime import processes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What this process is doing is put back, and so is its answer to SIGTERM."""
    monkeypatch.setattr(processes, "_state", processes._State())
    before = {number: signal.getsignal(number) for number in processes.CODES}
    yield
    for number, answer in before.items():
        signal.signal(number, answer)


# The start


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("h:1", 2, None), "belong together"),
        (("h:1", None, 0), "belong together"),
        ((None, 2, 0), "belong together"),
        ((None, None, 0), "belong together"),
        (("h", 2, 0), r"--coordinator must be HOST:PORT, got 'h'"),
        (("h:x", 2, 0), r"--coordinator must be HOST:PORT, got 'h:x'"),
        (("h:1", 2, 2), r"--process_id must lie in \[0, 1\], got 2"),
    ],
)
def test_flags_that_do_not_go_together_are_named(monkeypatch, arguments, words):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("not called"))
    with pytest.raises(UserError, match=words):
        processes.start(*arguments)


@pytest.mark.quick
def test_flags_are_handed_on_and_without_them_the_cluster_decides(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    processes.start("host:1234", 3, 2)
    processes.start(None, None, None)
    assert (
        calls[0].items()
        >= {
            "coordinator_address": "host:1234",
            "num_processes": 3,
            "process_id": 2,
        }.items()
    )
    assert all(options["heartbeat_timeout_seconds"] < 60 for options in calls)
    assert not {"coordinator_address", "num_processes", "process_id"} & set(calls[1])


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_processes_that_do_not_find_each_other_are_a_user_error_of_one_line(monkeypatch, kind):
    def fail(**_):
        raise kind("no\n  answer " + 400 * "x")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match="do not connect: no answer x") as caught:
        processes.start("host:1", 2, 1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(UserError, match="no cluster found"):
        processes.start(None, None, None)


# What is shared


@pytest.mark.quick
def test_one_process_just_calls():
    assert processes.is_first()
    value = object()
    assert processes.shared(lambda: value) is value
    with pytest.raises(KeyError):
        processes.shared(lambda: {}["x"])

    class Of:
        @processes.collective
        def twice(self, x, *, plus=0):
            """Doc."""
            return 2 * x + plus

    assert Of().twice(2, plus=1) == 5
    assert Of.twice.__doc__ == "Doc."


@pytest.mark.quick
def test_the_first_of_two_calls_and_tells_and_the_second_only_hears(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    told = []
    monkeypatch.setattr(processes, "_broadcast", lambda payload: told.append(payload) or payload)

    def outer():
        # What the first does by itself has parts that are shared elsewhere: no word of these.
        return {"x": processes.shared(lambda: jnp.arange(3)), "y": "text", "z": None}

    first = processes.shared(outer)
    assert len(told) == 1
    np.testing.assert_array_equal(first["x"], [0, 1, 2])
    with pytest.raises(KeyError):
        processes.shared(lambda: {}["gone"])
    assert len(told) == 2 and not processes._state.alone

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    said = iter(told)
    monkeypatch.setattr(processes, "_broadcast", lambda payload: next(said))
    second = processes.shared(lambda: pytest.fail("only the first calls"))
    assert isinstance(second["x"], np.ndarray) and second["x"].tolist() == [0, 1, 2]
    assert (second["y"], second["z"]) == ("text", None)
    with pytest.raises(UserError, match="gone"):
        processes.shared(lambda: pytest.fail("only the first calls"))


# The end


@pytest.mark.quick
def test_sigterm_ends_at_once_or_after_the_piece():
    processes.listen()
    assert not processes.is_ending()
    with processes.in_pieces():
        os.kill(os.getpid(), signal.SIGTERM)
        assert processes.is_ending()  # and goes on
    assert processes.is_ending()
    with pytest.raises(processes.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), processes.in_pieces():
        _ = 1 / 0
    with pytest.raises(processes.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


def test_another_process_is_lost_only_where_there_are_several(monkeypatch):
    words = [
        "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:55213",
        "UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:29597: Connection reset by peer",
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)",
        "INTERNAL: NCCL operation ncclAllReduce failed",
    ]
    assert not any(processes.lost(ValueError(text)) for text in words)
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert all(processes.lost(ValueError(text)) for text in words)
    for text in ("RESOURCE_EXHAUSTED: Out of memory", "shapes do not match", ""):
        assert not processes.lost(ValueError(text))


def test_one_process_is_not_abandoned():
    assert processes.abandon(2) is None


@pytest.mark.quick
def test_one_of_several_ends_at_once_after_it_has_spoken(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    calls = []
    monkeypatch.setattr(processes.time, "sleep", calls.append)
    monkeypatch.setattr(os, "_exit", lambda code: calls.append(f"ends with {code}"))
    processes.abandon(2)
    processes.leave()
    assert calls == [1.0, "ends with 2", f"ends with {processes.EXIT_LOST}"]


# Two processes

SCRIPT = """
import json, os, signal, sys, time
import numpy as np
from halfway.lab.runtime import processes
from halfway.lab.config.user import LOG, UserError

index, port, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
processes.start(f"127.0.0.1:{port}", 2, index)
processes.listen()
calls = []

def told(value):
    calls.append(value)
    return value

class Of:
    @processes.collective
    def inner(self):
        return told("inner")

    @processes.collective
    def outer(self):
        return [self.inner(), np.arange(70_000)]

found = {"first": processes.is_first(), "small": processes.shared(lambda: told(index))}
inner, large = Of().outer()
found |= {"inner": inner, "large": int(large.sum()), "empty": processes.shared(lambda: None)}

def fail():
    raise KeyError("gone")

try:
    processes.shared(fail)
except Exception as error:
    found["raised"] = [type(error).__name__, "gone" in str(error)]
found |= {"ending": processes.is_ending(), "calls": calls}
if index == 0:
    os.kill(os.getpid(), signal.SIGTERM)  # both end, after the same piece
while not processes.is_ending():
    time.sleep(0.01)
found["moment"] = processes._state.moment
print("\\n" + json.dumps(found), flush=True)
if index == 1 and how == "stops":  # no connection breaks, as where a machine is down
    os.kill(os.getpid(), signal.SIGSTOP)
if index == 1:
    os._exit(9) if how == "dies" else processes.abandon(2)
try:
    while True:
        processes.shared(lambda: None)
except Exception as error:
    if not processes.lost(error):
        raise
    processes.leave()
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("dies", 9),
        pytest.param("abandons", 2, marks=pytest.mark.slow),
        pytest.param("stops", -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_two_processes_share_and_notice_when_one_is_gone(tmp_path, how, code):
    (tmp_path / "two.py").write_text(SCRIPT)
    port = str(free_port())
    both = [
        subprocess.Popen(
            [sys.executable, "two.py", str(index), port, how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for index in range(2)
    ]
    if how == "stops":
        out, err = both[0].communicate(timeout=300)
        both[1].kill()
        other, _ = both[1].communicate()
        assert both[0].returncode in (processes.EXIT_LOST, -signal.SIGABRT), err
        assert "another process of this run ended" in err or "heartbeat" in err, err
        return
    (out, err), (other, _) = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [processes.EXIT_LOST, code], err
    assert "error: another process of this run ended" in err and "Traceback" not in err
    first, second = (json.loads(text.splitlines()[-1]) for text in (out, other))
    assert first.pop("first") and not second.pop("first")
    assert (first.pop("calls"), second.pop("calls")) == ([0, "inner"], [])
    assert (first.pop("raised"), second.pop("raised")) == (["KeyError", True], ["UserError", True])
    assert first == second
    assert first.pop("moment") > 1
    assert first == {
        "small": 0,
        "inner": "inner",
        "large": sum(range(70_000)),
        "empty": None,
        "ending": False,
    }


BUSY = """
import sys, time
import jax, jax.numpy as jnp
from halfway.lab.entry import launch
from halfway.lab.runtime import processes

def wait(x):
    print("ready", flush=True)
    time.sleep(3600)
    return x

def program():  # that never ends
    print("ready", flush=True)
    return jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, jnp.cos, x))(1.0)

def callback():
    return jax.jit(lambda x: jax.pure_callback(wait, x, x))(1.0)

processes.watch(lambda number: launch._say_ended(number, lambda: True))
processes.listen()
launch.guard(lambda: jax.block_until_ready(WHICH()))
"""


ENDS = [
    ([signal.SIGTERM], 143, "terminated"),
    ([signal.SIGHUP], 129, "terminated"),
    ([signal.SIGINT], 130, "interrupted"),
    ([signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM], 143, "terminated"),
    ([signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT], 143, "terminated"),
]


@pytest.mark.parametrize(
    ("which", "numbers", "code", "how"),
    [
        *[("program", *end) for end in ENDS[:4]],
        pytest.param("program", *ENDS[4], marks=pytest.mark.slow),
        *[("callback", *end) for end in (ENDS[0], ENDS[2])],
    ],
)
def test_a_process_ends_in_the_middle_of_a_program(which, numbers, code, how):
    """Python hears of a signal when the program is done; one in a callback is no error of it."""
    command = [sys.executable, "-c", BUSY.replace("WHICH", which)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(1)  # of the program the first step is compiled
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        _, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    assert err.decode().splitlines()[-1] == f"{how}: the same command goes on from here"
