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
from halfway.lab.studies.g7.measure import LEARNING_TIMES, PERMUTED, WITHIN
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


@pytest.mark.quick
@pytest.mark.parametrize("last", [61, 62, 75, 100, 250, 700, 4000, 100_000])
def test_learning_is_looked_at_61_times_from_the_start_to_the_end(last):
    steps = np.array(measure.learning_steps(last))
    assert len(steps) == 61 and (steps[0], steps[1], steps[-1]) == (0, 1, last)
    assert (np.diff(steps) > 0).all()
    assert (np.diff(steps, 2) >= -2).all()  # ever wider, up to rounding


@pytest.mark.quick
def test_a_short_training_is_looked_at_after_each_step():
    assert measure.learning_steps(1) == (0, 1)
    assert measure.learning_steps(60) == tuple(range(61))


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


def test_correlations_are_those_of_valid_examples(times):
    examples = "pair", "surrogate", "example"
    names = ("learned_by_other", "learned_by_own", "label")
    other_times, own_times, labels = (times.read(name, *examples) for name in names)
    undefined = times.read("num_undefined_strata", "pair", "surrogate")
    for place in np.ndindex(undefined.shape):
        valid = slice(CONDITION.num_examples)
        x, y, label = (values[place][valid] for values in (other_times, own_times, labels))
        sums, weight, num_undefined = 0.0, 0, 0
        for stratum in set(label):
            rows = label == stratum
            if rows.sum() < 2:
                continue
            if len(set(x[rows])) == 1 or len(set(y[rows])) == 1:
                num_undefined += 1
                continue
            sums += rows.sum() * scipy.stats.spearmanr(x[rows], y[rows]).statistic
            weight += rows.sum()
        within, permuted = (
            times.read("rank_correlation", "pair", "surrogate", times=kind)[place]
            for kind in (WITHIN, PERMUTED)
        )
        assert undefined[place] == num_undefined
        assert within == pytest.approx(sums / weight)
        assert abs(permuted) < 0.1
    both = times.read("rank_correlation", "pair", "surrogate", times=WITHIN)
    np.testing.assert_allclose(study.correlation(times), both.mean(1))


def test_two_seeds_train_on_the_first_half_of_the_pair(train):
    halves, seeds = (train(each) for each in study.conditions(CONFIG).values())
    for half in (seeds.halves.a, seeds.halves.b):
        np.testing.assert_array_equal(half.indices, halves.halves.a.indices)
        np.testing.assert_array_equal(half.labels, halves.halves.a.labels)
    # The first model is the same one; the second has the seeds of the other half's.
    first, other = (
        [np.asarray(jax.tree.leaves(each.params)[0])[:, side] for each in (halves, seeds)]
        for side in (0, 1)
    )
    np.testing.assert_array_equal(*first)
    assert np.abs(other[0] - other[1]).max() > 1e-3
    assert np.abs(first[1] - other[1]).max() > 1e-3
