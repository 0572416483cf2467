"""Named data sets: the same arrays from the prepared files and from memory, whatever happens."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from halfway import data
from halfway.data import digits
from halfway.data import prepared as tfds_files

TRAIN_FILE = "digits-train.array_record-00000-of-00001"
TEST_FILE = "digits-test.array_record-00000-of-00001"

# A process that may not reach the network: a look-up or a connection is an error.
OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
from halfway import data
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with prepared digits, not to be changed."""
    root = tmp_path_factory.mktemp("data")
    data.load("digits", root)
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    """A data folder of its own: (folder, folder of the prepared files)."""
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    return root, root / "digits" / "1.0.0"


@pytest.fixture
def no_sklearn(monkeypatch):
    def refuse():
        raise AssertionError("read from scikit-learn")

    monkeypatch.setattr(digits, "_sklearn_digits", refuse)


def _run(code, *args, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE + code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        cwd=Path(data.__file__).parents[2],
        check=False,
    )


def _from_memory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(data.DataWarning, match="scikit-learn"):
        return data.load("digits", tmp_path / "file")


@pytest.mark.parametrize("source", ["disk", "memory"])
@pytest.mark.quick
def test_digits_are_those_of_scikit_learn(source, prepared, tmp_path):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    dataset = data.load("digits", prepared) if source == "disk" else _from_memory(tmp_path)
    assert (dataset.name, dataset.version, dataset.num_classes) == ("digits", "1.0.0", 10)
    assert dataset.train.images.shape == (1437, 8, 8, 1)
    assert dataset.test.images.shape == (360, 8, 8, 1)
    both = dataset.pool()
    for split in (dataset.train, dataset.test, both):
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        assert split.images.min() == 0 and split.images.max() == 1
        assert set(split.labels) == set(range(10))
    # Sixteenths are exact in float32, so this is equality, not closeness.
    np.testing.assert_array_equal(both.images.reshape(-1, 64) * 16, images)
    np.testing.assert_array_equal(both.labels, labels)
    assert dataset.checksum == data.DIGITS_CHECKSUM
    assert dataset.checksum == data.checksum((dataset.train, dataset.test))


def test_second_load_reads_the_prepared_files(prepared, no_sklearn):
    assert data.load("digits", prepared).checksum == data.DIGITS_CHECKSUM
    assert data.load("digits", str(prepared)).checksum == data.DIGITS_CHECKSUM


def test_prepared_folder_holds_nothing_else(prepared):
    files = sorted(str(p.relative_to(prepared)) for p in prepared.rglob("*") if p.is_file())
    stored = ("dataset_info.json", TEST_FILE, TRAIN_FILE, "features.json")
    assert files == [f"digits/1.0.0/{name}" for name in stored]
    assert [p.name for p in prepared.iterdir()] == ["digits"]


@pytest.mark.parametrize("below", ["", "digits", "some/where"])
def test_folder_that_cannot_be_written(below, tmp_path):
    # Permission bits do not stop root, a regular file in the way does.
    (tmp_path / "file").write_text("mine")
    with pytest.warns(data.DataWarning, match="file") as caught:
        dataset = data.load("digits", tmp_path / "file" / below)
    assert dataset.checksum == data.DIGITS_CHECKSUM
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("folder", ["", "~no-such-user/data"])
def test_folder_that_names_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(data.DataWarning, match="does not name a folder"):
        assert data.load("digits", folder).checksum == data.DIGITS_CHECKSUM
    assert not list(tmp_path.iterdir())


def test_home_in_the_path_is_expanded(prepared, no_sklearn, monkeypatch):
    monkeypatch.setenv("HOME", str(prepared.parent))
    assert data.load("digits", f"~/{prepared.name}").checksum == data.DIGITS_CHECKSUM


