"""Event files are read back byte by byte, as TensorBoard would, and hold the population's means."""

import errno
import importlib.util
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import meeting, populations
from halfway.lab.config.user import UserError
from halfway.lab.runtime import tensorboard
from halfway.types import Sample

pytestmark = pytest.mark.quick

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)
CONDITION = populations.Condition(
    dataset="digits",
    architecture="mlp",
    model={"kind": "mlp", "widths": (12,)},
    num_classes=10,
    num_examples=40,
    num_holdout=60,
    probe_steps=(0, 4, 10),
    num_pairs=3,
    seed=3,
    batch_size=16,
)


PRODUCTS = ("own_own", "own_other", "other_other")


@pytest.fixture
def population():
    """Of random numbers, in the shapes of a trained one."""
    rng = np.random.default_rng(0)
    shape = (CONDITION.num_pairs, 2, len(CONDITION.probe_steps))
    landscapes = {
        sample: {loss: rng.uniform(size=shape).astype(np.float32) for loss in populations.LOSSES}
        for sample in ("own", "other", "holdout")
    }
    products = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name in PRODUCTS}
    nothing = {"params": {"w": np.ones(shape)}, "halves": None, "trained_labels": None}
    return populations.Population(
        condition=CONDITION,
        landscapes=landscapes,
        products=products,
        constant={},
        num_steps=np.full(shape[:2], 10),
        **nothing,
    )


def crc32c(payload):
    """Castagnoli's polynomial, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in payload:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(payload):
    """The checksum of the TFRecord format."""
    crc = crc32c(payload)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(content):
    payloads = []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        assert check == masked(content[:8])
        payload = content[12 : 12 + length]
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked(payload),)
        payloads.append(payload)
        content = content[16 + length :]
    return payloads


def scalars(folder):
    """`{tag: {step: value}}` of the one file in a folder."""
    from tensorboardX.proto import event_pb2

    (path,) = folder.iterdir()
    assert ".tfevents." in path.name
    first, *events = map(event_pb2.Event.FromString, records(path.read_bytes()))
    assert first.file_version == "brain.Event:2"
    steps_by_tag = {}
    for event in events:
        for value in event.summary.value:
            steps = steps_by_tag.setdefault(value.tag, {})
            assert event.step not in steps
            steps[event.step] = value.simple_value
    return steps_by_tag


def test_the_checksum_of_this_file_is_right():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@needs_library
def test_events_hold_means_over_pairs_and_models(population, tmp_path):
    folder = tmp_path / "tensorboard" / "mlp ρ=0"
    tensorboard.write(folder, population)
    written = scalars(folder)
    for sample in ("own", "other", "holdout"):
        for loss in ("cross_entropy", "brier", "error"):
            expected = np.asarray(population.landscapes[sample][loss]).mean((0, 1))
            assert tuple(written[f"{sample}/{loss}"]) == CONDITION.probe_steps
            np.testing.assert_allclose([*written[f"{sample}/{loss}"].values()], expected, 1e-6)
    for name, values in population.products.items():
        expected = np.asarray(values).mean((0, 1))
        np.testing.assert_allclose([*written[f"products/{name}"].values()], expected, 1e-5)
    assert len(written) == 3 * 3 + 3 + 2
    assert written["own/cross_entropy"][0] != written["other/cross_entropy"][0]


def test_the_ratios_are_those_of_the_library(population):
    # Gradients g and h in one and two dimensions: a replicate for each model, scaled alike.
    g, h = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.5, 3.0], [1.0, 1.0]])
    as_pair = lambda products: np.asarray(products)[None, :, None]  # noqa: E731
    products = {
        "own_own": as_pair((g * g).sum(1)),
        "own_other": as_pair((g * h).sum(1)),
        "other_other": as_pair((h * h).sum(1)),
    }
    unit = np.ones((1, 2, 1))
    single = population.replace(
        products=products, params={"w": unit}, landscapes={"own": {"error": unit}}
    )
    curves = tensorboard.curves(single)
    np.testing.assert_allclose(
        curves["products/coefficient"], meeting.local_coefficient(g, h), rtol=1e-6
    )
    np.testing.assert_allclose(curves["products/alignment"], meeting.alignment(g, h), rtol=1e-6)


def test_these_are_the_products_that_are_trained_with():
    sample = Sample(*(jnp.zeros(2, kind) for kind in (int, int, bool)))
    products = jax.eval_shape(
        lambda w: populations.gradient_products(
            lambda w, x: x @ w, w, jnp.ones((2, 3)), sample, sample
        ),
        jnp.ones((3, 4)),
    )
    assert {*products} == {*PRODUCTS}


def diverged(population, pairs):
    landscape = dict(population.landscapes["own"])
    landscape["error"] = np.array(landscape["error"])
    landscape["error"][pairs, 0, -1] = np.nan
    return population.replace(landscapes={**population.landscapes, "own": landscape})


@needs_library
def test_pairs_that_diverged_are_left_out(population, tmp_path):
    tensorboard.write(tmp_path / "run", diverged(population, [1]))
    expected = np.asarray(population.landscapes["own"]["error"])[[0, 2]].mean((0, 1))
    np.testing.assert_allclose([*scalars(tmp_path / "run")["own/error"].values()], expected, 1e-6)
    tensorboard.write(tmp_path / "none", diverged(population, [0, 1, 2]))
    assert scalars(tmp_path / "none") == {}


@needs_library
def test_written_again_the_folder_holds_one_file(population, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.out.tfevents.1.elsewhere").write_bytes(b"of before")
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "events.out.tfevents.2.killed").write_bytes(b"half")
    for _ in range(2):
        tensorboard.write(folder, population)
    assert {tuple(steps) for steps in scalars(folder).values()} == {CONDITION.probe_steps}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_the_library_one_line_says_what_to_install(population, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for call in (tensorboard.check, lambda: tensorboard.write(tmp_path / "run", population)):
        with pytest.raises(UserError, match="pip install tensorboardX"):
            call()
    assert not any(tmp_path.iterdir())


@needs_library
def test_a_full_disk_is_an_error_and_what_was_there_stays(population, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    tensorboard.write(folder, population)
    before = scalars(folder)
    from tensorboardX import record_writer

    def full(self):  # what was written so far waits in memory
        self.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "flush", full)
    with pytest.raises(UserError, match="No space left on device"):
        tensorboard.write(folder, population)
    assert scalars(folder) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tensorboard.write(tmp_path / "file" / "run", population)
