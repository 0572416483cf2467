"""What the parts of a perturbation do to a tiny population, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import members, tiny_run

from halfway import transfer
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t10 import measure, study
from halfway.lab.studies.t10.measure import LENGTH, MANIFOLD_PARTS, NUM_COMPONENTS, PARTS
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

NUM_PAIRS = 3  # on two devices: the padding must not show
KEY = jax.random.key(12)
CONFIG = tiny_run.config(
    num_pairs=NUM_PAIRS, num_examples=100, num_holdout=120, training={"probe_steps": (0, 150)}
)


@pytest.fixture(scope="module")
def trained(train):
    return train(condition(CONFIG, "mlp"))


@pytest.fixture(scope="module")
def context(trained, pool):
    return Context(KEY, (trained,), pool, CONFIG)


@pytest.fixture(scope="module")
def split(context):
    return Measured(MANIFOLD_PARTS.measure(context))


def _read(split, name, **labels):
    return split.read(name, "pair", "surrogate", **labels)


def _components(x):
    """Principal components as rows and the shares of the variance held up to each, by the SVD."""
    centred = np.asarray(x, np.float64).reshape(len(x), -1)
    centred = centred - centred.mean(0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    return rows, np.cumsum(values**2) / (values**2).sum()


def test_bases_are_the_components_of_s_alone(trained, pool):
    images, rows = np.array(pool.images), np.asarray(trained.halves.s.indices)
    bases, number = measure.bases_of(rows, images)
    assert bases.on.shape == (NUM_PAIRS, NUM_COMPONENTS, 64)
    for pair in range(NUM_PAIRS):
        components, held = _components(images[rows[pair]])
        assert number[pair] == np.argmax(held >= measure.VARIANCE) + 1 > NUM_COMPONENTS
        for basis, expected in (
            (bases.on[pair], components[:NUM_COMPONENTS]),
            (bases.off[pair], components[NUM_COMPONENTS : number[pair]]),
        ):
            # The sign of a component is nobody's business: projections are compared.
            basis = np.asarray(basis, np.float64)
            np.testing.assert_allclose(basis.T @ basis, expected.T @ expected, atol=1e-5)
        others = np.setdiff1d(np.arange(len(images)), rows[pair])
        spoiled = images.copy()
        spoiled[others] = np.random.default_rng(0).random(spoiled[others].shape)
        again, _ = measure.bases_of(rows[pair : pair + 1], spoiled)
        np.testing.assert_array_equal(again.on[0], bases.on[pair])


def test_few_components_leave_nothing_off_the_data():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 64))
    bases, number = measure.bases_of(np.arange(40)[None], flat)
    assert number.tolist() == [3]
    assert bases.off.shape == (1, 1, 64) and not np.asarray(bases.off).any()


@pytest.mark.parametrize(("pair", "side"), [(0, 1), (2, 0)])
def test_parts_move_models_as_in_a_loop(trained, pool, context, split, pair, side):
    place = pair, side
    models = dict(
        zip("AB" if side == 0 else "BA", members.models(trained, pair, side), strict=True)
    )
    surrogate = models["AB"[side]]
    x, labels = members.holdout(trained, pool, pair)
    components, held = _components(x)
    number = np.argmax(held >= measure.VARIANCE) + 1
    attack = context.program().attack(CONFIG.attack.epsilon)
    attacked = jax.jit(lambda x, labels: attack(surrogate, jax.random.key(0), x, labels))
    delta = (np.asarray(attacked(x, labels).adversarial) - x).reshape(len(x), -1)
    norm = np.linalg.norm(delta, axis=1, keepdims=True)
    on, off = (
        delta @ basis.T @ basis
        for basis in (components[:NUM_COMPONENTS], components[NUM_COMPONENTS:number])
    )
    parts = {"on": on, "off": off, "rest": delta - on - off, "whole": delta}
    for name, direction in parts.items():
        energy = (direction**2).sum()
        np.testing.assert_allclose(_read(split, "energy", part=name)[place], energy, rtol=1e-3)
        step = LENGTH * norm * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        moved = (x.reshape(len(x), -1) + step).reshape(x.shape).astype(np.float32)
        for target, model in models.items():
            before, after = (
                transfer.evaluate(model, jnp.asarray(at), jnp.asarray(labels)).loss
                for at in (x, moved)
            )
            measured = _read(split, "increase", target=target, part=name)[place]
            expected = float((after - before).sum())
            np.testing.assert_allclose(measured, expected, rtol=2e-3, atol=0.02)


def test_terms_sum_both_directions(split):
    increase = split.read("increase", "pair", "surrogate", "target", part="on")
    terms = study.terms(split, "on")
    np.testing.assert_array_equal(terms.numerators, increase[:, 0, 1] + increase[:, 1, 0])
    np.testing.assert_array_equal(terms.denominators, increase[:, 0, 0] + increase[:, 1, 1])


def test_energies_of_the_parts_are_that_of_the_whole(split):
    on, off, rest, whole = (_read(split, "energy", part=name) for name in PARTS)
    np.testing.assert_allclose(on + off + rest, whole, rtol=1e-4)


def test_any_part_moves_a_model_and_its_twin_alike(trained, context):
    population = members.twins(trained)
    split = Measured(
        MANIFOLD_PARTS.measure(dataclasses.replace(context, populations=(population,)))
    )
    for name in PARTS:
        rise, progress = study.terms(split, name)
        assert np.isnan(rise[2]) and np.isnan(progress[2])
        np.testing.assert_allclose(rise[:2], progress[:2], rtol=1e-5)


def test_parts_are_of_one_length_where_they_are_there_and_leave_the_box():
    x = np.array([[0.9, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], np.float32)
    delta = np.array([[0.08, 0.06, 0.0, 0.0], [0.0, 0.0, 0.3, 0.4]], np.float32)
    bases = measure.Bases(jnp.eye(4)[:1], jnp.stack([jnp.eye(4)[2], jnp.zeros(4)]))
    points, energy = jax.jit(measure.move_along_parts)(x, x + delta, bases)
    moves = np.asarray(points) - x
    # Of the first example nothing lies off the data, of the second nothing on them.
    expected = [
        [[0.05, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0.25, 0]],
        [[0, 0.05, 0, 0], [0, 0, 0, 0.25]],
        [[0.04, 0.03, 0, 0], [0, 0, 0.15, 0.2]],
    ]
    np.testing.assert_allclose(moves, expected, atol=1e-6)
    shares = [[0.64, 0.0], [0.0, 0.36], [0.36, 0.64], [1.0, 1.0]]
    np.testing.assert_allclose(energy, np.array(shares) * [0.01, 0.25], rtol=1e-4, atol=1e-9)
    far, _ = measure.move_along_parts(x, x + 10 * delta, bases)
    assert float(far.max()) > 1.3  # no box