def test_interrupted_preparation_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(builder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(digits, "_read", fail)
        with pytest.warns(data.DataWarning, match="No space left"):
            data.load("digits", tmp_path)
    assert not list(tmp_path.iterdir())
    data.load("digits", tmp_path)


def _truncate(folder):
    os.truncate(folder / TRAIN_FILE, 100_000)


def _empty(folder):
    (folder / TRAIN_FILE).write_bytes(b"")


def _delete(folder):
    (folder / TRAIN_FILE).unlink()


def _flip(folder):
    content = bytearray((folder / TRAIN_FILE).read_bytes())
    content[100] ^= 0xFF
    (folder / TRAIN_FILE).write_bytes(content)


def _exchange(folder):
    shutil.copy(folder / TRAIN_FILE, folder / TEST_FILE)  # can be read, but is the wrong data


def _break_info(folder):
    (folder / "dataset_info.json").write_text("{")


def _delete_info(folder):
    (folder / "dataset_info.json").unlink()


def _file_instead(folder):
    shutil.rmtree(folder)
    folder.write_text("mine")


@pytest.mark.parametrize(
    "damage",
    [_truncate, _empty, _delete, _flip, _exchange, _break_info, _delete_info, _file_instead],
)
def test_damaged_files(damage, copy):
    root, folder = copy
    damage(folder)
    before = sorted(root.rglob("*"))
    with pytest.warns(data.DataWarning, match=r"delete digits/1\.0\.0") as caught:
        dataset = data.load("digits", root)
    assert str(root) in str(caught[0].message)
    assert dataset.checksum == data.DIGITS_CHECKSUM
    assert sorted(root.rglob("*")) == before


def test_deleting_the_damaged_folder_mends_it(copy):
    root, folder = copy
    _flip(folder)
    shutil.rmtree(folder)
    data.load("digits", root)
    assert (folder / TRAIN_FILE).exists()


def test_target_that_appears_meanwhile(prepared, tmp_path):
    target = tmp_path / "digits" / "1.0.0"

    def other_process_is_first(builder):
        shutil.copytree(prepared / "digits" / "1.0.0", target)
        (target / "mark").touch()

    tfds_files.write(digits._builder(), str(tmp_path), other_process_is_first)
    assert (target / "mark").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]
    assert data.load("digits", tmp_path).checksum == data.DIGITS_CHECKSUM


def test_two_processes_prepare_at_once(tmp_path):
    code = "print(data.load('digits', sys.argv[1]).checksum)"
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(_run(code, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(r.returncode, r.stdout.strip(), r.stderr) for r in results] == [
        (0, data.DIGITS_CHECKSUM, "")
    ] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def test_threads_prepare_at_once(tmp_path):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(data.load("digits", tmp_path)))
        for _ in range(3)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [r.checksum for r in results] == [data.DIGITS_CHECKSUM] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def test_imports_are_late_and_loading_is_quiet(tmp_path):
    # First with nothing prepared, then from the files; absl at its most talkative.
    code = """
import os, tempfile
late = ("tensorflow_datasets", "sklearn", "jax")
assert not [name for name in late if name in sys.modules], sys.modules.keys()
from absl import logging
logging.set_verbosity(logging.DEBUG)
tempfile.tempdir = sys.argv[1]
first = data.load("digits").checksum
assert "sklearn" in sys.modules
del sys.modules["sklearn"], sys.modules["sklearn.datasets"]
assert data.load("digits").checksum == first
assert "sklearn" not in sys.modules and "tensorflow" not in sys.modules
assert os.listdir(sys.argv[1]) == [], os.listdir(sys.argv[1])
logging.info("ours is still heard")
"""
    (tmp_path / "tmp").mkdir()
    result = _run(code, tmp_path / "tmp", TFDS_DATA_DIR=str(tmp_path / "data"))
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["INFO:absl:ours is still heard"]
    assert (tmp_path / "data" / "digits" / "1.0.0" / TRAIN_FILE).exists()


