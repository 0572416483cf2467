"""What is measured along subspaces, of a tiny population, against the same by loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, input_space, losses, populations, transfer
from halfway.lab.studies.t8 import measure as adversarial_subspace
from halfway.lab.studies.t8.measure import EPSILON, MOST_DIRECTIONS, NUM_DIRECTIONS, SUBSPACE
from halfway.lab.studies.t10 import measure as manifold_parts
from halfway.lab.studies.t10.measure import MANIFOLD_PARTS, NUM_COMPONENTS
from halfway.lab.study import conditions, tables
from halfway.lab.study.protocol import Records

NUM_PAIRS = 3  # on two devices: the padding must not show
KEY = jax.random.key(12)


CONFIG = tiny_run.config(
    num_pairs=NUM_PAIRS, num_examples=100, num_holdout=120, training={"probe_steps": (0, 150)}
)


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def trained(pool):
    return populations.train(conditions.condition(CONFIG, "mlp"), pool)


@pytest.fixture(scope="module")
def twins(trained):
    """Pairs of one model twice, on the same halves, of which the last diverged."""
    params = jax.tree.map(lambda leaf: jnp.stack([leaf[:, 0]] * 2, 1), trained.params)
    params = jax.tree.map(lambda leaf: leaf.at[2, 1].set(jnp.nan), params)
    return trained.replace(params=params)


def _reader(measured, key):
    ones = tables.rows(
        np.ones(NUM_PAIRS), {"pair": range(NUM_PAIRS)}, condition=key, quantity="finite"
    )
    table = tables.concat([measured.table, ones])
    reader = tables.Reader(Records(table, tables.conditions_table([]), CONFIG))

    def read(quantity, subset):
        return reader.cube(key, quantity, ("pair", "surrogate"), subset=subset)

    return read


def _models(population, p, side):
    """Returns surrogate and target as functions on NumPy arrays."""
    found = []
    for which in (side, 1 - side):
        params = jax.tree.map(lambda leaf, w=which: leaf[p, w], population.params)
        found.append(jax.jit(functools.partial(population.apply_fn, params)))
    return found


def _examples(population, pool, p):
    rows = np.asarray(population.halves.s.indices[p])
    return np.asarray(pool.images)[rows], np.asarray(pool.labels)[rows]


def _margin_gradient(model, x, labels):
    return jax.jit(jax.grad(lambda z: losses.margin(model(z), labels).sum()))(x)


# Adversarial subspaces


@pytest.fixture(scope="module")
def along(trained, pool):
    return SUBSPACE.measure(KEY, [trained], pool, CONFIG)


@pytest.mark.parametrize(("p", "side"), [(0, 0), (2, 1)])
def test_rates_along_orthogonal_directions_are_those_of_a_loop(trained, pool, along, p, side):
    key = trained.condition.key
    read = _reader(along, key)
    surrogate, target = _models(trained, p, side)
    x, labels = _examples(trained, pool, p)
    frames = input_space.orthogonal_frames(KEY, MOST_DIRECTIONS, 64, shape=(NUM_PAIRS, 2))
    frame = frames[p, side, :NUM_DIRECTIONS]
    gradient = np.asarray(_margin_gradient(surrogate, x, labels)).reshape(len(x), -1)
    fooled = {"box": np.zeros((2, NUM_DIRECTIONS, len(x)), bool)}
    fooled["free"] = fooled["box"].copy()
    aligned = jax.jit(jax.vmap(input_space.aligned_directions, (0, None)))(gradient, frame)
    for i in range(NUM_DIRECTIONS):
        moved = x + EPSILON * np.asarray(aligned[:, i]).reshape(x.shape)
        for where, points in (("box", np.clip(moved, 0, 1)), ("free", moved)):
            for m, model in enumerate((surrogate, target)):
                fooled[where][m, i] = np.asarray(model(points)).argmax(-1) != labels
    right = [np.asarray(model(x)).argmax(-1) == labels for model in (surrogate, target)]
    right = right[0] & right[1]
    assert read("shared_examples", "both_correct")[p, side] == right.sum()
    for where, (own, other) in fooled.items():
        rates = {"along": 0.0, "beside": 0.0}
        mixed = 0
        for b in np.flatnonzero(right):
            if 0 < own[:, b].sum() < NUM_DIRECTIONS:
                mixed += 1
                rates["along"] += other[own[:, b], b].mean()
                rates["beside"] += other[~own[:, b], b].mean()
        assert mixed > 3  # or else nothing is compared
        assert read("shared_examples", f"mixed.{where}")[p, side] == mixed
        for name, rate in rates.items():
            found = read("shared_rate", f"{name}.{where}")[p, side]
            np.testing.assert_allclose(found, rate, rtol=1e-5)
        both = (own & other)[:, right].sum()
        assert read("shared_directions", f"both.{where}")[p, side] == both
        counts = np.where(right, own.sum(0), -1)
        np.testing.assert_array_equal(along.arrays[f"surrogate.{where}"][p, side], counts)


def test_without_a_box_all_steps_are_alike_to_first_order(trained, along):
    read = _reader(along, trained.condition.key)
    number = read("shared_examples", "mixed.free")
    for side in ("along", "beside"):
        for name, expected in (("length", EPSILON), ("gain", 1.0)):
            step = read("shared_step", f"{name}.{side}.free")
            np.testing.assert_allclose(step, expected * number, rtol=1e-4)
        # The box takes something of both.
        shorter = read("shared_step", f"length.{side}.box") / read("shared_examples", "mixed.box")
        assert (shorter < 0.95 * EPSILON).all()


def test_first_order_grants_more_directions_than_fool(trained, pool, along):
    read = _reader(along, trained.condition.key)
    predicted, own, both = (
        read("shared_directions", f"{name}.most") for name in ("predicted", "surrogate", "both")
    )
    assert (predicted > 0).all() and (own <= predicted).all() and (both <= own).all()
    x, labels = _examples(trained, pool, 1)
    models = _models(trained, 1, 0)
    right = np.all([np.asarray(model(x)).argmax(-1) == labels for model in models], 0)
    gradient = np.asarray(_margin_gradient(models[0], x, labels)).reshape(len(x), -1)
    needed = -np.asarray(losses.margin(models[0](x), jnp.asarray(labels)))
    ratio = (EPSILON * np.linalg.norm(gradient, axis=1) / needed) ** 2
    expected = np.minimum(np.floor(ratio), 64)[right].sum()
    assert predicted[1, 0] == pytest.approx(expected, abs=1)


def test_a_model_shares_all_of_its_directions_with_itself(twins, pool):
    measured = SUBSPACE.measure(KEY, [twins], pool, CONFIG)
    read = _reader(measured, twins.condition.key)
    for where in ("box", "free"):
        mixed = read("shared_examples", f"mixed.{where}")
        assert np.isnan(mixed[2]).all() and (mixed[:2] > 0).all()
        np.testing.assert_allclose(read("shared_rate", f"along.{where}")[:2], mixed[:2])
        np.testing.assert_array_equal(read("shared_rate", f"beside.{where}")[:2], np.zeros((2, 2)))
    assert np.isnan(read("shared_directions", "both.most")[2]).all()


def test_outcomes_by_hand():
    own = np.zeros((1, 2, 4, 3), bool)
    own[0, 0, :2, 0] = own[0, 0, :, 1] = own[0, 0, 0, 2] = True
    other = np.zeros_like(own)
    other[0, 0, 0, :] = other[0, 0, 3, 0] = True
    found = {
        f"{name}.{where}": value
        for where in adversarial_subspace.BOUNDS
        for name, value in (
            ("surrogate_fooled", own),
            ("target_fooled", other),
            ("length", np.ones(own.shape)),
            ("gain", 2.0 * np.ones(own.shape)),
        )
    }
    found |= {f"most.{name}": np.ones((1, 2, 3)) for name in ("predicted", "surrogate", "both")}
    found["target_correct"] = np.ones((1, 2, 3), bool)
    # The third example is mixed, but the surrogate has it wrong.
    found["surrogate_correct"] = np.array([[[True, True, False]] * 2])
    measured = adversarial_subspace.summarize(found, np.array([True]), "k")
    table = measured.table[measured.table["surrogate"] == "A"].set_index(["quantity", "subset"])
    value = table["value"]
    assert value["shared_examples", "both_correct"] == 2
    assert value["shared_examples", "mixed.box"] == 1  # all directions fool the second
    assert value["shared_rate", "along.box"] == 0.5 and value["shared_rate", "beside.box"] == 0.5
    assert value["shared_step", "gain.along.box"] == 2 and value["shared_step", "length.beside.box"]
    assert value["shared_directions", "surrogate.box"] == 6
    assert value["shared_directions", "both.box"] == 2
    assert measured.arrays["surrogate.box"][0, 0].tolist() == [2, 4, -1]


# Parts of a perturbation


@pytest.fixture(scope="module")
def split(trained, pool):
    return MANIFOLD_PARTS.measure(KEY, [trained], pool, CONFIG)


def test_the_subspace_is_that_of_the_own_half_alone(trained, pool):
    images = np.array(pool.images)
    found = manifold_parts.bases(trained, images, 5)
    assert found.shape == (NUM_PAIRS, 2, 5, 64)
    for side, half in enumerate((trained.halves.a, trained.halves.b)):
        rows = np.asarray(half.indices[1])
        expected = input_space.principal_subspace(images[rows], 5).basis
        np.testing.assert_allclose(found[1, side], expected, atol=1e-6)
        others = np.setdiff1d(np.arange(len(images)), rows)
        spoiled = images.copy()
        spoiled[others] = np.random.default_rng(0).random(spoiled[others].shape)
        again = manifold_parts.bases(trained, spoiled, 5)
        np.testing.assert_array_equal(again[1, side], found[1, side])


@pytest.mark.parametrize(("p", "side"), [(0, 1), (2, 0)])
def test_parts_move_models_as_in_a_loop(trained, pool, split, p, side):
    read = _reader(split, trained.condition.key)
    models = dict(zip(("own", "other"), _models(trained, p, side), strict=True))
    x, labels = _examples(trained, pool, p)
    basis = manifold_parts.bases(trained, np.asarray(pool.images), NUM_COMPONENTS)[p, side]
    attack = functools.partial(
        attacks.pgd,
        models["own"],
        jax.random.key(0),
        threat=attacks.linf(CONFIG.attack.epsilon),
        loss_fn=losses.margin,
        num_steps=3,
        relative_step=CONFIG.attack.relative_step,
    )
    adversarial = np.asarray(jax.jit(attack)(x, labels).adversarial)
    delta = (adversarial - x).reshape(len(x), -1)
    on = (delta @ basis.T) @ basis
    norm = jnp.asarray(np.linalg.norm(delta, axis=1))
    points = {"whole": adversarial}
    for name, direction in (("on", on), ("off", delta - on)):
        moved = input_space.rescale_parts(jnp.asarray(x), direction.reshape(x.shape), norm)
        np.testing.assert_allclose(moved.length, norm, rtol=1e-4)
        points[name] = np.asarray(moved.points)
    assert read("part_examples", "shortened")[p, side] == 0
    assert read("part_examples", "all")[p, side] == len(x)
    right = np.all([np.asarray(m(x)).argmax(-1) == labels for m in models.values()], 0)
    for who, model in models.items():
        before = transfer.evaluate(model, jnp.asarray(x), jnp.asarray(labels))
        for name, moved in points.items():
            after = transfer.evaluate(model, jnp.asarray(moved), jnp.asarray(labels))
            increase = float((after.loss - before.loss).sum())
            found = read("part_increase", f"{name}.{who}")[p, side]
            np.testing.assert_allclose(found, increase, rtol=2e-3, atol=0.02)
            fooled = (right & ~np.asarray(after.correct)).sum()
            assert abs(read("part_fooled", f"{name}.{who}")[p, side] - fooled) <= 1
    energy = [read("part_energy", f"attack.{name}")[p, side] for name in ("on", "all")]
    np.testing.assert_allclose(energy, [(on**2).sum(), (delta**2).sum()], rtol=1e-4)


def test_parts_are_equally_long_and_mostly_where_they_belong(trained, split):
    read = _reader(split, trained.condition.key)
    for name in manifold_parts.PARTS:
        assert (read("part_examples", f"unequal.{name}") == 0).all()
    every = [read("part_energy", f"{name}.all") for name in manifold_parts.PARTS]
    np.testing.assert_allclose(every[1:], [every[0]] * 2, rtol=1e-3)
    assert (read("part_energy", "on.on") > 0.8 * read("part_energy", "on.all")).all()
    assert (read("part_energy", "off.on") < 0.2 * read("part_energy", "off.all")).all()
    np.testing.assert_array_equal(read("part_energy", "expected"), NUM_COMPONENTS / 64)


def test_any_part_moves_a_model_and_its_twin_alike(twins, pool):
    read = _reader(MANIFOLD_PARTS.measure(KEY, [twins], pool, CONFIG), twins.condition.key)
    for name in manifold_parts.PARTS:
        own, other = (read("part_increase", f"{name}.{who}") for who in ("own", "other"))
        assert np.isnan(own[2]).all() and np.isnan(other[2]).all()
        np.testing.assert_allclose(other[:2], own[:2], rtol=1e-5)
        assert (own[:2] > 0).all()


def test_where_the_box_stops_a_part_all_parts_stop():
    # δ = (.1, .1, 0, 0): its part along (1, −1)/√2 is 0, what is off it is all of δ.
    x = jnp.array([[0.5, 0.5, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0]])
    adversarial = x + jnp.array([[0.1, 0.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]])
    basis = jnp.array([[1.0, 0.0, 0.0, 0.0]])
    moved = jax.jit(manifold_parts._moved)
    found, points = moved(KEY, x, adversarial, basis)
    # A part that does not exist has no length: nothing of these examples is compared.
    assert int(found["num_shortened"]) == 2
    for point in points:
        np.testing.assert_allclose(point, x, atol=1e-6)
    tilted = jnp.array([[0.8, 0.6, 0.0, 0.0]])
    found, points = moved(KEY, x[1:], adversarial[1:], tilted)
    # On: (.048, .036), whose first pixel is at its bound. All are .1 long nonetheless.
    np.testing.assert_allclose(points[0], [[1.0, 0.6, 0.0, 0.0]], atol=1e-5)
    # Off: (−.048, .064), in which nothing is clipped.
    np.testing.assert_allclose(points[1], [[0.94, 0.58, 0.0, 0.0]], atol=1e-5)
    assert int(found["num_shortened"]) == 0
