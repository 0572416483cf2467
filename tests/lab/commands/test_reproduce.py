"""The whole command, interrupted, repeated, extended and damaged: always the same numbers."""

import fcntl
import html
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from support import launcher
from support.run_folder import assert_same, read

ROOT = Path(__file__).resolve().parents[3]
TINY = ("--config=configs/digits.py:tiny", *launcher.FOLDERS)
# Everything there is, small, in a config of one's own: two architectures, three noise rates.
OWN = """
from halfway.lab.config import shipped

def get_config():
    config = shipped("digits")
    config.num_pairs = 2
    config.noise_rates = (0.0, 0.5, 1.0)
    config.architectures = ("mlp", "linear")
    config.models.linear = {"kind": "linear"}
    config.training.probe_steps = (0, 20)
    config.attack.num_steps = 2
    return config
"""
SMALL = ("--config=small.py", *launcher.FOLDERS)
FILES = {"config.json", "run.json", "verdicts.json", "records.parquet", "conditions.parquet"}


def times(folder, *patterns):
    """When files were last written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for pattern in patterns
        for path in folder.glob(pattern)
    }


def copy(folder, to):
    return shutil.copytree(folder, to / "run")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run that nobody disturbed, and what a terminal showed of it."""
    folder = tmp_path_factory.mktemp("tiny")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    shown = []

    def listen():
        while True:
            try:
                shown.append(os.read(leader, 4096))
            except OSError:  # the terminal is closed
                return

    thread = threading.Thread(target=listen)
    thread.start()
    command = [sys.executable, "-m", "experiments.reproduce", *TINY, f"--workdir={folder}/run"]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        cwd=folder,
        env=os.environ | {"HOME": "/dev/null", "PYTHONPATH": str(ROOT)},
    )
    os.close(follower)
    thread.join()
    os.close(leader)
    terminal = b"".join(shown).decode()
    assert done.returncode == 0, terminal
    return folder / "run", done.stdout, terminal


