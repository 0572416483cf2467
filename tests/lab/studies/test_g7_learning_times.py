"""When examples are learned: by hand, and read along training model by model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import tiny_run

from halfway import populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g7 import measure, study
from halfway.lab.studies.g7.measure import ALL, LEARNING_TIMES, PERMUTED, WITHIN
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
# Fewer examples than places: the last ones of a half are padding.
CONDITION = dataclasses.replace(
    condition(CONFIG, "mlp", noise_rate=0.2), num_examples=50, capacity=60
)
STEPS = measure.learning_steps(30)


@pytest.mark.quick
def test_an_example_is_learned_where_it_becomes_right_for_good():
    correct = np.array([[0, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)
    # Right from the second step on, lost and found again, always, never, lost at the end.
    assert measure.learned_at(correct, (0, 3, 9)).tolist() == [3, 9, 0, 10, 10]
    stacked = measure.learned_at(np.stack([correct, correct[:, ::-1]]), (0, 3, 9))
    assert stacked.tolist() == [[3, 9, 0, 10, 10], [10, 10, 0, 9, 3]]


def test_learning_is_looked_at_from_the_start_to_the_end_of_training():
    steps = measure.learning_steps(700)
    assert (steps[0], steps[1], steps[-1]) == (0, 1, 700)
    assert list(steps) == sorted(set(steps)) and len(steps) <= 61


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


@pytest.fixture(scope="module")
def times(trained, pool):
    context = Context(jax.random.key(7), (trained,), pool, CONFIG)
    return Measured(LEARNING_TIMES.measure(context))


def test_both_models_are_watched_on_the_same_half(times, trained, pool):
    images, pair = jnp.asarray(pool.images), 1
    walks = populations.retrace(CONDITION, pool, steps=STEPS, num_pairs=CONFIG.num_pairs)
    logits_fn = jax.jit(jax.vmap(CONDITION.apply_fn, (0, None)))
    halves = trained.halves.b, trained.halves.a  # what A and B, the surrogates, never see
    for surrogate, half in enumerate(halves):
        rows, labels = np.asarray(half.indices[pair]), np.asarray(half.labels[pair])
        label = times.read("label", "pair", "surrogate", "example")
        assert label[pair, surrogate].tolist() == labels.tolist()
        for name, side in (("other", surrogate), ("own", 1 - surrogate)):
            params = jax.tree.map(lambda leaf, side=side: leaf[pair, side], walks)
            correct = np.asarray(logits_fn(params, images[rows])).argmax(-1) == labels
            learned = times.read(f"learned_by_{name}", "pair", "surrogate", "example")
            expected = measure.learned_at(correct, STEPS)
            np.testing.assert_array_equal(learned[pair, surrogate], expected)


def test_correlations_are_those_of_valid_examples(times, trained, pool):
    examples = "pair", "surrogate", "example"
    names = ("learned_by_other", "learned_by_own", "label")
    other_times, own_times, labels = (times.read(name, *examples) for name in names)
    undefined = times.read("num_undefined_strata", "pair", "surrogate")
    for pair, surrogate in np.ndindex(undefined.shape):
        half = (trained.halves.b, trained.halves.a)[surrogate]
        valid = slice(CONDITION.num_examples)
        clean = np.asarray(pool.labels)[np.asarray(half.indices[pair])[valid]]
        x, y, label = (
            values[pair, surrogate, valid] for values in (other_times, own_times, labels)
        )
        sums, weight, num_undefined = 0.0, 0, 0
        for stratum in set(zip(label, label != clean, strict=True)):
            rows = (label == stratum[0]) & ((label != clean) == stratum[1])
            if rows.sum() < 2:
                continue
            if len(set(x[rows])) == 1 or len(set(y[rows])) == 1:
                num_undefined += 1
                continue
            sums += rows.sum() * scipy.stats.spearmanr(x[rows], y[rows]).statistic
            weight += rows.sum()
        place = pair, surrogate
        read = {
            order: times.read("rank_correlation", "pair", "surrogate", order=order)[place]
            for order in (WITHIN, PERMUTED, ALL)
        }
        assert undefined[place] == num_undefined
        assert read[WITHIN] == pytest.approx(sums / weight)
        assert read[ALL] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert abs(read[PERMUTED]) < 0.1
    both = times.read("rank_correlation", "pair", "surrogate", order=WITHIN)
    np.testing.assert_allclose(study.correlation(times, WITHIN), both.mean(1))
