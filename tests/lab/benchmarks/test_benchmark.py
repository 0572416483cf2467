"""Benchmarks say what was timed; the times themselves are no test's business."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands

from halfway import attacks, models
from halfway.attacks.auto import suite
from halfway.lab import benchmarks
from halfway.lab.benchmarks import attacks as attacks_suite
from halfway.lab.benchmarks import (
    auto_attack,
    landscapes,
    mnist,
    optimality,
    scale,
    strength,
    timing,
)
from halfway.lab.benchmarks import transfer as transfer_suite
from halfway.lab.benchmarks.timing import Row
from halfway.lab.commands import benchmark
from halfway.lab.config.user import UserError

FIELDS = {
    "work",
    "ours_seconds",
    "peer",
    "peer_seconds",
    "ratio",
    "target",
    "ceiling_share",
    "peak_memory_bytes",
}


@pytest.mark.quick
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
        benchmarks, "available", lambda: {"small": type("S", (), {"rows": lambda data_dir: rows})}
    )
    return rows


def _run(*arguments):
    commands.main("benchmark", *arguments)


@pytest.mark.quick
def test_rows_go_to_the_terminal_and_to_the_file(small, tmp_path, capsys):
    out = tmp_path / "rows.json"
    _run("--suite=small", f"--out={out}", "--compilation_cache=off")
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
        _run("--suite=smal")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is in no folder .*file is a file"):
        _run("--suite=small", f"--out={tmp_path}/file/x", "--compilation_cache=off")


@pytest.mark.quick
def test_suites_are_found():
    assert benchmarks.available() == {
        "attacks": attacks_suite,
        "landscapes": landscapes,
        "optimality": optimality,
        "scale": scale,
        "strength": strength,
        "transfer": transfer_suite,
    }


def test_the_transfer_suite_on_a_few_models(monkeypatch):
    for name, value in (("NUM_MODELS", 3), ("NUM_IMAGES", 10), ("SIDE", 4), ("WIDTH", 5)):
        monkeypatch.setattr(transfer_suite, name, value)
    monkeypatch.setattr(timing, "ceiling", lambda: 1e11)
    (row,) = transfer_suite.rows()
    assert row.work == "transfer_3x3_mlp_cold" and row.target == 1.0 and row.ceiling_share > 0
    assert row.ratio == pytest.approx(row.ours_seconds / 120)
    assert row.peak_memory_bytes > 1e7 and "10 images" in row.note


@pytest.mark.slow
def test_the_landscape_suite_on_a_few_images(monkeypatch):
    monkeypatch.setattr(landscapes, "NUM_IMAGES", 20)
    monkeypatch.setattr(landscapes, "GRID_SIZE", 3)
    monkeypatch.setattr(landscapes, "_peer", lambda *_: None)
    monkeypatch.setattr(timing, "ceiling", lambda: 1e11)
    rows = {row.work: row for row in landscapes.rows()}
    assert rows.keys() == {
        "slice_cnn_3x3",
        "top5_mlp_100k_under_3_s",
        "top5_mlp_100k",
        "trace_mlp_100k_50_samples",
        "weight_match_mlp_3x512",
    }
    assert rows["slice_cnn_3x3"].ratio == pytest.approx(rows["slice_cnn_3x3"].ours_seconds / 15)
    assert rows["top5_mlp_100k"].peer_seconds is None and rows["top5_mlp_100k"].target == 0.5
    assert "101770 parameters" in rows["top5_mlp_100k"].note


@pytest.mark.parametrize(
    ("kind", "num_models"),
    [
        ("cnn", 1),
        ("cnn", 3),
        ("mlp", 3),
        # No row has it: of single models only convolutional ones are timed.
        pytest.param("mlp", 1, marks=pytest.mark.slow),
    ],
)
def test_attacks_at_once_are_attacks_one_by_one(kind, num_models, monkeypatch):
    """On few images; without the peer, whose absence is the reason of a skipped row."""
    config = {
        "cnn": {"kind": "cnn", "features": (2,), "stride": 1, "pool": 2, "widths": ()},
        "mlp": {"kind": "mlp", "widths": (6,)},
    }[kind]
    monkeypatch.setattr(attacks_suite, "CNN_CHUNK", 4)
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
    points = jax.jit(many(logits_of))(params, x, labels)
    for index in range(num_models):
        member = jax.tree.map(lambda leaf: leaf[index], params)  # noqa: B023
        expected = attacks.pgd(
            logits_of(member),
            jax.random.key(0),
            x,
            labels,
            threat=attacks.linf(0.1),
            num_steps=3,
            relative_step=0.1,
            best=False,
        )
        np.testing.assert_allclose(points[index], expected.adversarial, atol=1e-5)


def test_the_median_counts(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.median(lambda: None, repeats=3) == [5.0]


def test_two_runs_do_where_one_takes_over_a_minute(monkeypatch):
    clock = iter([0.0, 61.0, 70.0, 140.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    assert timing.median(lambda: calls.append(1), warm=False) == [65.5]
    assert len(calls) == 2


def test_what_a_user_waits_for_is_timed_from_cold(monkeypatch):
    """To the first result of the first stage, with no cache of programs; the end is in the note."""
    ends = iter([-1, 0, 3])
    clock = iter([100.0, 101.0, 106.0, 130.0])

    def steps(*arguments, **options):
        for stage in ends:
            assert not jax.config.jax_enable_compilation_cache
            yield types.SimpleNamespace(stage=stage)

    monkeypatch.setattr(auto_attack.attacks, "auto_attack_steps", steps)
    monkeypatch.setattr(auto_attack.time, "perf_counter", lambda: next(clock))
    row = auto_attack.first_row()
    assert row.ours_seconds == 6.0 and row.ratio == 6.0 / auto_attack.LIMIT
    assert "all stages 30.0 s" in row.note
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.quick
def test_a_suite_without_mnist_says_how_to_prepare_it(tmp_path):
    row = auto_attack.row(str(tmp_path))
    assert row.ours_seconds is None and row.target == 0.7
    assert "data set 'mnist' is not in the data folder" in row.skipped
    (row,) = strength.rows(str(tmp_path))
    assert "experiments.prepare_data --dataset=mnist" in row.skipped
    assert "skipped: data set" in strength.as_text([row])


@pytest.fixture(scope="module")
def tiny():
    """A network with random weights in the place of the trained one, on few images."""
    module = models.build(mnist.CNN, num_classes=10)
    x = jax.random.uniform(jax.random.key(0), (12, 8, 8, 1))
    params = module.init(jax.random.key(1), x[:1])["params"]
    labels = jnp.argmax(module.apply({"params": params}, x), -1).at[3].add(1) % 10
    return mnist.Problem(mnist.CNN, params, x, labels, 1.0)


@pytest.mark.slow
def test_stages_timed_one_by_one_are_the_attack(tiny):
    names = ("apgd_ce", "square")
    staged = auto_attack.Staged(tiny, "linf", num_steps=3, num_queries=10, names=names)
    result = staged(0.02)
    assert staged.memory > 0 and [len(s) for s in staged.seconds.values()] == [1, 1]
    assert staged.survivors[0] == 11 and staged.survivors[-1] == (~result.success).sum()
    assert staged.survivors == sorted(staged.survivors, reverse=True)
    assert result.adversarial.shape == tiny.images.shape
    # The halves of the images lie on two devices, each with a key of its own.
    key = jax.random.key(0)
    for shard in range(2):
        part = slice(6 * shard, 6 * shard + 6)
        expected = suite.clean(tiny.logits_fn, tiny.images[part], tiny.labels[part], chunk_size=16)
        for index, name in enumerate(names):
            stage_key = jax.random.split(jax.random.fold_in(key, index), 2)[shard]
            expected = suite.stage(
                name,
                tiny.logits_fn,
                stage_key,
                tiny.images[part],
                tiny.labels[part],
                expected,
                threat=attacks.linf(0.02),
                num_steps=3,
                num_targets=9,
                num_queries=10,
                chunk_size=16,
            )
        np.testing.assert_array_equal(result.success[part], expected.success)
        np.testing.assert_allclose(result.adversarial[part], expected.adversarial, atol=1e-5)
    assert "12 images" in auto_attack._note(tiny, 0.02, staged)


@pytest.mark.quick
def test_the_budget_leaves_a_share_between_its_bounds():
    class Fake:
        survivors = ()

        def __call__(self, epsilon, number):
            assert number == 1
            self.survivors = [100, round(100 * max(0.0, 1 - epsilon / 0.15))]

    fake = Fake()
    epsilon = auto_attack.budget(fake, 100)
    assert 10 <= fake.survivors[-1] <= 30 and 0.1 < epsilon < 0.14


def test_strength_compares_points_within_the_budget(tiny):
    peer = jnp.clip(tiny.images + 0.1, 0, 1)
    row = strength._accuracy(tiny, "pgd", "linf", 0.1, lambda *_: tiny.images, np.asarray(peer))
    right = np.asarray(jnp.argmax(tiny.logits_fn(peer), -1) == tiny.labels).mean()
    assert row.ours == pytest.approx(100 * 11 / 12) and row.theirs == pytest.approx(100 * right)
    assert row.weaker == pytest.approx(row.ours - row.theirs) and row.at_most == 0.3
    assert "farthest 0.0000 and 0.1000" in row.note
    assert "pgd linf" in strength.as_text([row])


def test_strength_compares_medians_of_what_both_fool(tiny, monkeypatch):
    monkeypatch.setattr(mnist, "NUM_AT_ONCE", 6)
    ours = attacks.deepfool(tiny.logits_fn, jax.random.key(0), tiny.images, tiny.labels)
    away = np.asarray(attacks.distance(ours.adversarial, tiny.images))
    twice = tiny.images + 2 * (ours.adversarial - tiny.images)
    both = np.asarray(jnp.argmax(tiny.logits_fn(twice), -1) != tiny.labels) & ours.success
    both = np.asarray(both).copy()
    both[3] = False  # misclassified from the start
    row = strength._distance(tiny, "deepfool", "l2", {"num_steps": 50}, np.asarray(twice))
    assert row.ours == pytest.approx(np.median(away[both]), rel=1e-4)
    assert row.weaker == pytest.approx(0.5, rel=1e-4) and row.at_most == 1.01
    assert f"{both.sum()} of 11 fooled by both" in row.note
