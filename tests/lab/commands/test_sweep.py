"""Many settings: checked before the first runs, each in its folder, one table over all of them."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pandas as pd
import pytest
from support import commands
from support.launcher import FOLDERS, SMALL, Job

from halfway import storage
from halfway.lab.commands import sweep
from halfway.lab.config.user import UserError
from halfway.lab.runtime import processes, start, sweep_file, sweep_table
from halfway.lab.runtime.runs import Identity, Run

EXAMPLE = "--sweep=configs/sweeps/example.toml"
HEAD = 'config = "configs/digits.py:tiny"\n'


def _load(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return sweep_file.load(str(path))


# The file


@pytest.mark.quick
def test_a_grid_is_every_combination(tmp_path):
    text = HEAD + '[grid]\nseed = [0, 1]\n"training.learning_rate" = [1e-3, 2e-3, 1]\n'
    loaded = _load(tmp_path, text)
    assert loaded.name == "mine"
    assert [setting.name for setting in loaded.settings] == [
        f"seed={seed},learning_rate={rate}" for seed in (0, 1) for rate in (0.001, 0.002, 1)
    ]
    rates = [setting.config.training.learning_rate for setting in loaded.settings[:3]]
    assert rates == [0.001, 0.002, 1.0] and isinstance(rates[2], float)
    assert loaded.settings[0].hypotheses == ("G1",)
    assert loaded.settings[0].arguments == [
        "--config=configs/digits.py:tiny",
        "--config.seed=0",
        "--config.training.learning_rate=0.001",
    ]


@pytest.mark.quick
def test_explicit_settings_are_combined_with_the_grid(tmp_path):
    text = 'only = "G1,T1"\n[grid]\nseed = [0, 1]\n[[settings]]\nnum_pairs = 4\n[[settings]]\n'
    loaded = _load(tmp_path, text + 'training.batch_size = 32\nsubset = "train"\n')
    assert [setting.name for setting in loaded.settings] == [
        "num_pairs=4,seed=0",
        "num_pairs=4,seed=1",
        "batch_size=32,subset=train,seed=0",
        "batch_size=32,subset=train,seed=1",
    ]
    assert loaded.settings[2].config.num_pairs == 16
    assert loaded.settings[0].hypotheses == ("G1", "T1")


def test_tuples_are_lists(tmp_path):
    loaded = _load(tmp_path, "[grid]\nnoise_rates = [[0, 0.5, 1], [0.0, 0.4, 0.8, 1.0]]\n")
    assert loaded.settings[0].config.noise_rates == (0.0, 0.5, 1.0)
    assert [setting.name for setting in loaded.settings] == [
        "noise_rates=0+0.5+1",
        "noise_rates=0.0+0.4+0.8+1.0",
    ]


def test_names_are_safe_as_folders_and_apart(tmp_path):
    loaded = _load(tmp_path, '[grid]\ndataset = ["folder:/a/b c", "folder:/a/b_c"]\n')
    names = [setting.name for setting in loaded.settings]
    assert len(set(names)) == 2
    for name in names:
        assert "/" not in name and " " not in name and ":" not in name


def test_names_stay_short_and_apart(tmp_path):
    steps = [list(range(0, 40 + i)) for i in (0, 1)]
    loaded = _load(tmp_path, f"[grid]\ntraining.probe_steps = {steps}\n")
    names = [setting.name for setting in loaded.settings]
    assert len(set(names)) == 2 and max(map(len, names)) < 100


def test_an_empty_list_of_settings_leaves_the_grid(tmp_path):
    loaded = _load(tmp_path, "settings = []\n[grid]\nseed = [1]\n")
    assert [setting.name for setting in loaded.settings] == ["seed=1"]


def test_the_example_that_is_shipped():
    loaded = sweep_file.load("configs/sweeps/example.toml")
    assert len(loaded.settings) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid", "is no TOML file"),
        ('confg = "x"', "unknown entry 'confg': there are config, only"),
        ("config = 3", "config and only are texts"),
        (HEAD, "varies nothing"),
        ("[grid]\nseed = []", "seed in .grid. must be a list"),
        ("[grid]\nseed = 3", "seed in .grid. must be a list"),
        ("grid = 3", "the grid is written as"),
        ("settings = 3", "settings are written as"),
        ("[grid]\nseed = [0, 0]", "a setting twice: seed=0$"),
        ("[[settings]]\n[[settings]]\nseed = 0", "twice: seed=0, .* same run as unchanged"),
        ("[grid]\nnum_pairs = [4, '4']", "a setting twice: num_pairs=4"),
        ("settings = []\n[grid]\n", "varies nothing"),
        ('only = ""\n[grid]\nseed = [1]', "setting seed=1: no hypothesis is named"),
        ("[grid]\nseed = [0]\n[[settings]]\nseed = 1", "both in"),
        ("[grid]\nsed = [0]", "setting sed=0: unknown config field 'sed'.*did you mean seed"),
        ('[grid]\nseed = [0, "x"]', "setting seed=x: config.seed must be an integer"),
        ("[grid]\nnum_pairs = [4, 1]", r"setting num_pairs=1: config.num_pairs must lie in"),
        ('only = "G9"\n[grid]\nseed = [0]', "unknown hypothesis 'G9'"),
        ('config = "configs/digts.py"\n[grid]\nseed = [0]', "does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_runs(text, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        _load(tmp_path, text)
    assert "mine.toml" in str(caught.value)


def test_file_that_does_not_exist():
    with pytest.raises(UserError, match=r"'nowhere.toml' does not exist"):
        sweep_file.load("nowhere.toml")


# What is finished, and the table


def _example():
    return sweep_file.load("configs/sweeps/example.toml").settings


VERDICT = {
    "id": "G1",
    "verdict": "supported",
    "effect": 0.5,
    "interval": [0.4, 0.6],
    "p_value": 0.001,
    "p_adjusted": 0.02,
    "evidence": "confirmatory",
    "num_pairs": 16,
}


def _finish(folder, setting, **verdict):
    run = Run.create(folder, Identity(setting.run_name, setting.config.to_dict(), "any"), 2)
    run.save_verdicts([VERDICT | verdict])
    (folder / "report.html").touch()


@pytest.mark.quick
def test_finished_is_this_very_run_with_all_verdicts_and_its_report(tmp_path):
    setting, other = _example()
    folder = tmp_path / setting.name
    assert not sweep_file.is_finished(folder, setting)
    _finish(folder, setting)
    assert sweep_file.is_finished(folder, setting)
    assert not sweep_file.is_finished(folder, other)
    assert not sweep_file.is_finished(folder, setting._replace(hypotheses=("G1", "T1")))
    assert not sweep_file.is_finished(folder, setting._replace(run_name="another"))
    stored = json.loads((folder / "config.json").read_text())
    fields = {name: value for name, value in stored.items() if name != "sha256"}
    storage.write_sealed_json(folder / "config.json", fields | {"version": "older"})
    assert not sweep_file.is_finished(folder, setting)
    storage.write_sealed_json(folder / "config.json", fields)
    assert sweep_file.is_finished(folder, setting)
    (folder / "report.html").unlink()
    assert not sweep_file.is_finished(folder, setting)
    (folder / "report.html").touch()
    for damage in ("{", "[{}]", "3"):
        (folder / "verdicts.json").write_text(damage)
        assert not sweep_file.is_finished(folder, setting)


@pytest.mark.quick
def test_a_table_with_ends_that_are_not_finite(tmp_path):
    settings = _example()
    _finish(tmp_path / settings[0].name, settings[0], interval=[None, 0.6])
    _finish(tmp_path / settings[1].name, settings[1], effect=None, interval=[None, None])
    table = sweep_table.tabulate(tmp_path, settings)
    assert table["low"].isna().all() and table["high"].isna().tolist() == [False, True]
    lines = sweep_table.format_table(table).splitlines()
    assert lines[0].split()[:3] == ["setting", "id", "verdict"]
    assert "0.500 [−∞, 0.600]" in lines[1] and "undefined" in lines[2]


def test_long_names_stand_above_their_rows(tmp_path):
    names = [f"architectures=mlp,learning_rate=0.001,num_examples={n}" for n in (12000, 24000)]
    settings = [
        setting._replace(name=name, hypotheses=("G1", "T12"))
        for setting, name in zip(_example(), names, strict=True)
    ]
    _finish(tmp_path / names[0], settings[0]._replace(hypotheses=("G1",)))
    verdicts = [VERDICT | {"verdict": "inconclusive"}, VERDICT | {"id": "T12"}]
    Run.open(tmp_path / names[0]).save_verdicts(verdicts)
    lines = sweep_table.format_table(sweep_table.tabulate(tmp_path, settings)).splitlines()
    assert [line.split()[0] for line in lines[:7]] == [
        "id",
        names[0],
        "G1",
        "T12",
        names[1],
        "G1",
        "T12",
    ]
    assert "missing" in lines[5] and max(map(len, lines)) <= 100


# Running


class Called:
    """A setting run by a call in this process instead of a process of its own."""

    def __init__(self, command, *, stdout, stderr, env):
        python, *module = command[:3]
        assert python == sys.executable and module == ["-m", "halfway.lab.commands"]
        assert stderr == subprocess.STDOUT and env[start.ENDS_WITH] == str(os.getpid())
        result = commands.call(Path.cwd(), *command[3:])
        stdout.write((result.err + result.out).encode())
        self._code = result.code

    def wait(self):
        return self._code


def _start_by(popen, monkeypatch):
    """Let a sweep alone start its settings in another way."""
    names = types.SimpleNamespace(**vars(subprocess) | {"Popen": popen})
    monkeypatch.setattr(sweep, "subprocess", names)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"])
def test_shards_that_do_not_exist(shard, tmp_path):
    result = commands.call(tmp_path, "sweep", EXAMPLE, f"--shard={shard}")
    assert f"--shard={shard} must be i/n" in result.complaint


def test_two_settings_of_which_one_fails_then_both(tmp_path, monkeypatch):
    _start_by(Called, monkeypatch)
    # A file in the place of its folder makes a setting fail.
    root = tmp_path / "runs"
    root.mkdir()
    (root / "seed=0").write_text("in the way")
    config = SMALL.removeprefix("--config=") + ":g1"
    (tmp_path / "two.toml").write_text(f'config = "{config}"\n[grid]\nseed = [0, 1]\n')
    arguments = ("--sweep=two.toml", "--workdir=runs", *FOLDERS)
    first = commands.call(tmp_path, "sweep", *arguments)
    assert first.code == 1
    assert "1 of 2 settings failed: seed=0 (--workdir=" in first.err
    assert "seed=1: finished (" in first.out
    table = pd.read_parquet(root / "sweep.parquet")
    assert table["status"].tolist() == ["missing", "finished"]
    assert table["seed"].tolist() == [0, 1]
    assert table["verdict"].isna().tolist() == [True, False]

    dry = commands.call(tmp_path, "sweep", *arguments, "--dry_run")
    assert [line.split()[0] for line in dry.out.splitlines()] == ["to", "finished"]
    assert f"halfway reproduce {SMALL}:g1 --config.seed=0" in dry.out

    (root / "seed=0").unlink()
    before = (root / "seed=1" / "report.html").stat().st_mtime_ns
    shard = commands.call(tmp_path, "sweep", *arguments, "--shard=1/2")
    assert shard.code == 0 and "seed=1: finished" not in shard.out
    assert (root / "seed=1" / "report.html").stat().st_mtime_ns == before
    table = pd.read_csv(root / "sweep.csv")
    assert table["status"].tolist() == ["finished", "finished"]
    assert set(table["id"]) == {"G1"} and (table["low"] <= table["effect"]).all()
    assert all(len(line) <= 100 for line in shard.out.splitlines())
    log = (root / "seed=0.log").read_text()
    assert "is not a folder" in log and "report.html" in log  # of both attempts
    page = (root / "sweep.html").read_text()
    assert "seed=0" in page and "seed=1" in page


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "runs" / "num_examples=200.log").mkdir(parents=True)
    result = commands.call(tmp_path, "sweep", EXAMPLE, "--workdir=runs")
    assert result.code == 2 and "error: --workdir=runs cannot be written (" in result.err


ENDS = [
    (signal.SIGINT, "interrupted"),
    (signal.SIGTERM, "terminated"),
    (signal.SIGHUP, "terminated"),
]
CHILD = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path("ended").touch()
    raise SystemExit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path("begun").touch()
while True: time.sleep(.01)
"""


