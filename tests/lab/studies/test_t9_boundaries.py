"""Crossings of a tiny trained population by brute force; what T9 reads, by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from lab.studies.plants import t9 as planted
from support import tiny_run

from halfway.lab.measurements.context import Context
from halfway.lab.studies.t9 import measure as boundaries
from halfway.lab.studies.t9 import study as t9
from halfway.lab.studies.t9.measure import BOUNDARIES, KINDS, NUM_SEGMENTS
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
    crossings, distances = (
        measured.read(name, "pair", "model", "segment") for name in ("crossing", "distance")
    )
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
            length = np.linalg.norm(end - start)
            np.testing.assert_allclose(distances[p, m, n], crossings[p, m, n] * length, rtol=1e-4)
            # Both have both ends right, on examples of S.
            np.testing.assert_array_equal(decisions[[0, -1]], labels[rows])
            assert set(rows) <= set(np.asarray(trained.halves.s.indices[p]).tolist())
    between = measured.read("between", "pair", "segment")
    np.testing.assert_array_equal(between, np.abs(distances[:, 0] - distances[:, 1]))


def test_segments_lead_from_the_lower_class_to_the_higher(measured, pool):
    labels = np.asarray(pool.labels)
    groups = list(itertools.combinations(range(10), 2))
    columns = (measured.read(name, "pair", "segment") for name in ("start", "end", "class_pair"))
    for start, end, group in zip(*(values.ravel() for values in columns), strict=True):
        assert group < 0 or (labels[start], labels[end]) == groups[group]


def test_equal_models_have_one_boundary(train, pool):
    same = dataclasses.replace(CONDITION, overlap=1.0, shared_start=True, shared_order=True)
    measured = _measure(train(same), pool)
    values = t9.boundary_statistics(measured)
    np.testing.assert_allclose(values.correlation, 1.0, atol=1e-5)
    np.testing.assert_allclose(values.between, 0.0, atol=1e-4)
    np.testing.assert_allclose(values.lead, values.own_distance, atol=1e-3)
    for kind in ("legitimate", "random"):
        apart = measured.read("inter_boundary_distance", "pair", "model", kind=kind)
        np.testing.assert_allclose(apart[:, 0], 0.0, atol=1e-3)


def test_attacks_are_the_shortest_way_to_a_boundary(measured):
    distance = {
        kind: measured.read("boundary_distance", "pair", "model", kind=kind) for kind in KINDS
    }
    assert (distance["adversarial"] < distance["legitimate"]).all()
    assert (distance["legitimate"] < distance["random"]).all()


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


@pytest.mark.quick
def test_medians_with_boundaries_that_are_not_found():
    inf = np.inf
    own_distance = np.array([1.0, 2.0, inf, 4.0, 9.0])
    other = np.array([1.5, inf, inf, 4.2, 9.0])
    distance = np.stack([np.stack([own_distance, other])] * 2)[None]
    medians = boundaries.medians(distance, np.array([[True, True, True, True, False]]))
    # Of A: 1, 2, inf, 4, and .5, inf, .2 apart where A has a boundary; of B: 1.5, inf, inf, 4.2.
    np.testing.assert_array_equal(medians["boundary_distance"], [[3.0, inf]])
    np.testing.assert_allclose(medians["inter_boundary_distance"], [[0.5, 0.35]], rtol=1e-6)
    np.testing.assert_array_equal(medians["share_unbounded"], [[0.25, 0.5]])
    nothing = boundaries.medians(distance, np.zeros((1, 5), bool))
    assert all(np.isnan(values).all() for values in nothing.values())


# What T9 reads


def test_mean_correlation_over_permutations_is_exact():
    rng = np.random.default_rng(0)
    strata = np.repeat(np.arange(4), 6)
    x, y = rng.normal(size=(2, 24)) + strata * 0.5
    correlation, expected = t9.expected_correlation(x, y, strata)
    np.testing.assert_allclose(correlation, np.corrcoef(x, y)[0, 1])
    drawn = [np.corrcoef(x, t9.permute(y, strata, rng))[0, 1] for _ in range(4000)]
    assert abs(np.mean(drawn) - expected) < 4 * np.std(drawn) / np.sqrt(4000)
    assert expected > 0.2  # the strata alone correlate
    # Without strata there is nothing left; where each is its own, nothing is exchanged.
    assert abs(t9.expected_correlation(x, y, 0 * strata)[1]) < 1e-12
    np.testing.assert_allclose(t9.expected_correlation(x, y, np.arange(24))[1], correlation)
    assert np.isnan(t9.expected_correlation(x, 0 * y, strata)).all()


def test_a_permutation_stays_within_its_stratum():
    strata = np.array([0, 1, 0, 1, 1])
    out = t9.permute(np.arange(5), strata, np.random.default_rng(1))
    np.testing.assert_array_equal(strata[out], strata)
    assert sorted(out) == [0, 1, 2, 3, 4]


def _segments(crossing, finite=True):
    """One pair with four segments of length 2, of which the last does not exist."""
    crossing = np.asarray(crossing)[None]
    between = 2 * np.abs(crossing[:, 0] - crossing[:, 1])
    between[~np.isfinite(crossing).all(1)] = np.nan  # what is there does not matter
    of_models = ("pair", "model", "segment")
    variables = {
        "class_pair": (("pair", "segment"), np.array([[0, 0, 1, -1]])),
        "crossing": (of_models, crossing),
        "distance": (of_models, 2 * crossing),
        "between": (("pair", "segment"), between),
        "finite": (("pair",), np.array([finite])),
    }
    return Measured(xr.Dataset(variables, attrs={NUMBERS: ()}))


@pytest.mark.quick
def test_terms_by_hand():
    terms = t9.boundary_statistics(_segments([[0.4, 0.5, 0.6, 0.0], [0.5, 0.5, 0.2, 1.0]]))
    np.testing.assert_allclose(terms.off, (0.1 + 0 + 0.1 + 0 + 0 + 0.3) / 6)
    # Own: medians of .8, 1, 1.2 and of 1, 1, .4; apart: .2, 0, .8; leads .6, 1, .4 and .8, 1, −.4.
    np.testing.assert_allclose(terms.own_distance, 1.0)
    np.testing.assert_allclose(terms.between, 0.2)
    np.testing.assert_allclose(terms.lead, (0.6 + 0.8) / 2)
    np.testing.assert_array_equal(terms.crossed, 1.0)


def test_crossings_that_are_not_found_count_against_the_claim():
    crossing = [[0.4, np.inf, 0.6, 0.0], [0.5, 0.5, 0.2, 1.0]]
    terms = t9.boundary_statistics(_segments(crossing))
    np.testing.assert_allclose(terms.off, (0.1 + 0.5 + 0.1 + 0 + 0 + 0.3) / 6)
    np.testing.assert_allclose(terms.lead, (0.4 - 0.4) / 2, atol=1e-12)
    np.testing.assert_allclose(terms.crossed, 2 / 3)
    diverged = t9.boundary_statistics(_segments(crossing, finite=False))
    assert all(np.isnan(values).all() for values in diverged)


def test_planted_segments_are_as_many_as_measured_ones(measured):
    records = planted.plant(np.random.default_rng(0), 1.0)
    (dataset,) = records.datasets.values()
    assert set(dataset) <= set(measured.dataset)
    for name, variable in dataset.items():
        assert variable.dims == measured.dataset[name].dims, name
        assert variable.shape[1:] == measured.dataset[name].shape[1:], name
    assert dataset.attrs[NUMBERS] == measured.dataset.attrs[NUMBERS]
    assert dataset.sizes["segment"] == 45 * NUM_SEGMENTS
