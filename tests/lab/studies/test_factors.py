"""Size, alignment, variability and transfer of a tiny grid against the library, model by model."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, losses, populations, transfer
from halfway.lab.measurements.meetings import attack_of, settings_of
from halfway.lab.studies.t12 import measure as factors
from halfway.lab.studies.t12.measure import FACTORS
from halfway.populations import program_of

DIGITS = tiny_run.digits()


def test_every_architecture_has_every_decay():
    units = factors.units(DIGITS)
    assert len(units) == 32 and len({unit.condition.key for unit in units}) == 32
    assert [unit.architecture for unit in units] == np.repeat(range(4), 8).tolist()
    # One program of training for each architecture, since decay is data.
    assert len({program_of(unit.condition) for unit in units}) == 4
    assert all(unit.condition.common_holdout for unit in units)
    # Three replicates at least on either side of the comparison.
    assert {unit.condition.num_pairs for unit in units} == {6}
    decays = np.array([unit.condition.weight_decay for unit in units[:8]])
    np.testing.assert_allclose(np.diff(np.log2(decays)), 1)
    # From an eighth of a weight over all of training to sixteen times it.
    total = decays * DIGITS.training.learning_rate * DIGITS.training.probe_steps[-1]
    np.testing.assert_allclose(total[[0, -1]], [1 / 8, 16])


def test_architectures_are_those_of_the_config_where_it_has_them():
    found = factors.architectures(DIGITS)
    assert list(found) == ["linear", "mlp", "deep mlp", "cnn"]
    for name in ("mlp", "cnn"):
        assert found[name] == DIGITS.models[name]
    assert found["deep mlp"]["widths"] == (64, 64, 64, 64)
    linear = {"linear": {"kind": "linear"}}
    config = tiny_run.digits(models=linear, architectures=("linear",))
    other = factors.architectures(config)
    assert other["mlp"]["widths"] == (128, 128) and other["cnn"]["kind"] == "cnn"


@pytest.mark.parametrize("variant", ["smoke", "tiny"])
def test_a_run_without_evidence_is_small_and_still_has_two_replicates(variant):
    units = factors.units(tiny_run.digits(variant))
    assert len(units) == 12 and {unit.condition.num_pairs for unit in units} == {6}


def test_models_of_one_set_meet_and_never_those_of_one_pair():
    np.testing.assert_array_equal(factors.sets(6), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(
        factors.others(6), [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
    )
    np.testing.assert_array_equal(factors.others(4), [[1], [0], [3], [2]])


# Measured

NUM_PAIRS, KEY = 6, jax.random.key(5)
MODELS = {"linear": {"kind": "linear"}, "mlp": {"kind": "mlp", "widths": (12,)}}


TINY = {"num_holdout": 50, "training": {"probe_steps": (0, 40)}}
CONFIG = tiny_run.config(**TINY)
EPSILON = CONFIG.attack.epsilon


@pytest.fixture(scope="module")
def measured(digits):
    """Three conditions of two architectures, and the arrays of each."""
    pool = digits.pool(CONFIG.subset)
    base = factors.units(CONFIG)[0].condition
    conditions = [
        dataclasses.replace(base, architecture=name, model=MODELS[name], weight_decay=decay)
        for name, decay in (("linear", 0.0), ("linear", 5.0), ("mlp", 0.0))
    ]
    trained = [populations.train(one, pool) for one in conditions]
    found = [FACTORS.measure(KEY, [one, *trained], pool, CONFIG) for one in trained]
    return pool, trained, found


def _pick(population, pair, side):
    params = jax.tree.map(lambda leaf: leaf[pair, side], population.params)
    return lambda x: population.apply_fn(params, x)


@pytest.mark.parametrize(("s", "p", "t", "q"), [(0, 0, 2, 0), (2, 3, 0, 0), (1, 1, 1, 0)])
def test_what_a_surrogate_does_to_a_target(measured, s, p, t, q):
    pool, trained, found = measured
    rows = np.asarray(trained[s].halves.s.indices[p])
    x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
    surrogate = _pick(trained[s], p, 0)
    target = _pick(trained[t], factors.others(NUM_PAIRS)[p, q], 1)
    attack = attack_of(settings_of(CONFIG), EPSILON)
    points = jax.jit(lambda x: attack(surrogate, jax.random.key(0), x, labels).adversarial)(x)
    right = [fn(x).argmax(-1) == labels for fn in (surrogate, target)]
    both = right[0] & right[1]
    arrays = found[s].arrays
    assert arrays["num_examples"][p, t, q] == both.sum() > 5
    fooled = int((both & (target(points).argmax(-1) != labels)).sum())
    assert abs(arrays["num_fooled"][p, t, q] - fooled) <= 1  # a point on a boundary
    assert 0 <= arrays["num_by_noise"][p, t, q] <= fooled
    first = transfer.first_order(surrogate, target, x, labels, threat=attacks.linf(EPSILON))
    expected = losses.masked_mean(first.tau, jnp.isfinite(first.tau))
    assert arrays["tau"][p, t, q] == pytest.approx(float(expected), abs=1e-4)


def test_noise_is_counted_at_its_own_points(measured):
    """At a budget at which noise fools too."""
    pool, trained, _ = measured
    loud = tiny_run.config(**TINY, attack={"epsilon": 0.3})
    arrays = FACTORS.measure(KEY, [trained[2], *trained], pool, loud).arrays
    rows = np.asarray(trained[2].halves.s.indices[0])
    x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
    attack = attack_of(settings_of(loud), loud.attack.epsilon)
    apart = 0
    for p in range(NUM_PAIRS):
        surrogate, keys = _pick(trained[2], p, 0), jax.random.split(jax.random.fold_in(KEY, p))
        points = attack(surrogate, keys[0], x, labels).adversarial
        noise = transfer.matched_noise(keys[1], x, points).points
        for t, at in itertools.product(range(3), range(2)):
            q = factors.others(NUM_PAIRS)[p, at]
            target = _pick(trained[t], q, 1)
            both = (surrogate(x).argmax(-1) == labels) & (target(x).argmax(-1) == labels)
            by_noise = int((both & (target(noise).argmax(-1) != labels)).sum())
            assert abs(arrays["num_by_noise"][p, t, at] - by_noise) <= 1
            apart += abs(arrays["num_fooled"][p, t, at] - by_noise)
    assert apart > 3 * 2 * NUM_PAIRS  # other points would have been noticed: off by 1 each is less


def test_size_is_of_targets_and_margins_of_surrogates(measured):
    pool, trained, found = measured
    for population, one in zip(trained, found, strict=True):
        rows = np.asarray(population.halves.s.indices[0])
        x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
        for p in range(NUM_PAIRS):
            surrogate, target = _pick(population, p, 0), _pick(population, p, 1)
            loss = losses.margin(surrogate(x), labels)
            np.testing.assert_allclose(
                one.arrays["margin"][p], -loss / jnp.abs(loss).mean(), rtol=1e-3, atol=1e-3
            )
            slope = jax.grad(lambda z, fn=target, y=labels: losses.margin(fn(z), y).sum())(x)
            size = jnp.abs(slope).sum() / jnp.abs(losses.margin(target(x), labels)).sum()
            assert one.arrays["size"][p] == pytest.approx(float(size), rel=1e-3)


def test_nobody_has_seen_what_models_are_compared_on(measured):
    _, trained, _ = measured
    rows = np.asarray(trained[0].halves.s.indices[0])
    for population in trained:
        for one in np.asarray(population.halves.s.indices):
            np.testing.assert_array_equal(one, rows)
        halves = np.asarray([population.halves.a.indices, population.halves.b.indices])
        assert not np.isin(halves, rows).any()


def test_shapes_and_table(measured):
    _, trained, found = measured
    for population, one in zip(trained, found, strict=True):
        for name in ("num_examples", "num_fooled", "num_by_noise", "tau"):
            assert one.arrays[name].shape == (NUM_PAIRS, 3, 2)
        assert one.arrays["margin"].shape == (NUM_PAIRS, 50)
        assert set(one.table["condition"]) == {population.condition.key}
        total = one.table[one.table["quantity"] == "crossed_num_fooled"]["value"].to_numpy()
        np.testing.assert_array_equal(total, one.arrays["num_fooled"].sum((1, 2)))