def test_unusable_home(tmp_path):
    (tmp_path / "file").touch()
    code = "print(data.load('digits').checksum)"
    environment = {"HOME": str(tmp_path / "file"), "PYTHONWARNINGS": ""}
    result = _run(
        "import warnings; warnings.simplefilter('default', data.DataWarning); " + code,
        **environment,
        **({"TFDS_DATA_DIR": str(tmp_path / "file")} if "TFDS_DATA_DIR" in os.environ else {}),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == data.DIGITS_CHECKSUM
    assert result.stderr.count("DataWarning") == 1


@pytest.mark.quick
def test_checksum_is_what_its_docstring_says():
    images = np.zeros((2, 1, 1, 1), np.float32)
    labels = np.asarray([1, 0], np.int32)
    content = b"<f4 (2, 1, 1, 1)\n" + bytes(8) + b"<i4 (2,)\n" + b"\1\0\0\0\0\0\0\0"
    split = data.Split(images, labels)
    assert data.checksum([split]) == hashlib.sha256(content).hexdigest()
    assert data.checksum([split, split]) == hashlib.sha256(content * 2).hexdigest()


def test_checksum_ignores_memory_layout():
    images = np.random.default_rng(0).random((3, 4, 4, 2), np.float32)
    labels = np.arange(3, dtype=np.int32)
    expected = data.checksum([data.Split(images, labels)])
    fortran = np.asfortranarray(images)
    big_endian = images.astype(">f4")
    assert data.checksum([data.Split(fortran, labels)]) == expected
    assert data.checksum([data.Split(big_endian, labels)]) == expected


def test_checksum_changes_with_any_of_its_parts(prepared):
    dataset = data.load("digits", prepared)
    train, test = dataset.train, dataset.test
    pixel = test.images.copy()
    pixel[359, 7, 7, 0] += 1 / 16
    label = train.labels.copy()
    label[0] = 9 - label[0]
    changed = [
        (train, test._replace(images=pixel)),
        (train._replace(labels=label), test),
        (train, test._replace(images=test.images.reshape(360, 4, 16, 1))),
        (train._replace(labels=train.labels.view(np.uint32)), test),
        (test, train),
    ]
    checksums = {data.checksum(splits) for splits in changed}
    assert len(checksums) == len(changed)
    assert dataset.checksum not in checksums


@pytest.mark.quick
def test_pool(prepared):
    dataset = data.load("digits", prepared)
    everything = dataset.pool("all")
    assert everything.images.shape == (1797, 8, 8, 1)
    assert everything.labels.shape == (1797,)
    for whole, first, last in zip(everything, dataset.train, dataset.test, strict=True):
        np.testing.assert_array_equal(whole[:1437], first)
        np.testing.assert_array_equal(whole[1437:], last)
    np.testing.assert_array_equal(dataset.pool("train").images, dataset.train.images)
    np.testing.assert_array_equal(dataset.pool("train").labels, dataset.train.labels)
    with pytest.raises(ValueError, match=r"'test'.*'all' or 'train'"):
        dataset.pool("test")


def test_dataset_cannot_be_changed(prepared):
    dataset = data.load("digits", prepared)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"
    for array in (*dataset.train, *dataset.test):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("name", ["digts", "Digits", "digit"])
def test_unknown_name_close_to_a_known_one(name, tmp_path):
    with pytest.raises(data.DataError, match=rf"'{name}'.* has digits.*did you mean 'digits'\?"):
        data.load(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "imagenet", None, 3, "../../x", "/etc", "a/b/c"])
def test_unknown_name_close_to_none(name, prepared):
    with pytest.raises(data.DataError, match=f"{name!r}.*prepare it there with TFDS"):
        data.load(name, prepared)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_data_set_that_is_not_prepared_yet(name, tmp_path):
    """At once, without TFDS, and with what to run."""
    result = _run(
        f"""
try:
    data.load({name!r}, sys.argv[1])
except data.DataError as error:
    print(error)
assert "tensorflow_datasets" not in sys.modules
""",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert f"experiments.prepare_data --dataset={name} --source=" in result.stdout
    assert str(tmp_path) in result.stdout
    assert not list(tmp_path.iterdir())


def test_names_are_those_that_load_finds(prepared, tmp_path):
    assert data.names(tmp_path / "nothing") == ("digits", "mixture", "mnist1d")
    (tmp_path / "other" / "2.0.0").mkdir(parents=True)
    (tmp_path / "unfinished" / "1.0.0").mkdir(parents=True)
    (tmp_path / "other" / "2.0.0" / "dataset_info.json").touch()
    (tmp_path / "several" / "config" / "1.0.0").mkdir(parents=True)
    (tmp_path / "several" / "config" / "1.0.0" / "dataset_info.json").touch()
    assert data.names(tmp_path) == ("digits", "mixture", "mnist1d", "other", "several/config")
    assert data.names(prepared) == ("digits", "mixture", "mnist1d")
