"""The suite `scale` says what was timed; the times themselves are no test's business."""

import sys
import time
import types

import jax
import numpy as np
import pytest

from halfway import losses, models, populations, sharding
from halfway.lab.benchmarks import peers, scale, scale_devices, scale_start, scale_torch, scale_work
from halfway.lab.benchmarks.scale_work import Trainer, Work
from halfway.lab.commands import benchmark

TINY = Work({"kind": "mlp", "widths": (6,)}, 3, 4, (16 * 6, 6 * 10), 0.5)
TINY_CNN = Work(
    {"kind": "cnn", "features": (2,), "stride": 1, "pool": 2, "widths": ()}, 2, 4, (288, 80), 0.5
)


CEILING = scale_work.ceiling


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Two pieces of two steps of tiny members."""
    for name, value in (
        ("NUM_PIECES", 2),
        ("PIECE", 2),
        ("NUM_TIMED_STEPS", 4),
        ("NUM_IMAGES", 70),
    ):
        monkeypatch.setattr(scale_work, name, value)
    monkeypatch.setattr(scale_work, "ceiling", lambda: (lambda number: 0.5, 1e9))
    monkeypatch.setattr(scale_work, "small", lambda number: TINY._replace(num_members=number))


def fake(name, losses_, seconds=()):
    """A side that only says what it is told to."""
    left = iter(seconds)
    return Trainer(name, lambda first, last: next(left), lambda: np.array(losses_))


@pytest.mark.quick
def test_operations_leave_out_the_gradient_to_the_images():
    # 64 images: forward 96 + 60, to the weights the same, to the hidden layer 60; two operations.
    assert TINY.operations(5) == 2 * (2 * 156 + 60) * 64 * 5 * 3
    for name, work in scale_work.WORKS.items():
        module = models.build(work.config, num_classes=10)
        image = jax.ShapeDtypeStruct((1, work.side, work.side, 1), "float32")
        shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1)
        assert f"_x{work.num_members}" in name
        if work.config["kind"] == "mlp":
            assert sum(work.macs) == size


def test_our_side_takes_the_steps_of_each_member():
    problem = scale_work.problem(TINY)
    trainer = scale_work.ours(problem)
    assert trainer.memory > 0 and trainer.compile_seconds > 0
    assert trainer.advance(0, 2) > 0
    trainer.advance(2, 5)
    module = models.build(TINY.config, num_classes=10)
    apply_fn = lambda params, x: module.apply({"params": params}, x)  # noqa: E731
    optimizer = populations.make_optimizer("adam", 1e-3)

    @jax.jit
    def trained_loss(params, order):
        """The loss of a member after each of its batches, one after another."""
        state = populations.init_state(params, optimizer)
        for rows in order:
            state = populations.train_step(
                apply_fn, optimizer, state, problem.images[rows], problem.labels[rows]
            )
        logits = apply_fn(state.params, problem.images)
        return losses.cross_entropy(logits, problem.labels).mean()

    for index in range(3):
        params = jax.tree.map(lambda leaf: leaf[index], problem.params)  # noqa: B023
        expected = trained_loss(params, problem.rows[index, :5])
        np.testing.assert_allclose(trainer.losses()[index], expected, rtol=1e-5)
    assert np.ptp(np.asarray(problem.rows), 0).any()  # each member has its own order


def test_sides_that_train_differently_are_refused():
    a, b = fake("a", [1.0, 2.0]), fake("b", [1.0, 2.0005])
    assert scale_work.check(a, b) == pytest.approx(5e-4)
    with pytest.raises(RuntimeError, match=r"losses of a and c differ by 0\.01"):
        scale_work.check(a, fake("c", [1.01, 2.0]))
    with pytest.raises(RuntimeError, match="differ by nan"):
        scale_work.check(a, fake("d", [np.nan, 2.0]))


@pytest.mark.quick
def test_pieces_are_taken_in_turns_and_medians_count(monkeypatch):
    monkeypatch.setattr(scale_work, "NUM_PIECES", 3)
    asked = []

    def side(name, seconds):
        return lambda number: asked.append((name, number)) or seconds[number]

    seconds = scale_work.in_pieces(side("a", [1.0, 9.0, 2.0]), side("b", [5.0, 4.0, 50.0]))
    assert seconds == [6.0, 15.0]
    assert asked == [(name, number) for number in range(3) for name in "ab"]


def test_slow_sides_take_fewer_pieces_and_their_time_is_that_of_all(monkeypatch):
    monkeypatch.setattr(scale_work, "NUM_PIECES", 20)
    monkeypatch.setattr(scale_work, "LONG", -1.0)
    asked = []
    assert scale_work.in_pieces(lambda number: asked.append(number) or 2.0) == [40.0]
    assert asked == list(range(scale_work.LEAST_PIECES))


def test_the_ceiling_is_a_matrix_product():
    take, operations = CEILING()
    assert operations == 2 * 2048**3 and take(0) > 0


def test_a_piece_follows_the_steps_that_were_checked():
    ranges = []
    trainer = Trainer("a", lambda *limits: ranges.append(limits) or 0.0, lambda: np.zeros(1))
    for number in range(2):
        scale_work.turn(trainer)(number)
    assert ranges == [(6, 8), (8, 10)]


def test_rows_without_pytorch(monkeypatch):
    monkeypatch.setattr(scale_torch, "trainers", lambda _: "torch is not installed")
    (row,) = scale.training_rows("tiny", TINY)
    assert row.skipped == "torch is not installed" and row.target == 0.5 and row.ratio is None
    assert row.ours_seconds > 0 and row.steps_per_second == pytest.approx(12 / row.ours_seconds)
    assert row.ceiling_share == pytest.approx(TINY.operations(4) / row.ours_seconds / 2e9)
    assert "compiled in" in row.note and row.flops_utilization is None
    assert "skipped: torch" in benchmark.as_text([row])


def test_rows_beside_peers_and_bfloat16_on_an_accelerator(monkeypatch):
    ours = {
        "float32": fake("halfway, float32", [1.0], [2.0, 2.0, 2.0]),
        "bfloat16": fake("halfway, bfloat16", [1.1], [1.0, 1.0, 1.0]),
    }
    sides = [fake("loop", [1.0], [4.0] * 3), fake("vmap", [1.0], [8.0] * 3)]
    device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(scale_torch, "trainers", lambda _: sides)
    monkeypatch.setattr(
        scale_work,
        "ours",
        lambda _, dtype="float32": ours[dtype]._replace(compile_seconds=1.0),
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    loop, vmap, lower = scale.training_rows("tiny", TINY)
    assert (loop.work, loop.peer, loop.peer_seconds, loop.ratio) == ("tiny", "loop", 8.0, 0.5)
    assert (vmap.peer, vmap.ratio, loop.target, vmap.target) == ("vmap", 0.25, 0.5, None)
    assert (lower.work, lower.ours_seconds, lower.ratio) == ("tiny_bfloat16", 2.0, 0.5)
    assert lower.ceiling_share is None
    assert loop.flops_utilization == pytest.approx(TINY.operations(4) / 4 / (2 * 494e12))
    assert lower.flops_utilization == pytest.approx(TINY.operations(4) / 2 / (2 * 989e12))
    assert "of the peak FLOPs" in lower.note


@pytest.mark.quick
@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("cpu", None, None),
    ],
)
def test_peaks_are_those_of_the_device(kind, bfloat16, float32, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert (scale_work.peak("bfloat16"), scale_work.peak("float32")) == (bfloat16, float32)


def test_the_cost_of_a_member_is_a_share_of_all(monkeypatch):
    seconds = {1: 1.0, 4: 2.0}
    monkeypatch.setattr(
        scale_work,
        "ours",
        lambda problem: fake(
            "halfway, float32", [1.0], [seconds[problem.work.num_members]] * 3
        )._replace(compile_seconds=1.0, memory=10),
    )
    single, four = scale.member_rows((1, 4))
    assert [single.work, four.work] == ["train_small_mlp_members_1", "train_small_mlp_members_4"]
    assert (single.ours_seconds, four.ours_seconds) == (2.0, 1.0)  # two pieces
    assert (single.ratio, four.ratio) == (1.0, 0.5)
    assert (single.steps_per_second, four.steps_per_second) == (2.0, 4.0)
    assert "ratio to 1 member" in four.note and four.peak_memory_bytes == 10


def test_a_process_for_each_number_of_devices(monkeypatch):
    monkeypatch.setattr(scale_devices, "COUNTS", (1, 4))
    monkeypatch.setattr(scale_devices.os, "cpu_count", lambda: 2)
    code = (
        "import sys, jax\n"
        "print('warm', flush=True)\n"
        "for line in sys.stdin: print(jax.device_count() + int(line), flush=True)"
    )
    popen = scale_devices.subprocess.Popen
    monkeypatch.setattr(
        scale_devices.subprocess,
        "Popen",
        lambda _, **options: popen([sys.executable, "-c", code], **options),
    )
    single, four = scale_devices.device_rows("train_mlp_x16")
    assert (single.work, single.ours_seconds, single.ratio) == ("train_mlp_x16_devices_1", 3.0, 1.0)
    assert (four.work, four.ours_seconds, four.ratio) == ("train_mlp_x16_devices_4", 9.0, 3.0)
    assert single.target is None and four.target == 1.15 and "ratio to 1" in four.note


def test_a_process_that_ends_is_noticed(monkeypatch):
    popen = scale_devices.subprocess.Popen
    monkeypatch.setattr(
        scale_devices.subprocess,
        "Popen",
        lambda _, **options: popen([sys.executable, "-c", "pass"], **options),
    )
    with pytest.raises(RuntimeError, match="the process with 1 devices ended"):
        scale_devices.device_rows("train_mlp_x16")


def test_real_devices_take_their_turns_in_this_process(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sizes = []

    def warm(name):
        sizes.append(sharding.current().mesh.size)
        return lambda piece: float(sharding.current().mesh.size)

    monkeypatch.setattr(scale_devices, "_warm", warm)
    rows = scale_devices.device_rows("train_mlp_x16")
    assert sizes == [1, 2] and [row.ours_seconds for row in rows] == [2.0, 4.0]
    assert [row.ratio for row in rows] == [1.0, 2.0] and rows[-1].target is None


@pytest.mark.quick
def test_what_a_process_answers(monkeypatch, capsys):
    monkeypatch.setattr(scale_devices, "_warm", lambda name: lambda piece: piece + 0.5)
    monkeypatch.setattr(sys, "stdin", ["3\n", "4\n"])
    scale_devices._serve("train_mlp_x16")
    assert capsys.readouterr().out.split() == ["warm", "3.5", "4.5"]


@pytest.mark.quick
def test_the_second_start_is_the_quickest_after_the_first(monkeypatch):
    runs = iter([(9.0, 20.0), (4.0, 8.0), (3.0, 7.0), (5.0, 6.0)])
    monkeypatch.setattr(scale_start, "_run", lambda root, number: next(runs))
    row = scale_start.row()
    assert (row.ours_seconds, row.ratio, row.target) == (3.0, pytest.approx(0.6), 1.0)
    assert "whole run 6.0 s, the first 20.0 s" in row.note


def test_a_start_is_when_the_config_is_there(monkeypatch, tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1].partition('=')[2]); folder.mkdir()\n"
        "time.sleep(.1); (folder / 'config.json').touch()\n"
        "while not (folder / 'seen').exists(): time.sleep(.01)\n"
        "time.sleep(.1)"
    )
    monkeypatch.setattr(scale_start, "_COMMAND", ("-c", code))
    moments = []

    def clock():
        """Tells the process that its config was seen, however late that is."""
        if len(moments) == 1:
            (tmp_path / "run0" / "seen").touch()
        moments.append(time.perf_counter())
        return moments[-1]

    monkeypatch.setattr(
        scale_start, "time", types.SimpleNamespace(perf_counter=clock, sleep=time.sleep)
    )
    standing, whole = scale_start._run(tmp_path, 0)
    assert len(moments) == 3 and 0.1 < standing <= whole - 0.1
    monkeypatch.setattr(scale_start, "_COMMAND", ("-c", "raise SystemExit('error: no')"))
    with pytest.raises(RuntimeError, match="failed: error: no"):
        scale_start._run(tmp_path, 1)


@pytest.mark.parametrize("work", [TINY, TINY_CNN], ids=["mlp", "cnn"])
def test_pytorch_trains_the_same_members(work):
    """Where the extra `peers` is installed."""
    pytest.importorskip("torch")
    problem = scale_work.problem(work)
    ours = scale_work.ours(problem)
    sides = scale_torch.trainers(problem)
    assert [side.name.split(", ")[1] for side in sides] == ["loop", "func.vmap"]
    before = ours.losses()
    ours.advance(0, 6)
    for side in sides:
        assert side.advance(0, 6) > 0
        assert scale_work.check(ours, side) < 1e-4
    assert np.abs(ours.losses() - before).min() > 1e-3  # a side that stood still would be seen


def test_a_reason_where_pytorch_is_not_installed(monkeypatch):
    monkeypatch.setattr(peers, "load", lambda *names: f"{names[0]} is not installed")
    assert scale_torch.trainers(scale_work.problem(TINY)) == "torch is not installed"
