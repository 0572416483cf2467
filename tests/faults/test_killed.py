"""Commands that are killed at random moments, and go on: in the end the same, bit for bit.

The long version, by night: pytest -m slow tests/faults/test_killed.py
"""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
from support import commands, launcher
from support.run_folder import assert_same, read

from halfway import storage

pytestmark = pytest.mark.slow
MODELS = """
import jax, jax.numpy as jnp

def logits_fn(seed):
    first, last = (
        jax.random.normal(key, shape) / 8
        for key, shape in zip(jax.random.split(jax.random.key(seed)), [(64, 32), (32, 10)])
    )
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ last

def load():
    return logits_fn(0)

def load_models():
    return {f"net/{seed}": logits_fn(seed) for seed in range(4)}
"""
SWEEP = """
config = "digits:tiny"
only = "G1"
[grid]
seed = [0, 1, 2]
"""
OWN_DATA = ("--data=digits", "--num_examples=200", *launcher.FOLDERS)


def equal_arrays(*names):
    """Compares the arrays of files."""

    def check(first, second):
        for name in names:
            ours, theirs = (storage.read_arrays(folder / name) for folder in (first, second))
            assert set(ours) == set(theirs)
            for key, value in ours.items():
                np.testing.assert_array_equal(value, theirs[key], err_msg=f"{name}: {key}")

    return check


def equal_json(name):
    def check(first, second):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (first, second))
        assert ours == theirs

    return check


def equal_sweeps(first, second):
    for seed in range(3):
        assert_same(first / f"seed={seed}", second / f"seed={seed}")


# Command, arguments, the flag of its folder, the number of kills, and how two folders are compared.
KILLED = {
    "reproduce": (
        ("--config=digits:smoke", "--only=T3,G8", "--checkpoint_every=0", *launcher.FOLDERS),
        "workdir",
        20,
        assert_same,
    ),
    "transfer": (
        ("--surrogates=my_models:load_models", "--attacks=pgd,mi_fgsm", *OWN_DATA),
        "out_dir",
        5,
        equal_arrays("outcomes.npz"),
    ),
    "evaluate": (
        ("--model=my_models:load", "--threat=linf:0.03,0.06", "--attacks=pgd,fgsm", *OWN_DATA),
        "out_dir",
        5,
        equal_json("numbers.json"),
    ),
    "landscape": (
        ("--config=digits:tiny", "--checkpoint_every=0", *launcher.FOLDERS),
        "workdir",
        5,
        equal_arrays("landscape/arrays.npz"),
    ),
    "sweep": (("--sweep=sweep.toml", *launcher.FOLDERS), "workdir", 5, equal_sweeps),
}


def assert_nothing_is_left(work):
    assert not [str(path) for path in work.rglob("*") if "partial" in path.name]
    assert not [*work.rglob("checkpoints/*")]


@pytest.mark.parametrize("name", KILLED)
def test_killed_at_random_moments_and_taken_up_again(tmp_path, capsys, name):
    arguments, flag, num_kills, assert_equal = KILLED[name]
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    options = {"module": f"experiments.{name}", "env": {"XLA_FLAGS": None}}

    def start(folder):
        return launcher.Job(tmp_path, *arguments, f"--{flag}={tmp_path / folder}", **options)

    def finish(folder):
        result = start(folder).wait(3600)
        assert result.code == 0, result
        assert_nothing_is_left(tmp_path / folder)

    finish("warm")  # compiles, and what is measured next does not
    begun = time.monotonic()
    finish("undisturbed")
    whole = time.monotonic() - begun
    dice, kills, num_finished = random.Random(name), [], 0
    while len(kills) < num_kills:
        job, began = start("killed"), time.monotonic()
        moment = dice.uniform(0, 0.5 * whole)
        if job.signal_once(lambda end=began + moment: time.monotonic() > end):
            assert job.wait().code == -signal.SIGKILL
            kills.append(moment)
        else:  # it came to its end before
            assert job.wait().code == 0
            assert_equal(tmp_path / "killed", tmp_path / "undisturbed")
            shutil.rmtree(tmp_path / "killed")
            num_finished += 1
    finish("killed")
    assert_equal(tmp_path / "killed", tmp_path / "undisturbed")
    with capsys.disabled():
        print(
            f"\n{name}: {len(kills)} kills in {num_finished + 1} runs of {whole:.0f} s, after "
            f"{', '.join(f'{moment:.0f}' for moment in kills)} s"
        )


def test_a_clock_that_is_set_back_changes_no_number(tmp_path, monkeypatch):
    """Intervals are taken from a clock that nobody sets; what is stored does not depend on one."""
    moments = iter(range(2_000_000_000, 0, -3600))
    arguments = (f"{launcher.SMALL}:g1", *launcher.FOLDERS, "--checkpoint_every=0")
    assert commands.call(tmp_path, "reproduce", *arguments, "--workdir=straight").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(moments)))
        result = commands.call(tmp_path, "reproduce", *arguments, "--workdir=back")
    assert result.code == 0, result
    assert_same(tmp_path / "back", tmp_path / "straight")
    assert all(seconds >= 0 for seconds in read(tmp_path / "back", "run.json")["seconds"].values())
