"""Attacks on several surrogates: against the library called directly, and by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, losses, meeting
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t7 import measure as ensembles
from halfway.lab.studies.t7 import study as t7
from halfway.lab.studies.t7.measure import ENSEMBLES
from halfway.lab.study.records import Measured

NUM_PAIRS = 3  # surrogates, and as many targets; blocks of two leave one out
SOME = ("logits", "worst")
"""Ways to attack that are measured here: each is a program."""
KEY = jax.random.key(3)


# Of the shape that other tests train too.
CONFIG = tiny_run.config(num_pairs=NUM_PAIRS, num_holdout=50, training={"probe_steps": (0, 40)})


@pytest.fixture(scope="module")
def population(train):
    return train(ensembles.compared_on(CONFIG))


@pytest.fixture(scope="module")
def context(population, pool):
    return Context(KEY, (population,), pool, CONFIG)


@pytest.fixture(scope="module")
def measured(context):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensembles, "HOW", SOME)
        return Measured(ENSEMBLES.measure(context))


def _member(population, p, side):
    return jax.tree.map(lambda leaf: leaf[p, side], population.params)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(apply_fn, params, x, y):
    return jax.grad(lambda z: losses.margin(apply_fn(params, z), y).sum())(x)


def _gradients(population, x, y, models):
    apply_fn = population.apply_fn
    return jnp.stack([_gradient(apply_fn, _member(population, *model), x, y) for model in models])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attack(apply_fn, how, members, x, y):
    """The points that the library's attack on an ensemble finds."""
    logits_fn, loss_fn = attacks.ensemble(apply_fn, members, how, losses.margin)
    return attacks.pgd(
        logits_fn,
        KEY,
        x,
        y,
        threat=attacks.linf(CONFIG.attack.epsilon),
        loss_fn=loss_fn,
        num_steps=CONFIG.attack.num_steps,
        relative_step=CONFIG.attack.relative_step,
    ).adversarial


@pytest.fixture(scope="module")
def holdout(population, pool):
    rows = np.asarray(population.halves.s.indices[0])
    return jnp.asarray(pool.images[rows], jnp.float32), jnp.asarray(pool.labels[rows])


def test_no_model_has_seen_what_all_are_compared_on(population):
    condition = ensembles.compared_on(CONFIG)
    assert condition.num_pairs == 2 * NUM_PAIRS and condition.common_holdout
    held = np.asarray(population.halves.s.indices)
    assert (held == held[0]).all()
    for half in (population.halves.a, population.halves.b):
        assert not np.isin(np.asarray(half.indices), held[0]).any()
        assert np.asarray(half.mask).all()  # a tail draws from all of it
    for pairs, expected in ((2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4)), (16, (1, 2, 4, 8, 16))):
        assert ensembles.block_sizes(pairs) == expected


def test_alignment_and_constant_are_the_librarys(population, measured, holdout):
    early, late = range(NUM_PAIRS), range(NUM_PAIRS, 2 * NUM_PAIRS)
    surrogates, targets, partners = (
        _gradients(population, *holdout, models)
        for models in (
            [(p, 0) for p in early],
            [(p, 1) for p in late],
            [(p, 1) for p in early] + [(p, 0) for p in late],
        )
    )
    terms = t7.ensemble_readings(measured, ensembles.block_sizes(NUM_PAIRS))
    k_half = float(meeting.ensemble_noise(partners).k_half)
    assert terms.k_half.estimate == pytest.approx(k_half, rel=1e-4)
    assert terms.k_half.influence.mean() == pytest.approx(0, abs=1e-9)
    assert np.isnan(measured.read("target_square")[:NUM_PAIRS]).all()
    for k in (1, 2):
        expected = meeting.surrogate_terms(surrogates, targets, num_surrogates=k)
        product = measured.read("ensemble_product", num_surrogates=k)
        np.testing.assert_allclose(product[NUM_PAIRS:], expected.products, rtol=1e-4)
        values = terms.alignment[k]
        assert np.nanmean(values) == pytest.approx(float(expected.alignment), rel=1e-4)
        assert np.isfinite(values).sum() == NUM_PAIRS
        law = float(meeting.second_law_alignment(k, k_half))
        assert t7.law(k, k_half) == pytest.approx(law, rel=1e-5)


@pytest.mark.parametrize(("how", "k"), [("logits", 1), ("logits", 2), ("worst", 2)])
def test_fooled_are_those_of_attacks_made_one_by_one(population, measured, holdout, how, k):
    x, y = holdout
    counts, apply_fn = np.zeros(NUM_PAIRS), population.apply_fn
    blocks = [range(first, first + k) for first in range(0, NUM_PAIRS - k + 1, k)]
    for block in blocks:
        members = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(_member(population, p, 0) for p in block)
        )
        points = _attack(apply_fn, how, members, x, y)
        for index in range(NUM_PAIRS):
            target = functools.partial(apply_fn, _member(population, NUM_PAIRS + index, 1))
            right = target(x).argmax(-1) == y
            counts[index] += float((right & (target(points).argmax(-1) != y)).sum())
    if how == "logits":
        fooled = measured.read("num_fooled", num_surrogates=k)
    else:
        fooled = measured.read("num_fooled_by", way=how)
    assert np.isnan(fooled[:NUM_PAIRS]).all()
    # An example on a boundary may fall on either side of it in another program.
    np.testing.assert_allclose(fooled[NUM_PAIRS:], counts / len(blocks), atol=1)
    assert counts.sum() > 0
    examples = measured.read("num_examples")[NUM_PAIRS:]
    assert (fooled[NUM_PAIRS:] <= examples).all() and (examples <= len(y)).all()


