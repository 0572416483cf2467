"""A line at once, then one every ten seconds at most, and none that matters is lost."""

import io
import itertools
import logging
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from jax._src import monitoring

from halfway.lab.config.user import LOG
from halfway.lab.runtime import progress

pytestmark = pytest.mark.quick


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(monkeypatch):
    """What is logged, where stderr is no terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    monkeypatch.setattr(LOG, "propagate", False)
    monkeypatch.setattr(LOG, "level", logging.INFO)
    monkeypatch.setattr(LOG, "handlers", [handler])
    monkeypatch.setattr(LOG, "_cache", {})
    return messages


def test_the_first_line_comes_at_once_the_next_after_ten_seconds_and_the_last_at_the_end(
    lines, clock
):
    seconds = {"training": 1.0}
    with progress.ProgressBar(4, clock=clock) as shown:
        for name, taken in (("a", 4.0), ("b", 7.0), ("c", 80.0), ("d", 0.5)):
            with shown.stage(f"train {name}", "training", seconds):
                clock.now += taken
    assert lines == [
        "1/4 train a, 0 s",
        "3/4 train c, 11 s",
        "4/4 train d, 1 min 31 s",
        "4/4 done in 1 min 32 s",
    ]
    assert seconds == {"training": 1.0 + 91.5}


def test_lines_of_a_long_stage_say_its_step(lines, clock):
    with progress.ProgressBar(2, clock=clock) as shown:
        with shown.stage("train cnn", "training", {}):
            for done in range(100, 1100, 100):
                clock.now += 3.0
                shown.within(done, 1000)
        with shown.stage("learning cnn", "learning", {}):
            clock.now += 20.0
            shown.within(1, 2)
    assert lines == [
        "1/2 train cnn, 0 s",
        "1/2 train cnn, step 400 of 1000, 12 s",
        "1/2 train cnn, step 800 of 1000, 24 s",
        "2/2 learning cnn, step 1 of 2, 50 s",
        "2/2 done in 50 s",
    ]


def test_never_two_lines_within_ten_seconds_but_the_last(lines, clock):
    moments = []
    LOG.handlers[0].emit = lambda record: moments.append(clock.now)
    with progress.ProgressBar(500, clock=clock) as shown:
        for _ in range(500):
            with shown.stage("train", "training", {}):
                clock.now += 0.7
                shown.within(1, 2)
    gaps = [b - a for a, b in itertools.pairwise(moments[:-1])]
    assert min(gaps) >= progress.LINE_SECONDS and max(gaps) < progress.LINE_SECONDS + 1


@pytest.fixture
def timers(monkeypatch):
    """Timers that wait until the test fires them, in the order in which they were set."""
    timers, current = [], []

    class Timer:
        def __init__(self, wait, fn):
            self.wait, self.fn = wait, fn
            timers.append(self)

        def fire(self):
            current.append(self)
            self.fn()

        def start(self):
            pass

        def cancel(self):
            pass

    threads = types.SimpleNamespace(
        Timer=Timer, RLock=threading.RLock, current_thread=lambda: current[-1]
    )
    monkeypatch.setattr(progress, "threading", threads)
    return timers


def test_what_is_held_back_comes_while_a_stage_runs(lines, clock, timers):
    with progress.ProgressBar(3, clock=clock) as shown:
        for name in ("a", "b"):
            with shown.stage(name, "g", {}):
                clock.now += 1.0
        with shown.stage("c", "g", {}):
            assert lines == ["1/3 a, 0 s"]
            timer = timers[-1]
            assert timer.wait == progress.LINE_SECONDS - 1  # from the first line on
            clock.now += timer.wait
            timer.fire()
            assert lines[1:] == ["3/3 c, 11 s"]  # the newest, not b
            timer.fire()
            assert len(lines) == 2  # once
    assert lines[2:] == ["3/3 done in 11 s"]


def test_a_stage_without_steps_is_seen_to_be_alive(lines, clock, timers):
    with progress.ProgressBar(1, clock=clock) as shown, shown.stage("boundaries", "g", {}):
        for _ in range(2):
            assert timers[-1].wait == progress.BEAT_SECONDS
            clock.now += progress.BEAT_SECONDS
            timers[-1].fire()
    assert lines[:-1] == [f"1/1 boundaries, {passed}" for passed in ("0 s", "1 min", "2 min")]


def test_a_new_program_is_said_to_compile_until_its_first_step_and_the_loss_after_it(lines, clock):
    with (
        progress.ProgressBar(1, clock=clock) as shown,
        shown.stage("train mlp", "training", {}, compiles=True),
    ):
        clock.now += 12.0
        shown.within(100, 700, None)
        clock.now += 12.0
        shown.within(200, 700, 0.34567)
    assert lines == [
        "1/1 train mlp, compiling, 0 s",
        "1/1 train mlp, step 100 of 700, 12 s",
        "1/1 train mlp, step 200 of 700, loss 0.346, 24 s",
        "1/1 done in 24 s",
    ]


def test_the_time_left_is_that_of_stages_of_the_same_group(lines, clock):
    groups = ["training", "training", "transfer", "transfer"]
    with progress.ProgressBar(4, groups=groups, clock=clock) as shown:
        for group, taken in zip(groups, (20.0, 40.0, 100.0, 60.0), strict=True):
            with shown.stage(group, group, {}):
                clock.now += taken / 2
                shown.within(1, 2)
                clock.now += taken / 2
    assert lines == [
        "1/4 training, 0 s",
        "1/4 training, step 1 of 2, 10 s",
        "2/4 training, 20 s, about 1 min left",  # of each of three what the first one took
        "2/4 training, step 1 of 2, 40 s, about 40 s left",
        "3/4 transfer, 1 min, about 1 min left",  # of two a mean training
        "3/4 transfer, step 1 of 2, 1 min 50 s, about 10 s left",
        "4/4 transfer, 2 min 40 s, about 1 min 40 s left",  # what the other transfer took
        "4/4 transfer, step 1 of 2, 3 min 10 s, about 1 min 10 s left",
        "4/4 done in 3 min 40 s",
    ]


def test_a_line_that_is_held_back_comes_by_itself(lines, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress.ProgressBar(1) as shown, shown.stage("a", "g", {}):
        shown.within(1, 2)
        deadline = time.monotonic() + 60
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines[1].startswith("1/1 a, step 1 of 2, ")


def test_nothing_is_shown_of_nothing_and_nothing_left_behind(lines, clock):
    before = set(threading.enumerate())
    with progress.ProgressBar(0, clock=clock):
        pass
    assert lines == []
    with progress.ProgressBar(2, clock=clock) as shown:
        for _ in range(2):
            with shown.stage("a", "g", {}):
                pass
        assert len(set(threading.enumerate()) - before) >= 1
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_an_error_is_no_end_and_its_time_counts(lines, clock):
    seconds = {}
    with (
        pytest.raises(KeyError),
        progress.ProgressBar(2, clock=clock) as shown,
        shown.stage("a", "g", seconds),
    ):
        clock.now += 5.0
        raise KeyError
    assert lines == ["1/2 a, 0 s"] and seconds == {"g": 5.0}


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_silent(lines, clock, monkeypatch, terminal):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    seconds = {}
    with progress.ProgressBar(1, clock=clock) as shown, shown.stage("a", "g", seconds):
        clock.now += 20.0
        shown.within(1, 2)
    assert lines == [] and stream.getvalue() == "" and seconds == {"g": 20.0}


def test_a_terminal_has_a_bar_and_no_lines(lines, clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.ProgressBar(2, clock=clock) as shown:
        with shown.stage("train mlp", "training", {}):
            shown.within(100, 700)
        text = stream.getvalue()
        assert "train mlp" in text and "/2 [" in text and "step 100 of 700" in text
        start = len(text)
        with shown.stage("learning", "learning", {}):
            pass
        assert "1/2" in stream.getvalue()[start:]
        assert "step 100" not in stream.getvalue()[start:]
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (3659, "1 h"),
        (7500, "2 h 5 min"),
        (86400 + 3600 * 4 + 120, "1 d 4 h"),
    ],
)
def test_a_duration_in_words(seconds, words):
    assert progress.duration(seconds) == words


# Never a long silence


@pytest.fixture
def watchdog(lines, clock):
    """A watchdog that looks when the test says so, and hears the lines that are written."""
    watchdog = progress.Watchdog(clock)
    LOG.handlers.append(watchdog)
    return watchdog


def pass_time(watchdog, clock, seconds):
    """Lets seconds pass, with a look after each; the times at which a line was written."""
    moments = []
    write = LOG.handlers[0].emit

    def note(record):
        moments.append(clock.now)
        write(record)

    LOG.handlers[0].emit = note
    for _ in range(seconds):
        clock.now += watchdog.LOOK_SECONDS
        watchdog.look()
    LOG.handlers[0].emit = write
    return moments


def test_no_silence_is_longer_than_a_minute_and_the_line_says_what_is_done(lines, clock, watchdog):
    begun = clock.now
    with watchdog.doing("reading data set mnist"):
        moments = pass_time(watchdog, clock, 200)
    assert max(np.diff([begun, *moments, clock.now])) < progress.BEAT_SECONDS
    assert len(lines) == 3 and all(line.startswith("reading data set mnist, ") for line in lines)
    clock.now += 60.0
    watchdog.look()
    assert lines[-1] == "at work, 4 min 20 s"


def test_silence_begins_with_the_command_and_not_with_its_imports(
    lines, clock, watchdog, monkeypatch
):
    heard = []
    monkeypatch.setattr(jax.monitoring, "register_event_listener", heard.append)
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", heard.append)
    monkeypatch.setattr(progress.threading.Thread, "start", lambda thread: None)
    clock.now += 300
    watchdog.start()
    assert pass_time(watchdog, clock, 50) == [] and len(heard) == 2
    pass_time(watchdog, clock, 10)
    assert lines == ["at work, 58 s"]


def test_the_innermost_activity_is_named_and_one_may_change_its_words(lines, clock, watchdog):
    words = iter(["first", "second"])
    with watchdog.doing("outer", aloud=True), watchdog.doing(lambda: next(words)):
        pass_time(watchdog, clock, 120)
    pass_time(watchdog, clock, 1)
    assert [line.split(",")[0] for line in lines] == ["outer", "first", "second"]


def test_lines_of_others_break_a_silence_and_a_progress_bar_speaks_for_itself(
    lines, clock, watchdog, monkeypatch
):
    for _ in range(10):
        pass_time(watchdog, clock, 50)
        LOG.info("a step is done")
    assert set(lines) == {"a step is done"}
    monkeypatch.setattr(progress, "WATCHDOG", watchdog)
    with progress.ProgressBar(1, clock=clock), watchdog.doing("unheard"):
        pass_time(watchdog, clock, 300)
    assert not [line for line in lines if "unheard" in line]
    assert len(pass_time(watchdog, clock, 65)) == 1  # again, after it


def test_what_is_compiled_is_said(lines, clock, watchdog):
    """JAX tells of each program that it compiles, when it begins and when it is done."""
    states = []

    def hear(event, *rest, **facts):
        watchdog._hear(event, *rest, **facts)
        states.append(watchdog._is_compiling)

    jax.monitoring.register_event_listener(hear)
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        jax.jit(lambda x: x + 0.123)(1.0)
    finally:
        monitoring.unregister_event_listener(hear)
        monitoring.unregister_event_duration_listener(hear)
    assert True in states and not states[-1]
    watchdog._hear(progress._COMPILE_BEGINS)
    with watchdog.doing("pgd at 0.1"):
        pass_time(watchdog, clock, 60)
    assert lines == ["pgd at 0.1, compiling, 58 s"]
