"""Class matrices along training and confusions, by hand; how alike classes are, in closed form."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from support import tiny_run

from halfway import meeting, populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g5 import likeness, study
from halfway.lab.studies.g5.measure import CLASSES, CONFUSIONS
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

STEPS = (0, 30)
CONFIG = tiny_run.config(training={"probe_steps": STEPS})
# Of the shape that other tests train too. The study's own trains on S; its matrices are made alike.
# Fewer examples than places: the last ones of a half are padding.
CONDITION = dataclasses.replace(condition(CONFIG, "mlp"), num_examples=50, capacity=60)


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


def _measure(measurement, population, pool):
    context = Context(jax.random.key(5), (population,), pool, CONFIG)
    return Measured(measurement.measure(context))


def test_matrices_are_the_library_called_model_by_model(trained, pool):
    classes, images = _measure(CLASSES, trained, pool), jnp.asarray(pool.images)
    walks = populations.retrace(CONDITION, pool, steps=STEPS, num_pairs=CONFIG.num_pairs)
    direct = jax.jit(functools.partial(meeting.residual_free_matrix, CONDITION.apply_fn))
    pair = CONFIG.num_pairs - 1
    halves = [jax.tree.map(lambda leaf: leaf[pair], half) for half in trained.halves[:2]]
    for side, (place, step) in itertools.product(range(2), enumerate(STEPS)):
        params = jax.tree.map(lambda leaf, at=(pair, side, place): leaf[at], walks)
        expected = direct(params, images, halves[side], halves[1 - side])
        cells = "pair", "model", "class", "other_class"
        measured = classes.read("class_matrix", *cells, step=step)[pair, side]
        scale = np.nanmax(np.abs(expected))
        np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5 * scale)


def test_confusions_are_counted_on_the_half_that_a_model_did_not_see(trained, pool):
    confusions = _measure(CONFUSIONS, trained, pool)
    counts = confusions.read("confusion", "pair", "model", "class", "other_class")
    logits_fn, labels = jax.jit(CONDITION.apply_fn), np.asarray(pool.labels)
    for pair, side in np.ndindex(CONFIG.num_pairs, 2):
        params = jax.tree.map(lambda leaf, at=(pair, side): leaf[at], trained.params)
        rows = np.asarray(trained.halves[1 - side].indices[pair])[: CONDITION.num_examples]
        predictions = np.asarray(logits_fn(params, jnp.asarray(pool.images)[rows])).argmax(-1)
        expected = np.zeros((10, 10))
        for label, prediction in zip(labels[rows], predictions, strict=True):
            expected[label, prediction] += 1
        np.testing.assert_array_equal(counts[pair, side], expected)
    means = [pool.images[labels == label].mean(0).ravel() for label in range(10)]
    expected = scipy.spatial.distance.pdist(np.array(means, np.float64))  # in the order of pairs
    products = confusions.read("pixel_product", "class", "other_class")
    np.testing.assert_allclose(likeness.distances(products), expected, rtol=1e-4)


@pytest.mark.quick
def test_relatedness_of_features_is_their_cosine():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 6))
    cosines = 1 - scipy.spatial.distance.pdist(features, "cosine")
    np.testing.assert_allclose(likeness.relatedness(features @ features.T), cosines)
    # Both orders are averaged, a scale of each class does not matter, a missing class is NaN.
    skew = np.triu(rng.normal(size=(4, 4)), 1)
    scales = np.diag(rng.uniform(1, 9, 4))
    changed = features @ features.T + skew - skew.T
    np.testing.assert_allclose(likeness.relatedness(changed), cosines)
    scaled = scales @ features @ features.T @ scales
    np.testing.assert_allclose(likeness.relatedness(scaled), cosines)
    changed[2] = np.nan
    there = np.isfinite(likeness.relatedness(changed))
    assert there.tolist() == [True, False, True, False, True, False]


@pytest.mark.quick
def test_no_pair_predicts_its_own_confusions():
    values = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
    others = likeness.mean_of_others(values)
    np.testing.assert_allclose(others, [[4.0, 6.0], [3.0, 4.0], [2.0, 2.0]])
    changed = values.copy()
    changed[0] = 100.0
    np.testing.assert_array_equal(likeness.mean_of_others(changed)[0], others[0])
    assert np.isnan(likeness.mean_of_others(values[:1])).all()


@pytest.mark.quick
def test_relabelled_classes_give_all_correlations_that_names_can():
    rng = np.random.default_rng(0)
    matrix, counts = rng.normal(size=(4, 4)), rng.normal(size=(1, 6))
    matrix = matrix + matrix.T
    by_hand = [
        scipy.stats.spearmanr(
            likeness.class_pairs(matrix[np.ix_(names, names)]), counts[0]
        ).statistic
        for names in itertools.permutations(range(4))
    ]
    predictor = likeness.class_pairs(matrix)[None]
    drawn = likeness.relabelled(predictor, counts, 2000, rng)[:, 0]
    assert set(drawn.round(9)) == set(np.round(by_hand, 9))
    assert abs(drawn.mean() - np.mean(by_hand)) < 0.04
    direct = likeness.rank_correlations(predictor, counts)
    assert direct[0] == pytest.approx(by_hand[0])
    assert np.isnan(likeness.rank_correlations(predictor, 0 * counts)).all()  # nothing is confused


def test_the_kernel_is_of_models_that_saw_neither_half():
    halves, holdout = study.conditions(CONFIG)
    assert holdout.on_holdout and not halves.on_holdout
    requests = {request.measurement: request.conditions for request in study.needs(CONFIG)}
    assert requests[CLASSES] == (holdout,) and requests[CONFUSIONS] == (halves,)
