"""Alignment of two models along the first steps, against models taken from the walk one by one."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t4 as planted
from support import plants, tiny_run

from halfway import losses, meeting, populations
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
        measure.probe_of.cache_clear()
        yield Measured(EARLY_DIRECTIONS.measure(context))
    measure.probe_of.cache_clear()


def test_steps_end_with_training():
    assert measure.steps_of(CONDITION) == tuple(range(31))
    longer = dataclasses.replace(CONDITION, probe_steps=(0, 50, 700))
    assert measure.steps_of(longer) == tuple(range(101))


def _walk(program, key, params, samples, images):
    """Parameters and the rows of S."""
    return params, samples["holdout"].indices


def test_curves_are_those_of_the_walk_s_models(directions, context, pool):
    attack = context.program().attack(CONFIG.attack.epsilon)

    @jax.jit
    def look(params, x, labels):
        """Input gradients, perturbations and accuracy of one model."""
        logits_fn = functools.partial(CONDITION.apply_fn, params)
        gradient = jax.grad(lambda x: losses.margin(logits_fn(x), labels).sum())(x)
        perturbation = attack(logits_fn, KEY, x, labels).adversarial - x
        return gradient, perturbation, (logits_fn(x).argmax(-1) == labels).mean()

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


def test_the_same_attack_is_compiled_once(context):
    program, epsilon = context.program(), CONFIG.attack.epsilon
    probe = measure.probe_of(program, epsilon)
    assert measure.probe_of(dataclasses.replace(program), epsilon) is probe
    assert measure.probe_of(program, epsilon / 2) is not probe


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


# When half is done


@pytest.mark.quick
def test_half_step_by_hand():
    steps = np.array([0, 1, 2, 4])
    curves = np.array(
        [
            [0.0, 0.25, 0.75, 1.0],  # ½ between the steps 1 and 2
            [1.0, 1.0, 2.0, 5.0],  # 3 a third of the way from 2 to 4
            [0.0, 0.5, 0.2, 1.0],  # at step 1, and left again: the first time counts
            [0.0, 3.0, 1.0, 2.0],  # beyond its end in the first step
            [0.5, 0.9, 0.9, 0.5],  # no gain
            [0.5, 0.9, 0.9, 0.4],
            [0.0, np.nan, 0.5, 1.0],
        ]
    )
    expected = [1.5, 2 + 2 / 3, 1.0, 1 / 3, np.nan, np.nan, np.nan]
    np.testing.assert_allclose(study.half_step(curves, steps), expected)
    # Neither where a curve begins nor its scale matters.
    np.testing.assert_allclose(study.half_step(7 * curves - 3, steps), expected)


def _planted():
    records = planted.plant(np.random.default_rng(0), 1.0)
    return records, records.get(EARLY_DIRECTIONS, study.decided_on(plants.CONFIG))


def test_planted_curves_are_half_way_where_they_should_be():
    half_steps = study.curves_of(_planted()[1]).half_steps
    # The curves end short of their limit, so a little earlier than planted.
    assert abs(half_steps[ACCURACY].mean() - 10) < 0.7
    difference = (half_steps[study.GRADIENT] - half_steps[ACCURACY]).mean()
    assert abs(difference + planted.PLANTED) < 1.2


def test_a_pair_without_a_gain_is_left_out_and_said():
    records, directions = _planted()
    assert not study.decide(records).warnings
    flat = directions.dataset.copy(deep=True)
    flat[study.GRADIENT][5] = flat[study.GRADIENT].values[5, 0]
    changed = plants.records((EARLY_DIRECTIONS, study.decided_on(plants.CONFIG), flat))
    outcome = study.decide(changed)
    assert (outcome.parts[0].num_pairs, outcome.parts[0].num_excluded) == (15, 1)
    assert "in 1 of 16 pairs the alignment of input gradients" in outcome.warnings[0]
