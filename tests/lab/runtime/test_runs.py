"""The working directory: identity, locks, and files that appear whole or not at all."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from support import plants, tiny_run

from halfway import populations, storage
from halfway.lab.config.user import UserError
from halfway.lab.runtime import runs
from halfway.lab.runtime.runs import Identity, Run
from halfway.lab.study import conditions
from halfway.lab.study.records import Measurement, Request

CONFIG = tiny_run.digits("tiny")
IDENTITY = Identity("digits-tiny", CONFIG.to_dict(), "checksum")
MLP = conditions.condition(CONFIG, "mlp")
CONTROL = conditions.control(CONFIG, "mlp")


def request(name, *parts):
    return Request(Measurement(name, lambda _: pytest.fail("not called")), parts)


FIRST, SECOND = request("first", MLP), request("second", CONTROL, MLP)


def measured(condition, value):
    return plants.dataset(condition, {"x": (("pair",), np.full(condition.num_pairs, value))})


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "deep" / "run", IDENTITY, 2)


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Identity


@pytest.mark.quick
def test_a_run_is_found_again_as_it_was(run):
    assert not run.resumed
    again = Run.create(run.path, IDENTITY, 2)
    assert again.resumed
    assert again.config.to_dict() == CONFIG.to_dict()
    # Tuples, not lists: conditions made from it have the same keys.
    assert conditions.condition(again.config, "mlp") == MLP
    opened = Run.open(run.path)
    assert (opened.name, opened.data_checksum, opened.num_devices) == ("digits-tiny", "checksum", 2)
    stored = json.loads((run.path / "config.json").read_text())
    assert stored["num_devices"] == 2 and stored["config"]["num_pairs"] == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "digits"}, ["name", "'digits-tiny' there", "'digits' here"]),
        ({"data_checksum": "other"}, ["data_checksum", "'checksum' there"]),
        ({"version": "9.9"}, ["version", "'9.9' here"]),
        (
            {
                "config": {
                    **CONFIG.to_dict(),
                    "training": {**CONFIG.to_dict()["training"], "batch_size": 32},
                }
            },
            ["config.training.batch_size is 64 there and 32 here"],
        ),
    ],
)
def test_the_folder_of_another_run_is_refused_and_left_alone(run, change, words):
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        Run.create(run.path, dataclasses.replace(IDENTITY, **change), 2)
    for word in [*words, str(run.path), "choose another"]:
        assert word in str(caught.value)
    assert (run.path / "config.json").read_bytes() == before
    assert listing(run.path) == {"config.json"}


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"config": 3}', "\x00\xff"])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    for attempt in (lambda: Run.open(tmp_path), lambda: Run.create(tmp_path, IDENTITY, 2)):
        with pytest.raises(UserError, match=r"config\.json cannot be read"):
            attempt()
    assert (tmp_path / "config.json").read_text(encoding="latin-1") == content


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        Run.create(tmp_path, IDENTITY, 2)
    with pytest.raises(UserError, match="holds no run"):
        Run.open(tmp_path)
    assert listing(tmp_path) == {"thesis.tex"}


def test_what_a_killed_first_attempt_leaves_is_not_something_else(tmp_path):
    (tmp_path / ".config.json.abc.partial").write_text("{")
    run = Run.create(tmp_path, IDENTITY, 2)
    assert not run.resumed
    with run.locked():
        assert listing(tmp_path) == {"config.json", ".lock"}


def test_other_devices_are_a_warning_and_the_first_number_stays(run, caplog):
    runs.LOG.propagate, propagate = True, runs.LOG.propagate
    again = Run.create(run.path, IDENTITY, 3)
    runs.LOG.propagate = propagate
    assert "2 devices" in caplog.text and "on 3" in caplog.text
    assert again.num_devices == 2


@pytest.mark.quick
def test_a_run_is_held_by_one_process_at_a_time(run):
    with run.locked():
        other = Run.open(run.path)
        with pytest.raises(UserError, match="in use by another process"), other.locked():
            pytest.fail("two hold it")
        with pytest.raises(UserError, match="in use"), run.locked():
            pytest.fail("the first one's lock is gone")
    with Run.open(run.path).locked():
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=str(path)):
            Run.create(path, IDENTITY, 2)
    run = Run.create(tmp_path / "run", IDENTITY, 2)
    (run.path / ".lock").mkdir()  # cannot be opened, whatever the user's rights
    with pytest.raises(UserError, match="cannot be written"), run.locked():
        pytest.fail("not held")


# Files


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    storage.write_json(path, {"a": 1})
    for step in ("chmod", "replace"):

        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(f"pathlib.Path.{step}", stop)
            with pytest.raises(KeyboardInterrupt):
                storage.write_json(path, {"a": 2})
        assert storage.read_json(path) == {"a": 1}
        assert listing(tmp_path) == {"file.json"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(path, {"a": float("nan")})
    assert storage.read_json(path) == {"a": 1}


def test_sweeping_removes_temporaries_of_ours_only(tmp_path):
    kept = {".lock", ".gitignore", "x.partial", "file.json", "sub", "sub/.keep", "populations"}
    (tmp_path / "sub").mkdir()
    for name in kept - {"sub", "populations"} | {".file.json.x1.partial", "sub/.y.npz.partial"}:
        (tmp_path / name).touch()
    (tmp_path / "populations" / "0123456789ab.partial" / "arrays").mkdir(parents=True)
    storage.sweep(tmp_path)
    assert listing(tmp_path) == kept


def test_arrays_of_any_name_come_back(tmp_path):
    arrays = {"file": np.arange(3), "allow_pickle": np.eye(2), "a b": np.array([True])}
    storage.write_arrays(tmp_path / "x.npz", arrays)
    again = storage.read_arrays(tmp_path / "x.npz")
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


# Measurements


@pytest.mark.quick
def test_a_measurement_comes_back_bit_for_bit(run):
    assert not run.has_measurement(FIRST)
    run.save_measurement(FIRST, measured(MLP, 0.1 + 0.2))
    assert run.has_measurement(FIRST)
    again = run.records([FIRST]).datasets["first", MLP.id]
    assert again.identical(measured(MLP, 0.1 + 0.2))


def test_what_is_damaged_counts_as_not_measured(run, caplog, monkeypatch):
    monkeypatch.setattr(runs.LOG, "propagate", True)
    run.save_measurement(FIRST, measured(MLP, 1.0))
    path = next((run.path / "measurements").glob("*.npz"))
    whole = path.read_bytes()
    for size in (0, 1, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        caplog.clear()
        assert not run.has_measurement(FIRST)
        assert "measured again" in caplog.text and "first-" in caplog.text
    path.write_bytes(whole)
    assert run.has_measurement(FIRST)


def test_the_measurement_of_another_condition_config_or_version_is_not_taken(run, monkeypatch):
    other = request("first", CONTROL)
    run.save_measurement(other, measured(CONTROL, 1.0))
    folder = run.path / "measurements"
    (folder / f"{other.id}.npz").rename(folder / f"{FIRST.id}.npz")
    assert not run.has_measurement(FIRST)
    with pytest.raises(UserError, match="another measurement"):
        run.records([FIRST])
    run.save_measurement(FIRST, measured(MLP, 1.0))
    assert run.has_measurement(FIRST)
    monkeypatch.setattr("halfway.__version__", "9.9")
    assert not run.has_measurement(FIRST)


@pytest.mark.quick
def test_an_export_holds_what_was_asked_in_one_order(run):
    run.save_measurement(FIRST, measured(MLP, 1.0))
    run.save_measurement(SECOND, measured(CONTROL, 2.0))
    folder = run.path / "measurements"
    # Leftovers, and a measurement that no hypothesis of this run asks for.
    (folder / ".first.npz.x.partial").write_text("half")
    (folder / "other-0.npz").write_text("half")
    (run.path / "populations" / f"{MLP.id}.partial").mkdir(parents=True)

    def exported(requests):
        run.export(requests)
        return [(run.path / f"{name}.parquet").read_bytes() for name in ("records", "conditions")]

    assert exported([SECOND, FIRST]) == exported([FIRST, SECOND])
    table = pd.read_parquet(run.path / "records.parquet")
    values = table[table["quantity"] == "x"]
    assert values["condition"].tolist() == [MLP.id] * 4 + [CONTROL.id] * 4
    assert values["value"].tolist() == [1.0] * 4 + [2.0] * 4
    listed = pd.read_parquet(run.path / "conditions.parquet")
    assert list(listed.index) == [MLP.id, CONTROL.id]
    run.export([FIRST])
    assert list(pd.read_parquet(run.path / "conditions.parquet").index) == [MLP.id]


def test_records_that_are_missing_or_damaged_are_named(run):
    with pytest.raises(UserError, match="holds no measurements"):
        run.records([FIRST])
    run.save_measurement(FIRST, measured(MLP, 1.0))
    path = run.path / "measurements" / f"{FIRST.id}.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    with pytest.raises(UserError, match=r"cannot be used .*reproduce again"):
        run.records([FIRST])
    path.write_bytes(whole)
    assert run.records([FIRST]).get(FIRST.measurement, MLP).read("x").tolist() == [1.0] * 4
    with pytest.raises(UserError, match="cannot be used"):
        run.records([FIRST, SECOND])


@pytest.mark.quick
def test_notes_are_kept_and_changed_by_name(run):
    names = ("seconds", "environment", "unsuitable", "written")
    nothing = {"hypotheses": [], **{name: {} for name in names}}
    assert run.notes() == nothing
    run.note(hypotheses=["G1"], environment={"a": 1})
    run.note(hypotheses=["G1", "T1"])
    assert run.notes() == nothing | {"hypotheses": ["G1", "T1"], "environment": {"a": 1}}
    (run.path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json cannot be read .*delete it"):
        run.notes()


# Populations


@pytest.mark.quick
def test_the_loss_that_is_shown_is_that_of_the_last_probe_on_the_own_half():
    def observed(own, other):
        losses = {"own": own, "other": other}
        named = {name: {"cross_entropy": np.array(values)} for name, values in losses.items()}
        return {"landscapes": named}

    first, last = observed([[9.0, 9.0]], [[9.0, 9.0]]), observed([[1.0, 2.0]], [[5.0, 5.0]])
    assert runs._loss(populations.Progress(20, None, (first, last))) == 1.5
    assert runs._loss(populations.Progress(0, None, ())) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's tasks
def test_a_population_that_was_cut_short_is_none_or_whole(run, population, caplog, monkeypatch):
    monkeypatch.setattr(runs.LOG, "propagate", True)
    condition = population.condition
    assert run.load_population(condition) is None
    run.save_population(population)
    folder = run.path / "populations" / condition.id
    original = shutil.copytree(folder, run.path.parent / "original")
    expected = np.asarray(population.params["Dense_0"]["kernel"])
    num_none = 0
    for name in sorted(listing(original)):
        if (original / name).is_dir():
            continue
        for size in (0, (original / name).stat().st_size // 2, None):
            shutil.rmtree(folder)
            shutil.copytree(original, folder)
            if size is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes((original / name).read_bytes()[:size])
            caplog.clear()
            again = run.load_population(condition)
            if again is None:
                num_none += 1
                missing = size is None and name == "condition.json"
                assert missing or "trained again" in caplog.text
            else:  # Orbax does not read every file that it writes
                np.testing.assert_array_equal(again.params["Dense_0"]["kernel"], expected)
    assert num_none >= 6  # at least condition, metadata and data
    run.save_population(population)  # over the ruins
    assert run.load_population(condition) is not None


def test_a_population_of_another_condition_is_not_taken(run, population, caplog, monkeypatch):
    monkeypatch.setattr(runs.LOG, "propagate", True)
    run.save_population(population)
    other = dataclasses.replace(population.condition, seed=1)
    folder = run.path / "populations"
    (folder / population.condition.id).rename(folder / other.id)
    assert run.load_population(other) is None
    assert "another condition" in caplog.text
