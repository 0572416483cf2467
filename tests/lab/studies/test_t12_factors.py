"""Size, alignment, variability and transfer of a tiny grid against the library, model by model."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import members, tiny_run

from halfway import attacks, losses, transfer
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t12 import measure as factors
from halfway.lab.studies.t12.measure import TRANSFER_FACTORS
from halfway.lab.study.records import Measured
from halfway.populations import program_of

DIGITS = tiny_run.digits()


@pytest.mark.quick
def test_every_architecture_has_every_decay():
    units = factors.units(DIGITS)
    assert len(units) == 32 and len({unit.condition.id for unit in units}) == 32
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
    models = factors.architectures(DIGITS)
    assert list(models) == ["linear", "mlp", "deep mlp", "cnn"]
    for name in ("mlp", "cnn"):
        assert models[name] == DIGITS.models[name]
    assert models["deep mlp"]["widths"] == (64, 64, 64, 64)
    linear = {"linear": {"kind": "linear"}}
    config = tiny_run.digits(models=linear, architectures=("linear",))
    others = factors.architectures(config)
    assert others["mlp"]["widths"] == (128, 128) and others["cnn"]["kind"] == "cnn"


@pytest.mark.parametrize("variant", ["smoke", "tiny"])
def test_a_run_without_evidence_is_small_and_still_has_two_replicates(variant):
    units = factors.units(tiny_run.digits(variant))
    assert len(units) == 12 and {unit.condition.num_pairs for unit in units} == {6}


@pytest.mark.quick
def test_models_of_one_set_meet_and_never_those_of_one_pair():
    np.testing.assert_array_equal(factors.sets(6), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(
        factors.partners(6), [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
    )
    np.testing.assert_array_equal(factors.partners(4), [[1], [0], [3], [2]])


# Measured

NUM_PAIRS, KEY = 6, jax.random.key(5)
MODELS = {"linear": {"kind": "linear"}, "mlp": {"kind": "mlp", "widths": (12,)}}
CONFIG = tiny_run.config(num_holdout=50, training={"probe_steps": (0, 40)})
LOUD = 0.3
"""A budget at which noise fools too."""
CROSSED = "pair", "target_condition", "partner"


@pytest.fixture(scope="module")
def trained(train):
    """Three conditions of two architectures."""
    base = factors.units(CONFIG)[0].condition
    conditions = [
        dataclasses.replace(base, architecture=name, model=MODELS[name], weight_decay=decay)
        for name, decay in (("linear", 0.0), ("linear", 5.0), ("mlp", 0.0))
    ]
    return list(map(train, conditions))


def _context(trained, pool, surrogates, config=CONFIG):
    return Context(KEY, (trained[surrogates], *trained), pool, config)


@pytest.fixture(scope="module")
def measured(trained, pool):
    """Of each condition's surrogates."""
    return [Measured(TRANSFER_FACTORS.measure(_context(trained, pool, s))) for s in range(3)]


@functools.cache
def _apply(program):
    """One program for all models of an architecture."""
    return jax.jit(program.apply_fn)


@functools.cache
def _margins(program):
    """Margin losses of a model, and the sum of its input gradient in absolute value."""

    def margins(params, x, labels):
        slope = jax.grad(lambda z: losses.margin(program.apply_fn(params, z), labels).sum())(x)
        return losses.margin(program.apply_fn(params, x), labels), jnp.abs(slope).sum()

    return jax.jit(margins)


def _model(population, pair, side):
    return jax.tree.map(lambda leaf: leaf[pair, side], population.params)


def _pick(population, pair, side):
    apply_fn = _apply(program_of(population.condition))
    return functools.partial(apply_fn, _model(population, pair, side))


