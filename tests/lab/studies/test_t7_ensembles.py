"""Attacks on several surrogates, and what they share: against the library, and by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t7 as planted
from support import tiny_run

from halfway import attacks, losses, meeting
from halfway.lab.measurements import ensembles
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.ensembles import ALIGNMENT
from halfway.lab.studies.t7 import measure, predict
from halfway.lab.studies.t7 import study as t7
from halfway.lab.studies.t7.measure import ENSEMBLES
from halfway.lab.studies.v2 import study as v2
from halfway.lab.study.records import Measured, Records

NUM_PAIRS = 6  # surrogates, and as many targets; a block of four leaves a group of two out
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
        patch.setattr(measure, "HOW", SOME)
        return Measured(ENSEMBLES.measure(context))


@pytest.fixture(scope="module")
def aligned(context):
    return Measured(ALIGNMENT.measure(context))


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
    for pairs, expected in ((2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4)), (64, (1, 2, 4, 8, 16))):
        assert ensembles.block_sizes(pairs) == expected


def test_alignment_and_constant_are_the_librarys(population, aligned, holdout):
    early, late = range(NUM_PAIRS), range(NUM_PAIRS, 2 * NUM_PAIRS)
    surrogates, targets, partners = (
        _gradients(population, *holdout, models)
        for models in (
            [(p, 0) for p in early],
            [(p, 1) for p in late],
            [(p, 1) for p in early] + [(p, 0) for p in late],
        )
    )
    k_half = float(meeting.ensemble_noise(partners).k_half)
    constant = ensembles.constant_of(aligned)
    assert constant.estimate == pytest.approx(k_half, rel=1e-4)
    assert constant.influence.mean() == pytest.approx(0, abs=1e-9)
    square = aligned.read("target_square", "pair", "example")
    assert np.isnan(square[:NUM_PAIRS]).all()
    single = np.asarray((targets**2).sum((2, 3, 4)))
    np.testing.assert_allclose(square[NUM_PAIRS:], single, rtol=1e-4)
    by_size = ensembles.alignments_by_size(aligned, NUM_PAIRS)
    for k in (1, 2, 4):
        expected = meeting.surrogate_terms(surrogates, targets, num_surrogates=k)
        product = aligned.read("ensemble_product", "pair", "example", num_surrogates=k).sum(-1)
        np.testing.assert_allclose(product[NUM_PAIRS:], expected.products, rtol=1e-4)
        values = by_size[k]
        assert np.nanmean(values) == pytest.approx(float(expected.alignment), rel=1e-4)
        assert np.isfinite(values).sum() == NUM_PAIRS
        law = float(meeting.second_law_alignment(k, k_half))
        assert ensembles.law(k, k_half) == pytest.approx(law, rel=1e-5)
    for group in range(NUM_PAIRS // 2):
        pair = surrogates[2 * group : 2 * group + 2]
        for k in ensembles.SMALL_SIZES:
            expected = meeting.surrogate_terms(pair, targets, num_surrogates=k)
            product = aligned.read("group_product", "pair", "group")[NUM_PAIRS:, group]
            np.testing.assert_allclose(product, expected.products, rtol=1e-4)
            square = aligned.read("group_square", "group", small_size=k)[group]
            assert square == pytest.approx(float(expected.surrogate), rel=1e-4)


@pytest.mark.parametrize(("how", "k"), [("logits", 1), ("logits", 2), ("worst", 4)])
def test_fooled_are_those_of_attacks_made_one_by_one(population, measured, holdout, how, k):
    x, y = holdout
    blocks = [range(first, first + k) for first in range(0, NUM_PAIRS - k + 1, k)]
    lost = np.mean([_lost(population, x, y, block, how) for block in blocks], 0)
    if how == "logits":
        fooled = measured.read("fooled", "pair", "example", num_surrogates=k)
        # An example on a boundary may fall on either side of it in another program.
        assert (np.abs(fooled[NUM_PAIRS:] - lost) > 1e-6).sum() <= 2
        shares = fooled.mean(-1)
    else:
        shares = measured.read("fooled_by", way=how)
    assert np.isnan(shares[:NUM_PAIRS]).all()
    np.testing.assert_allclose(shares[NUM_PAIRS:], lost.mean(-1), atol=1 / len(y) + 1e-6)
    assert lost.sum() > 0
    right = measured.read("right")[NUM_PAIRS:]
    assert (shares[NUM_PAIRS:] <= right).all() and (right <= 1).all()


def _lost(population, x, y, block, how="logits"):
    """Which examples each target has right and loses to the attack on a block, `[M, B]`."""
    apply_fn = population.apply_fn
    members = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(_member(population, p, 0) for p in block)
    )
    points = _attack(apply_fn, how, members, x, y)
    targets = [
        functools.partial(apply_fn, _member(population, NUM_PAIRS + i, 1)) for i in range(NUM_PAIRS)
    ]
    return np.stack([(t(x).argmax(-1) == y) & (t(points).argmax(-1) != y) for t in targets])


def test_a_group_leaves_all_blocks_that_it_is_in(population, aligned, measured, holdout):
    x, y = holdout
    groups = measured.read("fooled_without", "attacked", "pair", "group")[:, NUM_PAIRS:]
    single = [_lost(population, x, y, (p,)).mean(-1) for p in range(NUM_PAIRS)]
    twos = [_lost(population, x, y, (p, p + 1)).mean(-1) for p in range(0, NUM_PAIRS, 2)]
    # Of the last group none is among the four that are attacked at once.
    at_once = [twos[1], twos[0], _lost(population, x, y, range(4)).mean(-1)]
    assert groups.shape[-1] == len(at_once)
    for group, expected in enumerate(at_once):
        others = [p for p in range(NUM_PAIRS) if p // 2 != group]
        singles = np.mean([single[p] for p in others], 0)
        pairs = np.mean([two for place, two in enumerate(twos) if place != group], 0)
        for place, rates in enumerate((singles, pairs, expected)):
            np.testing.assert_allclose(groups[place, :, group], rates, atol=2 / len(y))
    assert predict.sides(aligned, measured, NUM_PAIRS) is not None
    kept = measure.left_out({"w": np.arange(10.0)}, 8)["w"]
    assert kept.tolist() == [
        [2, 3, 4, 5, 6, 7],
        [0, 1, 4, 5, 6, 7],
        [0, 1, 2, 3, 6, 7],
        [0, 1, 2, 3, 4, 5],
    ]


def test_every_other_way_is_measured(measured):
    ways = ("worst", *measure.MIDPOINTS, measure.TAIL)
    assert tuple(measured.dataset["way"].values) == ways
    fooled = measured.read("fooled_by", "pair", "way")
    assert np.isfinite(fooled[NUM_PAIRS:]).all() and np.isnan(fooled[:NUM_PAIRS]).all()
    assert set(t7.WAYS) == set(measure.other_ways())


@pytest.mark.quick
def test_constant_terms_of_vectors_by_hand():
    vectors = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0]])[:, None]
    square, product = ensembles.constant_terms(vectors)
    # Products 1, 0 and 1: each model's mean over the two others.
    assert square.tolist() == [[2.0], [1.0], [2.0]]
    assert product.tolist() == [[0.5], [1.0], [0.5]]
    estimate = ensembles.constant(square[:, 0], product[:, 0]).estimate
    assert estimate == pytest.approx((5 / 3) / (2 / 3) - 1)
    assert [v.shape for v in ensembles.constant_terms(np.zeros((0, 3, 2)))] == [(0, 3), (0, 3)]


def test_the_error_of_the_constant_is_that_over_draws():
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(400):
        shared = np.ones(40)
        drawn = shared + 0.9 * rng.standard_normal((32, 40)) * (1 + 0.2 * rng.random((32, 1)))
        terms = ensembles.constant_terms(drawn[:, None])
        constant = ensembles.constant(*(values[:, 0] for values in terms))
        estimates.append(constant.estimate)
        errors.append(constant.influence.std(ddof=1) / math.sqrt(32))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)


def test_agreement_is_two_tests_that_count_both_errors():
    rng = np.random.default_rng(1)
    values, expected = 0.6 + 0.01 * rng.standard_normal(16), 0.6 + 0.02 * rng.standard_normal(32)
    decision = v2.agreement(values, expected, 0.03)
    assert decision.estimate == pytest.approx(values.mean() - expected.mean())
    alone = v2.agreement(values, np.full(32, expected.mean()), 0.03)
    assert alone.p_value < decision.p_value < 1e-4
    off = v2.agreement(values + 0.06, expected, 0.03)
    assert off.p_value > 0.99 and off.p_reverse < 1e-4
    # NaN leaves, wherever it stands.
    padded = np.concatenate([np.full(16, np.nan), values])
    assert v2.agreement(padded, expected, 0.03)[:4] == decision[:4]


def test_midpoints_are_halfway_and_matching_undoes_a_permutation(context, population):
    order = np.random.default_rng(2).permutation(12)
    first = _member(population, 0, 0)
    twin = {
        "Dense_0": {name: leaf[..., order] for name, leaf in first["Dense_0"].items()},
        "Dense_1": first["Dense_1"] | {"kernel": first["Dense_1"]["kernel"][order]},
    }
    other = _member(population, 1, 0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, twin, first, other, twin)
    middles = measure.midpoints(context, stacked)
    raw, matched = (middles[name] for name in measure.MIDPOINTS)
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
    visited = measure.tails(context, [0, 2], 2)
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


def test_a_surrogate_that_diverged_is_left_out(context, population, aligned, holdout):
    gone = jnp.array([0, *range(2, NUM_PAIRS)])
    params = jax.tree.map(lambda leaf: leaf.at[gone].set(jnp.nan), population.params)
    landscapes = jax.tree.map(lambda leaf: leaf.at[gone].set(jnp.nan), population.landscapes)
    broken = dataclasses.replace(population, params=params, landscapes=landscapes)
    fewer = dataclasses.replace(context, populations=(broken,))
    left = Measured(ALIGNMENT.measure(fewer))
    # One is left: a block of one, none of two.
    late = range(NUM_PAIRS, 2 * NUM_PAIRS)
    targets = _gradients(population, *holdout, [(p, 1) for p in late])
    terms = meeting.surrogate_terms(
        _gradients(population, *holdout, [(1, 0)]), targets, num_surrogates=1
    )
    product = left.read("ensemble_product", "pair", "example", num_surrogates=1).sum(-1)
    np.testing.assert_allclose(product[NUM_PAIRS:], terms.products, rtol=1e-4)
    for name, *dims in (("product", "pair", "example"), ("square", "example")):
        assert np.isnan(left.read(f"ensemble_{name}", *dims, num_surrogates=2)).all()
    assert np.isnan(left.read("group_product", "pair", "group")).all()
    square = left.read("partner_square", "pair", "example").sum(-1)
    assert np.flatnonzero(np.isnan(square)).tolist() == gone.tolist()
    squares = (m.read("target_square", "pair", "example") for m in (left, aligned))
    np.testing.assert_allclose(*squares)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "HOW", SOME)
        attacked = Measured(ENSEMBLES.measure(fewer))
    assert np.isfinite(
        attacked.read("fooled", "pair", "example", num_surrogates=1)[NUM_PAIRS:]
    ).all()
    assert np.isnan(attacked.read("fooled", "pair", "example", num_surrogates=2)).all()
    assert np.isnan(attacked.read("fooled_by", "pair", "way")).all()
    assert predict.sides(left, attacked, NUM_PAIRS) is None


# The prediction


@pytest.mark.quick
def test_the_prediction_by_hand():
    one, two, k_half = 0.2, 0.3, 0.5
    first, second, last = (math.sqrt(k / (k + k_half) / (1 + k_half)) for k in (1, 2, 16))
    rates = predict.Rates(*(np.array([v]) for v in (one, two, 0.4, first, second, k_half)))
    start, end = (math.log(p / (1 - p)) for p in (one, two))
    logit = start + (end - start) / (second - first) * (last - first)
    assert predict.predicted(rates, 16) == pytest.approx(1 / (1 + math.exp(-logit)))
    assert predict.predicted(rates, 1) == pytest.approx(one)
    assert predict.predicted(rates, 2) == pytest.approx(two)
    # Where the law leaves nothing to gain, or success is 0, there is no line.
    assert np.isnan(predict.predicted(rates._replace(single=np.zeros(1)), 16))


def _sides(records):
    aligned, attacked = (
        records.get(kind, ensembles.compared_on(records.config)) for kind in (ALIGNMENT, ENSEMBLES)
    )
    return predict.sides(aligned, attacked, records.config.num_pairs)


def test_sides_delete_one_member_each():
    records = planted.plant(np.random.default_rng(4), 1.0)
    sides = _sides(records)
    groups, targets, examples, partners = sides.deleted
    assert [len(side.single) for side in sides.deleted] == [8, 32, planted.NUM_EXAMPLES, 32]
    # Without an example, or a target, everything again from what is left.
    place, other = (
        (m.name, ensembles.compared_on(records.config).id) for m in (ENSEMBLES, ALIGNMENT)
    )
    for dim, index, side in (("example", 3, examples), ("pair", 5, targets)):
        kept = [i for i in range(records.datasets[place].sizes[dim]) if i != index]
        fewer = dict(records.datasets)
        fewer[place] = fewer[place].isel({dim: kept})
        alignment = fewer[other].isel({dim: kept})
        if dim == "pair":  # a target leaves, its partner stays
            for name in ("partner_square", "partner_product"):
                whole = records.datasets[other][name]
                mean = whole.mean("pair")
                alignment[name] = mean.expand_dims(pair=alignment["pair"]).transpose(*whole.dims)
        fewer[other] = alignment
        again = _sides(Records(records.config, fewer)).whole
        for value, deleted in zip(again, side, strict=True):
            np.testing.assert_allclose(value[0], deleted[index], rtol=1e-9)
    # A partner leaves k_half alone, and success of all has no other part in it.
    assert np.ptp(partners.together) == np.ptp(partners.first) == 0 and np.ptp(partners.k_half) > 0
    assert np.ptp(groups.k_half) == 0 and np.ptp(groups.together) > 0


def test_a_model_leaves_the_constant_as_either_factor():
    vectors = np.random.default_rng(5).normal(1, 1, (6, 1, 9))
    square, product = (values[:, 0] for values in ensembles.constant_terms(vectors))
    deleted = predict._partner_deleted(np.stack([square, product]))
    for model in range(6):
        others = np.delete(vectors, model, 0)
        expected = [values.mean() for values in ensembles.constant_terms(others)]
        np.testing.assert_allclose(deleted[:, model], expected)


def test_the_error_of_the_prediction_is_that_over_draws():
    rng = np.random.default_rng(6)
    estimates, errors = [], []
    for _ in range(300):
        sides = _sides(planted.plant(rng, 1.0))
        crossed = predict.estimate(
            lambda rates: predict.predicted(rates, 16) - rates.together, sides
        )
        estimates.append(crossed.estimate)
        errors.append(crossed.standard_error)
    # 300 draws know the deviation to 4 %; what sides add together is counted more than once.
    assert np.sqrt(np.mean(np.square(errors))) / np.std(estimates) == pytest.approx(1, abs=0.12)
