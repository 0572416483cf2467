"""Preparing by command, and data errors of a run: one line, exit code 2, nothing left behind."""

import hashlib

import numpy as np
import pytest
from support import commands, idx_files

from halfway.data import raw
from halfway.lab.config.user import UserError


@pytest.fixture
def source(tmp_path):
    """A folder of small idx files, well formed."""
    folder = tmp_path / "source"
    folder.mkdir()
    for part, size in (("train", 30), ("t10k", 10)):
        images, labels = np.zeros((size, 28, 28)), np.arange(size) % 10
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_files.encode(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_files.encode(labels))
    return folder


def test_prepared_by_command(source, tmp_path, monkeypatch, capsys):
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in source.iterdir()}
    monkeypatch.setitem(raw.IDX, "mnist", raw.Idx(md5, packed=False))
    options = ["--dataset=mnist", f"--source={source}", f"--data_dir={tmp_path}/data"]
    commands.main("prepare_data", *options)
    out, err = capsys.readouterr()
    assert out.startswith(f"mnist 3.0.1: 30 train and 10 test images in {tmp_path}/data, checksum")
    assert err == ""  # a bar is for terminals
    commands.main("prepare_data", *options)
    assert capsys.readouterr() == (out, "")  # nothing is written twice


def test_file_that_is_not_the_original(source, tmp_path):
    options = ("--dataset=mnist", f"--source={source}", "--data_dir=data")
    result = commands.call(tmp_path, "prepare_data", *options)
    assert "train-images-idx3-ubyte has md5" in result.complaint
    assert not (tmp_path / "data").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--dataset and --source are needed"),
        (["--dataset=mnist"], "--dataset and --source are needed"),
        (["--dataset=mnits", "--source=."], "'mnits' cannot be prepared"),
        (["--dataset=mnist", "--source=nowhere"], "nowhere does not exist"),
        (["--dataset=cifar10", "--source=."], "lacks cifar-10-binary.tar.gz"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(UserError, match=words):
        commands.main("prepare_data", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/mnist.py"], "experiments.prepare_data --dataset=mnist --source="),
        (["--config.dataset=folder:nowhere"], "nowhere does not exist"),
        (["--config.dataset=dijits"], "did you mean 'digits'?"),
    ],
)
def test_run_without_its_data(arguments, words, tmp_path):
    options = ("--data_dir=empty", "--compilation_cache=off")
    assert words in commands.call(tmp_path, "reproduce", *arguments, *options).complaint
    assert not any(tmp_path.iterdir())
