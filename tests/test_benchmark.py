"""Benchmarks say what was timed; the times themselves are no test's business."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments import benchmark, benchmarks, cli
from experiments.benchmarks import landscapes, timing
from experiments.benchmarks.timing import Row
from experiments.errors import UserError

FIELDS = {
    "work", "ours_seconds", "peer", "peer_seconds", "ratio", "target", "ceiling_share",
    "peak_memory_bytes",
}  # fmt: skip


def test_calls_are_warmed_up_and_taken_in_turns():
    calls = []
    seconds = timing.least(lambda: calls.append("a"), lambda: calls.append("b"), repeats=2)
    assert calls == ["a", "b"] + ["a", "b"] * 2
    assert len(seconds) == 2 and all(0 <= s < 1 for s in seconds)


def test_the_least_time_counts(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.least(lambda: None, repeats=3) == [2.0]


def test_memory_is_that_of_the_program():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros(1000)).compile()
    assert 8000 <= timing.memory(compiled) <= 9000
    assert timing.ceiling(64) > 0


@pytest.fixture
def small(monkeypatch):
    """A fake suite of two rows."""
    rows = [
        Row("slice", 1.5, ratio=0.1, target=1.0, ceiling_share=0.25, peak_memory_bytes=2_000_000),
        Row("top", 0.5, "Peer 1.0", 2.0, 0.25, 0.5, note="equal to 1e-4"),
    ]
    monkeypatch.setattr(
        benchmarks, "available", lambda: {"small": type("S", (), {"rows": lambda: rows})}
    )
    return rows


def test_rows_go_to_the_terminal_and_to_the_file(small, tmp_path, capsys):
    out = tmp_path / "rows.json"
    options = cli.Options(suite="small", out=str(out), compilation_cache="off")
    benchmark.main(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["work", "ours,"] and len(lines) == 3
    assert "Peer 1.0" in lines[2] and "equal to 1e-4" in lines[2]
    stored = json.loads(out.read_text())
    assert [row["work"] for row in stored] == ["slice", "top"]
    assert all(row.keys() >= FIELDS for row in stored)
    assert stored[0]["peer"] is None and stored[1]["ratio"] == 0.25
    assert stored == [dataclasses.asdict(row) for row in small]


def test_a_suite_that_does_not_exist_and_a_file_that_cannot_be(small, tmp_path):
    with pytest.raises(UserError, match="--suite must be one of small, got 'smal'"):
        benchmark.main(cli.Options(suite="smal"))
    with pytest.raises(UserError, match="cannot be written"):
        benchmark.main(
            cli.Options(suite="small", out=str(tmp_path / "no" / "x"), compilation_cache="off")
        )


def test_suites_are_found():
    assert benchmarks.available() == {"landscapes": landscapes}


def test_the_landscape_suite_on_a_few_images(monkeypatch):
    monkeypatch.setattr(landscapes, "NUM_IMAGES", 20)
    monkeypatch.setattr(landscapes, "GRID", 3)
    monkeypatch.setattr(landscapes, "_peer", lambda *_: None)
    monkeypatch.setattr(timing, "ceiling", lambda: 1e11)
    rows = {row.work: row for row in landscapes.rows()}
    assert rows.keys() == {
        "slice_cnn_3x3", "top5_mlp_100k_under_3_s", "top5_mlp_100k",
        "trace_mlp_100k_50_samples", "weight_match_mlp_3x512",
    }  # fmt: skip
    assert rows["slice_cnn_3x3"].ratio == pytest.approx(rows["slice_cnn_3x3"].ours_seconds / 15)
    assert rows["top5_mlp_100k"].peer_seconds is None and rows["top5_mlp_100k"].target == 0.5
    assert "101770 parameters" in rows["top5_mlp_100k"].note
