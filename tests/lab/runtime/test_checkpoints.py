"""What is kept of a training: how often, how much, and what becomes of it when it is damaged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import linear_population, tiny_run
from support.linear_population import CONDITION

from halfway import populations, storage
from halfway.lab.runtime import checkpoints, processes
from halfway.lab.runtime.checkpoints import Keeper
from halfway.lab.runtime.runs import Identity, Run
from halfway.populations import Progress

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def pool():
    return linear_population.images()


@pytest.fixture
def heard(caplog, monkeypatch):
    """What a user reads."""
    monkeypatch.setattr(checkpoints.LOG, "propagate", True)
    caplog.set_level("INFO", checkpoints.LOG.name)
    return caplog


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def progress(step, value=0.0):
    state = populations.TrainState({"w": jnp.full((3, 2), value)}, (), jnp.full((3, 2), step))
    return Progress(step, populations.begin_walk(state), ())


def keeper(folder, **options):
    return Keeper(folder, CONDITION, **{"seconds_between": 0.0, **options})


def kept(folder):
    return sorted(path.name for path in (folder / CONDITION.id).glob("*"))


def damage(folder, step):
    """Cuts the arrays of a checkpoint short."""
    for path in (folder / CONDITION.id / f"{step:09d}" / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])


def steps_of(stored):
    return None if stored is None else int(stored["num_steps"])


def weights_of(stored):
    assert stored is not None
    return stored["walk"]["00000"]


# How often, how much


def test_it_is_kept_at_an_interval(tmp_path):
    clock, told = Clock(), []
    store = keeper(tmp_path, seconds_between=10.0, clock=clock, then=told.append)
    assert not store.exists and store.find() is None
    for step, passed in ((1, 0.0), (2, 9.9), (3, 0.2), (4, 9.0), (5, 0.9), (6, 0.1), (7, 100.0)):
        clock.now += passed
        store(progress(step))
    assert [p.num_steps for p in told] == [1, 2, 3, 4, 5, 6, 7]
    # After 10.1 s; not 9.9 s after that, but 10; then after 100.
    assert kept(tmp_path) == ["000000006", "000000007"]
    clock.now += 9.9
    store(progress(8))
    assert kept(tmp_path) == ["000000006", "000000007"]


def test_the_two_newest_are_kept_and_found_and_cleared(tmp_path):
    store = keeper(tmp_path)
    other = Keeper(tmp_path, dataclasses.replace(CONDITION, seed=1), seconds_between=0.0)
    other(progress(1))
    for step in (9, 10, 99, 100, 101):
        store(progress(step, step / 7))
        assert steps_of(store.find()) == step
    assert kept(tmp_path) == ["000000100", "000000101"]
    assert store.exists
    assert weights_of(store.find()).tolist() == np.full((3, 2), np.float32(step / 7)).tolist()
    store.clear()
    assert not store.exists and store.find() is None
    store.clear()  # nothing is there to be removed
    assert steps_of(other.find()) == 1


def test_what_was_being_written_does_not_count(tmp_path):
    store = keeper(tmp_path)
    for step in (3, 4):
        store(progress(step))
    folder = tmp_path / CONDITION.id
    (folder / "000000004").rename(folder / "000000004.partial")
    assert steps_of(store.find()) == 3


# Damaged, or of something else


@pytest.mark.quick
def test_where_the_newest_is_damaged_the_one_before_is_used(tmp_path, heard):
    store = keeper(tmp_path)
    for step in (3, 6):
        store(progress(step, step))
    damage(tmp_path, 6)
    stored = store.find()
    assert steps_of(stored) == 3
    np.testing.assert_array_equal(weights_of(stored), np.full((3, 2), 3, np.float32))
    (line,) = heard.messages
    assert "000000006 cannot be used" in line and "an older one is" in line
    assert kept(tmp_path) == ["000000003", "000000006"]  # nothing is removed by reading


def test_where_all_are_damaged_there_is_none(tmp_path, heard):
    store = keeper(tmp_path)
    for step in (3, 6):
        store(progress(step))
        damage(tmp_path, step)
    assert store.find() is None
    assert len(heard.messages) == 2 and "training begins anew" in heard.messages[1]


@pytest.mark.parametrize("name", ["checkpoint.json", "digest.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_file_of_it_that_is_missing_or_damaged_is_enough(tmp_path, heard, name, content):
    store = keeper(tmp_path)
    store(progress(3))
    path = tmp_path / CONDITION.id / "000000003" / name
    path.unlink() if content is None else path.write_text(content)
    assert store.find() is None
    assert "cannot be used" in heard.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "0.0.0"}, "it is of version 0.0.0"),
        ({"condition": dataclasses.replace(CONDITION, seed=1).to_json()}, "of another condition"),
        ({"condition": {"seed": 1}}, "TypeError"),
    ],
)
def test_what_is_of_another_version_or_condition_is_left_alone(tmp_path, heard, change, reason):
    store = keeper(tmp_path)
    folder = tmp_path / CONDITION.id / "000000003"
    facts = {"condition": CONDITION.to_json(), "version": checkpoints.SOFTWARE_VERSIONS} | change
    storage.save_tree(folder, progress(3).to_tree(), facts, name="checkpoint.json")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert store.find() is None
    assert reason in heard.text and "cannot be used" in heard.text
    store(progress(1))
    store(progress(2))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert steps_of(store.find()) == 2


def test_what_cannot_be_used_takes_no_place_from_what_can(tmp_path, heard):
    store = keeper(tmp_path)
    for step in (6, 9):
        store(progress(step))
        damage(tmp_path, step)
    for step in (1, 2, 3):  # anew
        store(progress(step))
        assert steps_of(store.find()) == step
    assert kept(tmp_path) == [f"{step:09d}" for step in (2, 3, 6, 9)]
    store(progress(6))
    heard.clear()
    assert steps_of(store.find()) == 6
    assert len(heard.messages) == 1  # of 9 alone: 6 is written again


def test_where_it_cannot_be_written_the_older_ones_stay(tmp_path, monkeypatch):
    store = keeper(tmp_path)
    store(progress(3))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", full)
        with pytest.raises(OSError, match="No space left"):
            store(progress(6))
    assert kept(tmp_path) == ["000000003"]
    assert steps_of(store.find()) == 3


# Asked to end


def test_when_asked_to_end_it_keeps_first(tmp_path, monkeypatch):
    store = keeper(tmp_path, seconds_between=1e9)
    store(progress(3))
    assert kept(tmp_path) == []
    monkeypatch.setattr(processes, "is_ending", lambda: True)
    with pytest.raises(processes.Terminated):
        store(progress(6))
    assert steps_of(store.find()) == 6


# Training


def assert_equal(population, other):
    for a, b in zip(jax.tree.leaves(population), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7])
def test_training_that_ended_at_a_piece_goes_on_as_if_nothing_had_been(
    pool, population, tmp_path, monkeypatch, heard, piece
):
    monkeypatch.setattr(
        "halfway.populations.population.PIECE", 2
    )  # pieces end at 2, 3, 5, 6, 8, 9, 11, 12
    asked = iter([*[False] * (piece - 1), True])
    with monkeypatch.context() as patched, pytest.raises(processes.Terminated):
        patched.setattr(processes, "is_ending", lambda: next(asked))
        checkpoints.train(CONDITION, pool, keeper(tmp_path, seconds_between=1e9))
    step = [2, 3, 5, 6, 8, 9, 11, 12][piece - 1]
    assert kept(tmp_path) == [f"{step:09d}"]
    told = []
    again = keeper(tmp_path, then=told.append)
    assert_equal(checkpoints.train(CONDITION, pool, again), population)
    assert f"goes on from step {step} of 12" in heard.text
    assert [p.num_steps for p in told] == [2, 3, 5, 6, 8, 9, 11, 12][piece:]


def test_training_goes_on_from_the_older_one_where_the_newest_is_damaged(
    pool, population, tmp_path, monkeypatch, heard
):
    def stop(progress):
        if progress.num_steps == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.train(CONDITION, pool, keeper(tmp_path, then=stop))
    assert kept(tmp_path) == ["000000003", "000000006"]
    damage(tmp_path, 6)
    assert_equal(checkpoints.train(CONDITION, pool, keeper(tmp_path)), population)
    assert "000000006 cannot be used" in heard.text
    assert "goes on from step 3 of 12" in heard.text


def test_training_begins_anew_where_nothing_can_be_used(pool, population, tmp_path, heard):
    keeper(tmp_path)(progress(6))  # of this condition, it says, but of other shapes
    damage(tmp_path, 6)
    assert_equal(checkpoints.train(CONDITION, pool, keeper(tmp_path)), population)
    assert "training begins anew" in heard.text and "goes on" not in heard.text


def test_training_with_a_kept_end_takes_no_step(pool, population, tmp_path):
    store = keeper(tmp_path)
    checkpoints.train(CONDITION, pool, store)
    assert kept(tmp_path) == ["000000009", "000000012"]
    told = []
    again = checkpoints.train(CONDITION, pool, keeper(tmp_path, then=told.append))
    assert_equal(again, population)
    assert not told


def test_arrays_of_another_shape_are_refused(pool, tmp_path):
    keeper(tmp_path)(progress(6))
    with pytest.raises(ValueError, match="another condition"):
        checkpoints.train(CONDITION, pool, keeper(tmp_path))


def test_a_signal_is_held_back_while_a_piece_is_trained(pool, tmp_path):
    flags = []
    store = keeper(tmp_path, then=lambda _: flags.append(processes._state.immediately))
    checkpoints.train(CONDITION, pool, store)
    assert flags == [False] * 4
    assert processes._state.immediately


def test_what_is_kept_of_a_population_that_is_stored_is_removed(population, tmp_path):
    # As if killed between the two.
    run = Run.create(tmp_path / "run", Identity("x", tiny_run.digits("tiny").to_dict(), ""), 2)
    run.save_population(population)
    other = dataclasses.replace(CONDITION, seed=1)
    for condition in (CONDITION, other):
        Keeper(run.path / "checkpoints", condition, seconds_between=0.0)(progress(3))
    with run.locked():
        left = [path.name for path in (run.path / "checkpoints").iterdir()]
    assert left == [other.id]
