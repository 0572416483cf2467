"""The whole command, interrupted, repeated, extended and damaged: always the same numbers."""

import fcntl
import html
import os
import pty
import re
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
from support import commands, launcher, run_folder
from support.run_folder import assert_same, read

from halfway.lab import studies
from halfway.lab.runtime import processes
from halfway.lab.runtime.runs import Run

ROOT = Path(__file__).resolve().parents[3]
SMALL = (launcher.SMALL, *launcher.FOLDERS)
FILES = {"config.json", "run.json", "verdicts.json", "records.parquet", "conditions.parquet"}


def times(folder, *patterns):
    """When files were last written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for pattern in patterns
        for path in folder.glob(pattern)
    }


def files(work):
    """When the files of a run were last written, but for its lock."""
    written = times(work, "**/*")
    written.pop(".lock", None)
    return written


def copy(folder, to):
    return shutil.copytree(folder, to / "run")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of one hypothesis that nobody disturbed."""
    return run_folder.make(tmp_path_factory.mktemp("tiny"))


def run_small(folder, *arguments):
    return commands.call(folder, "reproduce", *SMALL, "--workdir=run", *arguments)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of the four hypotheses of the main job at once."""
    folder = tmp_path_factory.mktemp("small")
    result = run_small(folder, "--only=G1,G2,T1,T2")
    assert result.code == 0, result.err
    return folder / "run", result


def requests(run, *names):
    """What hypotheses ask for in a run."""
    return [request for name in names for request in studies.available()[name].needs(run.config)]


# Event files


def test_event_files_grow_with_each_population_under_plain_names(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    flags = (*run_folder.G1, "--workdir=run", "--tensorboard")
    train, trained = Run.train, []

    def train_one(*arguments):
        if trained:
            raise processes.Terminated
        trained.append(1)
        return train(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "train", train_one)
        commands.call(tmp_path, "reproduce", *flags)
    folders = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert len(folders) == 1
    done = commands.call(tmp_path, "reproduce", *flags)
    assert done.code == 0, done
    grown = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert len(grown) == 2 and folders[0] in grown
    assert all(re.fullmatch(r"linear_(rho0|permuted)_[0-9a-f]{12}", name) for name in grown)


# A plan


@pytest.mark.quick
def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(tmp_path):
    result = commands.call(tmp_path, "reproduce", *run_folder.G1, "--workdir=run", "--dry_run")
    assert result.code == 0, result.err
    assert result.out.startswith("populations to train: 2; 0 are there already\n")
    assert result.out.endswith("measurements to make: 2 (learning 2)\n")
    assert not any(tmp_path.iterdir())


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
        is_control = verdict["kind"] == "control"
        assert verdict["verdict"] in (("met", "not met") if is_control else ("not at this size",))
        assert np.isfinite(verdict["effect"])
        assert len(verdict["interval"]) == 2
        assert verdict["num_pairs"] == 4 and verdict["evidence"] == "none"
        assert verdict["reason"] and verdict["parts"]
    stored = read(folder, "config.json")
    assert stored["num_devices"] == len(jax.devices())
    assert stored["config"]["num_pairs"] == 4
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {name.rsplit(".", 1)[0] for name in figures if name.endswith(".png")} == {
        name.rsplit(".", 1)[0] for name in figures if name.endswith(".svg")
    }
    assert len(figures) >= 2 * 5
    report = html.unescape((folder / "report.html").read_text())
    for verdict in verdicts:
        assert verdict["claim"] in report
    keys = set(read(folder, "records.parquet")["condition"])
    assert keys == set(read(folder, "conditions.parquet").index)
    assert len(keys) == 2 * (3 + 1)  # architectures, noise rates and permuted labels


def test_a_log_names_the_stages_and_the_end_is_a_table(small):
    _, result = small
    lines = result.err.splitlines()
    assert lines[0] == "1/29 train linear ρ=0, compiling, 0 s"
    assert lines[-1].startswith("29/29 done in ")
    assert not [line for line in lines if "resumed" in line or "warn" in line.lower()]
    assert "G1" in result.out and "T2" in result.out
    assert result.out.rstrip().endswith("run/report.html")


def test_a_terminal_shows_the_stage_and_the_time_left(tmp_path):
    """In a process of its own, as from a shell, and without a home folder."""
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
    done = subprocess.run(
        [sys.executable, "-m", "experiments.reproduce", *run_folder.G1, "--workdir=run"],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HOME": "/dev/null", "PYTHONPATH": str(ROOT)},
    )
    os.close(follower)
    thread.join()
    os.close(leader)
    terminal = b"".join(shown).decode()
    assert done.returncode == 0, terminal
    assert "train linear ρ=0" in terminal
    assert "/4 [" in terminal and "<" in terminal  # of four steps; elapsed<left
    assert "G1" in done.stdout and "step" not in done.stdout
    assert done.stdout.rstrip().endswith("run/report.html")


def test_the_same_seed_repeats_and_another_does_not(tiny, tmp_path):
    for seed in (0, 1):
        again = (f"--config.seed={seed}", f"--workdir={seed}")
        assert commands.call(tmp_path, "reproduce", *run_folder.G1, *again).code == 0
    assert_same(tmp_path / "0", tiny[0])
    a, b = (read(tmp_path / seed, "records.parquet") for seed in "01")
    number = len(a)
    assert number == len(b) and (a["value"] != b["value"]).sum() > 0.5 * number
    assert [v["verdict"] for v in read(tmp_path / "1", "verdicts.json")] == ["met"]


# Interrupted


def test_half_of_the_populations_are_trained_again_and_the_rest_is_not(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    first, second = sorted((work / "populations").iterdir())
    shutil.rmtree(second)
    shutil.rmtree(work / "measurements")
    for name in ("records.parquet", "run.json", "verdicts.json"):
        (work / name).unlink()
    kept = times(first, "condition.json")
    result = commands.call(tmp_path, "reproduce", *run_folder.G1, "--workdir=run")
    assert result.code == 0, result.err
    assert "resumed 1 of 2 populations\n" in result.err
    assert "3/3 done" in result.err  # one training and two measurements
    assert times(first, "condition.json") == kept
    assert_same(work, tiny[0])


def test_a_finished_run_answers_from_disk(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    shutil.rmtree(work / "figures")
    (work / "report.html").unlink()
    stored = times(work, "populations/**/*", "measurements/*")
    result = commands.call(tmp_path, "reproduce", *run_folder.G1, "--workdir=run")
    assert result.code == 0
    assert result.err == "resumed 2 of 2 populations\n"
    assert times(work, "populations/**/*", "measurements/*") == stored
    assert_same(work, tiny[0])
    assert result.out == tiny[1].out
    assert (work / "report.html").exists() and len(list((work / "figures").iterdir())) == 4


def test_what_is_damaged_is_made_again(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    first, second = sorted((work / "measurements").glob("*.npz"))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    (work / "records.parquet").write_bytes(b"PAR1")
    condition_id = second.stem.split("-")[1]
    for path in (work / "populations" / condition_id).rglob("*"):
        if path.is_file() and path.name != "condition.json":
            path.write_bytes(path.read_bytes()[:20])
    half = work / "populations" / "0123456789ab.partial"
    shutil.copytree(work / "populations" / condition_id, half)
    (work / "measurements" / ".x.npz.y.partial").write_text("half")
    result = commands.call(tmp_path, "reproduce", *run_folder.G1, "--workdir=run")
    assert result.code == 0, result.err
    assert f"{first.name} cannot be used" in result.err and "measured again" in result.err
    assert f"{condition_id} cannot be read" in result.err and "trained again" in result.err
    assert "resumed 1 of 2 populations" in result.err
    assert "3/3 done" in result.err  # one training and two measurements
    assert not [path for path in work.rglob("*.partial")]
    assert_same(work, tiny[0])


def test_a_run_that_is_in_use_is_left_alone(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    with Run.open(work).locked():
        before = files(work)
        for name, arguments in (("reproduce", run_folder.G1), ("decide", ())):
            second = commands.call(tmp_path, name, *arguments, "--workdir=run")
            assert "in use by another process" in second.complaint
        assert files(work) == before
    assert commands.call(tmp_path, "decide", "--workdir=run").code == 0


# Hypotheses one by one


def test_only_never_changes_a_number_and_results_merge(small, tmp_path, without_pages):
    folder, work = small[0], tmp_path / "run"
    first = run_small(tmp_path, "--only=G1")
    assert first.code == 0, first.err
    assert [verdict["id"] for verdict in read(work, "verdicts.json")] == ["G1"]
    alone, together = (read(path, "records.parquet") for path in (work, folder))
    assert 0 < len(alone) < len(together)
    shared = together.merge(alone, how="inner")
    assert len(shared) == len(alone)  # merged on all columns, the value too
    # T2 stands on T1, which is run with it; G1 is there.
    second = run_small(tmp_path, "--only=G2,T2")
    assert second.code == 0, second.err
    assert "resumed 4 of 8 populations\n" in second.err
    assert "21/21 done" in second.err  # four trainings and seventeen measurements
    assert [v["id"] for v in read(work, "verdicts.json")] == ["G1", "G2", "T1", "T2"]
    assert_same(work, folder)


def test_one_hypothesis_again_loses_nothing(small, tmp_path, without_pages):
    work = copy(small[0], tmp_path)
    again = run_small(tmp_path, "--only=G1")
    assert again.err == "resumed 8 of 8 populations\n"
    assert_same(work, small[0])


# Decide


def test_decide_rebuilds_from_records_alone(small, tmp_path):
    work = copy(small[0], tmp_path)
    before = read(work, "verdicts.json")
    stored = times(work, "*.parquet", "measurements/*")
    report = (work / "report.html").read_text()
    for name in ("populations", "figures"):
        shutil.rmtree(work / name)
    for name in ("verdicts.json", "report.html"):
        (work / name).unlink()
    result = commands.call(tmp_path, "decide", "--workdir=run")
    assert result.code == 0 and result.err == ""
    assert read(work, "verdicts.json") == before
    assert times(work, "*.parquet", "measurements/*") == stored
    assert not (work / "populations").exists()
    again = (work / "report.html").read_text()
    assert len(again) > 0.95 * len(report)
    figures = {path.name for path in (work / "figures").iterdir()}
    assert figures == {path.name for path in (small[0] / "figures").iterdir()}


def test_decide_says_what_is_wrong_with_a_run(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)

    def complaint():
        return commands.call(tmp_path, "decide", "--workdir=run").complaint

    run = Run.open(work)
    request, *_ = requests(run, "G1")
    dataset = run.records([request]).datasets[request.measurement.name, request.conditions[0].id]
    run.save_measurement(request, dataset.drop_vars("error"))
    assert "incomplete" in complaint() and "run reproduce again" in complaint()
    path = work / "measurements" / f"{request.id}.npz"
    path.write_bytes(b"")
    assert "cannot be used" in complaint()
    path.unlink()
    assert "cannot be used" in complaint() and path.name in complaint()
    shutil.rmtree(path.parent)
    assert "holds no measurements" in complaint()
    run.note(hypotheses=["G1", "Z1"])
    assert "no study Z1" in complaint()
    (work / "config.json").write_text("{")
    assert "config.json cannot be read" in complaint()


# Foreign folders, devices


def test_the_folder_of_another_run_is_refused(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    before = times(work, "**/*")
    for arguments, words in (
        ([*run_folder.G1, "--config.num_pairs=5"], ["config.num_pairs is 4 there and 5 here"]),
        (
            [*run_folder.G1, "--config.training.batch_size=32"],
            ["config.training.batch_size is 64 there and 32 here"],
        ),
        ([*launcher.FOLDERS, "--only=G1"], ["another run"]),
    ):
        line = commands.call(tmp_path, "reproduce", *arguments, "--workdir=run").complaint
        for word in [*words, "--workdir=run", "choose another"]:
            assert word in line
    assert times(work, "**/*") == before


def test_other_devices_only_warn(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    (work / "measurements").rename(tmp_path / "gone")  # so that populations of two are read on one
    result = commands.call(
        tmp_path, "reproduce", *run_folder.G1, "--workdir=run", "--mesh=member:1"
    )
    assert result.code == 0, result.err
    begun = len(jax.devices())
    assert f"begun on {begun} devices and goes on on 1" in result.err
    assert "resumed 2 of 2 populations" in result.err and "train" not in result.err
    assert read(work, "config.json")["num_devices"] == begun
    assert_same(work, tiny[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "number"),
    [
        ("--xla_force_host_platform_device_count=1", 1),
        (None, len(os.sched_getaffinity(0))),  # each core is a device
    ],
)
def test_xla_flags_win(tmp_path, flags, number):
    work = tmp_path / "run"
    job = launcher.Job(tmp_path, *run_folder.G1, "--workdir=run", env={"XLA_FLAGS": flags})
    assert job.signal_once(lambda: (work / "config.json").exists())
    job.wait()
    assert read(work, "config.json")["num_devices"] == number


# Training that diverges


def test_a_run_that_diverges_ends_and_says_so(tmp_path):
    result = run_small(tmp_path, "--config.training.learning_rate=1e38")
    assert result.code == 0, result.err
    assert "Traceback" not in result.err and "Warning" not in result.err
    assert "linear, ρ = 0: training of 4 of 4 pairs was not finite" in result.err
    verdicts = read(tmp_path / "run", "verdicts.json")
    assert [verdict["id"] for verdict in verdicts] == ["G1", "G2", "T1", "T2"]
    for verdict in verdicts:
        if verdict["kind"] == "control":
            assert verdict["verdict"] == "not met"
            assert "4 of 4 pairs" in verdict["reason"] and "diverged" in verdict["reason"]
        else:
            assert verdict["verdict"] == "not at this size"
        assert np.isfinite(verdict["effect"])
        assert verdict["num_pairs"] == 0


def test_one_pair_that_diverged_is_counted_named_and_left_out(tiny, tmp_path):
    work = copy(tiny[0], tmp_path)
    run = Run.open(work)
    (request,) = [r for r in requests(run, "G1") if not r.conditions[0].permuted]
    dataset = run.records([request]).datasets[request.measurement.name, request.conditions[0].id]
    finite = dataset["finite"].copy(data=dataset["pair"].values != 2)
    run.save_measurement(request, dataset.assign(finite=finite))
    result = commands.call(tmp_path, "decide", "--workdir=run")
    assert result.code == 0
    (verdict,) = read(work, "verdicts.json")
    assert verdict["num_pairs"] == 3 and verdict["verdict"] == "not met"
    assert "1 of 4 pairs" in verdict["reason"]
    assert np.isfinite(verdict["effect"])
    line = "linear, ρ = 0: training of 1 of 4 pairs was not finite; they are left out (pair 2)."
    assert result.err == f"{line}\n"
    assert line in (work / "report.html").read_text()
