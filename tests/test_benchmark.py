"""Benchmarks say what was timed; the times themselves are no test's business."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark, benchmarks, cli
from experiments.benchmarks import attacks as attacks_suite
from experiments.benchmarks import landscapes, timing
from experiments.benchmarks.timing import Row
from experiments.errors import UserError
from halfway import attacks, models

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
    assert benchmarks.available() == {"attacks": attacks_suite, "landscapes": landscapes}


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


@pytest.mark.parametrize("num_models", [1, 3])
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_attacks_at_once_are_attacks_one_by_one(kind, num_models, monkeypatch):
    """On few images; without the peer, whose absence is the reason of a skipped row."""
    config = {
        "cnn": {"kind": "cnn", "features": (2,), "stride": 1, "pool": 2, "widths": ()},
        "mlp": {"kind": "mlp", "widths": (6,)},
    }[kind]
    monkeypatch.setattr(attacks_suite, "CHUNK", 4)
    monkeypatch.setattr(attacks_suite, "NUM_STEPS", 3)
    monkeypatch.setattr(attacks_suite, "_peer", lambda *_: "no peer is installed")
    row = attacks_suite._compare("tiny", config, num_models, 8, 8, 0.5, 100, 1e9)
    assert row.skipped == "no peer is installed" and row.peer is None and row.ratio is None
    assert row.ours_seconds > 0 and row.ceiling_share > 0 and row.peak_memory_bytes > 0
    assert "skipped: no peer" in benchmark.as_text([row])

    module = models.build(config, num_classes=10)
    x = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    labels = jnp.arange(8) % 10
    keys = jax.random.split(jax.random.key(1), num_models)
    params = jax.lax.map(lambda k: module.init(k, x[:1])["params"], keys)
    logits_of = lambda p: lambda x: module.apply({"params": p}, x)  # noqa: E731
    many = attacks_suite._many if num_models > 1 else attacks_suite._one
    found = jax.jit(many(logits_of))(params, x, labels)
    for index in range(num_models):
        one = jax.tree.map(lambda leaf: leaf[index], params)  # noqa: B023
        expected = attacks.pgd(
            logits_of(one), jax.random.key(0), x, labels, threat=attacks.linf(0.1), num_steps=3,
            relative_step=0.1, best=False,
        )  # fmt: skip
        np.testing.assert_allclose(found[index], expected.adversarial, atol=1e-5)


def test_the_median_counts(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.median(lambda: None, repeats=3) == [5.0]