def test_every_other_way_is_measured(measured):
    ways = ("worst", *ensembles.MIDPOINTS, ensembles.TAIL)
    assert tuple(measured.dataset["way"].values) == ways
    fooled = measured.read("num_fooled_by", "pair", "way")
    assert np.isfinite(fooled[NUM_PAIRS:]).all() and np.isnan(fooled[:NUM_PAIRS]).all()
    assert set(t7.WAYS) == set(ensembles.other_ways())


@pytest.mark.quick
def test_constant_terms_of_vectors_by_hand():
    square, product = ensembles.constant_terms(np.array([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0]]))
    # Products 1, 0 and 1: each model's mean over the two others.
    assert square.tolist() == [2.0, 1.0, 2.0] and product.tolist() == [0.5, 1.0, 0.5]
    assert t7.constant(square, product).estimate == pytest.approx((5 / 3) / (2 / 3) - 1)
    assert [len(values) for values in ensembles.constant_terms(np.zeros((0, 3, 2)))] == [0, 0]


def test_the_error_of_the_constant_is_that_over_draws():
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(400):
        shared = np.ones(40)
        drawn = shared + 0.9 * rng.standard_normal((32, 40)) * (1 + 0.2 * rng.random((32, 1)))
        constant = t7.constant(*ensembles.constant_terms(drawn))
        estimates.append(constant.estimate)
        errors.append(constant.influence.std(ddof=1) / math.sqrt(32))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)


def test_agreement_is_two_tests_that_count_both_errors():
    rng = np.random.default_rng(1)
    values, expected = 0.6 + 0.01 * rng.standard_normal(16), 0.6 + 0.02 * rng.standard_normal(32)
    decision = t7.agreement(values, expected, 0.03)
    assert decision.estimate == pytest.approx(values.mean() - expected.mean())
    alone = t7.agreement(values, np.full(32, expected.mean()), 0.03)
    assert alone.p_value < decision.p_value < 1e-4
    off = t7.agreement(values + 0.06, expected, 0.03)
    assert off.p_value > 0.99 and off.p_reverse < 1e-4
    # NaN leaves, wherever it stands.
    padded = np.concatenate([np.full(16, np.nan), values])
    assert t7.agreement(padded, expected, 0.03)[:4] == decision[:4]


def test_midpoints_are_halfway_and_matching_undoes_a_permutation(context, population):
    order = np.random.default_rng(2).permutation(12)
    first = _member(population, 0, 0)
    twin = {
        "Dense_0": {name: leaf[..., order] for name, leaf in first["Dense_0"].items()},
        "Dense_1": first["Dense_1"] | {"kernel": first["Dense_1"]["kernel"][order]},
    }
    other = _member(population, 1, 0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, twin, first, other, twin)
    middles = ensembles.midpoints(context, stacked)
    raw, matched = (middles[name] for name in ensembles.MIDPOINTS)
    expected = jax.tree.map(lambda a, b: 0.5 * (a + b), first, twin)
    for leaf, value in zip(jax.tree.leaves(raw), jax.tree.leaves(expected), strict=True):
        assert leaf.shape[0] == 2  # the fifth has no partner
        np.testing.assert_allclose(leaf[0], value, atol=1e-6)
    for leaf, value in zip(jax.tree.leaves(matched), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(leaf[0], value, atol=1e-6)


def _distance(params, start):
    squares = jax.tree.map(lambda a, b: float(((a - b) ** 2).sum()), params, start)
    return math.sqrt(sum(jax.tree.leaves(squares)))


def test_a_tail_goes_on_from_its_model_on_its_own_half(context, population, pool):
    images, apply_fn = jnp.asarray(pool.images, jnp.float32), population.apply_fn
    visited = ensembles.tails(context, [0, 2], 2)
    for r, p in enumerate((0, 2)):
        start = _member(population, p, 0)
        walk = [jax.tree.map(lambda leaf, r=r, t=t: leaf[r, t], visited) for t in range(2)]
        distances = [_distance(params, start) for params in walk]
        assert 0 < distances[0] < distances[1]
        half = population.halves.a
        rows, labels = np.asarray(half.indices[p]), np.asarray(half.labels[p])
        first, last = (
            float(losses.cross_entropy(apply_fn(params, images[rows]), labels).mean())
            for params in (start, walk[-1])
        )
        assert last < first  # it has not been fitted: SGD goes on descending


def test_a_surrogate_that_diverged_is_left_out(context, population, measured, holdout):
    gone = jnp.array([0, 2])
    params = jax.tree.map(lambda leaf: leaf.at[gone].set(jnp.nan), population.params)
    landscapes = jax.tree.map(lambda leaf: leaf.at[gone].set(jnp.nan), population.landscapes)
    broken = dataclasses.replace(population, params=params, landscapes=landscapes)
    left = Measured(ENSEMBLES.measure(dataclasses.replace(context, populations=(broken,))))
    # One is left: a block of one, none of two.
    targets = _gradients(population, *holdout, [(p, 1) for p in (3, 4, 5)])
    terms = meeting.surrogate_terms(
        _gradients(population, *holdout, [(1, 0)]), targets, num_surrogates=1
    )
    product = left.read("ensemble_product", num_surrogates=1)
    np.testing.assert_allclose(product[NUM_PAIRS:], terms.products, rtol=1e-4)
    assert np.isnan(left.read("ensemble_product", num_surrogates=2)).all()
    assert np.isnan(left.read("num_fooled", num_surrogates=2)).all()
    assert np.isnan(left.read("ensemble_square", num_surrogates=2))
    assert np.isnan(left.read("num_fooled_by", "pair", "way")).all()
    square = left.read("partner_square")
    assert np.isnan(square).tolist() == [True, False, True, False, False, False]
    np.testing.assert_allclose(left.read("target_square"), measured.read("target_square"))
