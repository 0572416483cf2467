"""Crossings of a tiny trained population by brute force; what T9 reads, by hand; its figures."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import plots, populations
from halfway.lab.studies.t9 import measure as boundaries
from halfway.lab.studies.t9 import study as t9
from halfway.lab.studies.t9.measure import BOUNDARIES, KINDS, NUM_SEGMENTS
from halfway.lab.study import conditions, tables
from halfway.lab.study.protocol import Records

NUM_PAIRS = 2


CONFIG = tiny_run.config(
    num_pairs=NUM_PAIRS, num_examples=120, num_holdout=90, training={"probe_steps": (0, 150)}
)
OWN = conditions.condition(CONFIG, "mlp")


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def trained(pool):
    return populations.train(OWN, pool)


@pytest.fixture(scope="module")
def measured(trained, pool):
    return BOUNDARIES.measure(jax.random.key(3), [trained], pool, CONFIG)


def _decisions(population, p, m, x):
    params = jax.tree.map(lambda leaf: leaf[p, m], population.params)
    return np.asarray(population.apply_fn(params, jnp.asarray(x, jnp.float32)).argmax(-1))


# The measurement


def test_crossings_are_the_first_changes_of_a_dense_grid(trained, measured, pool):
    arrays, (images, labels) = measured.arrays, (np.asarray(pool.images), np.asarray(pool.labels))
    shares = np.linspace(0, 1, 2001)
    for p in range(NUM_PAIRS):
        valid = np.flatnonzero(arrays["class_pair"][p] >= 0)
        assert len(valid) > 20
        for n, m in itertools.product(valid[::7], range(2)):
            start, end = (images[arrays[side][p, n]] for side in ("start", "end"))
            along = (1 - shares)[:, None, None, None] * start + shares[:, None, None, None] * end
            decisions = _decisions(trained, p, m, along)
            expected = shares[(decisions != decisions[0]).argmax()]
            assert abs(arrays["crossing"][p, m, n] - expected) <= 1 / 2000
            length = np.linalg.norm(end - start)
            np.testing.assert_allclose(
                arrays["distance"][p, m, n], arrays["crossing"][p, m, n] * length, rtol=1e-4
            )
            # Both have both ends right, on examples of S.
            rows = [arrays[side][p, n] for side in ("start", "end")]
            np.testing.assert_array_equal(decisions[[0, -1]], labels[rows])
            assert set(rows) <= set(np.asarray(trained.halves.s.indices[p]).tolist())
    distance = arrays["distance"]
    np.testing.assert_array_equal(arrays["between"], np.abs(distance[:, 0] - distance[:, 1]))


def test_segments_lead_from_the_lower_class_to_the_higher(measured, pool):
    arrays, labels = measured.arrays, np.asarray(pool.labels)
    every = list(itertools.combinations(range(10), 2))
    for start, end, group in zip(
        arrays["start"].ravel(), arrays["end"].ravel(), arrays["class_pair"].ravel(), strict=True
    ):
        assert group < 0 or (labels[start], labels[end]) == every[group]


def test_equal_models_have_one_boundary(pool):
    same = dataclasses.replace(OWN, overlap=1.0, shared_start=True, shared_order=True)
    both = populations.train(same, pool)
    found = BOUNDARIES.measure(jax.random.key(3), [both], pool, CONFIG)
    values = t9.terms(found.arrays, np.ones(NUM_PAIRS, bool))
    np.testing.assert_allclose(values.correlation, 1.0, atol=1e-5)
    np.testing.assert_allclose(values.between, 0.0, atol=1e-4)
    np.testing.assert_allclose(values.lead, values.own, atol=1e-3)
    for kind in ("legitimate", "random"):
        reader = tables.Reader(Records(found.table, tables.conditions_table([]), CONFIG))
        apart = reader.cube(same.key, "inter_boundary_distance", subset=kind, surrogate="A")
        np.testing.assert_allclose(apart, 0.0, atol=1e-3)


def test_attacks_are_the_shortest_way_to_a_boundary(trained, measured):
    reader = tables.Reader(Records(measured.table, tables.conditions_table([]), CONFIG))
    distance = {
        kind: reader.cube(
            trained.condition.key, "boundary_distance", ("pair", "surrogate"), subset=kind
        )
        for kind in KINDS
    }
    assert (distance["adversarial"] < distance["legitimate"]).all()
    assert (distance["legitimate"] < distance["random"]).all()


def test_a_plane_holds_its_three_examples(trained, measured):
    for p, m in np.ndindex(NUM_PAIRS, 2):
        corners = measured.arrays["plane_corners"][p]
        classes = measured.arrays["plane_classes"][p]
        assert len(set(classes.tolist())) == 3
        for (x, y), label in zip(corners, classes, strict=True):
            column = np.abs(measured.arrays["plane_x"][p] - x).argmin()
            row = np.abs(measured.arrays["plane_y"][p] - y).argmin()
            near = measured.arrays["plane_decision"][p, m]
            assert label in near[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]


# How segments are drawn


def test_ends_are_usable_of_their_class_and_not_shared():
    labels = jnp.asarray(np.arange(60) % 3)
    usable = jnp.asarray(np.arange(60) % 7 != 0).at[jnp.arange(2, 60, 3)].set(False)
    usable = usable.at[jnp.array([2, 5])].set(True)  # class 2 has two examples
    classes = jnp.array([[0, 1], [0, 2]])
    ends = boundaries.draw_ends(jax.random.key(0), labels, usable, classes, 5)
    np.testing.assert_array_equal(ends.valid.sum(1), [5, 2])
    for g, (first, second) in enumerate(np.asarray(classes)):
        kept = np.asarray(ends.valid[g])
        for rows, wanted in ((ends.start[g], first), (ends.end[g], second)):
            rows = np.asarray(rows)[kept]
            assert len(set(rows.tolist())) == len(rows)
            assert (np.asarray(labels)[rows] == wanted).all() and np.asarray(usable)[rows].all()
    again = boundaries.draw_ends(jax.random.key(1), labels, usable, classes, 5)
    assert not np.array_equal(ends.start, again.start)


def test_pairs_of_classes_are_all_or_some_at_random():
    assert len(boundaries.class_pairs(10, np.random.default_rng(0))) == 45
    some = boundaries.class_pairs(100, np.random.default_rng(0))
    assert len(some) == len(np.unique(some, axis=0)) == boundaries.NUM_CLASS_PAIRS
    assert (some[:, 0] < some[:, 1]).all() and some.max() > 50


def test_medians_with_boundaries_that_are_not_found():
    inf = np.inf
    own = np.array([1.0, 2.0, inf, 4.0, 9.0])
    other = np.array([1.5, inf, inf, 4.2, 9.0])
    distance = np.stack([np.stack([own, other])] * 2)[None]
    found = boundaries.medians(distance, np.array([[True, True, True, True, False]]))
    # Of A: 1, 2, inf, 4, and .5, inf, .2 apart where A has a boundary; of B: 1.5, inf, inf, 4.2.
    np.testing.assert_array_equal(found["boundary_distance"], [[3.0, inf]])
    np.testing.assert_allclose(found["inter_boundary_distance"], [[0.5, 0.35]], rtol=1e-6)
    np.testing.assert_array_equal(found["share_unbounded"], [[0.25, 0.5]])
    nothing = boundaries.medians(distance, np.zeros((1, 5), bool))
    assert all(np.isnan(values).all() for values in nothing.values())


# What T9 reads


def test_mean_correlation_over_permutations_is_exact():
    rng = np.random.default_rng(0)
    strata = np.repeat(np.arange(4), 6)
    x, y = rng.normal(size=(2, 24)) + strata * 0.5
    own, expected = t9.expected_correlation(x, y, strata)
    np.testing.assert_allclose(own, np.corrcoef(x, y)[0, 1])
    drawn = [np.corrcoef(x, t9.permute(y, strata, rng))[0, 1] for _ in range(4000)]
    assert abs(np.mean(drawn) - expected) < 4 * np.std(drawn) / np.sqrt(4000)
    assert expected > 0.2  # the strata alone correlate
    # Without strata there is nothing left; where each is its own, nothing is exchanged.
    assert abs(t9.expected_correlation(x, y, 0 * strata)[1]) < 1e-12
    np.testing.assert_allclose(t9.expected_correlation(x, y, np.arange(24))[1], own)
    assert np.isnan(t9.expected_correlation(x, 0 * y, strata)).all()


def test_a_permutation_stays_within_its_stratum():
    strata = np.array([0, 1, 0, 1, 1])
    out = t9.permute(np.arange(5), strata, np.random.default_rng(1))
    np.testing.assert_array_equal(strata[out], strata)
    assert sorted(out) == [0, 1, 2, 3, 4]


def _arrays(crossing):
    crossing = np.asarray(crossing)[None]
    return {
        "class_pair": np.array([[0, 0, 1, -1]]),
        "crossing": crossing,
        "distance": 2 * crossing,
        "between": 2 * np.abs(crossing[:, 0] - crossing[:, 1]),
    }


def test_terms_by_hand():
    arrays = _arrays([[0.4, 0.5, 0.6, 0.0], [0.5, 0.5, 0.2, 1.0]])
    found = t9.terms(arrays, np.ones(1, bool))
    np.testing.assert_allclose(found.off, (0.1 + 0 + 0.1 + 0 + 0 + 0.3) / 6)
    # Own: medians of .8, 1, 1.2 and of 1, 1, .4; apart: .2, 0, .8; leads .6, 1, .4 and .8, 1, −.4.
    np.testing.assert_allclose(found.own, 1.0)
    np.testing.assert_allclose(found.between, 0.2)
    np.testing.assert_allclose(found.lead, (0.6 + 0.8) / 2)
    np.testing.assert_array_equal(found.found, 1.0)


def test_crossings_that_are_not_found_count_against_the_claim():
    arrays = _arrays([[0.4, np.inf, 0.6, 0.0], [0.5, 0.5, 0.2, 1.0]])
    arrays["between"][0, 1] = np.nan  # what is there does not matter
    found = t9.terms(arrays, np.ones(1, bool))
    np.testing.assert_allclose(found.off, (0.1 + 0.5 + 0.1 + 0 + 0 + 0.3) / 6)
    np.testing.assert_allclose(found.lead, (0.4 - 0.4) / 2, atol=1e-12)
    np.testing.assert_allclose(found.found, 2 / 3)
    assert all(np.isnan(values).all() for values in t9.terms(arrays, np.zeros(1, bool)))


def test_planted_segments_are_as_many_as_measured_ones(measured):
    records = t9.STUDY.plant(np.random.default_rng(0), 1.0)
    (arrays,) = records.arrays.values()
    assert set(arrays) <= set(measured.arrays)
    num = records.config.num_pairs
    for name, values in arrays.items():
        assert values.shape == (num, *measured.arrays[name].shape[1:]), name
    assert arrays["class_pair"].shape[1] == 45 * NUM_SEGMENTS


# Figures


def test_crossings_are_drawn_with_their_control():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.2, 0.8, 500)
    ax = plots.crossings(first, first, rng.permutation(first))
    _, control, own = ax.get_lines()
    np.testing.assert_allclose(own.get_xdata(), own.get_ydata())
    assert np.ptp(control.get_ydata()) < 0.5 * np.ptp(own.get_ydata())
    with pytest.raises(ValueError, match=r"three equal \[N\]"):
        plots.crossings(first, first[:3], first)


def test_distances_are_drawn_where_they_are_finite():
    own, between = np.array([[1.0, 1.2], [np.inf, np.inf]]), np.array([[0.2, 0.3], [0.5, np.nan]])
    ax = plots.boundary_distances(own, between, names=["near", "far"])
    texts = [text.get_text() for text in ax.texts]
    assert "to the boundary: none for most examples" in texts
    assert [label.get_text() for label in ax.get_yticklabels()] == ["near", "far"]
    with pytest.raises(ValueError, match="of 1 names"):
        plots.boundary_distances(own, between, names=["near"])


def test_boundaries_in_a_plane_need_a_grid():
    x, y = np.arange(4), np.arange(3)
    decisions = np.array([[0, 0, 1, 1]] * 3)
    points = {"an example": (1.0, 1.0)}
    ax = plots.boundaries(x, y, {"one": decisions, "two": 0 * decisions}, points=points)
    assert "an example" in [text.get_text() for text in ax.texts]
    for wrong in ({"one": decisions.T}, {str(i): decisions for i in range(4)}):
        with pytest.raises(ValueError, match="boundaries:"):
            plots.boundaries(x, y, wrong)
