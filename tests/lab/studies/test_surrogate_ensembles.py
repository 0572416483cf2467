"""Attacks on several surrogates: against the library called directly, and by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, losses, meeting, plots, populations
from halfway.lab.studies.t7 import measure as ensembles
from halfway.lab.studies.t7 import study as t7
from halfway.lab.study import tables
from halfway.lab.study.protocol import Records

NUM_PAIRS = 2
SOME = ("logits", "worst")
"""Ways to attack that are measured here: each is a program."""
KEY = jax.random.key(3)


_config = functools.partial(tiny_run.config, num_pairs=NUM_PAIRS, training={"probe_steps": (0, 30)})


CONFIG = _config()


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def population(pool):
    return populations.train(ensembles.setting(CONFIG), pool)


@pytest.fixture(scope="module")
def measured(population, pool):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensembles, "HOW", SOME)
        return ensembles.ENSEMBLES.measure(KEY, [population], pool, CONFIG)


def _reader(table):
    return tables.Reader(Records(table, tables.conditions_table([]), CONFIG))


def _read(measured, quantity, **columns):
    return _reader(measured.table).cube(ensembles.setting(CONFIG).key, quantity, **columns)


def _one(population, p, side):
    return jax.tree.map(lambda leaf: leaf[p, side], population.params)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(apply_fn, params, x, y):
    return jax.grad(lambda z: losses.margin(apply_fn(params, z), y).sum())(x)


def _gradients(population, x, y, models):
    apply_fn = population.apply_fn
    return jnp.stack([_gradient(apply_fn, _one(population, *model), x, y) for model in models])


@pytest.fixture(scope="module")
def holdout(population, pool):
    rows = np.asarray(population.halves.s.indices[0])
    return jnp.asarray(pool.images[rows], jnp.float32), jnp.asarray(pool.labels[rows])


def test_no_model_has_seen_what_all_are_compared_on(population):
    condition = ensembles.setting(CONFIG)
    assert condition.num_pairs == 2 * NUM_PAIRS and condition.common_holdout
    held = np.asarray(population.halves.s.indices)
    assert (held == held[0]).all()
    for half in (population.halves.a, population.halves.b):
        assert not np.isin(np.asarray(half.indices), held[0]).any()
    for pairs, expected in ((2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4)), (16, (1, 2, 4, 8, 16))):
        assert ensembles.numbers(_config(num_pairs=pairs)) == expected


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
    square, product = (
        _read(measured, f"partner_{name}", subset="holdout") for name in ("square", "product")
    )
    k_half = float(meeting.ensemble_noise(partners).k_half)
    found = t7.constant(square, product)
    assert found.estimate == pytest.approx(k_half, rel=1e-4)
    assert found.influence.mean() == pytest.approx(0, abs=1e-9)
    norms = _read(measured, "target_square", subset="holdout")
    assert np.isnan(norms[:NUM_PAIRS]).all()
    for k in (1, 2):
        terms = meeting.surrogate_terms(surrogates, targets, num_surrogates=k)
        product, square = (
            _read(measured, f"ensemble_{name}", subset="holdout", step=k)
            for name in ("product", "square")
        )
        np.testing.assert_allclose(product[NUM_PAIRS:], terms.products, rtol=1e-4)
        values = t7.alignments(product, square, norms)
        assert np.nanmean(values) == pytest.approx(float(terms.alignment), rel=1e-4)
        assert np.isfinite(values).sum() == NUM_PAIRS
        law = float(meeting.second_law_alignment(k, found.estimate))
        assert t7.law(k, found.estimate) == pytest.approx(law, rel=1e-5)


@pytest.mark.parametrize(("how", "k"), [("logits", 1), ("logits", 2), ("worst", 2)])
def test_fooled_are_those_of_attacks_made_one_by_one(population, measured, holdout, how, k):
    x, y = holdout
    counts = np.zeros(NUM_PAIRS)
    blocks = [range(first, first + k) for first in range(0, NUM_PAIRS, k)]
    for block in blocks:
        members = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(_one(population, p, 0) for p in block)
        )
        logits_fn, loss_fn = attacks.ensemble(population.apply_fn, members, how, losses.margin)
        points = attacks.pgd(
            logits_fn,
            KEY,
            x,
            y,
            threat=attacks.linf(CONFIG.attack.epsilon),
            loss_fn=loss_fn,
            num_steps=CONFIG.attack.num_steps,
            relative_step=CONFIG.attack.relative_step,
        ).adversarial
        for index in range(NUM_PAIRS):
            target = functools.partial(population.apply_fn, _one(population, NUM_PAIRS + index, 1))
            right = target(x).argmax(-1) == y
            counts[index] += float((right & (target(points).argmax(-1) != y)).sum())
    found = _read(measured, "ensemble_fooled", subset=how, step=k)
    assert np.isnan(found[:NUM_PAIRS]).all()
    # An example on a boundary may fall on either side of it in another program.
    np.testing.assert_allclose(found[NUM_PAIRS:], counts / len(blocks), atol=1)
    assert counts.sum() > 0
    examples = _read(measured, "ensemble_examples", subset="holdout")[NUM_PAIRS:]
    assert (found[NUM_PAIRS:] <= examples).all() and (examples <= len(y)).all()


def test_every_other_way_is_measured(measured):
    table = measured.table
    fooled = table[table["quantity"] == "ensemble_fooled"]
    seen = {(str(w), int(k)) for w, k in zip(fooled["subset"], fooled["step"], strict=True)}
    singles = {(name, 2) for name in ensembles.MIDPOINTS} | {(ensembles.TAIL, 2)}
    assert seen == {("logits", 1), ("logits", 2), ("worst", 2)} | singles
    assert set(t7.WAYS) == {*ensembles.HOW, *ensembles.MIDPOINTS, ensembles.TAIL}


def test_constant_terms_of_vectors_by_hand():
    square, product = ensembles.constant_terms(np.array([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0]]))
    # Products 1, 0 and 1: each model's mean over the two others.
    assert square.tolist() == [2.0, 1.0, 2.0] and product.tolist() == [0.5, 1.0, 0.5]
    assert t7.constant(square, product).estimate == pytest.approx((5 / 3) / (2 / 3) - 1)


def test_the_error_of_the_constant_is_that_over_draws():
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(400):
        shared = np.ones(40)
        drawn = shared + 0.9 * rng.standard_normal((32, 40)) * (1 + 0.2 * rng.random((32, 1)))
        found = t7.constant(*ensembles.constant_terms(drawn))
        estimates.append(found.estimate)
        errors.append(found.influence.std(ddof=1) / math.sqrt(32))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)


def test_agreement_is_two_tests_that_count_both_errors():
    rng = np.random.default_rng(1)
    values, expected = 0.6 + 0.01 * rng.standard_normal(16), 0.6 + 0.02 * rng.standard_normal(32)
    found = t7.agreement(values, expected, 0.03)
    assert found.estimate == pytest.approx(values.mean() - expected.mean())
    alone = t7.agreement(values, np.full(32, expected.mean()), 0.03)
    assert alone.p_value < found.p_value < 1e-4
    off = t7.agreement(values + 0.06, expected, 0.03)
    assert off.p_value > 0.99 and off.p_reverse < 1e-4
    # NaN leaves, wherever it stands.
    padded = np.concatenate([np.full(16, np.nan), values])
    assert t7.agreement(padded, expected, 0.03)[:4] == found[:4]


def test_midpoints_are_halfway_and_matching_undoes_a_permutation(population):
    order = np.random.default_rng(2).permutation(12)
    first = _one(population, 0, 0)
    twin = {
        "Dense_0": {name: leaf[..., order] for name, leaf in first["Dense_0"].items()},
        "Dense_1": first["Dense_1"] | {"kernel": first["Dense_1"]["kernel"][order]},
    }
    other = _one(population, 1, 0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, twin, first, other, twin)
    found = ensembles.midpoints(population, stacked, KEY)
    raw, matched = (found[name] for name in ensembles.MIDPOINTS)
    expected = jax.tree.map(lambda a, b: 0.5 * (a + b), first, twin)
    for leaf, value in zip(jax.tree.leaves(raw), jax.tree.leaves(expected), strict=True):
        assert leaf.shape[0] == 2  # the fifth has no partner
        np.testing.assert_allclose(leaf[0], value, atol=1e-6)
    for leaf, value in zip(jax.tree.leaves(matched), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(leaf[0], value, atol=1e-6)


def test_a_tail_goes_on_from_its_model_on_its_own_half(population, pool):
    images = jnp.asarray(pool.images, jnp.float32)
    visited = ensembles.tails(population, [0, 2], images, 3, KEY)
    condition = population.condition
    for r, p in enumerate((0, 2)):
        start = _one(population, p, 0)
        steps = [
            start,
            *(jax.tree.map(lambda leaf, r=r, t=t: leaf[r, t], visited) for t in range(3)),
        ]
        sizes = [
            math.sqrt(
                sum(
                    float(((a - b) ** 2).sum())
                    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(start), strict=True)
                )
            )
            for one in steps
        ]
        assert 0 < sizes[1] < sizes[3]
        half = population.halves.a
        rows, labels = np.asarray(half.indices[p]), np.asarray(half.labels[p])
        loss = [
            float(losses.cross_entropy(condition.apply_fn(one, images[rows]), labels).mean())
            for one in steps
        ]
        assert loss[-1] < loss[0]  # it has not been fitted: SGD goes on descending


def test_a_surrogate_that_diverged_is_left_out(population, pool, measured, holdout):
    params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), population.params)
    landscapes = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), population.landscapes)
    broken = dataclasses.replace(population, params=params, landscapes=landscapes)
    found = ensembles.ENSEMBLES.measure(KEY, [broken], pool, CONFIG)
    # One is left: a block of one, none of two.
    targets = _gradients(population, *holdout, [(p, 1) for p in (2, 3)])
    terms = meeting.surrogate_terms(
        _gradients(population, *holdout, [(0, 0)]), targets, num_surrogates=1
    )
    product = _read(found, "ensemble_product", subset="holdout", step=1)
    np.testing.assert_allclose(product[NUM_PAIRS:], terms.products, rtol=1e-4)
    for quantity in ("ensemble_product", "ensemble_square"):
        assert np.isnan(_read(found, quantity, subset="holdout", step=2)).all()
    square = _read(found, "partner_square", subset="holdout")
    assert np.isnan(square[1]) and np.isfinite(np.delete(square, 1)).all()
    np.testing.assert_allclose(
        _read(found, "target_square", subset="holdout"),
        _read(measured, "target_square", subset="holdout"),
    )


def test_figures_show_what_was_measured():
    law = np.array([1.0, 2.0, 4.0]), np.array([0.6, 0.65, 0.7])
    alignment = [[0.61, 0.6, 0.62], [0.66, 0.65, 0.67], [0.7, -np.inf, np.inf]]
    success = [[0.2, 0.19, 0.21], [np.nan] * 3, [0.3, 0.28, 0.32]]
    left, right = plots.surrogate_curves(
        (1, 2, 4), alignment, success, law=law, limit=0.75, epsilon=0.1
    )
    assert [line.get_ydata()[0] for line in left.lines[:2]] == [0.75, 0.6]
    low, high = left.get_ylim()
    assert low < 0.6 and 0.75 < high < 1
    assert right.get_ylim()[0] == 0
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["1", "2", "4"]
    ax = plots.named_rates({"one": [0.2, 0.1, 0.3], "all": [0.4, 0.3, 0.5]}, reference=["one"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "all"]
    assert ax.get_xlim()[1] == pytest.approx(0.54)
