"""What the parts of a perturbation do to a tiny population, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import members, tiny_run

from halfway import input_space, transfer
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t10 import measure, study
from halfway.lab.studies.t10.measure import MANIFOLD_PARTS, NUM_COMPONENTS, PARTS
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


def test_the_subspace_is_that_of_the_own_half_alone(trained, pool):
    images = np.array(pool.images)
    bases = measure.bases_of(trained, images, 5)
    assert bases.shape == (NUM_PAIRS, 2, 5, 64)
    for side, half in enumerate((trained.halves.a, trained.halves.b)):
        rows = np.asarray(half.indices[1])
        expected = input_space.principal_subspace(images[rows], 5).basis
        np.testing.assert_allclose(bases[1, side], expected, atol=1e-6)
        others = np.setdiff1d(np.arange(len(images)), rows)
        spoiled = images.copy()
        spoiled[others] = np.random.default_rng(0).random(spoiled[others].shape)
        again = measure.bases_of(trained, spoiled, 5)
        np.testing.assert_array_equal(again[1, side], bases[1, side])


@pytest.mark.parametrize(("pair", "side"), [(0, 1), (2, 0)])
def test_parts_move_models_as_in_a_loop(trained, pool, context, split, pair, side):
    place = pair, side
    models = dict(
        zip("AB" if side == 0 else "BA", members.models(trained, pair, side), strict=True)
    )
    surrogate = models["AB"[side]]
    x, labels = members.holdout(trained, pool, pair)
    basis = measure.bases_of(trained, pool.images, NUM_COMPONENTS)[place]
    attack = context.program().attack(CONFIG.attack.epsilon)
    attacked = jax.jit(lambda x, labels: attack(surrogate, jax.random.key(0), x, labels))
    adversarial = np.asarray(attacked(x, labels).adversarial)
    delta = (adversarial - x).reshape(len(x), -1)
    on = (delta @ basis.T) @ basis
    norm = jnp.asarray(np.linalg.norm(delta, axis=1))
    points = {"whole": adversarial}
    for name, direction in (("on", on), ("off", delta - on)):
        moved = input_space.rescale_parts(jnp.asarray(x), direction.reshape(x.shape), norm)
        np.testing.assert_allclose(moved.length, norm, rtol=1e-4)
        points[name] = np.asarray(moved.points)
    assert _read(split, "num_shortened")[place] == 0
    assert _read(split, "num_examples")[place] == len(x)
    right = np.all([np.asarray(model(x)).argmax(-1) == labels for model in models.values()], 0)
    assert _read(split, "num_right")[place] == right.sum()
    for target, model in models.items():
        before = transfer.evaluate(model, jnp.asarray(x), jnp.asarray(labels))
        for name, moved in points.items():
            after = transfer.evaluate(model, jnp.asarray(moved), jnp.asarray(labels))
            increase = float((after.loss - before.loss).sum())
            measured = _read(split, "increase", target=target, part=name)[place]
            np.testing.assert_allclose(measured, increase, rtol=2e-3, atol=0.02)
            fooled = (right & ~np.asarray(after.correct)).sum()
            assert abs(_read(split, "num_fooled", target=target, part=name)[place] - fooled) <= 1
    energy = [_read(split, name, move="attack")[place] for name in ("energy_on", "energy")]
    np.testing.assert_allclose(energy, [(on**2).sum(), (delta**2).sum()], rtol=1e-4)


def test_terms_sum_both_directions(split):
    increase = split.read("increase", "pair", "surrogate", "target", part="on")
    terms = study.terms(split, "on")
    np.testing.assert_array_equal(terms.numerators, increase[:, 0, 1] + increase[:, 1, 0])
    np.testing.assert_array_equal(terms.denominators, increase[:, 0, 0] + increase[:, 1, 1])


def test_parts_are_equally_long_and_mostly_where_they_belong(split):
    for name in PARTS:
        assert (_read(split, "num_unequal", part=name) == 0).all()
    energy_on, energy = (
        {part: _read(split, name, move=part) for part in PARTS} for name in ("energy_on", "energy")
    )
    for name in PARTS:
        np.testing.assert_allclose(energy[name], energy["whole"], rtol=1e-3)
    assert (energy_on["on"] > 0.8 * energy["on"]).all()
    assert (energy_on["off"] < 0.2 * energy["off"]).all()
    assert split["expected_share"].item() == NUM_COMPONENTS / 64


def test_any_part_moves_a_model_and_its_twin_alike(trained, context):
    population = members.twins(trained)
    split = Measured(
        MANIFOLD_PARTS.measure(dataclasses.replace(context, populations=(population,)))
    )
    for name in PARTS:
        rise, progress = study.terms(split, name)
        assert np.isnan(rise[2]) and np.isnan(progress[2])
        np.testing.assert_allclose(rise[:2], progress[:2], rtol=1e-5)
        assert (progress[:2] > 0).all()


def test_where_the_box_stops_a_part_all_parts_stop():
    # The part of δ = (.1, 0, 0, 0) off (1, 0, 0, 0) is 0, and so is that of (0, .1, 0, 0) on it.
    x = np.array([[0.5, 0.5, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0]], np.float32)
    adversarial = x + np.array([[0.1, 0.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]], np.float32)
    move = jax.jit(measure.move_along_parts)
    sums, points = move(KEY, x, adversarial, jnp.array([[1.0, 0.0, 0.0, 0.0]]))
    # A part that does not exist has no length: nothing of these examples is compared.
    assert int(sums["num_shortened"]) == 2
    np.testing.assert_allclose(points, jnp.stack([x] * len(PARTS)), atol=1e-6)
    sums, points = move(KEY, x[[1, 1]], adversarial[[1, 1]], jnp.array([[0.8, 0.6, 0.0, 0.0]]))
    # On: (.048, .036), whose first pixel is at its bound. All are .1 long nonetheless.
    np.testing.assert_allclose(points[0], [[1.0, 0.6, 0.0, 0.0]] * 2, atol=1e-5)
    # Off: (−.048, .064), in which nothing is clipped.
    np.testing.assert_allclose(points[1], [[0.94, 0.58, 0.0, 0.0]] * 2, atol=1e-5)
    assert int(sums["num_shortened"]) == 0