def run_small(folder, *arguments):
    (folder / "small.py").write_text(OWN)
    return launcher.run(folder, *SMALL, "--workdir=run", *arguments)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of the four hypotheses of the main job at once."""
    folder = tmp_path_factory.mktemp("small")
    result = run_small(folder, "--only=G1,G2,T1,T2")
    assert result.code == 0, result.err
    return folder / "run", result


# An undisturbed run


def test_everything_is_there(small):
    folder, _ = small
    assert {path.name for path in folder.iterdir()} >= FILES
    verdicts = read(folder, "verdicts.json")
    assert [verdict["id"] for verdict in verdicts][:4] == ["G1", "G2", "T1", "T2"]
    for verdict in verdicts:
        assert set(verdict) >= {
            "id",
            "claim",
            "verdict",
            "reason",
            "effect",
            "interval",
            "p_value",
            "p_adjusted",
            "control",
            "num_pairs",
            "evidence",
            "parts",
        }
        assert verdict["verdict"] in ("supported", "refuted", "inconclusive")
        assert np.isfinite(verdict["effect"])
        assert len(verdict["interval"]) == 2
        assert verdict["num_pairs"] == 2 and verdict["evidence"] == "none"
        assert verdict["reason"] and verdict["parts"]
    stored = read(folder, "config.json")
    assert stored["num_devices"] == len(jax.devices())
    assert stored["config"]["num_pairs"] == 2
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {name.rsplit(".", 1)[0] for name in figures if name.endswith(".png")} == {
        name.rsplit(".", 1)[0] for name in figures if name.endswith(".svg")
    }
    assert len(figures) >= 2 * 5
    page = (folder / "report.html").read_text()
    for verdict in verdicts:
        assert html.escape(verdict["claim"]) in page
    keys = set(read(folder, "records.parquet")["condition"])
    assert keys == set(read(folder, "conditions.parquet").index)
    assert len(keys) == 2 * (3 + 1)  # architectures, noise rates and permuted labels


def test_a_log_names_the_stages_and_the_end_is_a_table(small):
    _, result = small
    lines = result.err.splitlines()
    assert lines[0] == "1/23 train mlp ρ=0, 0 s"
    assert lines[-1].startswith("23/23 done in ")
    assert not [line for line in lines if "resumed" in line or "warn" in line.lower()]
    assert "G1" in result.out and "T2" in result.out
    assert result.out.rstrip().endswith("run/report.html")


def test_a_terminal_shows_the_stage_and_the_time_left(tiny):
    _, out, terminal = tiny
    assert "train mlp ρ=0" in terminal
    assert "/4 [" in terminal and "<" in terminal  # of four steps; elapsed<left
    assert "G1" in out and "step" not in out


def test_the_same_seed_repeats_and_another_does_not(tiny, tmp_path):
    folder, *_ = tiny
    jobs = [
        launcher.Job(tmp_path, *TINY, f"--config.seed={seed}", f"--workdir={tmp_path}/{seed}")
        for seed in (0, 1)
    ]
    assert [job.wait().code for job in jobs] == [0, 0]
    assert_same(tmp_path / "0", folder)
    a, b = (read(tmp_path / seed, "records.parquet")["value"] for seed in "01")
    assert len(a) == len(b) and (a != b).mean() > 0.5
    assert [v["verdict"] for v in read(tmp_path / "1", "verdicts.json")] == ["supported"]


# Interrupted


def test_half_of_the_populations_are_trained_again_and_the_rest_is_not(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    first, second = sorted((work / "populations").iterdir())
    shutil.rmtree(second)
    shutil.rmtree(work / "measurements")
    for name in ("records.parquet", "run.json", "verdicts.json"):
        (work / name).unlink()
    kept = times(first, "condition.json")
    result = launcher.run(tmp_path, *TINY, "--workdir=run")
    assert result.code == 0, result.err
    assert "resumed 1 of 2 populations\n" in result.err
    assert "2/3" in result.err or "3/3" in result.err  # one training and two measurements
    assert times(first, "condition.json") == kept
    assert_same(work, tiny[0])


def test_a_finished_run_answers_from_disk(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    shutil.rmtree(work / "figures")
    (work / "report.html").unlink()
    stored = times(work, "populations/**/*", "measurements/*")
    result = launcher.run(tmp_path, *TINY, "--workdir=run")
    assert result.code == 0
    assert result.err == "resumed 2 of 2 populations\n"
    assert times(work, "populations/**/*", "measurements/*") == stored
    assert_same(work, tiny[0])
    assert result.out.replace(str(work), "run") == tiny[1].replace(str(tiny[0]), "run")
    assert (work / "report.html").exists() and len(list((work / "figures").iterdir())) == 4


def test_what_is_damaged_is_made_again(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    first, second = sorted((work / "measurements").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    (work / "records.parquet").write_bytes(b"PAR1")
    key = second.stem.split("-")[1]
    for path in (work / "populations" / key).rglob("*"):
        if path.is_file() and path.name != "condition.json":
            path.write_bytes(path.read_bytes()[:20])
    half = work / "populations" / "0123456789ab.partial"
    shutil.copytree(work / "populations" / key, half)
    (work / "measurements" / ".x.parquet.y.partial").write_text("half")
    result = launcher.run(tmp_path, *TINY, "--workdir=run")
    assert result.code == 0, result.err
    assert f"{first.name} cannot be read" in result.err and "measured again" in result.err
    assert f"{key} cannot be read" in result.err and "trained again" in result.err
    assert "resumed 1 of 2 populations" in result.err
    assert "3/3 done" in result.err  # one training and two measurements
    assert_same(work, tiny[0])


def test_a_second_process_ends_and_the_first_goes_on(tiny, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    work = tmp_path / "run"
    job = launcher.Job(first, *TINY, f"--workdir={work}")
    try:
        assert job.signal_once(lambda: (work / "run.json").exists(), 0)
        for module, arguments in (("reproduce", TINY), ("decide", ())):
            second = launcher.run(
                tmp_path, *arguments, f"--workdir={work}", module=f"experiments.{module}"
            )
            assert "in use by another process" in second.complaint
    finally:
        result = job.wait()
    assert result.code == 0
    assert_same(work, tiny[0])


# Hypotheses one by one


def test_only_never_changes_a_number_and_results_merge(small, tmp_path):
    folder, work = small[0], tmp_path / "run"
    first = run_small(tmp_path, "--only=T2")
    assert first.code == 0, first.err
    assert [verdict["id"] for verdict in read(work, "verdicts.json")] == ["T2"]
    alone, every = (read(path, "records.parquet") for path in (work, folder))
    assert 0 < len(alone) < len(every)
    shared = every.merge(alone, how="inner")
    assert len(shared) == len(alone)  # merged on all columns, the value too
    second = run_small(tmp_path, "--only=G2,G1,T1")
    assert second.code == 0, second.err
    assert "resumed 2 of 8 populations\n" in second.err
    assert "17/17 done" in second.err  # six trainings and eleven measurements
    assert [v["id"] for v in read(work, "verdicts.json")] == ["G1", "G2", "T1", "T2"]
    assert_same(work, folder)


def test_one_hypothesis_again_loses_nothing(small, tmp_path):
    work = copy(small[0], tmp_path)
    again = run_small(tmp_path, "--only=G1")
    assert again.err == "resumed 8 of 8 populations\n"
    assert_same(work, small[0])


# Decide


def test_decide_rebuilds_from_records_alone(small, tmp_path):
    work = copy(small[0], tmp_path)
    before = read(work, "verdicts.json")
    stored = times(work, "*.parquet", "measurements/*")
    page = (work / "report.html").read_text()
    for name in ("populations", "figures"):
        shutil.rmtree(work / name)
    for name in ("verdicts.json", "report.html"):
        (work / name).unlink()
    result = launcher.run(tmp_path, "--workdir=run", module="experiments.decide")
    assert result.code == 0 and result.err == ""
    assert read(work, "verdicts.json") == before
    assert times(work, "*.parquet", "measurements/*") == stored
    assert not (work / "populations").exists()
    again = (work / "report.html").read_text()
    assert len(again) > 0.95 * len(page)
    figures = {path.name for path in (work / "figures").iterdir()}
    assert figures == {path.name for path in (small[0] / "figures").iterdir()}


def test_decide_says_what_is_wrong_with_a_run(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)

    def complaint():
        return launcher.run(tmp_path, "--workdir=run", module="experiments.decide").complaint

    table = read(work, "records.parquet")
    table[table["quantity"] != "error"].to_parquet(work / "records.parquet")
    assert "incomplete" in complaint() and "experiments.reproduce" in complaint()
    (work / "records.parquet").write_bytes(b"")
    assert "cannot be read" in complaint()
    (work / "records.parquet").unlink()
    assert "does not exist" in complaint()
    notes = read(work, "run.json")
    (work / "run.json").write_text(json.dumps(notes | {"hypotheses": ["G1", "Z1"]}))
    assert "no study Z1" in complaint()
    (work / "config.json").write_text("{")
    assert "config.json cannot be read" in complaint()


# Foreign folders, devices


def test_the_folder_of_another_run_is_refused(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    before = times(work, "**/*")
    for arguments, words in (
        ([*TINY, "--config.num_pairs=5"], ["config.num_pairs is 4 there and 5 here"]),
        ([*TINY, "--config.models.mlp.widths=(64,)"], ["config.models.mlp.widths"]),
        ([*launcher.FOLDERS, "--only=G1"], ["another run"]),
    ):
        line = launcher.run(tmp_path, *arguments, "--workdir=run").complaint
        for word in [*words, "--workdir=run", "choose another"]:
            assert word in line
    assert times(work, "**/*") == before


def test_xla_flags_win_and_other_devices_only_warn(tiny, tmp_path):
    one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    new = tmp_path / "new"
    job = launcher.Job(tmp_path, *TINY, f"--workdir={new}", env=one)
    assert job.signal_once(lambda: (new / "config.json").exists())
    job.wait()
    assert read(new, "config.json")["num_devices"] == 1

    work = copy(tiny[0], tmp_path)
    (work / "measurements").rename(tmp_path / "gone")  # so that populations of two are read on one
    result = launcher.run(tmp_path, *TINY, "--workdir=run", env=one)
    assert result.code == 0, result.err
    begun = len(jax.devices())
    assert f"begun on {begun} devices and goes on on 1" in result.err
    assert "resumed 2 of 2 populations" in result.err and "train" not in result.err
    assert read(work, "config.json")["num_devices"] == begun
    assert_same(work, tiny[0])

    default = tmp_path / "default"
    job = launcher.Job(tmp_path, *TINY, f"--workdir={default}", env={"XLA_FLAGS": None})
    assert job.signal_once(lambda: (default / "config.json").exists())
    job.wait()
    assert read(default, "config.json")["num_devices"] == len(os.sched_getaffinity(0))


# Training that diverges


def test_a_run_that_diverges_ends_and_says_so(tmp_path):
    result = run_small(tmp_path, "--config.training.learning_rate=1e30")
    assert result.code == 0, result.err
    assert "Traceback" not in result.err and "Warning" not in result.err
    assert "mlp, ρ = 0: training of 2 of 2 pairs was not finite" in result.err
    verdicts = read(tmp_path / "run", "verdicts.json")
    assert [verdict["id"] for verdict in verdicts] == ["G1", "G2", "T1", "T2"]
    for verdict in verdicts:
        assert verdict["verdict"] == "inconclusive"
        assert "2 of 2 pairs" in verdict["reason"] and "diverged" in verdict["reason"]
        assert np.isfinite(verdict["effect"])
        assert verdict["num_pairs"] == 0


def test_one_pair_that_diverged_is_counted_named_and_left_out(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    table = read(work, "records.parquet")
    key = read(work, "conditions.parquet").query("not permuted").index[0]
    lost = (table["condition"] == key) & (table["pair"] == 2)
    table.loc[lost, "value"] = np.nan
    table.loc[lost & (table["quantity"] == "finite"), "value"] = 0.0
    table.to_parquet(work / "records.parquet")
    result = launcher.run(tmp_path, "--workdir=run", module="experiments.decide")
    assert result.code == 0
    (verdict,) = read(work, "verdicts.json")
    assert verdict["num_pairs"] == 3 and verdict["verdict"] == "inconclusive"
    assert "1 of 4 pairs" in verdict["reason"]
    assert np.isfinite(verdict["effect"])
    line = "mlp, ρ = 0: training of 1 of 4 pairs was not finite; they are left out (pair 2)."
    assert result.err == f"{line}\n"
    assert line in (work / "report.html").read_text()
