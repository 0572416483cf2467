"""What steps along orthogonal directions do to a tiny population, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t8 as planted
from support import members, tiny_run

from halfway import input_space, losses
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t8 import measure, study
from halfway.lab.studies.t8.measure import (
    BOUNDS,
    FOOLED,
    NUM_DIRECTIONS,
    SIDES,
    SUBSPACE,
    Steps,
)
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured, Records

NUM_PAIRS = 3  # on two devices: the padding must not show
CONFIG = tiny_run.config(
    num_pairs=NUM_PAIRS, num_examples=100, num_holdout=120, training={"probe_steps": (0, 150)}
)
CONDITION = condition(CONFIG, "mlp")


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


@pytest.fixture(scope="module")
def context(trained, pool):
    return Context(jax.random.key(12), (trained,), pool, CONFIG)


@pytest.fixture(scope="module")
def length(pool):
    return measure.step_length(np.asarray(pool.images))


@pytest.fixture(scope="module")
def steps(context):
    return Measured(SUBSPACE.measure(context))


def _read(measured, name, **labels):
    return measured.read(name, "pair", "surrogate", **labels)


def _margin_gradient(model, x, labels):
    gradient = jax.jit(jax.grad(lambda x: losses.margin(model(x), labels).sum()))(x)
    return np.asarray(gradient).reshape(len(x), -1)


@pytest.mark.parametrize(("pair", "side"), [(0, 0), (2, 1)])
def test_rates_along_orthogonal_directions_are_those_of_a_loop(
    trained, pool, context, steps, length, pair, side
):
    place = pair, side
    models = members.models(trained, pair, side)
    x, labels = members.holdout(trained, pool, pair)
    frame = measure.frames_of(context)[pair, side, :NUM_DIRECTIONS]
    gradient = _margin_gradient(models[0], x, labels)
    aligned = jax.jit(jax.vmap(input_space.aligned_directions, (0, None)))(gradient, frame)
    fooled = {name: np.zeros((2, NUM_DIRECTIONS, len(x)), bool) for name in BOUNDS}
    for i in range(NUM_DIRECTIONS):
        moved = x + length * np.asarray(aligned[:, i]).reshape(x.shape)
        for bounds, points in (("box", np.clip(moved, 0, 1)), ("free", moved)):
            for m, model in enumerate(models):
                fooled[bounds][m, i] = np.asarray(model(points)).argmax(-1) != labels
    right = np.all([np.asarray(model(x)).argmax(-1) == labels for model in models], 0)
    assert _read(steps, "num_examples")[place] == right.sum()
    for bounds, (fooled_a, fooled_b) in fooled.items():
        rates, mixed = dict.fromkeys(SIDES, 0.0), 0
        for b in np.flatnonzero(right):
            if 0 < fooled_a[:, b].sum() < NUM_DIRECTIONS:
                mixed += 1
                rates["along"] += fooled_b[fooled_a[:, b], b].mean()
                rates["beside"] += fooled_b[~fooled_a[:, b], b].mean()
        assert mixed > 3  # or else nothing is compared
        assert _read(steps, "num_mixed", bounds=bounds)[place] == mixed
        for name, rate in rates.items():
            measured = _read(steps, "rate", bounds=bounds, side=name)[place]
            np.testing.assert_allclose(measured, rate, rtol=1e-5)
        for name, outcomes in zip(FOOLED, (fooled_a, fooled_b, fooled_a & fooled_b), strict=True):
            labels_of = {"bounds": bounds, "fooled": name}
            assert _read(steps, "num_directions", **labels_of)[place] == outcomes[:, right].sum()
            counts = steps.read("directions", "pair", "surrogate", "example", **labels_of)[place]
            np.testing.assert_array_equal(counts, np.where(right, outcomes.sum(0), -1))


def test_without_a_box_all_steps_are_alike_to_first_order(steps, length):
    number = {bounds: _read(steps, "num_mixed", bounds=bounds) for bounds in BOUNDS}
    for side in SIDES:
        for name, expected in (("length", length), ("gain", 1.0)):
            total = _read(steps, name, bounds="free", side=side)
            np.testing.assert_allclose(total, expected * number["free"], rtol=1e-4)
        # The box takes something of both.
        shorter = _read(steps, "length", bounds="box", side=side) / number["box"]
        assert (shorter < 0.95 * length).all()


def test_first_order_grants_more_directions_than_fool(trained, pool, steps, length):
    granted, fooling, shared = (
        _read(steps, "num_dimensions", dimension=name) for name in measure.DIMENSIONS
    )
    assert (granted > 0).all() and (fooling <= granted).all() and (shared <= fooling).all()
    x, labels = members.holdout(trained, pool, 1)
    models = members.models(trained, 1, 0)
    right = np.all([np.asarray(model(x)).argmax(-1) == labels for model in models], 0)
    gradient = _margin_gradient(models[0], x, labels)
    needed = -np.asarray(losses.margin(models[0](x), jnp.asarray(labels)))
    ratio = (length * np.linalg.norm(gradient, axis=1) / needed) ** 2
    expected = np.minimum(np.floor(ratio), measure.MOST_DIRECTIONS)[right].sum()
    assert granted[1, 0] == pytest.approx(expected, abs=1)


def test_a_model_shares_all_of_its_directions_with_itself(trained, pool, context):
    population = members.twins(trained)
    steps = Measured(SUBSPACE.measure(dataclasses.replace(context, populations=(population,))))
    for bounds in BOUNDS:
        mixed = _read(steps, "num_mixed", bounds=bounds)
        assert np.isnan(mixed[2]).all() and (mixed[:2] > 0).all()
        rates = {side: _read(steps, "rate", bounds=bounds, side=side)[:2] for side in SIDES}
        np.testing.assert_allclose(rates["along"], mixed[:2])
        np.testing.assert_array_equal(rates["beside"], np.zeros((2, 2)))
    assert np.isnan(_read(steps, "num_dimensions", dimension="shared")[2]).all()


def test_a_step_is_as_long_for_the_size_and_the_contrast_of_images(pool, steps, length):
    images = np.asarray(pool.images)
    assert length == pytest.approx(measure.LENGTH, rel=1e-5)  # the pool is all digits
    assert steps.read("step_length") == length
    spread = np.mean([images[:, i, j].std() for i in range(8) for j in range(8)])
    assert measure.pixel_spread(images) == pytest.approx(spread, rel=1e-5)
    large = np.repeat(np.repeat(images, 2, 1), 3, 2)
    assert measure.step_length(0.5 * large) == pytest.approx(0.5 * 6**0.5 * length, rel=1e-5)


def test_frames_of_a_pair_are_orthonormal_whatever_the_number_of_pairs(context):
    frames = measure.frames_of(context)
    assert frames.shape == (NUM_PAIRS, 2, measure.MOST_DIRECTIONS, 64)
    products = frames @ np.swapaxes(frames, -1, -2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(64), products.shape), atol=1e-5)
    assert len(np.unique(frames[..., 0, 0])) == 2 * NUM_PAIRS
    fewer = context.population.replace(condition=dataclasses.replace(CONDITION, num_pairs=2))
    again = measure.frames_of(dataclasses.replace(context, populations=(fewer,)))
    np.testing.assert_array_equal(again, frames[:2])


def test_few_mixed_examples_settle_nothing():
    records = planted.plant(np.random.default_rng(0), 1.5)
    assert all(part.passed for part in study.decide(records).parts)
    (dataset,) = records.datasets.values()
    for name in ("rate", "num_mixed"):  # the same difference, of fewer examples
        dataset[name] = dataset[name] * (40 / dataset["num_mixed"].mean())
    test, gate = study.decide(Records(records.config, records.datasets)).parts
    assert test.passed and not gate.passed
    assert gate.estimate == pytest.approx(80)  # both directions of a pair


def test_contrast_by_hand():
    fooled_a = np.zeros((4, 3), bool)
    fooled_a[:2, 0] = fooled_a[:, 1] = fooled_a[0, 2] = True
    fooled_b = np.zeros_like(fooled_a)
    fooled_b[0] = fooled_b[3, 0] = True
    steps = Steps(
        jnp.stack([fooled_a, fooled_b], 1),
        jnp.broadcast_to(jnp.array([1.0, 3.0, 4.0, 6.0])[:, None], fooled_a.shape),
        jnp.full(fooled_a.shape, 2.0),
    )
    # The third example is mixed, but a model has it wrong.
    contrast = measure.contrast(steps, jnp.array([True, True, False]))
    assert contrast["mixed"].tolist() == [True, False, False]  # all directions fool the second
    assert contrast["rate"].tolist() == [[0.5, 0, 0], [0.5, 0, 0]]
    assert contrast["length"].tolist() == [[2, 0, 0], [5, 0, 0]]
    assert contrast["gain"].tolist() == [[2, 0, 0], [2, 0, 0]]
    assert contrast["directions"].tolist() == [[2, 4, -1], [2, 1, -1], [1, 1, -1]]