@pytest.mark.parametrize(("s", "p", "t", "q"), [(0, 0, 2, 0), (2, 3, 0, 0), (1, 1, 1, 0)])
def test_what_a_surrogate_does_to_a_target(trained, pool, measured, s, p, t, q):
    x, labels = map(jnp.asarray, members.holdout(trained[s], pool, p))
    surrogate = _pick(trained[s], p, 0)
    target = _pick(trained[t], factors.partners(NUM_PAIRS)[p, q], 1)
    attack = _context(trained, pool, s).program().attack(CONFIG.attack.epsilon)
    points = jax.jit(lambda x: attack(surrogate, jax.random.key(0), x, labels).adversarial)(x)
    right = [fn(x).argmax(-1) == labels for fn in (surrogate, target)]
    both = right[0] & right[1]
    cell = {
        name: measured[s].read(name, *CROSSED)[p, t, q]
        for name in ("num_examples", "num_fooled", "num_by_noise", "tau")
    }
    assert cell["num_examples"] == both.sum() > 5
    fooled = int((both & (target(points).argmax(-1) != labels)).sum())
    assert abs(cell["num_fooled"] - fooled) <= 1  # a point on a boundary
    assert 0 <= cell["num_by_noise"] <= fooled
    threat = attacks.linf(CONFIG.attack.epsilon)
    first = transfer.first_order(surrogate, target, x, labels, threat=threat)
    expected = losses.masked_mean(first.tau, jnp.isfinite(first.tau))
    assert cell["tau"] == pytest.approx(float(expected), abs=1e-4)


def test_noise_is_counted_at_its_own_points(trained, pool):
    config = tiny_run.config(
        num_holdout=50, training={"probe_steps": (0, 40)}, attack={"epsilon": LOUD}
    )
    context = _context(trained, pool, 2, config)
    loud = Measured(TRANSFER_FACTORS.measure(context))
    num_fooled, num_by_noise = (loud.read(f"num_{how}", *CROSSED) for how in ("fooled", "by_noise"))
    x, labels = map(jnp.asarray, members.holdout(trained[2], pool, 0))
    attack = context.program().attack(LOUD)

    @jax.jit
    def noise_of(params, key):
        key_attack, key_noise = jax.random.split(key)
        surrogate = lambda z: trained[2].apply_fn(params, z)  # noqa: E731
        points = attack(surrogate, key_attack, x, labels).adversarial
        return transfer.matched_noise(key_noise, x, points).points

    apart = 0
    for p, key in enumerate(context.pair_keys()):
        noise = noise_of(_model(trained[2], p, 0), key)
        right = _pick(trained[2], p, 0)(x).argmax(-1) == labels
        for t, place in itertools.product(range(3), range(2)):
            target = _pick(trained[t], factors.partners(NUM_PAIRS)[p, place], 1)
            both = right & (target(x).argmax(-1) == labels)
            by_noise = int((both & (target(noise).argmax(-1) != labels)).sum())
            assert abs(num_by_noise[p, t, place] - by_noise) <= 1
            apart += abs(num_fooled[p, t, place] - by_noise)
    assert apart > 3 * 2 * NUM_PAIRS  # other points would have been noticed: off by 1 each is less


def test_size_is_of_targets_and_margins_of_surrogates(trained, pool, measured):
    for population, surrogates in zip(trained, measured, strict=True):
        x, labels = map(jnp.asarray, members.holdout(population, pool, 0))
        margins, sizes = surrogates.read("margin", "pair", "example"), surrogates.read("size")
        margins_fn = _margins(program_of(population.condition))
        for p in range(NUM_PAIRS):
            loss, _ = margins_fn(_model(population, p, 0), x, labels)
            expected = -loss / jnp.abs(loss).mean()
            np.testing.assert_allclose(margins[p], expected, rtol=1e-3, atol=1e-3)
            loss, slope = margins_fn(_model(population, p, 1), x, labels)
            assert sizes[p] == pytest.approx(float(slope / jnp.abs(loss).sum()), rel=1e-3)


def test_nobody_was_trained_on_what_models_are_compared_on(trained):
    rows = np.asarray(trained[0].halves.s.indices[0])
    for population in trained:
        for holdout in np.asarray(population.halves.s.indices):
            np.testing.assert_array_equal(holdout, rows)
        halves = np.asarray([population.halves.a.indices, population.halves.b.indices])
        assert not np.isin(halves, rows).any()


def test_shapes_and_labels(trained, measured):
    for surrogates in measured:
        dataset = surrogates.dataset
        for name in ("num_examples", "num_fooled", "num_by_noise", "tau"):
            assert dataset[name].dims == CROSSED and dataset[name].shape == (NUM_PAIRS, 3, 2)
        assert dataset["margin"].shape == (NUM_PAIRS, 50)
        ids = [population.condition.id for population in trained]
        assert dataset["target_condition"].values.tolist() == ids
        assert surrogates.finite.all()
