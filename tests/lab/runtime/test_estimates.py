"""What training will take, summed over programs and devices, and what a terminal shows of it."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from halfway import populations, sharding
from halfway.data import Split
from halfway.lab.runtime import costs, estimates

POOL = Split(np.zeros((300, 8, 8, 1), np.float32), np.zeros(300, np.int32))
MLP = populations.Condition(
    dataset="digits",
    architecture="mlp",
    model={"kind": "mlp", "widths": (12,)},
    num_classes=10,
    num_examples=100,
    num_holdout=60,
    probe_steps=(0, 4, 10),
    num_pairs=4,
    seed=3,
    batch_size=16,
)
CNN_MODEL = {"kind": "cnn", "features": (4,), "stride": 2, "widths": ()}
CNN = dataclasses.replace(MLP, architecture="cnn", model=CNN_MODEL)
SIX = (
    MLP,
    *(dataclasses.replace(MLP, noise_rate=r) for r in (0.2, 0.4)),
    CNN,
    dataclasses.replace(CNN, permuted=True),
    dataclasses.replace(MLP, num_pairs=6),
)


def change(condition, **fields):
    return dataclasses.replace(condition, **fields)


def layout(members, data=1, at_once=None):
    return sharding.Layout(sharding.make_mesh(members, data), at_once)


@pytest.fixture(autouse=True)
def rate(monkeypatch):
    """A machine of 1 GFLOP/s."""
    monkeypatch.setattr(estimates, "matmul_rate", lambda layout: 1e9)


def test_populations_are_grouped_by_program_and_summed():
    estimate = estimates.estimate(SIX, POOL, layout(2))
    assert [(row.name, row.num_populations, row.num_members) for row in estimate.rows] == [
        ("mlp", 3, 24),
        ("cnn", 2, 16),
        ("mlp", 1, 12),
    ]
    assert estimate.num_populations == 6 and estimate.num_members == 52
    flops = [2 * condition.num_pairs * costs.model_flops(condition, (8, 8, 1)) for condition in SIX]
    assert estimate.flops == pytest.approx(sum(flops))
    assert estimate.rows[0].flops == pytest.approx(sum(flops[:3]))
    kept = sum(costs.kept_bytes(condition, (8, 8, 1)) for condition in SIX)
    assert estimate.kept_bytes == kept
    assert estimate.memory_bytes == max(row.memory_bytes for row in estimate.rows)


def test_time_is_flops_over_the_share_of_the_rate_and_compilation(monkeypatch):
    monkeypatch.setattr(estimates, "SHARE", {("cpu", "mlp"): 0.5})
    estimate = estimates.estimate([MLP, change(MLP, seed=1)], POOL, layout(2))
    assert estimate.seconds == pytest.approx(estimate.flops / 5e8 + estimates.COMPILE_SECONDS)
    assert estimate.guessed == ()
    # Five pairs on two devices take the time of six.
    odd = estimates.estimate([change(MLP, num_pairs=5)], POOL, layout(2))
    waiting = (odd.seconds - estimates.COMPILE_SECONDS) / (odd.flops / 5e8)
    assert waiting == pytest.approx(6 / 5)
    guess = estimates.estimate([CNN], POOL, layout(2))
    assert guess.guessed == ("cnn",)
    assert guess.seconds == pytest.approx(guess.flops / 1e8 + estimates.COMPILE_SECONDS)


def test_memory_of_a_device_is_that_of_its_pairs(monkeypatch):
    monkeypatch.setattr(sharding, "AT_ONCE", {})
    large = change(MLP, num_examples=2000, capacity=2000)
    image_bytes = POOL.images.nbytes

    def memory(condition, where):
        return estimates.estimate([condition], POOL, where).memory_bytes - image_bytes

    single, both = memory(large, layout(1)), memory(large, layout(2))
    assert single == 4 * costs.memory_of(large, (8, 8, 1)).most
    assert both == pytest.approx(single / 2)
    # Halved along `data` is the work and not what is held; taking turns leaves less at work.
    held = 4 * costs.memory_of(large, (8, 8, 1)).held
    assert memory(large, layout(1, 2)) - held == pytest.approx((single - held) / 2)
    assert memory(large, layout(1, at_once=1)) - held == pytest.approx((single - held) / 4)
    monkeypatch.setattr(sharding, "AT_ONCE", {"cpu": 1})
    assert memory(large, layout(1)) == memory(large, layout(1, at_once=1))


def test_pairs_at_once_are_those_of_the_device_the_layout_or_the_backend(monkeypatch):
    def at_once(condition, where):
        return estimates.estimate([condition], POOL, where).rows[0].at_once

    assert at_once(MLP, layout(1, at_once=3)) == 1
    monkeypatch.setattr(sharding, "AT_ONCE", {})
    assert at_once(change(MLP, num_pairs=5), layout(2)) == 3
    assert at_once(MLP, layout(1, at_once=3)) == 3


@pytest.mark.quick
def test_a_terminal_shows_all_of_it(monkeypatch):
    monkeypatch.setattr(estimates, "SHARE", {("cpu", "mlp"): 0.5})
    where = layout(2)
    estimate = estimates.estimate(SIX, POOL, where)
    counts = {"transfer": 12, "learning": 14, "first_order": 0}
    text = estimates.in_words(estimate, where, num_stored=1, measurements=counts)
    lines = text.splitlines()
    assert lines[0] == "populations to train: 6; 1 is there already"
    assert max(map(len, lines)) <= 100
    assert [line.split()[:3] for line in lines if line.startswith(("mlp", "cnn", "all"))] == [
        ["mlp", "3", "24"],
        ["cnn", "2", "16"],
        ["mlp", "1", "12"],
        ["all", "6", "52"],
    ]
    assert f"{estimate.flops / 1e6:.3g} MFLOP" in text and "about" in text and "factor of 2" in text
    assert f"memory: {estimate.memory_bytes / 1e3:.3g} kB on a device" in text
    assert "no training of cnn has been timed on cpu" in text
    assert lines[-2] == "layout: mesh member:2,data:1 on 2 devices (cpu)"
    assert lines[-1] == "measurements to make: 26 (learning 14, transfer 12)"


def test_what_may_stop_is_said_to_be_counted_in_full():
    where = layout(2)
    texts = [
        estimates.in_words(estimates.estimate([MLP, condition], POOL, where), where)
        for condition in (change(MLP, seed=1), change(MLP, stop_loss=0.1, probe_steps=(0, 10)))
    ]
    assert ["may stop at a loss" in text for text in texts] == [False, True]


def test_long_names_and_many_measurements_stay_within_a_terminal():
    conditions = [change(MLP, architecture=f"mlp of some width {i}") for i in range(9)]
    where = layout(1)
    estimate = estimates.estimate(conditions, POOL, where)
    counts = {f"measurement_with_a_name_{i}": 1000 + i for i in range(20)}
    text = estimates.in_words(estimate, where, num_stored=9, measurements=counts)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" in text and "on 1 device (" in text and "9 are there already" in text
    assert all(f"{name} {number}" in text for name, number in counts.items())


@pytest.mark.quick
def test_where_all_is_there_nothing_is_measured(monkeypatch):
    monkeypatch.delattr(estimates, "matmul_rate")
    where = layout(2)
    estimate = estimates.estimate([], POOL, where)
    assert (estimate.num_populations, estimate.flops, estimate.memory_bytes, estimate.seconds) == (
        0,
        0,
        0,
        0,
    )
    assert estimates.in_words(estimate, where, num_stored=3).splitlines() == [
        "populations to train: 0; 3 are there already",
        "layout: mesh member:2,data:1 on 2 devices (cpu)",
        "measurements to make: 0",
    ]


MATMUL_RATE = estimates.matmul_rate


@pytest.mark.parametrize("number", [1, 2])
def test_the_rate_is_that_of_matrix_products_on_all_devices(monkeypatch, number):
    moments = itertools.count()  # a clock that is a tenth of a second later with each look
    clock = types.SimpleNamespace(monotonic=lambda: next(moments) / 10)
    monkeypatch.setattr(estimates, "time", clock)
    calls, block = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda made: calls.append(block(made)) or made)
    rate = MATMUL_RATE(layout(number), 0.25)
    # Compiled first; then two rounds, since the third look comes after 0.3 s.
    assert len(calls) == 1 + 2
    for products in calls:
        assert [product.device for product in products] == jax.devices()[:number]
        assert all(product.shape == (1024, 1024) for product in products)
        np.testing.assert_allclose(products[0], 1 / 1024, rtol=1e-5)
    assert rate == pytest.approx(number * 2 * 2 * 1024**3 / 0.3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_600, "1 MB"), (3.4e15, "3.4 PB")],
)
def test_numbers_have_three_digits_and_a_prefix(value, text):
    assert estimates.scaled(value, "B") == text
