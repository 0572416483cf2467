"""Alignment of two models along the first steps, against models taken from the walk one by one."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t4 as planted
from support import plants, tiny_run

from halfway import meeting, populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.t4 import measure, study
from halfway.lab.studies.t4.measure import ACCURACY, DIRECTIONS, EARLY_DIRECTIONS
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

NUM_PAIRS = 3  # on two devices: the padding must not show
NUM_EXAMPLES = 25  # of the 40 of S
KEY = jax.random.key(4)
CONFIG = tiny_run.config(num_pairs=NUM_PAIRS, training={"probe_steps": (0, 30)})
CONDITION = condition(CONFIG, "mlp")


@pytest.fixture(scope="module")
def context(pool):
    """Of a population of which no more than the condition, and who is finite, is looked at."""
    population: Any = types.SimpleNamespace(condition=CONDITION, finite=np.ones(NUM_PAIRS, bool))
    return Context(KEY, (population,), pool, CONFIG)


@pytest.fixture(scope="module")
def directions(context):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "NUM_EXAMPLES", NUM_EXAMPLES)
        yield Measured(EARLY_DIRECTIONS.measure(context))


def test_training_is_slow_and_short():
    trained, usual = study.decided_on(CONFIG, "mlp"), condition(CONFIG, "mlp")
    assert trained.probe_steps == (0, 200)
    np.testing.assert_allclose(trained.learning_rate, usual.learning_rate / 10)


def _walk(program, key, params, samples, images):
    """Parameters and the rows of S."""
    return params, samples["holdout"].indices


def test_curves_are_those_of_the_walk_s_models(directions, pool):
    @jax.jit
    def look(params, x, labels):
        """Input gradients and accuracy of one model."""
        logits_fn = functools.partial(CONDITION.apply_fn, params)
        gradients = [
            jax.grad(lambda x, loss_fn=loss_fn: loss_fn(logits_fn(x), labels).sum())(x)
            for loss_fn in DIRECTIONS.values()
        ]
        return *gradients, (logits_fn(x).argmax(-1) == labels).mean()

    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    steps = 0, 4
    walk, holdout = populations.observe(CONDITION, pool, _walk, steps=steps)
    for pair in (0, NUM_PAIRS - 1):
        rows = holdout[pair, 0, 0, :NUM_EXAMPLES]
        for place, step in enumerate(steps):
            (*first, right_a), (*second, right_b) = (
                look(
                    jax.tree.map(lambda leaf, at=(pair, model, place): leaf[at], walk),
                    images[rows],
                    labels[rows],
                )
                for model in range(2)
            )
            for name, u, v in zip(DIRECTIONS, first, second, strict=True):
                curve = directions.read(name, "pair", "step")
                np.testing.assert_allclose(curve[pair, step], meeting.alignment(u, v), atol=2e-3)
            accuracy = directions.read(ACCURACY, "pair", "step")[pair, step]
            np.testing.assert_allclose(accuracy, (right_a + right_b) / 2, atol=1e-6)


def test_there_is_a_curve_for_each_pair(directions):
    assert directions.dataset["step"].values.tolist() == list(range(31))
    for name in (*DIRECTIONS, ACCURACY):
        curve = directions.read(name, "pair", "step")
        assert curve.shape == (NUM_PAIRS, 31) and np.isfinite(curve).all()


@pytest.mark.quick
def test_alignment_is_a_ratio_of_sums_and_undefined_without_a_direction():
    u, v = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 4.0], [0.0, 0.0]])
    inner, square = (u * v).sum(), np.array([(u**2).sum(), (v**2).sum()])
    aligned = measure.alignment(np.full((1, 2, 1), inner), square.reshape(1, 2, 1))
    np.testing.assert_allclose(aligned, [[9 / 25]])
    assert np.isnan(measure.alignment(np.zeros((1, 2, 1)), np.zeros((1, 2, 1)))).all()


def test_the_two_models_of_a_pair_change_places():
    inner = jax.vmap(measure.exchange, axis_name=populations.MODEL)
    assert jax.vmap(inner)(jnp.arange(6.0).reshape(3, 2)).tolist() == [[1, 0], [3, 2], [5, 4]]


# What has come before accuracy starts


@pytest.mark.quick
def test_the_last_step_before_the_start_by_hand():
    curves = np.array(
        [
            [0.0, 0.05, 0.09, 0.5, 1.0],
            [0.0, 0.05, 0.2, 0.05, 1.0],  # started at step 2, and left again
            [5.0, 5.3, 5.5, 6.0, 7.0],  # from step 0: more than .2 at once
            [0.0, 0.5, 0.5, 0.5, 0.0],  # no gain
            [0.0, -0.1, -0.2, 0.0, -1.0],
        ]
    )
    assert study.last_before_start(curves).tolist() == [2, 1, 0, -1, -1]


@pytest.mark.quick
def test_the_part_of_the_gain_by_hand():
    accuracy = np.array([0.1, 0.12, 0.15, 0.5, 0.9])  # t* is step 2
    alignment = np.array([0.2, 0.0, 0.3, 0.4, 0.6])
    np.testing.assert_allclose(study.share_before_start(alignment, accuracy), 0.1 / 0.4)
    # Neither where a curve begins nor its scale matters.
    np.testing.assert_allclose(study.share_before_start(7 * alignment - 3, accuracy), 0.25)
    assert np.isnan(study.share_before_start(-alignment, accuracy))
    assert np.isnan(study.share_before_start(alignment, -accuracy))


def _planted():
    records = planted.plant(np.random.default_rng(0), 1.0)
    place = study.decided_on(plants.CONFIG, plants.CONFIG.architectures[0])
    return records, place, records.get(EARLY_DIRECTIONS, place)


def test_the_standard_error_is_that_of_populations_drawn_again(monkeypatch):
    monkeypatch.setattr(study, "NUM_RESAMPLES", 400)
    rng = np.random.default_rng(1)
    parts = [study.decide(planted.plant(rng, 1.0)).parts for _ in range(60)]
    estimates = np.array([[part.estimate for part in row] for row in parts])
    widths = np.array([[part.high - part.low for part in row] for row in parts])
    expected = np.sqrt((estimates.var(0, ddof=1)).mean())
    error = np.sqrt(((widths / 2 / 2.1314) ** 2).mean())  # the t quantile of 15 degrees
    assert 0.8 < error / expected < 1.25


def test_onsets_are_the_first_steps_above_step_0():
    _, _, measured = _planted()
    curves = study.curves_of(measured)
    first = study.onset(curves, study.MARGIN)
    assert 0 < first < planted.START
    flat = curves._replace(values={study.MARGIN: 0 * curves.values[study.MARGIN]})
    assert np.isnan(study.onset(flat, study.MARGIN))


def test_without_a_gain_nothing_is_decided():
    records, place, measured = _planted()
    falling = measured.dataset.copy(deep=True)
    falling[study.MARGIN] = -falling[study.MARGIN]
    datasets = records.datasets | {(EARLY_DIRECTIONS.name, place.id): falling}
    part = study.decide(type(records)(records.config, datasets)).parts[0]
    assert (part.p_value, part.p_reverse, part.num_pairs) == (1.0, 1.0, 16)
