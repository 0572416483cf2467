"""A disk that is full, for every command: one line that says so, and no half of a file.

The system's answer is planted where each writer puts a finished file in its place. What a disk of a
certain size does in the middle of a file is told in tests/test_storage.py and test_scale.py.
"""

import errno
import hashlib
import os

import numpy as np
import pytest
from support import commands, idx_files, launcher, run_folder

from halfway import storage
from halfway.data import raw
from halfway.lab import benchmarks
from halfway.lab.benchmarks.timing import Row
from halfway.lab.commands import __main__ as console
from halfway.lab.publication import documents
from halfway.lab.runtime import start
from halfway.lab.study import registration

MODULE = """
import jax.numpy as jnp

def model(shift):
    return lambda x: jnp.stack([x.sum((1, 2, 3)) - 2.0 + shift, 2.0 - x[:, 0, 0, 0]], 1)

def load():
    return model(0.0)

def load_models():
    return {"a": model(0.0), "b": model(0.1)}

def loss(params):
    return jnp.sum(params["w"] ** 2)
"""
EXAMPLES = ("--data=examples.npz", "--attacks=fgsm", *launcher.FOLDERS)
WRITES = {
    "reproduce": (*run_folder.G1, "--workdir=new"),
    "decide": ("--workdir=run",),
    "register": (),
    "publish": (),
    "sweep": ("--sweep=sweep.toml", "--workdir=sweep", *launcher.FOLDERS),
    "evaluate": ("--model=mine:load", "--nocurves", *EXAMPLES),
    "transfer": ("--surrogates=mine:load_models", *EXAMPLES),
    "landscape": ("--params=w.npz", "--loss=mine:loss", "--workdir=run 2", *launcher.FOLDERS),
    "benchmark": ("--suite=tiny", "--out=rows.json", *launcher.FOLDERS),
    "prepare_data": ("--dataset=mnist", "--source=original", "--data_dir=data"),
}
WRITES_ALIKE = {"compare", "laws", "compile_ahead"}
"""One prints alone; the others write as `landscape` and `benchmark` do, after minutes of work."""


def test_the_table_has_every_command():
    assert WRITES.keys() | WRITES_ALIKE == set(console.COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run, and with what the commands read."""
    folder = tmp_path_factory.mktemp("disk")
    run_folder.make(folder)
    (folder / "mine.py").write_text(MODULE)
    (folder / "sweep.toml").write_text('config = "digits:tiny"\n[grid]\nseed = [0]\n')
    images = np.random.default_rng(0).random((8, 2, 2, 1)).astype("f4")
    np.savez(folder / "examples.npz", images=images, labels=np.arange(8) % 2)
    np.savez(folder / "w.npz", w=np.ones(3, "f4"))
    (folder / "original").mkdir()
    for part in ("train", "t10k"):
        for kind, array in {
            "images-idx3": np.zeros((8, 28, 28)),
            "labels-idx1": np.arange(8),
        }.items():
            (folder / "original" / f"{part}-{kind}-ubyte").write_bytes(idx_files.encode(array))
    return folder


class Tiny:
    """A suite that measures nothing."""

    @staticmethod
    def rows(data_dir):
        return [Row("nothing", 1.0)]


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_one_line_and_leaves_no_half(folder, name, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*") if path.is_file()}
    monkeypatch.setattr(benchmarks, "available", lambda: {"tiny": Tiny})
    monkeypatch.setattr(registration, "path", lambda: folder / "rules.lock")
    monkeypatch.setattr(documents, "update", lambda _: storage.write_json(folder / "new.json", 1))
    files = [*(folder / "original").iterdir()]
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    monkeypatch.setitem(raw.IDX, "mnist", raw.Idx(md5, packed=False))
    monkeypatch.setattr("halfway.lab.commands.sweep._run", lambda *_: "")
    for function in ("replace", "rename"):
        monkeypatch.setattr(os, function, full)
    result = commands.call(folder, name, *WRITES[name])
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == start.MISTAKE and len(errors) == 1, result
    assert "Traceback" not in result.err
    assert "No space left on device" in errors[0], result
    assert "free some space" in errors[0] or "name another" in errors[0], result
    after = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in after if storage.PARTIAL in path.name]
    assert before == {path: path.stat().st_mtime_ns for path in before}
