"""Class matrices along training, against the library called directly and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import meeting, populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g5 import study
from halfway.lab.studies.g5.measure import CLASSES, LABELS, MATRICES
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

STEPS = (0, 30)
CONFIG = tiny_run.config(training={"probe_steps": STEPS})
# Of the shape that other tests train too. The study's own trains on S; its matrices are made alike.
CONDITION = condition(CONFIG, "mlp")


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


@pytest.fixture(scope="module")
def classes(trained, pool):
    context = Context(jax.random.key(5), (trained,), pool, CONFIG)
    return Measured(CLASSES.measure(context))


def _of_numpy(sample):
    return jax.tree.map(np.asarray, sample)


def _matrices(classes, matrix, labels):
    """`[P, 2, T, C, C]` of one kind."""
    cells = "pair", "model", "step", "class", "other_class"
    return classes.read("class_matrix", *cells, matrix=matrix, labels=labels)


def test_matrices_are_the_library_called_model_by_model(classes, trained, pool):
    images = jnp.asarray(pool.images)
    walks = populations.retrace(CONDITION, pool, steps=STEPS, num_pairs=CONFIG.num_pairs)
    functions = (meeting.residual_free_matrix, meeting.meeting_matrix)
    pair = CONFIG.num_pairs - 1
    halves = [jax.tree.map(lambda leaf: leaf[pair], half) for half in trained.halves[:2]]
    for matrix, function in zip(MATRICES, functions, strict=True):
        direct = jax.jit(functools.partial(function, CONDITION.apply_fn))
        measured = _matrices(classes, matrix, "true")
        for side, step in np.ndindex(2, len(STEPS)):
            params = jax.tree.map(lambda leaf, at=(pair, side, step): leaf[at], walks)
            expected = direct(params, images, halves[side], halves[1 - side])
            scale = np.nanmax(np.abs(expected))
            np.testing.assert_allclose(
                measured[pair, side, step], expected, rtol=1e-4, atol=1e-5 * scale
            )


def test_contrasts_are_those_of_the_matrices(classes):
    same = np.eye(CONFIG.num_classes, dtype=bool)
    for matrix in MATRICES:
        for labels in LABELS:
            values = _matrices(classes, matrix, labels)
            assert np.isfinite(values).all()
            cells = "pair", "model", "step"
            contrast, size = (
                classes.read(name, *cells, matrix=matrix, labels=labels)
                for name in ("class_contrast", "class_size")
            )
            expected = values[..., same].mean(-1) - values[..., ~same].mean(-1)
            scale = size.max()
            np.testing.assert_allclose(contrast, expected, rtol=1e-4, atol=1e-5 * scale)
            np.testing.assert_allclose(size, np.abs(values).mean((-2, -1)), rtol=1e-4)
            if matrix == MATRICES[0]:
                true, shuffled = study.contrasts(classes)
                terms = true if labels == "true" else shuffled
                np.testing.assert_allclose(
                    terms.numerators, expected[:, :, 0].sum(1), rtol=1e-4, atol=1e-5 * scale
                )


def test_shuffled_labels_group_the_same_examples_otherwise(classes, trained):
    # The mean over all pairs of examples does not depend on how they are grouped.
    counts = [
        np.stack([np.bincount(labels, minlength=CONFIG.num_classes) for labels in half.labels])
        for half in map(_of_numpy, trained.halves[:2])
    ]
    counts = np.stack([counts, counts[::-1]], 2)  # [half of the row or column, P, 2, C]
    totals = [
        np.einsum("pmc,pmd,pmtcd->pmt", *counts, _matrices(classes, MATRICES[0], labels))
        for labels in LABELS
    ]
    np.testing.assert_allclose(*totals, rtol=1e-3)
    true, shuffled = (terms.numerators / terms.denominators for terms in study.contrasts(classes))
    assert (true > shuffled + 0.05).all()


def test_the_study_looks_at_models_that_saw_neither_half():
    for request in study.needs(CONFIG):
        assert all(trained.on_holdout for trained in request.conditions)
