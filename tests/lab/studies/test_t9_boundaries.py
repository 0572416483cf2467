"""Crossings of a tiny trained population and of rules by brute force; what T9 reads, by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from lab.studies.plants import t9 as planted
from sklearn import discriminant_analysis, neighbors
from support import tiny_run

from halfway.lab.measurements.context import Context
from halfway.lab.studies.t9 import measure as boundaries
from halfway.lab.studies.t9 import study as t9
from halfway.lab.studies.t9.measure import BOUNDARIES, NUM_SEGMENTS, RULES
from halfway.lab.study import conditions
from halfway.lab.study.records import NUMBERS, Measured

NUM_PAIRS = 3  # on two devices: the padding must not show
CONFIG = tiny_run.config(
    num_pairs=NUM_PAIRS, num_examples=100, num_holdout=120, training={"probe_steps": (0, 150)}
)
CONDITION = conditions.condition(CONFIG, "mlp")


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


def _measure(population, pool):
    return Measured(BOUNDARIES.measure(Context(jax.random.key(3), (population,), pool, CONFIG)))


@pytest.fixture(scope="module")
def measured(trained, pool):
    return _measure(trained, pool)


_logits = jax.jit(CONDITION.apply_fn)


def _decisions(population, p, m, x):
    params = jax.tree.map(lambda leaf: leaf[p, m], population.params)
    return np.asarray(_logits(params, np.asarray(x, np.float32))).argmax(-1)


# The measurement


def test_crossings_are_the_first_changes_of_a_dense_grid(trained, measured, pool):
    images, labels = np.asarray(pool.images), np.asarray(pool.labels)
    starts, ends, groups = (
        measured.read(name, "pair", "segment") for name in ("start", "end", "class_pair")
    )
    crossings = measured.read("crossing", "pair", "model", "segment")
    shares = np.linspace(0, 1, 2001)
    for p in range(NUM_PAIRS):
        valid = np.flatnonzero(groups[p] >= 0)
        assert len(valid) > 20
        for n, m in itertools.product(valid[::7], range(2)):
            rows = [starts[p, n], ends[p, n]]
            start, end = images[rows]
            along = (1 - shares)[:, None, None, None] * start + shares[:, None, None, None] * end
            decisions = _decisions(trained, p, m, along)
            expected = shares[(decisions != decisions[0]).argmax()]
            assert abs(crossings[p, m, n] - expected) <= 1 / 2000
            # Both have both ends right, on examples of S.
            np.testing.assert_array_equal(decisions[[0, -1]], labels[rows])
            assert set(rows) <= set(np.asarray(trained.halves.s.indices[p]).tolist())


def test_segments_lead_from_the_lower_class_to_the_higher(measured, pool):
    labels = np.asarray(pool.labels)
    groups = list(itertools.combinations(range(10), 2))
    columns = (measured.read(name, "pair", "segment") for name in ("start", "end", "class_pair"))
    for start, end, group in zip(*(values.ravel() for values in columns), strict=True):
        assert group < 0 or (labels[start], labels[end]) == groups[group]


def test_rules_are_those_of_scikit_learn_without_the_ends(trained, measured, pool):
    images, labels = np.asarray(pool.images), np.asarray(pool.labels)
    flat = images.reshape(len(images), -1).astype(np.float64)
    shares = np.linspace(0, 1, 401)[:, None]
    starts, ends = (measured.read(name, "pair", "segment") for name in ("start", "end"))
    ruled = measured.read("rule_crossing", "pair", "rule", "segment")
    p = int((ruled == 0).sum((1, 2)).argmax())
    rows = np.asarray(trained.halves.s.indices[p])
    means = [flat[rows[labels[rows] == name]].mean(0) for name in range(10)]
    nearest_mean = neighbors.KNeighborsClassifier(1).fit(means, np.arange(10))
    fitted = {
        RULES[1]: discriminant_analysis.LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage=boundaries.SHRINKAGE
        ),
    }
    fitted[RULES[1]].fit(flat[rows], labels[rows])
    fitted[RULES[0]] = nearest_mean
    exists = measured.read("class_pair", "pair", "segment")[p] >= 0
    wrong = np.flatnonzero(exists & (ruled[p] == 0).any(0))
    assert wrong.size
    for n in [*np.flatnonzero(exists)[::15], *wrong[:3]]:
        start, end = starts[p, n], ends[p, n]
        along = (1 - shares) * flat[start] + shares * flat[end]
        others = rows[(rows != start) & (rows != end)]
        nearest = neighbors.KNeighborsClassifier(boundaries.NUM_NEIGHBOURS)
        fitted[RULES[2]] = nearest.fit(flat[others], labels[others])
        for place, name in enumerate(RULES):
            decisions = fitted[name].predict(along)
            changed = decisions != decisions[0]
            expected = shares[changed.argmax(), 0] if changed.any() else np.inf
            if decisions[0] != labels[start]:
                expected = 0.0
            found = ruled[p, place, n]
            if name == RULES[2]:
                # Ties are broken in another way: the class of the start has at most as many votes.
                at = np.clip(found, 0, 1)
                near, far = ((1 - t) * flat[start] + t * flat[end] for t in (at - 1e-3, at + 1e-3))
                shared = nearest.predict_proba(np.stack([near, far]))
                place_of = list(nearest.classes_).index(labels[start])
                assert found == 0 or shared[0, place_of] == shared[0].max()
                assert (
                    np.isinf(found) or shared[1, place_of] <= np.delete(shared[1], place_of).max()
                )
            else:
                assert found == expected or abs(found - expected) <= 1 / 400


def test_ties_of_neighbours_go_to_the_nearest_of_those_tied():
    squared = jnp.array([[1.0, 2.0, 3.0, 4.0, 5.0, 0.5], [5.0, 4.0, 3.0, 2.0, 1.0, 9.0]])
    labels = jnp.array([2, 0, 2, 0, 1, 3])
    votes = boundaries.neighbour_votes(squared, labels, 4)
    # Of the first, 3, 2, 0, 2 and 0 vote: 2 before 0. Of the second, 1, 0, 2, 0 and 2: 0 before 2.
    assert votes.argmax(-1).tolist() == [2, 0]
    np.testing.assert_array_equal(jnp.floor(votes), [[2, 0, 2, 1], [2, 1, 2, 0]])


def test_a_class_without_examples_is_never_decided_for():
    x = np.random.default_rng(0).normal(size=(20, 3))
    rules = boundaries.affine_rules(x, np.arange(20) % 2, 4)
    scores = np.einsum("rcd,bd->rbc", rules.weight, x) + rules.bias[:, None]
    assert np.isin(scores.argmax(-1), [0, 1]).all()


def test_equal_models_have_one_boundary(train, pool):
    same = dataclasses.replace(CONDITION, overlap=1.0, shared_start=True, shared_order=True)
    measured = _measure(train(same), pool)
    values = t9.boundary_statistics(measured)
    np.testing.assert_allclose(values.correlation, 1.0, atol=1e-5)
    np.testing.assert_allclose(values.partial, 1.0, atol=1e-4)


def test_a_plane_holds_its_three_examples(measured):
    for p, m in np.ndindex(NUM_PAIRS, 2):
        plane = measured.dataset.isel(pair=p, model=m)
        classes = plane["plane_classes"].values
        assert len(set(classes.tolist())) == 3
        decisions = plane["plane_decision"].transpose("y", "x").values
        for (x, y), label in zip(plane["plane_corners"].values, classes, strict=True):
            column = np.abs(plane["plane_x"].values - x).argmin()
            row = np.abs(plane["plane_y"].values - y).argmin()
            near = decisions[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            assert label in near


# How segments are drawn


def test_ends_are_usable_of_their_class_and_not_shared():
    labels = jnp.asarray(np.arange(60) % 3)
    usable = jnp.asarray(np.arange(60) % 7 != 0).at[jnp.arange(2, 60, 3)].set(False)
    usable = usable.at[jnp.array([2, 5])].set(True)  # class 2 has two examples
    classes = jnp.array([[0, 1], [0, 2]])
    ends = boundaries.sample_ends(jax.random.key(0), labels, usable, classes, 5)
    np.testing.assert_array_equal(ends.valid.sum(1), [5, 2])
    for g, (first, second) in enumerate(np.asarray(classes)):
        kept = np.asarray(ends.valid[g])
        for rows, wanted in ((ends.start[g], first), (ends.end[g], second)):
            rows = np.asarray(rows)[kept]
            assert len(set(rows.tolist())) == len(rows)
            assert (np.asarray(labels)[rows] == wanted).all() and np.asarray(usable)[rows].all()
    again = boundaries.sample_ends(jax.random.key(1), labels, usable, classes, 5)
    assert not np.array_equal(ends.start, again.start)


@pytest.mark.quick
def test_pairs_of_classes_are_all_or_some_at_random():
    assert len(boundaries.class_pairs(10, np.random.default_rng(0))) == 45
    some = boundaries.class_pairs(100, np.random.default_rng(0))
    assert len(some) == len(np.unique(some, axis=0)) == boundaries.NUM_CLASS_PAIRS
    assert (some[:, 0] < some[:, 1]).all() and some.max() > 50


# What T9 reads


def test_partial_correlation_is_that_of_inverse_covariances():
    rng = np.random.default_rng(0)
    given = rng.normal(size=(3, 200))
    values = rng.normal(size=(2, 200)) + np.array([[1.0], [0.5]]) * given.sum(0)
    partial, _ = t9.correlation(values, given)
    precision = np.linalg.inv(np.cov(np.concatenate([values, given])))
    expected = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    np.testing.assert_allclose(partial, expected)
    plain, _ = t9.correlation(values, given[:0])
    np.testing.assert_allclose(plain, np.corrcoef(values)[0, 1])


def test_influence_is_what_leaving_an_entry_out_does():
    rng = np.random.default_rng(1)
    given = np.tile(rng.normal(size=(3, 40)), 100)  # one of many: to first order
    values = np.tile(rng.normal(size=(2, 40)), 100) + given[:2] + given[2]
    number = values.shape[1]
    for rows in (given, given[:0]):
        estimate, influence = t9.correlation(values, rows)
        left_out = [
            t9.correlation(np.delete(values, n, 1), np.delete(rows, n, 1))[0] for n in range(40)
        ]
        expected = (number - 1) * (estimate - np.array(left_out))
        np.testing.assert_allclose(influence[:40], expected, atol=2e-3 * np.abs(expected).max())
        np.testing.assert_allclose(influence.sum(), 0.0, atol=1e-9)


def test_what_is_given_exactly_has_no_correlation_left():
    values = np.random.default_rng(2).normal(size=(2, 30))
    assert np.isnan(t9.correlation(values, values[:1])[0])
    assert np.isnan(t9.correlation(values[:, :5], np.ones((3, 5)))[0])
    assert np.isnan(t9.correlation(0 * values, values[:0])[0])
    assert np.isnan(t9.correlation(values[:, :0], values[:0, :0])[0])


def _segments(crossing, ruled, finite=True):
    """Two pairs of seven segments, of which the last does not exist; rows are counted."""
    num_segments = np.shape(crossing)[-1]
    rows = np.tile(np.arange(num_segments), (2, 1))
    variables = {
        "class_pair": (("pair", "segment"), np.tile([0] * (num_segments - 1) + [-1], (2, 1))),
        "start": (("pair", "segment"), rows),
        "end": (("pair", "segment"), rows + num_segments),
        "crossing": (("pair", "model", "segment"), np.asarray(crossing)),
        "rule_crossing": (("pair", "rule", "segment"), np.asarray(ruled)),
        "finite": (("pair",), np.array([True, finite])),
    }
    return Measured(xr.Dataset(variables, {"rule": list(RULES)}, {NUMBERS: ()}))


def test_statistics_are_of_the_segments_that_exist_and_examples_add_to_the_mean():
    rng = np.random.default_rng(3)
    crossing, ruled = rng.random((2, 2, 40)), rng.random((2, 3, 40))
    crossing[0, 0, 4] = np.inf  # at the far end
    read = t9.boundary_statistics(_segments(crossing, ruled))
    crossing[0, 0, 4] = 1.0
    added = np.zeros(80)
    for p in range(2):
        kept, given = crossing[p, :, :-1], ruled[p, :, :-1]
        (r, of_r), (partial, of_partial) = (
            t9.correlation(kept, given[:0]),
            t9.correlation(kept, given),
        )
        np.testing.assert_allclose(read.correlation[p], r)
        np.testing.assert_allclose(read.partial[p], partial)
        each = (of_partial - 0.5 * of_r) / 39 / 2
        added += np.concatenate([each, [0.0], each, [0.0]])
        first, second = (np.corrcoef(model, given[1])[0, 1] for model in kept)
        np.testing.assert_allclose(read.with_rule[1, p], (first + second) / 2)
    np.testing.assert_allclose(
        read.examples[:79], np.where(np.arange(79) == 39, np.nan, added[:79])
    )
    diverged = t9.boundary_statistics(_segments(crossing, ruled, finite=False))
    assert np.isnan(diverged.partial).tolist() == [False, True]
    np.testing.assert_array_equal(diverged.partial[0], read.partial[0])


def test_planted_segments_are_as_many_as_measured_ones(measured):
    records = planted.plant(np.random.default_rng(0), 1.0)
    (dataset,) = records.datasets.values()
    assert set(dataset) <= set(measured.dataset)
    for name, variable in dataset.items():
        assert variable.dims == measured.dataset[name].dims, name
        assert variable.shape[1:] == measured.dataset[name].shape[1:], name
    assert dataset.attrs[NUMBERS] == measured.dataset.attrs[NUMBERS]
    assert dataset.sizes["segment"] == 45 * NUM_SEGMENTS