@pytest.mark.quick
@pytest.mark.parametrize(("number", "how"), ENDS)
def test_a_sweep_that_is_asked_to_end_ends_its_setting_first(number, how, tmp_path, monkeypatch):
    class Child(subprocess.Popen):
        """Waits for SIGTERM in the place of a setting; once it runs, the sweep gets a signal."""

        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", CHILD], **options)

        def wait(self, timeout=None):
            if timeout is None and not (tmp_path / "asked").exists():
                while not (tmp_path / "begun").exists():
                    time.sleep(0.01)
                (tmp_path / "asked").touch()
                os.kill(os.getpid(), number)
            return super().wait(0.01 if timeout else None)  # no terminal has told it

    _start_by(Child, monkeypatch)
    result = commands.call(tmp_path, "sweep", EXAMPLE, "--workdir=runs")
    assert result.code == processes.CODES[number]
    assert result.err == f"{how}: the same command goes on from here\n"
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / "runs" / "sweep.csv").exists()
    assert "num_examples=400" not in result.out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "how"), ENDS)
def test_interrupted(number, how, tmp_path):
    job = Job(tmp_path, EXAMPLE, "--workdir=runs", *FOLDERS, module="experiments.sweep")
    begun = tmp_path / "runs" / "num_examples=200" / "config.json"
    assert job.signal_once(begun.exists, number)
    result = job.wait()
    assert result.code == processes.CODES[number]
    assert f"{how}: the same command goes on from here" in result.err
    assert not (tmp_path / "runs" / "sweep.csv").exists()
    assert not (tmp_path / "runs" / "num_examples=400").exists()
    with Run.open(begun.parent).locked():  # or the process of the setting would still hold it
        pass
